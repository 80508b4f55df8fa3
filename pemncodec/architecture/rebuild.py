"""A manifest and tensors become a runnable module (spec/pemn.md section 8)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pemncodec.architecture.composites import COMPOSITES, CONTAINERS
from pemncodec.architecture.known_results import KnownResults
from pemncodec.architecture.layer_modules import build_layer
from pemncodec.architecture.manifest import layer_arguments
from pemncodec.architecture.program import Program, UserModule, user_module
from pemncodec.errors import LimitError, ManifestError, first_line
from pemncodec.limits import RAISED_BY, Limits


def build_module(manifest: dict[str, Any]) -> nn.Module:
    """The module of a manifest on the meta device: shapes, but no memory for tensors.

    Args:
        manifest: has passed `validate_manifest`, as what `decode_manifest` returns has.

    Raises:
        ManifestError: the manifest says what PyTorch does not do, or names no tensor.
    """
    builder = _Builder(
        {name: Program(nodes) for name, nodes in manifest.get("graphs", {}).items()},
        frozenset(manifest.get("nonpersistent", [])),
    )
    with torch.device("meta"), KnownResults():
        module = builder.build(manifest["tree"], "")
    _check_uses(module, manifest.get("frozen", []))
    return module


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer: those of `state_dict`, then buffers that are not persistent."""
    tensors: dict[str, Tensor] = dict(module.state_dict(keep_vars=True))
    first: dict[int, str] = {}  # a shared module's buffers go by its first path alone
    for path, owner in module.named_modules():
        for name, buffer in owner._buffers.items():
            passing = buffer is not None and name in owner._non_persistent_buffers_set
            if passing and first.setdefault(id(owner), path) == path:
                tensors[f"{path}.{name}" if path else name] = buffer
    return tensors


