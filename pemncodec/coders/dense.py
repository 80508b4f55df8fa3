"""Trained tensors ↔ section bytes, lossless for every dtype, or shorter (spec/pemn.md section 7).

A section holds the items of a *group* of tensors of one dtype, one after the other: small tensors
of one kind (all running means, say) compress better together. It is one byte that names the
coder, then what the coder wrote; the smallest of the coders is chosen per group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import ROUND_CEILING, Context
from typing import Any

import numpy as np
import numpy.typing as npt

from pemncodec.coders.affine import (
    decode_affine,
    decode_parameters,
    encode_affine,
    encode_parameters,
    has_rows,
)
from pemncodec.coders.palette import decode_palette, encode_palette
from pemncodec.coders.planes import decode_planes, encode_planes
from pemncodec.contents import CARRIERS, Array, DenseMode, DenseTensor, numel
from pemncodec.errors import CorruptError, EncodeError, TruncatedError
from pemncodec.values.rounding import one_nan, round_to, widen

RAW, PLANES, ROTATED_PLANES, PALETTE, FLOAT16, BFLOAT16, AFFINE = 0, 1, 2, 3, 4, 5, 6
CODER_NAMES = {
    RAW: "raw",
    PLANES: "planes",
    ROTATED_PLANES: "rotated planes",
    PALETTE: "palette",
    FLOAT16: "fp16",
    BFLOAT16: "bf16",
    AFFINE: "q8",
}
_SHORTER = {FLOAT16: "float16", BFLOAT16: "bfloat16"}
_SHORTER_CODERS = {"fp16": FLOAT16, "bf16": BFLOAT16}

_GROUPED_BYTES = 1 << 16  # a larger tensor has enough statistics of its own
_GROUP_BYTES = 1 << 20  # bounds what reading one small tensor decodes
_PALETTE_SAMPLE = 4096
_FLOATS = {"float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"}


def group_tensors(tensors: Iterable[DenseTensor]) -> list[list[DenseTensor]]:
    """Which tensors share a section: small ones of one dtype, mode and last name component."""
    groups: list[list[DenseTensor]] = []
    open_groups: dict[tuple[str, str, bool, str], list[DenseTensor]] = {}
    for tensor in tensors:
        in_rows = tensor.mode == "q8" and has_rows(tensor.shape)
        key = (tensor.dtype, tensor.mode, in_rows, tensor.name.rpartition(".")[2])
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


def encode_dense(arrays: Sequence[Array], dtype: str, mode: DenseMode = "lossless") -> bytes:
    """Arrays of the carrier dtype of `dtype` to one section.

    Args:
        arrays: [*shape] each; float32, and finite, unless `mode` is "lossless".
        dtype: of all of them.
        mode: what may be lost.
    """
    if mode == "q8":
        return bytes([AFFINE]) + _encode_affine(arrays)
    if mode != "lossless":
        coder = _SHORTER_CODERS[mode]
        shorter = [round_to(array.reshape(-1), _SHORTER[coder]) for array in arrays]
        return bytes([coder]) + encode_dense(shorter, _SHORTER[coder])
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


def decode_dense(section: bytes, shapes: Sequence[tuple[int, ...]], dtype: str) -> Array:
    """All items of a section, one tensor after the other, in the carrier dtype of `dtype`.

    Raises:
        TruncatedError: the section is too short.
        CorruptError: the section is not what `encode_dense` can have written.
    """
    coder, body = dense_coder(section), section[1:]
    if coder > PALETTE:
        if dtype != "float32" or (coder != AFFINE and dense_coder(body) > PALETTE):
            raise CorruptError("section", f"{CODER_NAMES[coder]} of what is not float32")
        if coder == AFFINE:
            return _decode_affine(body, shapes)
        values = decode_dense(body, shapes, _SHORTER[coder])
        return one_nan(widen(values, _SHORTER[coder]))
    carrier = CARRIERS[dtype]
    width = _item_width(dtype)
    items_count = sum(map(numel, shapes)) * carrier.itemsize // width
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


def _encode_affine(arrays: Sequence[Array]) -> bytes:
    coded = [encode_affine(array) for array in arrays]
    starts = np.cumsum([0, *(array.size for array in arrays[:-1])])
    codes, scales, offsets = (np.concatenate([part[i] for part in coded]) for i in range(3))
    outliers = np.concatenate([p[3] + first for p, first in zip(coded, starts, strict=True)])
    exact = np.concatenate([a.reshape(-1)[p[3]] for a, p in zip(arrays, coded, strict=True)])
    in_rows = has_rows(arrays[0].shape)
    parameters = encode_parameters(in_rows, scales, offsets, outliers, exact)
    return parameters + encode_dense([codes], "uint8")


def _decode_affine(body: bytes, shapes: Sequence[tuple[int, ...]]) -> Array:
    known = decode_parameters(body, shapes)
    codes = decode_dense(body[known.end :], shapes, "uint8")
    values, first_row, first = np.empty(codes.size, np.float32), 0, 0
    for shape, rows in zip(shapes, known.rows, strict=True):
        own, last = slice(first_row, first_row + rows), first + numel(shape)
        values[first:last] = decode_affine(codes[first:last], known.scales[own], known.offsets[own])
        first_row, first = first_row + rows, last
    values[known.outliers] = known.exact
    return values


def shortened(array: Array, mode: DenseMode, name: str) -> Array:
    """A float32 array [*shape] as it comes back from a file in that mode.

    Raises:
        EncodeError: a value that the mode cannot hold, or a NaN.
    """
    if mode == "lossless":
        return array
    if not np.isfinite(array).all():
        raise EncodeError(f"{name} holds an infinity or NaN, which {mode} does not keep")
    section = encode_dense([array], "float32", mode)
    values = decode_dense(section, [array.shape], "float32").reshape(array.shape)
    if not np.isfinite(values).all():
        raise EncodeError(f"{name}: {np.abs(array).max():g} is too large for {mode}")
    return values


def largest_errors(section: bytes, arrays: Sequence[Array]) -> list[float]:
    """What a section has lost of each of its arrays; 0 where it is lossless.

    Args:
        section: of `arrays`.
        arrays: [*shape] each; float32 and finite where something is lost.

    Returns:
        The largest absolute difference for each array, rounded up to two decimal digits.
    """
    if dense_coder(section) <= PALETTE:
        return [0.0] * len(arrays)
    values = decode_dense(section, [array.shape for array in arrays], "float32")
    parts = np.split(values, np.cumsum([array.size for array in arrays[:-1]]))
    # In binary64, where the difference of two binary32 numbers cannot overflow.
    return [
        _rounded_up(float(np.abs(part - array.reshape(-1).astype(np.float64)).max(initial=0)))
        for part, array in zip(parts, arrays, strict=True)
    ]


def _rounded_up(number: float) -> float:
    return float(Context(prec=2, rounding=ROUND_CEILING).create_decimal_from_float(number))


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
