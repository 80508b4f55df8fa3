"""Products of inputs and masked weights, from the mask's bits: the twin of product.c.

Every sum has one order, whatever the processor and the number of threads; so all results have the
same bits, but for those of NaN. It is a sum of the very float32 products of which a dense layer's
result is one, in another order: with n columns, it is within n * 2^-24 / (1 - n * 2^-24) of the
exact one, times the sum of |x * w|, unless a value leaves the range of float32.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer
from pemncodec.kernels.expand_twin import expand

LANES = 16
_AT_ONCE = 1 << 20  # weights

_Item = TypeVar("_Item", np.float32, np.uint8)


def packed_product(
    bits: Buffer,
    values: Buffer,
    offset: int,
    columns: int,
    inputs: Buffer,
    out: Buffer,
    threads: int,
) -> None:
    """Multiplies inputs by a masked matrix: out[b, r] is the sum over c of inputs[b, c] * w[r, c].

    Weight i = r * columns + c is values[(offset + i) % L] if bit i % 8 of byte i // 8 of `bits` is
    1 (bit 0 is the least significant), else 0. Lane j of 16 sums the products of columns j, j + 16,
    ... in binary32, each product rounded by itself; the upper 8 lanes are then added to the lower
    8, and so on by halves.

    In C it is faster than to expand the matrix for torch's product, of few inputs: of 64 and more
    with AVX-512, of some 16 to 32 with AVX2, of 4 without. Where there are as many values as
    weights, it has to read them all.

    Args:
        bits: ceil(R * columns / 8) bytes; the bits behind the last weight are ignored.
        values: L >= 1 float32.
        offset: 0 to L - 1.
        columns: 1 or more.
        inputs: float32 [B, columns], B >= 1.
        out: float32 [B, R], R >= 0.
        threads: how many may share the work, 1 or more; the result is the same, unless some of them
            flush subnormal numbers (`torch.set_flush_denormal`) and others do not.

    Raises:
        ValueError: "offset", "columns" or "threads" out of range; "values" empty or not whole;
            "offset" not below L; "inputs" empty, or not of whole rows; "out" likewise, but for
            empty; "bits" of another length.
    """
    packed, source = view_buffer(bits), view_buffer(values)
    offset = check_integer(offset, "offset")
    columns = check_integer(columns, "columns", 1)
    given, target = view_buffer(inputs), view_buffer(out, writable=True)
    check_integer(threads, "threads", 1)
    if source.size == 0 or source.size % 4:
        raise ValueError("values")
    period = source.size // 4
    if offset >= period:
        raise ValueError("offset")
    batch, rows = check_sizes(packed, columns, given, target)
    padded = pad_columns(given.view(np.float32).reshape(batch, columns), LANES)
    result = target.view(np.float32).reshape(batch, rows)
    step = max(1, _AT_ONCE // columns)
    for first in range(0, rows, step):
        kept = rows_of_bits(packed, first, min(step, rows - first), columns)
        weights = np.empty(kept.shape, np.float32)
        start = (offset + first * columns) % period
        expand(source, 4, start, np.packbits(kept, bitorder="little"), weights, 0, 1)
        weights = pad_columns(weights, LANES)
        for row, numbers in zip(result, padded, strict=True):
            with np.errstate(all="ignore"):
                products = (weights * numbers).reshape(len(kept), -1, LANES)
                row[first : first + step] = _sum_lanes(products)


def check_sizes(
    bits: NDArray[np.uint8], columns: int, inputs: NDArray[np.uint8], out: NDArray[np.uint8]
) -> tuple[int, int]:
    """How many inputs and rows there are, if all sizes fit."""
    if inputs.size == 0 or inputs.size % (4 * columns):
        raise ValueError("inputs")
    batch = inputs.size // (4 * columns)
    if out.size % (4 * batch):
        raise ValueError("out")
    rows = out.size // (4 * batch)
    if bits.size != -(-rows * columns // 8):
        raise ValueError("bits")
    return batch, rows


def rows_of_bits(bits: NDArray[np.uint8], first: int, rows: int, columns: int) -> NDArray[np.uint8]:
    """Some rows of the mask, 0 or 1 for each weight."""
    start = first * columns
    count = rows * columns
    byte = bits[start // 8 : -(-(start + count) // 8)]
    return np.unpackbits(byte, bitorder="little")[start % 8 :][:count].reshape(rows, columns)


def pad_columns(matrix: NDArray[_Item], multiple: int) -> NDArray[_Item]:
    """The matrix with as many columns of zeros as make their number a multiple."""
    return np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % multiple)))


def _sum_lanes(products: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sums of [rows, n, 16] over n, then over the lanes by halves."""
    lanes = np.zeros((products.shape[0], LANES), np.float32)
    for step in range(products.shape[1]):
        lanes += products[:, step]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]
