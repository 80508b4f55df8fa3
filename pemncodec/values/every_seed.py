"""All seeds of torch → those from which tensors come that were drawn at known places."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pemncodec import kernels
from pemncodec.threads import available_threads
from pemncodec.values.draws import Draws, Equations, equations_of

EQUATIONS = 60  # of a place: by chance, one of 2^28 places has a seed of which they hold
_REACH = 1 << 14  # words of a tensor that are looked at
_MOST = 1 << 8  # draws that become equations
_TOGETHER = 4  # places that are tried together
_AT_ONCE = 1 << 20  # seeds


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a tensor may have been drawn: `telling` equations, and how many words lie before."""

    telling: Equations
    skip: int


def telling_equations(draws: Draws) -> Equations | None:
    """As many as are needed, of the most telling draws; None where there are fewer."""
    near = np.flatnonzero(draws.words < _REACH)
    chosen = np.sort(near[np.argsort(draws.width[near], kind="stable")[:_MOST]])
    every = equations_of(draws.some(chosen))
    if every.words.size < EQUATIONS:
        return None
    part = slice(EQUATIONS)
    return Equations(every.words[part], every.masks[part], every.parities[part])


def search_seeds(
    places: Sequence[Place],
    seeds: range,
    found: Callable[[int, int], bool],
    progress: Callable[[float], None],
) -> None:
    """Looks for seeds of which the equations of a place hold.

    Args:
        places: of tensors, the likely ones first.
        seeds: 32 bits each, in steps of 1.
        found: called with the index of a place and a seed, in the same order on every machine; True
            if no more are looked for.
        progress: called with the share of the seeds and places that were tried.
    """
    threads = available_threads()
    done, total = 0, len(seeds) * len(places)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[int, int, Future[bytes]]] = deque()

        def first_done() -> bool:
            """Whether what waited the longest ends the search."""
            nonlocal done
            start, tried, future = waiting.popleft()
            hits = np.frombuffer(future.result(), np.uint64).tolist()
            done += tried
            progress(done / total)
            return any(found(start + (hit >> 32), hit & 0xFFFFFFFF) for hit in hits)

        for start in range(0, len(places), _TOGETHER):
            group = places[start : start + _TOGETHER]
            masks, parities = _tables(group)
            for part in _parts(seeds):
                future = pool.submit(
                    kernels.mersenne_seeds, masks, parities, len(group), part.start, len(part)
                )
                waiting.append((start, len(part) * len(group), future))
                if len(waiting) > 2 * threads and first_done():
                    return
        while waiting:
            if first_done():
                return


def _tables(places: Sequence[Place]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    masks = np.empty((len(places), 624, EQUATIONS), np.uint32)
    for table, place in zip(masks, places, strict=True):
        words = place.telling.words + np.uint32(place.skip)
        kernels.mersenne_pull_back(words, place.telling.masks, table)
    return masks, np.concatenate([place.telling.parities for place in places])


def _parts(seeds: range) -> Iterator[range]:
    return (seeds[start : start + _AT_ONCE] for start in range(0, len(seeds), _AT_ONCE))
