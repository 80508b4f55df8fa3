"""The largest values: the twin of selection.c."""

from __future__ import annotations

import numpy as np

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer


def top_k(values: Buffer, kept: int, out: Buffer) -> None:
    """Writes 1 for the largest values and 0 for the others; of equal ones the later are larger.

    Args:
        values: n float32 without NaN (with NaN any n - kept to n of the bytes may be 0).
        kept: how many ones, 0 to n.
        out: n bytes.

    Raises:
        ValueError: "values" of another size; "kept" above n.
    """
    source = view_buffer(values)
    kept = check_integer(kept, "kept")
    target = view_buffer(out, writable=True)
    if source.size != 4 * target.size:
        raise ValueError("values")
    if kept > target.size:
        raise ValueError("kept")
    if kept in (0, target.size):
        target[:] = kept > 0
        return
    numbers = source.view(np.float32)
    cut = np.partition(numbers, target.size - kept)[target.size - kept]
    np.greater_equal(numbers, cut, out=target.view(np.bool_))
    surplus = int(np.count_nonzero(target)) - kept
    if surplus > 0:
        target[np.flatnonzero(numbers == cut)[:surplus]] = 0


def keep_largest(
    scores: Buffer, magnitude: int, kept: int, values: Buffer, out: Buffer, threads: int
) -> None:
    """Writes the values whose scores are the largest, and zeros elsewhere; ties as in `top_k`.

    Args:
        scores: n float32 without NaN (with NaN any n - kept to n of the items may be 0).
        magnitude: 1 ranks |score|, 0 the score itself.
        kept: how many values are kept, 0 to n.
        values: n items of 4 bytes.
        out: n items of 4 bytes, apart from the others.
        threads: how many may share the work, 1 or more; the result is the same.

    Raises:
        ValueError: "magnitude" or "threads" out of range; "scores" not whole; "kept" above n;
            "values" or "out" of another size.
    """
    source = view_buffer(scores)
    magnitude = check_integer(magnitude, "magnitude", 0, 1)
    kept = check_integer(kept, "kept")
    check_integer(threads, "threads", 1)
    items, target = view_buffer(values), view_buffer(out, writable=True)
    if source.size % 4:
        raise ValueError("scores")
    if kept > source.size // 4:
        raise ValueError("kept")
    if items.size != source.size:
        raise ValueError("values")
    if target.size != source.size:
        raise ValueError("out")
    numbers = source.view(np.float32)
    mask = np.empty(numbers.size, np.uint8)
    top_k(np.abs(numbers) if magnitude else np.ascontiguousarray(numbers), kept, mask)
    np.multiply(items.view(np.uint32), mask, out=target.view(np.uint32))
