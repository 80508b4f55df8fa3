"""Given weights → the prototypes behind them.

Recovery is the encoder's own business: it looks for the shortest prototypes that reproduce every
*used* weight bit for bit. A masked-out weight is unknown to it, whether the model still carries its
value or was baked (multiplied by its mask).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pemncodec.contents import (
    CARRIERS,
    Array,
    Fill,
    Prototype,
    SeededFill,
    SeededPrototype,
    StoredPrototype,
    bits_of,
)
from pemncodec.values.fill import Mask, prototype_values, scale_values
from pemncodec.values.rounding import widen

_FIRST_PART = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A masked layer whose values are to be found.

    Attributes:
        values: [n], carrier dtype of `dtype`.
        mask: bool [n]; only values where it is True count.
        fill: where the values are said to come from.
    """

    dtype: str
    values: Array
    mask: Mask
    fill: SeededFill | None = None


def recover_prototypes(
    layers: Sequence[Layer], seeded: Sequence[SeededPrototype] = ()
) -> tuple[tuple[Prototype, ...], tuple[Fill, ...]]:
    """Short prototypes that reproduce every used value, and each layer's fill.

    Greedy, from the largest layer to the smallest. Layers share a prototype as long as no used
    value contradicts: with max-layer and random-vector padding all of them do, with One-layer those
    of one shape, else each has its own.

    Args:
        layers: the masked layers.
        seeded: prototypes that the layers may come from, tried before anything is stored.
    """
    fills: list[Fill | None] = [None] * len(layers)
    prototypes: list[Prototype] = []
    numbers: dict[SeededPrototype, int] = {}
    latest: dict[SeededPrototype, Array] = {}
    weights = sum(layer.values.size for layer in layers)
    for index, layer in enumerate(layers):
        # No strategy makes a prototype longer than the model; a damaged checkpoint may claim one.
        if (fill := layer.fill) is None or fill.prototype.length > weights:
            continue
        # Layers that share a prototype are mostly all of them, or neighbours.
        if fill.prototype not in latest:
            latest = {fill.prototype: prototype_values(fill.prototype)}
        if _comes_from(latest[fill.prototype], fill.scale, layer):
            number = numbers.setdefault(fill.prototype, len(numbers))
            fills[index] = Fill(number, scale=fill.scale)
    prototypes += numbers
    for prototype in seeded:
        values = prototype_values(prototype)
        matches = {
            index: scale
            for index, layer in enumerate(layers)
            if fills[index] is None and (scale := _seeded_scale(values, layer)) is not None
        }
        for index, scale in matches.items():
            fills[index] = Fill(len(prototypes), scale=scale)
        if matches:
            prototypes.append(prototype)

    sharers: list[_Shared] = []
    shared_of: dict[int, _Shared] = {}
    by_size = sorted(
        (index for index, fill in enumerate(fills) if fill is None),
        key=lambda index: -layers[index].values.size,
    )
    for index in by_size:
        layer = layers[index]
        for shared in sharers:
            if shared.agrees(layer):
                break
        else:
            shared = _Shared(layer)
            sharers.append(shared)
        shared.merge(layer)
        shared_of[index] = shared
    # In the order of their first layer, so that a file lists prototypes as the network needs them.
    for index in sorted(shared_of):
        shared = shared_of[index]
        if shared.number is None:
            shared.number = len(prototypes)
            prototypes.append(shared.shortest())
        fills[index] = Fill(shared.number)
    return tuple(prototypes), tuple(fill for fill in fills if fill is not None)


class _Shared:
    """What the layers of one prototype say about its values."""

    def __init__(self, largest: Layer) -> None:
        self.dtype = largest.dtype
        self.bits = bits_of(np.zeros_like(largest.values))
        self.known = np.zeros(largest.values.size, np.bool_)
        self.number: int | None = None

    def agrees(self, layer: Layer) -> bool:
        if layer.dtype != self.dtype:
            return False
        # A look at the start settles nearly every case in which they differ.
        size = layer.values.size
        return all(self._agrees(layer, slice(0, end)) for end in (min(4096, size), size))

    def _agrees(self, layer: Layer, part: slice) -> bool:
        both = self.known[part] & layer.mask[part]
        return bool(np.array_equal(self.bits[part][both], bits_of(layer.values)[part][both]))

    def merge(self, layer: Layer) -> None:
        size = layer.values.size
        np.copyto(self.bits[:size], bits_of(layer.values), where=layer.mask)
        self.known[:size] |= layer.mask

    def shortest(self) -> StoredPrototype:
        length = shortest_period(self.bits, self.known)
        values = np.zeros(length, self.bits.dtype)
        positions = np.flatnonzero(self.known)
        values[positions % length] = self.bits[positions]
        return StoredPrototype(values.view(CARRIERS[self.dtype]), self.dtype)


