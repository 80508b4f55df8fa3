"""What the values of a tensor say of words → a pattern to look for among those of a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pemncodec.values.draws import BITS, Draws

_REACH = 1 << 14  # words of a tensor that are looked at
MOST = 64  # draws that are compared
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
    chosen = near[np.argsort(draws.width[near], kind="stable")[:MOST]]
    upper = np.uint32(32 - BITS)
    low, width = (of[chosen].astype(np.uint32) << upper for of in (draws.low, draws.width))
    bits = float(draws.bits[chosen].sum())
    width |= np.uint32((1 << upper) - 1)
    return Pattern(draws.words[chosen], low, width, bits, draws.turn)
