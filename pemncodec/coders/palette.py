"""Few distinct values: each once, ascending as bits, then one index an item (spec section 7.3).

What a random vector that was tiled and then shuffled needs: the values cost nothing any more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pemncodec.coders.lossless import Items, LosslessCoder
from pemncodec.coders.planes import decode_planes, encode_planes
from pemncodec.errors import CorruptError, TruncatedError

MAX_VALUES = 256
_SAMPLE = 4096


def encode_palette(items: npt.NDArray[np.unsignedinteger]) -> bytes | None:
    """Unsigned items [n] to bytes; None when there are more than 256 distinct ones."""
    values, indices = np.unique(items, return_inverse=True)
    if not 0 < values.size <= MAX_VALUES:
        return None
    little: bytes = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    coded_indices = encode_planes(indices.astype(np.uint8), rotate=False)
    return bytes([values.size - 1]) + little + coded_indices


def decode_palette(data: bytes, count: int, itemsize: int) -> npt.NDArray[np.unsignedinteger]:
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


def _encode_where_few(items: Items, _dtype: str) -> bytes | None:
    # Sorting a large tensor is not worth it where its start has many values already.
    return encode_palette(items) if np.unique(items[:_SAMPLE]).size <= MAX_VALUES else None


PALETTE = LosslessCoder(3, "palette", _encode_where_few, decode_palette)
