"""8-bit affine codes of float32 values: offset + code · scale (spec section 7.5).

A few values far from all others would make the steps between codes too large: those are kept
exactly. Batch norms have them where a channel hardly varies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pemncodec.coders.shortening import Shortening
from pemncodec.coders.varint import decode_varint, encode_varint
from pemncodec.contents import Array, Floats, bits_of, numel
from pemncodec.errors import CorruptError, TruncatedError

PER_ROW_ITEMS = 64  # from here a row's own scale and offset cost less than 1 bit an item

_MOST_OUTLIERS = 32  # of each end
_OUTLIER_BITS = 40

Codes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """What a group of tensors needs besides its codes.

    Attributes:
        rows: of each tensor; 1 unless rows have scales of their own.
        scales: float32 [rows of all].
        offsets: float32 [rows of all].
        outliers: int64 [outliers], ascending positions among the group's items.
        exact: float32 [outliers], the values there.
        end: where the codes begin.
    """

    rows: list[int]
    scales: Floats
    offsets: Floats
    outliers: Positions
    exact: Floats
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class AffinePart:
    """What a group keeps of one tensor.

    Attributes:
        codes: [*shape].
        scales: float32 [rows].
        offsets: float32 [rows].
        outliers: int64 [outliers], ascending positions among the tensor's items.
        exact: float32 [outliers], the values there.
    """

    codes: Codes
    scales: Floats
    offsets: Floats
    outliers: Positions
    exact: Floats


def has_rows(shape: tuple[int, ...]) -> bool:
    """Whether writers give each row of a tensor, its items of one first index, its own scale."""
    return len(shape) > 1 and numel(shape[1:]) >= PER_ROW_ITEMS


def encode_affine(arrays: Sequence[Floats]) -> tuple[bytes, list[Array]]:
    """Finite values [*shape] each, none empty, to parameters and codes, uint8 [n of all]."""
    coded = [quantize(array) for array in arrays]
    starts = np.cumsum([0, *(array.size for array in arrays[:-1])])
    codes, scales, offsets = (np.concatenate([part[i] for part in coded]) for i in range(3))
    outliers = np.concatenate([p[3] + first for p, first in zip(coded, starts, strict=True)])
    exact = np.concatenate([a.reshape(-1)[p[3]] for a, p in zip(arrays, coded, strict=True)])
    in_rows = has_rows(arrays[0].shape)
    return encode_parameters(in_rows, scales, offsets, outliers, exact), [codes]


def decode_affine(
    body: bytes, shapes: Sequence[tuple[int, ...]]
) -> tuple[int, Callable[[Codes], Floats]]:
    """Where the codes begin, and what makes values [n of all] of them.

    Raises:
        TruncatedError, CorruptError: as `decode_parameters`.
    """
    known = decode_parameters(body, shapes)

    def restore(codes: Codes) -> Floats:
        values, first_row, first = np.empty(codes.size, np.float32), 0, 0
        for shape, rows in zip(shapes, known.rows, strict=True):
            own, last = slice(first_row, first_row + rows), first + numel(shape)
            values[first:last] = dequantize(
                codes[first:last], known.scales[own], known.offsets[own]
            )
            first_row, first = first_row + rows, last
        values[known.outliers] = known.exact
        return values

    return known.end, restore


def split_affine(
    known: Parameters, codes: Codes, shapes: Sequence[tuple[int, ...]]
) -> list[AffinePart]:
    """The tensors of a group, of which `codes` [n of all] and parameters are known."""
    parts, first_row, first = [], 0, 0
    for shape, rows in zip(shapes, known.rows, strict=True):
        own, last = slice(first_row, first_row + rows), first + numel(shape)
        kept = slice(*np.searchsorted(known.outliers, (first, last)))
        parts.append(
            AffinePart(
                codes[first:last].reshape(shape),
                known.scales[own],
                known.offsets[own],
                known.outliers[kept] - first,
                known.exact[kept],
            )
        )
        first_row, first = first_row + rows, last
    return parts


def quantize(array: Floats) -> tuple[Codes, Floats, Floats, Positions]:
    """Finite values [*shape], not empty, of one tensor.

    Returns:
        Codes [n]; scales and offsets [rows]; positions of values to keep exactly, with code 0.
    """
    rows = array.reshape(array.shape[0] if has_rows(array.shape) else 1, -1)
    outliers = _outliers(rows[0]) if len(rows) == 1 else np.empty(0, np.int64)
    inliers = np.delete(rows, outliers, axis=1)
    low, high = inliers.min(1), inliers.max(1)
    # In binary64, since the difference of two binary32 numbers may overflow.
    scales = ((high.astype(np.float64) - low) / 255).astype(np.float32)
    # A first look at few values tells nearly always that they were made of no codes.
    before = _scales_before(inliers[:, :64], low, scales)
    if before is not None:
        before = _scales_before(inliers, low, before)
    scales = scales if before is None else before
    codes = _codes(rows, low, scales)
    codes[0, outliers] = 0
    return codes.reshape(-1), scales, low, outliers


def _codes(rows: Floats, offsets: Floats, scales: Floats) -> Codes:
    steps = np.where(scales > 0, scales, 1).astype(np.float64)
    codes = np.rint((rows.astype(np.float64) - offsets[:, None]) / steps[:, None])
    return codes.clip(0, 255).astype(np.uint8)


def _scales_before(rows: Floats, offsets: Floats, scales: Floats) -> Floats | None:
    """Scales [rows] near `scales` whose codes give back the rows bit for bit; None without them.

    With them, values that were shortened before lose nothing more. Since the largest value is
    rounded, its quotient by 255 may be off the scale that it was made with.
    """
    found, result = np.zeros(scales.size, np.bool_), scales.copy()
    for step in (0, 1, -1, 2, -2):
        near = (scales.view(np.int32) + np.int32(step) * (scales > 0)).view(np.float32)
        if not np.isfinite(near).all():
            continue
        values = dequantize(_codes(rows, offsets, near).reshape(-1), near, offsets)
        same = (bits_of(values.reshape(rows.shape)) == bits_of(rows)).all(1) & ~found
        result[same] = near[same]
        found |= same
    return result if found.all() else None


def _outliers(values: Floats) -> Positions:
    """Which of the smallest and largest values [n] to leave out of the range of the codes.

    Half the range is worth a bit a value, what is left out costs some forty bits.
    """
    most = min(_MOST_OUTLIERS, (values.size - 1) // 2)
    order = np.argsort(values, kind="stable")
    low = values[order[: most + 1]].astype(np.float64)
    high = values[order[::-1][: most + 1]].astype(np.float64)
    left_out = np.arange(most + 1)
    spread = np.maximum(high[None, :] - low[:, None], np.finfo(np.float32).tiny)
    bits = values.size * np.log2(spread) + _OUTLIER_BITS * (left_out[:, None] + left_out)
    below, above = np.unravel_index(int(np.argmin(bits)), bits.shape)
    return np.sort(np.concatenate([order[:below], order[order.size - above :]]))


def dequantize(codes: Codes, scales: Floats, offsets: Floats) -> Floats:
    """Values [n] of codes [n]: one binary32 product, then one binary32 sum."""
    if not codes.size:
        return np.empty(0, np.float32)
    with np.errstate(over="ignore"):
        products = codes.reshape(scales.size, -1).astype(np.float32) * scales[:, None]
        return (products + offsets[:, None]).reshape(-1)


def encode_parameters(
    in_rows: bool, scales: Floats, offsets: Floats, outliers: Positions, exact: Floats
) -> bytes:
    """What stands in front of the codes of a group: one scale and offset a row, exact values."""
    gaps = np.diff(outliers, prepend=-1) - 1
    listed = b"".join(map(encode_varint, [outliers.size, *gaps.tolist()]))
    return bytes([in_rows]) + scales.tobytes() + offsets.tobytes() + listed + exact.tobytes()


def decode_parameters(data: bytes, shapes: Sequence[tuple[int, ...]]) -> Parameters:
    """The parameters of a group of tensors.

    Raises:
        TruncatedError: `data` is too short.
        CorruptError: a flag that is neither 0 nor 1, a number that is not finite, a position
            behind the last item.
    """
    if not data:
        raise TruncatedError("truncated", "an empty affine body")
    if data[0] > 1:
        raise CorruptError("section", f"the flag for scales by row is {data[0]}, expected 0 or 1")
    rows = [shape[0] if data[0] and len(shape) > 1 else 1 for shape in shapes]
    scales, at = _floats(data, 1, sum(rows))
    offsets, at = _floats(data, at, sum(rows))
    count, at = decode_varint(data, at)
    items = sum(map(numel, shapes))
    if count > items:
        raise CorruptError("section", f"{count} exact values, but only {items} items")
    outliers, position = np.empty(count, np.int64), -1
    for index in range(count):
        gap, at = decode_varint(data, at)
        position += gap + 1
        if position >= items:
            raise CorruptError(
                "section", f"an exact value is at position {position}, but there are {items} items"
            )
        outliers[index] = position
    exact, at = _floats(data, at, count)
    return Parameters(rows, scales, offsets, outliers, exact, at)


def _floats(data: bytes, start: int, count: int) -> tuple[Floats, int]:
    end = start + 4 * count
    if len(data) < end:
        raise TruncatedError("truncated", "scales, offsets or exact values are cut off")
    numbers = np.frombuffer(data[start:end], "<f4")
    if not np.isfinite(numbers).all():
        raise CorruptError("section", "a scale, offset or exact value that is not finite")
    return numbers, end


Q8 = Shortening(6, "q8", "uint8", encode_affine, decode_affine)
