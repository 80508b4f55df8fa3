"""Adaptive mixing of contexts: masks below their order-0 entropy (spec section 6.4).

Every bit is predicted from what the decoder has already: its row and column and what they do with
large and small values, its neighbours, its place in the kernel, and how large the weight's value is
among those of its prototype. Small masks share a stream, so that what one teaches serves the next;
large ones are cut into blocks.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from pemncodec import kernels
from pemncodec.coders.packed import packed_size
from pemncodec.contents import Array, bits_of, numel
from pemncodec.errors import CorruptError, TruncatedError

BLOCK_WEIGHTS = 1 << 23
BUCKETS = 32
_SLICE = 1 << 16  # values whose buckets are found at one time
_STRETCH_HALF = 2048  # of 4096 entries; the upper halves of both tables are stored

Buckets = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class MixingTensor:
    """What the model knows of a masked tensor before its mask.

    Attributes:
        shape: of the tensor.
        buckets: uint8 [L] of its prototype's values, see `value_buckets`; None where they are not
            known before the mask.
        offset: of its fill.
    """

    shape: tuple[int, ...]
    buckets: Buckets | None = None
    offset: int = 0

    def weight_buckets(self, start: int, stop: int) -> Buckets:
        """Buckets of the weights from `start` to `stop`."""
        if self.buckets is None:
            return np.zeros(stop - start, np.uint8)
        first = (self.offset + start) % self.buckets.size
        head = self.buckets[first : first + stop - start]
        missing = stop - start - head.size
        return np.concatenate([head, np.resize(self.buckets[:missing], missing)])


def value_buckets(values: Array) -> Buckets:
    """uint8 [L]: which 32nd of the prototype's values [L] each one belongs to, in their order."""
    return buckets_of_slices(values.size, lambda start, stop: values[start:stop])


def buckets_of_slices(length: int, values: Callable[[int, int], Array]) -> Buckets:
    """`value_buckets` of values that need not be in memory all at one time.

    Args:
        length: L.
        values: makes those from one index up to another.
    """
    counts = np.zeros(1 << 16, np.int64)
    bounds = [(start, min(start + _SLICE, length)) for start in range(0, length, _SLICE)]
    for start, stop in bounds:
        counts += np.bincount(_order_keys(values(start, stop)), minlength=1 << 16)
    below = np.cumsum(counts) - counts
    ranks = (below * BUCKETS // length).astype(np.uint8)
    buckets = np.empty(length, np.uint8)
    for start, stop in bounds:
        buckets[start:stop] = ranks[_order_keys(values(start, stop))]
    return buckets


def _order_keys(values: Array) -> npt.NDArray[np.uint16]:
    key = (bits_of(values) >> (8 * values.itemsize - 16)).astype(np.uint16)
    # Floats are ordered as integers once negative ones are inverted.
    key ^= (key >> 15) * np.uint16(0x7FFF) | np.uint16(0x8000)
    return key


def encode_mixing(
    masks: Sequence[tuple[npt.NDArray[np.bool_], MixingTensor]],
) -> tuple[bytes, list[int]]:
    """Masks, bool [n] each, to one body.

    Args:
        masks: one with n ≥ 1, or several that have at most `BLOCK_WEIGHTS` weights together.

    Returns:
        The body; about how many of its bytes each mask costs.
    """
    densities = [_density_code(bits) for bits, _ in masks]
    if len(masks) > 1:
        bits = np.concatenate([bits for bits, _ in masks])
        coded, costs = _encode_block(bits, [tensor for _, tensor in masks], 0, densities)
        return coded, costs
    ((bits, tensor),) = masks
    blocks = [
        _encode_block(bits[start:stop], [tensor], start, densities)[0]
        for start, stop in _block_bounds(bits.size)
    ]
    index = struct.pack(f"<{len(blocks)}I", *map(len, blocks)) if len(blocks) > 1 else b""
    body = index + b"".join(blocks)
    return body, [len(body)]


def decode_mixing(data: bytes, tensors: Sequence[MixingTensor]) -> list[npt.NDArray[np.uint8]]:
    """Packed bits of each tensor's mask.

    Raises:
        TruncatedError: `data` is too short.
        CorruptError: `data` is not what `encode_mixing` can have written.
    """
    counts = [numel(tensor.shape) for tensor in tensors]
    if 0 in counts:
        raise CorruptError("section", "a mixed mask of no weights")
    if len(tensors) > 1:
        if sum(counts) > BLOCK_WEIGHTS:
            raise CorruptError("section", f"several masks with {sum(counts)} weights in a section")
        bits = _decode_block(data, tensors, 0, sum(counts))
        bounds = np.cumsum(counts)[:-1]
        return [np.packbits(part, bitorder="little") for part in np.split(bits, bounds)]
    bounds_of_blocks = _block_bounds(counts[0])
    sizes, position = [len(data)], 0
    if len(bounds_of_blocks) > 1:
        position = 4 * len(bounds_of_blocks)
        if len(data) < position:
            raise TruncatedError("truncated", "the block index is cut off")
        sizes = list(struct.unpack_from(f"<{len(bounds_of_blocks)}I", data))
        if position + sum(sizes) != len(data):
            raise CorruptError("section", "the block index and the section's size differ")
    packed = np.empty(packed_size(counts[0]), np.uint8)
    for (start, stop), size in zip(bounds_of_blocks, sizes, strict=True):
        bits = _decode_block(data[position : position + size], tensors, start, stop)
        packed[start // 8 : packed_size(stop)] = np.packbits(bits, bitorder="little")
        position += size
    return [packed]


def _block_bounds(count: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK_WEIGHTS, count)) for start in range(0, count, BLOCK_WEIGHTS)]


