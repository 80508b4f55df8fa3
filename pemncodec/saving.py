"""An open .pemn file → a safetensors file, a few tensors in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final

import numpy as np

from pemncodec.contents import CARRIERS, Array
from pemncodec.errors import EncodeError
from pemncodec.format.in_turn import bytes_of, tensors_in_turn
from pemncodec.format.reader import PemnFile

Values = Callable[[list[str]], Iterable[Array]]
"""Names of tensors to their values, [*shape] in the carrier dtype, in the same order."""

_DTYPES: Final = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}
_METADATA: Final = "__metadata__"
_ALIGNED: Final = 8  # bytes, to a multiple of which the header is filled up


def plain_names(file: PemnFile) -> list[str]:
    """Names of a state dict: all tensors but buffers that are not persistent."""
    passing = (file.manifest or {}).get("nonpersistent", ())
    return [name for name in file.keys() if name not in passing]  # noqa: SIM118


def safetensors_pieces(
    file: PemnFile,
    values: Values | None = None,
    progress: Callable[[float], None] | None = None,
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file of a file's state dict, a tensor or a part of one at a time.

    Tied tensors are there under each of their names. Every section is checked by the time of the
    last piece.

    Args:
        file: open.
        values: makes the tensors' values; None makes them on the CPU, some tensors at a time.
        progress: called with the share of all bytes that is done.

    Raises:
        EncodeError: a name or dtype that safetensors does not have.
        DecodeError: a damaged file.
    """
    # Wide items first, so that all of them are aligned.
    names = sorted(plain_names(file), key=lambda name: -CARRIERS[file.dtype(name)].itemsize)
    yield _header(file, names)
    file.expect()
    total, done = sum(bytes_of(file, name) for name in names), 0
    parts: Iterable[Array]
    if values is None:
        parts = chain.from_iterable(tensors_in_turn(file, names))
    else:
        parts = (np.ascontiguousarray(array).reshape(-1) for array in values(names))
    for part in parts:
        if part.size:
            yield part.view(np.uint8).data
        done += part.nbytes
        del part  # before the next one is made
        if progress is not None and total:
            progress(done / total)
    file.verify_rest()


def _header(file: PemnFile, names: list[str]) -> bytes:
    header: dict[str, object] = {_METADATA: {**file.metadata, "format": "pt"}}
    start = 0
    for name in names:
        dtype = file.dtype(name)
        if name == _METADATA or dtype not in _DTYPES:
            what = f"the name {name}" if name == _METADATA else f"{dtype}, as {name} is"
            raise EncodeError(f"safetensors cannot hold {what}; use .pt")
        stop = start + bytes_of(file, name)
        header[name] = {
            "dtype": _DTYPES[dtype],
            "shape": file.shape(name),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text
