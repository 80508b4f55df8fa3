"""A network by the code that makes it: import path and arguments (spec/pemn.md section 8.8).

The one way in which reading a file can run code, and so never taken unless the caller names that
very code.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pemncodec.architecture.manifest import BUILDER_FORMAT, validate_manifest
from pemncodec.errors import EncodeArgumentError, ManifestError, named_line
from pemncodec.limits import Limits


def describe_builder(
    builder: str,
    kwargs: Mapping[str, Any],
    module: nn.Module,
    inputs: Collection[Mapping[str, Any]],
    masked: Collection[str],
) -> dict[str, Any]:
    """The manifest that names the code.

    Args:
        builder: "pkg.module:factory".
        kwargs: of the factory; JSON.
        module: what it makes, for which parameters are frozen.
        inputs: as in `trace_module`.
        masked: names of parameters that need no entry in the list of frozen ones.

    Raises:
        EncodeArgumentError: not an import path, arguments that JSON does not hold, or code that
            fails or makes something else.
    """
    frozen = [
        name
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad and name not in masked
    ]
    manifest: dict[str, Any] = {"format": BUILDER_FORMAT, "builder": builder}
    for key, value in (
        ("kwargs", dict(kwargs)),
        ("frozen", frozen),
        ("inputs", [dict(item) for item in inputs]),
        ("training", module.training),
    ):
        if value:
            manifest[key] = value
    try:
        validate_manifest(manifest, Limits())
        own = build_trusted(manifest, (builder,)).state_dict()
    except ManifestError as error:
        raise EncodeArgumentError(f"builder: {error}") from None
    expected = module.state_dict()
    if {name: tensor.shape for name, tensor in own.items()} != {
        name: tensor.shape for name, tensor in expected.items()
    }:
        raise EncodeArgumentError(f"builder: {builder} makes another network than is to be encoded")
    return manifest


def build_trusted(manifest: Mapping[str, Any], trust: Collection[str]) -> nn.Module:
    """Import and call what a manifest of this kind names.

    Args:
        manifest: validated.
        trust: the import paths that the caller allows to run, exactly as in the manifest.

    Raises:
        ManifestError: "manifest-trust" when it is none of `trust`; "manifest-run" when it fails.
    """
    builder: str = manifest["builder"]
    if builder not in trust:
        raise ManifestError(
            "manifest-trust",
            f"the file holds no architecture but the name of code that makes it: if you trust "
            f"{builder}, allow it with trust=[{builder!r}] (--trust {builder})",
        )
    name, _, attribute = builder.partition(":")
    try:
        with torch.random.fork_rng(devices=[]):  # it draws initial values, none of which stays
            module = getattr(importlib.import_module(name), attribute)(**manifest.get("kwargs", {}))
    except Exception as error:  # whatever the code raises
        cause = named_line(error)
        raise ManifestError("manifest-run", f"{builder} failed: {cause:.200}") from error
    if not isinstance(module, nn.Module):
        raise ManifestError("manifest-run", f"{builder} made a {type(module).__name__}, no module")
    return module


def load_built(module: nn.Module, tensors: Mapping[str, Tensor], frozen: Collection[str]) -> None:
    """Give a module of trusted code the tensors of a file; dtypes and ties become the file's.

    Raises:
        ManifestError: "manifest-tensor": the code makes other tensors than the file holds.
    """
    own = dict(module.state_dict(keep_vars=True))
    for name, tensor in own.items():
        if name in tensors:
            tensor.data = tensor.data.to(tensors[name])
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        cause = lines[1] if len(lines) > 1 else lines[0]
        raise ManifestError(
            "manifest-tensor", f"what the builder makes does not fit: {cause}"
        ) from None
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point() and name not in frozen)
