"""Words of MT19937 (spec/pemn.md section 5.5): the twin of mersenne.c."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer

STATE = 624
_MIDDLE = 397
_FREE = STATE - _MIDDLE + 1  # from here on, words of the state before follow from this one alone
_MATRIX = np.uint32(0x9908B0DF)
_MULTIPLIER = np.uint32(1812433253)
_TOP = np.uint32(1 << 31)
_Words = NDArray[np.uint32]


def mersenne_seed(seed: int, out: Buffer) -> None:
    """Writes the state of a seed before its first word.

    Args:
        seed: 0 to 2^32 - 1.
        out: 624 uint32 in native byte order, as all words here.

    Raises:
        ValueError: "seed" out of range; "out" of another length.
    """
    seed = check_integer(seed, "seed", most=2**32 - 1)
    view = view_buffer(out, writable=True)
    if view.size != 4 * STATE:
        raise ValueError("out")
    state = [seed]
    for i in range(1, STATE):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + i) & 0xFFFFFFFF)
    view.view(np.uint32)[:] = state


def mersenne_advance(state: Buffer, blocks: int) -> None:
    """Moves a state on, as making so many times 624 words does.

    Args:
        state: 624 uint32, changed in place.
        blocks: 0 to 2^16.

    Raises:
        ValueError: "blocks" out of range; "state" of another length.
    """
    view = view_buffer(state, writable=True)
    blocks = check_integer(blocks, "blocks", most=2**16)
    if view.size != 4 * STATE:
        raise ValueError("state")
    words = view.view(np.uint32)
    generator = _generator(words)
    generator.random_raw(STATE * blocks, output=False)
    words[:] = generator.state["state"]["key"]


def mersenne_rewind(state: Buffer, blocks: int) -> int:
    """Moves a state back, at most to where a seed was spread to its 624 words.

    Args:
        state: 624 uint32, changed in place: the words before as many blocks of 624, or those of the
            seed if they begin on the way. Of the first of these only the highest bit is the same.
        blocks: 0 to 2^16.

    Returns:
        How many words lie between the beginnings of the seed's words and of the given state, 1 to
        624 × blocks; -1 if the seed's are not on the way.

    Raises:
        ValueError: "blocks" out of range; "state" of another length.
    """
    view = view_buffer(state, writable=True)
    blocks = check_integer(blocks, "blocks", most=2**16)
    if view.size != 4 * STATE:
        raise ValueError("state")
    words = view.view(np.uint32)
    for block in range(1, blocks + 1):
        both = np.concatenate([np.empty(STATE, np.uint32), words])
        both[_FREE:STATE] = _before(both, _FREE, STATE)
        both[:_FREE] = _before(both, 0, _FREE)
        at = _seeding_in(both)
        words[:] = both[at or 0 : (at or 0) + STATE]
        if at is not None:
            return block * STATE - at
    return -1


def mersenne_words(state: Buffer, skip: int, out: Buffer) -> None:
    """Fills `out` with the words that follow a state and `skip` words more.

    Args:
        state: 624 uint32; stays as it is.
        skip: 0 to 623.
        out: any number of uint32.

    Raises:
        ValueError: "skip" out of range; "state" of another length; "out" is not a whole number of
            words.
    """
    before = view_buffer(state)
    skip = check_integer(skip, "skip", most=STATE - 1)
    view = view_buffer(out, writable=True)
    if before.size != 4 * STATE:
        raise ValueError("state")
    if view.size % 4:
        raise ValueError("out")
    words = _generator(before.view(np.uint32)).random_raw(skip + view.size // 4)
    view.view(np.uint32)[:] = words[skip:]


def _before(words: _Words, start: int, stop: int) -> _Words:
    """Words `start` to `stop`, of those behind them."""
    upper = _untwisted(
        words[start + STATE : stop + STATE] ^ words[start + _MIDDLE :][: stop - start]
    )
    lower = _untwisted(
        words[start + STATE - 1 : stop + STATE - 1] ^ words[start + _MIDDLE - 1 :][: stop - start]
    )
    return (upper & _TOP) | (lower & ~_TOP)


def _untwisted(twisted: _Words) -> _Words:
    """The highest bit of a word, and the others of the next one, of what was mixed of them."""
    odd = twisted >> np.uint32(31)
    return ((twisted ^ odd * _MATRIX) << np.uint32(1)) | odd


def _seeding_in(words: _Words) -> int | None:
    """Where in the first half the words of a seed begin, the last place; None if nowhere."""
    before = words[1:-1]
    rest = words[2:] - (before ^ (before >> np.uint32(30))) * _MULTIPLIER
    expected = np.arange(2, STATE, dtype=np.uint32)
    for at in np.flatnonzero(rest[:STATE] == 2)[::-1].tolist():
        if (rest[at : at + STATE - 2] == expected).all():
            return int(at)
    return None


def _generator(state: NDArray[np.uint32]) -> np.random.MT19937:
    """NumPy's own MT19937, at a state all of whose words are used up."""
    generator = np.random.MT19937(0)
    generator.state = {
        "bit_generator": "MT19937",
        "state": {"key": state.copy(), "pos": STATE},
    }
    return generator
