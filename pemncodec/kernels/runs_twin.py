"""Masks as runs of zeros (spec/pemn.md section 6.3): the twin of runs.c."""

from __future__ import annotations

import numpy as np

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer


def runs_encode(mask: Buffer, count: int, longest: int) -> bytes:
    """Cuts a mask into runs of zeros (spec/pemn.md section 6.3).

    Args:
        mask: ceil(count / 8) bytes; the bits behind the last are ignored.
        count: bits of the mask.
        longest: 1 to 255.

    Returns:
        One byte a run: s < `longest` is s zeros and a one, `longest` is as many zeros, or at the
        end of the mask those that are left.

    Raises:
        ValueError: "count" or "longest" out of range; "mask" of another length.
    """
    source = view_buffer(mask)
    count = check_integer(count, "count")
    longest = check_integer(longest, "longest", 1, 255)
    if source.size != -(-count // 8):
        raise ValueError("mask")
    ones = np.flatnonzero(np.unpackbits(source, count=count, bitorder="little"))
    starts = np.append(0, ones + 1)
    full, rest = np.divmod(ones - starts[:-1], longest)
    ends = np.cumsum(full + 1)
    tail = -((starts[-1] - count) // longest)
    runs = np.full((ends[-1] if ones.size else 0) + tail, longest, np.uint8)
    runs[ends - 1] = rest
    return runs.tobytes()


def runs_decode(runs: Buffer, longest: int, count: int, out: Buffer) -> None:
    """Puts a mask together of runs (spec/pemn.md section 6.3).

    Args:
        runs: exactly what `runs_encode` returned.
        longest: 1 to 255, as for encoding.
        count: bits of the mask.
        out: ceil(count / 8) bytes; padding bits become 0. Unspecified after an error.

    Raises:
        ValueError: "longest" or "count" out of range; "out" of another length; then, of the first
            run that is wrong, "run too long" above `longest`, "one behind the end" of the mask;
            "runs left over" or "runs missing" at its end.
    """
    source = view_buffer(runs)
    longest = check_integer(longest, "longest", 1, 255)
    count = check_integer(count, "count")
    target = view_buffer(out, writable=True)
    if target.size != -(-count // 8):
        raise ValueError("out")
    ends = np.cumsum(source + (source < longest), dtype=np.int64)
    needed = int(np.searchsorted(ends, count)) + 1 if count else 0
    used, ends = source[:needed], ends[:needed]
    if (used > longest).any():
        raise ValueError("run too long")
    ones = ends[used < longest] - 1
    if (ones >= count).any():
        raise ValueError("one behind the end")
    if source.size > needed:
        raise ValueError("runs left over")
    if source.size < needed:
        raise ValueError("runs missing")
    bits = np.zeros(count, np.uint8)
    bits[ones] = 1
    target[:] = np.packbits(bits, bitorder="little")
