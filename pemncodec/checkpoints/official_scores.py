"""The dialect of the official PEMN code: `X.weight` is frozen, `X.scores` beside it are learned.

The checkpoint does not say which share of the weights the scores keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor

from pemncodec.checkpoints.dialect import Dialect, MaskOptions, check_shape
from pemncodec.contents import Mask
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.masking.keep import dropped_count, keep_at, keep_by_name
from pemncodec.masking.masked_state import MaskedState, StateDict
from pemncodec.masking.parametrized import is_parametrized_entry
from pemncodec.tensors import dtype_name


def _is_called_scores(name: str) -> bool:
    return (name == "scores" or name.endswith(".scores")) and not is_parametrized_entry(name)


def _weight_of(scores: str) -> str:
    return scores.removesuffix("scores") + "weight"


def _are_scores(name: str, state: StateDict) -> bool:
    """Whether these are scores of a weight: a network may have a buffer of that name, too."""
    weight = state.get(_weight_of(name))
    return _is_called_scores(name) and weight is not None and weight.shape == state[name].shape


def _matches(state: StateDict) -> bool:
    return any(_are_scores(name, state) for name in state)


def _read(state: StateDict, options: MaskOptions) -> MaskedState:
    for name in filter(_is_called_scores, state):
        # Who gives a keep ratio has scores; those that fit nothing are an error, not a buffer.
        if options.keep is not None and name not in options.own:
            if _weight_of(name) not in state:
                raise EncodeError(f"{name}: there is no {_weight_of(name)} for these scores")
            check_shape(name, state[name], _weight_of(name), state[_weight_of(name)])
    scores = {_weight_of(name): name for name in state if _are_scores(name, state)}
    keeps = _keeps(list(scores), options)
    masks: dict[str, Mask] = {}
    rules, ties = {}, {}
    for weight, keep in keeps.items():
        masks[weight], tied = _mask_from_scores(state[scores[weight]], keep, scores[weight])
        rules[weight] = (
            "scores: of n weights, the int((1 - keep) * n) with the least |score| go; "
            f"keep is {keep}"
        )
        if tied:
            ties[weight] = tied
    kept = {name for weight, name in scores.items() if name in options.own and weight not in keeps}
    tensors = {
        name: tensor
        for name, tensor in state.items()
        if name in kept or not _are_scores(name, state)
    }
    return MaskedState(tensors, masks, rules=rules, ties=ties)


def _keeps(weights: list[str], options: MaskOptions) -> dict[str, float]:
    """The share of each weight that has scores; those whose masks are given need none."""
    keep = options.keep
    if keep is None:
        without = [name for name in weights if name not in options.masks]
        if not without:
            return {}
        among = f" and masks has nothing for {without[0]}" if options.masks else ""
        raise EncodeArgumentError(
            f"the checkpoint holds scores but not the keep ratio{among}: give --keep (keep=…), "
            "such as 0.5"
        )
    if isinstance(keep, Mapping):
        weights = [
            name
            for name in weights
            if name not in options.masks or any(fnmatchcase(name, pattern) for pattern in keep)
        ]
    try:
        found = keep_by_name(keep, [[name] for name in weights])
    except ValueError as error:
        raise EncodeArgumentError(str(error)) from None
    return {name: keep_at(share, 0) for name, share in zip(weights, found, strict=True)}


def _mask_from_scores(scores: Tensor, keep: float, name: str) -> tuple[Mask, int]:
    """bool [*shape], and how many scores are equal where the cut goes between them.

    Of equal scores at the cut the earlier go, as in a stable ascending sort.
    """
    if not scores.is_floating_point() or scores.dtype == getattr(torch, "float4_e2m1fn_x2", None):
        raise EncodeError(f"{name}: scores of dtype {dtype_name(scores)}, expected floats")
    if scores.layout != torch.strided or scores.is_meta:
        raise EncodeError(f"{name}: expected a dense tensor")
    # Short floats have no operators of their own.
    exact = scores.detach().cpu().to(torch.float64 if scores.itemsize == 8 else torch.float32)
    magnitudes = exact.abs().contiguous().reshape(-1).numpy()
    if np.isnan(magnitudes).any():
        raise EncodeError(f"{name}: the scores hold NaN")
    dropped = dropped_count(magnitudes.size, keep)
    if not dropped:
        return np.ones(scores.shape, np.bool_), 0
    cut = np.partition(magnitudes, dropped - 1)[dropped - 1]
    mask = magnitudes > cut
    equal = np.flatnonzero(magnitudes == cut)
    gone = equal.size - (magnitudes.size - dropped - np.count_nonzero(mask))
    mask[equal[gone:]] = True
    return mask.reshape(scores.shape), equal.size if gone < equal.size else 0


OFFICIAL_SCORES = Dialect("scores (X.scores)", _matches, _read, needs_keep=True, own_code=True)
