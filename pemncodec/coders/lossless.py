"""What a coder of dense items is (spec/pemn.md section 7)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Items = npt.NDArray[np.unsignedinteger]

Effort = Literal["guess", "usual", "most"]
"""How hard coders try. guess: about the size that comes of it, at 20 MB a second; usual: what pays
for its time; most: whatever saves a byte."""


@dataclass(frozen=True, slots=True, eq=False)
class LosslessCoder:
    """A way to code items bit for bit.

    Attributes:
        id: first byte of its sections.
        name: as reports and the spec call it.
        encode: unsigned items [n] of 1, 2, 4 or 8 bytes, the dtype of their tensors, how hard to
            try, and a pool that may share the work, to a body; None where the coder does not apply.
        decode: a body, n and the bytes of an item to unsigned little-endian [n]; raises
            `DecodeError` for a body that `encode` cannot have written.
    """

    id: int
    name: str
    encode: Callable[[Items, str, Effort, Executor | None], bytearray | None]
    decode: Callable[[bytes | memoryview, int, int], Items]
