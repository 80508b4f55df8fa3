"""Prototypes that several packed weights share, copied once for all of them."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_Copy = tuple[int, int, weakref.ref[Tensor]]  # versions of the prototype and the copy, then that

_copies: WeakIdKeyDictionary = WeakIdKeyDictionary()


def copied(prototype: Tensor | None, device: torch.device) -> Tensor | None:
    """A copy of a prototype on a device, in memory of its own; the same one as long as somebody
    holds both, and neither was written to."""
    if prototype is None:
        return None
    if prototype not in _copies:
        _copies[prototype] = {}
    known: dict[torch.device, _Copy] = _copies[prototype]
    if device in known:
        version, own_version, reference = known[device]
        there = reference()
        if there is not None and (version, own_version) == (_writes(prototype), _writes(there)):
            return there
    there = prototype.detach().to(device, copy=True)
    known[device] = (_writes(prototype), _writes(there), weakref.ref(there))
    return there


def _writes(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # inference mode does not count them


def same_prototype(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two prototypes of one recipe have the same bits; both on one device."""
    if first is second or first is None or second is None or first.is_meta:
        return True
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))
