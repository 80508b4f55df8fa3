"""Byte planes: byte j of all items together, each plane stored or compressed (spec section 7.2).

The high bytes of trained tensors (sign, exponent) compress well, the low ones hardly; apart, each
gets what suits it. Floats may be rotated left by one bit first: the sign leaves the exponent's
byte, which then holds all of a binary32 or bfloat16 exponent and compresses better than its split.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from pemncodec.coders.lossless import Items, LosslessCoder
from pemncodec.coders.varint import decode_varint, encode_varint
from pemncodec.coders.zstd import decode_zstd, encode_zstd, quick_size
from pemncodec.errors import CorruptError, TruncatedError

STORED, CONSTANT, ZSTD = 0, 1, 2
_SMALL = 1 << 16  # bytes that are compressed at once, whatever comes of it
_NOISE = 0.996  # of 8 bits a byte; what gains less than 1 in 256 bytes Zstandard leaves as it is


def encode_planes(items: npt.NDArray[np.unsignedinteger], *, rotate: bool) -> bytes:
    """Unsigned items [n] of 1, 2, 4 or 8 bytes to planes, least significant first."""
    if rotate:
        items = _rotate(items, 1)
    as_bytes = items.astype(items.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    planes = as_bytes.reshape(items.size, items.itemsize).T
    return b"".join(_encode_plane(np.ascontiguousarray(plane)) for plane in planes)


def decode_planes(
    data: bytes, count: int, itemsize: int, *, rotate: bool
) -> npt.NDArray[np.unsignedinteger]:
    """Items, unsigned little-endian [count].

    Raises:
        TruncatedError: `data` is too short.
        CorruptError: `data` is not what `encode_planes` can have written.
    """
    as_bytes = np.empty((count, itemsize), np.uint8)
    position = 0
    for plane in range(itemsize):
        as_bytes[:, plane], position = _decode_plane(data, position, count)
    if position != len(data):
        raise CorruptError("trailing", f"{len(data) - position} bytes behind the last plane")
    items: npt.NDArray[np.unsignedinteger] = as_bytes.reshape(-1).view(f"<u{itemsize}")
    return _rotate(items, 8 * itemsize - 1) if rotate else items


def _rotate(items: npt.NDArray[np.unsignedinteger], bits: int) -> npt.NDArray[np.unsignedinteger]:
    dtype = items.dtype.type
    width = 8 * items.itemsize
    rotated: npt.NDArray[np.unsignedinteger] = np.bitwise_or(
        items << dtype(bits), items >> dtype(width - bits)
    )
    return rotated


def _encode_plane(plane: npt.NDArray[np.uint8]) -> bytes:
    if plane.size and (plane == plane[0]).all():
        return bytes([CONSTANT, plane[0]])
    raw = plane.tobytes()
    if _is_noise(plane, raw):
        return bytes([STORED]) + raw
    frame = encode_zstd(raw)
    coded = encode_varint(len(frame)) + frame
    return bytes([ZSTD]) + coded if len(coded) < len(raw) else bytes([STORED]) + raw


def _is_noise(plane: npt.NDArray[np.uint8], raw: bytes) -> bool:
    """Whether Zstandard would make nothing of a large plane, such as one of a mantissa."""
    if plane.size <= _SMALL:
        return False
    counts = np.bincount(plane)
    shares = counts[counts > 0] / plane.size
    order0 = -float(np.sum(shares * np.log2(shares))) / 8
    return order0 > _NOISE and quick_size(raw) >= len(raw)


def _decode_plane(data: bytes, position: int, count: int) -> tuple[npt.NDArray[np.uint8], int]:
    if position >= len(data):
        raise TruncatedError("truncated", "a byte plane is missing")
    method, position = data[position], position + 1
    if method == STORED:
        size = count
    elif method == CONSTANT:
        size = 1
    elif method == ZSTD:
        size, position = decode_varint(data, position)
    else:
        raise CorruptError("unknown-field", f"unknown byte plane method {method}")
    if size > len(data) - position:
        raise TruncatedError("truncated", f"a byte plane of {size} bytes is cut off")
    body, position = data[position : position + size], position + size
    if method == CONSTANT:
        return np.full(count, body[0], np.uint8), position
    raw = decode_zstd(body, size=count, limit=count) if method == ZSTD else body
    return np.frombuffer(raw, np.uint8), position


_FLOATS = {"float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"}


def _encode_rotated(items: Items, dtype: str) -> bytes | None:
    return encode_planes(items, rotate=True) if dtype in _FLOATS else None


PLANES = LosslessCoder(
    1,
    "planes",
    lambda items, _dtype: encode_planes(items, rotate=False),
    partial(decode_planes, rotate=False),
)
ROTATED_PLANES = LosslessCoder(
    2, "rotated planes", _encode_rotated, partial(decode_planes, rotate=True)
)
