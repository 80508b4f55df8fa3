"""A module becomes a manifest: layers by class, classes of the user by graph (spec section 8)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pemncodec.architecture.example import VERIFIED_BATCH_SIZES, ExampleInputs
from pemncodec.architecture.exported import record_calls, trace_exported
from pemncodec.architecture.graph import VARIES, Call, UntraceableError, trace_forward
from pemncodec.architecture.layer_modules import build_layer, describe_layer, difference, is_known
from pemncodec.architecture.layers import COMPOSITES, LEAF_CLASSES, check_arguments
from pemncodec.architecture.manifest import FORMAT, validate_manifest
from pemncodec.architecture.program import UserModule
from pemncodec.coders.canonical_json import encode_json
from pemncodec.errors import DecodeError, ManifestError, UnsupportedModelError
from pemncodec.limits import Limits

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
# A rebuilt module has those of nn.Module; how a checkpoint of old is read is not its matter.
_FIXED_METHODS: Final = (
    "__call__",
    "state_dict",
    "load_state_dict",
    "_save_to_state_dict",
    "_load_from_state_dict",
    "get_extra_state",
    "set_extra_state",
)
_MODE_METHODS: Final = ("train", "eval")
_PARAMETER_CONTAINERS: Final = (nn.ParameterList, nn.ParameterDict)

_Nodes = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Trace:
    """A module, described.

    Attributes:
        manifest: its architecture.
        tensors: what the file must hold beside the state dict: buffers that are not persistent,
            and constants of exported graphs, by name.
        trains: whether every graph for train mode is there.
        exported: whether a `forward` had to be exported; fused kernels may round otherwise.
    """

    manifest: dict[str, Any]
    tensors: dict[str, Tensor]
    trains: bool
    exported: bool


def trace_module(
    module: nn.Module,
    inputs: Sequence[Mapping[str, Any]],
    *,
    example: ExampleInputs | None = None,
    train_graph: bool = False,
    masked: Collection[str] = (),
) -> Trace:
    """Describe a module so that `build_module` can rebuild it without its code.

    A `forward` that torch.fx cannot trace is exported with all that is below it, for eval mode
    and, on request, for train mode.

    Args:
        module: left as it is.
        inputs: of `forward`, each {"dtype": "float32", "shape": [None, 3, 32, 32]}; None stands
            for a size that may vary. Arguments of `forward` beyond them keep their defaults.
        example: what the module is run on where a `forward` has to be exported; None refuses it.
        train_graph: export train mode, too.
        masked: names of parameters that need no entry in the manifest's list of frozen ones.

    Raises:
        UnsupportedModelError: the manifest cannot describe it; names the module and the cause.
    """
    call = Call((VARIES,) * len(inputs), {}) if inputs else None
    exporter = _Exporter(module, example)
    with _modes(module):
        module.eval()
        evaluating = _trace_forwards(module, call, exporter, export=True)
        module.train()
        training = _trace_forwards(module, call, exporter, export=train_graph)
    tree = _Tree(module, evaluating, training, exporter.constants)
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
        ("nonpersistent", list(tree.tensors)),
        ("inputs", [dict(item) for item in inputs]),
    ):
        if value:
            manifest[key] = value
    try:
        validate_manifest(manifest, Limits())
    except DecodeError as error:
        _refuse(module, "", str(error))
    return Trace(manifest, tree.tensors, not training.missing, exporter.used)


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


class _Exporter:
    """Exports modules below `root`, run on example inputs."""

    def __init__(self, root: nn.Module, example: ExampleInputs | None) -> None:
        self.root = root
        self.example = example
        self.constants: dict[int, dict[str, Tensor]] = {}  # by id of the module
        self.used = False

    def export(self, module: nn.Module) -> _Nodes | None:
        """Graph of the mode that it is in; None when nothing calls it."""
        if self.example is None:
            raise UntraceableError("to export it, example inputs are needed (example_inputs=…)")
        modes = [(below, below.training) for below in self.root.modules()]
        state = {name: value.clone() for name, value in self.root.named_buffers()}
        with record_calls(module) as calls, torch.no_grad(), torch.random.fork_rng(devices=[]):
            for size in VERIFIED_BATCH_SIZES:
                try:
                    self.root(*self.example.batch(size))
                except Exception as error:  # whatever the user's code raises
                    cause = str(error).partition("\n")[0]
                    raise UntraceableError(f"it cannot be run on the example: {cause}") from error
        for below, mode in modes:
            below.training = mode
        for name, buffer in self.root.named_buffers():  # statistics that the runs have changed
            buffer.copy_(state[name])
        if not calls:
            return None
        nodes, constants = trace_exported(module, calls)
        self.used = True
        known = self.constants.setdefault(id(module), {})
        for name, value in constants.items():
            if name in known and not torch.equal(known[name], value):
                raise UntraceableError("its constants differ between eval and train mode")
        known.update(constants)
        return nodes


class _FailureError(Exception):
    """A module that can be described neither way."""

    def __init__(self, module: nn.Module, path: str, cause: str) -> None:
        super().__init__(cause)
        self.module = module
        self.path = path
        self.cause = cause


def _trace_forwards(
    root: nn.Module, call: Call | None, exporter: _Exporter, *, export: bool
) -> _Forwards:
    """The graphs of all modules; one that cannot be described becomes part of one around it."""
    whole: set[str] = set()  # paths of what is to be exported as a whole
    first: _FailureError | None = None
    while True:
        try:
            return _Forwards(root, call, exporter, whole, export=export)
        except _FailureError as failure:
            first = first or failure
            around = _user_module_around(root, failure.path)
            if around is None or not export or exporter.example is None:
                _refuse(first.module, first.path, first.cause)
            whole.add(around)


def _user_module_around(root: nn.Module, path: str) -> str | None:
    """Path of the nearest module above `path` that is none of PyTorch's; None without one."""
    while path:
        path = path.rpartition(".")[0]
        if not is_known(root.get_submodule(path)):
            return path
    return None


