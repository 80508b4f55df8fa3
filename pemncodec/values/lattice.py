"""Weights → whether torch's generator may have drawn them, and at which scale.

It draws multiples of 2^-24. From normal or uniform values these can be computed back; they are near
integers only if the values are of this kind and have the scale that was assumed. So the scale is
one of few that make an integer of the smallest value, and it makes integers of the others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pemncodec.values.draws import BITS, Known, Range, paired_values

_UNITS = 1 << BITS
_SCORE = 0.5  # between 0 of other numbers and more than 0.8 of those near integers
_FEWEST_ANGLES = 12
_FEWEST = 20  # values without which a scale may seem right by chance
_MOST = 400  # values that are enough
_MOST_SCALES = 1 << 19
_SMALL_ANGLE = 1 / 8  # of a turn: others are too far from integers
_SMALL = 0.3  # values before scaling, likewise
_NEIGHBOURS = 8  # binary32 numbers on each side of what the smallest value says

_Doubles = npt.NDArray[np.float64]


def has_angles_of_torch(known: Known) -> bool | None:
    """Whether normal weights may be torch's, at any scale; None where too few pairs are known."""
    first, second = paired_values(known)
    turns = np.arctan2(second, first) / (2 * np.pi)
    turns = turns[(turns > 0) & (turns < _SMALL_ANGLE)]
    return None if turns.size < _FEWEST_ANGLES else bool(_score(turns * _UNITS) > _SCORE)


def normal_scale(known: Known, deviation: float, within: Range) -> float | None:
    """The standard deviation of torch's normal weights, in float32.

    Args:
        known: some of them.
        deviation: about theirs.
        within: the range of those that are considered.

    Returns:
        A binary32 number; None where none fits, or too few weights are known to tell.
    """
    radii = np.sort(np.hypot(*paired_values(known)))
    return _scale(
        radii[radii < _SMALL * deviation],
        within,
        lambda radii: -np.expm1(-(radii**2) / 2) * _UNITS,
        lambda drawn: np.sqrt(-2 * np.log1p(-drawn / _UNITS)),
    )


def uniform_bound(known: Known, within: Range) -> float | None:
    """The bound of torch's uniform weights from −bound to bound; as `normal_scale`."""
    values = np.sort(np.abs(known.values))
    small = values[(values > 0) & (values < _SMALL * within.low)]
    half = _UNITS / 2
    return _scale(small, within, lambda values: values * half, lambda drawn: drawn / half)


def _scale(
    values: _Doubles,
    within: Range,
    drawn: Callable[[_Doubles], _Doubles],
    value: Callable[[_Doubles], _Doubles],
) -> float | None:
    """The scale at which values, divided by it, are drawn as integers.

    Args:
        values: ascending.
        within: its range.
        drawn: from divided values to what is an integer.
        value: the way back.
    """
    if values.size < _FEWEST:
        return None
    least, most = (drawn(values[:1] / end)[0] for end in (within.high, within.low))
    integers = np.arange(max(1, np.ceil(least)), np.floor(most) + 1)
    if not 0 < integers.size <= _MOST_SCALES:
        return None
    enough = values[:_FEWEST]
    scales = values[0] / value(integers)
    # A few values first, since there may be many scales.
    best = scales[np.argsort(_scores(drawn, enough, scales))[-_FEWEST:]]
    ulp = np.spacing(np.float32(within.low))
    near = best.astype(np.float32)[:, None] + ulp * np.arange(-_NEIGHBOURS, _NEIGHBOURS + 1)
    numbers = np.unique(near.astype(np.float32)).astype(np.float64)
    scores = _scores(drawn, values[:_MOST], numbers)
    return float(numbers[scores.argmax()]) if scores.max() > _SCORE else None


def _scores(drawn: Callable[[_Doubles], _Doubles], values: _Doubles, scales: _Doubles) -> _Doubles:
    parts = np.array_split(scales, 1 + scales.size * values.size // (1 << 18))
    return np.concatenate([_score(drawn(values / part[:, None])) for part in parts])


def _score(numbers: _Doubles) -> _Doubles:
    """1 where all in the last dimension are integers, about 0 where they are anything."""
    mean: _Doubles = np.cos(2 * np.pi * numbers).mean(axis=-1)
    return mean
