"""Triton kernels for rANS blocks (spec/pemn.md section 6.3), for CUDA: one program a block.

The eight lanes of a block are eight elements of a tensor; a step decodes a symbol of each. Where in
the words a lane reads follows from which lanes before it read one, so steps wait for each other:
a block takes as long alone as together with all blocks that the device has room for. Imported only
where the package triton is.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton import language as tl

FIELDS = 8
"""Of a block: first state (in units of 4 bytes), words, symbols, number of its table, first bit,
weights, longest run (0 where symbols are bytes), whether runs are of ones."""

_BYTES = 4096  # filled at one time
_STATES_IN_WORDS = tl.constexpr(16)


@triton.jit
def _add(first, second):
    return first + second


@triton.jit
def _fill(blocks, bits, size: tl.constexpr, fields: tl.constexpr):
    block = blocks + tl.program_id(0).to(tl.int64) * fields
    first, weights = tl.load(block + 4) // 8, tl.load(block + 5).to(tl.int32)
    if tl.load(block + 6) != 0:
        ones = tl.load(block + 7).to(tl.int32) * 0xFF
        for start in range(0, (weights + 7) // 8, size):
            index = start + tl.arange(0, size)
            spare = tl.where(8 * index + 8 > weights, 8 * index + 8 - weights, 0)
            byte = tl.where(spare < 8, ones >> spare, 0)
            tl.store(bits + first + index, byte.to(tl.uint8), mask=8 * index < weights)


@triton.jit
def _decode(
    states,
    words,
    symbol_of,
    ranges,
    blocks,
    bits,
    bits_by_32,
    wrong,
    fields: tl.constexpr,
):
    block = blocks + tl.program_id(0).to(tl.int64) * fields
    first, there = tl.load(block), tl.load(block + 1).to(tl.int32)
    symbols, table = tl.load(block + 2).to(tl.int32), tl.load(block + 3)
    place, weights = tl.load(block + 4), tl.load(block + 5).to(tl.int32)
    longest = tl.load(block + 6).to(tl.int32)
    words += 2 * first + _STATES_IN_WORDS
    symbol_of += table * 32768
    ranges += table * 256
    lane = tl.arange(0, 8)
    state = tl.load(states + first + lane).to(tl.uint32, bitcast=True)
    read, at = 0, 0
    bad = tl.full((8,), 0, tl.int32)
    for done in range(0, symbols, 8):
        index = done + lane
        active = index < symbols
        # Bits of the state choose the slot, so that no state can lead out of the table.
        slot = state & 0x7FFF
        symbol = tl.load(symbol_of + slot).to(tl.int32)
        span = tl.load(ranges + symbol).to(tl.uint32, bitcast=True)
        left = (span & 0xFFFF) * (state >> 15) + slot - (span >> 16)
        takes = active & (left < 65536)
        # One digit of four bits counts the words up to a lane: that of the last one is at most 8.
        counts = tl.reduce(takes.to(tl.uint32) << (4 * lane).to(tl.uint32), 0, _add) * 0x11111111
        which = read - 1 + ((counts >> (4 * lane).to(tl.uint32)) & 15).to(tl.int32)
        word = tl.load(words + which, mask=takes & (which < there), other=0).to(tl.uint32) & 0xFFFF
        state = tl.where(active, tl.where(takes, (left << 16) | word, left), state)
        read += (counts >> 28).to(tl.int32)
        if longest == 0:
            tl.store(bits + place // 8 + index, symbol.to(tl.uint8), mask=active)
            spare = tl.where(8 * index + 8 > weights, 8 * index + 8 - weights, 0)  # 0 to 7
            bad |= (active & (spare > 0) & (symbol >> (8 - spare) != 0)).to(tl.int32)
        else:
            one = active & (symbol < longest)
            step = tl.where(active, symbol + one.to(tl.int32), 0)
            stop = at + tl.associative_scan(step, 0, _add)
            bad |= ((active & (stop - step >= weights)) | (one & (stop > weights))).to(tl.int32)
            bit = place + stop - 1
            tl.atomic_xor(
                bits_by_32 + bit // 32,
                1 << (bit % 32).to(tl.int32),
                mask=one & (stop <= weights),
                sem="relaxed",
            )
            at += tl.reduce(step, 0, _add)
            at = tl.where(at < weights, at, weights)
    bad |= (state != 65536).to(tl.int32)
    failed = (tl.reduce(bad, 0, _add) != 0) | (read != there) | ((longest != 0) & (at < weights))
    tl.store(wrong + tl.program_id(0), failed.to(tl.int8))


def decode_blocks(
    coded: Tensor, symbol_of: Tensor, ranges: Tensor, blocks: Tensor, bits: Tensor, wrong: Tensor
) -> None:
    """Decodes rANS blocks of eight lanes, and says of each whether it is damaged.

    No byte of `coded` makes it read or write elsewhere; `blocks` has to be right.

    Args:
        coded: uint8, states and words of all blocks, each from a multiple of 4 on. States are at
            least 2^16.
        symbol_of: uint8 [tables, 2^15], the symbol of a slot.
        ranges: int32 [tables, 256], cumulative << 16 | frequency of a symbol.
        blocks: int64 [blocks, `FIELDS`].
        bits: uint8, a multiple of 4 long, from such an address on; all bits of these blocks are
            written, or if a block is damaged, some.
        wrong: int8 [blocks], becomes 1 where a block is not what an encoder can have written.
    """
    states, words = coded.view(torch.int32), coded.view(torch.int16)
    grid = (blocks.shape[0],)
    with torch.cuda.device_of(bits):  # type: ignore[no-untyped-call]  # where Triton launches
        _fill[grid](blocks, bits, size=_BYTES, fields=FIELDS, enable_fp_fusion=False)
        _decode[grid](
            states,
            words,
            symbol_of,
            ranges,
            blocks,
            bits,
            bits.view(torch.int32),
            wrong,
            fields=FIELDS,
            num_warps=1,  # others would only wait
            enable_fp_fusion=False,
        )
