"""A module with its effective weights → its manifest, and what the file is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from pemncodec.architecture.batch_norm import fold_batch_norms
from pemncodec.architecture.builder import describe_builder
from pemncodec.architecture.caches import copy_without_caches
from pemncodec.architecture.example import (
    ExampleInputs,
    given_inputs,
    guessed_inputs,
    in_order,
    specified_inputs,
)
from pemncodec.architecture.outputs import Reference
from pemncodec.architecture.trace import Trace, trace_module
from pemncodec.checkpoints.origin import Origin
from pemncodec.checkpoints.plain_module import in_module_order, plain_module
from pemncodec.errors import EncodeArgumentError
from pemncodec.masking.masked_state import MaskedState
from pemncodec.options import EncodeOptions
from pemncodec.tensors import dtype_name

_RUN: Final = 0.25  # of describing a network, about, is running it
_CACHED: Final = (
    "the model returns caches of earlier calls, the file's network does not: it was described with "
    "use_cache=False"
)


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """What is known of a file's network.

    Attributes:
        module: as the caller gave it.
        state: its tensors in its order, batch norms folded where that was asked for.
        inputs: what it takes.
        trace: its manifest.
        original: a plain copy with the weights as they were given, for comparisons.
        notes: what one should know of how it was described, each in a sentence.
    """

    module: nn.Module
    state: MaskedState
    inputs: ExampleInputs
    trace: Trace
    original: Reference
    notes: tuple[str, ...] = ()


def describe_network(
    module: nn.Module,
    state: MaskedState,
    options: EncodeOptions,
    origin: Origin | None,
    progress: Callable[[float], None],
) -> Network:
    """Trace a module.

    Args:
        module: as the caller gave it; nothing is done to it.
        state: its weights and masks.
        options: example inputs, builder, whether to fold batch norms.
        origin: the file that it comes from, if any, which says what it takes.
        progress: called with the share that is done.

    Raises:
        EncodeArgumentError: options that do not fit the module.
        UnsupportedModelError: the manifest cannot describe it, or it cannot be run.
    """
    plain = plain_module(module, state, state.effective())
    notes: tuple[str, ...] = ()
    given, axes = options.example_inputs, options.dynamic_axes
    if isinstance(given, Mapping):
        given, axes = in_order(plain, given, axes)
    if given is not None:
        inputs = given_inputs(given, axes)
    elif origin is not None and (specs := origin.inputs_of(state.tensors)):
        inputs = specified_inputs(specs)
    else:
        inputs = guessed_inputs(plain)
        notes = (_guessed(inputs.tensors[0]),)
    original = Reference(plain, inputs)
    original.evaluated()  # what cannot be run is refused before it is described
    progress(_RUN)
    if options.fold_bn:
        folded = fold_batch_norms(plain)
        if not folded:
            raise EncodeArgumentError("fold_bn: the module has no batch norm to fold")
        state = state.replaced(folded)
        plain = plain_module(module, state, state.effective())
    if origin is not None and origin.training:  # decoding has left that mode
        plain.train()
    masked = list(state.masks)
    cached = False
    if options.builder is not None:
        described = describe_builder(*options.builder, plain, inputs.specs, masked)
        trace = Trace(described, {}, trains=True, exported=False)
    else:
        cached = original.has_caches()
        trace = trace_module(
            copy_without_caches(plain) if cached else plain,
            inputs.specs,
            example=inputs,
            train_graph=options.train_graph,
            masked=masked,
            progress=_never_back(progress),
        )
    progress(1.0)
    state = in_module_order(state, plain)
    notes += (_CACHED,) * cached
    return Network(module, state, inputs, trace, original, notes)


def _never_back(progress: Callable[[float], None]) -> Callable[[float], None]:
    """Of tracing, which begins again with a larger module where one cannot be described."""
    most = 0.0

    def tell(share: float) -> None:
        nonlocal most
        most = max(most, share)
        progress(_RUN + (1 - _RUN) * most)

    return tell


def _guessed(batch: Tensor) -> str:
    sizes = ",".join(map(str, batch.shape[1:]))
    what = sizes if batch.dtype == torch.float32 else f"{dtype_name(batch)}:{sizes}"
    return f"compared on inputs of a guessed shape, {what}; --example-shape gives another"
