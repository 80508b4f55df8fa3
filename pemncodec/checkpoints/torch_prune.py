"""The dialect of `torch.nn.utils.prune`: `X_orig` and `X_mask` stand in place of `X`.

Only the pair does: one of them alone is a tensor of the network.
"""

from __future__ import annotations

from pemncodec.checkpoints.dialect import Dialect, MaskOptions, binary_mask, check_shape
from pemncodec.contents import Mask
from pemncodec.errors import EncodeError
from pemncodec.masking.masked_state import MaskedState, StateDict

_ORIGINAL, _MASK = "_orig", "_mask"


def _matches(state: StateDict) -> bool:
    return any(_is_original(name, state) for name in state)


def _is_original(name: str, state: StateDict) -> bool:
    return name.endswith(_ORIGINAL) and name.removesuffix(_ORIGINAL) + _MASK in state


def _read(state: StateDict, _: MaskOptions) -> MaskedState:
    tensors: StateDict = {}
    masks: dict[str, Mask] = {}
    for name, tensor in state.items():
        pruned = name.removesuffix(_ORIGINAL)
        masked = name.removesuffix(_MASK)
        if _is_original(name, state):
            if pruned in state:
                raise EncodeError(f"{name}: there is a {pruned} beside it, which it stands for")
            tensors[pruned] = tensor
        elif masked != name and masked + _ORIGINAL in state:
            original = masked + _ORIGINAL
            check_shape(name, tensor, original, state[original])
            masks[masked] = binary_mask(tensor, name)
        else:
            tensors[name] = tensor
    rule = "pruned by torch.nn.utils.prune: X_orig times X_mask"
    return MaskedState(tensors, masks, rules=dict.fromkeys(masks, rule))


TORCH_PRUNE = Dialect("pruning masks (X_orig, X_mask)", _matches, _read)
