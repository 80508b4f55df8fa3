"""What a masked network costs in the forms that one would use instead of a .pemn file.

All of them hold the same tensors and no architecture.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping

import numpy as np
import safetensors.torch
import torch
import zstandard
from torch import Tensor

from pemncodec.format.header import MaskedRow
from pemncodec.format.reader import PemnFile
from pemncodec.values.fill import used_values

FP16 = "safetensors fp16"


def dense_bytes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes of a state dict as a dense file, by form."""
    # A copy, since safetensors refuses tensors that share memory.
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    whole = safetensors.torch.save(own)
    return {
        "torch.save": _saved(own),
        "safetensors": len(whole),
        FP16: len(safetensors.torch.save(in_halves(own))),
        "safetensors + zstd-19": len(zstandard.ZstdCompressor(level=19).compress(whole)),
    }


def in_halves(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With float32 tensors as float16, and others as they are."""
    return {
        name: tensor.half() if tensor.dtype == torch.float32 else tensor
        for name, tensor in state.items()
    }


def masked_bytes(state: Mapping[str, Tensor], file: PemnFile) -> dict[str, int]:
    """Bytes of a masked network in forms that make use of its masks.

    * CSR: masked tensors with int32 columns, the rest as it is, in one `torch.save`.
    * packed masks + fp32: one bit a weight, the prototype values that masks use, the rest as it is.
    """
    rows = [row for row in file.header.tensors if isinstance(row, MaskedRow)]
    names = {row.name for row in rows}
    values = 0
    for index, prototype in enumerate(file.header.prototypes):
        users = [row for row in rows if row.fill.prototype == index]
        fills = ((row.fill.offset, file.mask(row.name).reshape(-1)) for row in users)
        values += int(np.count_nonzero(used_values(prototype.length, fills)))
    masks = sum(file.packed_mask(row.name).nbytes for row in rows)
    aliases = file.aliases
    rest = sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in state.items()
        if name not in names and name not in aliases
    )
    return {"CSR": _saved(_sparse(state, names)), "packed masks + fp32": masks + 4 * values + rest}


def paper_bytes(file: PemnFile) -> int:
    """The count of the PEMN paper: one bit a masked weight, and prototypes in fp32."""
    weights = sum(file.mask(name).size for name in file.masked_keys())
    return -(-weights // 8) + 4 * sum(row.length for row in file.header.prototypes)


def _sparse(state: Mapping[str, Tensor], masked: set[str]) -> dict[str, Tensor]:
    forms: dict[str, Tensor] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")
        for name, tensor in state.items():
            if name not in masked or tensor.dim() < 1:
                forms[name] = tensor
                continue
            csr = tensor.reshape(tensor.shape[0], -1).to_sparse_csr()
            columns = csr.col_indices().int()
            forms[name] = torch.sparse_csr_tensor(
                csr.crow_indices().int(), columns, csr.values(), csr.shape
            )
    return forms


def _saved(tensors: Mapping[str, Tensor]) -> int:
    stream = io.BytesIO()
    torch.save(dict(tensors), stream)
    return stream.tell()
