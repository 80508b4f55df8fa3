"""Items as they are (spec/pemn.md section 7.1)."""

from __future__ import annotations

import numpy as np

from pemncodec.coders.lossless import Effort, Items, LosslessCoder
from pemncodec.errors import CorruptError


def encode_raw(items: Items, _dtype: str, _effort: Effort = "usual") -> bytes:
    """Unsigned items [n] to their bytes."""
    return items.tobytes()


def decode_raw(data: bytes | memoryview, count: int, itemsize: int) -> Items:
    """Items, unsigned little-endian [count].

    Raises:
        CorruptError: `data` has another size.
    """
    if len(data) != count * itemsize:
        raise CorruptError(
            "section", f"{len(data)} bytes of raw values, expected {count * itemsize}"
        )
    return np.frombuffer(bytes(data), f"<u{itemsize}")  # which is aligned


RAW = LosslessCoder(0, "raw", encode_raw, decode_raw)
