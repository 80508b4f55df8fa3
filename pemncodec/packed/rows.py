"""Some rows of a packed matrix, from their bits alone: for embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from pemncodec.packed.devices import bits_at, magnitude, scale_on
from pemncodec.packed.expansion import array_of, values_of
from pemncodec.packed.recipe import Recipe

_SHARE, _SEEDED_SHARE = 16, 64
"""With more than one of so many rows it is faster to expand all."""


def takes_rows(recipe: Recipe, bits: Tensor, indices: Tensor) -> bool:
    """Whether `take_rows` takes so many rows of a weight, and is faster than to expand it."""
    if len(recipe.shape) != 2 or recipe.count == 0:
        return False
    if indices.dtype not in (torch.int32, torch.int64) or indices.device != bits.device:
        return False  # PyTorch says so of dense weights
    if recipe.seeded is None:
        return indices.numel() * _SHARE <= recipe.shape[0]
    return (
        type(bits) is Tensor
        and bits.device.type == "cpu"
        and (indices.numel() * _SEEDED_SHARE <= recipe.shape[0])
    )


def take_rows(
    recipe: Recipe, bits: Tensor, prototype: Tensor | None, dtype: torch.dtype, indices: Tensor
) -> Tensor:
    """Rows of a weight, [*shape of the indices, columns], with the bits that expanding gives.

    Args:
        recipe: of a weight [rows, columns] that `takes_rows` agrees to.
        bits: of the weight.
        prototype: of the weight.
        dtype: of the result.
        indices: of rows, integers.

    Raises:
        IndexError: there is no such row.
    """
    if type(bits) is Tensor and bits.device.type == "cpu" and indices.numel():
        lowest, highest = torch.aminmax(indices)
        if lowest < 0 or highest >= recipe.shape[0]:
            raise IndexError("index out of range in self")  # as of a dense weight
    if recipe.seeded is not None:
        return _seeded_rows(recipe, bits, indices).to(dtype)
    assert prototype is not None
    columns = torch.arange(recipe.shape[1], device=bits.device)
    places = indices.long()[..., None] * recipe.shape[1] + columns
    if recipe.signs:
        signs = bits_at(prototype, (places + recipe.offset) % recipe.signs)
        constant = torch.full((), magnitude(recipe), dtype=dtype, device=bits.device)
        values = torch.where(signs, constant, -constant)
    else:
        values = scale_on(prototype[(places + recipe.offset) % prototype.numel()], recipe)
    return torch.where(bits_at(bits, places), values, 0.0).to(dtype)


def _seeded_rows(recipe: Recipe, bits: Tensor, indices: Tensor) -> Tensor:
    values, packed, columns = values_of(recipe, None), bits.numpy(), recipe.shape[1]
    which, places = torch.unique(indices, return_inverse=True)
    rows = torch.empty(which.numel(), columns, dtype=getattr(torch, recipe.dtype))
    scratch = torch.empty(columns + 7, dtype=rows.dtype)  # from the byte in which a row begins
    for row, index in zip(rows, which.tolist(), strict=True):
        stop = (index + 1) * columns
        first = index * columns // 8
        own = scratch[: stop - 8 * first]
        values.fill_masked(8 * first, packed[first : -(-stop // 8)], array_of(own))
        row.copy_(own[-columns:])
    return rows[places]
