"""Weights → what they say of the words that torch's generator drew for them (spec section 5.5).

A value follows from 24 bits of one word, or of two. So a weight leaves an interval for these bits,
wide enough for every variant of the arithmetic, for the rounding of the weight and for a scale that
is known only roughly. What all numbers of an interval have in common is linear over GF(2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pemncodec.contents import Array, Mask
from pemncodec.values.rounding import widen

BITS = 24  # of a word that make a value
TORCH_TURN = 32 - BITS
_ALL = 1 << BITS
GROUP = 16  # normal values that are made together: 8 of each pair's first, then 8 of its second
_PAIRS = 8
_LARGEST_RADIUS = np.sqrt(2 * BITS * np.log(2))
_TOO_LARGE = 1e30  # for weights, and so that no square overflows
_ROUNDINGS = 1.5  # of the numbers of an interval, on each side

_Doubles = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]

RELATIVE_ERROR = {"float32": 4e-7, "float64": 4e-7, "float16": 2.0**-11 + 4e-7}
RELATIVE_ERROR["bfloat16"] = 2.0**-8 + 4e-7
"""By how much weights of a dtype differ from exact arithmetic, as a share of them."""

_LEAST_ERROR = {"float16": 2.0**-25}
"""The same where it is more: half the distance of the smallest numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """The weights of a tensor that are known, as exact numbers.

    Attributes:
        length: of the tensor.
        places: int64 [n], of the weights in the tensor, ascending.
        values: float64 [n], finite.
        error: how far they may be from exact arithmetic, as a share of their magnitude.
        least_error: how far they may be, however small they are.
    """

    length: int
    places: _Integers
    values: _Doubles
    error: float
    least_error: float = 0.0


def known_weights(values: Array, dtype: str, mask: Mask, length: int) -> Known | None:
    """The used ones of the first weights of a tensor; None if one is not finite, or too large."""
    places = np.flatnonzero(mask)
    used = values[places] if dtype != "bfloat16" else widen(values[places], dtype)
    with np.errstate(invalid="ignore"):  # signaling NaNs
        exact = used.astype(np.float64)
    if not (np.abs(exact) < _TOO_LARGE).all():
        return None
    exact[np.abs(exact) < 1 / _TOO_LARGE] = 0.0
    return Known(length, places, exact, RELATIVE_ERROR[dtype], _LEAST_ERROR.get(dtype, 0.0))


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a number that is not known exactly."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Intervals of 24 bits of words.

    Attributes:
        words: int64 [n], counted from the first that was drawn for the tensor, ascending.
        low: int64 [n], the least number of the interval.
        width: int64 [n], 0 to 2^24 − 2: the largest is low + width, modulo 2^24.
        turn: by how many places a word is turned to the left to have these bits on top. Torch takes
            the lower bits.
    """

    words: _Integers
    low: _Integers
    width: _Integers
    turn: int = TORCH_TURN

    @property
    def bits(self) -> _Doubles:
        """How much each says, in bits."""
        bits: _Doubles = BITS - np.log2(self.width + 1.0)
        return bits

    def first(self, count: int) -> Draws:
        """The first `count` of them."""
        return self.some(slice(count))

    def some(self, chosen: _Integers | slice) -> Draws:
        """Those of these indices."""
        return Draws(self.words[chosen], self.low[chosen], self.width[chosen], self.turn)


# ---- Which words


def normal_words(length: int, places: _Integers) -> _Integers:
    """The word that belongs to each value's place in its group; the last 16 are drawn once more."""
    redrawn = length - (GROUP if length % GROUP else 0)
    return np.where(places < redrawn, places, places - redrawn + length)


def _pairs(known: Known) -> tuple[_Integers, _Doubles]:
    """The words of pairs of which a value is known, [2, n], and the values, or NaN, [2, n]."""
    at = normal_words(known.length, known.places)
    # The last 16 begin at `length`, which is no multiple of 16 then.
    start = np.where(at < known.length, 0, known.length % GROUP)
    second = (at - start) % GROUP >= _PAIRS
    firsts, index = np.unique(np.where(second, at - _PAIRS, at), return_inverse=True)
    values = np.full((2, firsts.size), np.nan)
    values[second.astype(np.int64), index] = known.values
    return np.stack([firsts, firsts + _PAIRS]), values


def paired_values(known: Known) -> _Doubles:
    """Both values of the pairs of normal values of which both are known, float64 [2, n]."""
    values = _pairs(known)[1]
    return values[:, ~np.isnan(values).any(axis=0)]


# ---- Intervals


def uniform_draws(known: Known, low: Range, high: Range) -> Draws:
    """Of values that are uniform from `low` to `high`."""
    error = np.maximum(np.abs(known.values) * (known.error - 3e-7), known.least_error)
    # Larger bounds mean smaller numbers.
    least = (known.values - error - low.high) / (high.high - low.high)
    most = (known.values + error - low.low) / (high.low - low.low)
    return _draws(known.places, least * _ALL - 1, most * _ALL + 1)


