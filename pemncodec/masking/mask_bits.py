"""Masks by name that take a bit a weight, unless they are in memory anyway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from pemncodec.contents import Mask, PackedMask, numel

_OF_A_BYTE = (torch.bool, torch.uint8, torch.int8)


class MaskBits(Mapping[str, Mask]):
    """Unpacks a mask each time it is asked for, unless it is a view of a tensor that is given."""

    def __init__(self, masks: Mapping[str, Mask], given: Iterable[Tensor]) -> None:
        """Packs masks.

        Args:
            masks: bool [*shape] by name.
            given: tensors that somebody holds, or that are mapped from a file.
        """
        storages = [
            tensor.untyped_storage()
            for tensor in given
            if tensor.dtype in _OF_A_BYTE and tensor.layout == torch.strided
        ]
        spans = [(storage.data_ptr(), storage.nbytes()) for storage in storages]
        self._views: dict[str, Mask] = {}
        self._packed: dict[str, tuple[PackedMask, tuple[int, ...]]] = {}
        for name, mask in masks.items():
            if any(0 <= mask.ctypes.data - start < size for start, size in spans):
                self._views[name] = mask
            else:
                self._packed[name] = np.packbits(mask, bitorder="little"), mask.shape
        self._names = list(masks)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._views or name in self._packed

    def __getitem__(self, name: str) -> Mask:
        if name in self._views:
            return self._views[name]
        packed, shape = self._packed[name]
        bits = np.unpackbits(packed, count=numel(shape), bitorder="little")
        return bits.view(np.bool_).reshape(shape)
