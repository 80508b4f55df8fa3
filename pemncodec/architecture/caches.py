"""Caches of earlier calls, which models of transformers return beside their outputs.

A cache is an object of a class of that library. No graph can return one, and what the file is for,
a forward of its own, needs none: the same model computes the same outputs without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from pemncodec.architecture.isolation import working_copy


def is_cache(value: Any) -> bool:
    """Whether a part of an output is a cache."""
    return any(
        owner.__module__.partition(".")[0] == "transformers" and owner.__name__.endswith("Cache")
        for owner in type(value).__mro__
    )


def without_caches(output: Any) -> Any:
    """An output without the caches in it; what holds none is returned as it is."""
    if not has_caches(output):
        return output
    if isinstance(output, Mapping):
        return {k: without_caches(v) for k, v in output.items() if not is_cache(v)}
    return [without_caches(value) for value in output if not is_cache(value)]


def has_caches(output: Any) -> bool:
    """Whether there is a cache in an output."""
    if isinstance(output, Mapping):
        output = list(output.values())
    return is_cache(output) or (isinstance(output, list | tuple) and any(map(has_caches, output)))


def copy_without_caches(module: nn.Module) -> nn.Module:
    """A working copy in which `use_cache` is False, in the configuration of each of its modules."""
    copied = working_copy(module)
    seen: set[int] = set()
    for below in copied.modules():
        for config in _configurations(getattr(below, "config", None), seen):
            config.use_cache = False
    return copied


def _configurations(config: Any, seen: set[int]) -> Iterator[Any]:
    """Those with `use_cache` among an object's attributes, and theirs."""
    if id(config) in seen or not hasattr(config, "use_cache"):
        return
    seen.add(id(config))
    yield config
    for value in vars(config).values():
        yield from _configurations(value, seen)
