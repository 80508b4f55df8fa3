"""The architecture of a file as text, in the manner of `print(model)`; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pemncodec.architecture.arguments import REQUIRED
from pemncodec.architecture.composites import COMPOSITES
from pemncodec.architecture.layers import LEAF_CLASSES
from pemncodec.architecture.manifest import BUILDER_FORMAT, layer_arguments

_INDENT: Final = "  "


def render_architecture(
    manifest: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Lines of text: modules with their arguments, and the shapes of their tensors.

    Args:
        manifest: validated.
        shapes: of the file's tensors, by name; names under which a tensor is shared may be absent.
    """
    lines = [f"{_input(item)}" for item in manifest.get("inputs", ())]
    lines = ["inputs: " + ", ".join(lines)] if lines else []
    if manifest["format"] == BUILDER_FORMAT:
        arguments = [f"{key}={value!r}" for key, value in manifest.get("kwargs", {}).items()]
        return [*lines, f"made by {manifest['builder']}({', '.join(arguments)})"]
    tensors: dict[str, list[str]] = {}
    passing = set(manifest.get("nonpersistent", ()))
    for name, shape in shapes.items():
        owner, _, leaf = name.rpartition(".")
        note = ", not in the state dict" if name in passing else ""
        tensors.setdefault(owner, []).append(f"{leaf} {_shape(shape)}{note}")
    graphs = manifest.get("graphs", {})
    operations = {
        name: sum("fn" in node or "meth" in node for node in nodes)
        for name, nodes in graphs.items()
    }
    return [*lines, *_module(manifest["tree"], "", tensors, operations)]


def _module(
    node: Mapping[str, Any],
    path: str,
    tensors: Mapping[str, list[str]],
    operations: Mapping[str, int],
) -> list[str]:
    if "same" in node:
        return [f"the same as {node['same']}"]
    inside = []
    if "graph" in node:
        title = f"{node.get('cls', node['graph'])}("
        inside = list(tensors.get(path, ()))
        if node["graph"] is not None:
            inside.append(_forward(node, operations))
        own = ""
    else:
        title = f"{node['cls']}({_arguments(node)}"
        # Layers within a layer have names below its own.
        below = [
            (f"{owner.removeprefix(path + '.')}." if owner != path else "", texts)
            for owner, texts in tensors.items()
            if owner == path or (owner.startswith(f"{path}.") and not node.get("children"))
        ]
        own = ", ".join(prefix + text for prefix, texts in below for text in texts)
    for index, child in enumerate(node.get("children", ())):
        name = child.get("name", str(index))
        first, *rest = _module(child, f"{path}.{name}" if path else name, tensors, operations)
        inside += [f"({name}): {first}", *rest]
    if not inside:
        return [f"{title})" + (f"  {own}" if own else "")]
    return [title, *(_INDENT + line for line in inside), ")"]


def _forward(node: Mapping[str, Any], operations: Mapping[str, int]) -> str:
    count = operations[node["graph"]]
    text = f"forward: {count} operation{'s' * (count != 1)}"
    if "train_graph" in node:
        train = node["train_graph"]
        text += ", none for train mode" if train is None else f", {operations[train]} in train mode"
    return text


def _arguments(node: Mapping[str, Any]) -> str:
    given = layer_arguments(dict(node))
    table = COMPOSITES[node["cls"]].arguments if node["cls"] in COMPOSITES else None
    table = LEAF_CLASSES.get(node["cls"], {}) if table is None else table
    return ", ".join(
        _value(given[name]) if argument.default is REQUIRED else f"{name}={_value(given[name])}"
        for name, argument in table.items()
        if name in given
    )


def _value(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, list) else repr(value)


def _input(item: Mapping[str, Any]) -> str:
    return f"{item['dtype']} {_shape(item['shape'])}"


def _shape(shape: Any) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"
