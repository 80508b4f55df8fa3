"""A network's layers → how many words torch may have drawn before it drew one of them.

A layer of torch draws a default for its weight and then for its bias. Masked networks draw their
weights once more, and often scores: as soon as a layer is there, or when the network is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pemncodec.values.draws import GROUP


@dataclass(frozen=True, slots=True)
class Drawn:
    """How many values torch draws for a layer: of its weight, and of its bias."""

    weight: int
    bias: int = 0


def words_before(layers: Sequence[Drawn], at: int, *, normal: bool) -> tuple[int, ...]:
    """How many words may lie before those of a weight, the likely ones first.

    Args:
        layers: of a network, in the order in which they are made.
        at: which of them.
        normal: whether the weights are drawn as normal values, not as uniform ones.
    """
    defaults = [layer.weight + layer.bias for layer in layers]
    with_scores = [layer.weight + words for layer, words in zip(layers, defaults, strict=True)]
    own = [_own_words(layer.weight, normal=normal) for layer in layers]
    places = [
        sum(defaults) + sum(own[:at]),  # again, when the network is complete
        _twice(defaults, own, at),  # again, layer by layer
        sum(defaults[:at]),  # the defaults themselves
        _twice(with_scores, own, at),
        sum(with_scores) + sum(own[:at]),
        sum(with_scores[:at]),
        sum(own[:at]),  # nothing else
        _twice(with_scores, own, at) - layers[at].weight,  # scores are drawn last
        0,  # the seed was set for this layer
    ]
    return tuple(dict.fromkeys(places))


def numpy_words_before(layers: Sequence[Drawn], at: int, each: int) -> tuple[int, ...]:
    """The same where NumPy draws the weights, from a generator of its own.

    Args:
        layers: as above.
        at: likewise.
        each: how many words a value takes.
    """
    weights = sum(layer.weight for layer in layers[:at])
    biases = sum(layer.bias for layer in layers[:at])
    return tuple(dict.fromkeys((each * (weights + biases), each * weights, 0)))


def _own_words(count: int, *, normal: bool) -> int:
    if not normal:
        return count
    if count < GROUP:  # by another algorithm: pairs of two doubles each
        return 4 * -(-count // 2)
    return count + (GROUP if count % GROUP else 0)  # the last ones are drawn twice (spec 5.5)


def _twice(before: Sequence[int], own: Sequence[int], at: int) -> int:
    """Where each layer draws some words and then its own."""
    return sum(before[: at + 1]) + sum(own[:at])
