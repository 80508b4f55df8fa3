"""The dialect of movement pruning: `X.mask_scores` beside a trained `X.weight`.

nn_pruning has them in `X.mask_module.context_modules`: one matrix, each score that of a block of
weights, or one vector for rows and one for columns, whose products are the scores.

The methods leave the same entries: topK, which keeps a share; threshold and sigmoied_threshold,
which compare; and l0, whose masks have values between 0 and 1, which no mask of bits can hold.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from pemncodec.checkpoints.dialect import Dialect, MaskOptions
from pemncodec.checkpoints.official_scores import scores_by_weight
from pemncodec.checkpoints.score_rule import exact_scores
from pemncodec.checkpoints.scored_weights import read_scores
from pemncodec.contents import Mask
from pemncodec.errors import EncodeError
from pemncodec.masking.masked_state import MaskedState, StateDict

_SCORES = "mask_scores"
_CONTEXT = re.compile(
    r"(?P<module>|.*\.)mask_module\.context_modules\.(?P<number>[01])\.mask_scores", re.ASCII
)
_PATTERN = "ampere_module."
_LEAST = 0.005  # the share of each layer that thresholds of the published code keep at least
_COMPARING = ("above=", "sigmoid-above=")


def _matches(state: StateDict) -> bool:
    return bool(scores_by_weight(state, _SCORES)) or any(map(_CONTEXT.fullmatch, state))


def _read(state: StateDict, options: MaskOptions) -> MaskedState:
    plain, contexts = _without_contexts(state)
    scores = {**scores_by_weight(plain, _SCORES), **contexts}
    read = read_scores(
        plain,
        {weight: scores[weight] for weight in plain if weight in scores},
        options,
        label=f"{_SCORES} of blocks" if contexts else _SCORES,
        default="movement",
        missing="the checkpoint holds scores of movement pruning but not its method",
        give="give --keep (keep=…) for topK, --rule above=T for threshold, or --rule "
        "sigmoid-above=T for sigmoied_threshold",
        blocks=bool(contexts),
    )
    for weight in contexts:
        if weight in read.masks:
            _check_bias(weight, read.masks[weight], plain, options)
    if options.rule is not None and options.rule.startswith(_COMPARING):
        for name, mask in read.masks.items():
            if np.count_nonzero(mask) < int(_LEAST * mask.size) + 1:
                raise EncodeError(
                    f"{name}: fewer than 0.5 % of its scores are above the threshold, where the "
                    "published code keeps others, too: give its mask (masks=…, --masks)"
                )
    return read


def _check_bias(weight: str, mask: Mask, state: StateDict, options: MaskOptions) -> None:
    """With `bias_mask`, which no entry tells, nn_pruning masks the biases of empty rows, too."""
    bias = weight.removesuffix("weight") + "bias"
    if bias not in state or bias in options.masks or state[bias].shape != mask.shape[:1]:
        return
    empty = torch.from_numpy(~mask.any(axis=1))
    if (state[bias].detach().cpu()[empty] != 0).any():
        raise EncodeError(
            f"{weight} has rows that keep nothing, whose biases nn_pruning masks with bias_mask "
            f"alone: give the mask of {bias} (masks=…, --masks)"
        )


def _without_contexts(state: StateDict) -> tuple[StateDict, dict[str, str]]:
    """nn_pruning's entries as `X.mask_scores`, which are matrices, and their names by weight."""
    plain: StateDict = {}
    contexts: dict[str, str] = {}
    for name, tensor in state.items():
        match = _CONTEXT.fullmatch(name)
        if match is None:
            plain[name] = tensor
            continue
        module = match["module"]
        if f"{module}weight" not in state or any(n.startswith(module + _PATTERN) for n in state):
            raise EncodeError(
                f"{name}: such scores without {module}weight, or with a pattern of 2:4 beside "
                f"them, are not read: give the mask of {module}weight (masks=…, --masks)"
            )
        contexts[f"{module}weight"] = f"{module}{_SCORES}"
        parts = [state.get(name[: match.start("number")] + f"{n}.{_SCORES}") for n in (0, 1)]
        plain[f"{module}{_SCORES}"] = _matrix(name, *parts)
    return plain, contexts


def _matrix(name: str, first: Tensor | None, second: Tensor | None) -> Tensor:
    if first is not None and first.dim() == 2 and second is None:
        return first
    if first is None or second is None or first.dim() != 1 or second.dim() != 1:
        raise EncodeError(f"{name}: expected one matrix, or a vector for rows and one for columns")
    return exact_scores(first, name)[:, None] * exact_scores(second, name)


MOVEMENT_PRUNING = Dialect(
    "scores of movement pruning (X.mask_scores)", _matches, _read, by_scores=True
)