class _Forwards:
    """Graphs of all modules of the user below `root`, by id, in the mode that they are in.

    A module is traced after those that call it, so that an argument which no caller gives, or all
    give as the same constant, is not traced as a tensor.

    Attributes:
        graphs: None for a module that nothing calls, or without `forward`.
        missing: ids of modules that would have to be exported.
        exported: ids of those that were, and of all modules below them.
    """

    def __init__(
        self,
        root: nn.Module,
        call: Call | None,
        exporter: _Exporter,
        whole: Collection[str],
        *,
        export: bool,
    ) -> None:
        self.graphs: dict[int, _Nodes | None] = {}
        self.missing: set[int] = set()
        self.exported: set[int] = set()
        self._exporter = exporter
        self._whole = whole
        self._export = export
        self._calls: dict[int, list[Call]] = {id(root): [call] if call else []}
        modules = list(_walk(root))
        for path, module in modules:
            _check_plain(module, path)
        for path, module in modules:
            mine = self._calls.get(id(module), [])
            if type(module) is nn.Sequential:
                for child in module.children() if mine else ():
                    self._calls.setdefault(id(child), []).append(Call((VARIES,), {}))
            elif not is_known(module) and (mine or id(module) not in self.exported):
                self.graphs[id(module)] = self._trace(module, path, mine)
            else:
                self.graphs.setdefault(id(module), None)
        for path, module in modules:
            graph = self.graphs.get(id(module))
            for each in self._calls.get(id(module), []) if graph else ():
                cause = each.conflict(graph or [])
                if cause:
                    raise _FailureError(module, path, cause)

    def _trace(self, module: nn.Module, path: str, mine: list[Call]) -> _Nodes | None:
        if isinstance(module, UserModule):
            return self._rebuilt(module)
        if type(module).forward is nn.Module.forward or isinstance(module, _PARAMETER_CONTAINERS):
            return None
        try:
            changed = _changed_method(module, _MODE_METHODS)
            if changed:
                raise UntraceableError(f"its class changes {changed}")
            if path in self._whole:
                raise UntraceableError("it is to be exported as a whole")
            graph = trace_forward(module, mine)
        except UntraceableError as error:
            # What nothing calls needs no forward.
            return self._exported(module, path, error) if mine or not path else None
        self._add_calls(module, graph)
        return graph

    def _rebuilt(self, module: UserModule) -> _Nodes | None:
        if module.pemn_programs is None:
            return None
        program = module.pemn_programs[module.training]
        if program is None:
            self._leave_out(module)
            return None
        self._add_calls(module, program.nodes)
        return program.nodes

    def _exported(self, module: nn.Module, path: str, error: UntraceableError) -> _Nodes | None:
        if not self._export:
            self._leave_out(module)
            return None
        self.exported.update(id(below) for below in module.modules())
        try:
            return self._exporter.export(module)
        except UntraceableError as other:
            raise _FailureError(module, path, f"{error}; {other}") from None

    def _leave_out(self, module: nn.Module) -> None:
        self.missing.add(id(module))
        self.exported.update(id(below) for below in module.modules())

    def _add_calls(self, module: nn.Module, graph: _Nodes) -> None:
        for node in graph:
            if "mod" in node:
                callee = module.get_submodule(node["mod"])
                self._calls.setdefault(id(callee), []).append(Call.of_node(node))


