"""A .pemn file → a state dict, or a runnable module, from the file alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

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
from pemncodec.checkpoints.origin import remember_file
from pemncodec.errors import DecodeArgumentError, ManifestError, first_line
from pemncodec.format.filling import fill_tensors
from pemncodec.format.header import AliasRow, MaskedRow
from pemncodec.format.masked_sections import MaskedValues
from pemncodec.format.reader import PemnFile, open_file
from pemncodec.format.sections import Source
from pemncodec.limits import Limits
from pemncodec.tensors import array_to_tensor, tensor_to_array
from pemncodec.threads import is_thread_count, threads_given
from pemncodec.values.on_device import fill_masked_on

Progress = Callable[[float], None]
_LOG: Final = logging.getLogger(__name__)

Dense = Callable[[Sequence[MaskedValues], Progress], dict[str, Tensor]]
"""Masked values of a file to tensors by name."""


def decode(
    source: Source,
    *,
    into: nn.Module | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    packed: bool = False,
    limits: Limits | None = None,
    trust: Collection[str] = (),
    threads: int | None = None,
) -> nn.Module:
    """The module of a .pemn file, in eval mode; needs no code but this package.

    Frozen weights have `requires_grad=False`, trained tensors what they had. The module keeps the
    file's bytes, so that `encode` takes it with its masks and seeds.

    Args:
        source: as `pemncodec.open` takes it.
        into: a module of yours, which is filled and returned; all else of it stays as it is. Needs
            no architecture in the file.
        device: where every tensor goes; "meta" reads shapes and dtypes alone.
        dtype: of every floating-point tensor, as `module.to(dtype)` would have it; None keeps those
            of the file.
        packed: masked weights stay bits and a prototype, and are expanded when they are used; for
            inference. `pemncodec.unpack` makes the module dense.
        limits: bounds on what the file may decode to.
        trust: import paths ("pkg.module:factory") of code that the file may import and call, for
            one that was encoded with a `builder`; no other file ever runs any.
        threads: how many decode; None takes as many as can run.

    Raises:
        DecodeArgumentError: the device is not there, or `into` has other tensors than the file;
            nothing of it has changed then.
        ManifestError: the file holds no architecture, or one that is not allowed.
        DecodeError: the file is damaged, or no .pemn file.
    """
    check_threads(threads)
    with threads_given(threads), open_file(source, limits=limits) as file:
        _LOG.debug("decoding %r", file)
        if into is None:
            return load_module(file, device, trust, dtype, packed=packed)
        if torch.device(device).type != "cpu" or trust or packed:
            raise DecodeArgumentError(
                "into: the module keeps its devices and is dense, and the file runs no code; leave "
                "out device, packed and trust"
            )
        return fill_module(into, file, dtype)


def load_state_dict(
    source: Source,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    limits: Limits | None = None,
    threads: int | None = None,
) -> dict[str, Tensor]:
    """The plain model's state dict: masks applied, masked-out weights +0.0, names in order.

    Tied names share one tensor. Arguments and errors as in `decode`; needs no manifest.
    """
    check_threads(threads)
    with threads_given(threads), open_file(source, limits=limits) as file:
        _LOG.debug("decoding %r", file)
        return load_state(file, device, dtype=dtype)


def load_state(
    file: PemnFile,
    device: torch.device | str,
    progress: Progress | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The state dict of an open file: its tensors but buffers that are not persistent."""
    tensors = load_tensors(file, device, progress, dtype=dtype)
    for name in (file.manifest or {}).get("nonpersistent", ()):
        tensors.pop(name, None)
    return tensors


def load_module(
    file: PemnFile,
    device: torch.device | str,
    trust: Collection[str] = (),
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    packed: bool = False,
    dense: Dense | None = None,
) -> nn.Module:
    """The module of an open file; see `decode`, and for `dense` `load_tensors`."""
    manifest = file.manifest or {}
    frozen = [*manifest.get("frozen", ()), *file.masked_keys()]
    device = check_device(device)
    check_dtype(dtype)
    if packed and device.type == "meta":
        raise DecodeArgumentError("packed: on the meta device nothing has values; leave it out")
    built = manifest.get("format") == BUILDER_FORMAT
    empty = build_empty_module(file) if not built else None
    module = empty or build_trusted(manifest, trust).to(device, dtype)
    if packed:
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        dense = partial(_packed_on, device, parameters)
    tensors = load_tensors(file, device, progress, dense, dtype)
    if built:
        load_built(module, tensors, frozen)
    else:
        aliases = file.aliases
        own = {name: tensor for name, tensor in tensors.items() if name not in aliases}
        assign_tensors(module, own, aliases=aliases, frozen=frozen)
    if packed:
        from pemncodec.packed.modules import install_weights

        install_weights(module, tensors, file.masked_keys())
    remember_file(module, file)
    return module.eval()


