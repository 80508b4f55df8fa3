"""Few distinct values: each once, ascending as bits, then one index an item (spec section 7.3).

What a random vector that was tiled and then shuffled needs: the values cost nothing any more.
"""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from pemncodec.coders.lossless import Effort, Items, LosslessCoder
from pemncodec.coders.planes import decode_planes, encode_planes
from pemncodec.errors import CorruptError, TruncatedError

MAX_VALUES = 256
_BLOCK = 1 << 14  # items that are looked up at one time: they stay in the cache


def encode_palette(
    items: npt.NDArray[np.unsignedinteger], effort: Effort = "usual"
) -> bytearray | None:
    """Unsigned items [n] to bytes; None when there are more than 256 distinct ones."""
    values = np.unique(items[:_BLOCK])
    if not 0 < values.size <= MAX_VALUES:
        return None
    indices = np.empty(items.size, np.uint8)
    for start in range(0, items.size, _BLOCK):
        block = items[start : start + _BLOCK]
        found = np.searchsorted(values, block)
        missing = values.take(found, mode="clip") != block
        if missing.any():
            more = np.union1d(values, block[missing])
            if more.size > MAX_VALUES:
                return None
            indices[:start] = np.searchsorted(more, values).astype(np.uint8)[indices[:start]]
            values, found = more, np.searchsorted(more, block)
        indices[start : start + _BLOCK] = found
    little: bytes = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    body = encode_planes(indices, rotate=False, effort=effort)
    body[:0] = bytes([values.size - 1]) + little
    return body


def decode_palette(
    data: bytes | memoryview, count: int, itemsize: int
) -> npt.NDArray[np.unsignedinteger]:
    """Items, unsigned little-endian [count].

    Raises:
        TruncatedError: `data` is too short.
        CorruptError: values that do not ascend, or an index behind the last value.
    """
    if not data:
        raise TruncatedError("truncated", "an empty palette")
    end = 1 + itemsize * (data[0] + 1)
    if len(data) < end:
        raise TruncatedError("truncated", "the palette's values are cut off")
    values = np.frombuffer(data[1:end], f"<u{itemsize}")
    if (values[1:] <= values[:-1]).any():
        raise CorruptError("section", "the palette's values do not ascend")
    indices = decode_planes(data[end:], count, 1, rotate=False)
    if count and int(indices.max()) >= values.size:
        raise CorruptError("section", "an index behind the palette's last value")
    items: npt.NDArray[np.unsignedinteger] = values[indices]
    return items


def _encode(items: Items, _dtype: str, effort: Effort, _pool: Executor | None) -> bytearray | None:
    return encode_palette(items, effort)


PALETTE = LosslessCoder(3, "palette", _encode, decode_palette)
