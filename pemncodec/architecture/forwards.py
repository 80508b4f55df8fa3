"""The graphs of all modules of the user in one mode: by torch.fx, or exported where that fails."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from pemncodec.architecture.describable import (
    PARAMETER_CONTAINERS,
    changed_method,
    check_plain,
    layer_parts,
    refuse,
)
from pemncodec.architecture.example import VERIFIED_BATCH_SIZES, ExampleInputs
from pemncodec.architecture.exported import record_calls, trace_exported
from pemncodec.architecture.graph import VARIES, Call, UntraceableError, trace_forward
from pemncodec.architecture.isolation import isolated, working_copy
from pemncodec.architecture.layer_modules import is_known
from pemncodec.architecture.program import UserModule
from pemncodec.errors import first_line
from pemncodec.tensors import same_bits

_MODE_METHODS: Final = ("train", "eval")

Nodes = list[dict[str, Any]]


class _FailureError(Exception):
    """A module that can be described neither way."""

    def __init__(self, module: nn.Module, path: str, cause: str) -> None:
        super().__init__(cause)
        self.module = module
        self.path = path
        self.cause = cause


def trace_forwards(
    root: nn.Module,
    inputs: int,
    example: ExampleInputs | None,
    *,
    training: bool,
    export: bool,
    constants: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Forwards:
    """The graphs of all modules in one mode.

    A module that cannot be described becomes part of the nearest one around it that is exported.

    Args:
        root: left as it is, but for parameters that its own code writes to.
        inputs: how many its `forward` takes; 0 when that is not known.
        example: what it is run on where a `forward` has to be exported; None refuses it.
        training: the mode.
        export: whether what torch.fx cannot trace is exported, or left out.
        constants: of the graphs in the other mode, by path of their module and name.

    Raises:
        UnsupportedModelError: a module cannot be described.
    """
    call = Call((VARIES,) * inputs, {}) if inputs else None
    whole: set[str] = set()  # paths of what is to be exported as a whole
    first: _FailureError | None = None
    while True:
        exporter = _Exporter(root, example, training, constants or {}) if export else None
        try:
            copied = working_copy(root).train(training)
            return Forwards(copied, call, exporter, whole)
        except _FailureError as failure:
            first = first or failure
            around = _user_module_around(root, failure.path)
            if around is None or not export or example is None:
                refuse(first.module, first.path, first.cause)
            whole.add(around)


def _user_module_around(root: nn.Module, path: str) -> str | None:
    """Path of the nearest module above `path` that is none of PyTorch's; None without one."""
    while path:
        path = path.rpartition(".")[0]
        if not is_known(root.get_submodule(path)):
            return path
    return None


