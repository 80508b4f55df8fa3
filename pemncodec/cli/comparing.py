"""A file against the checkpoint that it was made of."""

from __future__ import annotations

from collections.abc import Sequence

from pemncodec.cli.streams import checkpoint_paths, named
from pemncodec.format.reader import PemnFile
from pemncodec.options import MaskChoices
from pemncodec.remote.urls import shown


def compare_files(
    file: PemnFile,
    against: Sequence[str],
    given: MaskChoices,
    prefix: str | None,
    *,
    trust_pickle: bool,
) -> None:
    """Compare every tensor bit for bit.

    Args:
        file: to compare.
        against: the checkpoint, in one file or in several.
        given: what the caller says of its masks.
        prefix: what the names of its tensors begin with.
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
    from pemncodec.proof import compare_states

    checkpoint = ", ".join(map(shown, against))
    with checkpoint_paths(against) as paths:
        loaded = join_checkpoints(paths, trust_pickle=trust_pickle)
        source = loaded.source
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
    expected = with_missing_ties(read, ties).effective()
    decoded = load_state(file, "cpu")
    # Pruning moves a weight behind its layer's other tensors; names and bits are what counts.
    if sorted(decoded) == sorted(expected):
        decoded = {name: decoded[name] for name in expected}
    compare_states(decoded, expected)
