"""`forward` of one class of the user becomes a graph, by torch.fx (spec/pemn.md section 8.4)."""

from __future__ import annotations

import builtins
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from pemncodec.architecture.callables import function_names
from pemncodec.architecture.isolation import random_states
from pemncodec.architecture.operators import ATTRIBUTES, METHODS, is_path, reference, validate_graph
from pemncodec.errors import ManifestError, first_line
from pemncodec.limits import Limits

# They may change a statistic or draw random numbers even when nothing uses what they return.
_EFFECTS: Final = ("dropout", "batch_norm", "instance_norm", "embedding", "attention")
_IN_PLACE_OPERATORS: Final = ("iadd", "isub", "imul", "itruediv")


# No graph returns memory that was never written: what a file computes may not tell secrets.
WRITTEN_AS: Final = {"new_empty": "new_zeros"}


class UntraceableError(Exception):
    """A forward that cannot be described; the message is the cause, in one line."""


class _Varies:
    """Stands for an argument that is not the same constant in every call."""


VARIES: Final = _Varies()


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module: its arguments, constants as they are and all else as `VARIES`."""

    positional: tuple[Any, ...]
    keywords: dict[str, Any]

    @classmethod
    def of_node(cls, node: dict[str, Any]) -> Call:
        """The call that a node of a graph makes."""
        return cls(
            tuple(_constant(value) for value in node.get("args", [])),
            {key: _constant(value) for key, value in node.get("kwargs", {}).items()},
        )

    def argument(self, index: int, name: str, default: Any) -> Any:
        """What the call gives for an argument of `forward`, the one at `index`."""
        if index < len(self.positional):
            return self.positional[index]
        return self.keywords.get(name, default)

    def conflict(self, graph: list[dict[str, Any]]) -> str:
        """Why a graph does not fit this call; empty when it does."""
        for index, node in enumerate(graph):
            if "only" in node:
                value = self.argument(index, node["in"], node["only"])
                if value is VARIES or repr(value) != repr(node["only"]):
                    return f"two calls differ in argument {node['in']!r}, one gives none"
        return ""


def _constant(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return value if isinstance(value, str) and reference(value) is None else VARIES


def trace_forward(module: nn.Module, calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Graph of `forward` in the mode that the module is in; calls of children are its nodes.

    Args:
        module: of a class that defines `forward`.
        calls: all calls of it; none are taken as one that leaves out what has a default.

    Raises:
        UntraceableError: it cannot be described.
    """
    name = forward_method(module)
    forward = inspect.unwrap(getattr(type(module), name))
    if not inspect.isfunction(forward):
        raise UntraceableError("its forward is not a Python function")
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    fixed = _fixed(parameters, calls)
    before = random_states()
    try:
        graph = _Tracer(name).trace(module, concrete_args=fixed)
    except UntraceableError:
        raise
    except TraceError:
        raise UntraceableError(
            "forward has control flow that depends on values or sizes of its inputs"
        ) from None
    except Exception as error:  # whatever the user's code raises when given stand-ins
        cause = first_line(error)
        raise UntraceableError(f"torch.fx cannot trace forward: {cause}") from error
    if random_states() != before:
        raise UntraceableError("forward draws random numbers that do not depend on its inputs")
    nodes = _Writer(parameters, fixed).write(graph)
    try:
        validate_graph(type(module).__name__, nodes, Limits())
    except ManifestError as error:
        raise UntraceableError(str(error)) from None
    return nodes


def forward_method(module: nn.Module) -> str:
    """Name of the method of its class that a module calls as `forward`.

    Raises:
        UntraceableError: what it calls is none of these.
    """
    own = vars(module).get("forward")
    if own is None:
        return "forward"
    # An instance may choose among methods of its class: `self.forward = self.forward_sliced`.
    name = getattr(own, "__name__", "")
    if getattr(type(module), name, None) is not getattr(own, "__func__", own):
        raise UntraceableError("its forward was replaced by a function that its class has not")
    return str(name)


def _fixed(parameters: Sequence[inspect.Parameter], calls: Sequence[Call]) -> dict[str, Any]:
    """Arguments that have the same constant in all calls."""
    fixed = {}
    for index, parameter in enumerate(parameters):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = VARIES if parameter.default is parameter.empty else _constant(parameter.default)
        values = [call.argument(index, parameter.name, default) for call in calls] or [default]
        if VARIES not in values and len({repr(value) for value in values}) == 1:
            fixed[parameter.name] = values[0]
        elif None in values:
            raise UntraceableError(f"argument {parameter.name!r} is None in some calls, not in all")
    return fixed


class _Tracer(fx.Tracer):
    """Traces one level: every child is called, none is entered."""

    proxy_buffer_attributes = True

    def __init__(self, method: str) -> None:
        super().__init__()
        self.traced_func_name = method

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True

    def create_arg(self, a: Any) -> Any:
        # The base class would set such a tensor as an attribute of the user's module.
        if isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter):
            raise UntraceableError(
                "forward uses a tensor that is neither a parameter, a buffer (register_buffer) "
                "nor computed from its inputs"
            )
        return super().create_arg(a)


