"""What a caller gives `encode`, a module or a state dict → weights and masks."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pemncodec.checkpoints.dialects import (
    check_describable,
    needs_rule,
    read_masks,
    with_missing_ties,
)
from pemncodec.checkpoints.files import Checkpoint, check_state_dict
from pemncodec.checkpoints.mask_names import masks_by_weight, weight_named
from pemncodec.checkpoints.names import fitting_prefix, missing_ties, plain_names, ties_of
from pemncodec.checkpoints.origin import RULE, Origin
from pemncodec.checkpoints.parts import check_together
from pemncodec.checkpoints.unmasked import NoMasksError, what_to_give
from pemncodec.checkpoints.wrappers import without_wrappers
from pemncodec.contents import Mask
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.format.columns import is_name
from pemncodec.format.reader import PemnFile
from pemncodec.limits import Limits
from pemncodec.masking.masked_state import MaskedState
from pemncodec.options import EncodeOptions, MaskChoices
from pemncodec.peers import Peers

_FILES = (str, bytes, memoryview, os.PathLike, io.IOBase)


def described_module(source: Any, options: EncodeOptions) -> nn.Module | None:
    """The module that the manifest is to describe; None for a file without one.

    Raises:
        EncodeArgumentError: there is none, or there are two.
    """
    if not isinstance(source, nn.Module | Mapping):
        kind = type(source).__name__
        hint = ": load it with torch.load, safetensors or pemncodec.open"
        raise EncodeArgumentError(
            f"expected a module, state dict or open .pemn file, not {kind}"
            f"{hint * isinstance(source, _FILES)}"
        )
    if not isinstance(options.architecture, nn.Module | None):
        raise EncodeArgumentError(
            f"architecture must be a module, not {options.architecture!r:.60}"
        )
    if isinstance(source, nn.Module):
        if options.architecture is not None:
            raise EncodeArgumentError("a module is its own architecture: give one of the two")
        return without_wrappers(source) if options.manifest else None
    if options.manifest and options.architecture is None:
        raise EncodeArgumentError(
            "a state dict does not hold its architecture: give --arch pkg.module:factory "
            "(architecture=…), or --no-manifest (manifest=False) to store the tensors alone"
        )
    return without_wrappers(options.architecture) if options.architecture is not None else None


def read_source(
    source: nn.Module | Mapping[str, Tensor], options: EncodeOptions, origin: Origin | None = None
) -> MaskedState:
    """Weights and masks.

    Args:
        source: a module or a state dict.
        options: masks, or how they follow from scores.
        origin: the file that the source was decoded from, by the source's names.

    Raises:
        EncodeArgumentError: options that do not fit the source.
        NoMasksError: there are none.
        EncodeError: data that cannot be encoded.
    """
    masks = dict(options.masks or {})
    known: dict[str, Mask] = {}
    if origin is not None:
        plain = source.state_dict() if isinstance(source, nn.Module) else source
        instead = {weight_named(name, plain) for name in masks}
        known = origin.masks_of({name: t for name, t in plain.items() if name not in instead})
    if isinstance(source, nn.Module):
        if options.prefix is not None:
            raise EncodeArgumentError("prefix is for the names of a state dict, not for a module")
        named = dict(without_wrappers(source).state_dict(keep_vars=True))
        network: Mapping[str, Tensor] = named
        names, groups = plain_names({**masks, **known}, named), list[list[str]]()
    else:
        given = check_state_dict(source, "state dict")
        network = _network(options.architecture)
        # Of a part they are plain already: what they begin with says nothing of the others.
        part = options.peers is not None
        names = {n: n for n in given} if part else plain_names(given, network, options.prefix)
        named = {new: given[old] for old, new in names.items()}
        known = {name: mask for name, mask in known.items() if name in names}
        _check_fit(named, network)
        groups = ties_of(network)
    masks |= {name: torch.from_numpy(mask) for name, mask in known.items()}
    _check_names(named)
    # By the names of the checkpoint, or by one of a tied weight that it leaves out.
    other = {**missing_ties(named, groups), **names}
    choices = _choices(options)
    choices["masks"] = masks_by_weight(masks, other, named)
    peers = options.peers
    state = read_masks(named, own=network, peers=peers, **choices)
    state = with_missing_ties(state, missing_ties(state.tensors, groups))
    if origin is not None:
        state = _with_origin(state, origin, known, other)
    if options.manifest:
        check_describable(network, options.keep, options.rule)
    if peers is not None:
        check_together(peers, named, state, options)
    elif not state.masks:
        raise NoMasksError(f"no masks found: {what_to_give(named)}")
    for name in state.masks:
        if state.keeps_zeros_alone(name):
            raise EncodeError(
                f"the mask of {name} keeps only weights that are 0, and drops the others: a mask "
                "is 1 (True) where a weight is used"
            )
    return state


def with_recorded(loaded: Checkpoint, given: MaskChoices) -> MaskChoices:
    """What the caller says of masks, completed by what the checkpoint file says of them.

    Raises:
        EncodeArgumentError: the file says otherwise, or that its rule is another one.
    """
    recorded, source = loaded.recorded, loaded.source
    if isinstance(source, PemnFile):
        return given
    state = source.state_dict() if isinstance(source, nn.Module) else source
    names = plain_names(state)
    plain = list(names.values())
    if not any(name in plain for name in masks_by_weight(recorded.masks, names, plain)):
        recorded = replace(recorded, masks={})
    said = recorded.conv_type is not None or recorded.prune_rate is not None
    return recorded.complete(given, needs_rule=said and needs_rule(state, given))


def _choices(options: EncodeOptions) -> MaskChoices:
    return {
        "keep": options.keep,
        "rule": options.rule,
        "scores_name": options.scores_name,
        "task": options.task,
        "masks_from": options.masks_from,
        "masks_are": options.masks_are,
    }


def _with_origin(
    state: MaskedState, origin: Origin, masks: Collection[str], names: Mapping[str, str]
) -> MaskedState:
    """With what a file says of weights whose `masks` are its own, and of trained tensors."""
    new = {name: names.get(name, name) for name in origin.state}
    now = {old: state.tensors[name] for old, name in new.items() if name in state.tensors}
    return replace(
        state,
        fills=state.fills
        | {new[n]: fill for n, fill in origin.fills_of(now).items() if n in masks},
        rules=state.rules | {new[name]: RULE for name in masks},
        shortened={new[name]: how for name, how in origin.still_shortened(now).items()},
    )


def _network(architecture: nn.Module | None) -> Mapping[str, Tensor]:
    return {} if architecture is None else without_wrappers(architecture).state_dict(keep_vars=True)


def _check_fit(named: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> None:
    """Names that would fit the architecture without what all of them begin with."""
    # A checkpoint may leave out one name of a tied tensor.
    once = [group[0] for group in ties_of(network) if len(group) == 1]
    prefix = fitting_prefix(named, once or network)
    if prefix is not None:
        raise EncodeArgumentError(
            f"the names of the architecture's tensors begin with {prefix} in the checkpoint: "
            f"--prefix {prefix} (prefix={prefix!r}) leaves that out"
        )


_RULES_SHOWN = 4


def rules_in_words(state: MaskedState, peers: Peers | None) -> tuple[str, ...]:
    """How masks were found, a sentence for each way; those of fewest weights are only counted.

    With peers, the masks of all.
    """
    own = Counter(state.rules.values())
    counts = own.most_common()
    if peers is not None:
        counts = sum(map(Counter, peers.gather(dict(own))), Counter[str]()).most_common()
    shown = [
        f"{rule} ({count:,} tensor{'s' * (count > 1)})" for rule, count in counts[:_RULES_SHOWN]
    ]
    if len(counts) > len(shown):
        shown.append(f"and {len(counts) - len(shown):,} more rules")
    return tuple(shown)


def notes_of(
    source: nn.Module | Mapping[str, Tensor], state: MaskedState, options: EncodeOptions
) -> tuple[str, ...]:
    """What one should know of how weights and masks were found, each in a sentence."""
    notes = []
    if state.ties:
        most = max(state.ties, key=lambda name: state.ties[name])
        notes.append(
            f"{sum(state.ties.values()):,} scores are equal where the cut goes between them (most "
            f"in {most}: {state.ties[most]:,}): the earlier of them go, and code that sorts "
            "otherwise drops others"
        )
    if options.prefix is not None and isinstance(source, Mapping):
        names = plain_names(source, _network(options.architecture), options.prefix)
        left_out = [name for name in source if name not in names]
        if left_out:
            notes.append(
                f"left out, since their names do not begin with {options.prefix}: {left_out[0]}"
                + f" and {len(left_out) - 1:,} more" * (len(left_out) > 1)
            )
    return tuple(notes)


def _check_names(state: Mapping[str, Tensor]) -> None:
    """Names and shapes that a reader would refuse; the rest is checked by decoding the file."""
    for name, tensor in state.items():
        if is_lazy(tensor):
            raise EncodeError(f"{name} has no values yet: run the module on an input once")
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise EncodeError(f"{name} has no values: it is on the meta device")
        if not is_name(name):
            raise EncodeError(f"{name!r:.60} cannot be the name of a tensor")
        if isinstance(tensor, Tensor) and tensor.dim() > Limits().dimensions:
            raise EncodeError(f"{name} has more than {Limits().dimensions} dimensions")
