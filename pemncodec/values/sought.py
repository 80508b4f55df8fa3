"""Layers → the tensors that torch's generator may have drawn for them, and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pemncodec.contents import SeededFill, TorchDistribution, TorchPrototype
from pemncodec.values.draws import (
    GROUP,
    Draws,
    Known,
    Range,
    known_weights,
    normal_draws,
    normal_sign_draws,
    uniform_draws,
    uniform_sign_draws,
)
from pemncodec.values.fill import used_values
from pemncodec.values.lattice import has_angles_of_torch, normal_scale, uniform_bound
from pemncodec.values.numpy_legacy import is_numpy
from pemncodec.values.numpy_sought import numpy_ranges, numpy_sign_draws, numpy_uniform_draws
from pemncodec.values.periods import fold, shortest_period
from pemncodec.values.recovery import (
    Layer,
    SeededBlocks,
    SharedValues,
    comes_from,
    seeded_scale,
    shared_values,
)

_LOOKED_AT = 1 << 17  # weights of a tensor, the first ones
_MOST_USUAL = 2  # scales that are tried though nothing tells that they are right
_FEW = 64  # weights whose distribution cannot be told from their magnitudes
_COMMON = 24  # values that are used twice: where few are, all seem to agree
_PRECISION = 2e-7  # of a scale that was rounded to binary32
_EXACT = ("float32", "float64")
_PEAK = 2.1  # of the largest magnitude to the mean square: 1.7 of uniform values, 3 of normal ones
_PRUNED = 0.1  # of the smallest magnitude, to the deviation: 64 values seldom leave that free
_SMALLEST_SCALE, _LARGEST_SCALE = 0.5, 1.6  # of deviations, to that of the weights a mask uses


@dataclass(frozen=True, slots=True, eq=False)
class Sought:
    """A tensor that may have been drawn.

    Attributes:
        layers: indices of the layers that take their values from it.
        layer: the values of all of them, as in the largest.
        length: how many of its values there are; the largest layer may repeat them.
        drawn: how many values it may have had: a vector that is repeated may have been cut from a
            tensor of the largest layer's size.
        known: those of its first values that some layer uses.
    """

    layers: tuple[int, ...]
    layer: Layer
    length: int
    drawn: tuple[int, ...]
    known: Known


@dataclass(frozen=True, slots=True, eq=False)
class Hypothesis:
    """How a tensor may have been drawn.

    Attributes:
        tensor: which.
        prototype: how; without seed and skip.
        draws: what its known values say of the generator's words then.
    """

    tensor: Sought
    prototype: TorchPrototype
    draws: Draws

    def confirmed(self, seed: int, skip: int) -> SeededFill | None:
        """What makes all used values from a seed, bit for bit; None if nothing does."""
        layer = self.tensor.layer
        if self.prototype.distribution == "numpy-uniform":
            ranges = numpy_ranges(replace(self.prototype, seed=seed, skip=skip), layer)
            fits = (made for made in ranges if comes_from(SeededBlocks(made), 1.0, layer))
            return next((SeededFill(made, 1.0) for made in fits), None)
        if is_numpy(self.prototype):
            made = replace(self.prototype, seed=seed, skip=skip)
            scale = seeded_scale(SeededBlocks(made), layer)
            return None if scale is None else SeededFill(made, scale)
        for variant in ("vector", "scalar"):
            made = replace(self.prototype, seed=seed, skip=skip, variant=variant)
            values = SeededBlocks(made)
            if (scale := seeded_scale(values, layer)) is not None:
                return SeededFill(made, scale)
        # Scalar arithmetic rounds before it adds the bound, so that scaling is no substitute.
        if made.distribution == "uniform" and made.low < 0:
            for bound in _bounds(values, layer):
                exact = replace(made, low=-bound, high=bound)
                if comes_from(SeededBlocks(exact), 1.0, layer):
                    return SeededFill(exact, 1.0)
        return None


def sought_tensors(layers: Sequence[Layer]) -> list[Sought]:
    """The tensors behind layers that have no fill, those with the most known values first."""
    rest = [index for index, layer in enumerate(layers) if layer.fill is None]
    shared = shared_values(layers, rest, least_common=_COMMON)
    found = (_sought(values) for values in shared)
    tensors = [tensor for tensor in found if tensor is not None]
    return sorted(tensors, key=lambda tensor: -tensor.known.values.size)


def _sought(shared: SharedValues) -> Sought | None:
    layer = Layer(shared.dtype, shared.values, shared.known)
    length, values, known = layer.values.size, layer.values, layer.mask
    drawn: tuple[int, ...] = (length,)
    period = shortest_period(shared.bits, known)
    folded = used_values(period, [(0, known)])
    repeated = np.count_nonzero(known) - np.count_nonzero(folded)
    if period <= length // 2 and repeated >= _COMMON:
        length, values = period, fold(shared.bits, known, period).view(values.dtype)
        known = folded
        # Without values that are drawn again, the beginning of a tensor is like a tensor.
        drawn = (period,) if period % GROUP == 0 else (shared.known.size, period)
    weights = known_weights(values[:_LOOKED_AT], shared.dtype, known[:_LOOKED_AT], length)
    if weights is None or weights.values.size < 2:
        return None
    return Sought(tuple(shared.layers), layer, length, drawn, weights)


def _bounds(values: SeededBlocks, layer: Layer) -> Iterator[float]:
    """Bounds of uniform values that make a layer's largest one of values from −1 to 1."""
    largest, at = 0.0, 0
    for block, part in values.repeated(layer.values.size):
        used = np.where(layer.mask[part], np.abs(block), 0)
        if used.max() > largest:
            largest, at = float(used.max()), part.start + int(used.argmax())
    if layer.dtype != "float32" or not largest:
        return
    bound = np.float32(abs(float(layer.values[at])) / largest)
    lower, upper = bound, np.nextafter(bound, np.float32(np.inf))
    for _ in range(4):
        yield from (float(lower), float(upper))
        lower = np.nextafter(lower, np.float32(0))
        upper = np.nextafter(upper, np.float32(np.inf))


