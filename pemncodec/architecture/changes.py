"""What running a module has changed in it: attributes and buffers, by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pemncodec.architecture.layer_modules import is_known
from pemncodec.tensors import same_bits

# Objects that have been compared, by their addresses; held, so that no other gets these.
_Pairs = dict[tuple[int, int], tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Change:
    """One attribute that a run has set, or whose value it has changed.

    Attributes:
        path: of the module that has it.
        class_name: of that module.
        name: of the attribute.
        of_layer: whether it is a buffer of a layer of `torch.nn`, such as the statistics of a norm,
            which a rebuilt layer changes as well.
        saved: whether it is a buffer that the state dict holds.
    """

    path: str
    class_name: str
    name: str
    of_layer: bool
    saved: bool

    def __str__(self) -> str:
        where = f"module {self.path!r}" if self.path else "the model"
        return f"{self.name!r} of {where} ({self.class_name})"


def changes(before: nn.Module, after: nn.Module) -> Iterator[Change]:
    """What differs between a module and a working copy of it that has run since.

    What cannot be compared counts as changed. Parameters that were written in place do not, since
    both share them.
    """
    modules = dict(before.named_modules())
    compared: _Pairs = {}
    for path, module in after.named_modules():
        if path in modules:  # each by its own path
            compared[id(modules[path]), id(module)] = modules[path], module
    for path, module in after.named_modules():
        kind = type(module)
        old = _attributes(modules[path]) if path in modules else {}
        new = _attributes(module)
        for name in {**old, **new}:
            known = name in old and name in new
            if not (known and _is_unchanged(old[name], new[name], compared)):
                buffer = name in module._buffers
                saved = buffer and name not in module._non_persistent_buffers_set
                yield Change(path, kind.__name__, name, buffer and is_known(module), saved)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Parameters, buffers, and all that is set on the instance."""
    own = {
        name: value
        for name, value in vars(module).items()
        if name not in ("_parameters", "_buffers", "_modules", "training")
    }
    children = {name: type(child) for name, child in module._modules.items()}
    return {**module._parameters, **module._buffers, **children, **own}


def _is_unchanged(first: Any, second: Any, compared: _Pairs) -> bool:
    try:
        return _is_same(first, second, compared)
    except Exception:  # whatever the class of a user's value raises
        return False


def _is_same(first: Any, second: Any, seen: _Pairs) -> bool:
    if first is second:
        return True
    kind = type(first)
    if kind is not type(second):
        return False
    if kind in (OrderedDict, dict, set) and not first and not second:  # most of what a module has
        return _own(first) == _own(second) == {}
    if isinstance(first, Tensor):
        return same_bits(first, second)
    # If they differ, it is told where they were met first.
    if (id(first), id(second)) in seen:
        return True
    seen[id(first), id(second)] = first, second
    if kind in (dict, OrderedDict):
        return list(first) == list(second) and all(
            _is_same(first[key], second[key], seen) for key in first
        )
    if kind in (list, tuple):
        return len(first) == len(second) and all(
            _is_same(a, b, seen) for a, b in zip(first, second, strict=True)
        )
    if isinstance(first, nn.Module):  # one that is no child, such as an item of a list
        return _is_same(vars(first), vars(second), seen)
    if isinstance(first, str | bytes | int | float | complex | set | frozenset):
        return bool(first == second) and _is_same(_own(first), _own(second), seen)
    return _is_same(_copied(first), _copied(second), seen)


def _own(value: Any) -> dict[str, Any]:
    """What an object of a class of the user's has beside the value that its base holds."""
    return getattr(value, "__dict__", {})


def _copied(value: Any) -> Any:
    """What a copy of an object takes over: attributes, slots, items, and what is held in C."""
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):  # a name, whose value copies share
        return reduced
    return [list(part) if isinstance(part, Iterator) else part for part in reduced]
