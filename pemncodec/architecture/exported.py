"""`forward` of a module becomes a graph of ATen operators, by torch.export (spec section 8.4).

For what torch.fx cannot trace: the code runs on example inputs, so control flow is followed where
it leads for them. Everything below the module becomes part of one graph.
"""

from __future__ import annotations

import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from pemncodec.architecture.arguments import INT_LIMIT
from pemncodec.architecture.callables import function_names
from pemncodec.architecture.graph import UntraceableError, value_to_json
from pemncodec.architecture.isolation import random_states
from pemncodec.architecture.operators import FACTORIES, validate_graph
from pemncodec.architecture.simplified import INT64_MAX, is_needed, meta, simplified
from pemncodec.errors import ManifestError
from pemncodec.limits import Limits
from pemncodec.tensors import dtype_name, same_bits

# No graph returns memory that was never written: what a file computes may not tell secrets.
_WRITTEN_AS: Final[dict[Any, Any]] = {
    torch.ops.aten.empty.memory_format: torch.ops.aten.zeros.default,
    torch.ops.aten.new_empty.default: torch.ops.aten.new_zeros.default,
    torch.ops.aten.empty_like.default: torch.ops.aten.zeros_like.default,
    torch.ops.aten.detach_.default: torch.ops.aten.detach.default,
    torch.ops.aten.to.dtype_layout: torch.ops.aten.to.dtype,
}
# A guard of torch.export that a smallest and largest size say as well.
_BOUND: Final = re.compile(r".*\.size\(\)\[\d+\] (<=|>=|<|>|!=) \d+")
# Where memory lies, not what is computed.
_PLACEMENT: Final = ("layout", "pin_memory", "memory_format", "non_blocking", "device")


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """Arguments of one call of a module, as they were."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextmanager
def record_calls(module: nn.Module) -> Iterator[list[RecordedCall]]:
    """Record the calls of a module, while it or what it is a part of runs."""
    calls: list[RecordedCall] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(RecordedCall(args, kwargs))

    hook = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@dataclass(frozen=True, slots=True)
class Exported:
    """`forward` of a module, exported.

    Attributes:
        nodes: the graph for the manifest.
        constants: its tensors, by the name of the buffer that is to hold them.
        kept: names of buffers that the graph uses and never writes.
    """

    nodes: list[dict[str, Any]]
    constants: dict[str, Tensor]
    kept: list[str]


def trace_exported(
    module: nn.Module, calls: Sequence[RecordedCall], known: Mapping[str, Tensor]
) -> Exported:
    """Graph of `forward` in the mode that the module is in, and tensors that it has as constants.

    Args:
        module: left as it is.
        calls: at two batch sizes or more; sizes in which they differ may vary.
        known: constants of the graph for the other mode; equal ones have their names.

    Raises:
        UntraceableError: it cannot be described.
    """
    first = _named_arguments(module, calls[0])
    others = [_named_arguments(module, call) for call in calls[1:]]
    if any(list(other) != list(first) for other in others):
        raise UntraceableError("two calls differ in the arguments that they give")
    shapes = {
        name: _varying(name, value, [other[name] for other in others])
        for name, value in first.items()
    }
    call = calls[0]
    dynamic = {
        name: {axis: Dim.DYNAMIC for axis, size in enumerate(shape) if size is None}
        if shape is not None
        else None
        for name, shape in shapes.items()
    }
    before = random_states()
    with quiet():
        try:
            program = torch.export.export(
                module, call.args, call.kwargs, dynamic_shapes=dynamic, strict=False
            )
        except Exception as error:  # whatever the user's code raises when it is traced
            raise UntraceableError(f"torch.export cannot trace forward: {_cause(error)}") from error
    if random_states() != before:
        raise UntraceableError("forward draws random numbers that do not depend on its inputs")
    _check_guards(program)
    writer = _Writer(module, program, first, shapes, known)
    nodes = writer.write()
    _check_bounds(nodes, [first, *others])
    try:
        validate_graph(type(module).__name__, nodes, Limits())
    except ManifestError as error:
        raise UntraceableError(str(error)) from None
    return Exported(nodes, writer.constants, writer.kept)


def _check_guards(program: ExportedProgram) -> None:
    """Refuse a graph that holds for some of the sizes that may vary, unless bounds tell which."""
    for guard in getattr(program, "_guards_code", None) or ():  # not before torch 2.9
        if not _BOUND.fullmatch(guard):
            condition = re.sub(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]", r"\1.shape[\2]", guard)
            raise UntraceableError(
                f"forward does one thing where {condition}, and another where not"
            )


def _check_bounds(nodes: Sequence[Mapping[str, Any]], calls: Sequence[Mapping[str, Any]]) -> None:
    for node in nodes:
        for axis, size in enumerate(node.get("shape", ())):
            for call in calls if isinstance(size, list) else ():
                if not size[0] <= call[node["in"]].shape[axis] <= size[1]:
                    raise UntraceableError(
                        f"forward does one thing for sizes of {size[0]} to {size[1]} of axis "
                        f"{axis} of {node['in']!r}, and another for others"
                    )


def _cause(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if "specialized" in line or "Could not guard" in line or "data-dependent" in line:
            return line.lstrip("- ")[:200]
    return (lines or [type(error).__name__])[0][:200]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporters print: notes on code that they export well, whole graphs."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _named_arguments(module: nn.Module, call: RecordedCall) -> dict[str, Any]:
    """What a call gives, by the names of `forward`'s parameters, in their order."""
    signature = inspect.signature(module.forward)
    bound = signature.bind(*call.args, **call.kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            raise UntraceableError(f"forward takes a variable number of arguments, *{name}")
        else:
            named[name] = value
    for name, value in named.items():
        if not (value is None or isinstance(value, Tensor | bool | int | float | str)):
            raise UntraceableError(f"argument {name!r} of forward is a {type(value).__name__}")
    return named


def _varying(name: str, value: Any, others: Sequence[Any]) -> list[int | None] | None:
    """Shape of a tensor with None for sizes that differ; None for a constant."""
    if not isinstance(value, Tensor):
        if any(type(other) is not type(value) or other != value for other in others):
            raise UntraceableError(f"two calls differ in argument {name!r}")
        return None
    shape: list[int | None] = list(value.shape)
    for other in others:
        if not isinstance(other, Tensor) or other.dim() != value.dim():
            raise UntraceableError(f"two calls differ in argument {name!r}")
        for axis, (mine, theirs) in enumerate(zip(value.shape, other.shape, strict=True)):
            if mine != theirs:
                shape[axis] = None
    return shape


class _Writer:
    """Writes one exported program as nodes of a manifest."""

    def __init__(
        self,
        module: nn.Module,
        program: ExportedProgram,
        arguments: Mapping[str, Any],
        shapes: Mapping[str, list[int | None] | None],
        known: Mapping[str, Tensor],
    ) -> None:
        self.module = module
        self.program = program
        self.arguments = arguments
        self.shapes = shapes
        self.known = known
        self.nodes: list[dict[str, Any]] = []
        self.index: dict[fx.Node, int] = {}
        self.constants: dict[str, Tensor] = {}
        self.kept: list[str] = []
        self.device: int | None = None

    def write(self) -> list[dict[str, Any]]:
        graph = simplified(self.program)
        self._write_inputs(graph)
        for node in graph.nodes:
            if node.op == "output":
                self.nodes.append({"out": self._value(self._result(node))})
            elif node.op != "placeholder":
                entry = self._write(node)
                self.index[node] = len(self.nodes)
                self.nodes.append(entry)
        return self.nodes

    def _write_inputs(self, graph: fx.Graph) -> None:
        signature = self.program.graph_signature
        for output in signature.output_specs:
            if output.kind is not OutputKind.USER_OUTPUT:
                raise UntraceableError(f"forward changes {output.target}")
        users = [spec for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT]
        if len(users) != len(self.arguments):
            raise UntraceableError("torch.export did not keep the arguments of forward")
        given = dict(zip(self.arguments, users, strict=True))
        # By their targets: as a name of a node, a builtin such as "input" gets a number.
        placeholders = {node.target: node for node in graph.nodes if node.op == "placeholder"}
        # In the order of forward's parameters, with those between them that were left out.
        parameters = inspect.signature(self.module.forward).parameters
        last = max((i for i, name in enumerate(parameters) if name in given), default=-1)
        names = [name for i, name in enumerate(parameters) if i <= last]
        for name in [*names, *(name for name in given if name not in parameters)]:
            entry: dict[str, Any] = {"in": name}
            if name not in given:
                entry["only"] = value_to_json(parameters[name].default, {})
            elif isinstance(given[name].arg, ConstantArgument):
                entry["only"] = value_to_json(self.arguments[name], {})
            else:
                placeholder = placeholders[given[name].arg.name]
                entry["dtype"] = dtype_name(self.arguments[name])
                entry["shape"] = self._bounded(placeholder, self.shapes[name] or [])
                self.index[placeholder] = len(self.nodes)
            self.nodes.append(entry)

    def _bounded(self, placeholder: fx.Node, shape: Sequence[int | None]) -> list[Any]:
        """A shape in which sizes that decide what the code does have bounds."""
        bounded: list[Any] = list(shape)
        for axis, size in enumerate(meta(placeholder).shape):
            if shape[axis] is not None or isinstance(size, int):
                continue
            bounds = self.program.range_constraints.get(size.node.expr)
            if bounds is None:
                continue
            # That torch.export tells sizes of 0 and 1 apart says nothing of this code.
            low = 0 if bounds.lower <= 2 else int(bounds.lower)
            high = int(bounds.upper) if bounds.upper <= INT_LIMIT else INT_LIMIT
            if (low, high) != (0, INT_LIMIT):
                bounded[axis] = [low, high]
        return bounded

    def _write(self, node: fx.Node) -> dict[str, Any]:
        target: Any = _WRITTEN_AS.get(node.target, node.target)
        args = list(node.args)
        if target is torch.ops.aten.to.device:
            # Where the inputs are, there are constants and what is made in the graph.
            target = torch.ops.aten.to.dtype
            del args[1]
        name = function_names().get(target)
        if node.op != "call_function" or name is None:
            raise UntraceableError(f"forward uses {target}, which is not allowed")
        if target is torch.ops.aten.slice.Tensor and INT64_MAX in args[3:4]:
            args[3] = None
        schema = getattr(target, "_schema", None)
        declared = schema.arguments if schema is not None else []
        for argument, value in reversed(list(zip(declared, args, strict=False))):
            if not _is_default(argument, value):
                break
            args.pop()
        kwargs = {
            key: self._value(value)
            for key, value in node.kwargs.items()
            if key not in _PLACEMENT and value is not None
        }
        entry: dict[str, Any] = {"fn": name}
        if args:
            entry["args"] = [self._value(value) for value in args]
        if name in FACTORIES:
            kwargs["device"] = f"%{self._device()}"
        if kwargs:
            entry["kwargs"] = kwargs
        return entry

    def _value(self, value: Any) -> Any:
        for node in _nodes_of(value):
            if node not in self.index:
                entry = self._attribute(node)
                self.index[node] = len(self.nodes)
                self.nodes.append(entry)
        return value_to_json(value, self.index)

    def _attribute(self, node: fx.Node) -> dict[str, Any]:
        """A parameter, buffer or constant, written where it is first used."""
        for spec in self.program.graph_signature.input_specs:
            if not isinstance(spec.arg, TensorArgument) or spec.arg.name != node.target:
                continue
            if spec.kind is InputKind.BUFFER and not _is_written(node):
                self.kept.append(str(spec.target))
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                return {"attr": str(spec.target)}
            if spec.kind is InputKind.CONSTANT_TENSOR:
                return {"attr": self._constant(self.program.constants[str(spec.target)])}
        raise UntraceableError(f"forward takes {node.name}, which is no tensor")

    def _constant(self, value: Tensor) -> str:
        for name, other in self.known.items():
            if name not in self.constants and same_bits(value, other):
                break
        else:
            name = f"constant_{len({**self.known, **self.constants})}"
            while hasattr(self.module, name):
                name += "_"
        self.constants[name] = value.detach()
        return name

    def _device(self) -> int:
        """The node for the device that tensors are made on: the first input's."""
        if self.device is None:
            tensors = [i for i, node in enumerate(self.nodes) if "shape" in node]
            if not tensors:
                raise UntraceableError(
                    "forward creates tensors, but takes none whose device they could have"
                )
            self.device = len(self.nodes)
            self.nodes.append({"get": "device", "args": [f"%{tensors[0]}"]})
        return self.device

    def _result(self, node: fx.Node) -> Any:
        spec = self.program.call_spec.out_spec
        assert spec is not None
        return pytree.tree_unflatten(list(node.args[0]), spec)  # type: ignore[arg-type]


def _is_written(node: fx.Node) -> bool:
    """Whether a graph writes into a tensor, or into a view of it."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)
        if user.op == "call_function" and is_needed(user):
            return True
        views = schema is not None and any(result.alias_info for result in schema.returns)
        if views and _is_written(user):
            return True
    return False


def _nodes_of(value: Any) -> Iterator[fx.Node]:
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _nodes_of(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _nodes_of(item)
    elif isinstance(value, slice):
        yield from _nodes_of((value.start, value.stop, value.step))


def _is_default(argument: Any, value: Any) -> bool:
    return bool(argument.has_default_value()) and repr(argument.default_value) == repr(value)