def _walk(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules once each, without those that layers of torch.nn are built of."""
    inner: set[int] = set()
    for path, module in root.named_modules():
        inner.update(id(below) for below in _with_inner(module) if below is not module)
        if id(module) not in inner:
            yield path, module


def _with_inner(module: nn.Module) -> list[nn.Module]:
    """A module, with the modules that it is built of when it is a layer."""
    layer = is_known(module) and type(module).__name__ in LEAF_CLASSES
    return list(module.modules()) if layer else [module]


def _changed_method(module: nn.Module, names: Sequence[str]) -> str:
    """The first of these methods that a class outside of PyTorch has changed; or nothing."""
    for name in names:
        for owner in type(module).__mro__:
            if name in vars(owner):
                if not owner.__module__.startswith("torch.nn."):
                    return name
                break
    return ""


def _check_plain(module: nn.Module, path: str) -> None:
    """Refuse what a rebuilt module would silently lack."""
    for below in _with_inner(module):
        if parametrize.is_parametrized(below):
            _refuse(
                module,
                path,
                "it has parametrizations (torch.nn.utils.parametrize.remove_parametrizations)",
            )
        for hooks in _HOOKS:
            if getattr(below, hooks, None):
                _refuse(module, path, f"it has hooks ({hooks[1:]}), remove them before encoding")
        if "forward" in vars(below):
            _refuse(module, path, "its forward was replaced on the instance")
    if is_known(module):
        return
    changed = _changed_method(module, _FIXED_METHODS)
    if changed and not isinstance(module, UserModule):
        _refuse(module, path, f"its class changes {changed}")
    of_torch = type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Module
    if of_torch and not isinstance(module, _PARAMETER_CONTAINERS):
        _refuse(module, path, f"the layer {type(module).__name__} is not supported")


class _Tree:
    """The module tree of a manifest, with graphs shared by content."""

    def __init__(
        self,
        root: nn.Module,
        evaluating: _Forwards,
        training: _Forwards,
        constants: Mapping[int, dict[str, Tensor]],
    ) -> None:
        self.graphs: dict[str, _Nodes] = {}
        self.tensors: dict[str, Tensor] = {}
        self._evaluating = evaluating
        self._training = training
        self._constants = constants
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
        name = _class_name(module)
        graph = self._evaluating.graphs.get(id(module))
        train_graph = self._training.graphs.get(id(module))
        node: dict[str, Any] = {"graph": None, "cls": name}
        if graph is not None:
            node = {"graph": self._share(name, graph)}
            if node["graph"] != name:
                node["cls"] = name
            if train_graph is None:
                node["train_graph"] = None
            elif train_graph != graph:
                node["train_graph"] = self._share(name, train_graph)
        constants = self._constants.get(id(module), {})
        for key, tensors in (
            ("params", module._parameters),
            ("buffers", {**module._buffers, **constants}),
        ):
            shapes = [
                [leaf, list(tensor.shape)] for leaf, tensor in tensors.items() if tensor is not None
            ]
            if shapes:
                node[key] = shapes
        for leaf, tensor in {**module._buffers, **constants}.items():
            passing = leaf in module._non_persistent_buffers_set or leaf in constants
            if passing and tensor is not None:
                self.tensors[f"{path}.{leaf}" if path else leaf] = tensor
        return node

    def _share(self, class_name: str, graph: _Nodes) -> str:
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


def _layer_node(module: nn.Module, path: str) -> dict[str, Any]:
    """The node of a layer, checked by building it once more."""
    name = type(module).__name__
    try:
        given = describe_layer(module)
        check_arguments(name, given, name)
        with torch.device("meta"):
            twin = build_layer(name, given, path)
    except (ManifestError, UnsupportedModelError) as error:
        _refuse(module, path, str(error))
    cause = difference(module, twin)
    if cause:
        _refuse(module, path, cause)
    return {"cls": name, **given}
