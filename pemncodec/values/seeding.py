"""A state of MT19937 → the seed that it comes from, as torch seeds its generator (spec 5.5)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_STATE, _MIDDLE = 624, 397
_BACK = _MIDDLE - 2  # words that can be found at one time: none of them needs another
_MATRIX = np.uint32(0x9908B0DF)
_MULTIPLIER = 1812433253
_INVERSE = pow(_MULTIPLIER, -1, 1 << 32)
_ONE, _THIRTY, _TOP = np.uint32(1), np.uint32(30), np.uint32(1 << 31)
_Words = npt.NDArray[np.uint32]


def seed_before(state: _Words, most: int) -> tuple[int, int] | None:
    """Steps back from a state to where the generator was seeded.

    Args:
        state: uint32 [624], words before tempering.
        most: how many words may have been drawn before the first of these.

    Returns:
        The 32-bit seed, and how many words were drawn before the first of the state; None if it is
        no seed's so few words before.
    """
    window, stepped = state, 0
    # A state is made of the seed's own 624 words, which are not drawn.
    while stepped < most + _STATE + _BACK:
        at = _seeding_in(window)
        if at is not None:
            skip = stepped - at - _STATE
            first = (int(window[at + 1]) - 1) * _INVERSE % (1 << 32)
            return (first ^ first >> 30, skip) if 0 <= skip <= most else None
        window = np.concatenate([_words_before(window), window[: _STATE + 1]])
        stepped += _BACK
    return None


def _words_before(window: _Words) -> _Words:
    """The 395 words before a window of at least 624."""
    # Mixed of the highest bit of a word and the lower bits of the next, from 396 words before on.
    mixed = window[_STATE - _BACK - 1 : _STATE] ^ window[_MIDDLE - _BACK - 1 : _MIDDLE]
    odd = mixed >> np.uint32(31)
    joined = ((mixed ^ odd * _MATRIX) << _ONE) | odd
    return (joined[1:] & _TOP) | (joined[:-1] & ~_TOP)


def _seeding_in(window: _Words) -> int | None:
    """Where in a window the 624 words of a seed begin; of the first only a bit need be right."""
    before = window[1:-1]
    rest = window[2:] - (before ^ (before >> _THIRTY)) * np.uint32(_MULTIPLIER)
    expected = np.arange(2, _STATE, dtype=np.uint32)
    for at in np.flatnonzero(rest[: window.size - _STATE + 1] == 2).tolist():
        if (rest[at : at + _STATE - 2] == expected).all():
            return int(at)
    return None