def fill_module(module: nn.Module, file: PemnFile, dtype: torch.dtype | None = None) -> nn.Module:
    """Copy the tensors of an open file into a module of the caller; see `decode`."""
    if not isinstance(module, nn.Module):
        raise DecodeArgumentError(f"into must be a module, not {module!r:.60}")
    state = load_state(file, "cpu", dtype=check_dtype(dtype))
    own = {n: t for n, t in module.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    for name in own:
        if name not in state:
            raise DecodeArgumentError(f"into: the file has no tensor {name}")
    aliases = file.aliases
    sources: dict[int, str] = {}  # a tensor of the module, and the one of the file that it becomes
    for name, tensor in state.items():
        if name not in own:
            raise DecodeArgumentError(f"into: the module has no tensor {name}")
        if own[name].is_meta or is_lazy(own[name]):
            raise DecodeArgumentError(f"into: {name} of the module has no memory yet")
        mine, other = (f"{t.dtype} of {tuple(t.shape)}" for t in (own[name], tensor))
        if mine != other:
            raise DecodeArgumentError(f"into: {name} of the module is {mine}, in the file {other}")
        source = aliases.get(name, name)
        if sources.setdefault(id(own[name]), source) != source:
            raise DecodeArgumentError(
                f"into: {name} and {sources[id(own[name])]} of the module are one tensor, "
                "but two in the file"
            )
    module.load_state_dict(state, strict=False)  # what is left is no tensor
    remember_file(module, file)
    return module


def check_device(device: torch.device | str) -> torch.device:
    """The device of that name.

    Raises:
        DecodeArgumentError: it is not there.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # it depends on the device
        raise DecodeArgumentError(
            f"--device (device=…) {str(device)!r:.60}: {first_line(error).partition('. ')[0]:.200}"
        ) from None


def check_threads(threads: int | None) -> None:
    """Raises DecodeArgumentError where it is no number of threads."""
    if not is_thread_count(threads):
        raise DecodeArgumentError(f"threads must be 1 or more, not {threads!r:.60}")


def check_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype that tensors can be converted to.

    Raises:
        DecodeArgumentError: it is no floating-point dtype.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise DecodeArgumentError(
            f"dtype must be one of torch's for floats, such as torch.float16, not {dtype!r:.60}"
        )
    return dtype


def build_empty_module(file: PemnFile) -> nn.Module:
    """The module of an open file on the meta device, after a check that the tensors fit it."""
    if file.manifest is None:
        index = file.index_beside()
        raise ManifestError(
            "no-manifest",
            "the file holds no architecture, only tensors: "
            + ("" if index is None else f"it is one shard of a model: open {index}, or ")
            + "decode it to .safetensors or .pt (load_state_dict)",
        )
    if file.manifest["format"] == BUILDER_FORMAT:
        build_trusted(file.manifest, ())  # which refuses what nobody trusts
    module = build_module(file.manifest)
    check_tensors(module, {name: file.shape(name) for name in file.keys()})  # noqa: SIM118
    check_ties(module, file.aliases)
    set_dtypes(module, {name: _torch_dtype(file, name) for name in file.keys()})  # noqa: SIM118
    check_run(module, file.manifest.get("inputs", []), file.limits)
    return module


def load_tensors(
    file: PemnFile,
    device: torch.device | str,
    progress: Progress | None = None,
    dense: Dense | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Every tensor of an open file, in the file's order. Checks every section.

    Args:
        file: open.
        device: where every tensor goes; "meta" reads no section.
        progress: called with the share of all masked tensors that is decoded, 0 to 1.
        dense: makes tensors of masked values; None makes all of their values on `device`.
        dtype: that floating-point tensors are converted to.

    Raises:
        DecodeArgumentError: there is no such device, or `dtype` is none of floats.
    """
    device, dtype = check_device(device), check_dtype(dtype)
    if device.type == "meta":
        state = {
            name: torch.empty(file.shape(name), dtype=_torch_dtype(file, name), device=device)
            for name in file.keys()  # noqa: SIM118
            if name not in file.aliases
        }
        return _converted(file, state, dtype)
    dense = dense or (dense_on_cpu if device.type == "cpu" else partial(dense_on_device, device))
    file.expect()
    masked = [file.masked_values(name) for name in file.masked_keys()]
    state = dense(masked, progress or (lambda _: None))
    for row in file.header.tensors:
        if not isinstance(row, AliasRow | MaskedRow):
            state[row.name] = array_to_tensor(file.tensor(row.name), row.dtype, device)
    file.verify_rest()
    return _converted(file, state, dtype)


def _converted(
    file: PemnFile, state: dict[str, Tensor], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """All tensors of a file by name, in its order."""
    for name, tensor in state.items() if dtype is not None else ():
        if tensor.is_floating_point():
            state[name] = tensor.to(dtype)  # one by one, so that only one is there twice
    aliases = file.aliases
    return {name: state[aliases.get(name, name)] for name in file.keys()}  # noqa: SIM118


def _torch_dtype(file: PemnFile, name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, file.dtype(name))
    return dtype


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
    """All values of masked tensors by name, made on a device."""
    from pemncodec.packed.masks_on_device import masks_on_device  # takes time, and few need it

    state = {}
    for done, (values, bits) in enumerate(
        zip(masked, masks_on_device(device, masked), strict=True)
    ):
        row = values.row
        state[row.name] = fill_masked_on(values.prototype(), row.fill, row.dtype, row.shape, bits)
        progress((done + 1) / len(masked))
    return state


def _packed_on(
    device: torch.device,
    parameters: Collection[str],
    masked: Sequence[MaskedValues],
    progress: Progress,
) -> dict[str, Tensor]:
    """Masked tensors by name: packed, but for buffers and what would not get smaller."""
    from pemncodec.packed.packing import pack_weights  # takes time, and few need it

    packed = pack_weights([v for v in masked if v.row.name in parameters], device)
    others = [values for values in masked if values.row.name not in packed]
    dense = dense_on_cpu if device.type == "cpu" else partial(dense_on_device, device)
    return dense(others, progress) | packed
