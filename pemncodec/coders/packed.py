"""Packed bits: weight i is bit i % 8 of byte i // 8, least significant first (spec section 6.2)."""

from __future__ import annotations

import numpy as np

from pemncodec.coders.mask_coder import Body, static_coder
from pemncodec.contents import Mask, PackedMask
from pemncodec.errors import CorruptError, TruncatedError


def packed_size(count: int) -> int:
    """Bytes of `count` packed bits."""
    return (count + 7) // 8


def encode_packed(bits: Mask) -> bytes:
    """bool [n] to ceil(n / 8) bytes; padding bits are 0."""
    return np.packbits(bits, bitorder="little").tobytes()


def decode_packed(data: Body, count: int) -> PackedMask:
    """Packed bits of `count` weights, checked.

    Raises:
        TruncatedError: `data` is too short.
        CorruptError: `data` is too long, or a padding bit is set.
    """
    size = packed_size(count)
    if len(data) < size:
        raise TruncatedError("truncated", f"{len(data)} bytes of packed bits, expected {size}")
    if len(data) > size:
        raise CorruptError("trailing", f"{len(data)} bytes of packed bits, expected {size}")
    if count % 8 and data[-1] >> count % 8:
        raise CorruptError("section", "a padding bit of packed bits is set")
    return np.frombuffer(data, np.uint8)


def unpack(packed: PackedMask, count: int) -> Mask:
    """bool [count] from packed bits."""
    return np.unpackbits(packed, count=count, bitorder="little").view(np.bool_)


def count_ones(packed: PackedMask) -> int:
    """Ones among packed bits; those behind the last weight are zeros."""
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


PACKED = static_coder(1, "packed", encode_packed, decode_packed)
