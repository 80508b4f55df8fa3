"""Zstandard frames of bytes that have two values, written by hand: one bit for each byte.

Zstandard's own encoder looks for repeats in such bytes. It finds many, which cost more bits than
they save, and takes a thousand times as long.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOCK = 1 << 17  # bytes of content in a block, at most
_LEAST = 1 << 10  # from which literals have four streams with sizes of 18 bits
_MOST_VALUE = 128  # of which a Huffman tree is told without another code


def encode_two_values(data: npt.NDArray[np.uint8]) -> bytes | None:
    """One frame of bytes [n] (RFC 8878); None where they have not two values, or are few."""
    if data.size < _LEAST:
        return None
    low, high = int(data.min()), int(data.max())
    if not 0 <= low < high <= _MOST_VALUE:
        return None
    upper = data == high
    if np.count_nonzero(data == low) + np.count_nonzero(upper) != data.size:
        return None
    blocks = np.array_split(upper, -(-data.size // _BLOCK))
    tree = _tree(low, high)
    # A frame of any size, of one window of 128 KiB: content size in 8 bytes, no checksum.
    frame = [_MAGIC, bytes([0b11 << 6, 7 << 3]), struct.pack("<Q", data.size)]
    for index, block in enumerate(blocks):
        body = _literals(block, tree) + b"\0"  # and no sequences
        last = index == len(blocks) - 1
        frame.append(struct.pack("<I", len(body) << 3 | 2 << 1 | last)[:3] + body)
    return b"".join(frame)


def _tree(low: int, high: int) -> bytes:
    """The description of a Huffman tree in which both have one bit (RFC 8878, 4.2.1)."""
    weights = [0] * high + [0] * (high % 2)  # that of the last value follows from the others
    weights[low] = 1
    pairs = zip(weights[::2], weights[1::2], strict=True)
    return bytes([127 + high, *(first << 4 | second for first, second in pairs)])


def _literals(upper: npt.NDArray[np.bool_], tree: bytes) -> bytes:
    """A section of literals in four streams (RFC 8878, 3.1.1.3.1)."""
    quarter = -(-upper.size // 4)
    streams = [_stream(upper[start : start + quarter]) for start in range(0, 4 * quarter, quarter)]
    sizes = struct.pack("<3H", *map(len, streams[:3]))
    body = tree + sizes + b"".join(streams)
    header = 2 | 3 << 2 | upper.size << 4 | len(body) << 22
    return header.to_bytes(5, "little") + body


def _stream(upper: npt.NDArray[np.bool_]) -> bytes:
    """One bit for each item, the last one first, behind it a one: decoders read from the end."""
    return np.packbits(np.append(upper[::-1], True), bitorder="little").tobytes()
