"""A state of MT19937 → the seed that it comes from, as torch seeds its generator (spec 5.5)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pemncodec import kernels

_STATE = 624
_INVERSE = pow(1812433253, -1, 1 << 32)
_MOST_AT_ONCE = 1 << 16  # blocks in one call


def seed_before(state: npt.NDArray[np.uint32], most: int) -> tuple[int, int] | None:
    """Steps back from a state to where the generator was seeded.

    Args:
        state: uint32 [624], words before tempering.
        most: how many words may have been drawn before the first of these.

    Returns:
        The 32-bit seed, and how many words were drawn before the first of the state; None if it is
        no seed's so few words before.
    """
    window, stepped = state.copy(), 0
    # A state is made of the seed's own 624 words, which are not drawn.
    while (left := most + _STATE - stepped) > 0:
        blocks = min(-(-left // _STATE), _MOST_AT_ONCE)
        back = kernels.mersenne_rewind(window, blocks)
        if back >= 0:
            skip = stepped + back - _STATE
            first = (int(window[1]) - 1) * _INVERSE % (1 << 32)
            return (first ^ first >> 30, skip) if 0 <= skip <= most else None
        stepped += blocks * _STATE
    return None
