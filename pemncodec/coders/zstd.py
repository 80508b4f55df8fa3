"""Zstandard frames (RFC 8878), their size known before they are opened (spec section 3.3)."""

from __future__ import annotations

import zstandard

from pemncodec.errors import CorruptError, LimitError

_MAGIC = b"\x28\xb5\x2f\xfd"
_WINDOW_LOG = 23  # what every decoder takes (RFC 8878, section 3.1.1.1.2)


def encode_zstd(data: bytes | memoryview) -> bytes:
    """One frame with its content size, without checksum (sections carry a CRC-32).

    About as small as Zstandard can make it: 2 to 10 MB a second.
    """
    return _frame(data, zstandard.ZstdCompressionParameters.from_level(19, source_size=len(data)))


def encode_nearby(data: bytes | memoryview) -> bytes:
    """As `encode_zstd`, by repeats that are near: 20 MB a second, hardly larger for tensors."""
    return _frame(
        data,
        zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_BTULTRA,
            window_log=17,
            hash_log=14,
            chain_log=14,
            search_log=1,
            min_match=4,
            target_length=16,
        ),
    )


def encode_literals(data: bytes | memoryview) -> bytes:
    """As `encode_zstd`, by Huffman codes and long repeats alone: 500 MB a second.

    Bytes that are independent of each other need no more.
    """
    return _frame(
        data,
        zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST,
            window_log=_WINDOW_LOG,
            hash_log=6,  # a table of the least size, which finds hardly any short repeats
            chain_log=6,
            search_log=1,
            min_match=7,
            enable_ldm=True,
        ),
    )


def _frame(data: bytes | memoryview, parameters: zstandard.ZstdCompressionParameters) -> bytes:
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def decode_zstd(frame: bytes | memoryview, *, size: int | None = None, limit: int) -> bytes:
    """Content of one frame.

    Args:
        frame: exactly one frame.
        size: bytes that the content must have; None takes the frame's own word for it.
        limit: bytes that the content may have at most; checked before decompressing.

    Raises:
        CorruptError: not one frame, without content size, or of another size than `size`.
        LimitError: the content is larger than `limit`.
    """
    if frame[: len(_MAGIC)] != _MAGIC:
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
