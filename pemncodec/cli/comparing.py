"""A file against the checkpoint that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from pemncodec import saving
from pemncodec.cli.streams import checkpoint_paths, named
from pemncodec.contents import Array, bits_of, numel
from pemncodec.errors import EncodeError
from pemncodec.format.header import DenseRow, MaskedRow
from pemncodec.format.in_turn import differing_tensors, side_by_side, tensors_in_turn
from pemncodec.format.reader import PemnFile
from pemncodec.options import MaskChoices
from pemncodec.remote.urls import shown

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Expected:
    """What a file is compared with.

    Attributes:
        name: as messages call it.
        kind: dtype and shape of a tensor.
        in_turn: for each of some names the values, flat, in parts, masks applied.
        inference_only: whether batch norms are folded there, too.
    """

    name: str
    kind: Callable[[str], tuple[str, tuple[int, ...]]]
    in_turn: Callable[[Iterable[str]], Iterator[Iterable[Array]]]
    inference_only: bool = False


def compare_files(
    file: PemnFile,
    against: Sequence[str],
    given: MaskChoices,
    prefix: str | None,
    progress: Callable[[float], None],
    *,
    trust_pickle: bool,
) -> dict[str, str]:
    """Compare every tensor: bit for bit, or within the errors that the file records.

    Args:
        file: to compare.
        against: the checkpoint, in one file or in several.
        given: what the caller says of its masks.
        prefix: what the names of its tensors begin with.
        progress: called with the share of all values that is compared.
        trust_pickle: whether code in it may run.

    Returns:
        How tensors were shortened that are within these errors, such as "q8", by name.

    Raises:
        PemnError: the checkpoint cannot be read, or differs.
    """
    from torch import nn

    from pemncodec.checkpoints.dialects import read_masks, with_missing_ties
    from pemncodec.checkpoints.mask_names import masks_by_weight
    from pemncodec.checkpoints.names import missing_ties, plain_names
    from pemncodec.checkpoints.reading import with_recorded
    from pemncodec.checkpoints.sources import join_checkpoints
    from pemncodec.decoding import load_state
    from pemncodec.proof import compare_names

    checkpoint = ", ".join(map(shown, against))
    with checkpoint_paths(against) as paths:
        loaded = join_checkpoints(paths, trust_pickle=trust_pickle)
        source = loaded.source
        if isinstance(source, PemnFile) and prefix is None and not any(given.values()):
            return _compare_decoded(file, source, checkpoint, progress)
        with named(checkpoint):
            if isinstance(source, PemnFile):
                state = load_state(source, "cpu")
            else:
                state = source.state_dict() if isinstance(source, nn.Module) else source
    groups: dict[str, list[str]] = {}
    for name, first in file.aliases.items():
        groups.setdefault(first, [first]).append(name)
    with named(checkpoint):
        choices = with_recorded(loaded, given)
        names = plain_names(state, file.keys(), prefix)
        plain = {new: state[old] for old, new in names.items()}
        known = {**missing_ties(plain, groups.values()), **names}
        choices["masks"] = masks_by_weight(choices.get("masks") or {}, known, plain)
        read = read_masks(plain, own=file.keys(), **choices)
    ties = missing_ties(read.tensors, groups.values())
    expected = with_missing_ties(read, ties)
    own = saving.plain_names(file)
    if sorted(own) != sorted(expected.tensors):
        compare_names(own, expected.tensors)
    # Pruning moves a weight behind its layer's other tensors; names and bits are what counts.
    values = partial(map, expected.effective_parts)
    state_of = _Expected(checkpoint, expected.kind, values)
    return _compare(file, list(expected.tensors), state_of, progress)


def _compare_decoded(
    file: PemnFile, other: PemnFile, other_name: str, progress: Callable[[float], None]
) -> dict[str, str]:
    """Compare the state dicts of two files; checks all of both."""
    from pemncodec.proof import compare_names

    names = saving.plain_names(file)
    if sorted(names) != sorted(saving.plain_names(other)):
        compare_names(names, saving.plain_names(other))
    expected = _Expected(
        other_name,
        lambda name: (other.dtype(name), other.shape(name)),
        partial(tensors_in_turn, other),
        other.header.inference_only,
    )
    shortened = _compare(file, names, expected, progress)
    with named(other_name):
        other.verify_rest()
    return shortened


def _compare(
    file: PemnFile, names: Sequence[str], expected: _Expected, progress: Callable[[float], None]
) -> dict[str, str]:
    """Compare tensors, few values in memory at a time; checks all of the file.

    Returns:
        How the file has shortened tensors that are within its errors, by name.
    """
    others = _named(expected.in_turn(names), expected.name)
    values = (_named(parts, expected.name) for parts in others)
    different = differing_tensors(file, names, expected.kind, values, progress)
    shortened = _within_errors(file, different, expected)
    if len(shortened) < len(different):
        left = [name for name in different if name not in shortened]
        raise EncodeError(_told(file, left, len(names), expected))
    file.verify_rest()
    return shortened


def _within_errors(file: PemnFile, names: Iterable[str], expected: _Expected) -> dict[str, str]:
    """The coders of those tensors that are no further off than the file says."""
    errors: dict[str, DenseRow] = {}
    for name in names:
        row = file.placed_row(name)
        alike = expected.kind(name) == ("float32", row.shape)
        if isinstance(row, DenseRow) and row.error and row.dtype == "float32" and alike:
            errors[name] = row
    within: dict[str, str] = {}
    pairs = zip(tensors_in_turn(file, errors), expected.in_turn(errors), strict=True)
    for (name, row), (own, theirs) in zip(errors.items(), pairs, strict=True):
        # In binary64, where the difference of two binary32 numbers cannot overflow.
        if all(
            np.all(np.abs(one - other.view(np.float32).astype(np.float64)) <= row.error)
            for one, other in side_by_side(own, theirs)
        ):
            within[name] = file.dense.coder(row.section)
    return within


def _told(file: PemnFile, different: Sequence[str], count: int, expected: _Expected) -> str:
    """Says which tensors differ, and whether it is their masks that do."""
    from pemncodec.proof import what_differs

    masked = [name for name in different if isinstance(file.placed_row(name), MaskedRow)]
    alike = [n for n in masked if expected.kind(n) == (file.dtype(n), file.shape(n))]
    pairs = zip(tensors_in_turn(file, alike), expected.in_turn(alike), strict=True)
    off = sum(
        int(np.count_nonzero((bits_of(one) != 0) != (bits_of(other) != 0)))
        for own, theirs in pairs
        for one, other in side_by_side(own, theirs)
    )
    told = what_differs(different, count)
    if off:
        weights = sum(numel(file.shape(name)) for name in file.masked_keys())
        return (
            f"{told}; masks differ in {off:,} of {weights:,} weights: say as for encode how they "
            "are found (--keep, --rule, …)"
        )
    if file.header.inference_only and not expected.inference_only and not masked:
        return (
            f"cannot be compared with {expected.name}: batch norms are folded into other tensors "
            "(--fold-bn); masked weights are equal"
        )
    return f"{told}; masks are equal" if alike else told


def _named(items: Iterable[Item], name: str) -> Iterator[Item]:
    with named(name):
        yield from items
