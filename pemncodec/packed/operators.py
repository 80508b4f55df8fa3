"""Operators on packed weights: some work on the bits, all others on values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from pemncodec.packed.read_only import DenseView, ReadOnlyTensor, refuse_writing
from pemncodec.packed.rows import take_rows, takes_rows
from pemncodec.packed.weight import PackedWeight

_aten = torch.ops.aten


def call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of an operator of which some arguments are read-only tensors.

    Raises:
        RuntimeError: it would write to one of them.
    """
    special = OPERATORS.get(func)
    if special is not None:
        result = special(*args, **kwargs)
        if result is not NotImplemented:
            return result
    is_view = False
    for index, name, is_write in _aliased(func):
        given = args[index] if index < len(args) else kwargs.get(name)
        if any(isinstance(one, ReadOnlyTensor) for one in _listed(given)):
            if is_write:
                refuse_writing(func)
            is_view = True
    # In inference mode some operators come as a whole that are made of others.
    if func.overloadpacket in _DECOMPOSED or (is_view and func._can_decompose()):
        return func.decompose(*args, **kwargs)
    result = func(*map(_dense, args), **{name: _dense(value) for name, value in kwargs.items()})
    return _view(result) if is_view else result


untraced_call = _disable_dynamo(call)  # imports torch.compile's code once it is called
"""`call`, into which torch.compile does not look where a compiled module runs."""


@cache
def _aliased(func: Any) -> tuple[tuple[int, str, bool], ...]:
    """The arguments that an operator writes to or gives views of: place, name, whether written."""
    return tuple(
        (index, argument.name, argument.alias_info.is_write)
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None
    )


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _dense(value: Any) -> Any:
    if isinstance(value, ReadOnlyTensor):
        return value.dense()
    return [_dense(item) for item in value] if isinstance(value, list) else value


def _view(result: Any) -> Any:
    # PyTorch expects a view of an ordinary tensor to be one in inference mode too.
    with torch.inference_mode(False):
        return [DenseView(one) for one in result] if type(result) is list else DenseView(result)


def _detach(weight: Any) -> Any:
    if not isinstance(weight, PackedWeight):
        return NotImplemented
    with torch.inference_mode(False):  # as in `_view`
        return weight.with_parts(weight.bits, weight.prototype)


def _clone(weight: Any, *, memory_format: torch.memory_format | None = None) -> Any:
    if not isinstance(weight, PackedWeight) or memory_format not in (
        None,
        torch.preserve_format,
    ):
        return NotImplemented
    prototype = weight.prototype
    return weight.with_parts(weight.bits.clone(), None if prototype is None else prototype.clone())


def _to_copy(
    weight: Any,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    non_blocking: bool = False,
    **_: Any,
) -> Any:
    if not isinstance(weight, PackedWeight):
        return NotImplemented
    if dtype is not None and not dtype.is_floating_point:
        return NotImplemented
    device = weight.device if device is None else torch.device(device)
    bits = weight.bits.to(device, copy=True, non_blocking=non_blocking)
    return weight.with_parts(bits, weight.shared.copied(weight.prototype, device), dtype)


def _transposed(weight: Any) -> Any:
    if not isinstance(weight, PackedWeight) or len(weight.recipe.shape) != 2:
        return NotImplemented
    with torch.inference_mode(False):
        return weight.with_parts(weight.bits, weight.prototype, transposed=not weight.transposed)


def _copy(target: Any, source: Any, non_blocking: bool = False) -> Any:
    if not (isinstance(target, PackedWeight) and isinstance(source, PackedWeight)):
        return NotImplemented
    if (source.recipe, source.transposed) != (target.recipe, target.transposed):
        raise RuntimeError(
            "a packed weight takes only bits and prototype of one with the same seed, scale and "
            "offset: decode the other file"
        )
    prototype = target.shared.copied(source.prototype, target.device)
    if _same_prototype(target.prototype, prototype):
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


def _same_prototype(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two prototypes of one recipe have the same bits; both on one device."""
    if first is second or first is None or second is None or first.is_meta:
        return True
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def _mm(first: Any, second: Any) -> Any:
    if not isinstance(second, PackedWeight):
        return NotImplemented
    return second.times(_dense(first))


def _addmm(bias: Any, first: Any, second: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    if not (isinstance(second, PackedWeight) and beta == alpha == 1):
        return NotImplemented
    first = _dense(first)
    shape = (*first.shape[:1], *second.shape[1:])
    fits = (bias.dtype, bias.device) == (second.dtype, second.device)
    if not (fits and _expands(bias.shape, shape)):
        return NotImplemented  # PyTorch says what is wrong
    product = second.times(first)
    return product if product is NotImplemented else product + bias


def _expands(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a tensor of one shape can be expanded to the other."""
    if len(shape) > len(other):
        return False
    ends = zip(reversed(shape), reversed(other), strict=False)
    return all(size in (1, wanted) for size, wanted in ends)


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

_DECOMPOSED = {_aten.linear, _aten.matmul}
"""What is made of operators that do not need a dense weight."""
