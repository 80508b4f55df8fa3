"""Products of inputs and weights of one magnitude, from bits: the twin of signed_product.c.

As in `pemncodec.kernels.product_twin`, sums have one order, and the same bound holds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer
from pemncodec.kernels.product_twin import check_sizes, pad_columns, rows_of_bits

_BLOCK = 32  # columns that are summed together: ten groups of three and one of two
_GROUPS = [tuple(range(first, min(first + 3, _BLOCK))) for first in range(0, _BLOCK, 3)]
_AT_ONCE = 1 << 18  # weights


def signed_product(
    bits: Buffer,
    signs: Buffer,
    period: int,
    offset: int,
    constant: Buffer,
    columns: int,
    inputs: Buffer,
    out: Buffer,
    threads: int,
) -> None:
    """Multiplies inputs by a masked matrix whose values are a constant with a sign.

    As `packed_product` of values[j] = constant if bit j % 8 of byte j // 8 of `signs` is 1, else
    -constant, for j below `period`; but for the order of the sum. Each input is multiplied by the
    constant. Of every 32 columns, groups of 3 (the last of 2) are summed: those that are added, in
    order, less those that are subtracted, in order. The groups of 32 columns are added up in order,
    and then these sums, all in binary32. Inputs of masked weights are not used, be they infinite.
    It is faster than `packed_product`, but where there is neither AVX2 nor NEON.

    Args:
        bits: ceil(R * columns / 8) bytes; the bits behind the last weight are ignored.
        signs: ceil(period / 8) bytes; the bits behind the last sign are ignored.
        period: 1 or more.
        offset: 0 to period - 1.
        constant: a float32.
        columns: 1 or more.
        inputs: float32 [B, columns], B >= 1.
        out: float32 [B, R], R >= 0.
        threads: as for `packed_product`.

    Raises:
        ValueError: "period", "offset", "columns" or "threads" out of range; "signs" of another
            length; "offset" not below `period`; "constant" of another length; "inputs" empty, or
            not of whole rows; "out" likewise, but for empty; "bits" of another length.
    """
    packed, positive = view_buffer(bits), view_buffer(signs)
    period = check_integer(period, "period", 1)
    offset = check_integer(offset, "offset")
    factor = view_buffer(constant)
    columns = check_integer(columns, "columns", 1)
    given, target = view_buffer(inputs), view_buffer(out, writable=True)
    check_integer(threads, "threads", 1)
    if positive.size != -(-period // 8):
        raise ValueError("signs")
    if offset >= period:
        raise ValueError("offset")
    if factor.size != 4:
        raise ValueError("constant")
    batch, rows = check_sizes(packed, columns, given, target)
    with np.errstate(all="ignore"):
        scaled = given.view(np.float32).reshape(batch, columns) * factor.view(np.float32)
        tables = [_tables_of(numbers) for numbers in pad_columns(scaled, _BLOCK)]
    result = target.view(np.float32).reshape(batch, rows)
    sign_bits = np.unpackbits(positive, count=period, bitorder="little")
    step = max(1, _AT_ONCE // columns)
    for first in range(0, rows, step):
        kept = rows_of_bits(packed, first, min(step, rows - first), columns)
        start = (offset + first * columns) % period
        sign = sign_bits[(start + np.arange(kept.size)) % period].reshape(kept.shape)
        added, subtracted = (_group_indexes(kept & s) for s in (sign, 1 - sign))
        for row, table in zip(result, tables, strict=True):
            row[first : first + step] = _sum_groups(table, added, subtracted)


def _tables_of(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """For every group of a row of inputs, the sums of its subsets: [blocks, 11, 8]."""
    blocks = numbers.reshape(-1, _BLOCK)
    tables = np.zeros((len(blocks), len(_GROUPS), 8), np.float32)
    for group, places in enumerate(_GROUPS):
        for bit, place in enumerate(places):
            chosen = [subset for subset in range(8) if subset >> bit & 1]
            tables[:, group, chosen] += blocks[:, place, None]
    return tables


def _group_indexes(chosen: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The subset of each group that a matrix of bits chooses: [rows, blocks, 11]."""
    blocks = pad_columns(chosen, _BLOCK).reshape(len(chosen), -1, _BLOCK)
    padded = np.pad(blocks, ((0, 0), (0, 0), (0, 1))).reshape(*blocks.shape[:2], len(_GROUPS), 3)
    subsets: NDArray[np.intp] = padded @ np.array([1, 2, 4])
    return subsets


def _sum_groups(
    tables: NDArray[np.float32], added: NDArray[np.intp], subtracted: NDArray[np.intp]
) -> NDArray[np.float32]:
    block, group = np.ogrid[: tables.shape[0], : tables.shape[1]]
    total = np.zeros(len(added), np.float32)
    with np.errstate(all="ignore"):
        terms = tables[block, group, added] - tables[block, group, subtracted]
        sums = terms[:, :, 0]
        for index in range(1, terms.shape[2]):
            sums = sums + terms[:, :, index]
        for index in range(sums.shape[1]):
            total += sums[:, index]
    return total
