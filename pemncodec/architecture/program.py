"""Classes of the user, rebuilt: modules that walk the nodes of a graph (spec/pemn.md section 8.4).

No Python source is generated, and names of the file reach PyTorch only through the tables of
`operators`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import Any, Optional, cast

import torch
from torch import nn
from torch.fx import Proxy

from pemncodec.architecture.callables import callable_of, recorder_of
from pemncodec.architecture.operators import node_kind, reference


class Program:
    """A validated graph, prepared for running; immutable, shared between modules.

    Attributes:
        nodes: the graph as it is in the manifest.
        call: `forward` as a function of the module and the graph's inputs.
        signature: a function that does nothing, with the arguments that `forward` had.
    """

    def __init__(self, nodes: list[dict[str, Any]]) -> None:
        self.nodes = nodes
        self.signature = _signature([node for node in nodes if "in" in node])
        self.call = _function(nodes, inspect.signature(self.signature))

    def __reduce__(self) -> tuple[type[Program], tuple[list[dict[str, Any]]]]:
        return Program, (self.nodes,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self


class UserModule(nn.Module):
    """An instance of a class of the user, rebuilt: its children and tensors; see `user_module`.

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

    def __reduce__(self) -> tuple[Any, ...]:
        # Its own class has no name that pickle would find.
        return user_module, (self._pemn_class, self.pemn_programs), self.__dict__

    def __deepcopy__(self, memo: dict[int, Any]) -> UserModule:
        copied = type(self)(self._pemn_class, self.pemn_programs)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __prepare_scriptable__(self) -> nn.Module:
        raise NotImplementedError(
            f"{self._pemn_class} is no Python code that torch.jit.script could read: "
            "torch.jit.script(torch.fx.symbolic_trace(model))"
        )

    def _get_name(self) -> str:
        return self._pemn_class


def user_module(
    class_name: str, programs: tuple[Program | None, Program | None] | None
) -> UserModule:
    """A module of a class of its own, as torch.fx looks for `forward` at the class.

    Args:
        class_name: an identifier.
        programs: as `UserModule.pemn_programs`.
    """
    members = {"forward": _forward(class_name, programs), "__module__": __name__}
    kind: type[UserModule] = type(class_name, (UserModule,), members)
    return kind(class_name, programs)


def _forward(
    class_name: str, programs: tuple[Program | None, Program | None] | None
) -> Callable[..., Any]:
    """What `forward` did in the module's mode, with the arguments that it had."""
    program, in_training = programs or (None, None)

    def forward(self: UserModule, *args: Any, **kwargs: Any) -> Any:
        chosen = program
        if in_training is not program and self.training:
            chosen = in_training
        if chosen is None:
            raise NotImplementedError(
                f"{class_name} has no forward"
                if programs is None
                else f"{class_name} was stored for eval mode alone: encode it with "
                "train_graph=True (--train-graph) to run it in train mode"
            )
        return chosen.call(self, *args, **kwargs)

    known = program or in_training
    if known is not None:
        forward.__wrapped__ = known.signature  # type: ignore[attr-defined]
    return forward


class _Reference:
    """Stands in a template for the value of a node."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def _signature(inputs: list[dict[str, Any]]) -> FunctionType:
    """A function with the arguments of a graph: torch.fx reads their names from its code."""

    def nothing() -> None: ...

    names = ("self", *(node["in"] for node in inputs))
    code = nothing.__code__.replace(
        co_varnames=names, co_argcount=len(names), co_nlocals=len(names)
    )
    defaults = {
        node["in"]: _template(node[field])
        for node in inputs
        for field in ("default", "only")
        if field in node
    }
    function = FunctionType(code, {}, "forward", tuple(defaults.values()))
    # Else torch.jit.script takes them for tensors.
    function.__annotations__ = {
        name: Optional[torch.Tensor] if value is None else type(value)  # noqa: UP045 for TorchScript
        for name, value in defaults.items()
        if value is None or isinstance(value, bool | int | float | str)
    }
    return function


def _function(nodes: list[dict[str, Any]], signature: inspect.Signature) -> Callable[..., Any]:
    inputs = [node for node in nodes if "in" in node]
    only = [
        (index, node["in"], _template(node["only"]))
        for index, node in enumerate(inputs)
        if "only" in node
    ]
    expected = [
        (index, node["in"], getattr(torch, node["dtype"]), node["shape"])
        for index, node in enumerate(inputs)
        if "shape" in node
    ]
    steps = _steps(nodes, len(inputs), callable_of)
    result = _template(nodes[-1]["out"])
    count = len(inputs)

    def call(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != count:
            bound = signature.bind(module, *args, **kwargs)
            bound.apply_defaults()
            args = bound.args[1:]
        values: list[Any] = list(args)
        del args
        tracer = next((value.tracer for value in values if isinstance(value, Proxy)), None)
        for index, name, value in only:
            if isinstance(values[index], Proxy):
                values[index] = value  # torch.fx makes one of every argument
            elif type(values[index]) is not type(value) or values[index] != value:
                raise ValueError(f"the network was stored for {name}={value!r} only")
        for index, name, dtype, shape in expected:
            if not isinstance(values[index], Proxy):
                _check_input(module, values[index], name, dtype, shape)
        known = steps if tracer is None else _steps(nodes, count, recorder_of)
        for function, path, positional, keywords, finished in known:
            if path is not None:
                if positional is None and tracer is not None:
                    values.append(_get_attr(tracer, module, path))
                    continue
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

    return call


def _get_attr(tracer: Any, module: nn.Module, path: Iterable[str]) -> Proxy:
    """A tensor of a module as a proxy, so that proxies may be used to index it."""
    place = ".".join(filter(None, (tracer.path_of_module(module), *path)))
    return cast("Proxy", tracer.create_proxy("get_attr", place, (), {}))


def _check_input(
    module: nn.Module,
    value: Any,
    name: str,
    dtype: torch.dtype,
    shape: list[int | list[int] | None],
) -> None:
    """Refuse what an exported graph, whose other sizes are constants, would compute wrongly."""
    fits = (
        isinstance(value, torch.Tensor)
        and (value.dtype == dtype or _is_converted(module, dtype, value.dtype))
        and value.dim() == len(shape)
        and all(_is_size(size, given) for size, given in zip(shape, value.shape, strict=True))
    )
    if not fits:
        sizes = ", ".join(_size_text(size) for size in shape)
        given = f"{value.dtype} of {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)
        raise ValueError(
            f"the network was stored for {name} as {dtype} of ({sizes}), not {given:.80}"
        )


def _is_converted(module: nn.Module, stored: torch.dtype, given: torch.dtype) -> bool:
    """Whether a module that was converted from one dtype of floats to another takes the latter."""
    tensors = (*module.parameters(), *module.buffers())
    own = {tensor.dtype for tensor in tensors if tensor.dtype.is_floating_point}
    return stored.is_floating_point and given.is_floating_point and (given in own or not own)


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


def _steps(
    nodes: list[dict[str, Any]], first: int, function_of: Callable[[str, str], Callable[..., Any]]
) -> tuple[_Step, ...]:
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
                None if module else function_of(kind, node[kind]),
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
