"""Words of MT19937 from a seed, at any position (spec/pemn.md section 5.5).

Its words follow from each other, so a stream keeps states on the way: a slice then costs little
more than its own words. Prototypes of one seed share the stream for as long as somebody holds it.
"""

from __future__ import annotations

from threading import Lock
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from pemncodec import kernels

_STATE = 624  # words of a state, and made of it at one time
_BLOCKS_APART = 128  # states that are kept, at first
_MOST_KEPT = 1 << 16  # then every second one is dropped; 160 MB
_MOST_AT_ONCE = 1 << 16  # blocks in one call

_streams: WeakValueDictionary[int, WordStream] = WeakValueDictionary()
_streams_lock = Lock()


def stream_of(seed: int) -> WordStream:
    """The words of a seed; the same object as long as one is held."""
    with _streams_lock:
        stream = _streams.get(seed)
        if stream is None:
            stream = _streams[seed] = WordStream(seed)
        return stream


class WordStream:
    """The words of a 32-bit seed. Several threads may take some at once."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lock = Lock()
        self._apart = _BLOCKS_APART
        self._states: list[npt.NDArray[np.uint32]] = []  # after each so many blocks

    def words(self, start: int, count: int) -> npt.NDArray[np.uint32]:
        """Words `start` to `start + count`, uint32 [count]."""
        out = np.empty(count, np.uint32)
        state, skip = self.state(start)
        kernels.mersenne_words(state, skip, out)
        return out

    def state(self, start: int) -> tuple[npt.NDArray[np.uint32], int]:
        """A state before word `start`, uint32 [624], and how many words lie between, below 624."""
        block = start // _STATE
        with self._lock:
            state, at = self._state_before(block)
        return _advanced(state, block - at), start % _STATE

    def untempered(self, start: int) -> npt.NDArray[np.uint32]:
        """The state of words `start` to `start + 624` before they are tempered, uint32 [624]."""
        state, skip = self.state(start)
        first = _advanced(state, 1)
        return np.concatenate([first[skip:], _advanced(first, 1)[:skip]])

    def _state_before(self, block: int) -> tuple[npt.NDArray[np.uint32], int]:
        """The last state that is kept up to a block, and how many blocks are before it."""
        while block // self._apart > len(self._states):
            state = self._states[-1] if self._states else self._first_state()
            self._states.append(_advanced(state, self._apart))
            if len(self._states) == _MOST_KEPT:
                self._states = self._states[1::2]
                self._apart *= 2
        index = block // self._apart
        return (self._states[index - 1] if index else self._first_state()), index * self._apart

    def _first_state(self) -> npt.NDArray[np.uint32]:
        state = np.empty(_STATE, np.uint32)
        kernels.mersenne_seed(self._seed, state)
        return state


def _advanced(state: npt.NDArray[np.uint32], blocks: int) -> npt.NDArray[np.uint32]:
    state = state.copy()
    while blocks:
        step = min(blocks, _MOST_AT_ONCE)
        kernels.mersenne_advance(state, step)
        blocks -= step
    return state
