"""What masks are coded with: how large the values of their prototypes are (spec section 6.4)."""

from __future__ import annotations

from functools import partial

from pemncodec.coders.buckets import buckets_of_slices, value_buckets
from pemncodec.coders.mask_coder import Buckets
from pemncodec.contents import Prototype
from pemncodec.values.fill import is_made_in_slices, prototype_values
from pemncodec.values.generators import seeded_slice


def prototype_buckets(prototype: Prototype) -> Buckets:
    """uint8 [L]: how large each value of a prototype is among all of them."""
    if is_made_in_slices(prototype):
        return buckets_of_slices(prototype.length, partial(seeded_slice, prototype))
    return value_buckets(prototype_values(prototype))
