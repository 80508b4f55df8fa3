"""Byte planes: byte j of all items together, each plane stored or compressed (spec section 7.2).

The high bytes of trained tensors (sign, exponent) compress well, the low ones hardly; apart, each
gets what suits it. Floats may be rotated left by one bit first: the sign leaves the exponent's
byte, which then holds all of a binary32 or bfloat16 exponent and compresses better than its split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from pemncodec.coders.lossless import Effort, Items, LosslessCoder
from pemncodec.coders.varint import decode_varint, encode_varint
from pemncodec.coders.zstd import decode_zstd, encode_literals, encode_nearby, encode_zstd
from pemncodec.coders.zstd_bits import encode_two_values
from pemncodec.errors import CorruptError, TruncatedError

STORED, CONSTANT, ZSTD = 0, 1, 2
_SMALL = 1 << 16  # bytes that are compressed as well as possible, whatever it gains
_SAMPLE = 1 << 15  # bytes
_BLOCK = 1 << 15  # items that are put together at one time: they stay in the cache
_CHUNKS = 4  # that a sample is taken from
_WORTH = 1 / 256  # of a plane's compressed bytes, which a slower way must save
_DOUBT = 1 / 32  # of the entropy of independent bytes, above which there may be a better way


def encode_planes(
    items: npt.NDArray[np.unsignedinteger], *, rotate: bool, effort: Effort = "usual"
) -> bytes:
    """Unsigned items [n] of 1, 2, 4 or 8 bytes to planes, least significant first."""
    planes = (_plane(items, index, rotate) for index in range(items.itemsize))
    return b"".join(_encode_plane(plane, effort) for plane in planes)


def _plane(
    items: npt.NDArray[np.unsignedinteger], index: int, rotate: bool
) -> npt.NDArray[np.uint8]:
    plane = np.empty(items.size, np.uint8)
    for start in range(0, items.size, _BLOCK):
        block = items[start : start + _BLOCK]
        if rotate:
            block = _rotate(block, 1)
        as_bytes = block.astype(block.dtype.newbyteorder("<"), copy=False).view(np.uint8)
        plane[start : start + _BLOCK] = as_bytes[index :: items.itemsize]
    return plane


def decode_planes(
    data: bytes | memoryview, count: int, itemsize: int, *, rotate: bool
) -> npt.NDArray[np.unsignedinteger]:
    """Items, unsigned little-endian [count].

    Raises:
        TruncatedError: `data` is too short.
        CorruptError: `data` is not what `encode_planes` can have written.
    """
    planes = []
    position = 0
    for _ in range(itemsize):
        plane, position = _decode_plane(data, position, count)
        planes.append(plane)
    if position != len(data):
        raise CorruptError("trailing", f"{len(data) - position} bytes behind the last plane")
    items = np.empty(count, f"<u{itemsize}")
    as_bytes = items.view(np.uint8).reshape(count, itemsize)
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        for index, plane in enumerate(planes):
            as_bytes[block, index] = plane[block]
        if rotate:
            items[block] = _rotate(items[block], 8 * itemsize - 1)
    return items


def _rotate(items: npt.NDArray[np.unsignedinteger], bits: int) -> npt.NDArray[np.unsignedinteger]:
    dtype = items.dtype.type
    width = 8 * items.itemsize
    rotated: npt.NDArray[np.unsignedinteger] = np.bitwise_or(
        items << dtype(bits), items >> dtype(width - bits)
    )
    return rotated


def _encode_plane(plane: npt.NDArray[np.uint8], effort: Effort) -> bytes:
    if plane.size and (plane == plane[0]).all():
        return bytes([CONSTANT, plane[0]])
    best = min(_frames(plane, effort), key=len)
    head = encode_varint(len(best))
    if len(head) + len(best) < plane.size:
        return b"".join([bytes([ZSTD]), head, best])
    return b"".join([bytes([STORED]), plane.data])


def _frames(plane: npt.NDArray[np.uint8], effort: Effort) -> list[bytes]:
    """Frames of a plane, of which the smallest is to be taken."""
    raw = plane.data
    bits = encode_two_values(plane)
    frames = [] if bits is None else [bits]
    if effort == "guess":
        return [*frames, encode_nearby(raw)]
    if len(raw) <= _SMALL:
        return [*frames, encode_zstd(raw)]
    frames.append(encode_literals(raw))
    if effort == "most":
        return [*frames, encode_nearby(raw), encode_zstd(raw)]
    return [*frames, *(encode(raw) for encode in _slower_ways(plane, bits is not None))]


def _slower_ways(
    plane: npt.NDArray[np.uint8], two_values: bool
) -> Iterator[Callable[[memoryview], bytes]]:
    """What makes smaller frames of a plane than the fast ways, and pays for its time, by a sample.

    A sample does not show repeats that are far apart; the fast ways find those.
    """
    chunks = [chunk[: _SAMPLE // _CHUNKS] for chunk in np.array_split(plane, _CHUNKS)]
    sample = np.concatenate(chunks)
    raw = sample.tobytes()
    least = min(len(encode_literals(raw)), sample.size // 8 if two_values else sample.size)
    nearby = len(encode_nearby(raw))
    if nearby < (1 - _WORTH) * least:
        yield encode_nearby
        least = nearby
    # Bytes that are independent are explained by their entropy, and nothing makes them smaller.
    order0 = _order0_bytes(sample)
    explained = order0 <= least <= (1 + _DOUBT) * order0
    if not explained and len(encode_zstd(raw)) < (1 - _WORTH) * least:
        yield encode_zstd


def _order0_bytes(sample: npt.NDArray[np.uint8]) -> float:
    """What independent coding of the bytes needs at least."""
    counts = np.bincount(sample)
    shares = counts[counts > 0] / sample.size
    return -float(np.sum(shares * np.log2(shares))) * sample.size / 8


def _decode_plane(
    data: bytes | memoryview, position: int, count: int
) -> tuple[npt.NDArray[np.uint8], int]:
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
        return np.broadcast_to(np.uint8(body[0]), (count,)), position
    raw = decode_zstd(body, size=count, limit=count) if method == ZSTD else body
    return np.frombuffer(raw, np.uint8), position


_FLOATS = {"float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"}


def _encode_rotated(items: Items, dtype: str, effort: Effort) -> bytes | None:
    return encode_planes(items, rotate=True, effort=effort) if dtype in _FLOATS else None


PLANES = LosslessCoder(
    1,
    "planes",
    lambda items, _dtype, effort: encode_planes(items, rotate=False, effort=effort),
    partial(decode_planes, rotate=False),
)
ROTATED_PLANES = LosslessCoder(
    2, "rotated planes", _encode_rotated, partial(decode_planes, rotate=True)
)
