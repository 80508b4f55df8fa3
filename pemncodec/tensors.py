"""torch tensors ↔ NumPy arrays of the carrier dtype, bit for bit, for every dtype."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pemncodec.contents import CARRIERS, Array, bits_of
from pemncodec.errors import EncodeError


def dtype_name(tensor: Tensor) -> str:
    """torch's name of a tensor's dtype, as files use it."""
    return str(tensor.dtype).removeprefix("torch.")


def tensor_to_array(tensor: Tensor, name: str) -> Array:
    """Values in logical C order, [*shape], in the carrier dtype.

    Raises:
        EncodeError: a tensor without plain values: sparse, quantized, on the meta device.
    """
    dtype = dtype_name(tensor)
    if dtype not in CARRIERS or tensor.layout != torch.strided or tensor.is_meta:
        kind = "on the meta device" if tensor.is_meta else f"{tensor.layout}, {dtype}"
        raise EncodeError(f"{name}: cannot encode a tensor that is {kind}")
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    as_bytes = plain.view(torch.uint8).numpy() if plain.numel() else np.empty(0, np.uint8)
    return as_bytes.view(CARRIERS[dtype]).reshape(tensor.shape)


def array_to_tensor(array: Array, dtype: str, device: torch.device | str = "cpu") -> Tensor:
    """A tensor with an array's bits, in the array's memory where that is writable."""
    torch_dtype = getattr(torch, dtype)
    # Arrays that are shared, such as a group of small tensors, are read-only.
    flat = (array if array.flags.writeable else array.copy()).reshape(-1)
    if not flat.size:
        return torch.empty(array.shape, dtype=torch_dtype, device=device)
    as_bytes = torch.from_numpy(flat.view(np.uint8))
    return as_bytes.view(torch_dtype).reshape(array.shape).to(device)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    first_bits, second_bits = (bits_of(tensor_to_array(t, "tensor")) for t in (first, second))
    return np.array_equal(first_bits, second_bits)
