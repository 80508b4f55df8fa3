"""A file against the checkpoint that it was made of."""

from __future__ import annotations

from pemncodec.cli.streams import checkpoint_path, named
from pemncodec.format.reader import PemnFile


def compare_files(
    file: PemnFile,
    against: str,
    keep: float | None,
    prefix: str | None,
    *,
    trust_pickle: bool,
) -> None:
    """Compare every tensor bit for bit.

    Raises:
        PemnError: the checkpoint cannot be read, or differs.
    """
    from torch import nn

    from pemncodec.checkpoints.dialects import read_masks, with_missing_ties
    from pemncodec.checkpoints.files import load_checkpoint
    from pemncodec.checkpoints.names import drop_wrappers, missing_ties
    from pemncodec.decoding import load_state
    from pemncodec.proof import compare_states

    with checkpoint_path(against) as path:
        loaded = load_checkpoint(path, trust_pickle=trust_pickle, name=against)
    state = loaded.state_dict() if isinstance(loaded, nn.Module) else loaded
    with named(against):
        plain = drop_wrappers(state, file.keys(), prefix)
        read = read_masks(plain, keep=keep, own=file.keys())
    groups: dict[str, list[str]] = {}
    for name, first in file.aliases.items():
        groups.setdefault(first, [first]).append(name)
    ties = missing_ties(read.tensors, groups.values())
    expected = with_missing_ties(read, ties).effective()
    decoded = load_state(file, "cpu")
    # Pruning moves a weight behind its layer's other tensors; names and bits are what counts.
    if sorted(decoded) == sorted(expected):
        decoded = {name: decoded[name] for name in expected}
    compare_states(decoded, expected)
