"""Static range coder (rANS) for masks of independent bits (spec section 6.3).

The model is one number, the density of a block. Where ones and zeros are about as frequent, the
symbols are bytes of eight bits; where one of them is rare, they are runs of the other, since the
bytes that hardly ever occur could not be given small enough frequencies. Either way the frequencies
follow from the density, and no table is sent. Large masks are cut into independent blocks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt

from pemncodec import kernels
from pemncodec.coders.mask_coder import Body, MaskBlock, order0_bits, static_coder
from pemncodec.coders.packed import count_ones, packed_size
from pemncodec.coders.varint import decode_varint, encode_varint
from pemncodec.contents import Mask, PackedMask
from pemncodec.errors import CorruptError, DecodeError, TruncatedError

BLOCK_BITS = range(20, 26)  # log2 of the weights of a block, where there are more than 2^20
_RUNS_BELOW = 10240  # probability of the rarer value, in 1/65536
_MANY_LANES_SYMBOLS = 1 << 16  # from here the bytes that eight lanes cost are below 0.1 %
_PRECISION = 15
_BLOCK_BYTES = 12  # about what a block costs besides its words
# From here processes may share a layer. Blocks of 2^20 let none of four decode more than 1.25 times
# its quarter; where few weights are kept or few go, they would have too few symbols for many lanes.
_SHARED_WEIGHTS = 1 << 24

_POPCOUNT = np.array([value.bit_count() for value in range(256)])
Frequencies = npt.NDArray[np.uint32]


@lru_cache(maxsize=64)
def byte_frequencies(density: int) -> Frequencies:
    """Frequencies of the bytes of eight bits, uint32 [256], sum 2^15.

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


