"""Which process encodes which tensors of a network: whole layers, about as many bytes for each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from pemncodec.checkpoints.names import module_of

# With one of them beside it, an entry may belong to it, whatever it is called.
_ANCHORS: Final = frozenset({"weight", "bias", "weight_orig", "bias_orig", "bitmask"})
_BESIDE: Final = ("_orig", "_mask", ".mask")


def owners(
    sizes: Mapping[str, int], ranks: int, ties: Iterable[Collection[str]] = ()
) -> dict[str, int]:
    """The process that encodes each tensor.

    What belongs together has one owner: a weight with its scores or its mask, names of one tensor.
    The largest groups are dealt first, each to the process that has least; so processes differ by
    at most the largest group.

    Args:
        sizes: bytes by name, in the order of the state dict.
        ranks: number of processes.
        ties: names of one tensor, for those that have several.
    """
    group_of = _groups(sizes, ties)
    total: dict[str, int] = {}
    for name, group in group_of.items():
        total[group] = total.get(group, 0) + sizes[name]
    loads = [0] * ranks
    owner: dict[str, int] = {}
    for group in sorted(total, key=lambda group: -total[group]):
        owner[group] = loads.index(min(loads))
        loads[owner[group]] += total[group]
    return {name: owner[group] for name, group in group_of.items()}


def _groups(names: Collection[str], ties: Iterable[Collection[str]]) -> dict[str, str]:
    """By name, a name of the group that it belongs to."""
    modules: dict[str, set[str]] = {}
    for name in names:
        module = module_of(name)
        modules.setdefault(module, set()).add(name.removeprefix(module).removeprefix("."))
    parents: dict[str, str] = {}

    def root(group: str) -> str:
        while (parent := parents.get(group, group)) != group:
            group = parent
        return group

    found = {name: _group(name, modules) for name in names}
    for tied in ties:
        first, *others = (root(found[name]) for name in tied)
        parents |= dict.fromkeys(others, first)
    return {name: root(group) for name, group in found.items()}


def _group(name: str, modules: Mapping[str, Collection[str]]) -> str:
    module = module_of(name)
    stem = name
    for ending in _BESIDE:
        stem = stem.removesuffix(ending)
    if stem != name and "weight" in modules.get(stem, ()):  # X_mask beside X.weight
        return f"{stem}."
    entries = modules[module]
    together = not _ANCHORS.isdisjoint(entries) or any("." in entry for entry in entries)
    return f"{module}." if together else stem
