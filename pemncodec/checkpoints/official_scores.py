"""The dialect of the official PEMN code: `X.weight` is frozen, `X.scores` beside it are learned.

The checkpoint does not say which share of the weights the scores keep.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pemncodec.checkpoints.dialect import Dialect, MaskOptions, check_shape
from pemncodec.contents import Mask
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.masking.keep import dropped_count
from pemncodec.masking.masked_state import MaskedState, StateDict
from pemncodec.masking.parametrized import is_parametrized_entry
from pemncodec.tensors import dtype_name


def _is_scores(name: str) -> bool:
    return (name == "scores" or name.endswith(".scores")) and not is_parametrized_entry(name)


def _matches(state: StateDict) -> bool:
    return any(map(_is_scores, state))


def _read(state: StateDict, options: MaskOptions) -> MaskedState:
    tensors = {name: tensor for name, tensor in state.items() if not _is_scores(name)}
    masks: dict[str, Mask] = {}
    for name in filter(_is_scores, state):
        weight = name.removesuffix("scores") + "weight"
        if weight not in tensors:
            raise EncodeError(f"{name}: there is no {weight} for these scores")
        if options.keep is None:
            raise EncodeArgumentError(
                "the checkpoint holds scores but not the keep ratio: give --keep (keep=…), "
                "such as 0.5"
            )
        check_shape(name, state[name], weight, tensors[weight])
        masks[weight] = _mask_from_scores(state[name], options.keep, name)
    rule = "scores: of n weights, the int((1 - keep) * n) with the least |score| go"
    return MaskedState(
        tensors, masks, rules=dict.fromkeys(masks, f"{rule}; keep is {options.keep}")
    )


def _mask_from_scores(scores: Tensor, keep: float, name: str) -> Mask:
    """bool [*shape]; of equal scores at the cut the earlier go first (a stable ascending sort)."""
    if not scores.is_floating_point():
        raise EncodeError(f"{name}: scores of dtype {dtype_name(scores)}, expected floats")
    magnitudes = scores.detach().abs().cpu().contiguous().reshape(-1)
    if magnitudes.isnan().any():
        raise EncodeError(f"{name}: the scores hold NaN")
    order = magnitudes.sort(stable=True).indices.numpy()
    mask = np.zeros(order.size, np.bool_)
    mask[order[dropped_count(order.size, keep) :]] = True
    return mask.reshape(scores.shape)


OFFICIAL_SCORES = Dialect("scores (X.scores)", _matches, _read, needs_keep=True, own_code=True)
