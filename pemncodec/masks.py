"""Mask ↔ section bytes; the smallest of the coders is chosen per mask (spec/pemn.md section 6).

A section is one byte that names the coder, then what the coder wrote.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pemncodec.coders.packed import decode_packed, encode_packed, packed_size
from pemncodec.coders.rans import decode_rans, encode_rans
from pemncodec.errors import CorruptError, TruncatedError

CONSTANT, PACKED, RANS = 0, 1, 2
CODER_NAMES = {CONSTANT: "constant", PACKED: "packed", RANS: "rans"}


def order0_bits(ones: int, count: int) -> float:
    """n·H(p): bits that independent coding of a mask needs at its density."""
    if ones in (0, count):
        return 0.0
    p = ones / count
    return -count * (p * math.log2(p) + (1 - p) * math.log2(1 - p))


def encode_mask(bits: npt.NDArray[np.bool_]) -> bytes:
    """bool [n] to a section."""
    ones = int(np.count_nonzero(bits))
    if ones in (0, bits.size):
        return bytes([CONSTANT, int(ones > 0)])
    packed = encode_packed(bits)
    if order0_bits(ones, bits.size) < 8 * len(packed):
        coded = encode_rans(np.frombuffer(packed, np.uint8), bits.size)
        if len(coded) < len(packed):
            return bytes([RANS]) + coded
    return bytes([PACKED]) + packed


def decode_mask(section: bytes, count: int) -> npt.NDArray[np.uint8]:
    """Packed bits, uint8 [ceil(count / 8)], of a section.

    Raises:
        TruncatedError: the section is too short.
        CorruptError: the section is not what `encode_mask` can have written.
    """
    coder = mask_coder(section)
    body = section[1:]
    if coder == PACKED:
        return decode_packed(body, count)
    if coder == RANS:
        if not count:
            raise CorruptError("section", "a rANS-coded mask of no weights")
        return decode_rans(body, count)
    if body not in (b"\0", b"\1"):
        raise CorruptError("section", "a constant mask is one byte, 0 or 1")
    packed = np.full(packed_size(count), 0xFF * body[0], np.uint8)
    if count % 8:
        packed[-1] &= (1 << count % 8) - 1
    return packed


def mask_coder(section: bytes) -> int:
    """The coder that a section names."""
    if not section:
        raise TruncatedError("truncated", "an empty mask section")
    if section[0] not in CODER_NAMES:
        raise CorruptError("unknown-field", f"unknown mask coder {section[0]}")
    return section[0]
