"""Bits and a prototype → dense weights, with the bits that `decode` gives them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pemncodec.contents import CARRIERS, Array, Fill, PackedMask, StoredPrototype
from pemncodec.packed.devices import expand_on_device
from pemncodec.packed.recipe import Recipe
from pemncodec.packed.workspace import Workspace
from pemncodec.tensors import dtype_name
from pemncodec.values.fill import RepeatedValues, SeededValues, tensor_values
from pemncodec.values.rounding import round_to

_AT_ONCE = 1 << 16  # weights made at one time; a multiple of 8
_CACHED_BYTES = 1 << 22
"""A weight that a cache can hold is made in small parts: the kernel stores larger ones past the
caches, and the layer reads them at once."""


def expand(
    recipe: Recipe,
    bits: Tensor,
    prototype: Tensor | None,
    dtype: torch.dtype,
    workspace: Workspace | None = None,
) -> Tensor:
    """Effective weights [n], on the device of the bits.

    Args:
        recipe: how they are made.
        bits: uint8 [ceil(n / 8)], of the mask.
        prototype: of any float dtype [length]; uint8 [ceil(length / 8)] of signs, 1 for +1; None
            where the recipe has a seed.
        dtype: of the result.
        workspace: whose memory the result takes, on the CPU.
    """
    if bits.device.type != "cpu":
        return expand_on_device(recipe, bits, prototype, dtype)
    if workspace is None:
        out = torch.empty(recipe.count, dtype=dtype)
    else:
        out = workspace.empty(recipe.count, dtype)
    fill_weights(recipe, bits, prototype, out)
    return out


def fill_weights(recipe: Recipe, bits: Tensor, prototype: Tensor | None, out: Tensor) -> None:
    """As `expand`, on the CPU into `out` [n]."""
    values, packed = values_of(recipe, prototype), bits.numpy()
    stored_dtype = getattr(torch, recipe.dtype)
    if out.dtype == stored_dtype:
        array = array_of(out)
        if isinstance(values, RepeatedValues):
            read_next = array.nbytes <= _CACHED_BYTES
            values.fill_all(packed, array, read_next, torch.get_num_threads())
            return
        step = _AT_ONCE if array.nbytes <= _CACHED_BYTES else max(recipe.count, 1)
        for start in range(0, recipe.count, step):
            mask = packed[start // 8 : -(-(start + step) // 8)]
            values.fill_masked(start, mask, array[start : start + step])
        return
    stored = torch.empty(min(_AT_ONCE, recipe.count), dtype=stored_dtype)
    for start in range(0, recipe.count, _AT_ONCE):
        part = out[start : start + _AT_ONCE]
        own = stored[: part.numel()]
        values.fill_masked(start, packed[start // 8 : (start + _AT_ONCE) // 8], array_of(own))
        part.copy_(own)


def array_of(tensor: Tensor) -> Array:
    """The memory of a contiguous tensor on the CPU, in the carrier dtype."""
    if not tensor.numel():
        return np.empty(0, CARRIERS[dtype_name(tensor)])
    return tensor.view(torch.uint8).numpy().view(CARRIERS[dtype_name(tensor)])


def values_of(
    recipe: Recipe, prototype: Tensor | None
) -> RepeatedValues | SeededValues | SignedValues:
    """What makes the values of a weight, in the dtype of the recipe, on the CPU."""
    fill = Fill(0, recipe.offset, recipe.scale)
    if recipe.seeded is not None:
        return SeededValues(recipe.seeded, fill, recipe.dtype)
    assert prototype is not None
    if recipe.signs:
        return SignedValues(recipe, prototype.numpy())
    stored = StoredPrototype(array_of(prototype), dtype_name(prototype))
    return tensor_values(stored, fill, recipe.dtype, recipe.count)


@dataclass(frozen=True, slots=True, eq=False)
class SignedValues:
    """The values of a weight that are a constant with signs.

    Attributes:
        recipe: of the weight.
        signs: uint8 [ceil(length / 8)], 1 for the constant itself.
    """

    recipe: Recipe
    signs: PackedMask

    def fill_masked(self, start: int, packed_mask: PackedMask, out: Array) -> None:
        """As `RepeatedValues.fill_masked`."""
        constant = np.array([-self.recipe.scale, self.recipe.scale], np.float32)
        negative, positive = round_to(constant, self.recipe.dtype)
        for done in range(0, out.size, _AT_ONCE):
            part = out[done : done + _AT_ONCE]
            positives = self._signs(self.recipe.offset + start + done, part.size)
            values = np.where(positives, positive, negative)
            RepeatedValues(values, 0).fill_masked(
                0, packed_mask[done // 8 : (done + _AT_ONCE) // 8], part
            )

    def _signs(self, start: int, count: int) -> PackedMask:
        """So many signs, one a byte."""
        length, parts = self.recipe.signs, []
        while count:
            start %= length
            stop = min(start + count, length)
            packed = self.signs[start // 8 : -(-stop // 8)]
            unpacked = np.unpackbits(packed, bitorder="little")
            parts.append(unpacked[start % 8 :][: stop - start])
            count -= stop - start
            start = stop
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
