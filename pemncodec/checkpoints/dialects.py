"""A state dict → weights and masks, by all dialects that it holds.

A new dialect is a file with its `Dialect`, and a line in `DIALECTS`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from pemncodec.checkpoints.dialect import Dialect, MaskOptions
from pemncodec.checkpoints.files import check_state_dict
from pemncodec.checkpoints.given_masks import read_given_masks
from pemncodec.checkpoints.names import tied_names
from pemncodec.checkpoints.official_scores import OFFICIAL_SCORES
from pemncodec.checkpoints.pemncodec_masking import PEMNCODEC_MASKING
from pemncodec.checkpoints.torch_prune import TORCH_PRUNE
from pemncodec.contents import WEIGHT_DTYPES, Mask
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.masking.masked_state import MaskedState
from pemncodec.tensors import dtype_name

# In the order in which they read: each sees what those before it left.
DIALECTS: tuple[Dialect, ...] = (
    PEMNCODEC_MASKING,
    OFFICIAL_SCORES,
    TORCH_PRUNE,
)


def dialects_of(state: Mapping[str, Tensor]) -> list[Dialect]:
    """The dialects whose entries a state dict holds; several where its layers differ.

    Raises:
        EncodeError: not a state dict.
    """
    checked = check_state_dict(state, "state dict")
    return [dialect for dialect in DIALECTS if dialect.matches(checked)]


def check_describable(state: Mapping[str, Tensor], keep: object) -> None:
    """Of the state dict of a module that is to be described by a manifest.

    Args:
        state: with masks that could be read.
        keep: as `read_masks` got it.

    Raises:
        EncodeArgumentError: the module masks in code of its own.
    """
    for dialect in dialects_of(state):
        # Without the keep that it needs, all of the dialect's masks are given by the caller.
        if dialect.own_code and not (dialect.needs_keep and keep is None):
            raise EncodeArgumentError(
                f"a module with {dialect.name} computes its masks in code of its own: give its "
                "state_dict(), and the plain module as architecture"
            )


def known_masks() -> str:
    """What is looked for in a state dict, in words."""
    *others, last = (dialect.name for dialect in DIALECTS)
    return f"{', '.join(others)} nor {last}"


def read_masks(
    state: Mapping[str, Tensor],
    *,
    keep: float | Mapping[str, float] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    own: Collection[str] = (),
) -> MaskedState:
    """Weights and masks of a state dict in any of the dialects.

    Args:
        state: names as in `state_dict`.
        keep: share of the weights of a layer that its scores keep, or shares by pattern of the
            weight's name; needed for scores of weights that are not in `masks`.
        masks: more masks, bool (or 0 and 1) [*shape], by name of the weight.
        own: names that the network itself has for its tensors, where it is known.

    Raises:
        EncodeArgumentError: `keep` is missing, needless or outside (0, 1].
        EncodeError: scores or masks that do not fit, NaN scores, two masks for a weight.
    """
    options = MaskOptions(keep, {} if masks is None else masks, own)
    dialects = dialects_of(state)
    read = MaskedState(dict(state), {})
    for dialect in DIALECTS:
        asked_for = keep is not None and dialect.needs_keep
        if dialect in dialects or dialect.matches(read.tensors) or asked_for:
            read = _joined(read, dialect.read(read.tensors, options))
    if keep is not None and not any(dialect.needs_keep for dialect in dialects):
        raise EncodeArgumentError(
            "keep is given, but the masks follow from the checkpoint itself: leave it out"
            if dialects
            else "keep is given, but there are no scores to apply it to"
        )
    read = _joined(read, read_given_masks(read.tensors, options))
    for name in read.masks:
        if dtype_name(read.tensors[name]) not in WEIGHT_DTYPES:
            raise EncodeError(f"{name}: cannot mask weights of {dtype_name(read.tensors[name])}")
    return replace(read, aliases=_aliases(read))


def with_missing_ties(state: MaskedState, ties: Mapping[str, str]) -> MaskedState:
    """With names that a checkpoint left out, each of the same tensor and mask as another."""
    own = {name: state.aliases.get(other, other) for name, other in ties.items()}
    return replace(
        state,
        tensors=state.tensors | {name: state.tensors[other] for name, other in own.items()},
        masks=state.masks
        | {name: state.masks[other] for name, other in own.items() if other in state.masks},
        aliases=state.aliases | own,
    )


def _joined(before: MaskedState, now: MaskedState) -> MaskedState:
    """What one dialect found, with what those before it had found."""
    for name, rule in before.rules.items():
        if name in now.masks:
            raise EncodeError(f"{name} has two masks: ({rule}) and ({now.rules[name]})")
        if name not in now.tensors:
            raise EncodeError(f"{name} has a mask, and is itself part of another: {rule}")
    return MaskedState(
        now.tensors,
        before.masks | now.masks,
        fills=before.fills | now.fills,
        rules=before.rules | now.rules,
        ties=before.ties | now.ties,
    )


def _aliases(state: MaskedState) -> dict[str, str]:
    """Later names of a tensor to the first that has the same mask."""
    aliases = {}
    for name, names in tied_names(state.tensors).items():
        for target in names[: names.index(name)]:
            if _same_mask(state.masks.get(name), state.masks.get(target)):
                aliases[name] = target
                break
    return aliases


def _same_mask(first: Mask | None, second: Mask | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)
