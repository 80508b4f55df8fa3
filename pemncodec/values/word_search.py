"""Where in a seed's words a tensor may have been drawn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pemncodec import kernels
from pemncodec.values.draws import BITS
from pemncodec.values.pattern_tables import LONGEST_INDEX, PatternTable, pattern_tables
from pemncodec.values.word_patterns import Pattern

_STATE = 624
_PART = 128 * _STATE  # words that are looked at together: they stay in the cache
_FEW_PASSES = 3  # over all words, which take less time than to look them up in a table

_Words = npt.NDArray[np.uint32]


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
    # An index may be longer than what it tells of.
    reach = max([LONGEST_INDEX, *(1 + int(pattern.places.max()) for pattern in patterns)])
    state = np.empty(_STATE, np.uint32)
    kernels.mersenne_seed(seed, state)
    part = min(_PART, -(-(stop + reach) // _STATE) * _STATE)
    words, first = np.zeros(reach + part, np.uint32), -reach
    turned, scratch = np.empty_like(words), np.empty(part, np.uint32)
    hits = np.empty((2, part), np.bool_)
    tables = pattern_tables(patterns)
    while left and first < stop:
        words[:reach] = words[part:].copy()
        kernels.mersenne_words(state, 0, words[reach:])
        kernels.mersenne_advance(state, part // _STATE)
        turn, starts = -1, dict[int, list[int]]()
        for index, (pattern, passes) in sorted(left.items(), key=lambda way: way[1][0].turn):
            if index not in left:
                continue
            if turn != pattern.turn:
                turn = pattern.turn
                _turn_left(words, turn, turned)
                starts = _by_tables(tables, turned, part, turn, left)
            if index in starts:
                matches = starts[index]
            else:
                matches = _matches(turned, pattern, passes, scratch, hits)
            for at in matches:
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


def _by_tables(
    tables: Sequence[PatternTable],
    words: _Words,
    stop: int,
    turn: int,
    left: Mapping[int, tuple[Pattern, int]],
) -> dict[int, list[int]]:
    """Where patterns begin of which so many are left that tables are worth it."""
    starts: dict[int, list[int]] = {}
    for table in tables:
        passes = sum(left[member][1] for member in table.members if member in left)
        if table.turn == turn and passes > _FEW_PASSES:
            starts |= table.matches(words, stop, left)
    return starts


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
