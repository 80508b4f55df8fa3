"""Trained tensors ↔ section bytes, lossless for every dtype (spec/pemn.md section 7).

A section holds the items of a *group* of tensors of one dtype, one after the other: small tensors
of one kind (all running means, say) compress better together. It is one byte that names the
coder, then what the coder wrote; the smallest of the coders is chosen per group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pemncodec.coders.palette import decode_palette, encode_palette
from pemncodec.coders.planes import decode_planes, encode_planes
from pemncodec.contents import CARRIERS, Array, DenseTensor
from pemncodec.errors import CorruptError, TruncatedError

RAW, PLANES, ROTATED_PLANES, PALETTE = 0, 1, 2, 3
CODER_NAMES = {RAW: "raw", PLANES: "planes", ROTATED_PLANES: "rotated planes", PALETTE: "palette"}

_GROUPED_BYTES = 1 << 16  # a larger tensor has enough statistics of its own
_GROUP_BYTES = 1 << 20  # bounds what reading one small tensor decodes
_PALETTE_SAMPLE = 4096
_FLOATS = {"float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"}


def group_tensors(tensors: Iterable[DenseTensor]) -> list[list[DenseTensor]]:
    """Which tensors share a section: small ones of one dtype and last name component."""
    groups: list[list[DenseTensor]] = []
    open_groups: dict[tuple[str, str], list[DenseTensor]] = {}
    for tensor in tensors:
        key = (tensor.dtype, tensor.name.rpartition(".")[2])
        group = open_groups.get(key)
        grouped = tensor.data.nbytes <= _GROUPED_BYTES
        if (
            not grouped
            or group is None
            or sum(t.data.nbytes for t in group) + tensor.data.nbytes > _GROUP_BYTES
        ):
            group = []
            groups.append(group)
            if grouped:
                open_groups[key] = group
        group.append(tensor)
    return groups


def encode_dense(arrays: Sequence[Array], dtype: str) -> bytes:
    """Arrays of the carrier dtype of `dtype` to one section."""
    items = np.concatenate([_items(array, dtype) for array in arrays])
    candidates = [
        bytes([RAW]) + items.tobytes(),
        bytes([PLANES]) + encode_planes(items, rotate=False),
    ]
    if dtype in _FLOATS:
        candidates.append(bytes([ROTATED_PLANES]) + encode_planes(items, rotate=True))
    if np.unique(items[:_PALETTE_SAMPLE]).size <= 256:
        palette = encode_palette(items)
        if palette is not None:
            candidates.append(bytes([PALETTE]) + palette)
    return min(candidates, key=len)


def decode_dense(section: bytes, count: int, dtype: str) -> Array:
    """All items of a section, [count], carrier dtype of `dtype`.

    Raises:
        TruncatedError: the section is too short.
        CorruptError: the section is not what `encode_dense` can have written.
    """
    carrier = CARRIERS[dtype]
    width = _item_width(dtype)
    items_count = count * carrier.itemsize // width
    coder, body = dense_coder(section), section[1:]
    items: npt.NDArray[Any]
    if coder == RAW:
        if len(body) != items_count * width:
            raise CorruptError(
                "section", f"{len(body)} bytes of raw values, expected {items_count * width}"
            )
        items = np.frombuffer(body, f"<u{width}")
    elif coder == PALETTE:
        items = decode_palette(body, items_count, width)
    else:
        items = decode_planes(body, items_count, width, rotate=coder == ROTATED_PLANES)
    data = items.view(carrier)
    if dtype == "bool" and data.size and int(data.max()) > 1:
        raise CorruptError("section", "a bool that is neither 0 nor 1")
    return data


def dense_coder(section: bytes) -> int:
    """The coder that a section names."""
    if not section:
        raise TruncatedError("truncated", "an empty dense section")
    if section[0] not in CODER_NAMES:
        raise CorruptError("unknown-field", f"unknown dense coder {section[0]}")
    return section[0]


def _item_width(dtype: str) -> int:
    """Bytes of what is coded as one item: a complex number is two."""
    itemsize = CARRIERS[dtype].itemsize
    return itemsize // 2 if dtype.startswith("complex") else itemsize


def _items(array: Array, dtype: str) -> npt.NDArray[np.unsignedinteger]:
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(f"<u{_item_width(dtype)}")
