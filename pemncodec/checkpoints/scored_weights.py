"""Weights with scores → masks, by the rule that the caller or the dialect names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor

from pemncodec.checkpoints.dialect import MaskOptions, MissingRuleError, check_shape
from pemncodec.checkpoints.score_rule import Scored, ScoreRule, comparable, exact_scores
from pemncodec.checkpoints.score_rules import RULES, rule_named
from pemncodec.contents import WEIGHT_DTYPES, Mask
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.mapped_masks import mapped
from pemncodec.masking.keep import dropped_count, keep_at, keep_by_name
from pemncodec.masking.lazy_mapping import LazyMapping
from pemncodec.masking.masked_state import MaskedState, StateDict
from pemncodec.tensors import dtype_name

MISSING_KEEP = "the checkpoint holds scores but not the keep ratio"
USED_AS_THEY_ARE = "0 and 1 already, used as they are"
GIVE_KEEP = "give --keep (keep=…), such as 0.5"


def read_scores(
    state: StateDict,
    scores: Mapping[str, str],
    options: MaskOptions,
    *,
    label: str,
    default: str | None,
    missing: str = MISSING_KEEP,
    give: str = GIVE_KEEP,
    blocks: bool = False,
) -> MaskedState:
    """Masks of all weights that have scores; those whose masks are given need none.

    Scores that are 0 and 1 already are the masks themselves. Where that is asked for, scores of a
    shape by which the weight's can be divided are those of blocks.

    Args:
        state: with the scores' entries.
        scores: name of the scores by name of their weight.
        options: what the caller says.
        label: what rules in words call the scores.
        default: the rule where the caller gives a share and no rule; None where there is none.
        missing: what the checkpoint does not say, for the message.
        give: what to give then.
        blocks: whether one score may be that of a block of weights.

    Returns:
        All other entries as they are. Scores that a network has itself stay where they are not
        used, or are masks.

    Raises:
        MissingRuleError: neither a rule nor a share where they are needed.
        EncodeArgumentError: a rule or share that is needless, or does not fit.
        EncodeError: scores that cannot be ranked or do not fit their weight.
    """
    weights = _wanted([name for name in state if name in scores], options)
    for weight in weights:
        if not (blocks and _divides(state[scores[weight]], state[weight])):
            check_shape(scores[weight], state[scores[weight]], weight, state[weight])
        exact_scores(state[scores[weight]], scores[weight])
    exact = LazyMapping(weights, lambda weight: comparable(state[scores[weight]]))
    keeps = _keeps(weights, options)
    binary = _already_masks(exact) if options.rule is None else []
    if options.keep is not None:
        _check_binary(binary, exact, keeps, scores)
    masks = {w: mapped(_of_shape(exact[w].numpy() == 1, state[w].shape)) for w in binary}
    rules = dict.fromkeys(binary, f"{label}: {USED_AS_THEY_ARE}")
    ties: dict[str, int] = {}
    values: StateDict = {}
    ranked = [weight for weight in weights if weight not in binary]
    if ranked:
        rule = _rule(ranked, options, label, default, missing, give)
        those = LazyMapping(ranked, exact.__getitem__)
        scored = Scored(those, keeps, options.share, options.peers)
        for weight, kept in zip(ranked, rule.masks(scored, rule.value), strict=True):
            masks[weight] = mapped(_of_shape(kept.mask, state[weight].shape))
            ties |= {weight: kept.tied} if kept.tied else {}
        rules |= {weight: rule.in_words(label, keeps[weight]) for weight in ranked}
        values = _values(rule, {weight: state[weight] for weight in ranked}, masks, keeps)
    beside = {weight: scores[weight] for weight in binary if scores[weight] in options.own}
    used = {name for weight, name in scores.items() if weight in masks and weight not in beside}
    gone = used | set(scores.values()).difference(options.own)
    return MaskedState(
        {name: values.get(name, tensor) for name, tensor in state.items() if name not in gone},
        {weight: masks[weight] for weight in scores if weight in masks},
        rules={weight: rules[weight] for weight in scores if weight in masks},
        ties=ties,
        beside=beside,
    )


def kinds_of(rules: Iterable[str]) -> list[str]:
    """What rules in words call the scores."""
    return list(dict.fromkeys(rule.partition(": ")[0] for rule in rules))


def several_kinds(rule: str | None, kinds: Sequence[str]) -> str:
    return (
        f"--rule {rule} makes one cut for all weights, but their scores are of several kinds, "
        f"{' and '.join(kinds)}: give masks (masks=…, --masks)"
    )


def _divides(scores: Tensor, weight: Tensor) -> bool:
    return scores.dim() == weight.dim() and all(
        size and whole and not whole % size
        for size, whole in zip(scores.shape, weight.shape, strict=True)
    )


def _of_shape(mask: Mask, shape: torch.Size) -> Mask:
    """Each bit of a mask for the whole block that it stands for."""
    for axis, size in enumerate(shape):
        if mask.shape[axis] != size:
            mask = np.repeat(mask, size // mask.shape[axis], axis)
    return mask


def _values(
    rule: ScoreRule, weights: StateDict, masks: Mapping[str, Mask], keeps: Mapping[str, float]
) -> StateDict:
    """What networks compute with in place of their weights, by rules that say so."""
    if rule.weights is None:
        return {}
    for name, tensor in weights.items():
        if dtype_name(tensor) not in WEIGHT_DTYPES or tensor.layout != torch.strided:
            raise EncodeError(f"{name}: cannot mask weights of {dtype_name(tensor)}")
        if tensor.is_meta:
            raise EncodeError(f"{name}: expected a dense tensor")
    values = {
        name: rule.weights(tensor, masks[name], keeps[name]) for name, tensor in weights.items()
    }
    for name, tensor in values.items():
        if not tensor.isfinite().all():
            raise EncodeError(f"{name}: keep {keeps[name]} leaves no weights to use")
    return values


def _wanted(weights: list[str], options: MaskOptions) -> list[str]:
    """Weights whose masks are to follow from scores; two masks for one weight end in an error."""
    keep = options.keep
    if isinstance(keep, Mapping):
        return [
            name
            for name in weights
            if name not in options.masks or any(fnmatchcase(name, pattern) for pattern in keep)
        ]
    if keep is not None:
        return weights
    return [name for name in weights if name not in options.masks]


def _already_masks(scores: Mapping[str, Tensor]) -> list[str]:
    """Names of scores that are 0 and 1: one by one, or all of a network's."""
    binary, both = [], []
    for name, tensor in scores.items():
        ones = tensor == 1
        if ((tensor == 0) | ones).all():
            binary.append(name)
            both += [name] if ones.any() and not ones.all() else []
    return binary if both and len(binary) == len(scores) else both


