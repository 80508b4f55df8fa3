"""A .pemn file → a state dict, or a runnable module, from the file alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pemncodec.architecture.builder import build_trusted, load_built
from pemncodec.architecture.manifest import BUILDER_FORMAT
from pemncodec.architecture.rebuild import (
    assign_tensors,
    build_module,
    check_run,
    check_tensors,
    check_ties,
    set_dtypes,
)
from pemncodec.errors import ManifestError
from pemncodec.format.filling import fill_tensors
from pemncodec.format.header import AliasRow, MaskedRow
from pemncodec.format.masked_sections import MaskedValues
from pemncodec.format.reader import PemnFile, open_file
from pemncodec.format.sections import Source
from pemncodec.limits import Limits
from pemncodec.tensors import array_to_tensor, tensor_to_array
from pemncodec.values.on_device import fill_masked_on

Progress = Callable[[float], None]

Dense = Callable[[Sequence[MaskedValues], Progress], dict[str, Tensor]]
"""Masked values of a file to tensors by name."""


def decode(
    source: Source,
    *,
    device: torch.device | str = "cpu",
    limits: Limits | None = None,
    trust: Collection[str] = (),
) -> nn.Module:
    """The module of a .pemn file, in eval mode; needs no code but this package.

    Frozen weights have `requires_grad=False`, trained tensors what they had.

    Args:
        source: a path, a binary file object, or the bytes of a file.
        device: where every tensor goes.
        limits: bounds on what the file may decode to.
        trust: import paths ("pkg.module:factory") of code that the file may import and call, for
            one that was encoded with a `builder`; no other file ever runs any.

    Raises:
        ManifestError: the file holds no architecture, or one that is not allowed.
        DecodeError: the file is damaged, or no .pemn file.
    """
    with open_file(source, limits=limits) as file:
        return load_module(file, device, trust)


def load_state_dict(
    source: Source,
    *,
    device: torch.device | str = "cpu",
    limits: Limits | None = None,
) -> dict[str, Tensor]:
    """The plain model's state dict: masks applied, masked-out weights +0.0, names in order.

    Tied names share one tensor. Arguments and errors as in `decode`; needs no manifest.
    """
    with open_file(source, limits=limits) as file:
        return load_state(file, device)


def load_state(
    file: PemnFile,
    device: torch.device | str,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The state dict of an open file: its tensors but buffers that are not persistent."""
    tensors = load_tensors(file, device, progress)
    for name in (file.manifest or {}).get("nonpersistent", ()):
        tensors.pop(name, None)
    return tensors


def load_module(
    file: PemnFile, device: torch.device | str, trust: Collection[str] = ()
) -> nn.Module:
    """The module of an open file; see `decode`."""
    manifest = file.manifest or {}
    frozen = [*manifest.get("frozen", ()), *file.masked_keys()]
    if manifest.get("format") == BUILDER_FORMAT:
        module = build_trusted(manifest, trust).to(device)
        load_built(module, load_tensors(file, device), frozen)
        return module.eval()
    module = build_empty_module(file)
    tensors = load_tensors(file, device)
    aliases = file.aliases
    assign_tensors(
        module,
        {name: tensor for name, tensor in tensors.items() if name not in aliases},
        aliases=aliases,
        frozen=frozen,
    )
    return module.eval()


def build_empty_module(file: PemnFile) -> nn.Module:
    """The module of an open file on the meta device, after a check that the tensors fit it."""
    if file.manifest is None:
        raise ManifestError(
            "no-manifest",
            "the file holds no architecture, only tensors: use load_state_dict, "
            "or decode to .safetensors or .pt",
        )
    if file.manifest["format"] == BUILDER_FORMAT:
        build_trusted(file.manifest, ())  # which refuses what nobody trusts
    module = build_module(file.manifest)
    check_tensors(module, {name: file.shape(name) for name in file.keys()})  # noqa: SIM118
    check_ties(module, file.aliases)
    set_dtypes(module, {name: getattr(torch, file.dtype(name)) for name in file.keys()})  # noqa: SIM118
    check_run(module, file.manifest.get("inputs", []), file.limits)
    return module


def load_tensors(
    file: PemnFile,
    device: torch.device | str,
    progress: Progress | None = None,
    dense: Dense | None = None,
) -> dict[str, Tensor]:
    """Every tensor of an open file, in the file's order. Checks every section.

    Args:
        file: open.
        device: where every tensor goes.
        progress: called with the share of all masked tensors that is decoded, 0 to 1.
        dense: makes tensors of masked values; None makes all of their values on `device`.
    """
    device = torch.device(device)
    dense = dense or (dense_on_cpu if device.type == "cpu" else partial(dense_on_device, device))
    masked = [file.masked_values(name) for name in file.masked_keys()]
    state = dense(masked, progress or (lambda _: None))
    for row in file.header.tensors:
        if not isinstance(row, AliasRow | MaskedRow):
            state[row.name] = array_to_tensor(file.tensor(row.name), row.dtype, device)
    file.verify_rest()
    aliases = file.aliases
    return {name: state[aliases.get(name, name)] for name in file.keys()}  # noqa: SIM118


def dense_on_cpu(masked: Sequence[MaskedValues], progress: Progress) -> dict[str, Tensor]:
    """All values of masked tensors by name, made on the CPU by several threads."""
    state = {
        values.row.name: torch.empty(
            values.row.shape, dtype=getattr(torch, values.row.dtype), device="cpu"
        )
        for values in masked
    }
    arrays = [tensor_to_array(tensor, name) for name, tensor in state.items()]
    fill_tensors(list(zip(masked, arrays, strict=True)), progress)
    return state


def dense_on_device(
    device: torch.device, masked: Sequence[MaskedValues], progress: Progress
) -> dict[str, Tensor]:
    """All values of masked tensors by name, made on a device: packed bits travel there."""
    state = {}
    for done, values in enumerate(masked):
        progress(done / len(masked))
        row = values.row
        state[row.name] = fill_masked_on(
            device, values.prototype(), row.fill, row.dtype, row.shape, values.packed_mask()
        )
    return state
