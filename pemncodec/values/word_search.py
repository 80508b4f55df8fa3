"""Where in a seed's words a tensor may have been drawn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pemncodec import kernels
from pemncodec.values.draws import BITS, Draws

_STATE = 624
_PART = 128 * _STATE  # words that are looked at together: they stay in the cache
_REACH = 1 << 14  # words of a tensor that are looked at
_MOST = 64  # draws that are compared
_FEW = 1 << 8  # words of which one is worth to be looked at by itself

_Words = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """Intervals in which words lie that stand in known distances.

    Attributes:
        places: int64 [n], of the words behind the first of the tensor; the most telling first.
        low: uint32 [n], least numbers of the intervals, times 2^8.
        width: uint32 [n], likewise; intervals are modulo 2^32 then.
        bits: how much all of them say. 2^bits words have the pattern once by chance.
        turn: by how many places words are turned to the left before.
    """

    places: npt.NDArray[np.int64]
    low: _Words
    width: _Words
    bits: float
    turn: int

    @property
    def passes(self) -> int:
        """How many intervals all words are compared with, until few are left."""
        rare = np.cumprod((self.width.astype(np.float64) + 1) / (1 << 32))
        return min(int(np.searchsorted(-rare, -1 / _FEW)) + 1, rare.size)


def pattern_of(draws: Draws) -> Pattern:
    """The most telling draws among the first words of a tensor."""
    near = np.flatnonzero(draws.words < _REACH)
    chosen = near[np.argsort(draws.width[near], kind="stable")[:_MOST]]
    upper = np.uint32(32 - BITS)
    low, width = (of[chosen].astype(np.uint32) << upper for of in (draws.low, draws.width))
    bits = float(draws.bits[chosen].sum())
    width |= np.uint32((1 << upper) - 1)
    return Pattern(draws.words[chosen], low, width, bits, draws.turn)


def search_words(
    seed: int, stop: int, patterns: Sequence[Pattern], found: Callable[[int, int], Collection[int]]
) -> None:
    """Looks for tensors among the first words of a seed.

    Args:
        seed: 32 bits.
        stop: how many words may be drawn before a tensor.
        patterns: of tensors.
        found: called with the index of a pattern and the number of words before it, for the first
            place of each; returns the indices of those that are still looked for.
    """
    left = {index: (pattern, pattern.passes) for index, pattern in enumerate(patterns)}
    reach = 1 + max((int(pattern.places.max()) for pattern in patterns), default=0)
    state = np.empty(_STATE, np.uint32)
    kernels.mersenne_seed(seed, state)
    part = min(_PART, -(-(stop + reach) // _STATE) * _STATE)
    words, first = np.zeros(reach + part, np.uint32), -reach
    turned, scratch = np.empty_like(words), np.empty(part, np.uint32)
    hits = np.empty((2, part), np.bool_)
    while left and first < stop:
        words[:reach] = words[part:].copy()
        kernels.mersenne_words(state, 0, words[reach:])
        kernels.mersenne_advance(state, part // _STATE)
        turn = -1
        for index, (pattern, passes) in sorted(left.items(), key=lambda way: way[1][0].turn):
            if index not in left:
                continue
            if turn != pattern.turn:
                turn = pattern.turn
                _turn_left(words, turn, turned)
            for at in _matches(turned, pattern, passes, scratch, hits):
                if 0 <= first + at < stop:
                    wanted = found(index, first + at)
                    left = {i: way for i, way in left.items() if i != index and i in wanted}
                    break
        first += part


def _turn_left(words: _Words, turn: int, out: _Words) -> None:
    np.left_shift(words, np.uint32(turn), out=out)
    # The lower bits of patterns are open, so that what goes out on top need not come back there.
    if turn > 32 - BITS:
        np.bitwise_or(out, words >> np.uint32(32 - turn), out=out)


def _matches(
    words: _Words, pattern: Pattern, passes: int, scratch: _Words, hits: npt.NDArray[np.bool_]
) -> list[int]:
    """Where a pattern begins among as many words as `scratch` has."""
    for index in range(passes):
        place = int(pattern.places[index])
        np.subtract(words[place : place + scratch.size], pattern.low[index], out=scratch)
        np.less_equal(scratch, pattern.width[index], out=hits[min(index, 1)])
        if index:
            np.logical_and(hits[0], hits[1], out=hits[0])
    at = np.flatnonzero(hits[0])
    for index in range(passes, pattern.places.size):
        if not at.size:
            break
        between = words[at + pattern.places[index]] - pattern.low[index]
        at = at[between <= pattern.width[index]]
    return [int(place) for place in at]
