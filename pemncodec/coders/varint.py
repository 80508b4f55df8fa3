"""Unsigned LEB128 integers of up to 64 bits, shortest form only (spec section 3.2)."""

from __future__ import annotations

from pemncodec.errors import CorruptError, TruncatedError


def encode_varint(value: int) -> bytes:
    """Seven bits a byte, least significant first; the top bit says that more follow."""
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def decode_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """Value, and the position behind it.

    Raises:
        TruncatedError: `data` ends within the integer.
        CorruptError: more than 64 bits, or not the shortest form.
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise TruncatedError("truncated", "an integer is cut off")
        byte, position = data[position], position + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift and not byte:
                raise CorruptError("section", "an integer is not in its shortest form")
            if value >> 64:
                break
            return value, position
    raise CorruptError("section", "an integer of more than 64 bits")
