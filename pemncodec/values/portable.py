"""Prototypes of the portable generator to values (spec/pemn.md sections 5.1 and 5.2)."""

from __future__ import annotations

from pemncodec.contents import Floats, PackedMask, SeededPrototype
from pemncodec.values.philox import (
    DISTRIBUTIONS,
    check_stream,
    generate,
    masked_normal,
    permutation,
)


def make_values(prototype: SeededPrototype, start: int, stop: int, scale: float) -> Floats:
    """Values `start` to `stop`, scaled, float32 [stop - start]."""
    kind, seed, stream = prototype.distribution, prototype.seed, prototype.stream
    if is_sliceable(prototype):
        return generate(kind, seed, start, stop, stream=stream, scale=scale)
    period = prototype.period
    values = generate(kind, seed, 0, period, stream=stream, scale=scale)
    order = permutation(seed, period, prototype.length, stream=stream)
    return values[order[start:stop] % period]


def is_sliceable(prototype: SeededPrototype) -> bool:
    """Whether a slice costs what its own values cost: a shuffled one needs the permutation."""
    return not prototype.period


def fill_masked(
    prototype: SeededPrototype, start: int, packed_mask: PackedMask, out: Floats, scale: float
) -> bool:
    """Values from `start` on where a mask has ones, +0.0 elsewhere, where a kernel does both.

    Returns:
        False, and nothing is done, where no kernel does.
    """
    if prototype.distribution != "normal" or not is_sliceable(prototype):
        return False
    seed, stream = prototype.seed, prototype.stream
    masked_normal(seed, start, packed_mask, out, stream=stream, scale=scale)
    return True


def check_prototype(prototype: SeededPrototype) -> None:
    """Raises ValueError unless every field is in its range."""
    if prototype.distribution not in DISTRIBUTIONS:
        raise ValueError(f"unknown distribution {prototype.distribution!r:.60}")
    if prototype.length < 1:
        raise ValueError(f"a prototype's length must be positive, not {prototype.length}")
    if not 0 <= prototype.period <= prototype.length:
        raise ValueError(
            f"a prototype's period must be from 0 to its length, not {prototype.period}"
        )
    check_stream(prototype.seed, prototype.stream)
