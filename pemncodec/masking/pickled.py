"""Masked modules can be pickled; torch refuses to pickle a parametrized module.

Each has a class of its own, which torch makes when a weight is parametrized and which pickle cannot
find by a name. So it is made again from the class that the module had before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

from torch import nn
from torch.nn.utils import parametrize


def allow_pickling(module: nn.Module) -> None:
    """Let `pickle`, and so `torch.save`, store a parametrized module."""
    type(module).__reduce_ex__ = _reduce  # type: ignore[method-assign,assignment]


def _reduce(module: nn.Module, _: SupportsIndex) -> tuple[Any, ...]:
    kind = parametrize.type_before_parametrizations(module)
    names = tuple(module.parametrizations)  # type: ignore[arg-type]
    return _parametrized, (kind, names), kind.__getstate__(module)  # type: ignore[call-arg]


def _parametrized(kind: type[nn.Module], names: Sequence[str]) -> nn.Module:
    module = kind.__new__(kind)
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)
    allow_pickling(module)
    return module
