"""The dialect of movement pruning: `X.mask_scores` beside a trained `X.weight`.

Its four methods leave the same entries: topK, which keeps a share; threshold and
sigmoied_threshold, which compare; and l0, whose masks have values between 0 and 1, which no mask of
bits can hold.
"""

from __future__ import annotations

import numpy as np

from pemncodec.checkpoints.dialect import Dialect, MaskOptions
from pemncodec.checkpoints.official_scores import scores_by_weight
from pemncodec.checkpoints.scored_weights import read_scores
from pemncodec.errors import EncodeError
from pemncodec.masking.masked_state import MaskedState, StateDict

_SCORES = "mask_scores"
_LEAST = 0.005  # the share of each layer that thresholds of the published code keep at least
_COMPARING = ("above=", "sigmoid-above=")


def _matches(state: StateDict) -> bool:
    return bool(scores_by_weight(state, _SCORES))


def _read(state: StateDict, options: MaskOptions) -> MaskedState:
    read = read_scores(
        state,
        scores_by_weight(state, _SCORES),
        options,
        label=_SCORES,
        default="movement",
        missing="the checkpoint holds scores of movement pruning but not its method",
        give="give --keep (keep=…) for topK, --rule above=T for threshold, or --rule "
        "sigmoid-above=T for sigmoied_threshold",
    )
    if options.rule is not None and options.rule.startswith(_COMPARING):
        for name, mask in read.masks.items():
            if np.count_nonzero(mask) < int(_LEAST * mask.size) + 1:
                raise EncodeError(
                    f"{name}: fewer than 0.5 % of its scores are above the threshold, where the "
                    "published code keeps others, too: give its mask (masks=…, --masks)"
                )
    return read


MOVEMENT_PRUNING = Dialect(
    "scores of movement pruning (X.mask_scores)", _matches, _read, by_scores=True
)
