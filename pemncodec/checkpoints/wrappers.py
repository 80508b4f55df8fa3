"""Modules without torch's wrappers, which change how a network runs and not what it computes."""

from __future__ import annotations

import copy

from torch import nn

from pemncodec.checkpoints.names import WRAPPERS
from pemncodec.masking.masked_model import unwrapped


def without_wrappers(module: nn.Module) -> nn.Module:
    """A module with what is inside of its wrappers, also of those that stand within.

    Returns:
        The module itself where it has none. Else modules above a wrapper are new, and have the
        same tensors.
    """
    return _plain(unwrapped(module), {})


def _plain(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    inside = _inside(module)
    if inside is not module:
        done[id(module)] = _plain(inside, done)
        return done[id(module)]
    done[id(module)] = module  # a module within itself ends here
    children = {
        name: child if child is None else _plain(child, done)
        for name, child in module._modules.items()
    }
    if any(children[name] is not child for name, child in module._modules.items()):
        plain = copy.copy(module)
        plain._modules = dict(children)
        done[id(module)] = plain
    return done[id(module)]


def _inside(module: nn.Module) -> nn.Module:
    """What one wrapper wraps; a module that is none itself."""
    if unwrapped(module) is not module:
        return unwrapped(module)
    name = next(iter(module._modules), "")
    of_torch = type(module).__module__.startswith("torch.")
    inside = module._modules.get(name) if name in WRAPPERS and of_torch else None
    return module if inside is None else inside
