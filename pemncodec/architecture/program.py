"""Classes of the user, rebuilt: modules that walk the nodes of a graph (spec/pemn.md section 8.4).

No Python source is generated, and names of the file reach PyTorch only through the tables of
`operators`.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import nn

from pemncodec.architecture.operators import ATTRIBUTES, FUNCTIONS, METHODS, node_kind, reference
from pemncodec.errors import ManifestError

_NAMESPACES: Final = {
    "operator": operator,
    "math": math,
    "torch": torch,
    "torch.nn.functional": nn.functional,
}
_SEQUENCE_LIMIT: Final = 1 << 16


class Program:
    """A validated graph, prepared for running; immutable, shared between modules.

    Attributes:
        nodes: the graph as it is in the manifest.
        call: `forward` as a function of the module and the graph's inputs.
    """

    def __init__(self, nodes: list[dict[str, Any]]) -> None:
        self.nodes = nodes
        self.call = _function(nodes)

    def __reduce__(self) -> tuple[type[Program], tuple[list[dict[str, Any]]]]:
        return Program, (self.nodes,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self


class UserModule(nn.Module):
    """A class of the user, rebuilt: its children and tensors, and `forward` as a graph.

    Attributes:
        pemn_programs: the graphs for evaluation and for training, either None when it was not
            stored; None when there was no `forward`.
    """

    def __init__(
        self, class_name: str, programs: tuple[Program | None, Program | None] | None
    ) -> None:
        super().__init__()
        self._pemn_class = class_name
        self.pemn_programs = programs

    @property
    def forward(self) -> Callable[..., Any]:  # type: ignore[override]
        """What `forward` did in this mode, with the arguments that it had."""
        # A property, so that each graph keeps its own signature: torch.export needs the names.
        if self.pemn_programs is None:
            return self._forward_missing
        program, in_training = self.pemn_programs
        if program is not in_training and self.training:
            program = in_training
        if program is None:
            return self._mode_missing
        return functools.partial(program.call, self)

    def _mode_missing(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(
            f"{self._pemn_class} was stored for eval mode alone: encode it with train_graph=True "
            "(--train-graph) to run it in train mode"
        )

    def _forward_missing(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{self._pemn_class} has no forward")

    def _get_name(self) -> str:
        return self._pemn_class


class _Reference:
    """Stands in a template for the value of a node."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def _function(nodes: list[dict[str, Any]]) -> Callable[..., Any]:
    inputs = [node for node in nodes if "in" in node]
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    only = []
    for index, node in enumerate(inputs):
        default = inspect.Parameter.empty
        for field in ("default", "only"):
            if field in node:
                default = _template(node[field])
        if "only" in node:
            only.append((index, node["in"], default))
        parameters.append(
            inspect.Parameter(node["in"], inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
        )
    signature = inspect.Signature(parameters)
    expected = [
        (index, node["in"], getattr(torch, node["dtype"]), node["shape"])
        for index, node in enumerate(inputs)
        if "shape" in node
    ]
    steps = _steps(nodes, len(inputs))
    result = _template(nodes[-1]["out"])
    count = len(inputs)

    def call(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != count:
            bound = signature.bind(module, *args, **kwargs)
            bound.apply_defaults()
            args = bound.args[1:]
        for index, name, value in only:
            if type(args[index]) is not type(value) or args[index] != value:
                raise ValueError(f"the network was stored for {name}={value!r} only")
        for index, name, dtype, shape in expected:
            _check_input(args[index], name, dtype, shape)
        values: list[Any] = list(args)
        del args
        for function, path, positional, keywords, finished in steps:
            if path is not None:
                function = _find(module, path)
            if positional is None:
                values.append(function)
                continue
            filled = [_fill(item, values) for item in positional]
            named = {key: _fill(item, values) for key, item in keywords}
            for index in finished:
                values[index] = None
            values.append(function(*filled, **named))
        return _fill(result, values)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _check_input(
    value: Any, name: str, dtype: torch.dtype, shape: list[int | list[int] | None]
) -> None:
    """Refuse what an exported graph, whose other sizes are constants, would compute wrongly."""
    fits = (
        isinstance(value, torch.Tensor)
        and value.dtype == dtype
        and value.dim() == len(shape)
        and all(_is_size(size, given) for size, given in zip(shape, value.shape, strict=True))
    )
    if not fits:
        sizes = ", ".join(_size_text(size) for size in shape)
        given = f"{value.dtype} of {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)
        raise ValueError(
            f"the network was stored for {name} as {dtype} of ({sizes}), not {given:.80}"
        )


def _is_size(expected: int | list[int] | None, given: int) -> bool:
    if isinstance(expected, list):
        return expected[0] <= given <= expected[1]
    return expected is None or expected == given


def _size_text(size: int | list[int] | None) -> str:
    if isinstance(size, list):
        return f"{size[0]} to {size[1]}"
    return "any" if size is None else str(size)


_Step = tuple[
    Any,  # the function; None for what is found by the path
    tuple[str, ...] | None,  # path to a module or tensor
    tuple[Any, ...] | None,  # templates of positional arguments; None when nothing is called
    tuple[tuple[str, Any], ...],  # templates of keyword arguments
    tuple[int, ...],  # values that nothing needs from here on
]


def _steps(nodes: list[dict[str, Any]], first: int) -> tuple[_Step, ...]:
    last_use: dict[int, int] = {}
    for index, node in enumerate(nodes):
        for used in _references([node.get("args"), node.get("kwargs"), node.get("out")]):
            last_use[used] = index
    finished: dict[int, list[int]] = {}
    for used, index in last_use.items():
        finished.setdefault(index, []).append(used)
    steps: list[_Step] = []
    for index, node in enumerate(nodes[first:-1], first):
        kind = node_kind(node, f"node {index}")
        if kind == "attr":
            steps.append((None, tuple(node["attr"].split(".")), None, (), ()))
            continue
        module = kind == "mod"
        steps.append(
            (
                None if module else _callable(kind, node[kind]),
                tuple(node["mod"].split(".")) if module else None,
                tuple(_template(value) for value in node.get("args", [])),
                tuple((key, _template(value)) for key, value in node.get("kwargs", {}).items()),
                tuple(finished.get(index, ())),
            )
        )
    return tuple(steps)


def _references(value: Any) -> Iterator[int]:
    if isinstance(value, list | dict):
        for item in value if isinstance(value, list) else value.values():
            yield from _references(item)
    else:
        index = reference(value)
        if index is not None:
            yield index


def _find(module: nn.Module, path: tuple[str, ...]) -> Any:
    found: Any = module
    for name in path:
        found = getattr(found, name)
    return found


def _template(value: Any) -> Any:
    """A value of the manifest as Python's, with `_Reference` for values of nodes."""
    if isinstance(value, str):
        if value == "...":
            return ...
        index = reference(value)
        return value if index is None else _Reference(index)
    if isinstance(value, list):
        return [_template(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "tuple":
        return tuple(_template(item) for item in content)
    if tag == "slice":
        return slice(*(_template(item) for item in content))
    if tag == "dict":
        return {key: _template(item) for key, item in content}
    return getattr(torch, content) if tag == "dtype" else float(content)


def _fill(template: Any, values: list[Any]) -> Any:
    kind = type(template)
    if kind is _Reference:
        return values[template.index]
    if kind is tuple:
        return tuple([_fill(item, values) for item in template])
    if kind is list:  # new at each call, since an operator may change it
        return [_fill(item, values) for item in template]
    if kind is slice:
        return slice(
            _fill(template.start, values),
            _fill(template.stop, values),
            _fill(template.step, values),
        )
    if kind is dict:
        return {key: _fill(item, values) for key, item in template.items()}
    return template


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


def _callable(kind: str, name: str) -> Callable[..., Any]:
    found = _callables().get((kind, name))
    if found is None:
        raise ManifestError("manifest-op", f"PyTorch {torch.__version__} has no {name}: update it")
    return found


@functools.cache
def _callables() -> dict[tuple[str, str], Callable[..., Any]]:
    """What each allowed name means, without names that this version of PyTorch lacks."""
    table: dict[tuple[str, str], Callable[..., Any]] = {}
    for name in FUNCTIONS:
        found = _function_of(name)
        if found is not None:
            table["fn", name] = found
            if name.startswith("operator."):
                table["fn", name] = _bounded(found)
            elif name.startswith("aten."):
                table["fn", name] = _typed(found)
    for name in METHODS:
        # Unbound, so that it refuses what is no tensor.
        method = getattr(torch.Tensor, name, None)
        if method is not None:
            table["meth", name] = method
    for name in ATTRIBUTES:
        table["get", name] = functools.partial(_attribute, name)
    return table


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
