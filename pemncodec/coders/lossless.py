"""What a coder of dense items is (spec/pemn.md section 7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Items = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True, eq=False)
class LosslessCoder:
    """A way to code items bit for bit.

    Attributes:
        id: first byte of its sections.
        name: as reports and the spec call it.
        encode: unsigned items [n] of 1, 2, 4 or 8 bytes, and the dtype of their tensors, to a body;
            None where the coder does not apply.
        decode: a body, n and the bytes of an item to unsigned little-endian [n]; raises
            `DecodeError` for a body that `encode` cannot have written.
    """

    id: int
    name: str
    encode: Callable[[Items, str], bytes | None]
    decode: Callable[[bytes, int, int], Items]
