"""What masks are coded with: how large the values of their prototypes are (spec section 6.4)."""

from __future__ import annotations

from functools import partial
from typing import TypeGuard

from pemncodec.coders.buckets import buckets_of_slices, value_buckets
from pemncodec.coders.mask_coder import Buckets
from pemncodec.contents import Prototype, SeededPrototype
from pemncodec.values.fill import prototype_values, seeded_slice

HELD_VALUES = 1 << 20
"""Values of a seeded prototype; longer ones are made slice by slice where that is possible."""


def prototype_buckets(prototype: Prototype) -> Buckets:
    """uint8 [L]: how large each value of a prototype is among all of them."""
    if is_made_in_slices(prototype):
        return buckets_of_slices(prototype.length, partial(seeded_slice, prototype))
    return value_buckets(prototype_values(prototype))


def is_made_in_slices(prototype: object) -> TypeGuard[SeededPrototype]:
    """Whether a prototype's values are better made where they are needed than held."""
    return (
        isinstance(prototype, SeededPrototype)
        and not prototype.period
        and prototype.length > HELD_VALUES
    )
