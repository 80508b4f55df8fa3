"""Products of inputs and masked weights [inputs, outputs]: the twin of column_product.c.

Every sum has one order, as in `pemncodec.kernels.product_twin`, and the bound that is stated there.
"""

from __future__ import annotations

import numpy as np

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer
from pemncodec.kernels.expand_twin import expand
from pemncodec.kernels.product_twin import check_sizes, rows_of_bits

_AT_ONCE = 1 << 20  # weights


def column_product(
    bits: Buffer,
    values: Buffer,
    offset: int,
    rows: int,
    inputs: Buffer,
    out: Buffer,
    threads: int,
) -> None:
    """Multiplies inputs by a masked matrix: out[b, c] is the sum over r of inputs[b, r] * w[r, c].

    Weight i = r * C + c is values[(offset + i) % L] if bit i % 8 of byte i // 8 of `bits` is 1 (bit
    0 is the least significant), else 0. The products of a column are added in the order of rows, in
    binary32, each product rounded by itself.

    Args:
        bits: ceil(rows * C / 8) bytes; the bits behind the last weight are ignored.
        values: L >= 1 float32.
        offset: 0 to L - 1.
        rows: 1 or more.
        inputs: float32 [B, rows], B >= 1.
        out: float32 [B, C], C >= 0.
        threads: as for `packed_product`.

    Raises:
        ValueError: "offset", "rows" or "threads" out of range; "values" empty or not whole;
            "offset" not below L; "inputs" empty, or not of whole rows; "out" likewise, but for
            empty; "bits" of another length.
    """
    packed, source = view_buffer(bits), view_buffer(values)
    offset = check_integer(offset, "offset")
    rows = check_integer(rows, "rows", 1)
    given, target = view_buffer(inputs), view_buffer(out, writable=True)
    check_integer(threads, "threads", 1)
    if source.size == 0 or source.size % 4:
        raise ValueError("values")
    period = source.size // 4
    if offset >= period:
        raise ValueError("offset")
    batch, columns = check_sizes(packed, rows, given, target)
    numbers = given.view(np.float32).reshape(batch, rows)
    sums = np.zeros((batch, columns), np.float32)
    step = max(1, _AT_ONCE // max(1, columns))
    for first in range(0, rows, step):
        kept = rows_of_bits(packed, first, min(step, rows - first), columns)
        weights = np.empty(kept.shape, np.float32)
        start = (offset + first * columns) % period
        expand(source, 4, start, np.packbits(kept, bitorder="little"), weights, 0, 1)
        for row, weight in enumerate(weights, first):
            with np.errstate(all="ignore"):
                sums += numbers[:, row, None] * weight
    target.view(np.float32)[:] = sums.reshape(-1)
