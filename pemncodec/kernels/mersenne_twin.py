"""Words of MT19937 (spec/pemn.md section 5.5): the twin of mersenne.c."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer

STATE = 624


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


def _generator(state: NDArray[np.uint32]) -> np.random.MT19937:
    """NumPy's own MT19937, at a state all of whose words are used up."""
    generator = np.random.MT19937(0)
    generator.state = {
        "bit_generator": "MT19937",
        "state": {"key": state.copy(), "pos": STATE},
    }
    return generator
