"""Masks that the caller gives by name of the weight, on top of those of a checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pemncodec.checkpoints.dialect import MaskOptions, binary_mask, check_shape
from pemncodec.checkpoints.names import tied_names
from pemncodec.contents import Mask
from pemncodec.errors import EncodeArgumentError, EncodeError, first_line
from pemncodec.masking.masked_state import MaskedState, StateDict


def read_given_masks(state: StateDict, options: MaskOptions) -> MaskedState:
    """`MaskOptions.masks`, also under the other names of the tensors that they are for.

    Raises:
        EncodeArgumentError: a mask for one of two tensors that share their memory.
        EncodeError: a mask for no tensor, of another shape, or one that differs by name.
    """
    tied = tied_names(state)
    masks: dict[str, Mask] = {}
    for name, values in options.masks.items():
        if name not in state:
            raise EncodeError(f"masks: there is no tensor {name}")
        given = _as_tensor(values, name)
        check_shape(f"masks: the mask of {name}", given, name, state[name])
        mask = binary_mask(given, f"masks: {name}")
        for other in tied[name]:
            # A state dict does not tell one parameter from two views of the same values.
            if other not in options.masks and state[other] is not state[name]:
                raise EncodeArgumentError(
                    f"masks: {name} shares its memory with {other}: give both a mask, or clone one"
                )
            if other in options.masks and other != name and state[other] is not state[name]:
                continue
            if not np.array_equal(masks.setdefault(other, mask), mask):
                raise EncodeError(f"masks: {other} has another mask already")
    return MaskedState(state, masks, rules=dict.fromkeys(masks, options.masks_are))


def _as_tensor(values: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except Exception as error:  # whatever the caller gave
        kind = type(values).__name__
        raise EncodeArgumentError(
            f"masks: the mask of {name} is no tensor of 0 and 1 but {kind} ({first_line(error)})"
            if values is not None
            else f"masks: the mask of {name} is None: leave out what has no mask"
        ) from None
