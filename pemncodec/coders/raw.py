"""Items as they are (spec/pemn.md section 7.1)."""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np

from pemncodec.coders.lossless import Effort, Items, LosslessCoder
from pemncodec.errors import CorruptError


def encode_raw(items: Items) -> bytearray:
    """Unsigned items [n] to their bytes."""
    return bytearray(items.data)


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


def _encode(items: Items, _dtype: str, _effort: Effort, _pool: Executor | None) -> bytearray:
    return encode_raw(items)


RAW = LosslessCoder(0, "raw", _encode, decode_raw)
