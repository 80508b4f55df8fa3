"""What a caller gives `encode`, a module or a state dict → weights and masks."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pemncodec.checkpoints.dialects import (
    check_describable,
    known_masks,
    read_masks,
    with_missing_ties,
)
from pemncodec.checkpoints.files import check_state_dict
from pemncodec.checkpoints.names import fitting_prefix, missing_ties, plain_names, ties_of
from pemncodec.checkpoints.wrappers import without_wrappers
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.format.columns import is_name
from pemncodec.limits import Limits
from pemncodec.masking.masked_state import MaskedState
from pemncodec.options import EncodeOptions

_FILES = (str, bytes, memoryview, os.PathLike, io.IOBase)


def described_module(source: Any, options: EncodeOptions) -> nn.Module | None:
    """The module that the manifest is to describe; None for a file without one.

    Raises:
        EncodeArgumentError: there is none, or there are two.
    """
    if not isinstance(source, nn.Module | Mapping):
        kind = type(source).__name__
        hint = ": load it with torch.load or safetensors" * isinstance(source, _FILES)
        raise EncodeArgumentError(f"expected a module or state dict, not {kind}{hint}")
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


def read_source(source: nn.Module | Mapping[str, Tensor], options: EncodeOptions) -> MaskedState:
    """Weights and masks.

    Raises:
        EncodeArgumentError: options that do not fit the source.
        EncodeError: no masks, or data that cannot be encoded.
    """
    masks = dict(options.masks or {})
    if isinstance(source, nn.Module):
        if options.prefix is not None:
            raise EncodeArgumentError("prefix is for the names of a state dict, not for a module")
        named = dict(without_wrappers(source).state_dict(keep_vars=True))
        network: Mapping[str, Tensor] = named
        names, groups = plain_names(masks, named), list[list[str]]()
    else:
        given = check_state_dict(source, "state dict")
        network = _network(options.architecture)
        names = plain_names(given, network, options.prefix)
        named = {new: given[old] for old, new in names.items()}
        _check_fit(named, network)
        groups = ties_of(network)
    _check_names(named)
    # By the names of the checkpoint, or by one of a tied weight that it leaves out.
    other = {**missing_ties(named, groups), **names}
    of_mask = {name: other.get(name, name) for name in masks}
    if len(set(of_mask.values())) < len(of_mask):
        raise EncodeArgumentError(f"masks: two for one weight, among {', '.join(of_mask)}")
    masks = {of_mask[name]: mask for name, mask in masks.items()}
    state = read_masks(named, keep=options.keep, masks=masks, own=network)
    state = with_missing_ties(state, missing_ties(state.tensors, groups))
    if options.manifest and isinstance(source, nn.Module):
        check_describable(named, options.keep)
    if not state.masks:
        raise EncodeError(
            f"no masks found: neither {known_masks()}; masks of your own go through "
            'pemncodec.encode, such as masks={"fc.weight": weight != 0}; '
            "a model of pemncodec.masking is encoded before bake, which drops its masks"
        )
    return state


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
        if not is_name(name):
            raise EncodeError(f"{name!r:.60} cannot be the name of a tensor")
        if isinstance(tensor, Tensor) and tensor.dim() > Limits().dimensions:
            raise EncodeError(f"{name} has more than {Limits().dimensions} dimensions")
