"""Values under a mask: the twin of expand.c."""

from __future__ import annotations

import numpy as np

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer
from pemncodec.kernels.generator_twin import philox4x32, quantiles
from pemncodec.kernels.mersenne_twin import STATE, mersenne_words
from pemncodec.kernels.torch_values_twin import GROUP, torch_normal, torch_uniform

_CHUNK = 1 << 15  # items


def expand(
    values: Buffer,
    itemsize: int,
    offset: int,
    mask: Buffer,
    out: Buffer,
    read_next: int,
    threads: int,
) -> None:
    """Writes repeated values where a mask has ones, and zeros elsewhere.

    Item i of `out` is values[(offset + i) % L] if bit i % 8 of mask byte i // 8 is 1 (bit 0 is the
    least significant), else all-zero bytes.

    Args:
        values: L >= 1 items.
        itemsize: bytes per item: 1, 2, 4, 8 or 16.
        offset: 0 to L - 1.
        mask: ceil(n / 8) bytes; the bits behind the last item are ignored.
        out: n >= 0 items.
        read_next: 1 if they are read at once, so that they better stay in the caches; else 0.
        threads: how many may share the work, 1 or more.

    Raises:
        ValueError: "itemsize", "offset", "read_next" or "threads" out of range; "values" empty, or
            not of whole items; "offset" not below L; "out" not of whole items; "mask" of another
            length.
    """
    source = view_buffer(values)
    itemsize = check_integer(itemsize, "itemsize", 1, 16)
    offset = check_integer(offset, "offset")
    bits = view_buffer(mask)
    target = view_buffer(out, writable=True)
    check_integer(read_next, "read_next", 0, 1)
    check_integer(threads, "threads", 1)
    if itemsize & (itemsize - 1):
        raise ValueError("itemsize")
    if source.size == 0 or source.size % itemsize:
        raise ValueError("values")
    if offset >= source.size // itemsize:
        raise ValueError("offset")
    if target.size % itemsize:
        raise ValueError("out")
    if bits.size != -(-target.size // (8 * itemsize)):
        raise ValueError("mask")
    word = np.dtype(f"u{min(itemsize, 8)}")
    items = source.view(word).reshape(-1, itemsize // word.itemsize)
    result = target.view(word).reshape(-1, itemsize // word.itemsize)
    if len(items) < _CHUNK:
        items = np.tile(items, (-(-_CHUNK // len(items)), 1))
    for start in range(0, len(result), _CHUNK):
        chunk = result[start : start + _CHUNK]
        ones = np.unpackbits(bits[start // 8 : start // 8 + _CHUNK // 8], bitorder="little")
        before_wrap = min(len(chunk), len(items) - offset)
        chunk[:before_wrap] = items[offset : offset + before_wrap]
        chunk[before_wrap:] = items[: len(chunk) - before_wrap]
        chunk *= ones[: len(chunk), None]
        offset = (offset + len(chunk)) % len(items)


def expand_normal(
    seed: int, stream: int, start: int, table: Buffer, mask: Buffer, out: Buffer
) -> None:
    """Writes what `quantiles` makes of `philox4x32`'s words where a mask has ones, else zeros.

    Args:
        seed: as for `philox4x32`.
        stream: likewise.
        start: likewise.
        table: 4096 float32.
        mask: ceil(n / 8) bytes; the bits behind the last item are ignored.
        out: n >= 0 float32.

    Raises:
        ValueError: "seed", "stream" or "start" out of range; "table" of another length; "out" not
            whole; "mask" of another length; "start" if a word would have an index above 2^64 - 1.
    """
    seed = check_integer(seed, "seed")
    stream = check_integer(stream, "stream")
    start = check_integer(start, "start")
    values, bits, target = view_buffer(table), view_buffer(mask), view_buffer(out, writable=True)
    if values.size != 4 * 4096:
        raise ValueError("table")
    if target.size % 4:
        raise ValueError("out")
    if bits.size != -(-target.size // 32):
        raise ValueError("mask")
    words = np.empty(target.size // 4, np.uint32)
    philox4x32(words, seed, stream, start)
    quantiles(words, values, words)
    if words.size:
        expand(words, 4, 0, bits, target, 0, 1)


def expand_drawn(
    state: Buffer, skip: int, fused: int, bounds: Buffer, scale: Buffer, mask: Buffer, out: Buffer
) -> None:
    """Writes values of torch's CPU generator, scaled, where a mask has ones, else zeros.

    Args:
        state: as for `mersenne_words`.
        skip: likewise.
        fused: as for `torch_normal`.
        bounds: as for `torch_uniform`, whose values these are then; or no bytes for those of
            `torch_normal`, from groups that begin with the first word.
        scale: a float32 that each value is multiplied by.
        mask: ceil(n / 8) bytes; the bits behind the last item are ignored.
        out: n >= 0 float32.

    Raises:
        ValueError: "skip" or "fused" out of range; "state" of another length; "bounds" of another
            length, or not finite; "scale" of another length; "out" not whole; "mask" of another
            length.
    """
    before = view_buffer(state)
    skip = check_integer(skip, "skip", most=STATE - 1)
    fused = check_integer(fused, "fused", most=1)
    limits, factor, bits = view_buffer(bounds), view_buffer(scale), view_buffer(mask)
    target = view_buffer(out, writable=True)
    if before.size != 4 * STATE:
        raise ValueError("state")
    if limits.size:
        torch_uniform(b"", fused, limits, bytearray())  # which refuses what it cannot take
    if factor.size != 4:
        raise ValueError("scale")
    if target.size % 4:
        raise ValueError("out")
    count = target.size // 4
    if bits.size != -(-count // 8):
        raise ValueError("mask")
    words = np.empty(-(-count // GROUP) * GROUP, np.uint32)
    mersenne_words(before, skip, words)
    values = words.view(np.float32)
    if limits.size:
        torch_uniform(words, fused, limits, values)
    else:
        torch_normal(words, fused, values)
    with np.errstate(over="ignore", invalid="ignore"):
        values *= factor.view(np.float32)
    if count:
        expand(values, 4, 0, bits, target, 0, 1)
