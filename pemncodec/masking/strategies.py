"""How frozen weights come from seeded prototypes: the strategies of PEMN (Bai et al., 2022).

A strategy gives every masked layer a prototype and a scale. All values come from the portable
generator, so a file stores a seed where the paper counts fp32 vectors.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from pemncodec.contents import Distribution, SeededFill, SeededPrototype, numel
from pemncodec.values.philox import DISTRIBUTIONS, check_stream

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Initialization:
    """What the values of a prototype are.

    Attributes:
        distribution: "normal" (kaiming normal), "signed-constant" (± its standard deviation) or
            "uniform" (kaiming uniform).
        seed: 64-bit key of the generator.
        rescale: True gives every layer the kaiming scale of its own fan-in; False keeps the scale
            of the layer that a shared prototype was drawn for, as the paper does.
    """

    distribution: Distribution = "normal"
    seed: int = 0
    rescale: bool = False

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            known = ", ".join(DISTRIBUTIONS)
            raise ValueError(f"unknown distribution {self.distribution!r}, have {known}")
        object.__setattr__(self, "seed", operator.index(self.seed))
        check_stream(self.seed, 0)

    def prototype(self, length: int, *, stream: int = 0, period: int = 0) -> SeededPrototype:
        return SeededPrototype(self.distribution, self.seed, length, stream, period)

    def scale(self, shape: Shape) -> float:
        """Kaiming scale for ReLU at the fan-in of `shape`, [out, in, *kernel]; a binary32 value."""
        standard_deviation = math.sqrt(2 / max(numel(shape[1:]), 1))
        # Uniform values lie in (−1, 1), whose standard deviation is 1/√3.
        bound = math.sqrt(3) if self.distribution == "uniform" else 1.0
        return float(np.float32(bound * standard_deviation))


class Strategy(Protocol):
    """Which prototype each layer takes its weights from."""

    def fills(self, shapes: Sequence[Shape], initialization: Initialization) -> list[SeededFill]:
        """A fill for each layer, given the shapes of all of them in the model's order."""
        ...


@dataclass(frozen=True, slots=True)
class OneLayer:
    """Layers of one weight shape share one prototype of their size (paper, section 3.1)."""

    def fills(self, shapes: Sequence[Shape], initialization: Initialization) -> list[SeededFill]:
        streams: dict[Shape, int] = {}
        return [
            SeededFill(
                initialization.prototype(
                    numel(shape), stream=streams.setdefault(shape, len(streams))
                ),
                initialization.scale(shape),
            )
            for shape in shapes
        ]


@dataclass(frozen=True, slots=True)
class MaxLayerPadding:
    """Every layer takes the head of one prototype that is as large as the largest layer (MP)."""

    def fills(self, shapes: Sequence[Shape], initialization: Initialization) -> list[SeededFill]:
        prototype = initialization.prototype(numel(_largest(shapes)))
        return _share(prototype, shapes, initialization)


@dataclass(frozen=True, slots=True)
class RandomPadding:
    """Every layer repeats one short random vector (RP); give `ratio` or `length`.

    Attributes:
        ratio: length of the vector over the size of the largest layer, 0 to 1: int(n · ratio) + 1
            values, at most n.
        length: number of values of the vector.
        mode: "copy" repeats the vector; "shuffle" permutes its repetition over the largest layer,
            the permutation coming from the same seed.
    """

    ratio: float | None = None
    length: int | None = None
    mode: Literal["copy", "shuffle"] = "copy"

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.length is None):
            raise ValueError("RandomPadding takes either a ratio or a length")
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise ValueError(f"the ratio must be from 0 to 1, not {self.ratio}")
        if self.length is not None:
            object.__setattr__(self, "length", operator.index(self.length))
        if self.length is not None and self.length < 1:
            raise ValueError(f"the length must be positive, not {self.length}")
        if self.mode not in ("copy", "shuffle"):
            raise ValueError(f"the mode is copy or shuffle, not {self.mode!r}")

    def fills(self, shapes: Sequence[Shape], initialization: Initialization) -> list[SeededFill]:
        largest = numel(_largest(shapes))
        length = int(largest * self.ratio) + 1 if self.ratio is not None else self.length
        assert length is not None
        length = min(length, largest)
        if self.mode == "shuffle":
            prototype = initialization.prototype(largest, period=length)
        else:
            prototype = initialization.prototype(length)
        return _share(prototype, shapes, initialization)


@dataclass(frozen=True, slots=True)
class Independent:
    """Every layer has values of its own: edge-popup on random weights ("mask" in the paper)."""

    def fills(self, shapes: Sequence[Shape], initialization: Initialization) -> list[SeededFill]:
        return [
            SeededFill(
                initialization.prototype(numel(shape), stream=stream), initialization.scale(shape)
            )
            for stream, shape in enumerate(shapes)
        ]


def _largest(shapes: Sequence[Shape]) -> Shape:
    return max(shapes, key=numel)


def _share(
    prototype: SeededPrototype, shapes: Sequence[Shape], initialization: Initialization
) -> list[SeededFill]:
    largest = _largest(shapes)
    return [
        SeededFill(prototype, initialization.scale(shape if initialization.rescale else largest))
        for shape in shapes
    ]
