"""Code of the user runs and leaves no trace: on a copy of its module, in a process put back after.

A `forward` may write more than what it returns: attributes of its module, attributes of its class,
global variables, numbers drawn from the random generators. What is run to be described or compared
runs here, so that neither the caller nor the next run sees any of it.
"""

from __future__ import annotations

import copy
import pickle
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

_CONTAINERS: Final = frozenset({dict, OrderedDict, list, set})


def working_copy(module: nn.Module) -> nn.Module:
    """A copy to trace and to run: everything is its own but the parameters, which are shared."""
    # Copying every weight takes longer than many a run.
    shared = {id(parameter): parameter for parameter in module.parameters()}
    return copy.deepcopy(module, {**copied_values(module), **shared})


def copied_values(module: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy`: what it cannot copy, and what it is slow at.

    What was computed from parameters becomes a plain value. Empty containers are made here, since
    every module has a dozen of them, and copying them by their pickle takes most of the time.
    """
    memo: dict[int, Any] = {}

    def visit(value: Any) -> None:
        kind = type(value)
        if kind in _CONTAINERS and not value and not getattr(value, "__dict__", None):
            memo[id(value)] = kind()
        elif isinstance(value, Tensor):
            if not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)

    for below in module.modules():
        for name, value in vars(below).items():
            if name != "_modules":
                visit(value)
    return memo


@contextmanager
def isolated(module: nn.Module) -> Iterator[Outside]:
    """Put back what code of `module` changes outside of it.

    That are the random generators of torch, Python and NumPy, attributes of the classes of
    `module`, and global variables beside these classes: which value they hold, and what lists,
    dicts and sets among them contain. Tensors that are written in place keep what was written.
    """
    outside = Outside(module)
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield outside
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        outside.put_back()


class Outside:
    """Classes and global variables of the code of a module, as they were."""

    def __init__(self, module: nn.Module) -> None:
        self._spaces = [_Space.of(space) for space in _namespaces(module)]

    def changed(self) -> list[str]:
        """Names of what is no longer what it was."""
        return [name for space in self._spaces for name in space.changed()]

    def put_back(self) -> None:
        """Make it what it was."""
        for space in self._spaces:
            space.put_back()


def random_states() -> bytes:
    """Of all random generators; equal as long as nothing draws."""
    return pickle.dumps((torch.get_rng_state().numpy(), random.getstate(), np.random.get_state()))


def _namespaces(module: nn.Module) -> list[Any]:
    """The classes of a tree's modules, and the files that define them; none of PyTorch's."""
    found: dict[int, Any] = {}
    for kind in {type(below) for below in module.modules()}:
        for owner in kind.__mro__:
            package = owner.__module__.partition(".")[0]
            if package in ("torch", "builtins", "pemncodec"):
                continue
            found[id(owner)] = owner
            file = sys.modules.get(owner.__module__)
            if file is not None:
                found[id(file)] = file
    return list(found.values())


_MOST_ITEMS = 1 << 16  # a longer container is data, and no cache of a forward


@dataclass(frozen=True, slots=True)
class _Space:
    """What one class or file held, and what its containers did."""

    owner: Any
    values: dict[str, Any]
    contents: dict[str, Any]

    @classmethod
    def of(cls, owner: Any) -> _Space:
        values = _values(owner)
        contents = {name: _content(value) for name, value in values.items()}
        return cls(owner, values, {name: c for name, c in contents.items() if c is not None})

    def changed(self) -> list[str]:
        now = _values(self.owner)
        names = [
            name
            for name in {**self.values, **now}
            if now.get(name, self) is not self.values.get(name, self)
            or (name in self.contents and _content(now[name]) != self.contents[name])
        ]
        return [f"{name!r} of {self.owner.__name__}" for name in names]

    def put_back(self) -> None:
        now = _values(self.owner)
        for name in now.keys() - self.values.keys():
            delattr(self.owner, name)
        for name, value in self.values.items():
            if now.get(name, self) is not value:
                setattr(self.owner, name, value)
            if name in self.contents and _content(value) != self.contents[name]:
                _restore(value, self.contents[name])


def _values(owner: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(owner).items() if not name.startswith("__")}


class _Same:
    """A value that equals itself alone, so that comparing asks no code of its class."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _content(value: Any) -> Any:
    """What a container holds, or how often a tensor was written; None for all else."""
    if isinstance(value, Tensor):
        return value._version
    if not isinstance(value, dict | list | set) or len(value) > _MOST_ITEMS:
        return None
    if isinstance(value, dict):
        return [(_Same(key), _Same(item)) for key, item in value.items()]
    return [_Same(item) for item in value]


def _restore(value: Any, content: Any) -> None:
    if isinstance(value, dict):
        value.clear()
        value.update((key.value, item.value) for key, item in content)
    elif isinstance(value, list):
        value[:] = [item.value for item in content]
    elif isinstance(value, set):
        value.clear()
        value.update(item.value for item in content)
