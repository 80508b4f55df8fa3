"""Masks that the zeros of weights tell, for networks that were pruned and saved without masks."""

from __future__ import annotations

from collections.abc import Collection

import torch

from pemncodec.checkpoints.dialect import MaskOptions
from pemncodec.contents import WEIGHT_DTYPES, Mask
from pemncodec.errors import EncodeArgumentError
from pemncodec.mapped_masks import mapped
from pemncodec.masking.masked_state import MaskedState, StateDict
from pemncodec.tensors import dtype_name

NO_ZEROS = "--masks-from zeros (masks_from=…): no tensor of two or more dimensions holds zeros"
_RULE = "zeros: weights that are 0 are masked out (in tensors of two or more dimensions)"


def read_zeros(state: StateDict, masked: Collection[str], options: MaskOptions) -> MaskedState:
    """Masks of the tensors that hold zeros, where the caller asks for that.

    Args:
        state: tensors by name.
        masked: those that have a mask already, which stay as they are.
        options: what the caller says.

    Raises:
        EncodeArgumentError: there are no zeros.
    """
    if options.masks_from is None:
        return MaskedState(state, {})
    masks: dict[str, Mask] = {}
    for name, tensor in state.items():
        if name in masked or name in options.masks or not has_zeros(tensor):
            continue
        masks[name] = mapped((tensor.detach().cpu() != 0).numpy())
    if not masks and options.peers is None:
        raise EncodeArgumentError(NO_ZEROS)
    return MaskedState(state, masks, rules=dict.fromkeys(masks, _RULE))


def has_zeros(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a matrix, or more, that could have a mask, and holds zeros."""
    plain = tensor.layout == torch.strided and not tensor.is_meta
    if not plain or tensor.dim() < 2 or dtype_name(tensor) not in WEIGHT_DTYPES:
        return False
    return bool((tensor.detach() == 0).any())
