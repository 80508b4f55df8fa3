"""The tensors of a file one after the other, few of their values in memory at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Final

import numpy as np

from pemncodec.contents import CARRIERS, Array, bits_of, numel
from pemncodec.format.header import MaskedRow
from pemncodec.format.reader import PemnFile
from pemncodec.threads import available_threads

_BATCH_BYTES: Final = 1 << 25  # of values that are made at one time, of tensors that are smaller
_PART: Final = 1 << 18  # weights of a larger tensor that are made at one time
_PARTS_AHEAD: Final = 2  # for each thread


def tensors_in_turn(file: PemnFile, names: Iterable[str]) -> Iterator[Iterator[Array]]:
    """Values of tensors, masks applied; by several threads, and few of them in memory at a time.

    Args:
        file: open.
        names: of the tensors.

    Yields:
        For each name its values, flat, in one part or several; what is left of them when the next
        tensor is asked for is not made.
    """
    batch: list[str] = []
    room = _BATCH_BYTES
    for name in names:
        is_large = bytes_of(file, name) > _BATCH_BYTES
        if batch and (is_large or bytes_of(file, name) > room):
            yield from _small_tensors(file, batch)
            batch, room = [], _BATCH_BYTES
        if not is_large:
            batch.append(name)
            room -= bytes_of(file, name)
        elif isinstance(file.placed_row(name), MaskedRow):
            parts = _parts(file, name)
            yield parts
            parts.close()
        else:
            yield iter([file.tensor(name).reshape(-1)])
    yield from _small_tensors(file, batch)


def _small_tensors(file: PemnFile, names: list[str]) -> Iterator[Iterator[Array]]:
    masked = {
        name: np.empty(file.shape(name), CARRIERS[file.dtype(name)])
        for name in names
        if isinstance(file.placed_row(name), MaskedRow)
    }
    file.read_masked(masked)
    for name in names:
        values = masked.pop(name) if name in masked else file.tensor(name)
        yield iter([values.reshape(-1)])


def _parts(file: PemnFile, name: str) -> Generator[Array]:
    file.expect([name])
    threads = available_threads()
    with ThreadPoolExecutor(threads) as pool:
        _, slices = file.masked.mask_and_slices(file.masked_row(name), _PART, pool)
        made: deque[Future[Array]] = deque()
        for make in slices:
            made.append(pool.submit(make))
            if len(made) > _PARTS_AHEAD * threads:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()


def differing_tensors(
    file: PemnFile,
    names: Collection[str],
    kind: Callable[[str], tuple[str, tuple[int, ...]]],
    expected: Iterable[Iterable[Array]],
    progress: Callable[[float], None],
) -> list[str]:
    """Which tensors are not what is expected, bit for bit; few values in memory at a time.

    Args:
        file: open.
        names: of the tensors.
        kind: from a name to the dtype and shape that are expected.
        expected: for each name the values, flat, in parts, masks applied.
        progress: called with the share of all values that is compared.
    """
    count, done = sum(numel(file.shape(name)) for name in names), 0
    file.expect()
    different = []
    values = zip(tensors_in_turn(file, names), expected, strict=True)
    for name, (own, theirs) in zip(names, values, strict=True):
        alike = (file.dtype(name), file.shape(name)) == kind(name)
        if not (alike and equal_parts(own, theirs)):
            different.append(name)
        done += numel(file.shape(name))
        progress(done / max(count, 1))
    return different


def equal_parts(first: Iterable[Array], second: Iterable[Array]) -> bool:
    """Whether flat values that come in parts, each of them cut anywhere, have the same bits."""
    pairs = side_by_side(first, second)
    return all(np.array_equal(bits_of(part), bits_of(other)) for part, other in pairs)


def side_by_side(first: Iterable[Array], second: Iterable[Array]) -> Iterator[tuple[Array, Array]]:
    """Flat values that come in parts, each of them cut anywhere, cut in the same places.

    Args:
        first: values in parts.
        second: others in parts.

    Yields:
        Parts of both, equally long; where one has more values than the other, what is left beside
        an empty array.
    """
    others = iter(second)
    none = other = np.empty(0, np.uint8)
    for part in first:
        while part.size:
            while not other.size:
                if (following := next(others, None)) is None:
                    yield part, none
                    return
                other = following
            size = min(part.size, other.size)
            yield part[:size], other[:size]
            part, other = part[size:], other[size:]
    for rest in chain([other], others):
        if rest.size:
            yield none, rest


def bytes_of(file: PemnFile, name: str) -> int:
    """Of the values of a tensor."""
    return numel(file.shape(name)) * CARRIERS[file.dtype(name)].itemsize
