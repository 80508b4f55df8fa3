"""A weight that is bits and a prototype, and to whoever uses it a tensor like any other."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from pemncodec.packed.expansion import expand
from pemncodec.packed.graph_operators import (
    expand_in_graph,
    multiply_columns_in_graph,
    multiply_in_graph,
)
from pemncodec.packed.product import multiplies, multiplies_columns, multiply, multiply_columns
from pemncodec.packed.read_only import ReadOnlyTensor
from pemncodec.packed.recipe import Recipe, parse_recipe
from pemncodec.packed.shared import Shared


class PackedWeight(ReadOnlyTensor):
    """A frozen weight of a decoded network, with the shape, dtype and device of the dense one.

    Operators see its values: those of `pemncodec.packed.operators` work on the bits, and for all
    others it is expanded. Nothing writes into it but `copy_` of another one of the same recipe.

    Attributes:
        bits: uint8 [ceil(n / 8)], weight i in bit i % 8 of byte i // 8; 1 where it is used.
        prototype: float [length], or uint8 [ceil(length / 8)] of signs; None where the recipe has
            a seed. Weights that share one have the same tensor.
        recipe: how both become values.
        shared: with the other weights of its module.
        transposed: whether this is a matrix of the recipe's, transposed.
    """

    bits: Tensor
    prototype: Tensor | None
    recipe: Recipe
    shared: Shared
    transposed: bool

    @staticmethod
    def __new__(
        cls,
        bits: Tensor,
        prototype: Tensor | None,
        recipe: Recipe,
        dtype: torch.dtype,
        shared: Shared,
        transposed: bool = False,
    ) -> PackedWeight:
        shape = recipe.shape[::-1] if transposed else recipe.shape
        strides = (1, recipe.shape[1]) if transposed else None
        return Tensor._make_wrapper_subclass(
            cls, shape, strides=strides, dtype=dtype, device=bits.device
        )

    def __init__(
        self,
        bits: Tensor,
        prototype: Tensor | None,
        recipe: Recipe,
        dtype: torch.dtype,  # noqa: ARG002 of the tensor, made before
        shared: Shared,
        transposed: bool = False,
    ) -> None:
        self.bits = bits
        self.prototype = prototype
        self.recipe = recipe
        self.transposed = transposed
        self.shared = shared

    def with_parts(
        self,
        bits: Tensor,
        prototype: Tensor | None,
        dtype: torch.dtype | None = None,
        transposed: bool | None = None,
    ) -> PackedWeight:
        """The same weight of other tensors."""
        return PackedWeight(
            bits,
            prototype,
            self.recipe,
            dtype or self.dtype,
            self.shared,
            self.transposed if transposed is None else transposed,
        )

    def dense(self) -> Tensor:
        """Its values as an ordinary tensor, in memory that nobody else holds now."""
        if type(self.bits) is Tensor:
            workspace = self.shared.workspace
            flat = expand(self.recipe, self.bits, self.prototype, self.dtype, workspace)
        else:  # stands for it while something is traced
            flat = expand_in_graph(self.bits, self.prototype, self.recipe.text, self.dtype)
        values = flat.view(self.recipe.shape)
        return values.t() if self.transposed else values

    def times(self, inputs: Tensor) -> Any:
        """Inputs [batch, n] times this matrix [n, m]; NotImplemented if it is better expanded for
        that, or if they do not fit, which PyTorch says of dense weights."""
        recipe, prototype, transposed = self.recipe, self.prototype, self.transposed
        suits = multiplies if transposed else multiplies_columns
        if self.dim() != 2 or inputs.dim() != 2 or inputs.shape[1] != self.shape[0]:
            return NotImplemented
        if (self.dtype, self.device) != (inputs.dtype, inputs.device):
            return NotImplemented
        if not suits(recipe, prototype, inputs):
            return NotImplemented
        assert prototype is not None
        if type(self.bits) is Tensor:
            product = multiply if transposed else multiply_columns
            return product(recipe, self.bits, prototype, inputs)
        in_graph = multiply_in_graph if transposed else multiply_columns_in_graph
        return in_graph(self.bits, prototype, recipe.text, inputs)

    # ------------------------------------------------------------------ what PyTorch asks for

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Recipe, torch.dtype, bool]]:
        names = ["bits"] if self.prototype is None else ["bits", "prototype"]
        return names, (self.recipe, self.dtype, self.transposed)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor],
        context: tuple[Recipe, torch.dtype, bool],
        outer_size: Any,
        outer_stride: Any,
    ) -> PackedWeight:
        recipe, dtype, transposed = context
        parts = inner["bits"], inner.get("prototype")
        return PackedWeight(*parts, recipe, dtype, Shared(), transposed)

    def requires_grad_(self, requires_grad: bool = True) -> PackedWeight:
        """Raises RuntimeError if it is to be trained."""
        if requires_grad:
            raise RuntimeError(
                "a packed weight cannot be trained: unpack the module (pemncodec.unpack), or train "
                "its masks with pemncodec.masking"
            )
        return self

    def share_memory_(self) -> PackedWeight:
        """Moves bits and prototype to memory that processes can share."""
        for tensor in (self.bits, self.prototype):
            if tensor is not None:
                tensor.share_memory_()  # type: ignore[no-untyped-call]
        return self

    def _stable_hash_for_caching(self) -> str:
        return repr((self.recipe.text, self.dtype, self.transposed, self.device))

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        if id(self) not in memo:
            parts = copy.deepcopy((self.bits, self.prototype, self.shared), memo)
            bits, prototype, shared = parts
            weight = PackedWeight(bits, prototype, self.recipe, self.dtype, shared, self.transposed)
            memo[id(self)] = self._like(weight)
        copied: PackedWeight = memo[id(self)]
        return copied

    def _like(self, other: PackedWeight) -> PackedWeight:
        # That it is a parameter is an attribute of the tensor.
        if isinstance(self, torch.nn.Parameter):
            other._is_param = True
        return other

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        is_parameter = isinstance(self, torch.nn.Parameter)
        parts = (self.bits, self.prototype, self.recipe.text, self.dtype, self.shared)
        return _rebuilt, (*parts, self.transposed, is_parameter)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return (
            f"PackedWeight({tuple(self.shape)}, {self.dtype}, {self.source_in_words}, "
            f"device={str(self.device)!r})"
        )

    @property
    def source_in_words(self) -> str:
        """Where its values come from, on one line."""
        recipe = self.recipe
        if recipe.seeded is not None:
            return recipe.seeded.in_words
        if recipe.signs:
            return f"±{recipe.scale:.6g} by {recipe.signs:,} signs"
        assert self.prototype is not None
        return f"{self.prototype.numel():,} values × {recipe.scale:.6g}"


def _rebuilt(
    bits: Tensor,
    prototype: Tensor | None,
    recipe: str,
    dtype: torch.dtype,
    shared: Shared,
    transposed: bool,
    is_parameter: bool,
) -> PackedWeight:
    weight = PackedWeight(bits, prototype, parse_recipe(recipe), dtype, shared, transposed)
    if is_parameter:
        weight._is_param = True
    return weight
