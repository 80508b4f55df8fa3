"""A module becomes a manifest: layers by class, classes of the user by graph (spec section 8)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import torch
from torch import nn
from torch.nn.utils import parametrize

from pemncodec.coders.canonical_json import encode_json
from pemncodec.errors import DecodeError, ManifestError, UnsupportedModelError
from pemncodec.layers import CONTAINERS, LEAF_CLASSES, check_arguments, is_default
from pemncodec.limits import Limits
from pemncodec.manifest import FORMAT, validate_manifest
from pemncodec.torch.graph import VARIES, Call, UntraceableError, trace_forward
from pemncodec.torch.program import UserModule
from pemncodec.torch.rebuild import build_layer

_HOOKS: Final = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
# A rebuilt module has those of nn.Module.
_FIXED_METHODS: Final = (
    "__call__",
    "train",
    "eval",
    "state_dict",
    "load_state_dict",
    "_save_to_state_dict",
    "_load_from_state_dict",
    "get_extra_state",
    "set_extra_state",
)


def trace_module(
    module: nn.Module,
    inputs: Sequence[Mapping[str, Any]],
    *,
    masked: Collection[str] = (),
) -> dict[str, Any]:
    """Describe a module so that `build_module` can rebuild it without its code.

    Args:
        module: left as it is; its `forward` functions are called, but not on tensors.
        inputs: of `forward`, each {"dtype": "float32", "shape": [None, 3, 32, 32]}; None stands
            for a size that may vary. Arguments of `forward` beyond them keep their defaults.
        masked: names of parameters that need no entry in the manifest's list of frozen ones.

    Raises:
        UnsupportedModelError: the manifest cannot describe it; names the module and the cause.
    """
    call = Call((VARIES,) * len(inputs), {}) if inputs else None
    with _modes(module):
        graphs = []
        for training in (False, True):
            for below in module.modules():
                below.training = training
            graphs.append(_Forwards(module, call).graphs)
        tree = _Tree(module, graphs[0], graphs[1])
    manifest: dict[str, Any] = {"format": FORMAT, "tree": tree.root}
    frozen = [
        name
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad and name not in masked
    ]
    for key, value in (
        ("graphs", tree.graphs),
        ("training", module.training),
        ("frozen", frozen),
        ("inputs", [dict(item) for item in inputs]),
    ):
        if value:
            manifest[key] = value
    try:
        validate_manifest(manifest, Limits())
    except DecodeError as error:
        _refuse(module, "", str(error))
    return manifest


def _refuse(module: nn.Module, path: str, cause: str) -> NoReturn:
    name = _class_name(module)
    where = f"module {path!r} ({name})" if path else f"the model ({name})"
    cause = cause.partition("\n")[0].rstrip(". ")
    raise UnsupportedModelError(
        f"cannot describe {where}: {cause}; "
        "to store the tensors without the architecture, use manifest=False or --no-manifest"
    )


@contextmanager
def _modes(module: nn.Module) -> Iterator[None]:
    before = [(below, below.training) for below in module.modules()]
    try:
        yield
    finally:
        for below, training in before:
            below.training = training


class _Forwards:
    """Graphs of all modules of the user below `root`, by id, in the mode that they are in.

    A module is traced after those that call it, so that an argument which no caller gives, or all
    give as the same constant, is not traced as a tensor.
    """

    def __init__(self, root: nn.Module, call: Call | None) -> None:
        self.graphs: dict[int, list[dict[str, Any]] | None] = {}
        calls: dict[int, list[Call]] = {id(root): [call] if call else []}
        for path, module in root.named_modules():
            _check_plain(module, path)
            mine = calls.get(id(module), [])
            if type(module) is nn.Sequential:
                for child in module.children() if mine else ():
                    calls.setdefault(id(child), []).append(Call((VARIES,), {}))
            elif not _is_known(module):
                self.graphs[id(module)] = self._trace(module, path, mine, calls)
        for path, module in root.named_modules():
            graph = self.graphs.get(id(module))
            for each in calls.get(id(module), []) if graph else ():
                cause = each.conflict(graph or [])
                if cause:
                    _refuse(module, path, cause)

    def _trace(
        self, module: nn.Module, path: str, mine: list[Call], calls: dict[int, list[Call]]
    ) -> list[dict[str, Any]] | None:
        if isinstance(module, UserModule):
            programs = module.pemn_programs
            graph = programs[module.training].nodes if programs else None
        elif type(module).forward is nn.Module.forward:
            graph = None
        else:
            try:
                graph = trace_forward(module, mine)
            except UntraceableError as error:
                # What nothing calls needs no forward.
                if mine or not path:
                    _refuse(module, path, str(error))
                graph = None
        for node in graph or ():
            if "mod" in node:
                callee = module.get_submodule(node["mod"])
                calls.setdefault(id(callee), []).append(Call.of_node(node))
        return graph


def _is_known(module: nn.Module) -> bool:
    name = type(module).__name__
    return (name in CONTAINERS or name in LEAF_CLASSES) and type(module) is getattr(nn, name)


def _check_plain(module: nn.Module, path: str) -> None:
    """Refuse what a rebuilt module would silently lack."""
    if parametrize.is_parametrized(module):
        _refuse(
            module,
            path,
            "it has parametrizations (torch.nn.utils.parametrize.remove_parametrizations)",
        )
    for hooks in _HOOKS:
        if getattr(module, hooks, None):
            _refuse(module, path, f"it has hooks ({hooks[1:]}), remove them before encoding")
    if "forward" in vars(module):
        _refuse(module, path, "its forward was replaced on the instance")
    for name in _FIXED_METHODS if not _is_known(module) else ():
        if getattr(type(module), name, None) is not getattr(nn.Module, name, None):
            _refuse(module, path, f"its class changes {name}")
    for name in sorted(module._non_persistent_buffers_set):
        if getattr(module, name) is not None:
            _refuse(module, path, f"buffer {name!r} is not persistent")
    of_torch = type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Module
    if of_torch and not _is_known(module):
        _refuse(module, path, f"the layer {type(module).__name__} is not supported yet")


class _Tree:
    """The module tree of a manifest, with graphs shared by content."""

    def __init__(
        self,
        root: nn.Module,
        graphs: Mapping[int, list[dict[str, Any]] | None],
        train_graphs: Mapping[int, list[dict[str, Any]] | None],
    ) -> None:
        self.graphs: dict[str, list[dict[str, Any]]] = {}
        self._eval = graphs
        self._train = train_graphs
        self._paths: dict[int, str] = {}
        self._names: dict[str, str] = {}  # content of a graph -> its name
        self.root = self._node(root, "")

    def _node(self, module: nn.Module, path: str) -> dict[str, Any]:
        if id(module) in self._paths:
            return {"same": self._paths[id(module)]}
        self._paths[id(module)] = path
        name = type(module).__name__
        if _is_known(module) and name in LEAF_CLASSES:
            return _describe_layer(module, path)
        node: dict[str, Any] = {"cls": name} if _is_known(module) else self._user(module)
        children: list[dict[str, Any]] = []
        for key, child in module._modules.items():
            if child is not None:
                below = self._node(child, f"{path}.{key}" if path else key)
                children.append(below if key == str(len(children)) else {"name": key, **below})
        if children:
            node["children"] = children
        return node

    def _user(self, module: nn.Module) -> dict[str, Any]:
        name = _class_name(module)
        graph, train_graph = self._eval[id(module)], self._train[id(module)]
        node: dict[str, Any] = {"graph": None, "cls": name}
        if graph is not None and train_graph is not None:
            node = {"graph": self._share(name, graph)}
            if node["graph"] != name:
                node["cls"] = name
            if train_graph != graph:
                node["train_graph"] = self._share(name, train_graph)
        for key, tensors in (("params", module._parameters), ("buffers", module._buffers)):
            shapes = [
                [leaf, list(tensor.shape)] for leaf, tensor in tensors.items() if tensor is not None
            ]
            if shapes:
                node[key] = shapes
        return node

    def _share(self, class_name: str, graph: list[dict[str, Any]]) -> str:
        content = encode_json(graph).decode()
        if content not in self._names:
            name, number = class_name, 1
            while name in self.graphs:
                number += 1
                name = f"{class_name}_{number}"
            self.graphs[name] = graph
            self._names[content] = name
        return self._names[content]


def _class_name(module: nn.Module) -> str:
    return module._get_name() if isinstance(module, UserModule) else type(module).__name__


def _describe_layer(module: nn.Module, path: str) -> dict[str, Any]:
    """The node of a layer, checked by building it once more."""
    name = type(module).__name__
    given: dict[str, Any] = {}
    for key, argument in LEAF_CLASSES[name].items():
        value = argument.compact(_argument(module, key))
        if not is_default(argument, value):
            given[key] = value
    try:
        check_arguments(name, given, name)
        with torch.device("meta"):
            twin = build_layer(name, given, path)
    except ManifestError as error:
        _refuse(module, path, str(error))
    if _tensors(module) != _tensors(twin) or list(module._modules) != list(twin._modules):
        _refuse(module, path, "it has other parameters, buffers or children than its class")
    for key, value in vars(twin).items():
        public = not key.startswith("_") and key != "training"
        if public and _plain(getattr(module, key, None)) != _plain(value):
            _refuse(module, path, f"its {key} is not what its class makes of its arguments")
    return {"cls": name, **given}


def _argument(module: nn.Module, key: str) -> Any:
    if key == "bias":
        # A LayerNorm without affine parameters does not tell whether it was to have a bias.
        parameters: dict[str, Any] = module._parameters
        return parameters.get("bias") is not None or not getattr(module, "elementwise_affine", True)
    value = _plain(getattr(module, key))
    if key == "stride" and LEAF_CLASSES[type(module).__name__][key].default is None:
        return None if value == _plain(module.kernel_size) else value
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def _tensors(module: nn.Module) -> list[tuple[str, tuple[int, ...] | None]]:
    return [
        (name, None if tensor is None else tuple(tensor.shape))
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
    ]
