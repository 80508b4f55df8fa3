"""A checkpoint → the tensors of one process."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from pemncodec.checkpoints.names import plain_names, tied_names
from pemncodec.checkpoints.reading import with_recorded
from pemncodec.checkpoints.sources import join_checkpoints
from pemncodec.distributed.ownership import owners
from pemncodec.distributed.part import Part
from pemncodec.errors import EncodeError
from pemncodec.options import MaskChoices
from pemncodec.peers import Peers


def read_part(
    paths: Mapping[str, Path], peers: Peers, prefix: str | None, given: MaskChoices
) -> tuple[Part, MaskChoices]:
    """The tensors that a process owns, and what is known of their masks.

    Values are read where they are needed, so that no process reads those of others.

    Args:
        paths: the checkpoint, as `join_checkpoints` takes it.
        peers: the other processes.
        prefix: as `EncodeOptions` has it.
        given: what the caller says of masks.

    Raises:
        EncodeError: not a checkpoint, or one that is no state dict.
        OSError: a file cannot be read.
    """
    names: dict[str, str] = {}

    def own(sizes: Mapping[str, int], mapped: Mapping[str, Tensor]) -> Collection[str]:
        names.update(plain_names(sizes, (), prefix))
        ties = [[names[name] for name in tied if name in names] for tied in _ties(mapped)]
        owner = owners({new: sizes[old] for old, new in names.items()}, peers.count, ties)
        return [old for old, new in names.items() if owner[new] == peers.rank]

    loaded = join_checkpoints(paths, choose=own)
    if not isinstance(loaded.source, dict):
        raise EncodeError(
            "several processes encode a state dict: encode this in one, by pemn encode"
        )
    tensors = {names[old]: tensor for old, tensor in loaded.source.items()}
    choices = with_recorded(replace(loaded, source=tensors), given) if tensors else given
    return Part(list(names.values()), tensors), choices


def _ties(mapped: Mapping[str, Tensor]) -> list[list[str]]:
    groups = tied_names(mapped)
    return [names for name, names in groups.items() if len(names) > 1 and names[0] == name]