# ---- Hypotheses


def hypotheses(tensor: Sought, deviations: Sequence[float]) -> list[Hypothesis]:
    """How a tensor may have been drawn, as far as its values do not speak against it.

    Args:
        tensor: which.
        deviations: standard deviations that are usual.
    """
    known = tensor.known
    magnitudes = np.abs(known.values)
    largest = float(magnitudes.max())
    if not largest:
        return []
    # The sign of a draw of 0 is 0.
    if ((magnitudes == largest) | (magnitudes == 0)).all():
        if not ((known.values > 0).any() and (known.values < 0).any()):
            return []
        signs = [
            _hypothesis(tensor, "normal-signs", normal_sign_draws(cut), drawn=cut.length)
            for cut in _cuts(tensor)
        ]
        uniform = _hypothesis(tensor, "uniform-signs", uniform_sign_draws(known))
        if (magnitudes == 0).any():
            return [*signs, uniform]
        return [*signs, uniform, _hypothesis(tensor, "numpy-signs", numpy_sign_draws(known))]
    deviation = float(np.sqrt((magnitudes**2).mean()))
    found = [way for cut in _cuts(tensor) for way in _normal(tensor, cut, deviation, largest)]
    if found and has_angles_of_torch(known) and tensor.layer.dtype in _EXACT:
        return found  # no other values have them
    return found + _uniform(tensor, deviation, largest, deviations)


def _cuts(tensor: Sought) -> Iterator[Known]:
    """What is known of the normal values that a tensor may be the beginning of."""
    for drawn in tensor.drawn:
        if drawn >= GROUP:
            yield replace(tensor.known, length=drawn)


def _normal(tensor: Sought, known: Known, deviation: float, largest: float) -> list[Hypothesis]:
    exact = tensor.layer.dtype in _EXACT
    fits = has_angles_of_torch(known) if exact else None
    if fits is False:
        return []
    # What is left of weights that were pruned by magnitude has no small ones, and no such peak.
    pruned = float(np.abs(known.values).min()) > _PRUNED * deviation
    if fits is None and not pruned and known.values.size >= _FEW and largest < _PEAK * deviation:
        return []
    lower, upper = _SMALLEST_SCALE * deviation, _LARGEST_SCALE * deviation
    if known.values.size < _FEW:
        lower, upper = lower / 2, upper * 2
    scales = [Range(lower, upper)]
    if exact and (scale := normal_scale(known, deviation, scales[0])):
        scales.insert(0, _rounded(scale))
    return [
        _hypothesis(tensor, "normal", normal_draws(known, scale), drawn=known.length)
        for scale in scales
    ]


def _uniform(
    tensor: Sought, deviation: float, largest: float, deviations: Sequence[float]
) -> list[Hypothesis]:
    known, exact = tensor.known, tensor.layer.dtype in _EXACT
    positive = bool((known.values > 0).all())
    if known.values.size >= _FEW and largest > _PEAK * deviation:
        return []
    # Of n values, the largest is some n-th part below the bound; twelve such parts are certain.
    margin = 1 + 12 / known.values.size + known.error
    upper = Range(largest * (1 - known.error), largest * margin)
    if exact and not positive and (bound := uniform_bound(known, upper)):
        return [_symmetric(tensor, _rounded(bound))]
    by_numpy = tensor.layer.dtype == "float32"
    if positive:
        zero = Range(0.0, 0.0)
        ways = [_hypothesis(tensor, "uniform", uniform_draws(known, zero, upper), low=0.0)]
        if by_numpy:
            draws = numpy_uniform_draws(known, zero, upper)
            ways.append(_hypothesis(tensor, "numpy-uniform", draws, low=0.0))
        return ways
    # Scalar arithmetic leaves values too far from integers to tell.
    bounds = (3**0.5 * scale for scale in deviations)
    usual = [bound for bound in bounds if upper.low < bound < upper.high][:_MOST_USUAL]
    tried = (*map(_rounded, usual), upper)
    ways = [_symmetric(tensor, bound) for bound in tried]
    if by_numpy:
        for most in tried:
            draws = numpy_uniform_draws(known, Range(-most.high, -most.low), most)
            ways.append(_hypothesis(tensor, "numpy-uniform", draws))
    return ways


def _rounded(scale: float) -> Range:
    return Range(scale * (1 - _PRECISION), scale * (1 + _PRECISION))


def _symmetric(tensor: Sought, bound: Range) -> Hypothesis:
    lower = Range(-bound.high, -bound.low)
    return _hypothesis(tensor, "uniform", uniform_draws(tensor.known, lower, bound))


def _hypothesis(
    tensor: Sought, distribution: TorchDistribution, draws: Draws, low: float = -1.0, drawn: int = 0
) -> Hypothesis:
    drawn = 0 if drawn == tensor.length else drawn
    prototype = TorchPrototype(distribution, 0, tensor.length, low=low, drawn=drawn)
    return Hypothesis(tensor, prototype, draws)
