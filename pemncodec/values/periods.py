"""The shortest period of a vector of which only some items are known.

A length is a period when no two known items whose distance is a multiple of it differ. So a pair of
known items that differ refutes every divisor of its distance, and the search looks for few pairs
that refute many lengths. It takes one bit of every value ("above the median or not"). An item that
is known to be above, and a packed vector of those that are known not to be, refute millions of
lengths by one shift and one `or`. What a few hundred such items leave is folded and compared, item
by item, so the answer is exact; a length that fails there yields the two items that differ, and
the next bit is whether a value equals one of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pemncodec.contents import Mask, PackedMask

Bits = npt.NDArray[np.unsignedinteger]

_BLOCK = 1 << 16  # items that are compared at one time: they stay in the cache
_FIRST_BLOCK = 1 << 12  # lengths that are no period mostly differ early
_HEAD = 16  # of how many parts the first is looked at before all
_FEW = 64  # lengths that are as well compared one by one
_BATCH = 64  # items between looks at how many lengths are left
_MOST_ITEMS = 4096
_PRIMES = [p for p in range(2, 1000) if all(p % q for q in range(2, min(p, 32)))]


def shortest_period(bits: Bits, known: Mask) -> int:
    """The smallest L such that known items whose positions are equal modulo L are equal.

    Args:
        bits: unsigned [n].
        known: bool [n]; other items match anything.

    Returns:
        L, 1 to n (1 when n is 0); n when nothing repeats: no value occurs twice.
    """
    size = bits.size
    if not known.any():
        return 1
    if _all_differ(bits, known):
        return size
    if (head := size // _HEAD) >= _BLOCK:
        # A period of all items is one of the first ones. So their shortest, if it is one of all, is
        # the shortest of all, found in a fraction of the time and memory.
        length = shortest_period(bits[:head], known[:head])
        if length <= head // 2 and _contradiction(bits, known, length) is None:
            return length
    refuted = np.zeros(size, np.bool_)  # by length
    refuted[0] = True
    chosen: Callable[[Bits], Mask] = partial(np.less, _splitting_value(bits, known))
    pair: tuple[int, ...] = ()
    while True:
        _refute_distances(refuted, bits, known, chosen, pair)
        _refute_divisors(refuted)
        compared = 0
        for length in _left(refuted):
            if refuted[length::length].any():
                continue
            found = _contradiction(bits, known, length)
            if found is None:
                return length
            pair, cost = found
            compared += cost
            if compared > size // 2:  # it pays to look for what else this pair refutes
                break
        else:
            return size
        # The rarer value tells more: it differs from nearly all others.
        rarer = min((bits[item] for item in pair), key=lambda value: _count_of(bits, value))
        chosen = partial(np.equal, rarer)


def fold(bits: Bits, known: Mask, length: int) -> Bits:
    """The items of one period, [length]; 0 where none is known.

    Args:
        bits: unsigned [n].
        known: bool [n].
        length: a period of the known items, at most n.
    """
    if length == bits.size:
        return bits & ~ones_where_not(known, bits.dtype)
    if length < _BLOCK:
        return _extremes_of_short(bits, known, length)[1]
    starts = range(0, length, _BLOCK)
    return np.concatenate(
        [_extremes(bits, known, length, at, min(at + _BLOCK, length))[1] for at in starts]
    )


def ones_where_not(mask: Mask, dtype: np.dtype[Any]) -> Bits:
    """[n] of all bits where a mask is False, else 0. To select by bits takes no branches."""
    ones: Bits = mask.astype(dtype) - dtype.type(1)
    return ones


def _all_differ(bits: Bits, known: Mask) -> bool:
    """Whether no value occurs twice; a look at the start mostly settles it."""
    for end in (min(_BLOCK, bits.size), bits.size):
        values = bits[:end][known[:end]]
        values.sort()
        if (values[1:] == values[:-1]).any():
            return False
    return True


def _splitting_value(bits: Bits, known: Mask) -> int:
    """About half of the known values are larger; a few are, where there are at least two values."""
    places = np.random.default_rng(0).integers(0, bits.size, 4096)
    sample = bits[places][known[places]]
    sample = np.sort(sample if sample.size else bits[known])
    smaller = sample[sample < sample[-1]]
    return int(min(sample[(sample.size - 1) // 2], smaller[-1] if smaller.size else sample[-1]))


def _left(refuted: Mask) -> Iterator[int]:
    for start in range(0, refuted.size, _BLOCK):
        for index in np.flatnonzero(~refuted[start : start + _BLOCK]).tolist():
            yield start + index


def _count_of(bits: Bits, value: Any) -> int:
    return sum(int(np.count_nonzero(bits[part] == value)) for part in _parts(bits.size))


def _parts(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))


def _refute_distances(
    refuted: Mask, bits: Bits, known: Mask, chosen: Callable[[Bits], Mask], first: Iterable[int]
) -> None:
    """Marks distances from known items that are chosen to known ones that are not.

    Those are taken from the smaller of the two sets, `first` first.
    """
    size = refuted.size
    ahead, behind = _sets(bits, known, chosen), _sets(bits[::-1], known[::-1], chosen)
    smaller = min((0, 1), key=lambda which: _count(ahead[which]))
    others_ahead, others_behind = _shifted(ahead[1 - smaller]), _shifted(behind[1 - smaller])
    some = ahead[smaller]
    # Items near the ends reach most distances.
    ends = np.stack([_ones(some, size), size - 1 - _ones(behind[smaller], size)], axis=1)
    items = [item for item in first if some[item // 8] >> item % 8 & 1] + ends.reshape(-1).tolist()
    marks = np.packbits(refuted, bitorder="little")
    left = size - _count(marks)
    for start in range(0, len(items), _BATCH):
        for item in items[start : start + _BATCH]:
            for planes, at in ((others_ahead, item), (others_behind, size - 1 - item)):
                reached = planes[at % 8][at // 8 :]
                np.bitwise_or(marks[: reached.size], reached, out=marks[: reached.size])
        before, left = left, size - _count(marks)
        if left <= _FEW or before - left < before / 100:
            break
    for part in _parts(size):
        refuted[part] = _unpacked(marks, part)


def _sets(bits: Bits, known: Mask, chosen: Callable[[Bits], Mask]) -> tuple[PackedMask, PackedMask]:
    """Known items that are chosen, and those that are not, as packed bits."""
    some, others = np.empty((2, (bits.size + 7) // 8), np.uint8)
    for part in _parts(bits.size):
        own, packed = chosen(bits[part]), slice(part.start // 8, (part.stop + 7) // 8)
        some[packed] = np.packbits(known[part] & own, bitorder="little")
        others[packed] = np.packbits(known[part] & ~own, bitorder="little")
    return some, others


def _count(packed: PackedMask) -> int:
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


def _unpacked(packed: PackedMask, part: slice) -> Mask:
    own = packed[part.start // 8 : (part.stop + 7) // 8]
    return np.unpackbits(own, count=part.stop - part.start, bitorder="little").view(np.bool_)


def _ones(packed: PackedMask, size: int) -> npt.NDArray[np.int64]:
    """Places of the first ones."""
    found = [np.empty(0, np.int64)]
    for part in _parts(size):
        found.append(part.start + np.flatnonzero(_unpacked(packed, part)))
        if sum(map(len, found)) >= _MOST_ITEMS // 2:
            break
    return np.concatenate(found)[: _MOST_ITEMS // 2]


def _shifted(packed: PackedMask) -> list[PackedMask]:
    """Packed bits, the first 0 to 7 of them dropped."""
    following = np.append(packed[1:], np.uint8(0))
    later = [packed >> np.uint8(n) | following << np.uint8(8 - n) for n in range(1, 8)]
    return [packed, *later]


def _refute_divisors(refuted: Mask) -> None:
    """Marks lengths of which a multiple is marked, by one prime after the other.

    Lengths that only a factor above all primes of the list would mark are few and stay.
    """
    for prime in _PRIMES:
        stop = -(-refuted.size // prime)
        while stop > 1:  # from above, so that powers of the prime count
            start = -(-stop // prime)
            refuted[start:stop] |= refuted[start * prime : (stop - 1) * prime + 1 : prime]
            stop = start


def _contradiction(bits: Bits, known: Mask, length: int) -> tuple[tuple[int, int], int] | None:
    """Two known items a multiple of `length` apart that differ, and how many were compared."""
    size = bits.size
    if length < _FIRST_BLOCK:
        column = _first_difference(*_extremes_of_short(bits, known, length))
        return None if column is None else (_pair(bits, known, length, column), size)
    rows = -(-size // length)
    start, block = 0, _FIRST_BLOCK
    last = min(length, size - length)  # columns behind it have one item
    while start < last:
        stop = min(start + block, last)
        column = _first_difference(*_extremes(bits, known, length, start, stop))
        if column is not None:
            return _pair(bits, known, length, start + column), stop * rows
        start, block = stop, min(2 * block, _BLOCK)
    return None


def _first_difference(lowest: Bits, highest: Bits) -> int | None:
    differs = lowest < highest
    column = int(differs.argmax())
    return column if differs[column] else None


def _pair(bits: Bits, known: Mask, length: int, column: int) -> tuple[int, int]:
    items, items_known = bits[column::length], known[column::length]
    first = int(items_known.argmax())
    second = int((items_known & (items != items[first])).argmax())
    return column + first * length, column + second * length


def _extremes(bits: Bits, known: Mask, length: int, start: int, stop: int) -> tuple[Bits, Bits]:
    """Smallest and largest known items of columns `start` to `stop` of rows of `length`.

    In a column without a known item the smallest is larger than the largest, which is 0.
    """
    lowest = np.full(stop - start, np.iinfo(bits.dtype).max, bits.dtype)
    highest = np.zeros(stop - start, bits.dtype)
    for row in range(start, bits.size, length):
        part = bits[row : row + stop - start]
        unknown = ones_where_not(known[row : row + stop - start], bits.dtype)
        low, high = lowest[: part.size], highest[: part.size]
        np.minimum(low, part | unknown, out=low)
        np.maximum(high, part & ~unknown, out=high)
    return lowest, highest


def _extremes_of_short(bits: Bits, known: Mask, length: int) -> tuple[Bits, Bits]:
    """As `_extremes`, of all columns; first by rows of many periods, which are faster."""
    periods = _BLOCK // length
    lowest, highest = _extremes(bits, known, length * periods, 0, length * periods)
    return lowest.reshape(periods, length).min(axis=0), highest.reshape(periods, length).max(axis=0)
