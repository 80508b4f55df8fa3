"""The dialect of Hydra: `X.popup_scores` beside `X.weight`, with the rule of edge-popup.

Biases are not masked. Its "dense" checkpoints have zeros in the weights instead of scores.
"""

from __future__ import annotations

from pemncodec.checkpoints.dialect import Dialect, MaskOptions
from pemncodec.checkpoints.official_scores import scores_by_weight
from pemncodec.checkpoints.scored_weights import read_scores
from pemncodec.masking.masked_state import MaskedState, StateDict

_SCORES = "popup_scores"


def _matches(state: StateDict) -> bool:
    return bool(scores_by_weight(state, _SCORES))


def _read(state: StateDict, options: MaskOptions) -> MaskedState:
    scores = scores_by_weight(state, _SCORES)
    return read_scores(state, scores, options, label=_SCORES, default="magnitude")


HYDRA = Dialect("scores of Hydra (X.popup_scores)", _matches, _read, by_scores=True)
