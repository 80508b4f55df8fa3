"""Weights and masks → what the file holds: prototypes found, trained tensors shortened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from pemncodec.architecture.trace import Trace
from pemncodec.checkpoints.origin import Origin
from pemncodec.coders.dense import shortened
from pemncodec.contents import (
    AliasTensor,
    Contents,
    DenseMode,
    DenseTensor,
    MaskedTensor,
)
from pemncodec.contents import Tensor as ContentTensor
from pemncodec.errors import PrototypeMismatchError
from pemncodec.masking.masked_state import MaskedState
from pemncodec.options import EncodeOptions, check_dense_pattern
from pemncodec.seeds import initialised_network, masked_layers, with_seeds
from pemncodec.tensors import dtype_name, tensor_to_array
from pemncodec.values.recovery import recover_prototypes


def dense_modes(state: MaskedState, options: EncodeOptions) -> dict[str, DenseMode]:
    """The modes of float32 tensors that are not lossless, by name.

    Args:
        state: the tensors.
        options: modes by pattern of the name, the first that fits.

    Raises:
        EncodeArgumentError: a pattern that fits no tensor.
    """
    patterns = options.dense_modes
    for pattern in patterns if options.peers is None else ():  # else all parts were asked
        check_dense_pattern(pattern, state.tensors)
    modes: dict[str, DenseMode] = {}
    for name, tensor in state.tensors.items():
        mode: DenseMode = next(
            (mode for pattern, mode in patterns.items() if fnmatchcase(name, pattern)), "lossless"
        )
        if mode == "lossless":
            mode = state.mode_before(name)
        plain = name not in state.masks and name not in state.aliases and tensor.numel()
        if not plain or tensor.dtype != torch.float32 or mode == "lossless":
            continue
        if not (tensor == tensor.reshape(-1)[0]).all():  # else a constant, free as it is
            modes[name] = mode
    return modes


def shortened_state(state: MaskedState, modes: Mapping[str, DenseMode]) -> MaskedState:
    """With the values that come back from the file.

    Raises:
        EncodeError: a value that its mode cannot hold.
    """
    return state.replaced(
        {name: _shortened(name, state.tensors[name], mode) for name, mode in modes.items()}
    )


def _shortened(name: str, tensor: Tensor, mode: DenseMode) -> Tensor:
    values = shortened(tensor_to_array(tensor, name), mode, name)
    return torch.from_numpy(values).view(tensor.shape)


def assemble_contents(
    state: MaskedState,
    modes: Mapping[str, DenseMode],
    trace: Trace | None,
    options: EncodeOptions,
    origin: Origin | None = None,
    step: Callable[[str, float | None], None] = lambda _, __: None,
) -> Contents:
    """What the file holds.

    Args:
        state: weights and masks.
        modes: of tensors that are not lossless, by name.
        trace: the manifest and tensors of its own; None for a file without.
        options: prototypes that are given, metadata, whether batch norms were folded.
        origin: the file that all of it comes from.
        step: called with what is under way, and the share of it that is done.

    Raises:
        PrototypeMismatchError: no weights come from one of the given prototypes, or from the seed
            that is given.
        EncodeError: a tensor that cannot be encoded.
    """
    own = {name: tensor for name, tensor in state.tensors.items() if name not in state.aliases}
    arrays = {name: tensor_to_array(tensor, name) for name, tensor in own.items()}
    masked = [name for name in own if name in state.masks]
    layers = masked_layers(state, masked, arrays)
    layers = with_seeds(layers, initialised_network(state, masked), options, step)
    step("looking for prototypes", None)
    weights = sum(layer.values.size for layer in layers)
    if options.peers is not None:
        weights = sum(options.peers.gather(weights))
    prototypes, fills = recover_prototypes(
        layers,
        options.prototypes,
        lambda share: step("looking for prototypes", share),
        longest=weights,
    )
    used = [prototype in prototypes for prototype in options.prototypes]
    if used and options.peers is not None:  # a part may use some alone
        used = [any(parts) for parts in zip(*options.peers.gather(used), strict=True)]
    unused = [each for each, is_used in zip(options.prototypes, used, strict=True) if not is_used]
    if unused:
        raise PrototypeMismatchError(
            f"no masked layer comes from {unused[0]}: check each of its fields"
        )
    layer_of = dict(zip(masked, zip(layers, fills, strict=True), strict=True))
    tensors: list[ContentTensor] = []
    for name in state.tensors:
        if name in state.aliases:
            tensors.append(AliasTensor(name, state.aliases[name]))
            continue
        dtype, shape = dtype_name(state.tensors[name]), tuple(state.tensors[name].shape)
        if name in state.masks:
            layer, fill = layer_of[name]
            tensors.append(MaskedTensor(name, dtype, shape, fill, layer.mask.reshape(shape)))
        else:
            mode = modes.get(name, "lossless")
            _, error = state.shortened.get(name, (mode, 0.0))
            tensors.append(DenseTensor(name, dtype, shape, arrays[name], mode, error))
    for name, tensor in trace.tensors.items() if trace else ():
        value = tensor_to_array(tensor, name)
        tensors.append(DenseTensor(name, dtype_name(tensor), tuple(tensor.shape), value))
    manifest = trace.manifest if trace else None
    metadata = {**(origin.metadata if origin else {}), **options.metadata}
    inference_only = options.fold_bn or (origin is not None and origin.inference_only)
    return Contents(prototypes, tuple(tensors), manifest, metadata, inference_only)
