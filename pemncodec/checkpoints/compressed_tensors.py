"""The dialect of compressed-tensors' sparse layouts, bitmask and 2:4: masks and what they keep.

`X.shape`, `X.bitmask` and `X.compressed` stand in place of `X.weight`: bits of rows packed into
bytes, lowest first, and the values at its ones in C order. `X.row_offsets` says where rows begin,
which the bits tell, too. Files of older versions have `X.weight.bitmask` and so on.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pemncodec.checkpoints.dialect import Dialect, MaskOptions
from pemncodec.contents import Mask
from pemncodec.errors import EncodeError
from pemncodec.limits import Limits
from pemncodec.mapped_masks import mapped
from pemncodec.masking.masked_state import MaskedState, StateDict
from pemncodec.tensors import dtype_name

_PARTS = ("shape", "bitmask", "compressed")
_OFFSETS = "row_offsets"
_RULE = "compressed-tensors: weights stay where their bit of the bitmask is 1"


def _weights(state: StateDict) -> dict[str, str]:
    """Names of weights by what their parts' names begin with."""
    found = {}
    for name in state:
        module, dot, part = name.rpartition(".")
        if part == "bitmask" and dot and all(f"{module}.{other}" in state for other in _PARTS):
            found[module] = module if module.endswith(".weight") else f"{module}.weight"
    return found


def _matches(state: StateDict) -> bool:
    return bool(_weights(state))


def _read(state: StateDict, _: MaskOptions) -> MaskedState:
    weights = _weights(state)
    tensors: StateDict = {}
    masks: dict[str, Mask] = {}
    for name, tensor in state.items():
        module, _dot, part = name.rpartition(".")
        if module not in weights or part not in (*_PARTS, _OFFSETS):
            if name in tensors:
                raise EncodeError(f"{name}: there is a {name.removesuffix('.weight')}.bitmask, too")
            tensors[name] = tensor
        elif weights[module] not in tensors:
            weight = weights[module]
            if weight in state:
                raise EncodeError(f"{module}.bitmask: there is a {weight} beside it")
            shape, bits, values = (_plain(f"{module}.{other}", state) for other in _PARTS)
            masks[weight] = _mask(module, shape, bits)
            tensors[weight] = _dense(module, masks[weight], values)
    return MaskedState(tensors, masks, rules=dict.fromkeys(masks, _RULE))


def _mask(module: str, shape: Tensor, bits: Tensor) -> Mask:
    """bool of the dense shape, a matrix; as many bytes a row as its columns need."""
    if shape.dtype not in (torch.int64, torch.int32) or shape.numel() != 2:
        raise EncodeError(
            f"{module}.shape: expected two sizes, found {dtype_name(shape)} {tuple(shape.shape)}"
        )
    sizes = shape.reshape(-1).tolist()
    if min(sizes) < 0 or math.prod(sizes) > Limits().decoded_bytes:
        raise EncodeError(f"{module}.shape: expected two sizes, found {sizes}")
    rows, columns = sizes
    if bits.dtype != torch.uint8 or bits.shape != (rows, -(-columns // 8)):
        raise EncodeError(
            f"{module}.bitmask: expected uint8 of shape {(rows, -(-columns // 8))}, found "
            f"{tuple(bits.shape)}"
        )
    unpacked = np.unpackbits(bits.detach().cpu().numpy(), axis=-1, count=columns, bitorder="little")
    return mapped(unpacked.view(np.bool_))


def _plain(name: str, state: StateDict) -> Tensor:
    if state[name].layout != torch.strided or state[name].is_meta:
        raise EncodeError(f"{name}: expected a dense tensor")
    return state[name]


def _dense(module: str, mask: Mask, values: Tensor) -> Tensor:
    flat = values.detach().cpu().reshape(-1)
    if flat.numel() != np.count_nonzero(mask):
        raise EncodeError(
            f"{module}.compressed: {flat.numel():,} values for {np.count_nonzero(mask):,} ones of "
            "the bitmask"
        )
    dense = torch.zeros(mask.shape, dtype=flat.dtype)
    dense[torch.from_numpy(mask)] = flat
    return dense


COMPRESSED_TENSORS = Dialect(
    "bitmasks of compressed-tensors (X.bitmask, X.compressed, X.shape)", _matches, _read
)
