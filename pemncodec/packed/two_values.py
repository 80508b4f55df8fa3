"""Prototypes of two values, such as signed constants: a bit for each, in modules and in exports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pemncodec.coders.packed import unpack
from pemncodec.contents import (
    Array,
    Mask,
    PackedMask,
    Prototype,
    Seeded,
    StoredPrototype,
    bits_of,
    numel,
)
from pemncodec.format.masked_sections import MaskedValues
from pemncodec.values.fill import prototype_values, used_values
from pemncodec.values.generators import generator_of, seeded_slice

_SLICE: Final = 1 << 16  # values looked at together; a multiple of 8
_FEW_SHARE: Final = 256  # of values, at most one of so many is neither of the two


@dataclass(frozen=True, slots=True, eq=False)
class TwoValues:
    """Values of which all but a few are one of two.

    Attributes:
        bits: uint8 [ceil(values / 8)], 1 for the second of the two.
        count: of the values.
        pair: [2], in the carrier dtype of the prototype, in the order of their bits.
        places: int32, of the few: signs of random numbers are seldom 0.
        others: these values, in the carrier dtype of the prototype.
    """

    bits: PackedMask
    count: int
    pair: Array
    places: npt.NDArray[np.int32]
    others: Array

    @property
    def nbytes(self) -> int:
        """Of all but the pair."""
        return self.bits.nbytes + self.places.nbytes + self.others.nbytes


def two_values(prototype: Prototype, users: Sequence[MaskedValues], count: int) -> TwoValues | None:
    """The values of a prototype, if nearly all are one of two; those that no mask uses may change.

    Args:
        prototype: of one file.
        users: all tensors that take its values.
        count: how many of them, from the first on; at least one.
    """
    if isinstance(prototype, Seeded) and "sign" not in prototype.distribution:
        return None
    pair: Array | None = None
    used: Mask | None = None  # where that matters
    packed: list[PackedMask] = []
    places: list[npt.NDArray[np.int32]] = []
    others: list[Array] = []
    for start, values in _slices(prototype, count):
        pair = _commonest(values) if pair is None else pair
        if pair is None:
            return None
        bits, (first, second) = bits_of(values), bits_of(pair)
        neither = (bits != first) & (bits != second)
        if isinstance(prototype, StoredPrototype) and neither.any():
            used = _used(prototype, users) if used is None else used
            neither &= used[start : start + values.size]
        packed.append(np.packbits(bits == second, bitorder="little"))
        places.append((start + np.flatnonzero(neither)).astype(np.int32))
        others.append(values[neither])
        if sum(map(len, places)) > count // _FEW_SHARE:
            return None
    assert pair is not None
    which = np.concatenate(packed)
    return TwoValues(which, count, pair, np.concatenate(places), np.concatenate(others))


def _commonest(values: Array) -> Array | None:
    """Two of them that are half of all or more."""
    bits = bits_of(values)
    # A stored value that no mask uses is +0.0, and is asked for later.
    known = bits[bits != 0] if np.unique(bits[bits != 0]).size > 1 else bits
    kinds, counts = np.unique(known, return_counts=True)
    two = np.sort(np.argsort(counts)[-2:])
    if two.size < 2 or 2 * counts[two].sum() < known.size:
        return None
    return kinds[two].view(values.dtype)


def _used(prototype: Prototype, users: Sequence[MaskedValues]) -> Mask:
    """Which values of a prototype some mask uses, bool [length]."""
    fills = ((m.row.fill.offset, unpack(m.packed_mask(), numel(m.row.shape))) for m in users)
    return used_values(prototype.length, fills)


def _slices(prototype: Prototype, count: int) -> Iterator[tuple[int, Array]]:
    """The first values of a prototype, in parts, and where each begins."""
    starts = range(0, count, _SLICE)
    if isinstance(prototype, Seeded) and generator_of(prototype).is_sliceable(prototype):
        for start in starts:
            yield start, seeded_slice(prototype, start, min(start + _SLICE, count))
    else:
        values = prototype_values(prototype)[:count]
        for start in starts:
            yield start, values[start : start + _SLICE]
