"""The tensors of a file one after the other, few of them in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

from pemncodec.contents import CARRIERS, Array, numel
from pemncodec.format.header import MaskedRow
from pemncodec.format.reader import PemnFile

_BATCH_BYTES: Final = 1 << 25  # of values that are made at one time, unless one tensor has more


def arrays_in_turn(file: PemnFile, names: Iterable[str]) -> Iterator[Array]:
    """Values of tensors, masks applied; by several threads, and few of them in memory at a time."""
    batch: list[str] = []
    room = _BATCH_BYTES
    for name in names:
        room -= bytes_of(file, name)
        if room < 0 and batch:
            yield from _arrays(file, batch)
            batch, room = [], _BATCH_BYTES - bytes_of(file, name)
        batch.append(name)
    yield from _arrays(file, batch)


def _arrays(file: PemnFile, names: list[str]) -> Iterator[Array]:
    masked = {
        name: np.empty(file.shape(name), CARRIERS[file.dtype(name)])
        for name in names
        if isinstance(file.placed_row(name), MaskedRow)
    }
    file.read_masked(masked)
    for name in names:
        yield masked.pop(name) if name in masked else file.tensor(name)


def bytes_of(file: PemnFile, name: str) -> int:
    """Of the values of a tensor."""
    return numel(file.shape(name)) * CARRIERS[file.dtype(name)].itemsize
