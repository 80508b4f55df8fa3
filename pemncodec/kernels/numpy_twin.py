"""The functions of `pemncodec.kernels` in NumPy, with the results and errors of the C extension.

A buffer is any C-contiguous object with the buffer protocol; only its bytes count, not its shape
or dtype. All functions raise TypeError for an argument of another type and ValueError("buffer")
for a buffer that is not contiguous, or read-only where it is written. The other ValueErrors are
named under each function; of several reasons, the first in the order of the arguments counts, then
the order under "Raises". Buffers that are written must not overlap the others.
"""

from __future__ import annotations

import operator
from array import array
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Buffer: TypeAlias = bytes | bytearray | memoryview | NDArray[Any]

SCALE_BITS = 15
SCALE = 1 << SCALE_BITS
LOWEST = 1 << 16
MAX_LANES = 64

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_CHUNK_BLOCKS = 1 << 13
_CHUNK_ITEMS = 1 << 15


def _view(buffer: Buffer, *, writable: bool = False) -> NDArray[np.uint8]:
    try:
        view = np.frombuffer(buffer, np.uint8)
    except (BufferError, ValueError):
        raise ValueError("buffer") from None
    if writable and not view.flags.writeable:
        raise ValueError("buffer")
    return view


def _integer(value: int, name: str, least: int = 0, most: int = 2**64 - 1) -> int:
    value = operator.index(value)
    if not least <= value <= most:
        raise ValueError(name)
    return value


