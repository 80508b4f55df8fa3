"""The graphs of all modules of the user in one mode: by torch.fx, or exported where that fails."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
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
from pemncodec.architecture.exported import RecordedCall, record_calls, trace_exported
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
    progress: Callable[[float], None],
    other: Forwards | None = None,
) -> Forwards:
    """The graphs of all modules in one mode.

    A module that cannot be described becomes part of the nearest one around it that is exported.

    Args:
        root: left as it is, but for parameters that its own code writes to.
        inputs: how many its `forward` takes; 0 when that is not known.
        example: what it is run on where a `forward` has to be exported; None refuses it.
        training: the mode.
        export: whether what torch.fx cannot trace is exported, or left out.
        progress: called with the share of modules that is done; it may begin again.
        other: the graphs in the other mode. What had to be exported as a whole for that has no
            graphs of the modules below it, so that in this mode they cannot be called either.

    Raises:
        UnsupportedModelError: a module cannot be described.
    """
    call = Call((VARIES,) * inputs, {}) if inputs else None
    whole = set(other.whole) if other else set()
    known = other.constants if other else {}
    exporter = _Exporter(root, example, training, known) if export else None
    first: _FailureError | None = None
    while True:
        try:
            copied = working_copy(root).train(training)
            return Forwards(copied, call, exporter, whole, progress)
        except _FailureError as failure:
            first = first or failure
            around = _user_module_around(root, failure.path)
            if around is None or not export or example is None:
                cause = first.cause
                if failure.cause not in cause:
                    cause += f"; together with what is around it: {failure.cause}"
                refuse(first.module, first.path, cause)
            whole.add(around)


def _user_module_around(root: nn.Module, path: str) -> str | None:
    """Path of the nearest module above `path` that is none of PyTorch's; None without one."""
    while path:
        path = path.rpartition(".")[0]
        if not is_known(root.get_submodule(path)):
            return path
    return None


@dataclass(frozen=True, slots=True)
class _Export:
    """A module, exported.

    Attributes:
        nodes: its graph; None when nothing calls it.
        constants: of the graph, by name.
        buffers: by name below the root, buffers that are not persistent and hold, once the root
            has run, what the graph uses.
    """

    nodes: Nodes | None
    constants: dict[str, Tensor]
    buffers: dict[str, Tensor]


class _Exporter:
    """Exports modules below `root`, on copies that have run on example inputs.

    A copy that has run, since what a forward keeps after its first run is then a constant.
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
        self._done: dict[str, _Export] = {}
        self._runs: dict[type[nn.Module], tuple[nn.Module, dict[str, list[RecordedCall]]]] = {}

    def export(self, path: str) -> _Export:
        """The module at a path, exported once.

        Raises:
            UntraceableError: it cannot be described.
        """
        if path not in self._done:
            self._done[path] = self._export(path)
        return self._done[path]

    def _export(self, path: str) -> _Export:
        kind = type(self.root.get_submodule(path))
        if kind not in self._runs:
            self._runs[kind] = self._run(kind)
        root, calls = self._runs[kind]
        if not calls[path]:
            return _Export(None, {}, {})
        module = root.get_submodule(path)
        with isolated(root):
            exported = trace_exported(module, calls[path], self.known.get(path, {}))
        buffers = dict(self._buffers(module, path, exported.kept))
        return _Export(exported.nodes, exported.constants, buffers)

    def _run(self, kind: type[nn.Module]) -> tuple[nn.Module, dict[str, list[RecordedCall]]]:
        """A copy that has run, and the calls of its modules of one class, by path.

        Where one of them has to be exported, most others have to be as well.
        """
        if self.example is None:
            raise UntraceableError("to export it, give --example-shape (example_inputs=…)")
        root = working_copy(self.root).train(self.training)
        with isolated(root), ExitStack() as stack, torch.no_grad():
            calls = {
                path: stack.enter_context(record_calls(module))
                for path, module in root.named_modules()
                if type(module) is kind
            }
            for size in VERIFIED_BATCH_SIZES:
                try:
                    root(*self.example.batch(size))
                except Exception as error:  # whatever the user's code raises
                    cause = first_line(error)
                    raise UntraceableError(f"it cannot be run on the example: {cause}") from error
        return root, calls

    def _buffers(
        self, module: nn.Module, path: str, names: Collection[str]
    ) -> Iterator[tuple[str, Tensor]]:
        """Names and values of buffers that a graph uses and does not write."""
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
            yield f"{paths[id(owner)]}.{leaf}".lstrip("."), value


class Forwards:
    """Graphs of all modules of the user below `root`, by path, in the mode that they are in.

    A module is traced after those that call it, so that an argument which no caller gives, or all
    give as the same constant, is not traced as a tensor.

    Args:
        root: a copy to trace, in that mode.
        call: of its `forward`; None when that is not known.
        exporter: for what torch.fx cannot trace; None leaves it out.
        whole: paths of modules to be exported with all that is below them.
        progress: called with the share of modules that is done.

    Attributes:
        graphs: None for a module that nothing calls, or without `forward`.
        whole: as given.
        missing: paths of modules that would have to be exported.
        exported: whether any was.
        constants: of exported graphs, by path of their module and name.
        buffers: by name, those that `_Export` has.
    """

    def __init__(
        self,
        root: nn.Module,
        call: Call | None,
        exporter: _Exporter | None,
        whole: Collection[str],
        progress: Callable[[float], None],
    ) -> None:
        self.graphs: dict[str, Nodes | None] = {}
        self.whole = whole
        self.missing: set[str] = set()
        self.exported = False
        self.constants: dict[str, Mapping[str, Tensor]] = {}
        self.buffers: dict[str, Tensor] = {}
        self._exporter = exporter
        self._paths = {id(module): path for path, module in root.named_modules()}
        self._inside: set[str] = set()  # paths of what has become part of an exported graph
        self._calls: dict[str, list[Call]] = {"": [call] if call else []}
        modules = list(_walk(root))
        for path, module in modules:
            check_plain(module, path)
        for number, (path, module) in enumerate(modules):
            progress(number / len(modules))
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
        without = type(module).forward is nn.Module.forward and "forward" not in vars(module)
        if without or isinstance(module, PARAMETER_CONTAINERS):
            return None
        try:
            changed = changed_method(module, _MODE_METHODS)
            if changed:
                raise UntraceableError(f"its class changes {changed}")
            if path in self.whole:
                raise UntraceableError("")  # what is below it said why
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
            export = self._exporter.export(path)
        except UntraceableError as other:
            causes = dict.fromkeys(cause for cause in (str(error), str(other)) if cause)
            raise _FailureError(module, path, "; ".join(causes)) from None
        self.exported = self.exported or export.nodes is not None
        if export.constants:
            self.constants[path] = export.constants
        self.buffers.update(export.buffers)
        return export.nodes

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
