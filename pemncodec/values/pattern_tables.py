"""Many patterns of words → tables by which all of them are looked for in one pass.

A pattern leaves few values for the upper bits of some words that follow each other. These make an
index of 16 bits, and a table says which patterns an index fits; the rest of a pattern is looked at
only where its index is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pemncodec import kernels
from pemncodec.values.word_patterns import MOST, Pattern

_INDEX_BITS = 16
_BITS = (16, 2, 1)  # of a word in an index: magnitudes; signs of normal values; of uniform ones
LONGEST_INDEX = _INDEX_BITS // min(_BITS)  # words
_TELLING = 8.0  # bits that an index must tell of a pattern

_Words = npt.NDArray[np.uint32]
_Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PatternTable:
    """Patterns that are looked for together.

    Attributes:
        turn: by how many places words are turned to the left before.
        bits: of a word in an index.
        members: which patterns these are; what follows has a row for each, in this order.
        offsets: int64 [n], where the words of a pattern's index begin.
        places: int64 [n, 64], as `Pattern` has them, filled up with words that may be anything.
        low: uint32 [n, 64], likewise.
        width: uint32 [n, 64], likewise.
        table: uint8 [2^16], 1 for indices that fit a row.
        ends: int64 [2^16 + 1], how many of `rows` fit smaller indices.
        rows: int64, those that fit each index, by index.
    """

    turn: int
    bits: int
    members: tuple[int, ...]
    offsets: _Integers
    places: _Integers
    low: _Words
    width: _Words
    table: npt.NDArray[np.uint8]
    ends: _Integers
    rows: _Integers

    def matches(self, words: _Words, stop: int, wanted: Container[int]) -> dict[int, list[int]]:
        """Where patterns begin.

        Args:
            words: of a generator, turned.
            stop: places from here on do not count.
            wanted: which patterns count.

        Returns:
            For each member that counts, its places in ascending order.
        """
        out = np.empty(words.size, np.uint64)
        found = out[: kernels.match_words(words, self.bits, self.table, out)]
        index = (found & np.uint64((1 << _INDEX_BITS) - 1)).astype(np.int64)
        first, counts = self.ends[index], self.ends[index + 1] - self.ends[index]
        every = np.repeat(first - (np.cumsum(counts) - counts), counts)
        rows = self.rows[every + np.arange(every.size)]
        at = np.repeat((found >> np.uint64(_INDEX_BITS)).astype(np.int64), counts)
        at -= self.offsets[rows]
        counting = np.array([member in wanted for member in self.members])
        fits = counting[rows] & (at >= 0) & (at < stop)
        at, rows = at[fits], rows[fits]
        for column in range(self.places.shape[1]):
            if not at.size:
                break
            between = words[at + self.places[rows, column]] - self.low[rows, column]
            fits = between <= self.width[rows, column]
            at, rows = at[fits], rows[fits]
        starts: dict[int, list[int]] = {each: [] for each in self.members if each in wanted}
        for row, place in zip(rows.tolist(), at.tolist(), strict=True):
            starts[self.members[row]].append(place)
        return starts


def pattern_tables(patterns: Sequence[Pattern]) -> list[PatternTable]:
    """Tables of those patterns that an index tells enough of, by how their words are turned."""
    groups = defaultdict[tuple[int, int], list[tuple[int, int]]](list)
    for number, pattern in enumerate(patterns):
        telling, bits, offset = max(_telling(pattern, bits) for bits in _BITS)
        if telling >= _TELLING:
            groups[pattern.turn, bits].append((number, offset))
    return [
        _table(patterns, turn, bits, *zip(*group, strict=True))
        for (turn, bits), group in groups.items()
    ]


def _table(
    patterns: Sequence[Pattern],
    turn: int,
    bits: int,
    members: tuple[int, ...],
    offsets: tuple[int, ...],
) -> PatternTable:
    own = [patterns[member] for member in members]
    indices = [_indices(each, bits, at) for each, at in zip(own, offsets, strict=True)]
    every = np.concatenate(indices)
    order = np.argsort(every, kind="stable")
    counts = np.bincount(every, minlength=1 << _INDEX_BITS)
    places = np.zeros((len(own), MOST), np.int64)
    low = np.zeros((len(own), MOST), np.uint32)
    width = np.full((len(own), MOST), 0xFFFFFFFF, np.uint32)
    for row, each in enumerate(own):
        part = slice(each.places.size)
        places[row, part], low[row, part], width[row, part] = each.places, each.low, each.width
    return PatternTable(
        turn,
        bits,
        members,
        np.array(offsets, np.int64),
        places,
        low,
        width,
        (counts > 0).astype(np.uint8),
        np.concatenate([[0], np.cumsum(counts)]),
        np.repeat(np.arange(len(own)), [each.size for each in indices])[order],
    )


def _upper(pattern: Pattern, bits: int) -> tuple[_Integers, _Integers]:
    """The least of the numbers that the upper bits of each word may be, and how many these are."""
    low = pattern.low.astype(np.int64)
    least, most = low >> 32 - bits, low + pattern.width >> 32 - bits
    return least, np.minimum(most - least + 1, 1 << bits)


def _telling(pattern: Pattern, bits: int) -> tuple[float, int, int]:
    """How many bits the most telling index says, of so many bits a word, and where it begins."""
    together = _INDEX_BITS // bits
    said = bits - np.log2(_upper(pattern, bits)[1])
    sums = np.convolve(np.bincount(pattern.places, said, together), np.ones(together), "valid")
    best = int(sums.argmax())
    return float(sums[best]), bits, best


def _indices(pattern: Pattern, bits: int, offset: int) -> _Integers:
    """All that a pattern leaves for the words from `offset` on."""
    least, counts = _upper(pattern, bits)
    found = np.zeros(1, np.int64)
    for word in range(offset, offset + _INDEX_BITS // bits):
        numbers = np.arange(1 << bits)
        for draw in np.flatnonzero(pattern.places == word):
            numbers = numbers[(numbers - least[draw]) % (1 << bits) < counts[draw]]
        found = (found[:, None] << bits | numbers).reshape(-1)
    return found
