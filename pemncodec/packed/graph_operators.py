"""Expansion and products as operators of the graphs that torch.compile and torch.export make."""

from __future__ import annotations

import torch
from torch import Tensor

from pemncodec.packed.expansion import expand
from pemncodec.packed.product import multiply, multiply_columns
from pemncodec.packed.recipe import parse_recipe


@torch.library.custom_op(
    "pemncodec::expand",
    mutates_args=(),
    schema="(Tensor bits, Tensor? prototype, str recipe, ScalarType dtype) -> Tensor",
)
def expand_in_graph(
    bits: Tensor, prototype: Tensor | None, recipe: str, dtype: torch.dtype
) -> Tensor:
    """As `expand`, with a recipe's text."""
    return expand(parse_recipe(recipe), bits, prototype, dtype)


@expand_in_graph.register_fake
def _(bits: Tensor, _: Tensor | None, recipe: str, dtype: torch.dtype) -> Tensor:
    return bits.new_empty(parse_recipe(recipe).count, dtype=dtype)


@torch.library.custom_op(
    "pemncodec::multiply",
    mutates_args=(),
    schema="(Tensor bits, Tensor prototype, str recipe, Tensor inputs) -> Tensor",
)
def multiply_in_graph(bits: Tensor, prototype: Tensor, recipe: str, inputs: Tensor) -> Tensor:
    """As `multiply`, with a recipe's text."""
    return multiply(parse_recipe(recipe), bits, prototype, inputs)


@multiply_in_graph.register_fake
def _(_bits: Tensor, _prototype: Tensor, recipe: str, inputs: Tensor) -> Tensor:
    return inputs.new_empty(inputs.shape[0], parse_recipe(recipe).shape[0])


@torch.library.custom_op(
    "pemncodec::multiply_columns",
    mutates_args=(),
    schema="(Tensor bits, Tensor prototype, str recipe, Tensor inputs) -> Tensor",
)
def multiply_columns_in_graph(
    bits: Tensor, prototype: Tensor, recipe: str, inputs: Tensor
) -> Tensor:
    """As `multiply_columns`, with a recipe's text."""
    return multiply_columns(parse_recipe(recipe), bits, prototype, inputs)


@multiply_columns_in_graph.register_fake
def _(_bits: Tensor, _prototype: Tensor, recipe: str, inputs: Tensor) -> Tensor:
    return inputs.new_empty(inputs.shape[0], parse_recipe(recipe).shape[1])