def check_tensors(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that tensors fit a module before they are decoded.

    Args:
        module: from `build_module`.
        shapes: by name as in `named_tensors`; aliases and shared modules under each of their names.

    Raises:
        ManifestError: "manifest-tensor" for a tensor that is missing, unexpected, or of another
            shape.
    """
    expected = named_tensors(module)
    for name, tensor in expected.items():
        if name not in shapes:
            raise ManifestError("manifest-tensor", f"the file has no tensor {name}")
        if tuple(shapes[name]) != tuple(tensor.shape):
            raise ManifestError(
                "manifest-tensor",
                f"tensor {name} has shape {tuple(shapes[name])}, expected {tuple(tensor.shape)}",
            )
    for name in shapes:
        if name not in expected:
            raise ManifestError("manifest-tensor", f"the architecture has no tensor {name}")


def check_ties(module: nn.Module, aliases: Mapping[str, str]) -> None:
    """Check that what is one tensor in a module is one in the file, before any is decoded.

    Args:
        module: from `build_module`.
        aliases: further names of tensors of the file, each with the name that it stands for.

    Raises:
        ManifestError: "manifest-tensor" for one that is two in the file, or a buffer that is a
            parameter.
    """
    shared: dict[int, str] = {}  # a tensor on meta, and the tensor that takes its place
    parameters: set[str] = set()
    for name, tensor in named_tensors(module).items():
        target = aliases.get(name, name)
        if shared.setdefault(id(tensor), target) != target:
            raise ManifestError(
                "manifest-tensor",
                f"{name} and {shared[id(tensor)]} are one tensor, but two in the file",
            )
        if isinstance(tensor, nn.Parameter):
            parameters.add(target)
        elif target in parameters:
            raise ManifestError(
                "manifest-tensor", f"the buffer {name} is an alias of the parameter {target}"
            )


def set_dtypes(module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give a module on the meta device the dtypes of its tensors, by name as in `named_tensors`."""
    for name, tensor in named_tensors(module).items():
        if tensor.dtype != dtypes[name]:
            if not (dtypes[name].is_floating_point or dtypes[name].is_complex):
                tensor.requires_grad_(False)
            tensor.data = tensor.data.to(dtypes[name])


_BATCH = 2  # what a size that varies is in the trial run


def check_run(module: nn.Module, inputs: Sequence[Mapping[str, Any]], limits: Limits) -> None:
    """Run a module without values, so that shapes that do not fit are found before memory is used.

    Args:
        module: from `build_module`; left in eval mode.
        inputs: of its manifest.
        limits: `decoded_bytes` bounds each value that the run computes.

    Raises:
        ManifestError: "manifest-run": it cannot be run on its inputs.
        LimitError: a value would take more memory than `limits` allow.
    """
    given = [
        torch.empty(
            item.get("sizes") or [_BATCH if size is None else size for size in item["shape"]],
            dtype=getattr(torch, item["dtype"]),
            device="meta",
        )
        for item in inputs
    ]
    try:
        with torch.no_grad(), _Bounded(limits.decoded_bytes):
            module.eval()(*given)
    except LimitError:
        raise
    except Exception as error:  # operators fail in ways of their own
        cause = first_line(error)
        raise ManifestError("manifest-run", f"the network cannot be run: {cause:.200}") from None


class _Bounded(KnownResults):  # type: ignore[no-untyped-call]
    """Refuses values of more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and value.numel() * value.element_size() > self.limit:
                size = value.numel() * value.element_size()
                raise LimitError(
                    "limit",
                    f"the network computes a value of {size:,} bytes, the limit is "
                    f"{self.limit:,}: {RAISED_BY}",
                )
        return result


def assign_tensors(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    aliases: Mapping[str, str],
    frozen: Collection[str],
) -> None:
    """Give a module from `build_module` its tensors; they are used as they are, not copied.

    Args:
        module: on the meta device.
        tensors: by name as in `named_tensors`, without aliases.
        aliases: further names, each with the name in `tensors` that it is the same tensor as.
        frozen: names of parameters that do not require gradients.

    Raises:
        ManifestError: "manifest-tensor" when tensors and module do not fit.
    """
    for name, target in aliases.items():
        if name in tensors or target not in tensors:
            raise ManifestError("manifest-tensor", f"tensor {name} is an alias of {target}")
    owners = {**{name: name for name in tensors}, **aliases}
    check_tensors(module, {name: tuple(tensors[owners[name]].shape) for name in owners})
    check_ties(module, aliases)
    held = {owners.get(name, name) for name in frozen}
    parameters: dict[str, nn.Parameter] = {}
    for name, old in named_tensors(module).items():
        target = owners[name]
        tensor = tensors[target]
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if isinstance(old, nn.Parameter):
            if target not in parameters:
                trained = tensor.is_floating_point() or tensor.is_complex()
                parameters[target] = nn.Parameter(tensor, trained and target not in held)
            # By assignment, since recurrent layers keep a list of their weights.
            setattr(owner, leaf, parameters[target])
        else:
            setattr(owner, leaf, tensor)
    for name, tensor in named_tensors(module).items():
        if tensor.is_meta and not tensors[owners[name]].is_meta:
            raise ManifestError("manifest-tensor", f"tensor {name} has no values")


def _check_uses(root: nn.Module, frozen: Collection[str]) -> None:
    """Check what `validate_manifest` cannot: that layers have the tensors that are used of them."""
    for path, module in root.named_modules():
        if isinstance(module, UserModule):
            for program in set(module.pemn_programs or ()):
                for node in program.nodes if program else ():
                    if "attr" in node and not isinstance(_tensor(module, node["attr"]), Tensor):
                        raise ManifestError(
                            "manifest-name", f"module {path!r}: no tensor {node['attr']}"
                        )
    for name in frozen:
        if not isinstance(_tensor(root, name), nn.Parameter):
            raise ManifestError("manifest-name", f"frozen: {name} is no parameter")


def _tensor(module: nn.Module, path: str) -> Tensor | None:
    owner, _, name = path.rpartition(".")
    found = getattr(module.get_submodule(owner), name, None)
    return found if isinstance(found, Tensor) else None


class _Builder:
    """Builds the module tree of one manifest."""

    def __init__(self, programs: dict[str, Program], nonpersistent: Collection[str]) -> None:
        self.programs = programs
        self.nonpersistent = nonpersistent
        self.done: dict[str, nn.Module] = {}

    def build(self, node: dict[str, Any], path: str) -> nn.Module:
        if "same" in node:
            return self.done[node["same"]]
        composite = node.get("cls") in COMPOSITES and "graph" not in node
        if composite:
            module: nn.Module = nn.Module()  # until its children are there
        elif "graph" in node:
            module = self._user_module(node, path)
        elif node["cls"] in CONTAINERS:
            module = getattr(nn, node["cls"])()
        else:
            module = build_layer(node["cls"], layer_arguments(node), path)
        for index, child in enumerate(node.get("children", [])):
            name = child.get("name", str(index))
            below = self.build(child, f"{path}.{name}" if path else name)
            try:
                module.add_module(name, below)
            except KeyError as error:
                raise _name_error(path, name) from error
        if composite:
            children = dict(module.named_children())
            module = build_layer(node["cls"], layer_arguments(node), path, children)
        self.done[path] = module
        return module

    def _user_module(self, node: dict[str, Any], path: str) -> UserModule:
        programs = None
        if node["graph"] is not None:
            train_graph = node.get("train_graph", node["graph"])
            programs = (
                self.programs[node["graph"]],
                None if train_graph is None else self.programs[train_graph],
            )
        module = user_module(node.get("cls", node["graph"]), programs)
        for name, shape in node.get("params", []):
            try:
                module.register_parameter(name, nn.Parameter(torch.empty(shape)))
            except KeyError as error:
                raise _name_error(path, name) from error
        for name, shape in node.get("buffers", []):
            kept = (f"{path}.{name}" if path else name) not in self.nonpersistent
            try:
                module.register_buffer(name, torch.empty(shape), persistent=kept)
            except KeyError as error:
                raise _name_error(path, name) from error
        return module


def _name_error(path: str, name: str) -> ManifestError:
    return ManifestError("manifest-name", f"module {path!r}: {name!r} has another meaning")
