"""Every kind of prototype that is made from a seed, and what makes its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pemncodec.contents import Floats, PackedMask, Seeded, SeededPrototype, TorchPrototype
from pemncodec.values import portable, torch_cpu


@dataclass(frozen=True, slots=True)
class Generator:
    """What makes the values of one kind of prototype.

    Attributes:
        values: (prototype, start, stop, scale) to float32 [stop - start], each value multiplied by
            the scale in binary32.
        is_sliceable: whether a slice of a prototype costs what its own values cost. Others are
            made whole, and held.
        fill_masked: (prototype, start, packed mask, out float32 [n], scale) writes values where
            the mask has ones and +0.0 elsewhere, or returns False where it has no faster way than
            `values`.
        shared: what several prototypes are made with, and what is worth holding for as long as
            values are needed; None where there is nothing.
        check: raises ValueError where a field of a prototype is out of range.
    """

    values: Callable[[Any, int, int, float], Floats]
    is_sliceable: Callable[[Any], bool]
    fill_masked: Callable[[Any, int, PackedMask, Floats, float], bool]
    shared: Callable[[Any], object | None]
    check: Callable[[Any], None]


GENERATORS: Mapping[type, Generator] = MappingProxyType(
    {
        SeededPrototype: Generator(
            portable.make_values,
            portable.is_sliceable,
            portable.fill_masked,
            lambda _: None,
            portable.check_prototype,
        ),
        TorchPrototype: Generator(
            torch_cpu.make_values,
            torch_cpu.is_sliceable,
            torch_cpu.fill_masked,
            torch_cpu.shared_words,
            torch_cpu.check_prototype,
        ),
    }
)
"""By the class of the prototype. What makes values on a device is in `values/on_device.py`."""


def generator_of(prototype: Seeded) -> Generator:
    """What makes a prototype's values."""
    return GENERATORS[type(prototype)]


def seeded_slice(prototype: Seeded, start: int, stop: int, scale: float = 1.0) -> Floats:
    """Values `start` to `stop` of a prototype, scaled in binary32, float32 [stop - start]."""
    return generator_of(prototype).values(prototype, start, stop, scale)


def check_prototype(prototype: Seeded) -> None:
    """Raises ValueError unless every field of a prototype is in its range."""
    generator_of(prototype).check(prototype)
