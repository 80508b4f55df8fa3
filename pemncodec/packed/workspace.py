"""One buffer in which weights are expanded, one after the other."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes: of cache lines, which the kernels write whole


class Workspace:
    """Memory for expanded weights, used again as soon as nobody holds the last one.

    Who asks while it is lent gets memory of his own: another thread, a product of two weights, or
    autograd, which holds a weight until the backward pass.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray[tuple[int], np.dtype[np.uint8]]] = []

    def empty(self, count: int, dtype: torch.dtype) -> Tensor:
        """A tensor [count] without values."""
        size = count * dtype.itemsize
        try:
            buffer = self._free.pop()  # of two threads only one gets it
        except IndexError:
            buffer = np.empty(0, np.uint8)
        if buffer.size < size + _ALIGNMENT:
            buffer = np.empty(size + _ALIGNMENT, np.uint8)
        start = -buffer.ctypes.data % _ALIGNMENT
        # The tensor's storage holds this view, so that it lives as long as any tensor that
        # shares the memory.
        view = buffer[start : start + size]
        weakref.finalize(view, self._give_back, buffer).atexit = False
        return torch.from_numpy(view).view(dtype)

    def _give_back(self, buffer: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        # Only the largest stays.
        if not self._free:
            self._free.append(buffer)
        elif self._free[0].size < buffer.size:
            self._free = [buffer]
