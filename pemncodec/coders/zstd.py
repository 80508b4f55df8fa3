"""Zstandard frames (RFC 8878), their size known before they are opened (spec section 3.3)."""

from __future__ import annotations

import zstandard

from pemncodec.errors import CorruptError, LimitError

LEVEL = 19
_FAR = 27  # binary logarithm of the largest distance of repeats
_MAGIC = b"\x28\xb5\x2f\xfd"


def encode_zstd(data: bytes) -> bytes:
    """One frame with its content size, without checksum (sections carry a CRC-32)."""
    compressor = zstandard.ZstdCompressor(
        level=LEVEL, write_content_size=True, write_checksum=False, write_dict_id=False
    )
    return compressor.compress(data)


def quick_size(data: bytes) -> int:
    """Bytes of a frame that takes a hundredth of the time: few more where there is much to gain.

    It finds repeats that are far apart, which the fast levels alone would miss.
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(
        1, enable_ldm=True, window_log=_FAR, source_size=len(data)
    )
    return len(zstandard.ZstdCompressor(compression_params=parameters).compress(data))


def decode_zstd(frame: bytes, *, size: int | None = None, limit: int) -> bytes:
    """Content of one frame.

    Args:
        frame: exactly one frame.
        size: bytes that the content must have; None takes the frame's own word for it.
        limit: bytes that the content may have at most; checked before decompressing.

    Raises:
        CorruptError: not one frame, without content size, or of another size than `size`.
        LimitError: the content is larger than `limit`.
    """
    if not frame.startswith(_MAGIC):
        raise CorruptError("zstd", "not a Zstandard frame")
    try:
        declared = zstandard.frame_content_size(frame)
    except zstandard.ZstdError as error:
        raise CorruptError("zstd", f"not a Zstandard frame ({error})") from None
    if declared < 0:
        raise CorruptError("zstd", "the Zstandard frame does not give its content size")
    if size is not None and declared != size:
        raise CorruptError("zstd", f"the frame holds {declared} bytes, expected {size}")
    if declared > limit:
        raise LimitError("limit", f"a frame of {declared} bytes, the limit is {limit}")
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    try:
        content = decompressor.decompress(frame)
    except zstandard.ZstdError as error:
        raise CorruptError("zstd", f"damaged Zstandard frame ({error})") from None
    if not decompressor.eof or decompressor.unused_data:
        raise CorruptError("zstd", "not exactly one whole Zstandard frame")
    if len(content) != declared:
        raise CorruptError("zstd", f"the frame held {len(content)} bytes, declared {declared}")
    return content
