"""Prototypes that several packed weights share, moved to a device once for all of them."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_moved: WeakIdKeyDictionary = WeakIdKeyDictionary()


def moved(prototype: Tensor | None, device: torch.device) -> Tensor | None:
    """A prototype on a device; the same tensor as long as somebody holds both."""
    if prototype is None or prototype.device == device:
        return prototype
    if prototype not in _moved:
        _moved[prototype] = {}
    known: dict[torch.device, weakref.ref[Tensor]] = _moved[prototype]
    reference = known.get(device)
    there = None if reference is None else reference()
    if there is None:
        there = prototype.to(device)
        known[device] = weakref.ref(there)
    return there