def shortest_period(bits: npt.NDArray[np.unsignedinteger], known: Mask) -> int:
    """The smallest L such that known items whose positions are equal modulo L are equal.

    Args:
        bits: unsigned [n].
        known: bool [n]; other items match anything.

    Returns:
        L, 1 to n (1 when n is 0); n when nothing repeats.

    Candidates come from an autocorrelation: give every distinct value a random sign; at a lag of
    the true period all pairs of known signs agree, at another one about half of them. What passes
    is checked exactly.
    """
    size = bits.size
    if not known.any():
        return 1
    distinct, inverse = np.unique(bits[known], return_inverse=True)
    if distinct.size == np.count_nonzero(known):
        return size
    # As many of one sign as of the other, also where there are but two values.
    sign_of = np.ones(distinct.size)
    sign_of[np.random.default_rng(0).permutation(distinct.size)[: distinct.size // 2]] = -1.0
    signs = np.zeros(size)
    signs[known] = sign_of[inverse]
    # A short period shows in the first values already, where the transform costs little.
    for part in (min(_FIRST_PART, size), size):
        for lag in np.flatnonzero(_disagreements(known[:part], signs[:part]) < 0.5):
            if lag and _has_period(bits, known, int(lag)):
                return int(lag)
        if part == size:
            break
    return size


def _disagreements(known: Mask, signs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """For every lag, twice the number of pairs of known signs that differ."""
    padded = 1 << (2 * signs.size - 1).bit_length()
    difference = np.zeros(padded // 2 + 1)
    for signal, sign in ((known.astype(np.float64), 1.0), (signs, -1.0)):
        spectrum = np.fft.rfft(signal, padded)
        difference += sign * (spectrum.real**2 + spectrum.imag**2)
    return np.fft.irfft(difference, padded)[: signs.size]


def _has_period(bits: npt.NDArray[np.unsignedinteger], known: Mask, length: int) -> bool:
    folded = np.zeros(length, bits.dtype)
    seen = np.zeros(length, np.bool_)
    for start in range(0, bits.size, length):
        part = bits[start : start + length]
        part_known = known[start : start + length]
        first, first_seen = folded[: part.size], seen[: part.size]
        if (part_known & first_seen & (part != first)).any():
            return False
        np.copyto(first, part, where=part_known & ~first_seen)
        first_seen |= part_known
    return True


def _comes_from(values: Array, scale: float, layer: Layer) -> bool:
    """Whether a seeded prototype's values at a known scale make the layer's used ones."""
    values = scale_values(values[: layer.values.size], "float32", scale, layer.dtype)
    positions = np.flatnonzero(layer.mask)
    made = bits_of(values)[positions % values.size]
    return np.array_equal(made, bits_of(layer.values)[positions])


def _seeded_scale(values: Array, layer: Layer) -> float | None:
    """The scale at which a seeded prototype's values make the layer's used ones; None if none."""
    positions = np.flatnonzero(layer.mask)
    if not positions.size:
        return None
    used = values[positions % values.size]
    wanted = bits_of(layer.values)[positions]
    for scale in _scale_candidates(used, layer.values[positions], layer.dtype):
        if np.array_equal(bits_of(scale_values(used, "float32", scale, layer.dtype)), wanted):
            return scale
    return None


def _scale_candidates(used: npt.NDArray[np.float32], weights: Array, dtype: str) -> list[float]:
    """binary32 scales that could have made `weights` of `used`, the likeliest first.

    A weight was rounded, so it allows an interval of scales; all weights together allow the
    intersection, which has one or a few binary32 numbers, more where weights are short.
    """
    if dtype == "bfloat16":
        weights = widen(weights, dtype)
    with np.errstate(invalid="ignore"):  # signaling NaNs
        exact = weights.astype(np.float64)
    tells = np.isfinite(exact) & (used != 0)
    if not tells.any():
        return []
    exact, made_of = exact[tells], used[tells].astype(np.float64)
    negative = np.signbit(exact) ^ np.signbit(made_of)
    if (negative != negative[0]).any():
        return []
    exact, made_of = np.abs(exact), np.abs(made_of)
    precision = {"bfloat16": 8, "float16": 11}.get(dtype, 24)
    lowest = -13 if dtype == "float16" else -125  # of normal numbers; smaller ones have its steps
    fraction, exponent = np.frexp(exact)
    exponent = np.where(exact > 0, np.maximum(exponent, lowest), lowest)
    below = above = np.ldexp(0.5, exponent - precision)  # half a step
    below = np.where((fraction == 0.5) & (exponent > lowest), below / 2, below)
    if precision < 24:  # the product was rounded to binary32 before
        once = np.ldexp(0.5, exponent - 24)
        below, above = below + once, above + once
    low, high = np.max((exact - below) / made_of), np.min((exact + above) / made_of)
    if not low <= high:
        return []
    with np.errstate(over="ignore"):  # to infinity, which is no scale
        middle = np.float32((max(low, 0.0) + high) / 2 * (-1 if negative[0] else 1))
        candidates = [middle]
        lower = higher = middle
        for _ in range(8):
            lower = np.nextafter(lower, np.float32(-np.inf))
            higher = np.nextafter(higher, np.float32(np.inf))
            candidates += [lower, higher]
    return [float(scale) for scale in candidates if np.isfinite(scale) and scale]