class _Exporter:
    """Exports modules below `root`, each on a copy that has run on example inputs.

    A copy that has run, since what a forward keeps after its first run is then a constant.

    Attributes:
        constants: of exported graphs, by path of their module and name.
        buffers: by name, buffers that are not persistent and hold, once the module has run, what
            exported graphs use.
    """

    def __init__(
        self,
        root: nn.Module,
        example: ExampleInputs | None,
        training: bool,
        known: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        self.root = root
        self.example = example
        self.training = training
        self.known = known
        self.constants: dict[str, dict[str, Tensor]] = {}
        self.buffers: dict[str, Tensor] = {}

    def export(self, path: str) -> Nodes | None:
        """Graph of the module at a path; None when nothing calls it."""
        if self.example is None:
            raise UntraceableError("to export it, example inputs are needed (example_inputs=…)")
        root = working_copy(self.root).train(self.training)
        module = root.get_submodule(path)
        with isolated(root):
            with record_calls(module) as calls, torch.no_grad():
                for size in VERIFIED_BATCH_SIZES:
                    try:
                        root(*self.example.batch(size))
                    except Exception as error:  # whatever the user's code raises
                        cause = first_line(error)
                        raise UntraceableError(
                            f"it cannot be run on the example: {cause}"
                        ) from error
            if not calls:
                return None
            exported = trace_exported(module, calls, self.known.get(path, {}))
        self._keep_buffers(module, path, exported.kept)
        if exported.constants:
            self.constants[path] = exported.constants
        return exported.nodes

    def _keep_buffers(self, module: nn.Module, path: str, names: Collection[str]) -> None:
        """Note the values of buffers that a graph uses and does not write."""
        given = self.root.get_submodule(path)
        paths = {id(below): where for where, below in self.root.named_modules()}
        for name in names:
            below, _, leaf = name.rpartition(".")
            owner = given.get_submodule(below)
            value, before = module.get_buffer(name), owner._buffers[leaf]
            if before is not None and same_bits(value, before):
                continue
            if leaf not in owner._non_persistent_buffers_set:
                raise UntraceableError(
                    f"forward changes the buffer {name!r} when it first runs, but the state dict "
                    "holds what it was before"
                )
            self.buffers[f"{paths[id(owner)]}.{leaf}".lstrip(".")] = value


class Forwards:
    """Graphs of all modules of the user below `root`, by path, in the mode that they are in.

    A module is traced after those that call it, so that an argument which no caller gives, or all
    give as the same constant, is not traced as a tensor.

    Args:
        root: a copy to trace, in that mode.
        call: of its `forward`; None when that is not known.
        exporter: for what torch.fx cannot trace; None leaves it out.
        whole: paths of modules to be exported with all that is below them.

    Attributes:
        graphs: None for a module that nothing calls, or without `forward`.
        missing: paths of modules that would have to be exported.
        exported: whether any was.
        constants: of exported graphs, by path of their module and name.
        buffers: as `_Exporter` has them.
    """

    def __init__(
        self,
        root: nn.Module,
        call: Call | None,
        exporter: _Exporter | None,
        whole: Collection[str],
    ) -> None:
        self.graphs: dict[str, Nodes | None] = {}
        self.missing: set[str] = set()
        self.exported = False
        self.constants = exporter.constants if exporter else {}
        self.buffers = exporter.buffers if exporter else {}
        self._exporter = exporter
        self._whole = whole
        self._paths = {id(module): path for path, module in root.named_modules()}
        self._inside: set[str] = set()  # paths of what has become part of an exported graph
        self._calls: dict[str, list[Call]] = {"": [call] if call else []}
        modules = list(_walk(root))
        for path, module in modules:
            check_plain(module, path)
        for path, module in modules:
            mine = self._calls.get(path, [])
            if type(module) is nn.Sequential:
                for child in module.children() if mine else ():
                    self._add_call(child, Call((VARIES,), {}))
            elif not is_known(module) and (mine or path not in self._inside):
                self.graphs[path] = self._trace(module, path, mine)
            else:
                self.graphs.setdefault(path, None)
        for path, module in modules:
            graph = self.graphs.get(path)
            for each in self._calls.get(path, []) if graph else ():
                cause = each.conflict(graph or [])
                if cause:
                    raise _FailureError(module, path, cause)

    def _trace(self, module: nn.Module, path: str, mine: list[Call]) -> Nodes | None:
        if isinstance(module, UserModule):
            return self._rebuilt(module)
        if type(module).forward is nn.Module.forward or isinstance(module, PARAMETER_CONTAINERS):
            return None
        try:
            changed = changed_method(module, _MODE_METHODS)
            if changed:
                raise UntraceableError(f"its class changes {changed}")
            if path in self._whole:
                raise UntraceableError("it is to be exported as a whole")
            with isolated(module):
                graph = trace_forward(module, mine)
        except UntraceableError as error:
            # What nothing calls needs no forward.
            return self._exported(module, path, error) if mine or not path else None
        self._add_calls(module, graph)
        return graph

    def _rebuilt(self, module: UserModule) -> Nodes | None:
        if module.pemn_programs is None:
            return None
        program = module.pemn_programs[module.training]
        if program is None:
            self._leave_out(module)
            return None
        self._add_calls(module, program.nodes)
        return program.nodes

    def _exported(self, module: nn.Module, path: str, error: UntraceableError) -> Nodes | None:
        if self._exporter is None:
            self._leave_out(module)
            return None
        self._inside.update(self._paths[id(below)] for below in module.modules())
        try:
            graph = self._exporter.export(path)
        except UntraceableError as other:
            causes = dict.fromkeys((str(error), str(other)))
            raise _FailureError(module, path, "; ".join(causes)) from None
        self.exported = self.exported or graph is not None
        return graph

    def _leave_out(self, module: nn.Module) -> None:
        self.missing.add(self._paths[id(module)])
        self._inside.update(self._paths[id(below)] for below in module.modules())

    def _add_calls(self, module: nn.Module, graph: Nodes) -> None:
        for node in graph:
            if "mod" in node:
                self._add_call(module.get_submodule(node["mod"]), Call.of_node(node))

    def _add_call(self, module: nn.Module, call: Call) -> None:
        self._calls.setdefault(self._paths[id(module)], []).append(call)


def _walk(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules once each, without those that layers of torch.nn are built of."""
    inner: set[int] = set()
    for path, module in root.named_modules():
        inner.update(id(below) for below in layer_parts(module) if below is not module)
        if id(module) not in inner:
            yield path, module
