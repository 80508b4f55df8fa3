"""How large a weight is among its prototype's values, in 32 steps (spec/pemn.md section 6.4)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pemncodec.coders.mask_coder import Buckets
from pemncodec.contents import Array, bits_of

BUCKETS = 32
_SLICE = 1 << 16  # values whose buckets are found at one time


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
