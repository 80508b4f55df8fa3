"""A state of MT19937 from linear equations over bits of its words: the twin of mersenne_solve.c."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pemncodec.kernels.arguments import Buffer, view_buffer

_Words = NDArray[np.uint32]
_Rows = NDArray[np.uint64]

_STATE, _MIDDLE = 624, 397
_MATRIX = 0x9908B0DF
_ONE = np.uint32(1)
_LAST = 1 << 22  # above all words
_STRIP = 8  # unknowns that are eliminated together


def mersenne_solve(words: Buffer, masks: Buffer, parities: Buffer, out: Buffer) -> int:
    """Looks for the state of MT19937 of which all equations hold.

    Equation i: the bits of `masks[i]` in word `words[i]`, after tempering, have the parity
    `parities[i]`. Words count from the first one of the state.

    Args:
        words: n uint32 below 2^22, ascending. Time and the largest of them grow together.
        masks: n uint32.
        parities: n bytes, of which the lowest bit counts.
        out: 624 uint32, the state: words before tempering. Written if the result is 0.

    Returns:
        How many of the 19,937 bits of a state the equations leave open, 0 where there is one such
        state; −1 where they contradict each other. Those about the first word only confirm a state
        that the others determine.

    Raises:
        ValueError: "words" of another size, not ascending or too large; "masks" or "out" of
            another size.
    """
    indices, sums = view_buffer(words), view_buffer(masks)
    values, target = view_buffer(parities), view_buffer(out, writable=True)
    if indices.size != 4 * values.size:
        raise ValueError("words")
    at, ones = indices.view(np.uint32), values & np.uint8(1)
    if (at[1:] < at[:-1]).any() or (at >= _LAST).any():
        raise ValueError("words")
    if sums.size != indices.size:
        raise ValueError("masks")
    if target.size != 4 * _STATE:
        raise ValueError("out")
    equations = at, sums.view(np.uint32), ones
    resolved = _resolve_words(*equations)
    if resolved is None:
        return -1
    system = _System(resolved)
    left = system.unknowns_left(*equations)
    if left == 0:
        solved = system.solution()
        if not _agrees(solved, *equations):
            return -1
        target.view(np.uint32)[:] = solved
    return left


# ---- Words


def _left(words: _Words, bits: int, mask: int) -> _Words:
    return (words << np.uint32(bits)) & np.uint32(mask)


def _temper(words: _Words) -> _Words:
    words = words ^ (words >> np.uint32(11))
    words = words ^ _left(words, 7, 0x9D2C5680)
    words = words ^ _left(words, 15, 0xEFC60000)
    return words ^ (words >> np.uint32(18))


def _untemper(words: _Words) -> _Words:
    words = words ^ (words >> np.uint32(18))
    words = words ^ _left(words, 15, 0xEFC60000)
    lower = words
    for _ in range(4):  # 7 bits more are right each time
        lower = words ^ _left(lower, 7, 0x9D2C5680)
    upper = lower
    for _ in range(2):
        upper = lower ^ (upper >> np.uint32(11))
    return upper


def _next_words(state: _Words) -> None:
    for start, stop in ((0, 227), (227, 454), (454, _STATE)):  # a word needs that 227 before
        place = np.arange(start, stop)
        lower = state[(place + 1) % _STATE]
        both = (state[place] & np.uint32(1 << 31)) | (lower & np.uint32((1 << 31) - 1))
        twisted = (both >> _ONE) ^ (lower & _ONE) * np.uint32(_MATRIX)
        state[place] = state[(place + _MIDDLE) % _STATE] ^ twisted


def _parity(words: _Words) -> _Words:
    return np.bitwise_count(words).astype(np.uint32) & _ONE


_UNITS = _ONE << np.arange(32, dtype=np.uint32)


def _agrees(state: _Words, words: _Words, masks: _Words, parities: NDArray[np.uint8]) -> bool:
    state, done = state.copy(), 0
    for first in range(0, int(words[-1]) + 1, _STATE):
        until = int(np.searchsorted(words, first + _STATE))
        part = slice(done, until)
        given = _temper(state)[words[part] - np.uint32(first)] & masks[part]
        if (_parity(given) != parities[part]).any():
            return False
        _next_words(state)
        done = until
    return True


# ---- Equations about words of the state


class _Word:
    """What equations about one word say of its tempered bits: each is known, or a sum of others."""

    def __init__(self) -> None:
        self.sums = [1 << bit for bit in range(32)]
        self.ones = [0] * 32
        self.unknown = list(range(32))

    def resolve(self, mask: int, value: int) -> bool:
        """Makes a bit no unknown any more; False where the equation contradicts those before."""
        total = 0
        for bit in range(32):
            if mask >> bit & 1:
                total ^= self.sums[bit]
                value ^= self.ones[bit]
        if not total:
            return value == 0
        lowest = (total & -total).bit_length() - 1
        for bit in range(32):
            if self.sums[bit] >> lowest & 1:
                self.sums[bit] ^= total
                self.ones[bit] ^= value
        self.unknown.remove(lowest)
        return True


def _resolve_words(words: _Words, masks: _Words, parities: NDArray[np.uint8]) -> list[_Word] | None:
    """Words 1 to 623, or None where equations contradict each other."""
    resolved = [_Word() for _ in range(_STATE)]
    inside = int(np.searchsorted(words, _STATE))
    for word, mask, value in zip(
        words[:inside].tolist(), masks[:inside].tolist(), parities[:inside].tolist(), strict=True
    ):
        if word > 0 and not resolved[word].resolve(mask, value):
            return None
    return resolved[1:]


# ---- Equations about later words


class _System:
    """Sums of unknowns as rows: a bit for each unknown, the last one for the constant.

    The unknowns are the highest bit of word 0 and what is not resolved of the words 1 to 623.
    """

    def __init__(self, words: list[_Word]) -> None:
        self.words = words
        self.unknowns = 1 + sum(len(word.unknown) for word in words)
        self.width = self.unknowns // 64 + 1
        self.rows = np.empty((0, self.width), np.uint64)
        self.pivots = np.empty(0, np.int64)
        self._symbols = self._first_symbols()
        self._next = _STATE

    def unknowns_left(self, words: _Words, masks: _Words, parities: NDArray[np.uint8]) -> int:
        """As `mersenne_solve` returns it."""
        later = words >= _STATE
        words, masks, parities = words[later], masks[later], parities[later]
        done = 0
        while self.rows.shape[0] < self.unknowns and done < words.size:
            most = self.unknowns + self.unknowns // 8 + 64  # some depend on others
            part = slice(done, done + most - self.rows.shape[0])
            added = self._rows_of(words[part], masks[part], parities[part])
            self.rows, self.pivots = _eliminated(np.vstack([self.rows, added]), self.unknowns)
            if self.pivots.size and self.pivots[-1] == self.unknowns:
                return -1
            done = part.stop
        return self.unknowns - self.rows.shape[0]

    def solution(self) -> _Words:
        """The state, once there is a row for each unknown."""
        solved = np.zeros(self.width, np.uint64)
        _flip(solved, self.unknowns)
        for column in range(self.unknowns - 1, -1, -1):
            if int(np.bitwise_xor.reduce(self.rows[column] & solved)).bit_count() & 1:
                _flip(solved, column)
        bits = np.unpackbits(solved.astype("<u8").view(np.uint8), bitorder="little")
        state, column = np.zeros(_STATE, np.uint32), 1
        for index, word in enumerate(self.words, 1):
            unknown = sum(int(bits[column + i]) << bit for i, bit in enumerate(word.unknown))
            column += len(word.unknown)
            for bit in range(32):
                value = ((word.sums[bit] & unknown).bit_count() + word.ones[bit]) & 1
                state[index] |= np.uint32(value << bit)
        state = _untemper(state)
        # The lower bits of word 0 follow from the recurrence that made the last word.
        mixed = int(state[-1] ^ state[_MIDDLE - 1])
        mixed = (mixed ^ _MATRIX) << 1 | 1 if mixed >> 31 else mixed << 1
        state[0] = int(bits[0]) << 31 | mixed & 0x7FFFFFFF
        return state

    def _first_symbols(self) -> _Rows:
        """Rows of the bits of the words 0 to 623 before tempering, [624, 32, width]."""
        tempered = np.zeros((_STATE, 32, self.width), np.uint64)
        column = 1
        for index, word in enumerate(self.words, 1):
            for bit in range(32):
                for place, unknown in enumerate(word.unknown, column):
                    if word.sums[bit] >> unknown & 1:
                        _flip(tempered[index, bit], place)
                if word.ones[bit]:
                    _flip(tempered[index, bit], self.unknowns)
            column += len(word.unknown)
        symbols = np.zeros_like(tempered)
        for bit, holds in enumerate(_untemper(_UNITS).tolist()):
            for place in range(32):
                if holds >> place & 1:
                    symbols[:, place] ^= tempered[:, bit]
        _flip(symbols[0, 31], 0)
        return symbols

    def _next_symbols(self, count: int) -> None:
        """The recurrence, on rows: `count` words, up to 227, in place of those 624 before."""
        place = np.arange(self._next, self._next + count) % _STATE
        after = self._symbols[(place + 1) % _STATE]
        new = self._symbols[(place + _MIDDLE) % _STATE]
        new[:, 30] ^= self._symbols[place, 31]
        new[:, :30] ^= after[:, 1:31]
        for bit in range(32):
            if _MATRIX >> bit & 1:
                new[:, bit] ^= after[:, 0]
        self._symbols[place] = new
        self._next += count

    def _rows_of(self, words: _Words, masks: _Words, parities: NDArray[np.uint8]) -> _Rows:
        rows = np.zeros((words.size, self.width), np.uint64)
        rows[:, self.unknowns // 64] = parities.astype(np.uint64) << np.uint64(self.unknowns % 64)
        holds = _parity(_temper(_UNITS) & masks[:, None])  # [n, 32], before tempering
        done = 0
        while done < words.size:
            until = int(np.searchsorted(words, self._next))
            at = words[done:until] % _STATE
            for bit in range(32):
                rows[done:until] ^= self._symbols[at, bit] * holds[done:until, bit, None]
            done = until
            if done < words.size:
                self._next_symbols(min(_STATE - _MIDDLE, int(words[done]) + 1 - self._next))
        return rows


def _flip(row: _Rows, column: int) -> None:
    row[column // 64] ^= np.uint64(1 << column % 64)


def _eliminated(rows: _Rows, unknowns: int) -> tuple[_Rows, NDArray[np.int64]]:
    """Rows in echelon form without those that are zero, and the column in which each begins."""
    done, pivots = 0, []
    for first in range(0, unknowns + 1, _STRIP):
        item, shift = first // 64, np.uint64(first % 64)
        strips = (rows[:, item] >> shift).astype(np.uint8)  # the lower 8 bits
        leading: dict[int, int] = {}
        for bit in range(min(_STRIP, unknowns + 1 - first)):
            found = np.flatnonzero(strips[done:] >> bit & 1)
            if not found.size:
                continue
            other = done + int(found[0])
            rows[[done, other]], strips[[done, other]] = rows[[other, done]], strips[[other, done]]
            for known, row in leading.items():
                if int(rows[done, item] >> shift) >> known & 1:
                    rows[done] ^= rows[row]
            for row in leading.values():
                if int(rows[row, item] >> shift) >> bit & 1:
                    rows[row] ^= rows[done]
            # Only the strips, from which the next leading rows are known; the rows follow below.
            strips[done + 1 :] ^= (strips[done + 1 :] >> bit & 1) * strips[done]
            leading[bit] = done
            pivots.append(first + bit)
            done += 1
        _add_leading(rows, done, item, shift, leading)
    return rows[:done], np.array(pivots, np.int64)


def _add_leading(
    rows: _Rows, done: int, item: int, shift: np.uint64, leading: dict[int, int]
) -> None:
    """Adds leading rows to those from `done` on such that these have zeros where they begin."""
    table = np.zeros((1 << _STRIP, rows.shape[1] - item), np.uint64)
    for value in range(1, 1 << _STRIP):
        lowest = (value & -value).bit_length() - 1
        table[value] = table[value & (value - 1)]
        if lowest in leading:
            table[value] ^= rows[leading[lowest], item:]
    rows[done:, item:] ^= table[(rows[done:, item] >> shift).astype(np.uint8)]