@lru_cache(maxsize=64)
def run_frequencies(rare: int) -> tuple[int, Frequencies]:
    """The longest run, and the frequencies of all runs, uint32 [256], sum 2^15.

    Args:
        rare: probability of the rarer value in 1/65536, 1 to 10239.
    """
    longest = min(255, (1 << 17) // rare)
    frequencies = np.zeros(256, np.uint32)
    reached = 1 << 32  # probability in 1/2^32 that a run gets this far
    for run in range(longest):
        frequencies[run] = max(1, (reached * rare + (1 << 32)) >> 33)
        reached = (reached * (65536 - rare)) >> 16
    frequencies[longest] = (1 << _PRECISION) - int(frequencies.sum())
    return longest, frequencies


def encode_rans(packed: PackedMask, count: int) -> bytes:
    """PackedMask bits of `count` ≥ 1 weights to blocks, with an index where `count` is large."""
    if count <= 1 << BLOCK_BITS[0]:
        return _encode_block(packed, count)
    block_bits = _best_block_bits(packed, count)
    blocks = [
        _encode_block(packed[start // 8 : packed_size(stop)], stop - start)
        for start, stop in _block_bounds(count, block_bits)
    ]
    return struct.pack(f"<B{len(blocks)}I", block_bits, *map(len, blocks)) + b"".join(blocks)


def decode_rans(data: Body, count: int) -> PackedMask:
    """PackedMask bits of `count` weights.

    Raises:
        TruncatedError: `data` is too short.
        CorruptError: `data` is not what `encode_rans` can have written.
    """
    blocks = split_blocks(data, count)
    return np.concatenate([block.decode(block.stop - block.start) for block in blocks])


def split_blocks(data: Body, count: int) -> list[MaskBlock]:
    """The blocks of `count` weights, not decoded; errors as `decode_rans`."""
    return [
        MaskBlock(start, stop, partial(_decode_block, body, stop - start))
        for start, stop, body in _bodies(data, count)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class CodedBlock:
    """A block whose symbols are not decoded.

    Attributes:
        weights: of the block.
        density: probability of a one in 1/65536, 1 to 65535.
        symbols: how many, 1 to `weights`.
        coded: the states, then the words.
    """

    weights: int
    density: int
    symbols: int
    coded: memoryview

    @property
    def is_runs(self) -> bool:
        """Whether symbols are runs of the more frequent value, not bytes of eight bits."""
        return _is_runs(self.density)

    @property
    def lanes(self) -> int:
        """How many states take turns."""
        return _lanes(self.symbols)

    @property
    def longest(self) -> int:
        """The longest run; 0 where symbols are bytes."""
        return run_frequencies(_rarer(self.density))[0] if self.is_runs else 0

    @property
    def frequencies(self) -> Frequencies:
        """Of the symbols, uint32 [256], sum 2^15."""
        if self.is_runs:
            return run_frequencies(_rarer(self.density))[1]
        return byte_frequencies(self.density)

    def decode(self, count: int) -> PackedMask:
        """Packed bits of its first weights, uint8 [ceil(count / 8)]; errors as `decode_rans`.

        Args:
            count: of these weights: a multiple of 8, or all.
        """
        try:
            if self.is_runs:
                packed = self._decode_runs(count)
            else:
                packed = self._decode_symbols(packed_size(count))
        except DecodeError:
            raise
        except ValueError as error:
            raise CorruptError("section", f"damaged rANS block: {error}") from None
        if count % 8 and packed[-1] >> count % 8:
            raise CorruptError("section", "a padding bit of the mask is set")
        return packed

    def _decode_symbols(self, count: int) -> npt.NDArray[np.uint8]:
        """The first symbols, or all."""
        out = np.empty(count, np.uint8)
        decode = kernels.rans_decode if count == self.symbols else kernels.rans_decode_first
        decode(self.coded, self.frequencies, self.lanes, out)
        return out

    def _decode_runs(self, count: int) -> PackedMask:
        runs, covered = self._first_runs(count) or (
            self._decode_symbols(self.symbols),
            self.weights,
        )
        packed = np.empty(packed_size(covered), np.uint8)
        kernels.runs_decode(runs, self.longest, covered, packed)
        if self.density > 32768:
            packed = _inverted(packed, covered)
        return packed[: packed_size(count)]

    def _first_runs(self, count: int) -> tuple[npt.NDArray[np.uint8], int] | None:
        """The runs that cover the first weights, and how many they cover; None where all are
        needed, or more than the usual share."""
        few = self.symbols * count // self.weights + self.symbols // 64 + 64
        if count == self.weights or few >= self.symbols:
            return None
        runs = self._decode_symbols(few)
        ends = np.cumsum(runs + (runs < self.longest), dtype=np.int64)
        last = int(np.searchsorted(ends, count))
        return None if last == few else (runs[: last + 1], int(ends[last]))


def coded_blocks(data: Body, count: int) -> list[CodedBlock]:
    """The blocks of `count` weights by what they begin with; errors of that as `decode_rans`."""
    return [_coded_block(body, stop - start) for start, stop, body in _bodies(data, count)]


def _bodies(data: Body, count: int) -> list[tuple[int, int, memoryview]]:
    """The bytes of each block, with its first weight and the one behind its last."""
    view = memoryview(data)
    if not count:
        raise CorruptError("section", "a rANS-coded mask of no weights")
    if count <= 1 << BLOCK_BITS[0]:
        return [(0, count, view)]
    if not data:
        raise TruncatedError("truncated", "a rANS mask without the size of its blocks")
    if data[0] not in BLOCK_BITS:
        raise CorruptError(
            "section",
            f"blocks of 2^{data[0]} weights, expected 2^{BLOCK_BITS[0]} to 2^{BLOCK_BITS[-1]}",
        )
    bounds = _block_bounds(count, data[0])
    position = 1 + 4 * len(bounds)
    if len(data) < position:
        raise TruncatedError("truncated", "the block index is cut off")
    sizes = struct.unpack_from(f"<{len(bounds)}I", data, 1)
    if position + sum(sizes) != len(data):
        raise CorruptError("section", "the block index and the section's size differ")
    bodies = []
    for (start, stop), size in zip(bounds, sizes, strict=True):
        bodies.append((start, stop, view[position : position + size]))
        position += size
    return bodies


def _decode_block(data: memoryview, weights: int, count: int) -> PackedMask:
    return _coded_block(data, weights).decode(count)


def _coded_block(data: memoryview, weights: int) -> CodedBlock:
    if len(data) < 2:
        raise TruncatedError("truncated", "a block without its density")
    (density,) = struct.unpack_from("<H", data)
    if density == 0:
        raise CorruptError("section", "a block's density is 0")
    if not _is_runs(density):
        return CodedBlock(weights, density, packed_size(weights), data[2:])
    symbols, start = decode_varint(data[2:], 0)
    if not 0 < symbols <= weights:
        raise CorruptError("section", f"{symbols} runs in a block of {weights} weights")
    return CodedBlock(weights, density, symbols, data[2 + start :])


def _is_runs(density: int) -> bool:
    return _rarer(density) < _RUNS_BELOW


def _rarer(density: int) -> int:
    return min(density, 65536 - density)


def _lanes(symbols: int) -> int:
    return 8 if symbols >= _MANY_LANES_SYMBOLS else 1


def _block_bounds(count: int, bits: int) -> list[tuple[int, int]]:
    """Blocks of equal size, but for the rest, so that there is no small one."""
    blocks = -(-count >> bits)
    size = 8 * -(-count // (8 * blocks))
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _best_block_bits(packed: PackedMask, count: int) -> int:
    """Small blocks follow a density that varies, and can be decoded by several threads and
    processes; large ones save what each block costs, where that shows."""
    counts, sizes = np.bitwise_count(packed), []
    for bits in BLOCK_BITS:
        bounds = _block_bounds(count, bits)
        starts = [start // 8 for start, _ in bounds]
        ones = np.add.reduceat(counts, starts, dtype=np.int64)
        sizes.append(sum(
            _BLOCK_BYTES + order0_bits(int(k), stop - start) / 8
            for k, (start, stop) in zip(ones, bounds, strict=True)
        ))  # fmt: skip
    near = min(sizes) * (1.0001 if count < _SHARED_WEIGHTS else 1.0002)
    return next(bits for bits, size in zip(BLOCK_BITS, sizes, strict=True) if size <= near)


def _encode_block(packed: PackedMask, weights: int) -> bytes:
    ones = count_ones(packed)
    density = min(max((ones * 65536 + weights // 2) // weights, 1), 65535)
    head = struct.pack("<H", density)
    if _is_runs(density):
        return head + _encode_runs(packed, weights, density)
    return head + kernels.rans_encode(packed, byte_frequencies(density), _lanes(packed.size))


def _encode_runs(packed: PackedMask, weights: int, density: int) -> bytes:
    longest, frequencies = run_frequencies(_rarer(density))
    rare = packed if density < 32768 else _inverted(packed, weights)
    runs = kernels.runs_encode(rare, weights, longest)
    coded = kernels.rans_encode(runs, frequencies, _lanes(len(runs)))
    return encode_varint(len(runs)) + coded


def _inverted(packed: PackedMask, count: int) -> PackedMask:
    """PackedMask bits with ones and zeros exchanged, padding bits 0."""
    inverted = ~packed
    if count % 8:
        inverted[-1] &= (1 << count % 8) - 1
    return inverted


def _encode_below_packed(bits: Mask) -> bytes | None:
    packed = np.packbits(bits, bitorder="little")
    if order0_bits(int(np.count_nonzero(bits)), bits.size) >= 8 * packed.size:
        return None
    return encode_rans(packed, bits.size)


RANS = static_coder(2, "rans", _encode_below_packed, decode_rans, split_blocks)
