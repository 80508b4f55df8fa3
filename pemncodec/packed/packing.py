"""Masked tensors of a file → packed weights, where that makes them smaller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pemncodec.contents import CARRIERS, Prototype, Seeded, StoredPrototype, numel
from pemncodec.format.masked_sections import MaskedValues
from pemncodec.packed.masks_on_device import masks_on_device
from pemncodec.packed.recipe import Recipe
from pemncodec.packed.shared import Shared
from pemncodec.packed.two_values import two_values
from pemncodec.packed.weight import PackedWeight
from pemncodec.tensors import array_to_tensor
from pemncodec.values.fill import prototype_values
from pemncodec.values.generators import generator_of
from pemncodec.values.rounding import widen

_HELD_SHARE = 8  # a prototype whose values can be made again is held if it is so much smaller
_SMALLER = 2  # how much smaller packed weights are at least


def pack_weights(
    masked: Sequence[MaskedValues], device: torch.device | str = "cpu"
) -> dict[str, PackedWeight]:
    """Packed weights by name; not those that would hardly be smaller than dense ones.

    Args:
        masked: tensors of one file.
        device: where their bits and prototypes are.
    """
    device = torch.device(device)
    users: dict[int, list[MaskedValues]] = {}
    for values in masked:
        users.setdefault(values.row.fill.prototype, []).append(values)
    sources: dict[str, _Source] = {}
    for together in users.values():
        count = sum(numel(values.row.shape) for values in together)
        source = _source_of(together[0].prototype(), together, count)
        dense = sum(
            numel(values.row.shape) * CARRIERS[values.row.dtype].itemsize for values in together
        )
        if _SMALLER * (count / 8 + source.nbytes) <= dense:
            source = source.moved(device)
            sources |= {values.row.name: source for values in together}
    chosen = [values for values in masked if values.row.name in sources]
    shared = Shared()
    return {
        values.row.name: _packed(values, sources[values.row.name], bits, shared)
        for values, bits in zip(chosen, masks_on_device(device, chosen), strict=True)
    }


@dataclass(frozen=True, slots=True)
class _Source:
    """Where several weights take their values from: a tensor, or a seed."""

    prototype: Tensor | None = None
    signs: int = 0
    magnitude: float = 1.0
    seeded: Seeded | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self.prototype is None else self.prototype.nbytes

    def moved(self, device: torch.device) -> _Source:
        """The same one on a device."""
        if self.prototype is None:
            return self
        return replace(self, prototype=self.prototype.to(device))


def _source_of(prototype: Prototype, users: Sequence[MaskedValues], taken: int) -> _Source:
    signed = _signed_source(prototype, users)
    if signed is not None and signed.nbytes <= taken:
        return signed
    if isinstance(prototype, StoredPrototype):
        return _Source(array_to_tensor(prototype.values, prototype.dtype))
    large = 4 * prototype.length * _HELD_SHARE > 4 * taken
    if large and generator_of(prototype).is_sliceable(prototype):
        return _Source(seeded=prototype)
    return _Source(torch.from_numpy(prototype_values(prototype)))


def _signed_source(prototype: Prototype, users: Sequence[MaskedValues]) -> _Source | None:
    """The signs of values that are all one constant with signs; None of others."""
    dtype = prototype.dtype if isinstance(prototype, StoredPrototype) else "float32"
    two = two_values(prototype, users, prototype.length)
    if two is None or two.places.size or dtype == "float64":
        return None  # binary32, in which products are computed, does not hold all of float64
    positive, negative = widen(two.pair, dtype)  # the bits of a negative number are larger
    if not (positive == -negative and 0 < positive < np.inf):
        return None
    return _Source(torch.from_numpy(~two.bits), two.count, float(positive))


def _packed(values: MaskedValues, source: _Source, bits: Tensor, shared: Shared) -> PackedWeight:
    row = values.row
    scale = row.fill.scale
    if source.signs:
        scale = float(np.float32(source.magnitude) * np.float32(scale))
    recipe = Recipe(row.shape, row.dtype, row.fill.offset, scale, source.signs, source.seeded)
    return PackedWeight(bits, source.prototype, recipe, getattr(torch, row.dtype), shared)
