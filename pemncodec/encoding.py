"""A masked model or checkpoint → a .pemn file, proven by decoding it again before it is written."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, get_args

import torch
from torch import Tensor, nn

from pemncodec.architecture.batch_norm import fold_batch_norms
from pemncodec.architecture.builder import describe_builder
from pemncodec.architecture.example import (
    VERIFIED_BATCH_SIZES,
    ExampleInputs,
    given_inputs,
    guessed_inputs,
)
from pemncodec.architecture.outputs import run
from pemncodec.architecture.trace import Trace, trace_module
from pemncodec.checkpoints.dialects import check_describable, known_masks, read_masks
from pemncodec.checkpoints.files import check_state_dict
from pemncodec.checkpoints.names import drop_prefix
from pemncodec.checkpoints.plain_module import in_module_order, plain_module
from pemncodec.coders.dense import shortened
from pemncodec.coders.masks import PRESETS, Preset
from pemncodec.contents import (
    AliasTensor,
    Contents,
    DenseMode,
    DenseTensor,
    MaskedTensor,
    SeededPrototype,
)
from pemncodec.contents import Tensor as ContentTensor
from pemncodec.errors import (
    EncodeArgumentError,
    EncodeError,
    PrototypeMismatchError,
)
from pemncodec.format.columns import is_name
from pemncodec.format.info import FileInfo
from pemncodec.format.reader import open_file
from pemncodec.format.writer import encode_contents, write_file
from pemncodec.limits import Limits
from pemncodec.masking.masked_model import unwrapped
from pemncodec.masking.masked_state import MaskedState
from pemncodec.proof import (
    UNLIMITED,
    accuracy_of,
    output_difference,
    verify_module,
    verify_tensors,
)
from pemncodec.tensors import dtype_name, tensor_to_array
from pemncodec.values.philox import DISTRIBUTIONS, check_stream
from pemncodec.values.recovery import Layer, recover_prototypes

Progress = Callable[[str, float | None], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What `encode` wrote.

    Attributes:
        info: the file's bytes, part by part.
        verified: how the file was proven before it was written, in words.
        difference: largest difference of the rebuilt module's outputs, in eval mode on the example
            inputs, from the original's, relative to the original's largest magnitude; None where
            nothing was to be lost or there is no module to run.
        accuracy: what the caller's metric says of the original and of the file.
    """

    info: FileInfo
    verified: str
    difference: float | None = None
    accuracy: tuple[float, float] | None = None


