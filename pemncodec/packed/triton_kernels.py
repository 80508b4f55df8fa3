"""Triton kernels on packed bits, for CUDA.

Bits and prototype are as `pemncodec.packed.weight` has them: weight i takes the value at
(offset + i) % length where bit i % 8 of byte i // 8 is 1. Every program reads the same prototype
again, so it stays in the caches that are nearest. Imported only where the package triton is.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton import language as tl

from pemncodec.contents import SeededPrototype

_WEIGHTS = 1024  # expanded by one program
_ROWS, _COLUMNS = 16, 128  # multiplied by one program at one time
_NARROW = (1 << 31) - _WEIGHTS  # places that 32 bits can hold
_WORD = (1 << 32) - 1
_KINDS = {"normal": 0, "uniform": 1, "signed-constant": 2}


@triton.jit
def _bit(packed, index, used):
    return (tl.load(packed + index // 8, mask=used, other=0) >> (index % 8).to(tl.uint8)) & 1


@triton.jit
def _first(size: tl.constexpr, wide: tl.constexpr):
    # Of 32 bits where that is enough: to divide by the length takes most of the time.
    return (tl.program_id(0).to(tl.int64) if wide else tl.program_id(0)) * size


@triton.jit
def _values(prototype, place, used, scale, signed: tl.constexpr):
    if signed:
        values = tl.where(_bit(prototype, place, used) != 0, scale, -scale)
    else:
        values = tl.load(prototype + place, mask=used, other=0)
    return values


@triton.jit
def _expand(
    bits,
    prototype,
    out,
    count,
    offset,
    length,
    scale,
    signed: tl.constexpr,
    size: tl.constexpr,
    wide: tl.constexpr,
):
    index = _first(size, wide) + tl.arange(0, size)
    inside = index < count
    used = (_bit(bits, index, inside) != 0) & inside
    values = _values(prototype, (index + offset) % length, used, scale, signed)
    tl.store(out + index, tl.where(used, values, 0).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _expand_seeded(
    bits,
    table,
    out,
    count,
    offset,
    length,
    seed_low,
    seed_high,
    stream_low,
    stream_high,
    scale,
    kind: tl.constexpr,
    size: tl.constexpr,
):
    index = _first(size, True) + tl.arange(0, size)
    inside = index < count
    used = (_bit(bits, index, inside) != 0) & inside
    place = (index + offset) % length
    block = place // 4
    zero = tl.full((size,), 0, tl.uint32)
    first, second = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    long = zero.to(tl.int64)  # numbers come in as the smallest type that has them
    third, fourth = (long + stream_low).to(tl.uint32), (long + stream_high).to(tl.uint32)
    low, high = (long + seed_low).to(tl.uint32), (long + seed_high).to(tl.uint32)
    for _ in tl.static_range(10):
        old = first
        first = tl.umulhi(third, zero + 0xCD9E8D57) ^ second ^ low
        second = third * (zero + 0xCD9E8D57)
        third = tl.umulhi(old, zero + 0xD2511F53) ^ fourth ^ high
        fourth = old * (zero + 0xD2511F53)
        low += zero + 0x9E3779B9
        high += zero + 0xBB67AE85
    lower = tl.where(place % 4 == 0, first, second)
    word = tl.where(place % 4 < 2, lower, tl.where(place % 4 == 2, third, fourth))
    if kind == 0:
        values = tl.load(table + (word >> 20), mask=used, other=0)
    elif kind == 1:
        odd = ((word >> 8) * 2).to(tl.int32) + (1 - (1 << 24))
        values = odd.to(tl.float32) * (2.0**-24) * scale
    else:
        values = tl.where(word >> 31 == 0, scale, -scale)
    tl.store(out + index, tl.where(used, values, 0).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add(first, second):
    return first + second


@triton.jit
def _multiply(
    bits,
    prototype,
    inputs,
    out,
    rows,
    columns,
    offset,
    length,
    scale,
    signed: tl.constexpr,
    row_block: tl.constexpr,
    column_block: tl.constexpr,
    wide: tl.constexpr,
):
    row = _first(row_block, wide) + tl.arange(0, row_block)
    which = tl.program_id(1).to(tl.int64)
    total = tl.full((row_block, column_block), 0.0, tl.float32)
    for first in range(0, columns, column_block):
        column = first + tl.arange(0, column_block)
        given = tl.load(inputs + which * columns + column, mask=column < columns, other=0)
        index = row[:, None] * columns + column[None, :]
        inside = (row[:, None] < rows) & (column[None, :] < columns)
        used = (_bit(bits, index, inside) != 0) & inside
        values = _values(prototype, (index + offset) % length, used, 1.0, signed)
        total += tl.where(used, values.to(tl.float32) * given.to(tl.float32)[None, :], 0)
    result = tl.reduce(total, 1, _add) * scale
    tl.store(out + which * rows + row, result.to(out.dtype.element_ty), mask=row < rows)


def expand_bits(
    bits: Tensor, prototype: Tensor, signs: int, scale: float, offset: int, out: Tensor
) -> None:
    """Writes the weights that bits choose, +0.0 elsewhere.

    Args:
        bits: uint8 [ceil(n / 8)].
        prototype: values [length] in the dtype of `out`, or uint8 [ceil(signs / 8)].
        signs: how many signs the prototype is; 0 if it is values.
        scale: the magnitude of the values, if the prototype is signs.
        offset: below the number of values or signs.
        out: [n].
    """
    length, count = signs or prototype.numel(), out.numel()
    grid = (triton.cdiv(count, _WEIGHTS),)
    _expand[grid](
        bits,
        prototype,
        out,
        count,
        offset,
        length,
        scale,
        signed=signs > 0,
        size=_WEIGHTS,
        wide=count + length >= _NARROW,
    )


def expand_seeded(
    bits: Tensor, seeded: SeededPrototype, table: Tensor, scale: float, offset: int, out: Tensor
) -> None:
    """As `expand_bits`, of values that the portable generator makes, without a period.

    Args:
        bits: uint8 [ceil(n / 8)].
        seeded: the prototype.
        table: its normal quantiles [4096], scaled, in the dtype of `out`.
        scale: of other values.
        offset: below the prototype's length.
        out: [n].
    """
    count = out.numel()
    _expand_seeded[(triton.cdiv(count, _WEIGHTS),)](
        bits,
        table,
        out,
        count,
        offset,
        seeded.length,
        seeded.seed & _WORD,
        seeded.seed >> 32,
        seeded.stream & _WORD,
        seeded.stream >> 32,
        scale,
        kind=_KINDS[seeded.distribution],
        size=_WEIGHTS,
    )


def multiply_bits(
    bits: Tensor,
    prototype: Tensor,
    signs: int,
    scale: float,
    offset: int,
    inputs: Tensor,
    rows: int,
) -> Tensor:
    """Inputs [batch, columns] times the transposed matrix of the bits, [batch, rows].

    Sums are made in float32, in 128 parts that are added last, and then multiplied by the scale.

    Args:
        bits: uint8 [ceil(rows * columns / 8)].
        prototype: float values [length], or uint8 [ceil(signs / 8)].
        signs: how many signs the prototype is; 0 if it is values.
        scale: that the result is multiplied by.
        offset: below the number of values or signs.
        inputs: float, contiguous; the result has their dtype.
        rows: of the matrix.
    """
    batch, columns = inputs.shape
    length = signs or prototype.numel()
    out = torch.empty(batch, rows, dtype=inputs.dtype, device=inputs.device)
    grid = (triton.cdiv(rows, _ROWS), batch)
    _multiply[grid](
        bits,
        prototype,
        inputs,
        out,
        rows,
        columns,
        offset,
        length,
        scale,
        signed=signs > 0,
        row_block=_ROWS,
        column_block=_COLUMNS,
        wide=(rows + _ROWS) * columns + length >= _NARROW,
    )
    return out
