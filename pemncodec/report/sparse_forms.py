"""Forms that make use of which weights a mask keeps.

Three of them are what a pruned network of the same shapes and the same share of kept weights takes,
whose weights were trained: each kept weight has a value of its own, stored as it is. Networks whose
weights come from a prototype do not need that, which is what these forms are compared for.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from pemncodec.report.dense_forms import saved_bytes
from pemncodec.report.form import Form, FormBytes, FormError, Network, rows_and_columns

_HALF = (0.49, 0.51)  # the shares of kept weights for which 2:4 is the same share


def _csr(network: Network) -> FormBytes | None:
    """Masked tensors with int32 columns, the rest as it is, in one `torch.save`."""
    if not network.ones:
        return None
    forms = {
        name: _as_csr(tensor) if name in network.ones and tensor.dim() else tensor
        for name, tensor in network.tensors.items()
    }
    return FormBytes(saved_bytes(forms))


def _as_csr(tensor: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")
        try:
            csr = tensor.reshape(rows_and_columns(tensor)).to_sparse_csr()
        except RuntimeError:
            raise FormError(f"torch has no sparse tensors of {tensor.dtype}") from None
        columns = csr.col_indices().int()
        return torch.sparse_csr_tensor(csr.crow_indices().int(), columns, csr.values(), csr.shape)


def _bitmask(network: Network) -> FormBytes | None:
    """One bit for each weight under a mask, the values of what is kept, the rest as it is."""
    if not network.ones:
        return None
    kept = sum(ones * network.tensors[name].itemsize for name, ones in network.ones.items())
    return FormBytes(_mask_bytes(network) + kept + network.rest_bytes)


def _two_of_four(network: Network) -> FormBytes | None:
    """Of four weights in a row the values of two and two bits each for their places.

    As NVIDIA's sparse tensor cores read it; only for networks that keep half of their weights.
    """
    if not network.ones or not _HALF[0] <= network.keep <= _HALF[1]:
        return None
    size = network.rest_bytes
    for name in network.ones:
        rows, columns = rows_and_columns(network.tensors[name])
        groups = rows * -(-columns // 4)
        size += 2 * groups * network.tensors[name].itemsize + -(-groups // 2)
    return FormBytes(size)


def _packed(network: Network) -> FormBytes | None:
    """One bit for each weight under a mask, the prototype values that masks use, the rest as it is.

    What a masked network needs without a codec.
    """
    if not network.ones:
        return None
    return FormBytes(_mask_bytes(network) + 4 * network.prototype_values + network.rest_bytes)


def _mask_bytes(network: Network) -> int:
    return sum(-(-network.tensors[name].numel() // 8) for name in network.ones)


SPARSE_FORMS = (
    Form("csr", "CSR", _csr),
    Form("bitmask", "values + bitmask", _bitmask),
    Form("two_of_four", "2:4", _two_of_four),
    Form("packed_masks", "packed masks + fp32", _packed),
)
