"""The dialect of masks beside plain weights: `X.mask`, `X_mask` or `X.weight_mask`, 0 and 1 alone.

What is called so and has another shape than the weight, or other values, is a tensor of the
network.
"""

from __future__ import annotations

from pemncodec.checkpoints.dialect import Dialect, MaskOptions, binary_mask, is_binary
from pemncodec.checkpoints.mask_names import weight_of_mask
from pemncodec.contents import WEIGHT_DTYPES, Mask
from pemncodec.errors import EncodeError
from pemncodec.masking.masked_state import MaskedState, StateDict
from pemncodec.tensors import dtype_name


def _weights(state: StateDict) -> dict[str, str]:
    """For each entry that is a mask the name of its weight."""
    found = {}
    for name, tensor in state.items():
        weight = weight_of_mask(name, state)
        if weight is None or state[weight].shape != tensor.shape:
            continue
        if dtype_name(state[weight]) in WEIGHT_DTYPES and is_binary(tensor):
            found[name] = weight
    return found


def _matches(state: StateDict) -> bool:
    return bool(_weights(state))


def _read(state: StateDict, options: MaskOptions) -> MaskedState:
    masks: dict[str, Mask] = {}
    rules: dict[str, str] = {}
    weights = {name: w for name, w in _weights(state).items() if w not in options.masks}
    for name, weight in weights.items():
        if weight in masks:
            raise EncodeError(f"{weight} has two masks, {name} is one of them: leave one out")
        masks[weight] = binary_mask(state[name], name)
        rules[weight] = "masks beside the weights: weights stay where their mask is 1"
    # A network that has its masks itself also finds them in the file.
    beside = {weight: name for name, weight in weights.items() if name in options.own}
    gone = set(weights).difference(options.own)
    tensors = {name: tensor for name, tensor in state.items() if name not in gone}
    return MaskedState(tensors, masks, rules=rules, beside=beside)


MASK_BUFFERS = Dialect("masks beside weights (X.mask, X_mask, X.weight_mask)", _matches, _read)
