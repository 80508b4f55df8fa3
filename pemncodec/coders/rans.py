"""Static range coder (rANS) over bytes of eight mask bits (spec section 6.3).

The model is one number, the density of the mask: a byte with k ones has the probability
p^k (1 − p)^(8 − k), so nine frequencies describe all 256 bytes and the table need not be sent.
Tensors above `BLOCK_WEIGHTS` are split into independent blocks behind an index of their sizes.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from pemncodec import kernels
from pemncodec.coders.packed import packed_size
from pemncodec.errors import CorruptError, TruncatedError

BLOCK_WEIGHTS = 1 << 20
_MANY_LANES_WEIGHTS = 1 << 18  # from here the bytes that eight lanes cost are below 0.1 %
_PRECISION = 15

_POPCOUNT = np.array([value.bit_count() for value in range(256)])


def byte_frequencies(density: int) -> npt.NDArray[np.uint32]:
    """Frequencies of all bytes, uint32 [256], sum 2^15.

    Args:
        density: probability of a one in 1/65536, 1 to 65535.
    """
    one, zero = density, (1 << 16) - density
    half = 1 << (127 - _PRECISION)
    per_count = [max(1, (one**k * zero ** (8 - k) + half) >> (128 - _PRECISION)) for k in range(9)]
    frequencies = np.array(per_count, np.int64)[_POPCOUNT]
    most_probable = 0x00 if one <= zero else 0xFF
    frequencies[most_probable] += (1 << _PRECISION) - frequencies.sum()
    return np.asarray(frequencies, np.uint32)


def encode_rans(packed: npt.NDArray[np.uint8], count: int) -> bytes:
    """Packed bits of `count` ≥ 1 weights to blocks, with an index where there are several."""
    blocks = [
        _encode_block(packed[start // 8 : packed_size(stop)], stop - start)
        for start, stop in _block_bounds(count)
    ]
    index = struct.pack(f"<{len(blocks)}I", *map(len, blocks)) if len(blocks) > 1 else b""
    return index + b"".join(blocks)


def decode_rans(data: bytes, count: int) -> npt.NDArray[np.uint8]:
    """Packed bits of `count` ≥ 1 weights.

    Raises:
        TruncatedError: `data` is too short.
        CorruptError: `data` is not what `encode_rans` can have written.
    """
    bounds = _block_bounds(count)
    sizes, position = [len(data)], 0
    if len(bounds) > 1:
        position = 4 * len(bounds)
        if len(data) < position:
            raise TruncatedError("truncated", "the block index is cut off")
        sizes = list(struct.unpack_from(f"<{len(bounds)}I", data))
        if position + sum(sizes) != len(data):
            raise CorruptError("section", "the block index and the section's size differ")
    packed = np.empty(packed_size(count), np.uint8)
    for (start, stop), size in zip(bounds, sizes, strict=True):
        block = data[position : position + size]
        _decode_block(block, stop - start, packed[start // 8 : packed_size(stop)])
        position += size
    if count % 8 and packed[-1] >> count % 8:
        raise CorruptError("section", "a padding bit of the mask is set")
    return packed


def _block_bounds(count: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK_WEIGHTS, count)) for start in range(0, count, BLOCK_WEIGHTS)]


def _lanes(weights: int) -> int:
    return 8 if weights >= _MANY_LANES_WEIGHTS else 1


def _encode_block(packed: npt.NDArray[np.uint8], weights: int) -> bytes:
    ones = int(np.bitwise_count(packed).sum(dtype=np.int64))
    density = min(max((ones * 65536 + weights // 2) // weights, 1), 65535)
    symbols = kernels.rans_encode(packed, byte_frequencies(density), _lanes(weights))
    return struct.pack("<H", density) + symbols


def _decode_block(block: bytes, weights: int, out: npt.NDArray[np.uint8]) -> None:
    if len(block) < 2:
        raise TruncatedError("truncated", "a block without its density")
    (density,) = struct.unpack_from("<H", block)
    if density == 0:
        raise CorruptError("section", "a block's density is 0")
    try:
        kernels.rans_decode(block[2:], byte_frequencies(density), _lanes(weights), out)
    except ValueError as error:
        raise CorruptError("section", f"damaged rANS block: {error}") from None
