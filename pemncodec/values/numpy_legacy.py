"""Words of MT19937 → what NumPy's legacy generator makes of them (spec/pemn.md section 5.5).

`np.random.seed` spreads 32 bits to the same words as torch does, so that these are further
distributions of the same prototypes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pemncodec.contents import Floats, TorchPrototype
from pemncodec.values.mersenne import WordStream

_Doubles = npt.NDArray[np.float64]
_PART = 1 << 16  # values that are made at one time: they stay in the cache


def is_numpy(prototype: TorchPrototype) -> bool:
    """Whether NumPy drew its values, not torch."""
    return prototype.distribution.startswith("numpy-")


def words_each(prototype: TorchPrototype) -> int:
    """How many words a value takes."""
    return 2 if prototype.distribution == "numpy-uniform" else 1


def numpy_values(stream: WordStream, prototype: TorchPrototype, start: int, stop: int) -> Floats:
    """Values `start` to `stop` of a prototype, float32 [stop - start]."""
    out = np.empty(stop - start, np.float32)
    for first in range(start, stop, _PART):
        last = min(first + _PART, stop)
        part = out[first - start : last - start]
        if prototype.distribution == "numpy-signs":
            words = stream.words(prototype.skip + first, last - first)
            part[:] = (words & np.uint32(1)).astype(np.float32) * 2 - 1
        else:
            span = prototype.high - prototype.low
            part[:] = prototype.low + span * fractions(stream, prototype.skip, first, last)
    return out


def fractions(stream: WordStream, skip: int, start: int, stop: int) -> _Doubles:
    """Multiples of 2^-53 from 0 up to 1, number `start` to `stop`, float64 [stop - start]."""
    upper, lower = stream.words(skip + 2 * start, 2 * (stop - start)).reshape(-1, 2).T
    made: _Doubles = (upper >> np.uint32(5)) * 67108864.0 + (lower >> np.uint32(6))
    return made * 2.0**-53
