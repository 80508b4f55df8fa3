"""What the conformance vectors are put together from: the bytes of each part of a file."""

from __future__ import annotations

import json
import random
import struct
import zlib
from functools import partial
from typing import Any

import numpy as np
import zstandard

from pemncodec.coders.buckets import value_buckets
from pemncodec.coders.mask_coder import MaskContext
from pemncodec.coders.mixing import encode_mixing
from pemncodec.coders.rans import encode_rans
from pemncodec.coders.varint import encode_varint

SIGNATURE = bytes.fromhex("89504d4e0d0a1a0a")


def frame(content: bytes, **parameters: Any) -> bytes:
    options = {"level": 19, "write_checksum": False, "write_content_size": True} | parameters
    return zstandard.ZstdCompressor(**options).compress(content)


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def pack(header: Any, *sections: bytes, **changed: Any) -> bytes:
    """A file; `changed` replaces parts of its front."""
    text = header if isinstance(header, bytes) else canonical(header)
    coded = changed.get("frame", frame(text))
    table = b"".join(encode_varint(len(s)) + struct.pack("<I", zlib.crc32(s)) for s in sections)
    table = changed.get("table", table)
    sizes = changed.get("header_size", len(text)), len(coded), changed.get("table_size", len(table))
    front = SIGNATURE + bytes(changed.get("version", (0, 1))) + struct.pack("<III", *sizes)
    front += coded + table
    crc = zlib.crc32(front) ^ changed.get("crc", 0)
    return front + struct.pack("<I", crc) + b"".join(sections)


def masked(
    mask: bytes,
    shape: list[int],
    *,
    prototype: Any = None,
    stored: bytes | None = None,
    **more: Any,
) -> bytes:
    """A file of one masked tensor on one prototype, seeded unless `stored` is its section."""
    header: dict[str, Any] = {
        "tensors": {"name": ["w"], "kind": ["masked"], "shape": [shape]},
        "masks": {"section": [0]},
        "sections": [["mask", 1]],
    }
    sections = [mask]
    if stored is None:
        header["prototypes"] = {"kind": ["seeded"], "length": [more.pop("length", 10)]}
        header["seeded"] = prototype or {"seed": ["0123456789abcdef"]}
    else:
        header["prototypes"] = {"length": [more.pop("length")]}
        header["stored"] = {"section": [1]} | (prototype or {})
        header["sections"].append(["prototype", 1])
        sections.append(stored)
    for key, value in more.items():
        header[key] = header.get(key, {}) | value
    return pack(header, *sections)


def dense(section: bytes, shape: list[int], dtype: str = "float32", **more: Any) -> bytes:
    """A file of one dense tensor."""
    header = {
        "tensors": {"name": ["b"], "dtype": [dtype], "shape": [shape]},
        "dense": {"section": [0]},
        "sections": [["dense", 1]],
    }
    return pack(header | more, section)


def constant(value: str, shape: list[int], dtype: str = "float32", **more: Any) -> bytes:
    """A file of one constant."""
    tensors = {"name": ["c"], "kind": ["constant"], "dtype": [dtype], "shape": [shape]}
    return pack({"tensors": tensors, "constant": {"value": [value]}} | more)


def floats(*values: float, code: str = "f") -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)


def rans(n: int, ones: set[int]) -> bytes:
    bits = bytearray(-(-n // 8))
    for i in ones:
        bits[i // 8] |= 1 << i % 8
    return b"\2" + encode_rans(np.frombuffer(bytes(bits), np.uint8), n)


def mixing(shapes: list[list[int]], values: Any = None, offset: int = 0, seed: int = 0) -> bytes:
    """A section of masks that follow their rows and, where they are known, their values."""
    some = random.Random(seed)
    buckets = None if values is None else partial(value_buckets, values)
    masks, contexts = [], []
    for shape in shapes:
        context = MaskContext(tuple(shape), buckets, offset)
        known = context.weight_buckets(0, int(np.prod(shape)))
        kept = {row: some.random() / 2 for row in range(shape[0] if shape else 1)}
        size = len(known) // len(kept)
        odds = [kept[i // size] + abs(int(b) - 16) / 32 for i, b in enumerate(known)]
        masks.append(np.array([some.random() < p for p in odds]))
        contexts.append(context)
    return b"\3" + encode_mixing(masks, contexts)[0]


def shared_masks(
    section: bytes, shapes: list[list[int]], prototype: dict[str, Any], *stored: bytes, **more: Any
) -> bytes:
    """A file of masked tensors whose masks share a section."""
    header = {
        "tensors": {
            "name": [f"w{i}" for i in range(len(shapes))],
            "kind": ["masked"] * len(shapes),
            "shape": shapes,
        },
        "masks": {"section": [0] * len(shapes)},
        "sections": [["mask", 1], *([["prototype", 1]] if stored else [])],
    }
    return pack(header | prototype | more, section, *stored)


def affine(
    exact: list[tuple[int, float]] | None = None, scale: float = 0.1, offset: float = -1.5
) -> bytes:
    """A section of two elements with one row, and (gap, value) kept exactly."""
    exact = exact or []
    gaps = b"".join(encode_varint(gap) for gap, _ in exact)
    front = b"\6\0" + floats(scale, offset) + encode_varint(len(exact)) + gaps
    return front + floats(*(value for _, value in exact)) + b"\0\x03\xff"


SHORT_FRAME = bytes.fromhex("28b52ffd2003110000") + b"{}"  # says that it has 3 bytes
SKIPPABLE_FRAME = bytes.fromhex("502a4d1802000000") + b"{}"
CHECKED_FRAME = frame(b"{}", write_checksum=True)
ONES = b"\0\1"
PACKED_10 = bytes([1, 0b10110101, 0b01])  # of ten weights
DENSE_1 = {"sections": [["dense", 1]], "dense": {"section": [0]}}
TWO = b"\0" + floats(0.5, -0.25)
SEEDED_10 = {"prototypes": {"kind": ["seeded"], "length": [10]}}
