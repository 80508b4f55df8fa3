"""Checks a manifest by section 8 of pemn.md, in the order of 10.1. Standard library only.

It says whether a manifest is valid, and what modules it describes; it builds and runs nothing. What
takes PyTorch to know is not checked here: whether the class of a layer accepts its arguments
together (`groups` that divide the channels), which names PyTorch gives another meaning, and the
trial run (8.7). `reference_tensors.py` compares with the tensors of the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import reference_lists as lists
from reference_errors import require
from reference_graphs import (
    Json,
    argument,
    array,
    check_dtype,
    check_graph,
    check_keys,
    check_shape,
    is_identifier,
    is_name,
    is_path,
    naming,
    schema,
)

MODULES, NODES = 1 << 16, 1 << 18  # 9

# -------------------------------------------------------------------------- 8.2 and 8.3 Modules

CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")
# 8.2: for each composite its children, with the classes that they may have
NORMS = ("LayerNorm", "RMSNorm")
COMPOSITES: dict[str, dict[str, tuple[str, ...]]] = {
    "TransformerEncoder": {"layers": ("ModuleList",), "norm": NORMS},
    "TransformerDecoder": {"layers": ("ModuleList",), "norm": NORMS},
    "Transformer": {"encoder": ("TransformerEncoder",), "decoder": ("TransformerDecoder",)},
}
# 8.3: layers within layers
ENCODER = ["self_attn", "linear1", "dropout", "linear2", "norm1", "norm2", "dropout1", "dropout2"]
INNER = {
    "MultiheadAttention": ["out_proj"],
    "TransformerEncoderLayer": ENCODER,
    "TransformerDecoderLayer": [*ENCODER, "multihead_attn", "norm3", "dropout3"],
}
LAYER_TENSOR = re.compile(
    r"weight|bias|running_(mean|var)|num_batches_tracked|in_proj_(weight|bias)|[qkv]_proj_weight"
    r"|bias_[kv]|(weight|bias)_(ih|hh|hr)(_l[0-9]{1,4}(_reverse)?)?"
)


@dataclass
class Module:
    kind: str  # of the table in 8.2: "user module", "container", "layer" or "composite"
    cls: str
    path: str  # its first one
    graphs: list[list[Json]] = field(default_factory=list)
    params: dict[str, list[int]] = field(default_factory=dict)  # of a user module: shapes
    buffers: dict[str, list[int]] = field(default_factory=dict)
    arguments: Json = field(default_factory=dict)  # of a layer, without those left out
    children: dict[str, Module] = field(default_factory=dict)
    count: int = 1  # modules, shared ones at each of their places
    operations: int = 0  # of one call; 0 until they are counted


def layer(cls: str, path: str) -> Module:
    module = Module("layer", cls, path)
    for name in INNER.get(cls, ()):
        inner = "MultiheadAttention" if name.endswith("attn") else ""
        module.children[name] = layer(inner, f"{path}.{name}")
    return module


class Tree:
    """8.2: checks the nodes, depth first. `modules` has every module by its first path."""

    root: Module

    def __init__(self, graphs: dict[str, list[Json]]) -> None:
        self.graphs = graphs
        self.unused = set(graphs)
        self.modules: dict[str, Module] = {}
        self.users: list[Module] = []
        self.buffers: set[str] = set()
        self.so_far = 0

    def count(self, modules: int) -> None:
        self.so_far += modules
        require(self.so_far <= MODULES, "limit", "modules")

    def check(self, node: Any, path: str) -> Module:
        self.count(1)
        schema(isinstance(node, dict), "a module is no object")
        if "same" in node:
            check_keys(node, "name", "same")
            known = isinstance(node["same"], str) and node["same"] in self.modules
            naming(known, "the same as no module before it")
            self.count(self.modules[node["same"]].count - 1)
            return self.modules[node["same"]]
        module = self.user_module(node, path) if "graph" in node else self.torch_module(node, path)
        below = f"{path}." if path else ""
        for position, child in enumerate(array(node, "children")):
            name = str(position)
            if isinstance(child, dict):
                name = child.get("name", name)
            naming(is_name(name), f"a module called {name}")
            taken = (module.children, module.params, module.buffers)
            naming(not any(name in names for names in taken), f"second {name}")
            module.children[name] = self.check(child, below + name)
            module.count += module.children[name].count
        if module.kind == "composite":
            check_composite(module, node)
        if module.graphs:
            self.users.append(module)
        self.modules[path] = module
        return module

    def user_module(self, node: Json, path: str) -> Module:
        keys = ("name", "graph", "train_graph", "cls", "params", "buffers", "children")
        check_keys(node, *keys)
        names = [node["graph"]]
        if node["graph"] is None:
            schema("cls" in node and "train_graph" not in node, "neither graph nor class")
            names = []
        elif node.get("train_graph") is not None:
            names.append(node["train_graph"])
        for name in names:
            schema(isinstance(name, str) and name in self.graphs, f"no graph {name}")
            self.unused.discard(name)
        cls = node.get("cls", node["graph"])
        naming(is_identifier(cls), "the name of a class")
        module = Module("user module", cls, path, [self.graphs[name] for name in names])
        for key, shapes in (("params", module.params), ("buffers", module.buffers)):
            for pair in array(node, key):
                schema(isinstance(pair, list) and len(pair) == 2, f"{key}: not a pair")
                naming(is_name(pair[0]), f"tensor {pair[0]}")
                taken = pair[0] in module.params or pair[0] in module.buffers
                naming(not taken, f"second tensor {pair[0]}")
                check_shape(pair[1])
                shapes[pair[0]] = pair[1]
                if key == "buffers":
                    self.buffers.add(f"{path}.{pair[0]}" if path else pair[0])
        return module

    def torch_module(self, node: Json, path: str) -> Module:
        cls = node.get("cls")
        schema(isinstance(cls, str), "a module without class")
        if cls in CONTAINERS:
            check_keys(node, "name", "cls", "children")
            return Module("container", cls, path)
        require(cls in lists.LAYERS, "manifest-class", cls)
        own = ["name", "cls"]
        if cls in COMPOSITES:
            array(node, "children")
            own.append("children")
        given = {key: node[key] for key in node if key not in own and not key.startswith("?")}
        arguments = lists.LAYERS[cls]
        argument(arguments.keys() >= given.keys(), f"{cls} takes no such argument")
        size = 1
        for name, domain in arguments.items():
            argument(name in given or not domain.required, f"{cls} needs {name}")
            if name in given:
                value = given[name]
                argument(domain.admits(value), f"{cls}: {name}={value}")
                for number in value if isinstance(value, list) else [value] * domain.counted:
                    size *= number if domain.counted else 1
        argument(size <= 1 << 50, f"the size of a {cls}")
        if cls in COMPOSITES:
            return Module("composite", cls, path)
        module = layer(cls, path)
        module.arguments = given
        return module

    def check_calls(self, root: Module) -> None:
        schema(not self.unused, f"graphs that are not used: {self.unused}")
        named = 0
        for graph in (graph for user in self.users for graph in user.graphs):
            for kind in ("mod", "attr"):
                named += len({node[kind] for node in graph if kind in node})
        require(named <= NODES, "limit", "modules and tensors that graphs name")
        for user in self.users:
            for graph in user.graphs:
                for node in graph:
                    if "attr" in node:
                        check_tensor(user, node["attr"])
            count_operations(user)
        count_operations(root)


def check_composite(module: Module, node: Json) -> None:
    allowed = COMPOSITES[module.cls]
    names = [name for name in allowed if name in module.children]
    whole = list(module.children) == names and set(allowed) - set(names) <= {"norm"}
    schema(whole, f"the children of {module.cls}")
    for child in node["children"]:
        inside = module.children[child["name"]]
        fits = "same" not in child and inside.kind != "user module"
        schema(fits and inside.cls in allowed[child["name"]], "the class of a child")
        if inside.cls == "ModuleList":
            schema(len(inside.children) > 0, "no layers")
            for item in child["children"]:
                schema("graph" not in item and "name" not in item, "no layer, or with a name")
                schema(item.get("cls") == f"{module.cls}Layer", "layers of another class")


def count_operations(module: Module) -> int:
    """8.2: "One call of any module runs at most `nodes` operations"."""
    if module.operations:
        return module.operations
    total = 1
    if module.kind == "composite":
        total = module.count
    elif module.kind == "container":
        schema(module.cls == "Sequential", f"a {module.cls} is called")
        total += sum(count_operations(child) for child in module.children.values())
    elif module.kind == "user module":
        schema(bool(module.graphs), "a module without forward is called")
        for graph in module.graphs:
            work = [count_operations(find(module, n["mod"])) if "mod" in n else 1 for n in graph]
            total = max(total, sum(work))
    require(total <= NODES, "limit", "operations of one call")
    module.operations = total
    return total


def find(module: Module, path: str) -> Module:
    for name in path.split("."):
        naming(name in module.children, f"no module {path}")
        module = module.children[name]
    return module


def check_tensor(module: Module, path: str) -> None:
    owner, _, name = path.rpartition(".")
    module = find(module, owner) if owner else module
    if module.kind in ("layer", "composite"):
        naming(LAYER_TENSOR.fullmatch(name) is not None, f"a layer has no {name}")
    else:
        naming(name in {**module.params, **module.buffers}, f"no tensor {path}")


# --------------------------------------------------------------------------- 8.1 and 8.8: the top


def check_example(item: Any) -> None:
    """8.1: an element of `inputs`."""
    check_keys(item, "dtype", "shape", "sizes")
    check_dtype(item.get("dtype"))
    check_shape(item.get("shape"), varies=True)
    if "sizes" in item:
        check_shape(item["sizes"])
        pairs = list(zip(item["shape"], item["sizes"], strict=False))
        same = all(size in (None, given) for size, given in pairs)
        argument(same and len(item["shape"]) == len(item["sizes"]), "sizes that shape has not")


def check_manifest(manifest: Any) -> Tree | None:
    """Checks a manifest; returns what it describes, None for one of `builder/1`."""
    schema(isinstance(manifest, dict), "the manifest is no object")
    common = ("format", "training", "frozen", "inputs")
    by_code = manifest.get("format") == "builder/1"
    own = ("builder", "kwargs") if by_code else ("tree", "graphs", "nonpersistent")
    check_keys(manifest, *common, *own)
    schema(by_code or manifest.get("format") == "tree/1", "an unknown format")
    schema(isinstance(manifest.get("training", False), bool), "training")
    for item in array(manifest, "inputs"):
        check_example(item)
    for key in ("frozen", "nonpersistent"):
        paths = array(manifest, key)
        naming(all(map(is_path, paths)), f"{key}: not a path")
        schema(len(set(paths)) == len(paths), f"{key}: a path twice")
    if by_code:
        check_builder(manifest)
        return None
    graphs = manifest.get("graphs", {})
    schema(isinstance(graphs, dict), "graphs are no object")
    total = sum(len(nodes) for nodes in graphs.values() if isinstance(nodes, list))
    require(total <= NODES, "limit", "nodes of graphs")
    for name in sorted(graphs):
        naming(is_identifier(name), f"a graph called {name}")
        check_graph(graphs[name])
    root, tree = manifest.get("tree"), Tree(graphs)
    naming(not isinstance(root, dict) or is_name(root.get("name", "0")), "the root's name")
    tree.root = tree.check(root, "")
    tree.check_calls(tree.root)
    for path in manifest.get("frozen", []):
        check_tensor(tree.root, path)
    naming(tree.buffers.issuperset(manifest.get("nonpersistent", [])), "no such buffer")
    return tree


def check_builder(manifest: Json) -> None:
    builder, kwargs = manifest.get("builder"), manifest.get("kwargs", {})
    word = "[A-Za-z_][A-Za-z0-9_]*"
    sound = isinstance(builder, str) and len(builder) <= 200
    naming(sound and bool(re.fullmatch(rf"{word}(\.{word}){{0,15}}:{word}", builder)), "builder")
    schema(isinstance(kwargs, dict), "kwargs are no object")
    naming(all(map(is_identifier, kwargs)), "an argument's name")


def check_asked_for(manifest: Any, trust: Sequence[str]) -> None:
    """8 and 8.8: what a reader checks first that is asked for a module."""
    require(manifest is not None, "no-manifest", "the file has only tensors")
    if manifest["format"] == "builder/1":
        trusted = manifest["builder"] in trust
        require(trusted, "manifest-trust", "code that the user has not named")
