"""Masks whose bits are all the same, as one byte (spec/pemn.md section 6.1)."""

from __future__ import annotations

import numpy as np

from pemncodec.coders.mask_coder import Body, static_coder
from pemncodec.coders.packed import packed_size
from pemncodec.contents import Mask, PackedMask
from pemncodec.errors import CorruptError


def encode_constant(bits: Mask) -> bytes | None:
    """bool [n] to one byte, 0 or 1; None when the bits differ. A mask of no weights is 0."""
    ones = int(np.count_nonzero(bits))
    return bytes([int(ones > 0)]) if ones in (0, bits.size) else None


def decode_constant(body: Body, count: int) -> PackedMask:
    """Packed bits of `count` weights.

    Raises:
        CorruptError: `body` is not one byte, 0 or 1.
    """
    if body not in (b"\0", b"\1"):
        raise CorruptError("section", "a constant mask is one byte, 0 or 1")
    packed = np.full(packed_size(count), 0xFF * body[0], np.uint8)
    if count % 8:
        packed[-1] &= (1 << count % 8) - 1
    return packed


CONSTANT = static_coder(0, "constant", encode_constant, decode_constant)
