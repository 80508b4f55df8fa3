"""Values and the weights made of them → their scale, by the rounding of spec/pemn.md section 5.3.

A weight was rounded, so it allows an interval of scales, and all weights together allow the
intersection. Every binary32 number inside of it makes all of the weights. At an end of it a product
lies halfway between two numbers, and may have become the other one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pemncodec.contents import Array, Floats, bits_of
from pemncodec.values.rounding import widen

_Doubles = npt.NDArray[np.float64]

_BINARY32 = (24, -125)
_PRECISION = {"float16": (11, -13), "bfloat16": (8, -125)}
"""Bits of a number, and the exponent (of `frexp`) of the smallest normal one."""


class ScaleBounds:
    """Which absolute scales make weights of values, narrowed by one part of them after another.

    Attributes:
        low: the smallest scale that all of them allow.
        high: the largest.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self.low, self.high = 0.0, np.inf
        self._wide_low, self._wide_high = 0.0, np.inf
        self._signs: set[bool] = set()

    @property
    def is_empty(self) -> bool:
        """Whether no scale makes all of the weights."""
        return not self.low <= self.high or len(self._signs) > 1

    @property
    def is_single(self) -> bool:
        """Whether no more than one binary32 number is inside of the bounds."""
        with np.errstate(over="ignore"):  # to infinity
            least = np.float32(self.low)
            if float(least) < self.low:
                least = np.nextafter(least, np.float32(np.inf))
            return float(np.nextafter(least, np.float32(np.inf))) > self.high

    def narrow(self, used: Floats, weights: Array) -> None:
        """Takes into account some weights.

        Args:
            used: [n], values.
            weights: [n], what they became, in the carrier of the dtype.
        """
        odd = bits_of(weights) % 2 == 1
        if self._dtype == "bfloat16":
            weights = widen(weights, self._dtype)
        with np.errstate(invalid="ignore"):  # signaling NaNs
            exact = weights.astype(np.float64)
        tells = np.isfinite(exact) & (used != 0)
        exact, odd, made_of = exact[tells], odd[tells], used[tells].astype(np.float64)
        if not exact.size:
            return
        self._signs |= set((np.signbit(exact) ^ np.signbit(made_of)).tolist())
        exact, made_of = np.abs(exact), np.abs(made_of)
        precision, lowest = _PRECISION.get(self._dtype, _BINARY32)
        below, above = _half_steps(exact, precision, lowest)
        low, high = exact - below, exact + above
        wide_low, wide_high = low, high
        if self._dtype in _PRECISION:  # the product was rounded to binary32 before
            once = _half_steps(exact, _BINARY32[0], lowest)[1]
            wide_low, wide_high = low - once, high + once
            low, high = _before_rounding(low, high, odd)
        self.low = max(self.low, float((low / made_of).max()))
        self.high = min(self.high, float((high / made_of).min()))
        self._wide_low = max(self._wide_low, float((wide_low / made_of).max()))
        self._wide_high = min(self._wide_high, float((wide_high / made_of).min()))

    def candidates(self) -> list[float]:
        """binary32 scales of which one makes all of the finite weights if any does.

        The first is the nearest to the middle of an interval that is wider for short floats, since
        the bytes of files follow from this choice. If it is not inside of the bounds, it is at one
        of their ends, or next to it, and one of its neighbours is inside if any number is.
        """
        if self.is_empty or not self._signs:
            return []
        with np.errstate(over="ignore"):  # to infinity, which is no scale
            middle = np.float32((self._wide_low + self._wide_high) / 2)
            first = np.float32(np.clip(np.float64(middle), self.low, self.high))
        around = [first, *(np.nextafter(first, np.float32(end)) for end in (0, np.inf))]
        sign = -1.0 if True in self._signs else 1.0
        return [sign * float(scale) for scale in around if np.isfinite(scale) and scale]


def _half_steps(numbers: _Doubles, precision: int, lowest: int) -> tuple[_Doubles, _Doubles]:
    """Half of the way to the next smaller and to the next larger number of a format, for ≥ 0."""
    fraction, exponent = np.frexp(numbers)
    exponent = np.where(numbers > 0, np.maximum(exponent, lowest), lowest)
    above = np.ldexp(0.5, exponent - precision)
    return np.where((fraction == 0.5) & (exponent > lowest), above / 2, above), above


def _before_rounding(
    low: _Doubles, high: _Doubles, odd: npt.NDArray[np.bool_]
) -> tuple[_Doubles, _Doubles]:
    """Which numbers round to a binary32 number from `low` to `high`: without the two if `odd`.

    Both are halfway between weights, and what is halfway goes to the even weight. So neither is a
    power of two, which has a nearer neighbour below, but for `low` of the smallest weight, an odd
    one.
    """
    inward = np.where(odd, 1.0, -1.0)
    low_half = _half_steps(np.maximum(low, 0.0), *_BINARY32)[1]
    high_half = _half_steps(high, *_BINARY32)[1]
    return low + inward * low_half, high - inward * high_half
