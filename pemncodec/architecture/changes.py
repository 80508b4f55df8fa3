"""What running a module has changed in it: attributes and buffers, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pemncodec.architecture.layer_modules import is_known
from pemncodec.tensors import same_bits


@dataclass(frozen=True, slots=True)
class Change:
    """One attribute that a run has set, or whose value it has changed.

    Attributes:
        path: of the module that has it.
        class_name: of that module.
        name: of the attribute.
        of_layer: whether it is a buffer of a layer of `torch.nn`, such as the statistics of a norm,
            which a rebuilt layer changes as well.
    """

    path: str
    class_name: str
    name: str
    of_layer: bool

    def __str__(self) -> str:
        where = f"module {self.path!r}" if self.path else "the model"
        return f"{self.name!r} of {where} ({self.class_name})"


def changes(before: nn.Module, after: nn.Module) -> Iterator[Change]:
    """What differs between a module and a working copy of it that has run since.

    What cannot be compared counts as changed. Parameters that were written in place do not, since
    both share them.
    """
    modules = dict(before.named_modules())
    for path, module in after.named_modules():
        kind = type(module)
        old = _attributes(modules[path]) if path in modules else {}
        new = _attributes(module)
        for name in {**old, **new}:
            known = name in old and name in new
            if not (known and _is_same(old[name], new[name], set())):
                of_layer = is_known(module) and name in module._buffers
                yield Change(path, kind.__name__, name, of_layer)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Parameters, buffers, and all that is set on the instance."""
    own = {
        name: value
        for name, value in vars(module).items()
        if name not in ("_parameters", "_buffers", "_modules", "training")
    }
    children = {name: type(child) for name, child in module._modules.items()}
    return {**module._parameters, **module._buffers, **children, **own}


def _is_same(first: Any, second: Any, seen: set[tuple[int, int]]) -> bool:
    if first is second or (id(first), id(second)) in seen:
        return True
    seen.add((id(first), id(second)))
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return same_bits(first, second)
    if isinstance(first, Mapping):
        return list(first) == list(second) and all(
            _is_same(first[key], second[key], seen) for key in first
        )
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(
            _is_same(a, b, seen) for a, b in zip(first, second, strict=True)
        )
    if isinstance(first, nn.Module):  # compared by its own path
        return True
    if hasattr(first, "__dict__"):
        return _is_same(vars(first), vars(second), seen)
    try:
        return bool(first == second)
    except Exception:  # whatever the class of a user's value raises
        return False
