"""Weights with scores → masks, by the rule that the caller or the dialect names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from torch import Tensor

from pemncodec.checkpoints.dialect import MaskOptions, MissingRuleError, check_shape
from pemncodec.checkpoints.score_rule import ScoreRule, exact_scores
from pemncodec.checkpoints.score_rules import RULES, rule_named
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.masking.keep import dropped_count, keep_at, keep_by_name
from pemncodec.masking.masked_state import MaskedState, StateDict

MISSING_KEEP = "the checkpoint holds scores but not the keep ratio"
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
) -> MaskedState:
    """Masks of all weights that have scores; those whose masks are given need none.

    Scores that are 0 and 1 already are the masks themselves.

    Args:
        state: with the scores' entries.
        scores: name of the scores by name of their weight, in the order of `state`.
        options: what the caller says.
        label: what rules in words call the scores.
        default: the rule where the caller gives a share and no rule; None where there is none.
        missing: what the checkpoint does not say, for the message.
        give: what to give then.

    Returns:
        All other entries as they are. Scores that a network has itself stay where they are not
        used, or are masks.

    Raises:
        MissingRuleError: neither a rule nor a share where they are needed.
        EncodeArgumentError: a rule or share that is needless, or does not fit.
        EncodeError: scores that cannot be ranked or do not fit their weight.
    """
    weights = _wanted(list(scores), options)
    if not weights:
        gone = set(scores.values()).difference(options.own)
        return MaskedState({n: t for n, t in state.items() if n not in gone}, {})
    for weight in weights:
        check_shape(scores[weight], state[scores[weight]], weight, state[weight])
    exact = {weight: exact_scores(state[scores[weight]], scores[weight]) for weight in weights}
    binary = _already_masks(exact) if options.rule is None else []
    ranked = [weight for weight in weights if weight not in binary]
    keeps = dict.fromkeys(weights, 1.0)
    if options.keep is not None:
        keeps = _keeps(weights, options)
        _check_binary({weight: exact[weight] for weight in binary}, keeps, scores)
    masks = {weight: exact[weight].numpy() == 1 for weight in binary}
    rules = dict.fromkeys(binary, f"{label}: 0 and 1 already, used as they are")
    ties: dict[str, int] = {}
    values: StateDict = {}
    if ranked:
        rule = _rule(ranked, options, default, missing, give)
        kept = rule.masks([exact[w] for w in ranked], [keeps[w] for w in ranked], rule.value)
        for weight, found in zip(ranked, kept, strict=True):
            masks[weight] = found.mask
            rules[weight] = rule.in_words(label, keeps[weight])
            if found.tied:
                ties[weight] = found.tied
            if rule.weights is not None:
                values[weight] = rule.weights(state[weight], found.mask, keeps[weight])
                if not values[weight].isfinite().all():
                    raise EncodeError(f"{weight}: keep {keeps[weight]} leaves no weights to use")
    stay = {
        name
        for weight, name in scores.items()
        if name in options.own and (weight not in masks or weight in binary)
    }
    gone = set(scores.values()) - stay
    tensors = {name: values.get(name, t) for name, t in state.items() if name not in gone}
    order = [weight for weight in scores if weight in masks]
    return MaskedState(
        tensors,
        {weight: masks[weight] for weight in order},
        rules={weight: rules[weight] for weight in order},
        ties=ties,
        beside={weight: scores[weight] for weight in binary if scores[weight] in stay},
    )


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
    ones = {name: tensor == 1 for name, tensor in scores.items()}
    binary = [name for name in scores if ((scores[name] == 0) | ones[name]).all()]
    both = [name for name in binary if ones[name].any() and not ones[name].all()]
    return binary if both and len(binary) == len(scores) else both


def _check_binary(
    binary: Mapping[str, Tensor], keeps: Mapping[str, float], scores: Mapping[str, str]
) -> None:
    for weight, tensor in binary.items():
        count = int(np.count_nonzero(tensor.numpy()))
        if count != tensor.numel() - dropped_count(tensor.numel(), keeps[weight]):
            raise EncodeArgumentError(
                f"{scores[weight]} are 0 and 1 already and keep {count:,} of {tensor.numel():,} "
                f"weights, not the share {keeps[weight]}: leave out --keep (keep=…), or give "
                "--rule magnitude to rank them"
            )


def _rule(
    weights: Sequence[str], options: MaskOptions, default: str | None, missing: str, give: str
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
    if rule.one_cut and isinstance(options.keep, Mapping):
        raise EncodeArgumentError(
            f"--rule {options.rule} makes one cut for all weights: give --keep (keep=…) one number"
        )
    return rule


def _keeps(weights: list[str], options: MaskOptions) -> dict[str, float]:
    assert options.keep is not None
    try:
        found = keep_by_name(options.keep, [[name] for name in weights])
    except ValueError as error:
        raise EncodeArgumentError(str(error)) from None
    return {name: keep_at(share, 0) for name, share in zip(weights, found, strict=True)}
