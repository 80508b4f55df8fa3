"""Prototypes of torch's CPU generator to values (spec/pemn.md section 5.5).

What `normal_` and `uniform_` write into a contiguous float32 tensor; the variant says which of
torch's kernels did. What NumPy makes of the same words is in `numpy_legacy.py`.
"""

from __future__ import annotations

import math
from typing import get_args

import numpy as np

from pemncodec import kernels
from pemncodec.contents import Floats, PackedMask, TorchDistribution, TorchPrototype, TorchVariant
from pemncodec.values.mersenne import WordStream, stream_of
from pemncodec.values.numpy_legacy import is_numpy, numpy_values, words_each

TORCH_DISTRIBUTIONS: tuple[str, ...] = get_args(TorchDistribution)
TORCH_VARIANTS: tuple[str, ...] = get_args(TorchVariant)
MOST_WORDS = (1 << 63) - 1
_GROUP = 16  # normal values that are made together, of as many words


def make_values(prototype: TorchPrototype, start: int, stop: int, scale: float) -> Floats:
    """Values `start` to `stop`, scaled, float32 [stop - start]."""
    values = _slice(prototype, start, stop)
    if prototype.distribution in ("normal-signs", "uniform-signs"):
        np.sign(values, out=values)
    if scale != 1.0:
        with np.errstate(over="ignore"):  # to infinity, as the format asks for
            np.multiply(values, np.float32(scale), out=values)
    return values


def is_sliceable(_: TorchPrototype) -> bool:
    """Whether a slice costs what its own values cost: states on the way are kept."""
    return True


def fill_masked(
    prototype: TorchPrototype, start: int, packed_mask: PackedMask, out: Floats, scale: float
) -> bool:
    """Values from `start` on where a mask has ones, +0.0 elsewhere, where a kernel does both.

    Returns:
        False, and nothing is done, where no kernel does: for signs, for values of NumPy, and for
        normal values that do not begin with a group, or that were drawn once more.
    """
    bounds = np.array([prototype.low, prototype.high], np.float32)
    if prototype.distribution == "normal":
        if start % _GROUP or start + out.size > _redrawn_from(prototype):
            return False
        bounds = bounds[:0]
    elif prototype.distribution != "uniform":
        return False
    state, skip = stream_of(prototype.seed).state(prototype.skip + start)
    fused, factor = int(prototype.variant == "vector"), np.array([scale], np.float32)
    kernels.expand_drawn(state, skip, fused, bounds, factor, packed_mask, out)
    return True


def shared_words(prototype: TorchPrototype) -> WordStream:
    """The words of the seed: with them are kept states from which later ones are made."""
    return stream_of(prototype.seed)


def check_prototype(prototype: TorchPrototype) -> None:
    """Raises ValueError unless every field is in its range."""
    kind, low, high = prototype.distribution, prototype.low, prototype.high
    if kind not in TORCH_DISTRIBUTIONS:
        raise ValueError(f"unknown distribution {kind!r:.60} of torch's generator")
    if prototype.variant not in TORCH_VARIANTS:
        raise ValueError(f"unknown variant {prototype.variant!r:.60} of torch's generator")
    if not 0 <= prototype.seed < 1 << 32:
        raise ValueError(f"torch's CPU generator has seeds of 32 bits, not {prototype.seed}")
    if prototype.length < 1:
        raise ValueError(f"a prototype's length must be positive, not {prototype.length}")
    elements = prototype.elements
    if prototype.drawn and elements <= prototype.length:
        raise ValueError(
            f"a prototype of {prototype.length} values is not the beginning of {elements} ones"
        )
    if is_normal(prototype) and elements < _GROUP:
        raise ValueError(f"normal values of torch come 16 or more at once, not {elements}")
    if is_numpy(prototype) and prototype.variant != "vector":
        raise ValueError("values of NumPy have no variants")
    if not 0 <= prototype.skip <= MOST_WORDS - words_each(prototype) * elements - _GROUP:
        raise ValueError(f"there cannot be {prototype.skip} words before a prototype")
    if (low, high) != (-1.0, 1.0):
        if kind not in ("uniform", "numpy-uniform"):
            raise ValueError(f"low and high are for uniform values alone, not for {kind!r}")
        _check_range(low, high, exact=kind == "uniform")


def _check_range(low: float, high: float, *, exact: bool) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        bounds = np.array([low, high], np.float32)
        span = bounds[1] - bounds[0]
    fits = bounds[0] < bounds[1] and math.isfinite(span)
    if not fits or (exact and bounds.tolist() != [low, high]):
        raise ValueError(f"uniform values cannot lie from {low} to {high} in binary32")


def is_normal(prototype: TorchPrototype) -> bool:
    """Whether its values, or those whose signs it is, are normal."""
    return prototype.distribution in ("normal", "normal-signs")


def words_of(prototype: TorchPrototype) -> int:
    """How many words are drawn for a prototype, from `skip` on."""
    redrawn = is_normal(prototype) and prototype.elements % _GROUP
    return words_each(prototype) * prototype.elements + (_GROUP if redrawn else 0)


def _slice(prototype: TorchPrototype, start: int, stop: int) -> Floats:
    """Values `start` to `stop` before signs are taken of them."""
    fused = int(prototype.variant == "vector")
    stream = stream_of(prototype.seed)
    if is_numpy(prototype):
        return numpy_values(stream, prototype, start, stop)
    if not is_normal(prototype):
        words = stream.words(prototype.skip + start, stop - start)
        bounds = np.array([prototype.low, prototype.high], np.float32)
        values = words.view(np.float32)
        kernels.torch_uniform(words, fused, bounds, values)
        return values
    redrawn = _redrawn_from(prototype)
    if stop <= redrawn:
        return _normal(stream, prototype.skip, start, stop, fused)
    last = _normal(stream, prototype.skip + prototype.elements, 0, _GROUP, fused)
    last = last[max(start - redrawn, 0) : stop - redrawn]
    if start >= redrawn:
        return last
    return np.concatenate([_normal(stream, prototype.skip, start, redrawn, fused), last])


def _redrawn_from(prototype: TorchPrototype) -> int:
    """From where on normal values are made of later words: the last 16, if that cuts a group."""
    return prototype.elements - (_GROUP if prototype.elements % _GROUP else 0)


def _normal(stream: WordStream, skip: int, start: int, stop: int, fused: int) -> Floats:
    """Normal values `start` to `stop` of those whose words begin behind `skip` ones."""
    first, end = start // _GROUP * _GROUP, -(-stop // _GROUP) * _GROUP
    words = stream.words(skip + first, end - first)
    values = words.view(np.float32)
    kernels.torch_normal(words, fused, values)
    return values[start - first : stop - first]
