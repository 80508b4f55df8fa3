"""Arguments of the kernels' twins, and what all twins have in common.

A twin has the name, the arguments, the results and the errors of a function of the C extension. A
buffer is any C-contiguous object with the buffer protocol; only its bytes count, not its shape or
dtype. All functions raise TypeError for an argument of another type and ValueError("buffer") for a
buffer that is not contiguous, or read-only where it is written. The other ValueErrors are named
under each function; of several reasons, the first in the order of the arguments counts, then the
order under "Raises". Buffers that are written must not overlap the others.
"""

from __future__ import annotations

import operator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Buffer: TypeAlias = bytes | bytearray | memoryview | NDArray[Any]


def view_buffer(buffer: Buffer, *, writable: bool = False) -> NDArray[np.uint8]:
    """The bytes of a buffer, not copied."""
    try:
        view = np.frombuffer(buffer, np.uint8)
    except (BufferError, ValueError):
        raise ValueError("buffer") from None
    if writable and not view.flags.writeable:
        raise ValueError("buffer")
    return view


def check_integer(value: int, name: str, least: int = 0, most: int = 2**64 - 1) -> int:
    """The number, if it is in a range; `name` is what the error says otherwise."""
    value = operator.index(value)
    if not least <= value <= most:
        raise ValueError(name)
    return value
