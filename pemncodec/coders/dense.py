"""Trained tensors ↔ section bytes, lossless for every dtype, or shorter (spec/pemn.md section 7).

A section holds the items of a *group* of tensors of one dtype, one after the other: small tensors
of one kind (all running means, say) compress better together. It is one byte that names the
coder, then what the coder wrote; the smallest of the coders is chosen per group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from decimal import ROUND_CEILING, Context

import numpy as np

from pemncodec.coders.affine import Q8, AffinePart, decode_parameters, has_rows, split_affine
from pemncodec.coders.lossless import Effort, Items, LosslessCoder
from pemncodec.coders.palette import PALETTE
from pemncodec.coders.planes import PLANES, ROTATED_PLANES
from pemncodec.coders.raw import RAW, encode_raw
from pemncodec.coders.shortening import BF16, FP16, Shortening
from pemncodec.contents import CARRIERS, Array, DenseMode, DenseTensor, numel
from pemncodec.errors import CorruptError, EncodeError, TruncatedError

LOSSLESS_CODERS: tuple[LosslessCoder, ...] = (RAW, PLANES, ROTATED_PLANES, PALETTE)
"""Every coder of items; of those that are equally small the first is taken."""

SHORTENINGS: tuple[Shortening, ...] = (FP16, BF16, Q8)

_LOSSLESS_OF_ID = {coder.id: coder for coder in LOSSLESS_CODERS}
_SHORTENING_OF_ID = {shortening.id: shortening for shortening in SHORTENINGS}
SHORTENING_OF_MODE = {shortening.mode: shortening for shortening in SHORTENINGS}

_GROUPED_BYTES = 1 << 16  # a larger tensor has enough statistics of its own
_SAMPLE_ITEMS = 1 << 14
_CHUNKS = 16  # that the items of a sample are taken from
_DOUBT = 1e-3  # of all bytes, by which a sample may mislead
_GROUP_BYTES = 1 << 20  # bounds what reading one small tensor decodes


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


def encode_dense(
    arrays: Sequence[Array],
    dtype: str,
    mode: DenseMode = "lossless",
    effort: Effort = "usual",
    pool: Executor | None = None,
) -> bytearray:
    """Arrays of the carrier dtype of `dtype` to one section.

    Args:
        arrays: [*shape] each; float32, and finite, unless `mode` is "lossless".
        dtype: of all of them.
        mode: what may be lost.
        effort: how hard to try.
        pool: shares the work.
    """
    if mode != "lossless":
        shortening = SHORTENING_OF_MODE[mode]
        head, inner = shortening.encode(arrays)
        section = encode_dense(inner, shortening.inner_dtype, effort=effort, pool=pool)
        section[:0] = bytes([shortening.id]) + head
        return section
    parts = [_items(array, dtype) for array in arrays]
    items = parts[0] if len(parts) == 1 else np.concatenate(parts)
    best, least, kept = RAW, items.nbytes, None
    # One after the other, since bodies may be as large as the items.
    for coder in _promising(items, dtype):
        body = coder.encode(items, dtype, effort, pool) if coder is not RAW else None
        if body is not None and len(body) < least:
            best, least, kept = coder, len(body), body
        del body
    section = encode_raw(items) if kept is None else kept
    section.insert(0, best.id)
    return section


def _promising(items: Items, dtype: str) -> Iterable[LosslessCoder]:
    """Coders that may make the fewest bytes of items; of many, by a sample of them."""
    if items.size <= 4 * _SAMPLE_ITEMS:
        return LOSSLESS_CODERS
    chunks = np.array_split(items, _CHUNKS)
    sample = np.concatenate([chunk[: _SAMPLE_ITEMS // _CHUNKS] for chunk in chunks])
    bodies = {coder: coder.encode(sample, dtype, "guess", None) for coder in LOSSLESS_CODERS}
    sizes = {coder: len(body) for coder, body in bodies.items() if body is not None}
    most = min(sizes.values()) + _DOUBT * sample.nbytes
    return [RAW, *(coder for coder in sizes if coder is not RAW and sizes[coder] <= most)]


def decode_dense(
    section: bytes | bytearray, shapes: Sequence[tuple[int, ...]], dtype: str
) -> Array:
    """All items of a section, one tensor after the other, in the carrier dtype of `dtype`.

    Raises:
        TruncatedError: the section is too short.
        CorruptError: the section is not what `encode_dense` can have written.
    """
    name = dense_coder(section)
    shortening = _SHORTENING_OF_ID.get(section[0])
    if shortening is None:
        return _decode_lossless(section, shapes, dtype)
    inner = bytes(section[1:])
    if dtype != "float32":
        raise CorruptError("section", f"{name} of what is not float32")
    end, restore = shortening.decode(inner, shapes)
    # Its inner dtype is not float32, so that shortened sections do not nest.
    return restore(decode_dense(inner[end:], shapes, shortening.inner_dtype))


def decode_affine_parts(
    section: bytes | bytearray, shapes: Sequence[tuple[int, ...]]
) -> list[AffinePart]:
    """Codes and parameters of each tensor of a section that `dense_coder` calls q8.

    Raises:
        TruncatedError, CorruptError: as `decode_dense`.
    """
    body = bytes(section[1:])
    known = decode_parameters(body, shapes)
    codes = decode_dense(body[known.end :], shapes, Q8.inner_dtype)
    return split_affine(known, codes, shapes)


def _decode_lossless(
    section: bytes | bytearray, shapes: Sequence[tuple[int, ...]], dtype: str
) -> Array:
    carrier, width = CARRIERS[dtype], _item_width(dtype)
    count = sum(map(numel, shapes)) * carrier.itemsize // width
    data = _LOSSLESS_OF_ID[section[0]].decode(memoryview(section)[1:], count, width).view(carrier)
    if dtype == "bool" and data.size and int(data.max()) > 1:
        raise CorruptError("section", "a bool that is neither 0 nor 1")
    return data


def shortened(array: Array, mode: DenseMode, name: str) -> Array:
    """A float32 array [*shape] as it comes back from a file in that mode.

    Raises:
        EncodeError: a value that the mode cannot hold, or a NaN.
    """
    if mode == "lossless":
        return array
    if not np.isfinite(array).all():
        raise EncodeError(f"{name} holds an infinity or NaN, which {mode} does not keep")
    shortening = SHORTENING_OF_MODE[mode]
    head, inner = shortening.encode([array])
    _, restore = shortening.decode(head, [array.shape])
    values = restore(inner[0].reshape(-1)).reshape(array.shape)
    if not np.isfinite(values).all():
        raise EncodeError(f"{name}: {np.abs(array).max():g} is too large for {mode}")
    return values


def largest_errors(section: bytes | bytearray, arrays: Sequence[Array]) -> list[float]:
    """What a section has lost of each of its arrays; 0 where it is lossless.

    Args:
        section: of `arrays`.
        arrays: [*shape] each; float32 and finite where something is lost.

    Returns:
        The largest absolute difference for each array, rounded up to two decimal digits.
    """
    if is_lossless(section):
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


def is_lossless(section: bytes | bytearray) -> bool:
    """Whether a section gives back the bits that it was made of."""
    return section[0] in _LOSSLESS_OF_ID


def dense_coder(section: bytes | bytearray) -> str:
    """The name of the coder that a section names."""
    if not section:
        raise TruncatedError("truncated", "an empty dense section")
    if section[0] in _LOSSLESS_OF_ID:
        return _LOSSLESS_OF_ID[section[0]].name
    if section[0] in _SHORTENING_OF_ID:
        return _SHORTENING_OF_ID[section[0]].mode
    raise CorruptError("unknown-field", f"unknown dense coder {section[0]}")


def _item_width(dtype: str) -> int:
    """Bytes of what is coded as one item: a complex number is two."""
    itemsize = CARRIERS[dtype].itemsize
    return itemsize // 2 if dtype.startswith("complex") else itemsize


def _items(array: Array, dtype: str) -> Items:
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(f"<u{_item_width(dtype)}")