def philox_block(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox4x32-10 of Salmon et al. 2011, as in Random123 (spec/pemn.md section 5).

    Args:
        counter: shape (4, blocks), each of 32 bits, least significant word first.
        key: two numbers of 32 bits, least significant first.

    Returns:
        uint32 of shape (blocks, 4).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0)
        c2 = (p0 >> _HALF) ^ c3 ^ np.uint64(k1)
        c1 = p1 & _LOW
        c3 = p0 & _LOW
        k0 = (k0 + _WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def philox4x32(out: Buffer, seed: int, stream: int, start: int) -> None:
    """Fills `out` with the words `start`, `start` + 1, ... of a stream (spec/pemn.md section 5).

    Word i is word i % 4 of the Philox4x32-10 block with counter (i // 4, stream) and key `seed`,
    each split into 32 bits, least significant first.

    Args:
        out: uint32 in native byte order, any number of them.
        seed: 0 to 2^64 - 1.
        stream: 0 to 2^64 - 1.
        start: 0 to 2^64 - 1.

    Raises:
        ValueError: "seed", "stream" or "start" out of range; "out" is not a whole number of words;
            "start" if a word would have an index above 2^64 - 1.
    """
    view = _view(out, writable=True)
    seed = _integer(seed, "seed")
    stream = _integer(stream, "stream")
    start = _integer(start, "start")
    if view.size % 4:
        raise ValueError("out")
    words = view.view(np.uint32)
    if words.size and start + words.size > 2**64:
        raise ValueError("start")
    key = seed & 0xFFFFFFFF, seed >> 32
    done = 0
    while done < words.size:
        block, skip = divmod(start + done, 4)
        blocks = min(_CHUNK_BLOCKS, -(-(skip + words.size - done) // 4))
        index = np.uint64(block) + np.arange(blocks, dtype=np.uint64)
        counter = np.empty((4, blocks), np.uint64)
        counter[0] = index & _LOW
        counter[1] = index >> _HALF
        counter[2] = stream & 0xFFFFFFFF
        counter[3] = stream >> 32
        taken = min(4 * blocks - skip, words.size - done)
        words[done : done + taken] = philox_block(counter, key).reshape(-1)[skip : skip + taken]
        done += taken


def _frequencies(buffer: Buffer) -> list[int]:
    view = _view(buffer)
    if view.size != 256 * 4:
        raise ValueError("frequencies")
    frequencies: list[int] = view.view(np.uint32).tolist()
    if sum(frequencies) != SCALE:
        raise ValueError("frequencies")
    return frequencies


def quantiles(words: Buffer, table: Buffer, out: Buffer) -> None:
    """Writes the quantile that the upper 12 bits of each word choose (spec/pemn.md section 5).

    Args:
        words: n uint32 in native byte order.
        table: 4096 float32.
        out: n float32; may be the memory of `words`.

    Raises:
        ValueError: "words" not whole; "table" or "out" of another length.
    """
    source, values, target = _view(words), _view(table), _view(out, writable=True)
    if source.size % 4:
        raise ValueError("words")
    if values.size != 4 * 4096:
        raise ValueError("table")
    if target.size != source.size:
        raise ValueError("out")
    target.view(np.uint32)[:] = values.view(np.uint32)[source.view(np.uint32) >> 20]


def rans_encode(symbols: Buffer, frequencies: Buffer, lanes: int) -> bytes:
    """Codes symbols with a static interleaved rANS (spec/pemn.md section 6).

    Args:
        symbols: uint8, any number of them.
        frequencies: 256 uint32 in native byte order, with sum 2^15.
        lanes: 1 to 64 states; symbol i belongs to lane i % lanes.

    Returns:
        The final state of each lane (uint32, little-endian), then the words (uint16,
        little-endian) in the order in which the decoder reads them.

    Raises:
        ValueError: "frequencies" or "lanes" against the above; "symbol without frequency".
    """
    source = _view(symbols).data
    table = _frequencies(frequencies)
    lanes = _integer(lanes, "lanes", 1, MAX_LANES)
    cumulative = [0, *accumulate(table)]
    limits = [frequency << 17 for frequency in table]
    states = [LOWEST] * lanes
    words = array("H")
    lane = len(source) % lanes
    try:
        for symbol in reversed(source):
            lane = (lane or lanes) - 1
            state = states[lane]
            if state >= limits[symbol]:
                words.append(state & 0xFFFF)
                state >>= 16
            quotient, rest = divmod(state, table[symbol])
            states[lane] = (quotient << SCALE_BITS) + rest + cumulative[symbol]
    except ZeroDivisionError:
        raise ValueError("symbol without frequency") from None
    tail = np.array(words, np.uint16)[::-1].astype("<u2")
    return np.array(states, "<u4").tobytes() + tail.tobytes()


def rans_decode(data: Buffer, frequencies: Buffer, lanes: int, out: Buffer) -> None:
    """Decodes `len(out)` symbols (spec/pemn.md section 6).

    Args:
        data: exactly what `rans_encode` returned.
        frequencies: 256 uint32 in native byte order, with sum 2^15.
        lanes: 1 to 64, as for encoding.
        out: uint8; its content is unspecified after an error.

    Raises:
        ValueError: "frequencies" or "lanes" against the above; "too short" if states are missing;
            "odd length" of the words; "initial state out of range" if below 2^16; "too short" if
            words are missing; "words left over"; "final state" if a lane does not end at 2^16.
    """
    source = _view(data)
    table = _frequencies(frequencies)
    lanes = _integer(lanes, "lanes", 1, MAX_LANES)
    target = _view(out, writable=True).data
    if source.size < 4 * lanes:
        raise ValueError("too short")
    if source.size % 2:
        raise ValueError("odd length")
    states: list[int] = source[: 4 * lanes].view("<u4").tolist()
    if min(states) < LOWEST:
        raise ValueError("initial state out of range")
    words = source[4 * lanes :].view("<u2").astype(np.uint16).data
    cumulative = [0, *accumulate(table)]
    symbol_of = np.repeat(np.arange(256, dtype=np.uint8), table).tobytes()
    position = 0
    try:
        for index in range(len(target)):
            lane = index % lanes
            state = states[lane]
            slot = state & (SCALE - 1)
            symbol = symbol_of[slot]
            state = table[symbol] * (state >> SCALE_BITS) + slot - cumulative[symbol]
            if state < LOWEST:
                state = state << 16 | words[position]
                position += 1
            states[lane] = state
            target[index] = symbol
    except IndexError:
        raise ValueError("too short") from None
    if position != len(words):
        raise ValueError("words left over")
    if any(state != LOWEST for state in states):
        raise ValueError("final state")


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
    source = _view(mask)
    count = _integer(count, "count")
    longest = _integer(longest, "longest", 1, 255)
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
    source = _view(runs)
    longest = _integer(longest, "longest", 1, 255)
    count = _integer(count, "count")
    target = _view(out, writable=True)
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


def expand(values: Buffer, itemsize: int, offset: int, mask: Buffer, out: Buffer) -> None:
    """Writes repeated values where a mask has ones, and zeros elsewhere.

    Item i of `out` is values[(offset + i) % L] if bit i % 8 of mask byte i // 8 is 1 (bit 0 is the
    least significant), else all-zero bytes.

    Args:
        values: L >= 1 items.
        itemsize: bytes per item: 1, 2, 4, 8 or 16.
        offset: 0 to L - 1.
        mask: ceil(n / 8) bytes; the bits behind the last item are ignored.
        out: n >= 0 items.

    Raises:
        ValueError: "itemsize" or "offset" out of range; "values" empty, or not of whole items;
            "offset" not below L; "out" not of whole items; "mask" of another length.
    """
    source = _view(values)
    itemsize = _integer(itemsize, "itemsize", 1, 16)
    offset = _integer(offset, "offset")
    bits = _view(mask)
    target = _view(out, writable=True)
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
    if len(items) < _CHUNK_ITEMS:
        items = np.tile(items, (-(-_CHUNK_ITEMS // len(items)), 1))
    for start in range(0, len(result), _CHUNK_ITEMS):
        chunk = result[start : start + _CHUNK_ITEMS]
        ones = np.unpackbits(bits[start // 8 : start // 8 + _CHUNK_ITEMS // 8], bitorder="little")
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
    seed = _integer(seed, "seed")
    stream = _integer(stream, "stream")
    start = _integer(start, "start")
    values, bits, target = _view(table), _view(mask), _view(out, writable=True)
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
        expand(words, 4, 0, bits, target)


def top_k(values: Buffer, kept: int, out: Buffer) -> None:
    """Writes 1 for the largest values and 0 for the others; of equal ones the later are larger.

    Args:
        values: n float32 without NaN (with NaN any n - kept to n of the bytes may be 0).
        kept: how many ones, 0 to n.
        out: n bytes.

    Raises:
        ValueError: "values" of another size; "kept" above n.
    """
    source = _view(values)
    kept = _integer(kept, "kept")
    target = _view(out, writable=True)
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
    source = _view(scores)
    magnitude = _integer(magnitude, "magnitude", 0, 1)
    kept = _integer(kept, "kept")
    _integer(threads, "threads", 1)
    items, target = _view(values), _view(out, writable=True)
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


def magnitude_gradient(
    gradient: Buffer, values: Buffer, scores: Buffer, out: Buffer, threads: int
) -> None:
    """Multiplies three: out = (gradient * value) * sign(score), in binary32; the sign of 0 is 0.

    It is the gradient of |score| where gradient is that of value * |score| (straight-through).

    Args:
        gradient: n float32.
        values: n float32.
        scores: n float32.
        out: n float32; may be the memory of `gradient`.
        threads: how many may share the work, 1 or more; the result is the same, unless some of them
            flush subnormal numbers (`torch.set_flush_denormal`) and others do not.

    Raises:
        ValueError: "threads" out of range; "gradient" not whole; "values", "scores" or "out" of
            another size.
    """
    upstream, factors, ranked = _view(gradient), _view(values), _view(scores)
    target = _view(out, writable=True)
    _integer(threads, "threads", 1)
    if upstream.size % 4:
        raise ValueError("gradient")
    for name, view in (("values", factors), ("scores", ranked), ("out", target)):
        if view.size != upstream.size:
            raise ValueError(name)
    numbers = ranked.view(np.float32)
    signs = np.subtract(numbers > 0, numbers < 0, dtype=np.float32)
    with np.errstate(all="ignore"):
        product = upstream.view(np.float32) * factors.view(np.float32)
        np.multiply(product, signs, out=target.view(np.float32))
