"""A weight that is bits and a prototype, and to whoever uses it a tensor like any other."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pemncodec.packed.expansion import expand
from pemncodec.packed.product import multiplies, multiply
from pemncodec.packed.prototypes import copied, same_prototype
from pemncodec.packed.recipe import Recipe, parse_recipe
from pemncodec.packed.rows import take_rows, takes_rows
from pemncodec.packed.workspace import shared_workspace

_aten = torch.ops.aten


class PackedWeight(Tensor):
    """A frozen weight of a decoded network, with the shape, dtype and device of the dense one.

    Operators see its values: those of `pemncodec.packed.operators` work on the bits, and for all
    others it is expanded. Nothing writes into it but `copy_` of another one of the same recipe.

    Attributes:
        bits: uint8 [ceil(n / 8)], weight i in bit i % 8 of byte i // 8; 1 where it is used.
        prototype: float [length], or uint8 [ceil(length / 8)] of signs; None where the recipe has
            a seed. Weights that share one have the same tensor.
        recipe: how both become values.
        transposed: whether this is a matrix of the recipe's, transposed.
    """

    bits: Tensor
    prototype: Tensor | None
    recipe: Recipe
    transposed: bool

    @staticmethod
    def __new__(
        cls,
        bits: Tensor,
        prototype: Tensor | None,
        recipe: Recipe,
        dtype: torch.dtype,
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
        transposed: bool = False,
    ) -> None:
        self.bits = bits
        self.prototype = prototype
        self.recipe = recipe
        self.transposed = transposed
        self.workspace = shared_workspace()

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
            self.transposed if transposed is None else transposed,
        )

    def dense(self) -> Tensor:
        """Its values as an ordinary tensor, in memory that nobody else holds now."""
        if type(self.bits) is Tensor:
            flat = expand(self.recipe, self.bits, self.prototype, self.dtype, self.workspace)
        else:  # stands for it while something is traced
            flat = _expand(self.bits, self.prototype, self.recipe.text, self.dtype)
        values = flat.view(self.recipe.shape)
        return values.t() if self.transposed else values

    def times(self, inputs: Tensor) -> Any:
        """Inputs [batch, columns] times the transposed weight; NotImplemented if it is better
        expanded for that."""
        recipe, prototype = self.recipe, self.prototype
        if self.dtype != inputs.dtype or not multiplies(recipe, prototype, inputs):
            return NotImplemented
        assert prototype is not None
        if type(self.bits) is Tensor:
            return multiply(recipe, self.bits, prototype, inputs)
        return _multiply(self.bits, prototype, recipe.text, inputs)

    # ------------------------------------------------------------------ what PyTorch asks for

    # What is called with it comes to `__torch_dispatch__`, the same as for other tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # torch.compile would look into all Python code that runs below a compiled module.
        if "torch._dynamo" in sys.modules and not _UNTRACED:
            _UNTRACED.append(torch.compiler.disable(_call))  # type: ignore[no-untyped-call]
        call = _UNTRACED[0] if _UNTRACED else _call
        return call(func, args, kwargs or {})

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
        return PackedWeight(inner["bits"], inner.get("prototype"), *context)

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
            bits, prototype = copy.deepcopy((self.bits, self.prototype), memo)
            memo[id(self)] = self._like(self.with_parts(bits, prototype))
        copied: PackedWeight = memo[id(self)]
        return copied

    def _like(self, other: PackedWeight) -> PackedWeight:
        # That it is a parameter is an attribute of the tensor.
        if isinstance(self, torch.nn.Parameter):
            other._is_param = True
        return other

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        is_parameter = isinstance(self, torch.nn.Parameter)
        parts = (self.bits, self.prototype, self.recipe.text, self.dtype, self.transposed)
        return _rebuilt, (*parts, is_parameter)

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
    transposed: bool,
    is_parameter: bool,
) -> PackedWeight:
    weight = PackedWeight(bits, prototype, parse_recipe(recipe), dtype, transposed)
    if is_parameter:
        weight._is_param = True
    return weight


def _call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    special = OPERATORS.get(func)
    if special is not None:
        result = special(*args, **kwargs)
        if result is not NotImplemented:
            return result
    if func._schema.is_mutable:
        _refuse_writing(func, args, kwargs)
    if func.overloadpacket in _DECOMPOSED:
        return func.decompose(*args, **kwargs)
    return func(*map(_dense, args), **{name: _dense(value) for name, value in kwargs.items()})


def _dense(value: Any) -> Any:
    if isinstance(value, PackedWeight):
        return value.dense()
    return [_dense(item) for item in value] if isinstance(value, list) else value


_UNTRACED: list[Callable[..., Any]] = []  # `_call` once there is a torch.compile


def _refuse_writing(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises RuntimeError if an operator would write into a packed weight."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            if any(isinstance(one, PackedWeight) for one in _listed(given)):
                raise RuntimeError(
                    f"{func}: a packed weight cannot be written to; unpack the module first "
                    "(pemncodec.unpack)"
                )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@torch.library.custom_op(
    "pemncodec::expand",
    mutates_args=(),
    schema="(Tensor bits, Tensor? prototype, str recipe, ScalarType dtype) -> Tensor",
)
def _expand(bits: Tensor, prototype: Tensor | None, recipe: str, dtype: torch.dtype) -> Tensor:
    """`expand` for graphs that torch.compile or torch.export make."""
    return expand(parse_recipe(recipe), bits, prototype, dtype)


@_expand.register_fake
def _(bits: Tensor, _: Tensor | None, recipe: str, dtype: torch.dtype) -> Tensor:
    return bits.new_empty(parse_recipe(recipe).count, dtype=dtype)


@torch.library.custom_op(
    "pemncodec::multiply",
    mutates_args=(),
    schema="(Tensor bits, Tensor prototype, str recipe, Tensor inputs) -> Tensor",
)
def _multiply(bits: Tensor, prototype: Tensor, recipe: str, inputs: Tensor) -> Tensor:
    """`multiply` for graphs."""
    return multiply(parse_recipe(recipe), bits, prototype, inputs)


@_multiply.register_fake
def _(_bits: Tensor, _prototype: Tensor, recipe: str, inputs: Tensor) -> Tensor:
    return inputs.new_empty(inputs.shape[0], parse_recipe(recipe).shape[0])


# ------------------------------------------------------------------------------- operators


def _detach(weight: PackedWeight) -> PackedWeight:
    return weight.with_parts(weight.bits, weight.prototype)


def _clone(weight: PackedWeight, *, memory_format: torch.memory_format | None = None) -> Any:
    if memory_format not in (None, torch.preserve_format):
        return NotImplemented
    prototype = weight.prototype
    return weight.with_parts(weight.bits.clone(), None if prototype is None else prototype.clone())


def _to_copy(
    weight: PackedWeight,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    non_blocking: bool = False,
    **_: Any,
) -> Any:
    if dtype is not None and not dtype.is_floating_point:
        return NotImplemented
    device = weight.device if device is None else torch.device(device)
    bits = weight.bits.to(device, copy=True, non_blocking=non_blocking)
    return weight.with_parts(bits, copied(weight.prototype, device), dtype)


def _transposed(weight: PackedWeight) -> Any:
    if len(weight.recipe.shape) != 2:
        return NotImplemented
    return weight.with_parts(weight.bits, weight.prototype, transposed=not weight.transposed)


def _copy(target: Any, source: Any, non_blocking: bool = False) -> Any:
    if not (isinstance(target, PackedWeight) and isinstance(source, PackedWeight)):
        return NotImplemented
    if (source.recipe, source.transposed) != (target.recipe, target.transposed):
        raise RuntimeError(
            "a packed weight takes only bits and prototype of one with the same seed, scale and "
            "offset: decode the other file"
        )
    prototype = copied(source.prototype, target.device)
    if same_prototype(target.prototype, prototype):
        target.bits.copy_(source.bits, non_blocking)
        return target
    if not isinstance(target, torch.nn.Parameter):
        raise RuntimeError(
            "a packed weight that is no parameter takes only bits for its own prototype, and these "
            "are for another prototype: load a state dict into the module"
        )
    # Other weights may share the one that it has, and views of it both of its tensors.
    target.bits = source.bits.to(target.device, copy=True)
    target.prototype = prototype
    return target


def _mm(first: Any, second: Any) -> Any:
    if not (isinstance(second, PackedWeight) and second.transposed):
        return NotImplemented
    return second.times(_dense(first))


def _addmm(bias: Any, first: Any, second: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    if not (isinstance(second, PackedWeight) and second.transposed and beta == alpha == 1):
        return NotImplemented
    product = second.times(_dense(first))
    return product if product is NotImplemented else product + bias


def _embedding(weight: Any, indices: Tensor, *_: Any) -> Any:
    if not isinstance(weight, PackedWeight) or weight.transposed:
        return NotImplemented
    recipe, bits = weight.recipe, weight.bits
    if not takes_rows(recipe, bits, indices):
        return NotImplemented
    return take_rows(recipe, bits, weight.prototype, weight.dtype, indices)


OPERATORS: Mapping[Any, Callable[..., Any]] = {
    _aten.detach.default: _detach,
    _aten.alias.default: _detach,
    _aten.clone.default: _clone,
    _aten._to_copy.default: _to_copy,
    _aten.t.default: _transposed,
    _aten.copy_.default: _copy,
    _aten.mm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.embedding.default: _embedding,
}
"""What does not need a dense weight; NotImplemented where it does."""

_DECOMPOSED = {_aten.linear, _aten.matmul, _aten.to}
"""What comes as a whole in inference mode, and is made of operators that do not need one."""
