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

_WEIGHTS = 1024  # expanded by one program; a multiple of 8
_ROWS, _COLUMNS = 16, 128  # multiplied by one program at one time
_NARROW = (1 << 31) - _WEIGHTS  # places that 32 bits can hold
_WORD = (1 << 32) - 1
_KINDS = {"normal": 0, "uniform": 1, "signed-constant": 2}


@triton.jit
def _bit(packed, index, used):
    byte = tl.load(packed + (index >> 3), mask=used, other=0)
    return (byte >> (index & 7).to(tl.uint8)) & 1


@triton.jit
def _place(first, length, wide: tl.constexpr):
    # To divide takes long, and is done once for many weights.
    place = first % length
    if not wide:
        place = place.to(tl.int32)
    return place


@triton.jit
def _wrapped(place, length, short: tl.constexpr):
    return place % length if short else tl.where(place >= length, place - length, place)


@triton.jit
def _values(prototype, place, used, scale, signed: tl.constexpr):
    if signed:
        values = tl.where(_bit(prototype, place, used) != 0, scale, -scale)
    else:
        values = tl.load(prototype + place, mask=used, other=0)
    return values


@triton.jit(do_not_specialize=["count", "offset", "length"])
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
    short: tl.constexpr,
    wide: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * size
    byte, bit = tl.arange(0, size // 8), tl.arange(0, 8)
    packed = tl.load(bits + (first >> 3) + byte, mask=first + 8 * byte < count, other=0)
    local = 8 * byte[:, None] + bit[None, :]
    used = (packed[:, None].to(tl.int32) >> bit[None, :]) & 1 != 0
    place = _wrapped(_place(first + offset, length, wide) + local, length, short)
    values = _values(prototype, place, used, scale, signed)
    weights = tl.where(used, values, 0).to(out.dtype.element_ty)
    tl.store(out + first + local, weights, mask=first + local < count)


@triton.jit(
    do_not_specialize=[
        *("count", "offset", "length"),
        *("seed_low", "seed_high", "stream_low", "stream_high"),
    ]
)
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
    short: tl.constexpr,
):
    first, local = tl.program_id(0).to(tl.int64) * size, tl.arange(0, size)
    inside = first + local < count
    used = (_bit(bits + first // 8, local, inside) != 0) & inside
    place = _wrapped(_place(first + offset, length, True) + local, length, short)
    target = out + first + local
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
        values = tl.load(table + (word >> 20), mask=used, other=0) * scale
    elif kind == 1:
        odd = ((word >> 8) * 2).to(tl.int32) + (1 - (1 << 24))
        values = odd.to(tl.float32) * (2.0**-24) * scale
    else:
        values = tl.where(word >> 31 == 0, scale, -scale)
    tl.store(target, tl.where(used, values, 0).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add(first, second):
    return first + second


@triton.jit(do_not_specialize=["rows", "offset", "length"])
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
    short: tl.constexpr,
    wide: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * row_block + tl.arange(0, row_block)
    which = tl.program_id(1).to(tl.int64)
    index = row * columns  # of the row's first weight
    start, spare = index >> 3, (index & 7).to(tl.int32)
    stop = (rows.to(tl.int64) * columns + 7) >> 3
    place = _place(index + offset, length, wide)  # in the prototype, of its next weight
    total = tl.full((row_block, column_block // 8, 8), 0.0, tl.float32)
    byte, bit = tl.arange(0, column_block // 8), tl.arange(0, 8)
    local = 8 * byte[:, None] + bit[None, :]
    for first in range(0, columns, column_block):
        inside = first + local < columns
        given = tl.load(inputs + which * columns + first + local, mask=inside, other=0)
        # Rows begin within a byte: eight bits are in it and the next one.
        at = start[:, None] + (first // 8 + byte)[None, :]
        eight = tl.load(bits + at, mask=at < stop, other=0).to(tl.int32)
        eight |= tl.load(bits + at + 1, mask=at + 1 < stop, other=0).to(tl.int32) << 8
        eight >>= spare[:, None]
        used = ((eight[:, :, None] >> bit[None, None, :]) & 1 != 0) & inside[None, :, :]
        places = _wrapped(place[:, None, None] + local[None, :, :], length, short)
        values = _values(prototype, places, used, 1.0, signed)
        if not signed:  # as the weight has them
            values = (values.to(tl.float32) * scale).to(out.dtype.element_ty)
        total += tl.where(used, values.to(tl.float32) * given.to(tl.float32)[None, :, :], 0)
        place = _wrapped(place + column_block, length, short)
    result = tl.reduce(tl.reduce(total, 2, _add), 1, _add)
    if signed:
        result *= scale
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
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]  # where Triton launches
        _expand[(triton.cdiv(count, _WEIGHTS),)](
            bits,
            prototype,
            out,
            count,
            offset,
            length,
            scale,
            signed=signs > 0,
            size=_WEIGHTS,
            short=length < _WEIGHTS,
            wide=length >= _NARROW,
            enable_fp_fusion=False,
        )


def expand_seeded(
    bits: Tensor, seeded: SeededPrototype, table: Tensor, scale: float, offset: int, out: Tensor
) -> None:
    """As `expand_bits`, of values that the portable generator makes, without a period.

    Args:
        bits: uint8 [ceil(n / 8)].
        seeded: the prototype.
        table: the normal quantiles, float32 [4096].
        scale: of the values.
        offset: below the prototype's length.
        out: [n].
    """
    count = out.numel()
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
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
            short=seeded.length < _WEIGHTS,
            enable_fp_fusion=False,
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

    Sums are made in float32, in 128 parts that are added last; those of signs are then multiplied
    by the scale.

    Args:
        bits: uint8 [ceil(rows * columns / 8)].
        prototype: float values [length], or uint8 [ceil(signs / 8)].
        signs: how many signs the prototype is; 0 if it is values.
        scale: of the values, whose products are rounded to the dtype of the inputs; the magnitude
            of signs.
        offset: below the number of values or signs.
        inputs: float, contiguous; the weight and the result have their dtype.
        rows: of the matrix.
    """
    batch, columns = inputs.shape
    length = signs or prototype.numel()
    out = torch.empty(batch, rows, dtype=inputs.dtype, device=inputs.device)
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        _multiply[(triton.cdiv(rows, _ROWS), batch)](
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
            short=length < _COLUMNS,
            wide=length >= _NARROW,
            enable_fp_fusion=True,
        )
    return out
