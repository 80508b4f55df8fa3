"""SHA-256 of decoded values, however they are stored (spec/pemn.md section 3.5)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from pemncodec.coders.canonical_json import encode_json
from pemncodec.contents import Array
from pemncodec.errors import ShardError

PIECE_BYTES: Final = 1 << 22
"""Values are hashed piece by piece, so that threads can share them."""


def digest_of(value: Any) -> str:
    """Of JSON: 64 hexadecimal digits."""
    return hashlib.sha256(encode_json(value)).hexdigest()


def piece_digest(values: Array) -> bytes:
    """Of C-ordered values of at most `PIECE_BYTES`."""
    return hashlib.sha256(values.reshape(-1).view(np.uint8).data).digest()


def digest_of_pieces(pieces: Iterable[bytes]) -> str:
    """Of values, from what `piece_digest` says of their pieces."""
    return hashlib.sha256(b"".join(pieces)).hexdigest()


def values_digest(values: Array) -> str:
    """Of values in their carrier dtype, or of packed bits."""
    flat = np.ascontiguousarray(values).reshape(-1)
    step = PIECE_BYTES // flat.itemsize
    pieces = (flat[start : start + step] for start in range(0, flat.size, step))
    return digest_of_pieces(map(piece_digest, pieces))


def prototype_digest(dtype: str, values: Array) -> str:
    """Of a prototype's values [length], in the carrier dtype of `dtype`."""
    return digest_of(
        {
            "dtype": dtype,
            "kind": "prototype",
            "length": values.size,
            "values": values_digest(values),
        }
    )


def check_digest(dtype: str, values: Array, digest: str) -> None:
    """Raises ShardError where a prototype's values are not those that another file names."""
    if prototype_digest(dtype, values) != digest:
        raise ShardError(
            "shard", "its prototype has other values: it is not the file that belongs to this one"
        )
