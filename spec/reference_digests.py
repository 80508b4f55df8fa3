"""Digests of the reference decoder (3.5 of pemn.md)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

PIECE = 1 << 22


def of_bytes(data: bytes) -> str:
    """The digest of bytes."""
    pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
    return hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).hexdigest()


def of_json(value: Any) -> str:
    """The digest of JSON: "SHA-256 of the bytes that writers produce for it"."""
    return hashlib.sha256(text_of(value)).hexdigest()


def text_of(value: Any) -> bytes:
    """3.4: "Writers produce one byte sequence for each value"."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def of_prototype(dtype: str, width: int, values: list[int]) -> str:
    """The digest of a prototype whose values are bits of `width` bytes."""
    data = b"".join(value.to_bytes(width, "little") for value in values)
    fields = {"dtype": dtype, "kind": "prototype", "length": len(values), "values": of_bytes(data)}
    return of_json(fields)


def of_tensor(
    row: dict[str, Any], tensor: tuple[str, list[int], bytes], mask: list[int] | None
) -> str:
    """The digest of a tensor: its row, what it decodes to, and its mask if it has one."""
    if row["kind"] == "alias":
        return of_json({"kind": "alias", "name": row["name"], "target": row["target"]})
    dtype, shape, items = tensor
    fields = {"dtype": dtype, "kind": "dense", "name": row["name"], "shape": shape}
    fields["values"] = of_bytes(items)
    if mask is not None:
        bits = [mask[start : start + 8] for start in range(0, len(mask), 8)]
        packed = bytes(sum(bit << i for i, bit in enumerate(byte)) for byte in bits)
        fields |= {"kind": "masked", "mask": of_bytes(packed)}
    return of_json(fields)


def of_model(inference_only: bool, manifest: Any, tensors: list[str]) -> str:
    """The digest of a file, or of a sharded model."""
    manifest = None if manifest is None else of_json(manifest)
    return of_json({"inference_only": inference_only, "manifest": manifest, "tensors": tensors})