def encode(
    source: nn.Module | Mapping[str, Tensor],
    target: str | os.PathLike[str] | BinaryIO,
    *,
    masks: Mapping[str, Tensor] | None = None,
    keep: float | None = None,
    architecture: nn.Module | None = None,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    dynamic_axes: Sequence[Collection[int]] = (),
    manifest: bool = True,
    train_graph: bool = False,
    builder: tuple[str, Mapping[str, Any]] | None = None,
    prototypes: Sequence[SeededPrototype] = (),
    preset: Preset = "default",
    dense: DenseMode | Mapping[str, DenseMode] = "lossless",
    fold_bn: bool = False,
    accuracy: Callable[[nn.Module], float] | None = None,
    max_drop: float | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write a masked network as a .pemn file.

    Before anything is written the file is decoded again: every tensor must come back bit for bit,
    and the rebuilt module must give the original's outputs at two batch sizes, in eval and in
    train mode (where there is one, see `train_graph`).

    Args:
        source: a module, or a state dict; of `pemncodec.masking`, in `torch.nn.utils.prune` form,
            or any with `masks`; official PEMN (`X.weight`, `X.scores`) as a state dict.
        target: a path, replaced atomically, or a binary file object.
        masks: bool [*shape] by name of the parameter, for weights whose masks `source` lacks.
        keep: share of each layer's weights that its scores keep, in (0, 1].
        architecture: the plain module whose state dict `source` is, when that is a state dict.
        example_inputs: what the module's `forward` takes, batch first; None guesses it from the
            first layer.
        dynamic_axes: for each of `example_inputs`, axes beside the batch whose sizes may vary, such
            as the length of a sequence; a `forward` that has to be exported fixes all others.
        manifest: False stores the tensors without the architecture.
        train_graph: a `forward` that torch.fx cannot trace is exported for eval mode; True exports
            it for train mode, too.
        builder: import path ("pkg.module:factory") and arguments of code that makes the plain
            module; stored in place of a description, so that who reads the file must have that
            code and allow it to run (`decode(trust=…)`).
        prototypes: seeded prototypes that the frozen weights may come from.
        preset: "fast" for masks that decode at memory speed; "max" for the smallest, which decode
            at some 25 million weights a second on one core; "default" for the smallest of models
            that this decodes within a second.
        dense: how float32 tensors that are not masked are stored: "lossless", "fp16", "bf16" or
            "q8" (8 bits, each tensor or row of a matrix with its own range); one for all, or by
            pattern of the name (`fnmatch`, the first that fits; others are lossless).
        fold_bn: make an inference-only file in which a batch norm is two vectors; the module and
            its names stay what they are.
        accuracy: a metric of a module in eval mode, larger is better; called with the original and
            with what the file gives.
        max_drop: by how much `accuracy` may be smaller for the file.
        metadata: text to keep in the file.
        progress: called with the step that is under way and its share done, 0 to 1 or None.

    Raises:
        EncodeArgumentError: arguments that are missing, out of range, or contradict each other.
        UnsupportedModelError: the manifest cannot describe the module.
        PrototypeMismatchError: no weights come from one of `prototypes`.
        EncodeError: data that cannot be encoded, or a file that loses more than `max_drop`.
    """
    step = progress or (lambda _, __: None)
    trust = () if builder is None else (builder[0],)
    if isinstance(target, str | os.PathLike) and not Path(target).absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(Path(target).parent))
    _check_arguments(source, architecture, manifest)
    if builder is not None and not manifest:
        raise EncodeArgumentError("builder is stored as the architecture, which is turned off")
    if dynamic_axes and example_inputs is None:
        raise EncodeArgumentError("dynamic_axes needs example_inputs")
    inputs = None if example_inputs is None else given_inputs(example_inputs, dynamic_axes)
    if masks is not None and not isinstance(masks, Mapping):
        raise EncodeArgumentError(f"masks must be named, not {type(masks).__name__}")
    _check_metadata(metadata or {})
    if preset not in PRESETS:
        raise EncodeArgumentError(f"unknown preset {preset!r:.60}, have {', '.join(PRESETS)}")
    for prototype in prototypes:
        _check_prototype(prototype)
    if (fold_bn or accuracy is not None) and not manifest:
        raise EncodeArgumentError(
            "fold_bn and accuracy need the architecture: leave out --no-manifest (manifest=False)"
        )
    if max_drop is not None and accuracy is None:
        raise EncodeArgumentError("--max-drop (max_drop) needs --accuracy (accuracy)")
    if accuracy is not None and not callable(accuracy):
        raise EncodeArgumentError(f"accuracy must be a function of a module, not {accuracy!r:.60}")
    step("reading masks", None)
    if isinstance(source, nn.Module) and source is not unwrapped(source):
        source, masks = unwrapped(source), drop_prefix(masks or {})
    named = _state_dict(source, architecture)
    _check_names(named)
    state = read_masks(named, keep=keep, masks=masks)
    if manifest and isinstance(source, nn.Module):
        check_describable(named)
    if not state.masks:
        raise EncodeError(
            f"no masks found: neither {known_masks()}; masks of your own go through "
            'pemncodec.encode, such as masks={"fc.weight": weight != 0}; '
            "a model of pemncodec.masking is encoded before bake, which drops its masks"
        )
    network: _Network | None = None
    if manifest:
        step("describing the architecture", None)
        module = architecture if isinstance(source, Mapping) else source
        assert module is not None  # see _check_arguments
        network, state = _describe(module, state, inputs, fold_bn, train_graph, builder)
    modes = _dense_modes(state, dense)
    step("looking for prototypes", None)
    trace = network.trace if network else None
    contents = _contents(state, trace, prototypes, modes, dict(metadata or {}), fold_bn)
    pieces = encode_contents(contents, lambda share: step("coding", share), preset)
    if modes:
        state = _shortened(state, modes)
    step("verifying", None)
    stream = io.BytesIO(b"".join(pieces))
    difference = measured = None
    if network is None:
        verified = verify_tensors(stream, state.effective())
    else:
        plain = plain_module(module, state) if modes else network.plain
        verified = verify_module(
            stream, state.effective(), plain, network.trace, network.inputs, trust
        )
        if modes or fold_bn:
            difference = output_difference(network.original, stream, network.inputs, trust)
        if accuracy is not None:
            step("measuring the accuracy", None)
            measured = accuracy_of(accuracy, network.original, stream, max_drop, trust)
    if modes:
        verified = f"as shortened, {verified}"
    with open_file(stream, limits=UNLIMITED) as file:
        report = Report(file.info(), verified, difference, measured)
    step("writing", None)
    write_file(pieces, target)
    return report


@dataclass(frozen=True, slots=True)
class _Network:
    """What is known of a file's network: plain modules on the CPU that hold effective weights.

    Attributes:
        original: as it was given.
        plain: as the file is to have it, batch norms folded where that was asked for.
        trace: its manifest.
        inputs: what it takes.
    """

    original: nn.Module
    plain: nn.Module
    trace: Trace
    inputs: ExampleInputs


def _describe(
    module: nn.Module,
    state: MaskedState,
    inputs: ExampleInputs | None,
    fold_bn: bool,
    train_graph: bool,
    builder: tuple[str, Mapping[str, Any]] | None,
) -> tuple[_Network, MaskedState]:
    """The network, and the state in its order, folded where that was asked for."""
    original = plain = plain_module(module, state)
    if fold_bn:
        folded = fold_batch_norms(plain)
        if not folded:
            raise EncodeArgumentError("fold_bn: the module has no batch norm to fold")
        state = _replaced(state, folded)
        plain = plain_module(module, state)
    inputs = inputs or guessed_inputs(plain)
    untouched = plain_module(module, state)
    run(plain, inputs.batch(VERIFIED_BATCH_SIZES[0]), False)
    masked = list(state.masks)
    if builder is not None:
        described = describe_builder(*builder, plain, inputs.specs, masked)
        trace = Trace(described, {}, trains=True, exported=False)
    else:
        trace = trace_module(
            plain, inputs.specs, example=inputs, train_graph=train_graph, masked=masked
        )
    return _Network(original, untouched, trace, inputs), in_module_order(state, plain)


def _check_arguments(
    source: nn.Module | Mapping[str, Tensor],
    architecture: nn.Module | None,
    manifest: bool,
) -> None:
    if not isinstance(source, nn.Module | Mapping):
        raise EncodeArgumentError(f"expected a module or state dict, not {type(source).__name__}")
    if not isinstance(architecture, nn.Module | None):
        raise EncodeArgumentError(f"architecture must be a module, not {architecture!r:.60}")
    if isinstance(source, nn.Module) and architecture is not None:
        raise EncodeArgumentError("a module is its own architecture: give one of the two")
    if not manifest:
        if architecture is not None:
            raise EncodeArgumentError("an architecture is given, but the manifest is turned off")
        return
    if not isinstance(source, nn.Module) and architecture is None:
        raise EncodeArgumentError(
            "a state dict does not hold its architecture: give --arch pkg.module:factory "
            "(architecture=…), or --no-manifest (manifest=False) to store the tensors alone"
        )


def _check_metadata(metadata: Mapping[str, str]) -> None:
    for key, value in metadata.items():
        for text in (key, value):
            if not isinstance(text, str) or (not text.isascii() and _has_surrogate(text)):
                raise EncodeArgumentError(f"metadata must be text, not {key!r:.60}: {value!r:.60}")


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _check_prototype(prototype: SeededPrototype) -> None:
    if prototype.distribution not in DISTRIBUTIONS:
        raise EncodeArgumentError(f"unknown distribution {prototype.distribution!r:.60}")
    if prototype.length < 1:
        raise EncodeArgumentError(f"a prototype's length must be positive, not {prototype.length}")
    try:
        check_stream(prototype.seed, prototype.stream)
    except ValueError as error:
        raise EncodeArgumentError(str(error)) from None


def _check_names(state: Mapping[str, Tensor]) -> None:
    """Names and shapes that a reader would refuse; the rest is checked by decoding the file."""
    for name, tensor in state.items():
        if not is_name(name):
            raise EncodeError(f"{name!r:.60} cannot be the name of a tensor")
        if isinstance(tensor, Tensor) and tensor.dim() > Limits().dimensions:
            raise EncodeError(f"{name} has more than {Limits().dimensions} dimensions")


def _state_dict(source: Any, architecture: nn.Module | None) -> dict[str, Tensor]:
    if isinstance(source, nn.Module):
        return dict(source.state_dict(keep_vars=True))
    own = architecture.state_dict() if architecture is not None else {}
    return drop_prefix(check_state_dict(source, "state dict"), like=own)


def _dense_modes(
    state: MaskedState, dense: DenseMode | Mapping[str, DenseMode]
) -> dict[str, DenseMode]:
    """The modes of float32 tensors that are not lossless, by name."""
    patterns = dense if isinstance(dense, Mapping) else {"*": dense}
    for pattern, mode in patterns.items():
        if mode not in get_args(DenseMode):
            known = ", ".join(get_args(DenseMode))
            raise EncodeArgumentError(f"unknown dense mode {mode!r:.60}, have {known}")
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in state.tensors):
            raise EncodeArgumentError(f"dense: no tensor is called {pattern}")
    modes: dict[str, DenseMode] = {}
    for name, tensor in state.tensors.items():
        mode = next((m for p, m in patterns.items() if fnmatchcase(name, p)), "lossless")
        plain = name not in state.masks and name not in state.aliases and tensor.numel()
        if not plain or tensor.dtype != torch.float32 or mode == "lossless":
            continue
        if not (tensor == tensor.reshape(-1)[0]).all():  # else a constant, free as it is
            modes[name] = mode
    return modes


def _replaced(state: MaskedState, tensors: Mapping[str, Tensor]) -> MaskedState:
    """With other values for unmasked tensors, also under their later names."""
    new = dict(state.tensors)
    for name in new:
        new[name] = tensors.get(state.aliases.get(name, name), new[name])
    return replace(state, tensors=new)


def _shortened(state: MaskedState, modes: Mapping[str, DenseMode]) -> MaskedState:
    """With the values that come back from the file."""
    return _replaced(
        state,
        {
            name: torch.from_numpy(
                shortened(tensor_to_array(state.tensors[name], name), mode, name)
            ).view(state.tensors[name].shape)
            for name, mode in modes.items()
        },
    )


def _contents(
    state: MaskedState,
    trace: Trace | None,
    seeded: Sequence[SeededPrototype],
    modes: Mapping[str, DenseMode],
    metadata: dict[str, str],
    inference_only: bool,
) -> Contents:
    own = {name: tensor for name, tensor in state.tensors.items() if name not in state.aliases}
    arrays = {name: tensor_to_array(tensor, name) for name, tensor in own.items()}
    masked = [name for name in own if name in state.masks]
    layers = [
        Layer(
            dtype_name(own[name]),
            arrays[name].reshape(-1),
            state.masks[name].reshape(-1),
            state.fills.get(name),
        )
        for name in masked
    ]
    prototypes, fills = recover_prototypes(layers, seeded)
    unused = [prototype for prototype in seeded if prototype not in prototypes]
    if unused:
        raise PrototypeMismatchError(
            f"no masked layer comes from {unused[0]}: check seed, distribution, stream and length"
        )
    fill_of = dict(zip(masked, fills, strict=True))
    tensors: list[ContentTensor] = []
    for name in state.tensors:
        if name in state.aliases:
            tensors.append(AliasTensor(name, state.aliases[name]))
            continue
        dtype, shape = dtype_name(state.tensors[name]), tuple(state.tensors[name].shape)
        if name in state.masks:
            tensors.append(MaskedTensor(name, dtype, shape, fill_of[name], state.masks[name]))
        else:
            mode = modes.get(name, "lossless")
            shortened(arrays[name], mode, name)  # refused here, before anything is coded
            tensors.append(DenseTensor(name, dtype, shape, arrays[name], mode))
    for name, tensor in trace.tensors.items() if trace else ():
        value = tensor_to_array(tensor, name)
        tensors.append(DenseTensor(name, dtype_name(tensor), tuple(tensor.shape), value))
    manifest = trace.manifest if trace else None
    return Contents(prototypes, tuple(tensors), manifest, metadata, inference_only)
