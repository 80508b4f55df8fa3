"""binary32 ↔ the shorter floats, the same bits on every machine (spec section 5.3)."""

from __future__ import annotations

import numpy as np

from pemncodec.contents import CARRIERS, Array, Floats


def widen(values: Array, dtype: str) -> Floats:
    """Values in the carrier of a float dtype as float32; exact but for float64."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def round_to(values: Floats, dtype: str) -> Array:
    """To nearest even, in the carrier of a float dtype, for values that `one_nan` went over."""
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):  # to infinity
        return values.astype(CARRIERS[dtype], copy=False)


def one_nan(values: Floats) -> Floats:
    """Every NaN as the same one: what a processor makes of a payload differs."""
    nan = np.isnan(values)
    return np.where(nan, np.float32(np.nan), values) if nan.any() else values
