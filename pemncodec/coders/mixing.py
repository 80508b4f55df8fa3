"""Adaptive mixing of contexts: masks below their order-0 entropy (spec section 6.4).

Every bit is predicted from what the decoder has already: its row and column and what they do with
large and small values, its neighbours, its place in the kernel, and how large the weight's value is
among those of its prototype. Small masks share a stream, so that what one teaches serves the next;
large ones are cut into blocks.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from pemncodec import kernels
from pemncodec.coders.mask_coder import Body, Buckets, MaskCoder, MaskContext
from pemncodec.coders.packed import packed_size
from pemncodec.contents import Mask, PackedMask
from pemncodec.errors import CorruptError, TruncatedError

BLOCK_WEIGHTS = 1 << 23
_STRETCH_HALF = 2048  # of 4096 entries; the upper halves of both tables are stored


def encode_mixing(
    masks: Sequence[Mask], contexts: Sequence[MaskContext]
) -> tuple[bytes, list[int]]:
    """Masks to one body, and about how many of its bytes each of them costs.

    Args:
        masks: bool [n]: one with n ≥ 1, or several that have at most `BLOCK_WEIGHTS` weights
            together.
        contexts: what is known of each.
    """
    densities = [_density_code(bits) for bits in masks]
    if len(masks) > 1:
        return _encode_block(np.concatenate(masks), contexts, 0, densities)
    (bits,) = masks
    blocks = [
        _encode_block(bits[start:stop], contexts, start, densities)[0]
        for start, stop in _block_bounds(bits.size)
    ]
    index = struct.pack(f"<{len(blocks)}I", *map(len, blocks)) if len(blocks) > 1 else b""
    body = index + b"".join(blocks)
    return body, [len(body)]


def decode_mixing(data: Body, contexts: Sequence[MaskContext]) -> list[PackedMask]:
    """Packed bits of each tensor's mask.

    Raises:
        TruncatedError: `data` is too short.
        CorruptError: `data` is not what `encode_mixing` can have written.
    """
    counts = [context.count for context in contexts]
    if 0 in counts:
        raise CorruptError("section", "a mixed mask of no weights")
    if len(contexts) > 1:
        if sum(counts) > BLOCK_WEIGHTS:
            raise CorruptError("section", f"several masks with {sum(counts)} weights in a section")
        bits = _decode_block(data, contexts, 0, sum(counts))
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
        bits = _decode_block(data[position : position + size], contexts, start, stop)
        packed[start // 8 : packed_size(stop)] = np.packbits(bits, bitorder="little")
        position += size
    return [packed]


def _block_bounds(count: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK_WEIGHTS, count)) for start in range(0, count, BLOCK_WEIGHTS)]


def _encode_block(
    bits: Mask,
    contexts: Sequence[MaskContext],
    start: int,
    densities: Sequence[int],
) -> tuple[bytes, list[int]]:
    parts, buckets = _layout(contexts, start, start + bits.size, densities)
    coded, ends = kernels.mixing_encode(
        np.ascontiguousarray(bits).view(np.uint8), buckets, parts, _tables()
    )
    costs = np.diff([0, *ends[:-1], len(coded)]) + 1
    return bytes(densities) + coded, costs.tolist()


def _decode_block(
    block: Body, contexts: Sequence[MaskContext], start: int, stop: int
) -> npt.NDArray[np.uint8]:
    if len(block) < len(contexts):
        raise TruncatedError("truncated", "a block without its densities")
    parts, buckets = _layout(contexts, start, stop, block[: len(contexts)])
    bits = np.empty(stop - start, np.uint8)
    try:
        kernels.mixing_decode(block[len(contexts) :], buckets, parts, _tables(), bits)
    except ValueError as error:
        raise CorruptError("section", f"damaged mixing block: {error}") from None
    return bits


def _layout(
    contexts: Sequence[MaskContext], start: int, stop: int, densities: Sequence[int]
) -> tuple[npt.NDArray[np.uint64], Buckets]:
    """The kernels' `parts` and `buckets`: of all of several tensors, or of a slice of one."""
    alone = len(contexts) == 1
    rows, buckets = [], []
    for context, density in zip(contexts, densities, strict=True):
        first, last = (start, stop) if alone else (0, context.count)
        buckets.append(context.weight_buckets(first, last))
        rows.append((last - first, *_geometry(context.shape), first, density))
    return np.array(rows, np.uint64), np.concatenate(buckets)


def _geometry(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Columns, kernel and width of a shape of n ≥ 1 weights."""
    columns = (shape[1] if len(shape) > 1 else shape[0]) if shape else 1
    return columns, math.prod(shape[2:]), shape[-1] if len(shape) > 2 else 1


def _density_code(bits: Mask) -> int:
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


MIXING = MaskCoder(3, "mixing", encode_mixing, decode_mixing, context=True)
