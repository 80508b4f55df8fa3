"""Names of tensors: what wrappers put in front of them, and several for one memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

_PARALLEL, _COMPILED = "module.", "_orig_mod."


def drop_prefix(named: Mapping[str, Tensor], like: Collection[str] = ()) -> dict[str, Tensor]:
    """Without what `nn.DataParallel` and `torch.compile` put in front of every name.

    Args:
        named: tensors by name.
        like: names that those of the tensors are to be compared with. A network may have all of its
            layers in a child called "module": where each of them begins so, nothing is dropped.
    """
    if like and all(name.startswith(_PARALLEL) for name in like):
        return dict(named)
    for prefix in (_PARALLEL, _COMPILED):
        if named and all(name.startswith(prefix) for name in named):
            rest = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
            return drop_prefix(rest)
    return dict(named)


def tied_names(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """For every name all names of the same memory, in order."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in tensors.items():
        key: tuple[Any, ...] = (name,)
        if tensor.layout == torch.strided and not tensor.is_meta and tensor.numel():
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
            key = (*place, tensor.dtype, tensor.is_conj(), tensor.is_neg())
        groups.setdefault(key, []).append(name)
    return {name: names for names in groups.values() for name in names}
