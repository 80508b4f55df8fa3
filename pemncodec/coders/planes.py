"""Byte planes: byte j of all items together, each plane stored or compressed (spec section 7.2).

The high bytes of trained tensors (sign, exponent) compress well, the low ones hardly; apart, each
gets what suits it. Floats may be rotated left by one bit first: the sign leaves the exponent's
byte, which then holds all of a binary32 or bfloat16 exponent and compresses better than its split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial

import numpy as np
import numpy.typing as npt

from pemncodec.coders.lossless import Effort, Items, LosslessCoder
from pemncodec.coders.varint import decode_varint, encode_varint
from pemncodec.coders.zstd import decode_zstd, encode_literals, encode_nearby, encode_zstd
from pemncodec.coders.zstd_bits import encode_two_values
from pemncodec.errors import CorruptError, TruncatedError
from pemncodec.threads import each

STORED, CONSTANT, ZSTD = 0, 1, 2
_SMALL = 1 << 16  # bytes that are compressed as well as possible, whatever it gains
_SAMPLE = 1 << 15  # bytes
_BLOCK = 1 << 15  # items that are put together at one time: they stay in the cache
_CHUNKS = 4  # that a sample is taken from
_WORTH = 1 / 256  # of a plane's compressed bytes, which a slower way must save
_DOUBT = 1 / 32  # of the entropy of independent bytes, above which there may be a better way


def encode_planes(
    items: npt.NDArray[np.unsignedinteger],
    *,
    rotate: bool,
    effort: Effort = "usual",
    pool: Executor | None = None,
) -> bytearray:
    """Unsigned items [n] of 1, 2, 4 or 8 bytes to planes, least significant first.

    Args:
        items: to code.
        rotate: whether each is rotated left by a bit first.
        effort: how hard to try.
        pool: codes several planes at the same time.
    """

    def encode(index: int) -> tuple[bytes, bytes | memoryview]:
        return _encode_plane(_plane(items, index, rotate), effort)

    body = bytearray()  # which grows in place: few planes are there twice
    for head, content in each(pool, encode, range(items.itemsize)):
        body += head
        body += content
        del content  # before the next one is made
    return body


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


def _encode_plane(plane: npt.NDArray[np.uint8], effort: Effort) -> tuple[bytes, bytes | memoryview]:
    """What begins a plane in its body, and what comes then."""
    if plane.size and (plane == plane[0]).all():
        return bytes([CONSTANT]), plane[:1].tobytes()
    frame = _smallest_frame(plane, effort)
    head = bytes([ZSTD]) + encode_varint(len(frame))
    if len(head) - 1 + len(frame) < plane.size:
        return head, frame
    return bytes([STORED]), plane.data


def _smallest_frame(plane: npt.NDArray[np.uint8], effort: Effort) -> bytes:
    """The first of those frames of a plane that are smallest."""
    raw = plane.data
    best = encode_two_values(plane)
    for encode in _ways(plane, effort, two_values=best is not None):
        frame = encode(raw)
        if best is None or len(frame) < len(best):
            best = frame
        del frame  # they may be as large as the plane
    assert best is not None
    return best


def _ways(
    plane: npt.NDArray[np.uint8], effort: Effort, *, two_values: bool
) -> Iterator[Callable[[memoryview], bytes]]:
    """What makes frames of a plane: all that may make the smallest."""
    if effort == "guess":
        yield encode_nearby
    elif plane.size <= _SMALL:
        yield encode_zstd
    else:
        yield encode_literals
        if effort == "most":
            yield from (encode_nearby, encode_zstd)
        else:
            yield from _slower_ways(plane, two_values)


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


def _encode(items: Items, _dtype: str, effort: Effort, pool: Executor | None) -> bytearray:
    return encode_planes(items, rotate=False, effort=effort, pool=pool)


def _encode_rotated(
    items: Items, dtype: str, effort: Effort, pool: Executor | None
) -> bytearray | None:
    if dtype not in _FLOATS:
        return None
    return encode_planes(items, rotate=True, effort=effort, pool=pool)


PLANES = LosslessCoder(1, "planes", _encode, partial(decode_planes, rotate=False))
ROTATED_PLANES = LosslessCoder(
    2, "rotated planes", _encode_rotated, partial(decode_planes, rotate=True)
)
