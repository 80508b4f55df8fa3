"""Weights and masks of a checkpoint → the seeds of torch's generator behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pemncodec.contents import (
    WEIGHT_DTYPES,
    Array,
    Contents,
    MaskedTensor,
    SeededFill,
    TorchPrototype,
)
from pemncodec.errors import PrototypeMismatchError
from pemncodec.masking.masked_state import MaskedState, StateDict
from pemncodec.options import EncodeOptions
from pemncodec.tensors import dtype_name, tensor_to_array
from pemncodec.values.recovery import Layer
from pemncodec.values.seed_search import find_seeds

Progress = Callable[[float], None]


def masked_layers(
    state: MaskedState, names: Sequence[str], arrays: Mapping[str, Array]
) -> list[Layer]:
    """The masked weights of these names.

    Args:
        state: with their masks, and what is known of where they come from.
        names: of weights.
        arrays: their values.
    """
    return [
        Layer(
            dtype_name(state.tensors[name]),
            arrays[name].reshape(-1),
            state.masks[name].reshape(-1),
            state.fills.get(name),
            tuple(state.tensors[name].shape),
        )
        for name in names
    ]


def with_seeds(
    layers: list[Layer], options: EncodeOptions, progress: Progress | None = None
) -> list[Layer]:
    """With fills of torch's generator, where they are found or follow from the given seed.

    Raises:
        PrototypeMismatchError: no layer comes from the seed that is given.
    """
    if options.prototypes or (options.seed_effort is None and options.seed is None):
        return layers
    seeds = [] if options.seed is None else [options.seed % (1 << 32)]
    fills = find_seeds(layers, options.seed_effort, seeds, progress)
    found = [
        replace(layer, fill=fill) if fill else layer
        for layer, fill in zip(layers, fills, strict=True)
    ]
    for seed in seeds:
        if not any(layer.fill and _seed_of(layer.fill) == seed for layer in found):
            raise PrototypeMismatchError(
                f"no masked layer comes from seed {options.seed} of torch's CPU generator: leave "
                "--seed (seed=…) out to look for others"
            )
    return found


def weight_seeds(
    state: MaskedState, options: EncodeOptions, progress: Progress | None = None
) -> dict[str, SeededFill | None]:
    """Where each masked weight comes from, by name; None where that is not found.

    Raises:
        PrototypeMismatchError: no weight comes from the seed that is given.
    """
    names = [name for name in state.masks if name not in state.aliases]
    arrays = {name: tensor_to_array(state.tensors[name], name) for name in names}
    layers = with_seeds(masked_layers(state, names, arrays), options, progress)
    return {name: layer.fill for name, layer in zip(names, layers, strict=True)}


def all_used(state: StateDict) -> MaskedState:
    """A network without masks as one whose masks use every weight of two dimensions or more."""
    weights = {
        name: tensor
        for name, tensor in state.items()
        if tensor.dim() > 1 and dtype_name(tensor) in WEIGHT_DTYPES
    }
    masks = {name: np.ones(tuple(tensor.shape), np.bool_) for name, tensor in weights.items()}
    return MaskedState(weights, masks)


def seeds_note(contents: Contents) -> str | None:
    """How many of the frozen weights come from which seeds of torch, in a sentence."""
    seeds: list[int] = []
    frozen = found = 0
    for tensor in contents.tensors:
        if isinstance(tensor, MaskedTensor):
            frozen += tensor.mask.size
            prototype = contents.prototypes[tensor.fill.prototype]
            if isinstance(prototype, TorchPrototype):
                found += tensor.mask.size
                seeds += [prototype.seed] * (prototype.seed not in seeds)
    if not seeds:
        return None
    named = ", ".join(map(str, seeds[:3])) + f" and {len(seeds) - 3:,} more" * (len(seeds) > 3)
    return f"torch seed{'s' * (len(seeds) > 1)} {named}: {found:,} of {frozen:,} frozen weights"


def _seed_of(fill: SeededFill) -> int | None:
    return fill.prototype.seed if isinstance(fill.prototype, TorchPrototype) else None
