"""A file against the checkpoint that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from pemncodec import saving
from pemncodec.cli.streams import checkpoint_paths, named
from pemncodec.contents import Array
from pemncodec.format.in_turn import equal_parts, tensors_in_turn
from pemncodec.format.reader import PemnFile
from pemncodec.options import MaskChoices
from pemncodec.remote.urls import shown


def compare_files(
    file: PemnFile,
    against: Sequence[str],
    given: MaskChoices,
    prefix: str | None,
    progress: Callable[[float], None],
    *,
    trust_pickle: bool,
) -> None:
    """Compare every tensor bit for bit.

    Args:
        file: to compare.
        against: the checkpoint, in one file or in several.
        given: what the caller says of its masks.
        prefix: what the names of its tensors begin with.
        progress: called with the share of all values that is compared.
        trust_pickle: whether code in it may run.

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
    from pemncodec.proof import compare_file, compare_names

    checkpoint = ", ".join(map(shown, against))
    with checkpoint_paths(against) as paths:
        loaded = join_checkpoints(paths, trust_pickle=trust_pickle)
        source = loaded.source
        if isinstance(source, PemnFile) and prefix is None and not any(given.values()):
            _compare_decoded(file, source, checkpoint, progress)
            return
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
    # Pruning moves a weight behind its layer's other tensors; names and bits are what counts.
    if sorted(own) != sorted(expected.tensors):
        compare_names(own, expected.tensors)
    compare_file(file, expected, progress)


def _compare_decoded(
    file: PemnFile, other: PemnFile, other_name: str, progress: Callable[[float], None]
) -> None:
    """Compare the state dicts of two files, few tensors in memory at a time; checks all of both."""
    from pemncodec.proof import check_none_differs, compare_names

    names = saving.plain_names(file)
    if sorted(names) != sorted(saving.plain_names(other)):
        compare_names(names, saving.plain_names(other))
    values, expected = tensors_in_turn(file, names), tensors_in_turn(other, names)
    different = []
    for done, name in enumerate(names):
        own = next(values)
        with named(other_name):
            theirs = next(expected)
        alike = file.dtype(name) == other.dtype(name) and file.shape(name) == other.shape(name)
        if not (alike and equal_parts(own, _named(theirs, other_name))):
            different.append(name)
        progress(done / len(names))
    check_none_differs(different, len(names))
    file.verify_rest()
    with named(other_name):
        other.verify_rest()


def _named(parts: Iterable[Array], name: str) -> Iterator[Array]:
    with named(name):
        yield from parts
