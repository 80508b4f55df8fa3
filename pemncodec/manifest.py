"""Architecture of a network as JSON, schema `tree/1` (spec/pemn.md section 8).

The module hierarchy is a tree. Its leaves are layers of `torch.nn` with their arguments; classes
of the user are described by a graph of what their `forward` does. This module is the security
boundary: what passes `validate_manifest` names nothing but what the tables of `layers` and
`operators` hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

from pemncodec.coders.canonical_json import decode_json, encode_json
from pemncodec.coders.zstd import decode_zstd, encode_zstd
from pemncodec.errors import LimitError, ManifestError
from pemncodec.layers import (
    CONTAINERS,
    ELEMENT_LIMIT,
    INT_LIMIT,
    LEAF_CLASSES,
    check_arguments,
)
from pemncodec.limits import Limits
from pemncodec.operators import (
    DTYPES,
    is_identifier,
    is_name,
    is_optional,
    is_path,
    validate_graph,
)

__all__ = [
    "FORMAT",
    "LEAF_CLASSES",
    "decode_manifest",
    "encode_manifest",
    "layer_arguments",
    "validate_manifest",
]

FORMAT: Final = "tree/1"

_TOP_FIELDS: Final = frozenset({"format", "tree", "graphs", "training", "frozen", "inputs"})
_USER_FIELDS: Final = frozenset(
    {"name", "cls", "graph", "train_graph", "params", "buffers", "children"}
)
_CONTAINER_FIELDS: Final = frozenset({"name", "cls", "children"})
_SAME_FIELDS: Final = frozenset({"name", "same"})
_INPUT_FIELDS: Final = frozenset({"dtype", "shape"})
_LAYER_TENSORS: Final = frozenset(
    {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
)


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
    """Check every field of a manifest (spec/pemn.md section 8).

    Raises:
        ManifestError: the manifest breaks a rule; `code` says which.
        LimitError: more modules, nodes or dimensions than `limits` allow.
    """
    _check_fields(manifest, _TOP_FIELDS, "the manifest")
    if manifest.get("format") != FORMAT:
        raise ManifestError("manifest-schema", f"the format is not {FORMAT}")
    if not isinstance(manifest.get("training", False), bool):
        raise ManifestError("manifest-schema", "training is no boolean")
    inputs = _array(manifest, "inputs", "the manifest")
    for index, item in enumerate(inputs):
        _check_input(item, f"input {index}", limits)
    frozen = _array(manifest, "frozen", "the manifest")
    if not all(is_path(name) for name in frozen):
        raise ManifestError("manifest-name", "frozen holds what is no name of a parameter")
    if len(set(frozen)) != len(frozen):
        raise ManifestError("manifest-schema", "frozen holds a name twice")
    try:
        tree = _Tree(_graphs(manifest.get("graphs", {}), limits), limits)
        root = tree.check(manifest.get("tree"), "", 0)
        tree.check_calls(root)
        for name in frozen:
            _check_tensor(root, name, "frozen")
    except RecursionError:
        raise LimitError("limit", "the manifest is nested too deeply") from None


def layer_arguments(node: dict[str, Any]) -> dict[str, Any]:
    """Arguments that a validated layer gives, without those that it leaves at their defaults."""
    return {key: node[key] for key in node if key not in ("cls", "name") and not is_optional(key)}


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


def _check_shape(shape: Any, place: str, limits: Limits, *, open_sizes: bool = False) -> None:
    if not isinstance(shape, list):
        raise ManifestError("manifest-schema", f"{place}: the shape is no array")
    if len(shape) > limits.dimensions:
        raise LimitError("limit", f"{place} has more than {limits.dimensions} dimensions")
    elements = 1
    for size in shape:
        if size is None and open_sizes:
            continue
        if type(size) is not int or not 0 <= size <= INT_LIMIT:
            raise ManifestError("manifest-argument", f"{place}: not a size in the shape")
        elements *= size
    if elements > ELEMENT_LIMIT:
        raise ManifestError("manifest-argument", f"{place} has more than 2^50 elements")


def _check_input(item: Any, place: str, limits: Limits) -> None:
    _check_fields(item, _INPUT_FIELDS, place)
    dtype = item.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ManifestError("manifest-argument", f"{place}: not a dtype")
    _check_shape(item.get("shape"), place, limits, open_sizes=True)


@dataclass(frozen=True, slots=True)
class _Graph:
    """What a graph needs of the module that it belongs to."""

    calls: Counter[str]
    tensors: frozenset[str]
    steps: int  # nodes that call no module


def _graphs(graphs: Any, limits: Limits) -> dict[str, _Graph]:
    if not isinstance(graphs, dict):
        raise ManifestError("manifest-schema", "graphs is no object")
    total = sum(len(nodes) for nodes in graphs.values() if isinstance(nodes, list))
    if total > limits.nodes:
        raise LimitError("limit", f"{total} graph nodes, the limit is {limits.nodes}")
    result = {}
    for name, nodes in graphs.items():
        if not is_identifier(name):
            raise ManifestError("manifest-name", f"{str(name)[:60]!r} is no name of a graph")
        validate_graph(name, nodes)
        calls: Counter[str] = Counter(node["mod"] for node in nodes if "mod" in node)
        tensors = frozenset(node["attr"] for node in nodes if "attr" in node)
        result[name] = _Graph(calls, tensors, len(nodes) - calls.total())
    return result


@dataclass(slots=True)
class _Module:
    """A checked module."""

    path: str
    kind: str  # "layer", "Sequential" or "graph"; "" for what cannot be called
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
        self.count = 0
        self.lookups = 0
        self.steps: dict[int, int] = {}

    def check(self, node: Any, path: str, depth: int) -> _Module:
        self.count += 1
        if self.count > self.limits.modules or depth > self.limits.json_depth:
            raise LimitError("limit", f"more than {self.limits.modules} modules, or too deep")
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
                raise ManifestError("manifest-name", f"{place}: {str(name)[:60]!r} names a child")
            if name in module.children or name in module.tensors:
                raise ManifestError("manifest-name", f"{place}: second {name}")
            below = self.check(child, f"{path}.{name}" if path else name, depth + 1)
            module.children[name] = below
            module.modules += below.modules
            if module.modules > self.limits.modules:
                raise LimitError("limit", f"more than {self.limits.modules} modules")
        # Only now, so that "same" cannot name a module around itself.
        self.done[path] = module
        return module

    def _same(self, node: dict[str, Any], place: str) -> _Module:
        _check_fields(node, _SAME_FIELDS, place)
        target = node["same"]
        if not isinstance(target, str) or target not in self.done:
            raise ManifestError("manifest-name", f"{place} is the same as no module before it")
        return self.done[target]

    def _torch_module(self, node: dict[str, Any], path: str, place: str) -> _Module:
        name = node.get("cls")
        if not isinstance(name, str):
            raise ManifestError("manifest-schema", f"{place} has no class")
        if name in CONTAINERS:
            _check_fields(node, _CONTAINER_FIELDS, place)
            return _Module(path, name if name == "Sequential" else "")
        if name not in LEAF_CLASSES:
            raise ManifestError("manifest-class", f"{place}: class {name[:60]!r} is not allowed")
        check_arguments(name, layer_arguments(node), place)
        return _Module(path, "layer", tensors=_LAYER_TENSORS)

    def _user_module(self, node: dict[str, Any], path: str, place: str) -> _Module:
        _check_fields(node, _USER_FIELDS, place)
        names = [node["graph"]] + ([node["train_graph"]] if "train_graph" in node else [])
        if node["graph"] is None and len(names) == 1 and "cls" in node:
            names = []
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
                    raise ManifestError("manifest-name", f"{place}: {str(item[0])[:60]!r}")
                _check_shape(item[1], f"{place}, {item[0]}", self.limits)
                tensors.add(item[0])
        graphs = tuple(self.graphs[name] for name in names)
        return _Module(path, "graph" if names else "", graphs, tensors)

    def check_calls(self, root: _Module) -> None:
        """Check that every module and tensor that a graph uses is there, and the work bounded."""
        if self.unused:
            raise ManifestError("manifest-schema", f"graph {min(self.unused)} is not used")
        for module in self.done.values():
            if module.kind == "graph":
                for name in {name for graph in module.graphs for name in graph.tensors}:
                    self._count_lookup()
                    _check_tensor(module, name, f"module {module.path!r}")
                self._steps(module)
        self._steps(root)

    def _steps(self, module: _Module) -> int:
        """Operations of one call; a graph may call one module many times."""
        if id(module) in self.steps:
            return self.steps[id(module)]
        steps = 1
        if module.kind == "Sequential":
            steps += sum(self._steps(child) for child in module.children.values())
        elif module.kind == "":
            raise ManifestError("manifest-schema", f"module {module.path!r} is called: no forward")
        for graph in module.graphs:
            work = graph.steps
            for target, times in graph.calls.items():
                self._count_lookup()
                callee = _find(module, target, f"module {module.path!r}")
                work += times * self._steps(callee)
            steps = max(steps, work)
        if steps > self.limits.nodes:
            raise LimitError("limit", f"one call runs more than {self.limits.nodes} operations")
        self.steps[id(module)] = steps
        return steps

    def _count_lookup(self) -> None:
        self.lookups += 1
        if self.lookups > self.limits.nodes:
            raise LimitError("limit", f"more than {self.limits.nodes} uses of modules and tensors")


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
    if name not in module.tensors:
        raise ManifestError("manifest-name", f"{place}: no tensor {path[:60]!r}")
