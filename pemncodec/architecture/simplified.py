"""A program of torch.export becomes one flat graph, without what changes no value."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from pemncodec.architecture.graph import UntraceableError

INT64_MAX: Final = (1 << 63) - 1  # as an end: to the last
_DROPOUTS: Final = ("aten.dropout.", "aten.feature_dropout.", "aten.alpha_dropout.")
_STATISTICS: Final = ("batch_norm", "instance_norm")  # in train mode they change their buffers


def simplified(program: ExportedProgram) -> fx.Graph:
    """The program's graph, flat, without what changes no value."""
    flat = fx.Graph()
    flat.output(_copy(flat, program.graph_module, {}))
    flat.eliminate_dead_code(is_impure_node=is_needed)
    return flat


def _copy(flat: fx.Graph, source: fx.GraphModule, values: dict[fx.Node, Any]) -> Any:
    """Copy the nodes of `source` behind those of `flat`; returns what stands for its result."""

    def value_of(node: fx.Node) -> Any:
        return values[node]

    for node in source.graph.nodes:
        first = node.args[0] if node.args else None
        if node in values or node.op == "get_attr":
            continue
        if node.op == "output":
            return fx.node.map_arg(first, value_of)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            values[node] = _copy_region(flat, source, node, values)
        elif isinstance(first, fx.Node) and isinstance(values.get(first), tuple | list):
            values[node] = values[first][node.args[1]]
        elif _is_identity(node):
            values[node] = values[node.args[0]]
        else:
            values[node] = flat.node_copy(node, value_of)
    return None


def _copy_region(
    flat: fx.Graph, source: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]
) -> Any:
    """Copy what runs without gradients, or with autocast turned off."""
    name = str(node.target)
    without_gradients = name == "wrap_with_set_grad_enabled" and node.args[0] is False
    plain = name == "wrap_with_autocast" and node.args[2] is False
    if not (plain or name == "wrap_with_set_grad_enabled"):
        raise UntraceableError(f"forward uses {name}, which is not allowed")
    at = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr")
    region: Any = getattr(source, str(node.args[at].target))  # type: ignore[union-attr]
    inputs = [inner for inner in region.graph.nodes if inner.op == "placeholder"]
    given = [values[a] if isinstance(a, fx.Node) else a for a in node.args[at + 1 :]]
    result = _copy(flat, region, dict(zip(inputs, given, strict=True)))
    return pytree.tree_map(lambda v: _detached(flat, v), result) if without_gradients else result


def _detached(flat: fx.Graph, value: Any) -> Any:
    if not isinstance(value, fx.Node) or not isinstance(meta(value), Tensor):
        return value
    detached = flat.call_function(torch.ops.aten.detach.default, (value,))
    detached.meta = dict(value.meta)
    return detached


def meta(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, fx.Node) else None


def _is_identity(node: fx.Node) -> bool:
    """Whether a node returns its first argument, whatever the inputs are."""
    name = str(node.target)
    if name.startswith(_DROPOUTS):
        return len(node.args) > 2 and node.args[2] is False
    if name in ("aten.to.dtype", "aten.to.dtype_layout", "aten.to.device"):
        first = meta(node.args[0])
        copies = node.kwargs.get("copy") or any(value is True for value in node.args[2:])
        return first is not None and meta(node).dtype == first.dtype and not copies
    if name == "aten.slice.Tensor":
        start, end, step = [*node.args[2:], *(None,) * 3][:3]
        return start in (None, 0) and end in (None, INT64_MAX) and step in (None, 1)
    return name == "aten.alias.default"


def is_needed(node: fx.Node) -> bool:
    """Whether a node stays though nothing uses its value."""
    name = str(node.target)
    if node.op != "call_function":
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        return True
    return any(word in name for word in _STATISTICS) and True in node.args