def _check_binary(
    binary: Sequence[str],
    exact: Mapping[str, Tensor],
    keeps: Mapping[str, float],
    scores: Mapping[str, str],
) -> None:
    for weight in binary:
        ones = exact[weight].numpy()
        count = int(np.count_nonzero(ones))
        if count != ones.size - dropped_count(ones.size, keeps[weight]):
            raise EncodeArgumentError(
                f"{scores[weight]} are 0 and 1 already and keep {count:,} of {ones.size:,} "
                f"weights, not the share {keeps[weight]}: leave out --keep (keep=…), or give "
                "--rule magnitude to rank them"
            )


def _rule(
    weights: Sequence[str],
    options: MaskOptions,
    label: str,
    default: str | None,
    missing: str,
    give: str,
) -> ScoreRule:
    if options.rule is not None:
        rule = rule_named(options.rule)
    elif options.keep is not None and default is not None:
        rule = RULES[default]
    else:
        among = f" and masks has nothing for {weights[0]}" if options.masks else ""
        raise MissingRuleError(f"{missing}{among}: {give}")
    if rule.needs_keep and options.keep is None:
        raise MissingRuleError(f"--rule {options.rule} ranks scores: {GIVE_KEEP}")
    if not rule.needs_keep and options.keep is not None:
        raise EncodeArgumentError(
            f"--rule {options.rule} takes no share: leave out --keep (keep=…)"
        )
    if rule.one_cut and options.ranked:
        raise EncodeArgumentError(several_kinds(options.rule, [*options.ranked, label]))
    if rule.one_cut and isinstance(options.keep, Mapping):
        raise EncodeArgumentError(
            f"--rule {options.rule} makes one cut for all weights: give --keep (keep=…) one number"
        )
    return rule


def _keeps(weights: list[str], options: MaskOptions) -> dict[str, float]:
    if options.keep is None or not weights:
        return dict.fromkeys(weights, 1.0)
    try:
        found = keep_by_name(
            options.keep, [[name] for name in weights], part=options.peers is not None
        )
    except ValueError as error:
        raise EncodeArgumentError(str(error)) from None
    return {name: keep_at(share, 0) for name, share in zip(weights, found, strict=True)}