class _Writer:
    """Writes one graph of torch.fx as nodes of a manifest."""

    def __init__(self, parameters: Sequence[inspect.Parameter], fixed: dict[str, Any]) -> None:
        self.parameters = parameters
        self.fixed = fixed
        self.nodes: list[dict[str, Any]] = []
        self.index: dict[fx.Node, int] = {}

    def write(self, graph: fx.Graph) -> list[dict[str, Any]]:
        live = _live(graph)
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        for node, parameter in zip(inputs, self.parameters, strict=True):
            self._write_input(node, parameter, used=node in live)
        for node in graph.nodes:
            if node in live and node.op != "placeholder":
                self.index[node] = len(self.nodes)
                self.nodes.append(self._write(node))
        return self.nodes

    def _write_input(self, node: fx.Node, parameter: inspect.Parameter, *, used: bool) -> None:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            if used:
                raise UntraceableError(f"forward takes a variable number of arguments, {parameter}")
            return
        entry: dict[str, Any] = {"in": parameter.name}
        if parameter.name in self.fixed:
            entry["only"] = self._value(self.fixed[parameter.name])
        elif parameter.default is None and not any(len(node) > 1 for node in self.nodes):
            pass  # `if mask is not None` was traced with a mask: it can no longer be left out
        elif parameter.default is not parameter.empty:
            entry["default"] = self._value(parameter.default)
        self.index[node] = len(self.nodes)
        self.nodes.append(entry)

    def _write(self, node: fx.Node) -> dict[str, Any]:
        target: Any = node.target
        if node.op == "output":
            return {"out": self._value(node.args[0])}
        if node.op == "get_attr":
            return {"attr": target}
        if node.op == "call_module":
            if not is_path(target):
                raise UntraceableError(f"forward calls the module {target!r}")
            return self._call("mod", target, node)
        if node.op == "call_method":
            target = WRITTEN_AS.get(target, target)
            if target not in METHODS:
                raise UntraceableError(f"forward uses Tensor.{target}, which is not allowed")
            return self._call("meth", target, node)
        if target is builtins.getattr:
            name = node.args[1]
            if name not in ATTRIBUTES:
                raise UntraceableError(f"forward uses the attribute {name}, which is not allowed")
            return {"get": name, "args": [self._value(node.args[0])]}
        if target not in function_names():
            name = torch.overrides.resolve_name(target) or getattr(target, "__name__", target)
            raise UntraceableError(f"forward uses {name}, which is not allowed")
        return self._call("fn", function_names()[target], node)

    def _call(self, kind: str, target: str, node: fx.Node) -> dict[str, Any]:
        # Where a warning points to; softmax and its relatives pass it, results do not depend on it.
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "_stacklevel"}
        entry: dict[str, Any] = {kind: target}
        if node.args:
            entry["args"] = [self._value(value) for value in node.args]
        if node.kwargs:
            entry["kwargs"] = {key: self._value(value) for key, value in node.kwargs.items()}
        return entry

    def _value(self, value: Any) -> Any:
        return value_to_json(value, self.index)


def value_to_json(value: Any, index: Mapping[fx.Node, int]) -> Any:
    """An argument or result as JSON; `operators` says what is allowed.

    Args:
        value: of a graph of torch.fx.
        index: the number of each node that was written.

    Raises:
        UntraceableError: it cannot be described.
    """
    if isinstance(value, fx.Node):
        return f"%{index[value]}"
    if value is None or isinstance(value, bool):
        return value
    if value is ...:
        return "..."
    if isinstance(value, str):
        if reference(value) is not None:
            raise UntraceableError(f"forward uses the string {value!r}")
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, slice):
        return {"slice": [value_to_json(v, index) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, list):
        return [value_to_json(item, index) for item in value]
    if type(value) in (tuple, torch.Size):
        return {"tuple": [value_to_json(item, index) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[key, value_to_json(item, index)] for key, item in value.items()]}
    raise UntraceableError(f"forward uses a constant or result of type {type(value).__name__}")


def _live(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that the result needs, or that do more than return a value."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in live or node.op == "output" or _has_effect(node):
            live.add(node)
            live.update(node.all_input_nodes)
    return live


def _has_effect(node: fx.Node) -> bool:
    if node.op == "call_module":
        return True
    if node.op not in ("call_function", "call_method"):
        return False
    target: Any = node.target
    if node.op == "call_method" and WRITTEN_AS.get(target, target) not in METHODS:
        return True  # such as `append` of a list that the caller gave, which it then uses
    name: str = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name in ("_assert", "_assert_is_none"):  # checks of the user's code; a graph has none
        return False
    if getattr(target, "__module__", "") == "_operator":
        return name in _IN_PLACE_OPERATORS
    flags = any(value is True for value in (*node.args, *node.kwargs.values()))
    return flags or name.endswith("_") or any(word in name for word in _EFFECTS)
