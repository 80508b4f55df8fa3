"""Weights → how NumPy's legacy generator may have drawn them, and from which range."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pemncodec.contents import TorchPrototype
from pemncodec.values.draws import BITS, Draws, Known, Range, uniform_draws
from pemncodec.values.mersenne import stream_of
from pemncodec.values.numpy_legacy import fractions
from pemncodec.values.recovery import Layer

_PART = 1 << 16  # values that are looked at together: they stay in the cache
_SLACK = 2.0**-50  # of a bound: what two roundings in binary64 may be off
_LOWEST_BIT = 31  # to the left, and the lowest bit of a word is the highest


def numpy_uniform_draws(known: Known, low: Range, high: Range) -> Draws:
    """Of values that are uniform from `low` to `high`: each is made of two words."""
    draws = uniform_draws(known, low, high)
    return Draws(2 * draws.words, draws.low, draws.width, turn=0)


def numpy_sign_draws(known: Known) -> Draws:
    """Of a choice of −1 and 1: the lowest bit of a word."""
    half = 1 << BITS - 1
    low = np.where(known.values < 0, 0, half)
    return Draws(known.places, low, np.full(known.places.size, half - 1), turn=_LOWEST_BIT)


def numpy_ranges(prototype: TorchPrototype, layer: Layer) -> Iterator[TorchPrototype]:
    """Prototypes of "numpy-uniform" with ranges from 0 on, or symmetric, that fit a layer's values.

    A used value leaves an interval for the bound that was drawn with. Whatever lies in all of them
    makes all values; the shortest decimal is what somebody may have written.

    Args:
        prototype: with seed and place; a `low` of 0 stays.
        layer: float32.
    """
    symmetric = prototype.low < 0
    low, high = 0.0, np.inf
    for start in range(0, min(prototype.length, layer.values.size), _PART):
        part = slice(start, min(start + _PART, prototype.length, layer.values.size))
        units = fractions(stream_of(prototype.seed), prototype.skip, start, part.stop)
        if symmetric:
            units = 2 * units - 1
        told = layer.mask[part] & (np.abs(units) > 2.0**-BITS)
        units, values = units[told], layer.values[part][told]
        sizes = np.abs(values)
        if (np.sign(values) != np.sign(units)).any() or not np.isfinite(sizes).all():
            return
        doubles, units = sizes.astype(np.float64), np.abs(units)
        least = (doubles + np.nextafter(sizes, np.float32(0))) / 2 / units
        most = (doubles + np.nextafter(sizes, np.float32(np.inf))) / 2 / units
        low = max(low, float(least.max(initial=0)) * (1 - _SLACK))
        high = min(high, float(most.min(initial=np.inf)) * (1 + _SLACK))
        if low > high:
            return
    if np.isfinite(high):
        for bound in dict.fromkeys((_shortest(low, high), (low + high) / 2)):
            yield replace(prototype, low=-bound if symmetric else 0.0, high=bound)


def _shortest(low: float, high: float) -> float:
    """The number between two with the fewest decimal digits."""
    middle = (low + high) / 2
    for digits in range(17):
        number = float(f"{middle:.{digits}e}")
        if low <= number <= high:
            return number
    return middle
