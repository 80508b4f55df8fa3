"""Names of tensors: what wrappers put among them, and several for one memory."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from pemncodec.errors import EncodeArgumentError

# Of torch.compile, fully sharded data parallel and activation checkpointing.
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PARALLEL = "module"
_AVERAGED = "n_averaged"  # counts what AveragedModel has averaged in its "module"
_MOST_WRAPPERS = 6  # in one name
# An entry behind the name of its module of the network: a tensor, or what dialects have there: they
# have parametrizations, modules of masks, and sets of scores or of statistics by task.
_OWN_ENTRY = re.compile(
    r"\.(parametrizations\..*|mask_module\..*|scores\.\d+|bns\.\d+\.[^.]*|[^.]*)\Z",
    re.ASCII | re.DOTALL,
)


def plain_names(
    names: Collection[str], like: Collection[str] = (), prefix: str | None = None
) -> dict[str, str]:
    """Names without what torch's wrappers put among them; two never become one.

    A wrapper's own name, such as `_orig_mod`, is dropped wherever it stands. "module", the name of
    `nn.DataParallel`, may as well be a network's own: it is dropped in front of all names, or, when
    `like` is known, where that makes all names fit and they did not before.

    Args:
        names: of a state dict in any dialect.
        like: names of the plain network, where it is known.
        prefix: names that begin so are kept, without it; all others are left out.

    Returns:
        The new name of each that is kept, in the order of `names`.

    Raises:
        EncodeArgumentError: no name begins with `prefix`.
    """
    of_network = WRAPPERS.intersection(part for name in like for part in name.split("."))
    dropped = WRAPPERS - of_network
    plain = _renamed({name: name for name in names}, lambda name: _without(name, dropped))
    if prefix is not None:
        plain = _with_prefix(plain, _without(f"{prefix.rstrip('.')}.", dropped))
    plain = _without_averages(plain, like)
    while _all_parallel(plain.values()) and not _all_parallel(like):
        plain = {old: new.removeprefix(f"{_PARALLEL}.") for old, new in plain.items()}
    if like and not _fit(plain, like):
        known = set(map(module_of, like))
        fitting = _renamed(plain, lambda name: next(_fitting(name, known), name))
        if _fit(fitting, like):
            return fitting
    return plain


def fitting_prefix(names: Iterable[str], like: Collection[str]) -> str | None:
    """What has to be left out in front of some names, that these are all that a network has."""
    modules, known = set(map(module_of, names)), set(map(module_of, like))
    if known <= modules:
        return None
    longest = max(known, key=len)
    for module in sorted(modules, key=len):
        prefix = module.removesuffix(f".{longest}") if longest else module
        if not prefix or (longest and prefix == module):
            continue
        if {f"{prefix}.{other}".removesuffix(".") for other in known} <= modules:
            return f"{prefix}."
    return None


def _renamed(names: Mapping[str, str], rename: Any) -> dict[str, str]:
    """With new names, unless two of them would be the same."""
    renamed = {old: rename(new) for old, new in names.items()}
    return renamed if len(set(renamed.values())) == len(names) else dict(names)


def _without(name: str, dropped: Collection[str]) -> str:
    *modules, last = name.split(".")
    return ".".join([*(module for module in modules if module not in dropped), last])


def _without_averages(names: Mapping[str, str], like: Collection[str]) -> dict[str, str]:
    """Without the counters of AveragedModel and the name of what each has averaged."""
    plain = dict(names)
    for counter in names.values():
        if counter.rpartition(".")[2] != _AVERAGED or counter in like:
            continue
        above = counter.removesuffix(_AVERAGED)
        inside = f"{above}{_PARALLEL}."
        beside = [name for name in plain.values() if name.startswith(above) and name != counter]
        if beside and all(name.startswith(inside) for name in beside):
            plain = {
                old: above + new.removeprefix(inside) if new.startswith(inside) else new
                for old, new in plain.items()
                if new != counter
            }
    return plain


def _with_prefix(names: Mapping[str, str], prefix: str) -> dict[str, str]:
    kept = {old: new[len(prefix) :] for old, new in names.items() if new.startswith(prefix)}
    if not kept:
        first = sorted({new.partition(".")[0] for new in names.values()})[:3]
        raise EncodeArgumentError(
            f"--prefix (prefix=…): no tensor's name begins with {prefix}; they begin with "
            f"{', '.join(first)}"
        )
    return kept


def _all_parallel(names: Collection[str]) -> bool:
    return bool(names) and all(name.startswith(f"{_PARALLEL}.") for name in names)


def _fit(names: Mapping[str, str], like: Collection[str]) -> bool:
    """Whether the modules of all names are modules of a network; dialects name tensors anew."""
    return set(map(module_of, names.values())) <= set(map(module_of, like))


def module_of(name: str) -> str:
    """The module of an entry of a state dict in any dialect."""
    return _OWN_ENTRY.sub("", f".{name}").removeprefix(".")


def _fitting(name: str, known: Collection[str]) -> Iterator[str]:
    """A name with as few "module" left out as make it one of a known module."""
    parts = name.split(".")
    places = [place for place, part in enumerate(parts[:-1]) if part == _PARALLEL]
    for count in range(len(places) + 1 if len(places) <= _MOST_WRAPPERS else 0):
        for gone in combinations(places, count):
            candidate = ".".join(part for at, part in enumerate(parts) if at not in gone)
            if module_of(candidate) in known:
                yield candidate


def tied_names(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """For every name all names of the same memory, in order."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in tensors.items():
        key: tuple[Any, ...] = (name,)
        if tensor.layout == torch.strided and not tensor.is_meta and tensor.numel():
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
            key = (*place, tensor.dtype, tensor.is_conj(), tensor.is_neg())
        groups.setdefault(key, []).append(name)
    return {name: names for names in groups.values() for name in names}


def ties_of(network: Mapping[str, Tensor]) -> list[list[str]]:
    """All names of each tensor in `state_dict(keep_vars=True)` of a network."""
    groups: dict[int, list[str]] = {}
    for name, tensor in network.items():
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())


def missing_ties(names: Collection[str], groups: Iterable[Collection[str]]) -> dict[str, str]:
    """Names that a state dict lacks, to those of the same tensor that it has.

    Args:
        names: of the state dict; safetensors keeps one name of a tied tensor.
        groups: all names of each tensor.
    """
    ties: dict[str, str] = {}
    for group in groups:
        here = [name for name in group if name in names]
        ties |= {name: here[0] for name in group if here and name not in names}
    return ties
