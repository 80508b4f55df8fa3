"""A state dict → weights and masks, by all dialects that it holds.

A new dialect is a file with its `Dialect`, and a line in `DIALECTS`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from torch import Tensor

from pemncodec.checkpoints.compressed_tensors import COMPRESSED_TENSORS
from pemncodec.checkpoints.dialect import Dialect, MaskOptions, MissingRuleError
from pemncodec.checkpoints.fedpm import FEDPM
from pemncodec.checkpoints.files import check_state_dict
from pemncodec.checkpoints.given_masks import read_given_masks
from pemncodec.checkpoints.hydra import HYDRA
from pemncodec.checkpoints.mask_buffers import MASK_BUFFERS
from pemncodec.checkpoints.movement_pruning import MOVEMENT_PRUNING
from pemncodec.checkpoints.names import tied_names
from pemncodec.checkpoints.official_scores import (
    NAMED_SCORES,
    OFFICIAL_SCORES,
    scores_by_weight,
)
from pemncodec.checkpoints.pemncodec_masking import PEMNCODEC_MASKING
from pemncodec.checkpoints.score_rule import Scored
from pemncodec.checkpoints.score_rules import rule_named
from pemncodec.checkpoints.scored_weights import kinds_of
from pemncodec.checkpoints.supsup import SUPSUP
from pemncodec.checkpoints.torch_prune import TORCH_PRUNE
from pemncodec.checkpoints.unmasked import what_to_give
from pemncodec.checkpoints.zero_masks import read_zeros
from pemncodec.contents import WEIGHT_DTYPES, Mask
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.masking.masked_state import MaskedState
from pemncodec.options import MaskChoices
from pemncodec.peers import Peers
from pemncodec.tensors import dtype_name

# In the order in which they read: each sees what those before it left.
DIALECTS: tuple[Dialect, ...] = (
    PEMNCODEC_MASKING,
    NAMED_SCORES,
    COMPRESSED_TENSORS,
    SUPSUP,
    OFFICIAL_SCORES,
    HYDRA,
    MOVEMENT_PRUNING,
    TORCH_PRUNE,
    FEDPM,
    MASK_BUFFERS,
)


NO_TASKS = "--task (task=…) is for sets of scores, such as X.scores.0"


def dialects_of(state: Mapping[str, Tensor]) -> list[Dialect]:
    """The dialects whose entries a state dict holds; several where its layers differ.

    Raises:
        EncodeError: not a state dict.
    """
    checked = check_state_dict(state, "state dict")
    return [dialect for dialect in DIALECTS if dialect.matches(checked)]


def check_describable(network: Mapping[str, Tensor], keep: object, rule: object) -> None:
    """Of a network that is to be described by a manifest.

    Args:
        network: its state dict; empty where there is none.
        keep: as `read_masks` got it.
        rule: as `read_masks` got it.

    Raises:
        EncodeArgumentError: the network masks in code of its own.
    """
    if not network or (keep is None and rule is None):
        return  # Then all masks that would follow from scores are given, or in the checkpoint.
    for dialect in dialects_of(network):
        if dialect.by_scores:
            raise EncodeArgumentError(
                f"a module with {dialect.name} computes its masks in code of its own: give its "
                "state_dict(), and the plain module as architecture (--arch)"
            )


def scores_in(state: Mapping[str, Tensor], scores_name: str | None) -> list[str]:
    """Names of the dialects by scores that a state dict has, and `X.NAME` of such scores."""
    found = [dialect.name for dialect in dialects_of(state) if dialect.by_scores]
    named = scores_name is not None and scores_by_weight(dict(state), scores_name)
    return found + [f"X.{scores_name}"] * bool(named)


def needs_rule(state: Mapping[str, Tensor], given: MaskChoices) -> bool:
    """Whether scores are there of which neither the caller nor they themselves say the rule."""
    try:
        read_masks(state, scores_name=given.get("scores_name"), task=given.get("task"))
    except MissingRuleError:
        return True
    except EncodeError:
        return False  # which reading them again will say
    return False


def read_masks(
    state: Mapping[str, Tensor],
    *,
    keep: float | Mapping[str, float] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    own: Collection[str] = (),
    rule: str | None = None,
    scores_name: str | None = None,
    task: int | None = None,
    masks_from: Literal["zeros"] | None = None,
    masks_are: str = "given by the caller",
    peers: Peers | None = None,
) -> MaskedState:
    """Weights and masks of a state dict in any of the dialects.

    Args:
        state: names as in `state_dict`.
        keep: share of the weights of a layer that its scores keep, or shares by pattern of the
            weight's name; needed for scores of weights that are not in `masks`.
        masks: more masks, bool (or 0 and 1) [*shape], by name of the weight.
        own: names that the network itself has for its tensors, where it is known.
        rule: how masks follow from scores, where not as the dialect's own code makes them.
        scores_name: what scores are called, where no dialect knows them.
        task: which of several sets of scores.
        masks_from: "zeros" for more masks where weights are 0.
        masks_are: where `masks` come from, in words.
        peers: the processes that read the network's other layers.

    Raises:
        EncodeArgumentError: an option is missing, needless or out of range.
        EncodeError: scores or masks that do not fit, NaN scores, two masks for a weight.
    """
    options = MaskOptions(
        keep,
        {} if masks is None else masks,
        own,
        rule,
        scores_name,
        task,
        masks_from,
        masks_are,
        peers,
    )
    dialects = dialects_of(state)
    asked_for = keep is not None or rule is not None
    read = MaskedState(dict(state), {})
    ranked: list[str] = []
    for dialect in DIALECTS:
        # Those by scores also refuse scores that fit nothing.
        always = dialect.by_scores or (dialect.together and peers is not None)
        if dialect in dialects or dialect.matches(read.tensors) or always:
            found = dialect.read(read.tensors, replace(options, ranked=ranked))
            ranked += kinds_of(found.rules.values()) if dialect.by_scores else []
            read = _joined(read, found)
    if rule is not None and not ranked and peers is not None:
        # Others may have scores, and find their cut together.
        list(rule_named(rule).masks(Scored({}, {}, options.share, peers), 0.0))
    by_scores = scores_name is not None or any(dialect.by_scores for dialect in dialects)
    if asked_for and not by_scores and peers is None:
        given = "keep" if keep is not None else "--rule (rule)"
        hint = "leave it out" if options.masks or masks_from else what_to_give(state)
        raise EncodeArgumentError(
            f"{given} is given, but the masks follow from the checkpoint itself: leave it out"
            if dialects
            else f"{given} is given, but there are no scores to apply it to: {hint}"
        )
    if task is not None and SUPSUP not in dialects and peers is None:
        raise EncodeArgumentError(NO_TASKS)
    read = _joined(read, read_given_masks(read.tensors, options))
    read = _joined(read, read_zeros(read.tensors, read.masks, options))
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
        masks={
            **state.masks,
            **{name: state.masks[other] for name, other in own.items() if other in state.masks},
        },
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
        {**before.masks, **now.masks},
        fills=before.fills | now.fills,
        rules=before.rules | now.rules,
        ties=before.ties | now.ties,
        beside=before.beside | now.beside,
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
