"""All seeds of MT19937 of which equations hold: the twin of mersenne_seeds.c."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer

_Words = NDArray[np.uint32]

_STATE, _MIDDLE = 624, 397
_MATRIX = np.uint32(0x9908B0DF)
_ONE, _TOP = np.uint32(1), np.uint32(1 << 31)
_LAST = 1 << 28  # above all words
_AT_ONCE = _STATE - _MIDDLE  # words that are replaced together: none of them is made of another
_LEAST = 14  # equations about a place
_PLACES = 64
_SEEDS = 1 << 14  # that are tried together


def mersenne_pull_back(words: Buffer, masks: Buffer, out: Buffer) -> None:
    """Turns equations over bits of words into ones over the 624 words that a seed is spread to.

    Every bit of a word is a sum of bits of these, whatever the seed is.

    Args:
        words: n uint32 below 2^28, ascending, counted from the first word that is drawn. Time and
            the largest of them grow together.
        masks: n uint32: the bits of the word, after tempering, whose sum an equation is about.
        out: uint32 [624, n]: for each of the words before all others, the bits of it that each
            equation is about.

    Raises:
        ValueError: "words" not ascending or too large; "masks" or "out" of another size.
    """
    indices, sums = view_buffer(words), view_buffer(masks)
    target = view_buffer(out, writable=True)
    if indices.size % 4:
        raise ValueError("words")
    at = indices.view(np.uint32).astype(np.int64)
    if (at[1:] < at[:-1]).any() or (at >= _LAST).any():
        raise ValueError("words")
    if sums.size != indices.size:
        raise ValueError("masks")
    if target.size != _STATE * indices.size:
        raise ValueError("out")
    before = _before_tempering(sums.view(np.uint32))
    slots = np.zeros((_STATE, at.size), np.uint32)
    end = int(at[-1]) + 1 if at.size else 0
    while end > 0:
        start = max(end - _AT_ONCE, 0)
        given = np.flatnonzero((at >= start) & (at < end))
        slots[at[given] % _STATE, given] ^= before[given]
        place = np.arange(start, end)
        mask = slots[place % _STATE]
        both = mask << _ONE
        slots[place % _STATE] = 0
        odd = np.bitwise_count(mask & _MATRIX).astype(np.uint32) & _ONE
        # A word and the next one may share a slot with one that is replaced along with them.
        slots[(place + 1) % _STATE] ^= (both & ~_TOP) | odd
        slots[(place + _MIDDLE) % _STATE] ^= mask
        slots[place % _STATE] ^= both & _TOP
        end = start
    target.view(np.uint32)[:] = slots.reshape(-1)


def mersenne_seeds(masks: Buffer, parities: Buffer, places: int, first: int, count: int) -> bytes:
    """Looks for seeds of which all equations about one of several places hold.

    Args:
        masks: uint32 [places, 624, n], for each place as `mersenne_pull_back` writes them.
        parities: [places, n] bytes, of which the lowest bit counts. n is 14 or more.
        places: 1 to 64.
        first: the first seed, 0 to 2^32 - 1.
        count: of seeds, up to the last one of 32 bits.

    Returns:
        uint64 [hits], ascending: the place times 2^32, plus the seed.

    Raises:
        ValueError: "places" or "first" out of range; "masks" of another size; "parities" of another
            number or too few; "count" out of range.
    """
    tables, values = view_buffer(masks), view_buffer(parities)
    places = check_integer(places, "places", 1, _PLACES)
    first = check_integer(first, "first", most=2**32 - 1)
    count = check_integer(count, "count")
    if tables.size != 4 * _STATE * values.size:
        raise ValueError("masks")
    if values.size % places or values.size // places < _LEAST:
        raise ValueError("parities")
    if count > 2**32 - first:
        raise ValueError("count")
    sums = tables.view(np.uint32).reshape(places, _STATE, -1)
    ones = (values & np.uint8(1)).reshape(places, -1)
    hits = [
        (np.uint64(place << 32) | _seeds_with(sums[place], ones[place], start, stop))
        for place in range(places)
        for start in range(first, first + count, _SEEDS)
        for stop in (min(start + _SEEDS, first + count),)
    ]
    return np.concatenate([np.empty(0, np.uint64), *hits]).tobytes()


def _seeds_with(
    masks: _Words, parities: NDArray[np.uint8], start: int, stop: int
) -> NDArray[np.uint64]:
    """Those of one place, ascending."""
    seeds = np.arange(start, stop, dtype=np.uint32)
    for equation in range(0, parities.size, 7):  # most seeds fail a few
        part = slice(equation, equation + 7)
        given, words = np.zeros((masks[:, part].shape[1], seeds.size), np.uint32), seeds.copy()
        for step in range(_STATE):
            if step:
                words = (words ^ (words >> np.uint32(30))) * np.uint32(1812433253)
                words += np.uint32(step)
            given ^= words & masks[step, part, None]
        odd = np.bitwise_count(given) & np.uint8(1)
        seeds = seeds[(odd == parities[part, None]).all(axis=0)]
    return seeds.astype(np.uint64)


def _before_tempering(masks: _Words) -> _Words:
    """The bits before tempering whose sum the bits of a mask after it are."""
    units = _ONE << np.arange(32, dtype=np.uint32)
    words = units ^ (units >> np.uint32(11))
    words ^= (words << np.uint32(7)) & np.uint32(0x9D2C5680)
    words ^= (words << np.uint32(15)) & np.uint32(0xEFC60000)
    words ^= words >> np.uint32(18)
    odd = np.bitwise_count(words & masks[:, None]).astype(np.uint32) & _ONE
    before: _Words = np.bitwise_or.reduce(odd * units, axis=1)
    return before
