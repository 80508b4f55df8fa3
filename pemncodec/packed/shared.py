"""What packed weights of one module share: memory to be expanded in, and copies of prototypes."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pemncodec.packed.workspace import Workspace

_Copy = tuple[int, int, weakref.ref[Tensor]]  # versions of the prototype and the copy, then that


class Shared:
    """One for all packed weights of a module. A copy of the module has one of its own.

    Attributes:
        workspace: in which weights are expanded.
    """

    def __init__(self) -> None:
        self.workspace = Workspace()
        self._copies: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def copied(self, prototype: Tensor | None, device: torch.device) -> Tensor | None:
        """A copy of a prototype on a device, in memory of its own; the same one as long as somebody
        holds both, and neither was written to."""
        if prototype is None:
            return None
        if prototype not in self._copies:
            self._copies[prototype] = {}
        known: dict[torch.device, _Copy] = self._copies[prototype]
        if device in known:
            version, own_version, reference = known[device]
            there = reference()
            if there is not None and (version, own_version) == (_writes(prototype), _writes(there)):
                return there
        there = prototype.detach().to(device, copy=True)
        known[device] = (_writes(prototype), _writes(there), weakref.ref(there))
        return there

    def __reduce__(self) -> tuple[type[Shared], tuple[()]]:
        return Shared, ()


def _writes(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # inference mode does not count them