def uniform_sign_draws(known: Known) -> Draws:
    """Of signs of values that are uniform in a symmetric range."""
    tells = known.values != 0
    places, negative = known.places[tells], known.values[tells] < 0
    low = np.where(negative, 0, _ALL // 2)
    return Draws(places, low, np.full(places.size, _ALL // 2 - 1))


def normal_draws(known: Known, scale: Range) -> Draws:
    """Of normal values with a standard deviation in a range."""
    words, values = _pairs(known)
    both = ~np.isnan(values).any(axis=0)
    radius, angle = np.hypot(*values[:, both]), np.arctan2(values[1, both], values[0, both])
    error = radius * known.error + 1.5 * known.least_error
    parts = [_radius_draws(words[0, both], radius - error, radius + error, scale)]
    share = error / np.maximum(radius, np.finfo(np.float64).tiny)
    parts.append(_angle_draws(words[1, both], angle, np.minimum(share, np.pi)))
    for second in (0, 1):
        single = np.isnan(values[1 - second]) & ~np.isnan(values[second])
        value, (at, after) = values[second, single], words[:, single]
        least = np.maximum(np.abs(value) * (1 - known.error) - known.least_error, 0.0)
        parts.append(_radius_draws(at, least, None, scale))
        # The value is the radius times a cosine, so the angle is at most so far from an axis.
        share = least / scale.high / _LARGEST_RADIUS
        axis = (0.5 * second + (value < 0)) * np.pi
        parts.append(_angle_draws(after, axis, np.arccos(np.minimum(share, 1.0)) + known.error))
    return _sorted(parts)


def normal_sign_draws(known: Known) -> Draws:
    """Of signs of normal values."""
    words, values = _pairs(known)
    parts = []
    for second in (0, 1):
        tells = ~np.isnan(values[second]) & (values[second] != 0)
        quarters = (values[second, tells] < 0) * 2 + second - 1  # where the half begins
        at = words[1, tells]
        low = quarters % 4 * (_ALL // 4)
        parts.append(Draws(at, low.astype(np.int64), np.full(at.size, _ALL // 2 - 1)))
    return _sorted(parts)


def _radius_draws(words: _Integers, least: _Doubles, most: _Doubles | None, scale: Range) -> Draws:
    """Of a pair's first word, from its scaled radius; any that is not less without `most`."""
    low = -np.expm1(-((np.maximum(least, 0) / scale.high) ** 2) / 2) * _ALL - _ROUNDINGS
    if most is None:
        high = np.full(low.size, _ALL - 1.0)
    else:
        high = -np.expm1(-((most / scale.low) ** 2) / 2) * _ALL + _ROUNDINGS
    return _draws(words, low, high)


def _angle_draws(words: _Integers, angle: _Doubles, error: _Doubles) -> Draws:
    """Of a pair's second word, from its angle in radians."""
    unit = _ALL / (2 * np.pi)
    low = np.ceil((angle - error) * unit - _ROUNDINGS).astype(np.int64)
    high = np.floor((angle + error) * unit + _ROUNDINGS).astype(np.int64)
    return Draws(words, low % _ALL, np.minimum(high - low, _ALL - 1))


def _draws(words: _Integers, low: _Doubles, high: _Doubles) -> Draws:
    """Of intervals that end at the ends of all numbers."""
    least = np.clip(np.ceil(low), 0, _ALL - 1).astype(np.int64)
    most = np.clip(np.floor(high), 0, _ALL - 1).astype(np.int64)
    return Draws(words, least, np.maximum(most - least, 0))


def _sorted(parts: list[Draws]) -> Draws:
    words = np.concatenate([part.words for part in parts])
    order = np.argsort(words, kind="stable")
    low = np.concatenate([part.low for part in parts])
    width = np.concatenate([part.width for part in parts])
    tells = order[width[order] < _ALL - 1]
    return Draws(words[tells], low[tells], width[tells])


# ---- Equations


@dataclass(frozen=True, slots=True, eq=False)
class Equations:
    """What `kernels.mersenne_solve` takes.

    Attributes:
        words: uint32 [n], ascending.
        masks: uint32 [n].
        parities: uint8 [n].
    """

    words: npt.NDArray[np.uint32]
    masks: npt.NDArray[np.uint32]
    parities: npt.NDArray[np.uint8]


def equations_of(draws: Draws) -> Equations:
    """What all numbers of each interval have in common, in Gray code.

    Neighbours differ in one digit of it, so that an interval leaves few digits open wherever it
    lies. The first digit is the highest bit, each other one the sum of two neighbouring bits.
    """
    words, masks, parities = [], [], []
    high = draws.low + draws.width
    for bit in range(BITS - 1, -1, -1):
        if bit == BITS - 1:
            mask, same = 1 << bit, draws.low >> bit == high >> bit
        else:
            mask, half = 3 << bit, 1 << bit
            same = (draws.low + half) >> bit + 1 == (high + half) >> bit + 1
        at = np.flatnonzero(same)
        words.append(draws.words[at])
        masks.append(np.full(at.size, _turned_back(mask, draws.turn), np.uint32))
        parities.append(np.bitwise_count(draws.low[at] & mask) & 1)
    every = np.concatenate(words)
    order = np.argsort(every, kind="stable")
    return Equations(
        every[order].astype(np.uint32),
        np.concatenate(masks)[order],
        np.concatenate(parities)[order].astype(np.uint8),
    )


def _turned_back(mask: int, turn: int) -> int:
    """Where in a word the bits of a mask are that it has on top when it is turned."""
    top = mask << 32 - BITS
    return (top >> turn | top << 32 - turn) & 0xFFFFFFFF
