"""Weights and masks of a checkpoint → the seeds behind them."""

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
    StoredPrototype,
    TorchPrototype,
)
from pemncodec.errors import PrototypeMismatchError
from pemncodec.masking.masked_state import MaskedState, StateDict
from pemncodec.options import EncodeOptions
from pemncodec.tensors import dtype_name, tensor_to_array
from pemncodec.values.initialisation import Drawn
from pemncodec.values.numpy_legacy import is_numpy
from pemncodec.values.recovery import Layer
from pemncodec.values.seed_search import GIVEN_DRAWN, Network, find_seeds

_WORTH_A_NOTE = 64  # values that are stored
Progress = Callable[[str, float], None]


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


def initialised_network(state: MaskedState, names: Sequence[str]) -> Network:
    """What torch draws when a model's layers are made, in the order of its state dict.

    Args:
        state: the model, also with weights that have no mask.
        names: of the masked weights.
    """
    drawn: dict[str, Drawn] = {}
    for name, tensor in state.tensors.items():
        if tensor.dim() > 1 and name not in state.aliases:
            path, dot, own = name.rpartition(".")
            bias = state.tensors.get(path + dot + own.replace("weight", "bias"), tensor)
            # A bias of attention begins as zeros, and its weight has another name.
            has_bias = own.startswith("weight") and bias.dim() == 1
            drawn[name] = Drawn(tensor.numel(), bias.numel() if has_bias else 0)
    numbers = {name: number for number, name in enumerate(drawn)}
    return Network(tuple(drawn.values()), tuple(numbers.get(name, 0) for name in names))


def with_seeds(
    layers: list[Layer],
    network: Network,
    options: EncodeOptions,
    progress: Progress | None = None,
) -> list[Layer]:
    """With fills of torch's generator, where they are found or follow from the given seed.

    Args:
        layers: whose weights are looked for.
        network: that they are part of.
        options: what the caller asks for.
        progress: as `find_seeds` calls it.

    Raises:
        PrototypeMismatchError: no layer comes from the seed that is given.
    """
    if options.prototypes or (options.seed_effort is None and options.seed is None):
        return layers
    seeds = {} if options.seed is None else {options.seed % (1 << 32): GIVEN_DRAWN}
    weights = sum(layer.values.size for layer in layers)
    if options.peers is not None:
        weights = sum(options.peers.gather(weights))
    fills = find_seeds(layers, options.seed_effort, seeds, progress, network, weights)
    found = _filled(layers, fills)
    behind = _seeds_of(found)
    if options.peers is not None:
        # What is behind large layers of one part is behind small ones of the others, too.
        said = [each for part in options.peers.gather([*behind.items()]) for each in part]
        others = {seed: words for seed, words in sorted(said) if seed not in behind}
        found = _filled(found, find_seeds(found, None, others, progress, weights=weights))
        behind |= others
    for seed in seeds:
        if seed not in behind:
            raise PrototypeMismatchError(
                f"no masked layer comes from seed {options.seed} of torch's CPU generator, or of "
                "NumPy: leave --seed (seed=…) out to look for others"
            )
    return found


def _filled(layers: Sequence[Layer], fills: Sequence[SeededFill | None]) -> list[Layer]:
    return [
        replace(layer, fill=fill) if fill else layer
        for layer, fill in zip(layers, fills, strict=True)
    ]


def _seeds_of(layers: Sequence[Layer]) -> dict[int, int]:
    """Of torch's generator, or of NumPy's, and how many words lie before the last weight."""
    prototypes = [layer.fill.prototype for layer in layers if layer.fill is not None]
    behind: dict[int, int] = {}
    for each in prototypes:
        if isinstance(each, TorchPrototype):
            behind[each.seed] = max(behind.get(each.seed, 0), each.skip)
    return behind


def weight_seeds(
    state: MaskedState, options: EncodeOptions, progress: Progress | None = None
) -> dict[str, SeededFill | None]:
    """Where each masked weight comes from, by name; None where that is not found.

    Raises:
        PrototypeMismatchError: no weight comes from the seed that is given.
    """
    names = [name for name in state.masks if name not in state.aliases]
    arrays = {name: tensor_to_array(state.tensors[name], name) for name in names}
    layers = masked_layers(state, names, arrays)
    layers = with_seeds(layers, initialised_network(state, names), options, progress)
    return {name: layer.fill for name, layer in zip(names, layers, strict=True)}


def all_used(state: StateDict) -> MaskedState:
    """A network without masks as one whose masks use every weight of two dimensions or more."""
    masks = {
        name: np.ones(tuple(tensor.shape), np.bool_)
        for name, tensor in state.items()
        if tensor.dim() > 1 and dtype_name(tensor) in WEIGHT_DTYPES
    }
    return MaskedState(state, masks)


def seeds_note(contents: Contents, options: EncodeOptions) -> str | None:
    """From which seeds the frozen weights come, or that none was found; in a sentence.

    With peers, the weights of all.
    """
    seeds: dict[str, list[int]] = {"torch": [], "NumPy": []}
    frozen = found = 0
    for tensor in contents.tensors:
        if isinstance(tensor, MaskedTensor):
            frozen += tensor.mask.size
            prototype = contents.prototypes[tensor.fill.prototype]
            if isinstance(prototype, TorchPrototype):
                found += tensor.mask.size
                own = seeds["NumPy" if is_numpy(prototype) else "torch"]
                own += [prototype.seed] * (prototype.seed not in own)
    stored = sum(each.length for each in contents.prototypes if isinstance(each, StoredPrototype))
    if options.peers is not None:
        said = options.peers.gather([seeds, frozen, found, stored])
        for generator in seeds:
            every = [seed for part in said for seed in part[0][generator]]
            seeds[generator] = list(dict.fromkeys(every))
        frozen, found, stored = (sum(part[at] for part in said) for at in (1, 2, 3))
    if not found:
        return _nothing_found(stored, options)
    named = " and ".join(_named(generator, own) for generator, own in seeds.items() if own)
    return f"{named}: {found:,} of {frozen:,} frozen weights"


def _named(generator: str, seeds: Sequence[int]) -> str:
    shown = ", ".join(map(str, seeds[:3])) + f" and {len(seeds) - 3:,} more" * (len(seeds) > 3)
    return f"{generator} seed{'s' * (len(seeds) > 1)} {shown}"


def _nothing_found(count: int, options: EncodeOptions) -> str | None:
    if count < _WORTH_A_NOTE or options.prototypes or options.find_seed not in ("auto", "full"):
        return None
    every = "" if options.find_seed == "full" else " (--find-seed full tries all)"
    words = f"no seed of torch or NumPy is found behind {count:,} values"
    return f"{words}, so that they are stored{every}"
