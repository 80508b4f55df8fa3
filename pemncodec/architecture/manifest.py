"""Architecture of a network as JSON, schema `tree/1` (spec/pemn.md section 8).

The module hierarchy is a tree. Its leaves are layers of `torch.nn` with their arguments; classes
of the user are described by a graph of what their `forward` does. This module is the security
boundary: what passes `validate_manifest` names nothing but what the tables of `layers` and
`operators` hold.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

from pemncodec.architecture.composites import COMPOSITES, CONTAINERS, INNER_LAYERS
from pemncodec.architecture.layers import LEAF_CLASSES, check_arguments, is_layer_tensor
from pemncodec.architecture.operators import (
    check_shape,
    check_tensor_spec,
    is_identifier,
    is_name,
    is_optional,
    is_path,
    validate_graph,
)
from pemncodec.coders.canonical_json import decode_json, encode_json
from pemncodec.coders.zstd import decode_zstd, encode_zstd
from pemncodec.errors import LimitError, ManifestError
from pemncodec.limits import Limits

__all__ = [
    "BUILDER_FORMAT",
    "FORMAT",
    "LEAF_CLASSES",
    "decode_manifest",
    "encode_manifest",
    "layer_arguments",
    "validate_manifest",
]

FORMAT: Final = "tree/1"
BUILDER_FORMAT: Final = "builder/1"

_TOP_FIELDS: Final = frozenset(
    {"format", "tree", "graphs", "training", "frozen", "nonpersistent", "inputs"}
)
_BUILDER_FIELDS: Final = frozenset({"format", "builder", "kwargs", "training", "frozen", "inputs"})
_BUILDER: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*){0,15}:[A-Za-z_]\w*", re.ASCII)
_USER_FIELDS: Final = frozenset(
    {"name", "cls", "graph", "train_graph", "params", "buffers", "children"}
)
_CONTAINER_FIELDS: Final = frozenset({"name", "cls", "children"})
_SAME_FIELDS: Final = frozenset({"name", "same"})
_INPUT_FIELDS: Final = frozenset({"dtype", "shape", "sizes"})


def encode_manifest(manifest: dict[str, Any]) -> bytes:
    """One Zstandard frame of canonical JSON.

    Raises:
        ManifestError: the manifest breaks a rule of the spec.
    """
    validate_manifest(manifest, Limits())
    return encode_zstd(encode_json(manifest))


def decode_manifest(data: bytes, limits: Limits) -> dict[str, Any]:
    """The validated manifest that `encode_manifest` wrote.

    Raises:
        CorruptError: not a Zstandard frame, or not the JSON that the format allows.
        LimitError: larger or nested deeper than `limits` allow.
        ManifestError: the manifest breaks a rule of the spec.
    """
    text = decode_zstd(data, limit=limits.manifest_bytes)
    manifest = decode_json(text, depth=limits.json_depth)
    validate_manifest(manifest, limits)
    assert isinstance(manifest, dict)  # narrows the type: validated above
    return manifest


def validate_manifest(manifest: Any, limits: Limits) -> None:
    """Check every field of a manifest, in the order of the spec (sections 8 and 10.1).

    Raises:
        ManifestError: the manifest breaks a rule; `code` says which.
        LimitError: more modules, nodes or dimensions than `limits` allow.
    """
    by_code = isinstance(manifest, dict) and manifest.get("format") == BUILDER_FORMAT
    _check_fields(manifest, _BUILDER_FIELDS if by_code else _TOP_FIELDS, "the manifest")
    if not by_code and manifest.get("format") != FORMAT:
        raise ManifestError("manifest-schema", f"the format is not {FORMAT} or {BUILDER_FORMAT}")
    if not isinstance(manifest.get("training", False), bool):
        raise ManifestError("manifest-schema", "training is no boolean")
    inputs = _array(manifest, "inputs", "the manifest")
    for index, item in enumerate(inputs):
        _check_input(item, f"input {index}", limits)
    for key in ("frozen", "nonpersistent"):
        names = _array(manifest, key, "the manifest")
        if not all(is_path(name) for name in names):
            raise ManifestError("manifest-name", f"{key} holds what is no name of a tensor")
        if len(set(names)) != len(names):
            raise ManifestError("manifest-schema", f"{key} holds a name twice")
    if by_code:
        _check_builder(manifest)
        return
    try:
        tree = _Tree(_graphs(manifest.get("graphs", {}), limits), limits)
        node = manifest.get("tree")
        if isinstance(node, dict) and not is_name(node.get("name", "0")):
            raise ManifestError("manifest-name", "the outermost module has an invalid name")
        root = tree.check(node, "", 0)
        tree.check_calls(root)
        for name in manifest.get("frozen", []):
            _check_tensor(root, name, "frozen")
        for name in manifest.get("nonpersistent", []):
            if name not in tree.buffers:
                raise ManifestError("manifest-name", f"nonpersistent: no buffer {name[:60]!r}")
    except RecursionError:
        raise LimitError("limit", "the manifest is nested too deeply") from None


def _check_builder(manifest: dict[str, Any]) -> None:
    builder, kwargs = manifest.get("builder"), manifest.get("kwargs", {})
    if not isinstance(builder, str) or len(builder) > 200 or not _BUILDER.fullmatch(builder):
        raise ManifestError("manifest-name", "the builder is not an import path pkg.module:name")
    if not isinstance(kwargs, dict):
        raise ManifestError("manifest-schema", "kwargs is no object")
    for name in kwargs:
        if not is_identifier(name):
            raise ManifestError("manifest-name", f"the builder takes no argument {name[:60]!r}")


def layer_arguments(node: dict[str, Any]) -> dict[str, Any]:
    """Arguments that a validated layer gives, without those that it leaves at their defaults."""
    return {
        key: node[key]
        for key in node
        if key not in ("cls", "name") and not is_optional(key)
        if key != "children" or node.get("cls") not in COMPOSITES
    }


def _check_fields(value: Any, known: Collection[str], place: str) -> None:
    if not isinstance(value, dict):
        raise ManifestError("manifest-schema", f"{place} is no object")
    for key in value:
        if key not in known and not is_optional(key):
            raise ManifestError("manifest-schema", f"{place}: unknown field {str(key)[:40]!r}")


def _array(value: dict[str, Any], key: str, place: str) -> list[Any]:
    array = value.get(key, [])
    if not isinstance(array, list):
        raise ManifestError("manifest-schema", f"{place}: {key} is no array")
    return array


def _check_input(item: Any, place: str, limits: Limits) -> None:
    _check_fields(item, _INPUT_FIELDS, place)
    check_tensor_spec(item, place, limits)
    if "sizes" in item:
        check_shape(item["sizes"], place, limits)
        shape = item["shape"]
        fits = len(shape) == len(item["sizes"]) and all(
            size in (None, given) for size, given in zip(shape, item["sizes"], strict=True)
        )
        if not fits:
            raise ManifestError("manifest-argument", f"{place}: its sizes do not fit its shape")


@dataclass(frozen=True, slots=True)
class _Graph:
    """What a graph needs of the module that it belongs to."""

    calls: Counter[str]
    tensors: Collection[str]
    steps: int  # nodes that call no module


def _graphs(graphs: Any, limits: Limits) -> dict[str, _Graph]:
    if not isinstance(graphs, dict):
        raise ManifestError("manifest-schema", "graphs is no object")
    total = sum(len(nodes) for nodes in graphs.values() if isinstance(nodes, list))
    if total > limits.nodes:
        raise LimitError("limit", f"{total} graph nodes, the limit is {limits.nodes}")
    result = {}
    for name in sorted(graphs):
        nodes = graphs[name]
        if not is_identifier(name):
            raise ManifestError("manifest-name", f"{str(name)[:60]!r} is no name of a graph")
        validate_graph(name, nodes, limits)
        calls: Counter[str] = Counter(node["mod"] for node in nodes if "mod" in node)
        tensors = dict.fromkeys(node["attr"] for node in nodes if "attr" in node)
        result[name] = _Graph(calls, tensors, len(nodes) - calls.total())
    return result


@dataclass(slots=True)
class _Module:
    """A checked module."""

    path: str
    kind: str  # "layer", "Sequential" or "graph"; "" for what cannot be called
    layer: str = ""  # its class, when it is a layer
    graphs: tuple[_Graph, ...] = ()
    tensors: Collection[str] = ()
    children: dict[str, _Module] = field(default_factory=dict)
    modules: int = 1  # with all below, shared ones counted each time


class _Tree:
    """Checks the module tree; one instance for one manifest."""

    def __init__(self, graphs: dict[str, _Graph], limits: Limits) -> None:
        self.graphs = graphs
        self.limits = limits
        self.unused = set(graphs)
        self.done: dict[str, _Module] = {}
        self.buffers: set[str] = set()
        self.count = 0  # modules so far, shared ones at each of their places
        self.steps: dict[int, int] = {}

    def check(self, node: Any, path: str, depth: int) -> _Module:
        self._count_modules(1)
        if depth > self.limits.json_depth:
            raise LimitError("limit", f"modules nested deeper than {self.limits.json_depth}")
        place = f"module {path!r}"
        if not isinstance(node, dict):
            raise ManifestError("manifest-schema", f"{place} is no object")
        if "same" in node:
            return self._same(node, place)
        if "graph" in node:
            module = self._user_module(node, path, place)
        else:
            module = self._torch_module(node, path, place)
        for index, child in enumerate(_array(node, "children", place)):
            name = child.get("name", str(index)) if isinstance(child, dict) else str(index)
            if not is_name(name):
                raise ManifestError(
                    "manifest-name", f"{place}: no child may be called {str(name)[:60]!r}"
                )
            if name in module.children or name in module.tensors:
                raise ManifestError("manifest-name", f"{place} has two things called {name}")
            below = self.check(child, f"{path}.{name}" if path else name, depth + 1)
            module.children[name] = below
            module.modules += below.modules
        if module.layer in COMPOSITES:
            _check_composite(module, _array(node, "children", place), place)
        # Only now, so that "same" cannot name a module around itself.
        self.done[path] = module
        return module

    def _same(self, node: dict[str, Any], place: str) -> _Module:
        _check_fields(node, _SAME_FIELDS, place)
        target = node["same"]
        if not isinstance(target, str) or target not in self.done:
            raise ManifestError("manifest-name", f"{place} is the same as no module before it")
        shared = self.done[target]
        self._count_modules(shared.modules - 1)
        return shared

    def _count_modules(self, more: int) -> None:
        self.count += more
        if self.count > self.limits.modules:
            raise LimitError("limit", f"more than {self.limits.modules} modules")

    def _torch_module(self, node: dict[str, Any], path: str, place: str) -> _Module:
        name = node.get("cls")
        if not isinstance(name, str):
            raise ManifestError("manifest-schema", f"{place} has no class")
        if name in CONTAINERS:
            _check_fields(node, _CONTAINER_FIELDS, place)
            return _Module(path, name if name == "Sequential" else "")
        if name not in LEAF_CLASSES and name not in COMPOSITES:
            raise ManifestError("manifest-class", f"{place}: class {name[:60]!r} is not allowed")
        if name in COMPOSITES:
            _array(node, "children", place)
        check_arguments(name, layer_arguments(node), place)
        return _layer(path, name)

    def _user_module(self, node: dict[str, Any], path: str, place: str) -> _Module:
        _check_fields(node, _USER_FIELDS, place)
        names = [node["graph"]]
        if node["graph"] is None and "train_graph" not in node and "cls" in node:
            names = []
        elif node.get("train_graph") is not None:
            names.append(node["train_graph"])
        for name in names:
            if not isinstance(name, str) or name not in self.graphs:
                raise ManifestError("manifest-schema", f"{place}: no graph {str(name)[:60]!r}")
            self.unused.discard(name)
        if not is_identifier(node.get("cls", "Module")):
            raise ManifestError("manifest-name", f"{place}: not a name of a class")
        tensors: set[str] = set()
        for key in ("params", "buffers"):
            for item in _array(node, key, place):
                if not isinstance(item, list) or len(item) != 2:
                    raise ManifestError("manifest-schema", f"{place}: {key} holds no pair")
                if not is_name(item[0]) or item[0] in tensors:
                    raise ManifestError(
                        "manifest-name",
                        f"{place}: no tensor may be called {str(item[0])[:60]!r}, or there are two",
                    )
                check_shape(item[1], f"{place}, {item[0]}", self.limits)
                tensors.add(item[0])
                if key == "buffers":
                    self.buffers.add(f"{path}.{item[0]}" if path else item[0])
        graphs = tuple(self.graphs[name] for name in names)
        return _Module(path, "graph" if names else "", "", graphs, tensors)

    def check_calls(self, root: _Module) -> None:
        """Check that every module and tensor that a graph uses is there, and the work bounded."""
        if self.unused:
            raise ManifestError("manifest-schema", f"graph {min(self.unused)} is not used")
        users = [module for module in self.done.values() if module.kind == "graph"]
        lookups = sum(len(g.tensors) + len(g.calls) for user in users for g in user.graphs)
        if lookups > self.limits.nodes:
            raise LimitError("limit", f"more than {self.limits.nodes} uses of modules and tensors")
        for module in users:
            for graph in module.graphs:
                for name in graph.tensors:
                    _check_tensor(module, name, f"module {module.path!r}")
            self._steps(module)
        self._steps(root)

    def _steps(self, module: _Module) -> int:
        """Operations of one call; a graph may call one module many times."""
        if id(module) in self.steps:
            return self.steps[id(module)]
        steps = 1
        if module.layer in COMPOSITES:
            steps = module.modules
        elif module.kind == "Sequential":
            steps += sum(self._steps(child) for child in module.children.values())
        elif module.kind == "":
            raise ManifestError(
                "manifest-schema", f"module {module.path!r} is called, but has no forward"
            )
        for graph in module.graphs:
            work = graph.steps
            for target, times in graph.calls.items():
                callee = _find(module, target, f"module {module.path!r}")
                work += times * self._steps(callee)
            steps = max(steps, work)
        if steps > self.limits.nodes:
            raise LimitError("limit", f"one call runs more than {self.limits.nodes} operations")
        self.steps[id(module)] = steps
        return steps


def _layer(path: str, class_name: str) -> _Module:
    module = _Module(path, "layer", class_name)
    for name, inner in INNER_LAYERS.get(class_name, {}).items():
        module.children[name] = _layer(f"{path}.{name}", inner)
    return module


def _check_composite(module: _Module, nodes: list[Any], place: str) -> None:
    """Check that a composite has the layers as children that its class is built of."""
    composite = COMPOSITES[module.layer]
    expected = [name for name in composite.children if name in module.children]
    required = [name for name in composite.children if name != "norm"]
    if list(module.children) != expected or not set(required) <= set(expected):
        raise ManifestError("manifest-schema", f"{place}: not the children of {module.layer}")
    for node in nodes:
        if _torch_class(node) not in composite.children[node["name"]]:
            raise ManifestError("manifest-schema", f"{place}: not a child of {module.layer}")
        if node["cls"] == "ModuleList":
            layers = node.get("children", [])
            if not layers or any(
                _torch_class(layer) != composite.repeated or "name" in layer for layer in layers
            ):
                raise ManifestError(
                    "manifest-schema", f"{place}: layers must be {composite.repeated}, in order"
                )


def _torch_class(node: dict[str, Any]) -> str:
    """The class of `torch.nn` that a checked node is of; "" for one of the user or shared."""
    return "" if "graph" in node else str(node.get("cls", ""))


def _find(module: _Module, path: str, place: str) -> _Module:
    for name in path.split("."):
        if name not in module.children:
            raise ManifestError("manifest-name", f"{place}: no module {path[:60]!r} below it")
        module = module.children[name]
    return module


def _check_tensor(module: _Module, path: str, place: str) -> None:
    owner, _, name = path.rpartition(".")
    if owner:
        module = _find(module, owner, place)
    known = is_layer_tensor(name) if module.layer else name in module.tensors
    if not known:
        raise ManifestError("manifest-name", f"{place}: no tensor {path[:60]!r}")
