"""Names in graphs → functions, methods and attributes of PyTorch (spec/pemn.md section 8.4)."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import nn
from torch.fx import Proxy

from pemncodec.architecture.operators import ATTRIBUTES, FUNCTIONS, METHODS
from pemncodec.errors import ManifestError

_NAMESPACES: Final = {
    "operator": operator,
    "math": math,
    "torch": torch,
    "torch.nn.functional": nn.functional,
}
_SEQUENCE_LIMIT: Final = 1 << 16


@functools.cache
def function_names() -> dict[Callable[..., Any], str]:
    """The name in a manifest of each allowed function; one name when it has several."""
    names: dict[Callable[..., Any], str] = {}
    for name in sorted(FUNCTIONS):
        found = _function_of(name)
        if found is not None:
            names.setdefault(found, name)
    return names


def _function_of(name: str) -> Callable[..., Any] | None:
    """The function that an allowed name means; None when this version of PyTorch has none."""
    namespace, _, leaf = name.rpartition(".")
    if not name.startswith("aten."):
        function: Callable[..., Any] | None = getattr(_NAMESPACES[namespace], leaf, None)
        return function
    operator_name, _, overload = name.removeprefix("aten.").partition(".")
    packet = getattr(torch.ops.aten, operator_name, None)
    operator_overload: Callable[..., Any] | None = getattr(packet, overload or "default", None)
    return operator_overload


@functools.cache
def callable_of(kind: str, name: str) -> Callable[..., Any]:
    """What a name of `operators` means.

    Args:
        kind: "fn" for a function, "meth" for a method or "get" for an attribute of a tensor.
        name: allowed for that kind.

    Raises:
        ManifestError: "manifest-op": this version of PyTorch has nothing of that name.
    """
    if kind == "get" and name in ATTRIBUTES:
        return functools.partial(_attribute, name)
    if kind == "meth" and name in METHODS:
        # Unbound, so that it refuses what is no tensor.
        found = getattr(torch.Tensor, name, None)
    else:
        found = _function_of(name) if name in FUNCTIONS else None
    if found is None:
        raise ManifestError("manifest-op", f"PyTorch {torch.__version__} has no {name}: update it")
    if name.startswith("operator."):
        return _bounded(found)
    return _typed(found) if name.startswith("aten.") else found


def recorder_of(kind: str, name: str) -> Callable[..., Any]:
    """What a name means while torch.fx records: operands may be proxies, and nothing is computed.

    Arguments as in `callable_of`. Operators of ATen are recorded without their overload, which
    TorchScript finds by itself and has no name for.
    """
    if kind == "fn":
        if not name.startswith("aten."):
            return _function_of(name) or callable_of(kind, name)
        operator_name = name.removeprefix("aten.").partition(".")[0]
        packet = getattr(torch.ops.aten, operator_name.removeprefix("sym_"))
        return cast("Callable[..., Any]", packet)

    def recorded(value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, Proxy):
            return callable_of(kind, name)(value, *args, **kwargs)
        found = getattr(value, name)
        return found if kind == "get" else found(*args, **kwargs)

    return recorded


def _attribute(name: str, value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} of what is no tensor")
    return getattr(value, name)


# Types of ATen that its Python binding takes any integer for, and then reads out of bounds.
_ENUMERATIONS: Final[dict[str, tuple[type, ...]]] = {
    "ScalarType": (torch.dtype,),
    "Device": (torch.device,),
    "Layout": (),
    "MemoryFormat": (),
}


def _typed(function: Any) -> Callable[..., Any]:
    """An operator of ATen that refuses integers as dtypes and the like: they crash the process."""
    positions: dict[int, tuple[type, ...]] = {}
    keywords: dict[str, tuple[type, ...]] = {}
    for position, argument in enumerate(function._schema.arguments):
        for enumeration, types in _ENUMERATIONS.items():
            if enumeration in str(argument.real_type):
                positions[position] = keywords[argument.name] = types
    if not positions:
        overload: Callable[..., Any] = function
        return overload

    def checked(*operands: Any, **named: Any) -> Any:
        for position, types in positions.items():
            if position < len(operands):
                _check_type(operands[position], types)
        for name, types in keywords.items():
            _check_type(named.get(name), types)
        return function(*operands, **named)

    return checked


def _check_type(value: Any, types: tuple[type, ...]) -> None:
    if value is not None and not isinstance(value, types):
        raise TypeError(f"{value!r:.40} where a dtype or device belongs")


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator of Python that cannot be made to fill memory with lists or long integers."""
    if function is operator.getitem:
        return function

    def checked(*operands: Any) -> Any:
        for operand in operands:
            if isinstance(operand, torch.Tensor):
                return function(*operands)
        if any(isinstance(operand, tuple | list) for operand in operands):
            return _of_sequences(function, operands)
        if any(isinstance(operand, str | dict) for operand in operands):
            raise TypeError(f"{function.__name__} of strings or dictionaries")
        if function is operator.pow and type(operands[1]) is int and abs(operands[1]) > 64:
            raise OverflowError("an exponent out of range")
        result = function(*operands)
        if type(result) is int and abs(result) > 1 << 63:
            raise OverflowError("an integer out of range")
        return result

    return checked


def _of_sequences(function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
    length = 1
    for operand in operands:
        if isinstance(operand, tuple | list):
            if any(isinstance(item, tuple | list | dict) for item in operand):
                raise TypeError(f"{function.__name__} of nested sequences")
            length *= len(operand) + 1
        elif type(operand) is int:
            length *= abs(operand) + 1
    if length > _SEQUENCE_LIMIT:
        raise OverflowError(f"a sequence of more than {_SEQUENCE_LIMIT} items")
    return function(*operands)
