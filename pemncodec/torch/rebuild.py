"""A manifest and tensors become a runnable module (spec/pemn.md section 8)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pemncodec.errors import ManifestError
from pemncodec.layers import CONTAINERS, LEAF_CLASSES
from pemncodec.limits import Limits
from pemncodec.manifest import layer_arguments, validate_manifest
from pemncodec.torch.program import Program, UserModule


def build_module(manifest: dict[str, Any], limits: Limits) -> nn.Module:
    """The module of a manifest on the meta device: shapes, but no memory for tensors.

    Raises:
        ManifestError: the manifest breaks a rule of the spec.
        LimitError: it passes one of `limits`.
    """
    validate_manifest(manifest, limits)
    builder = _Builder({name: Program(nodes) for name, nodes in manifest.get("graphs", {}).items()})
    with torch.device("meta"):
        module = builder.build(manifest["tree"], "")
    _check_uses(module, manifest.get("frozen", []))
    return module


def check_tensors(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that tensors fit a module before they are decoded.

    Args:
        module: from `build_module`.
        shapes: by name as in `state_dict`; aliases and shared modules under each of their names.

    Raises:
        ManifestError: "manifest-tensor" for a tensor that is missing, unexpected, or of another
            shape.
    """
    expected = module.state_dict(keep_vars=True)
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
        tensors: by name as in `state_dict`, without aliases.
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
    held = {owners.get(name, name) for name in frozen}
    shared: dict[int, str] = {}  # a tensor on meta, and the tensor that takes its place
    parameters: dict[str, nn.Parameter] = {}
    for name, old in module.state_dict(keep_vars=True).items():
        target = owners[name]
        if shared.setdefault(id(old), target) != target:
            raise ManifestError("manifest-tensor", f"{name} and {shared[id(old)]} are one tensor")
    for name, old in module.state_dict(keep_vars=True).items():
        target = owners[name]
        tensor = tensors[target]
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if isinstance(old, nn.Parameter):
            if target not in parameters:
                trained = tensor.is_floating_point() or tensor.is_complex()
                parameters[target] = nn.Parameter(tensor, trained and target not in held)
            owner.register_parameter(leaf, parameters[target])
        elif target in parameters:
            raise ManifestError("manifest-tensor", f"buffer {name} is parameter {target}")
        else:
            owner.register_buffer(leaf, tensor)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_meta:
            raise ManifestError("manifest-tensor", f"tensor {name} has no values")


def _check_uses(root: nn.Module, frozen: Collection[str]) -> None:
    """Check what `validate_manifest` cannot: that layers have the tensors that are used of them."""
    for path, module in root.named_modules():
        if isinstance(module, UserModule):
            for program in set(module.pemn_programs or ()):
                for node in program.nodes:
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

    def __init__(self, programs: dict[str, Program]) -> None:
        self.programs = programs
        self.done: dict[str, nn.Module] = {}

    def build(self, node: dict[str, Any], path: str) -> nn.Module:
        if "same" in node:
            return self.done[node["same"]]
        if "graph" in node:
            module: nn.Module = self._user_module(node, path)
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
        self.done[path] = module
        return module

    def _user_module(self, node: dict[str, Any], path: str) -> UserModule:
        programs = None
        if node["graph"] is not None:
            programs = (
                self.programs[node["graph"]],
                self.programs[node.get("train_graph", node["graph"])],
            )
        module = UserModule(node.get("cls", node["graph"]), programs)
        for key, register in (
            ("params", lambda name, tensor: module.register_parameter(name, nn.Parameter(tensor))),
            ("buffers", module.register_buffer),
        ):
            for name, shape in node.get(key, []):
                try:
                    register(name, torch.empty(shape))
                except KeyError as error:
                    raise _name_error(path, name) from error
        return module


def _name_error(path: str, name: str) -> ManifestError:
    return ManifestError("manifest-name", f"module {path!r}: {name!r} has another meaning")


def build_layer(class_name: str, given: Mapping[str, Any], path: str) -> nn.Module:
    """One layer of `torch.nn`, all arguments passed; on the device of the context.

    Raises:
        ManifestError: "manifest-class" when this version of PyTorch has no such class,
            "manifest-argument" when the class refuses its arguments.
    """
    layer = getattr(nn, class_name, None) if class_name in LEAF_CLASSES else None
    if layer is None:
        raise ManifestError("manifest-class", f"module {path!r}: no class {class_name}")
    arguments = {}
    for name, argument in LEAF_CLASSES[class_name].items():
        value = given.get(name, argument.default)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    try:
        module: nn.Module = layer(**arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError) as error:
        cause = str(error).partition("\n")[0]
        raise ManifestError("manifest-argument", f"module {path!r}: {cause}") from None
    return module