def _encode_block(
    bits: npt.NDArray[np.bool_],
    tensors: Sequence[MixingTensor],
    start: int,
    densities: Sequence[int],
) -> tuple[bytes, list[int]]:
    parts, buckets = _layout(tensors, start, start + bits.size, densities)
    coded, ends = kernels.mixing_encode(
        np.ascontiguousarray(bits).view(np.uint8), buckets, parts, _tables()
    )
    costs = np.diff([0, *ends[:-1], len(coded)]) + 1
    return bytes(densities) + coded, costs.tolist()


def _decode_block(
    block: bytes, tensors: Sequence[MixingTensor], start: int, stop: int
) -> npt.NDArray[np.uint8]:
    if len(block) < len(tensors):
        raise TruncatedError("truncated", "a block without its densities")
    parts, buckets = _layout(tensors, start, stop, block[: len(tensors)])
    bits = np.empty(stop - start, np.uint8)
    try:
        kernels.mixing_decode(block[len(tensors) :], buckets, parts, _tables(), bits)
    except ValueError as error:
        raise CorruptError("section", f"damaged mixing block: {error}") from None
    return bits


def _layout(
    tensors: Sequence[MixingTensor], start: int, stop: int, densities: Sequence[int]
) -> tuple[npt.NDArray[np.uint64], Buckets]:
    """The kernels' `parts` and `buckets`: of all of several tensors, or of a slice of one."""
    alone = len(tensors) == 1
    rows, buckets = [], []
    for tensor, density in zip(tensors, densities, strict=True):
        first, last = (start, stop) if alone else (0, numel(tensor.shape))
        buckets.append(tensor.weight_buckets(first, last))
        rows.append((last - first, *_geometry(tensor.shape), first, density))
    return np.array(rows, np.uint64), np.concatenate(buckets)


def _geometry(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Columns, kernel and width of a shape of n ≥ 1 weights."""
    columns = (shape[1] if len(shape) > 1 else shape[0]) if shape else 1
    return columns, math.prod(shape[2:]), shape[-1] if len(shape) > 2 else 1


def _density_code(bits: npt.NDArray[np.bool_]) -> int:
    """The code whose density is nearest, on the scale of logarithms of odds."""
    ones = int(np.count_nonzero(bits))
    odds = (2 * ones + 1) / (2 * (bits.size - ones) + 1)
    return min(max(round(16 * math.log(odds)) + 128, 0), 255)


@cache
def _tables() -> npt.NDArray[np.int32]:
    """int32 [4096 + 3072]: stretch, then squash."""
    stored = np.frombuffer((files("pemncodec.coders") / "mixing_tables.bin").read_bytes(), "<u2")
    stretch, squash = np.split(stored.astype(np.int32), [_STRETCH_HALF])
    tables = np.concatenate([-stretch[::-1], stretch, 65536 - squash[::-1], squash])
    tables.flags.writeable = False
    return tables
