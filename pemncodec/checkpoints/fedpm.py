"""The dialect of FedPM: `X.mask` and `X.bias_mask` are logits of masks of `X.weight` and `X.bias`.

The published code draws masks anew in each forward, or compares the probabilities with a threshold.
"""

from __future__ import annotations

import torch

from pemncodec.checkpoints.dialect import Dialect, MaskOptions, is_binary
from pemncodec.checkpoints.scored_weights import read_scores
from pemncodec.masking.masked_state import MaskedState, StateDict

_LOGITS = {"mask": "weight", "bias_mask": "bias"}


def _logits(state: StateDict) -> dict[str, str]:
    """Entries with logits by the name of their weight or bias; masks of 0 and 1 are none.

    Beside logits also what is 0 or 1 everywhere: a layer may not have left where it began.
    """
    found = {}
    for name, tensor in state.items():
        module, dot, last = name.rpartition(".")
        masked = f"{module}{dot}{_LOGITS.get(last)}"
        fits = masked in state and state[masked].shape == tensor.shape
        dense = tensor.layout == torch.strided and not tensor.is_meta
        if fits and dense and tensor.is_floating_point():
            found[masked] = name
    binary = {masked for masked, name in found.items() if is_binary(state[name])}
    if len(binary) == len(found):
        return {}
    return {
        masked: name
        for masked, name in found.items()
        if masked not in binary or any((state[name] == value).all() for value in (0, 1))
    }


def _matches(state: StateDict) -> bool:
    return bool(_logits(state))


def _read(state: StateDict, options: MaskOptions) -> MaskedState:
    return read_scores(
        state,
        _logits(state),
        options,
        label="mask logits",
        default=None,
        missing="the checkpoint holds logits of masks (X.mask) but not how masks follow from them",
        give="give --rule sigmoid-above=0.5, or --rule bernoulli=SEED to draw them once",
    )


FEDPM = Dialect("mask logits of FedPM (X.mask, X.bias_mask)", _matches, _read, by_scores=True)
