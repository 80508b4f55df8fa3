"""A network that several processes read: what only all of them together can tell.

Each reads some layers, with all entries that belong to them. An option that fits nothing there may
fit what another one reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from pemncodec.checkpoints.dialects import NO_TASKS, scores_in
from pemncodec.checkpoints.official_scores import no_such_scores
from pemncodec.checkpoints.score_rules import rule_named
from pemncodec.checkpoints.scored_weights import USED_AS_THEY_ARE, kinds_of, several_kinds
from pemncodec.checkpoints.supsup import SUPSUP
from pemncodec.checkpoints.unmasked import NoMasksError, what_to_give
from pemncodec.checkpoints.zero_masks import NO_ZEROS
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.masking.keep import check_patterns
from pemncodec.masking.masked_state import MaskedState
from pemncodec.options import EncodeOptions, check_dense_pattern
from pemncodec.peers import Peers

_WHOLE = "encode it in one process"
_LOGITS_OR_MASKS = {"mask logits", "masks beside the weights"}


def check_parts_suffice(options: EncodeOptions) -> None:
    """Refuses what needs the whole network in one process.

    Raises:
        EncodeArgumentError: an option does.
    """
    if options.rule is not None:
        rule_named(options.rule)
        if options.rule.startswith("bernoulli="):
            raise EncodeArgumentError(
                f"--rule {options.rule} (rule=…) draws for one layer after the other, and no "
                f"process has them all: {_WHOLE}, or give the masks (--masks, masks=…)"
            )
    if options.manifest:
        raise EncodeArgumentError(
            "an architecture is described by running the whole network, and no process has it: "
            "give --no-manifest (manifest=False)"
        )
    if options.find_seed == "full":
        raise EncodeArgumentError(
            "--find-seed full (find_seed=…) looks at the whole network: find the seed with "
            "`pemn seed`, and give it as --seed (seed=…)"
        )


def check_together(
    peers: Peers, named: Mapping[str, Tensor], state: MaskedState, options: EncodeOptions
) -> None:
    """Refuses what fits no part of the network, as one process would.

    Args:
        peers: who reads the other parts.
        named: this part, as it was given.
        state: what was read of it.
        options: what the caller says.

    Raises:
        EncodeArgumentError: an option that fits nothing anywhere.
        NoMasksError: no part has masks.
        EncodeError: what scores mean depends on those that other processes read.
    """
    said = peers.gather({
        "names": list(state.tensors),
        "masked": list(state.masks),
        "scores": scores_in(named, options.scores_name),
        "rules": sorted(set(state.rules.values())),
    })  # fmt: skip
    names, masked, scores, rules = (
        [value for part in said for value in part[key]]
        for key in ("names", "masked", "scores", "rules")
    )
    _check_scores(scores, options)
    _check_meaning(rules)
    _check_kinds(rules, options)
    if options.masks_from is not None and not any(rule.startswith("zeros:") for rule in rules):
        raise EncodeArgumentError(NO_ZEROS)
    if isinstance(options.keep, Mapping):
        try:
            check_patterns(options.keep, [[name] for name in masked])
        except ValueError as error:
            raise EncodeArgumentError(str(error)) from None
    if not masked:
        raise NoMasksError(f"no masks found: {what_to_give(named)}")
    for pattern in options.dense_modes:
        check_dense_pattern(pattern, names)


def _check_scores(scores: Collection[str], options: EncodeOptions) -> None:
    if options.scores_name is not None and f"X.{options.scores_name}" not in scores:
        raise EncodeArgumentError(no_such_scores(options.scores_name))
    if options.task is not None and SUPSUP.name not in scores:
        raise EncodeArgumentError(NO_TASKS)
    if not scores and (options.keep is not None or options.rule is not None):
        given = "keep" if options.keep is not None else "--rule (rule)"
        raise EncodeArgumentError(
            f"{given} is given, but there are no scores to apply it to: leave it out"
        )


def _check_kinds(rules: Collection[str], options: EncodeOptions) -> None:
    """One cut goes through scores of one kind."""
    if options.rule is None or not (rule := rule_named(options.rule)).one_cut:
        return
    share = 1.0 if options.keep is None or isinstance(options.keep, Mapping) else options.keep
    kinds = [kind for kind in kinds_of(rules) if rule.in_words(kind, float(share)) in rules]
    if len(kinds) > 1:
        raise EncodeArgumentError(several_kinds(options.rule, kinds))


def _check_meaning(rules: Collection[str]) -> None:
    """Scores of 0 and 1 alone are masks, unless there are others that are not."""
    labels = {rule.partition(": ")[0]: rule for rule in rules}
    as_they_are = {label for label, rule in labels.items() if rule.endswith(USED_AS_THEY_ARE)}
    for rule in rules:
        label = rule.partition(": ")[0]
        ranked = label in as_they_are and not rule.endswith(USED_AS_THEY_ARE)
        if ranked or labels.keys() >= _LOGITS_OR_MASKS:
            raise EncodeError(
                "some scores are 0 and 1 alone, others are not, so that what they mean depends on "
                f"layers that other processes read: {_WHOLE}"
            )
