"""The module tree of a manifest, from a module and its graphs (spec/pemn.md section 8.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pemncodec.architecture.composites import COMPOSITES
from pemncodec.architecture.describable import class_name, refuse
from pemncodec.architecture.forwards import Forwards, Nodes
from pemncodec.architecture.layer_modules import build_layer, describe_layer, difference, is_known
from pemncodec.architecture.layers import LEAF_CLASSES, check_arguments
from pemncodec.coders.canonical_json import encode_json
from pemncodec.errors import ManifestError, UnsupportedModelError
from pemncodec.tensors import same_bits


class Tree:
    """The module tree of a manifest, with graphs shared by content."""

    def __init__(self, root: nn.Module, evaluating: Forwards, training: Forwards) -> None:
        self.graphs: dict[str, Nodes] = {}
        self.tensors: dict[str, Tensor] = {}
        self._evaluating = evaluating
        self._training = training
        self._paths: dict[int, str] = {}
        self._names: dict[str, str] = {}  # content of a graph -> its name
        self.root = self._node(root, "")

    def _node(self, module: nn.Module, path: str) -> dict[str, Any]:
        if id(module) in self._paths:
            return {"same": self._paths[id(module)]}
        self._paths[id(module)] = path
        name = type(module).__name__
        if is_known(module) and name in LEAF_CLASSES:
            return _layer_node(module, path)
        node: dict[str, Any] = self._user(module, path)
        if is_known(module):
            node = {"cls": name}
            if name in COMPOSITES:
                node |= describe_layer(module)
        children: list[dict[str, Any]] = []
        for key, child in module._modules.items():
            if child is not None:
                below = self._node(child, f"{path}.{key}" if path else key)
                children.append(below if key == str(len(children)) else {"name": key, **below})
        if children:
            node["children"] = children
        return node

    def _user(self, module: nn.Module, path: str) -> dict[str, Any]:
        name = class_name(module)
        graph = self._evaluating.graphs.get(path)
        train_graph = self._training.graphs.get(path)
        node: dict[str, Any] = {"graph": None, "cls": name}
        if graph is not None:
            node = {"graph": self._share(name, graph)}
            if node["graph"] != name:
                node["cls"] = name
            if train_graph is None:
                node["train_graph"] = None
            elif train_graph != graph:
                node["train_graph"] = self._share(name, train_graph)
        constants = {
            **self._evaluating.constants.get(path, {}),
            **self._training.constants.get(path, {}),
        }
        buffers = {**self._buffers(module, path), **constants}
        for key, tensors in (("params", module._parameters), ("buffers", buffers)):
            shapes = [
                [leaf, list(tensor.shape)] for leaf, tensor in tensors.items() if tensor is not None
            ]
            if shapes:
                node[key] = shapes
        for leaf, tensor in buffers.items():
            passing = leaf in module._non_persistent_buffers_set or leaf in constants
            if passing and tensor is not None:
                self.tensors[f"{path}.{leaf}" if path else leaf] = tensor
        return node

    def _buffers(self, module: nn.Module, path: str) -> dict[str, Tensor | None]:
        """As given, or as they are once the module has run where an exported graph needs that."""
        buffers: dict[str, Tensor | None] = dict(module._buffers)
        for leaf in buffers:
            name = f"{path}.{leaf}" if path else leaf
            values = [
                forwards.buffers[name]
                for forwards in (self._evaluating, self._training)
                if name in forwards.buffers
            ]
            if values:
                buffers[leaf] = values[0]
            if not all(same_bits(value, values[0]) for value in values):
                refuse(module, path, f"its buffer {leaf!r} differs between eval and train mode")
        return buffers

    def _share(self, class_name: str, graph: Nodes) -> str:
        content = encode_json(graph).decode()
        if content not in self._names:
            name, number = class_name, 1
            while name in self.graphs:
                number += 1
                name = f"{class_name}_{number}"
            self.graphs[name] = graph
            self._names[content] = name
        return self._names[content]


def _layer_node(module: nn.Module, path: str) -> dict[str, Any]:
    """The node of a layer, checked by building it once more."""
    name = type(module).__name__
    try:
        given = describe_layer(module)
        check_arguments(name, given, name)
        with torch.device("meta"):
            twin = build_layer(name, given, path)
    except (ManifestError, UnsupportedModelError) as error:
        refuse(module, path, str(error))
    cause = difference(module, twin)
    if cause:
        refuse(module, path, cause)
    return {"cls": name, **given}
