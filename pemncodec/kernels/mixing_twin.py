"""Context-mixing coder of masks (spec/pemn.md section 6.4): the twin of mixing.c, in plain Python.

Slow: about 50,000 weights a second, where C does 40 million. Names are those of the spec.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from pemncodec.kernels.arguments import Buffer, view_buffer

STRETCH, SQUASH = 4096, 3072
BUCKETS = 32
BLOCK = 1 << 23
FIELDS = 6

_HALF = SQUASH // 2
_CHANNELS = 1 << 14
_POSITIONS = 512
_SLOW, _FAST = 1023, 255
_LIMITS = (_SLOW, _SLOW, _SLOW, _FAST, _FAST, _FAST, _FAST, _FAST, _FAST, _FAST, _FAST)
_LARGEST = 1 << 62
_MASK = 0xFFFFFFFF
_WEIGHT_MOST = (1 << 21) - 1

Part = list[int]


def mixing_encode(
    bits: Buffer, buckets: Buffer, parts: Buffer, tables: Buffer
) -> tuple[bytes, tuple[int, ...]]:
    """Codes a block of masks.

    Args:
        bits: n bytes, 0 or 1: the parts' weights, one part after the other.
        buckets: n bytes below 32: the bucket of every weight's value.
        parts: for each part (weights, columns, kernel, width, first, density), uint64: how many
            weights it has, the shape of its tensor's rows, the index of its first weight in its
            tensor, and the code of its density, 0 to 255. A part that starts within its tensor is
            alone in its block.
        tables: int32 [4096 + 3072]: stretch, then squash.

    Returns:
        The coded data; how many of its bytes were written at the end of each part.

    Raises:
        ValueError: "parts" break a rule, or are not those of n weights, 1 to 2^23; "buckets" of
            another length, or a bucket above 31; "tables" of another length, or out of range;
            "bits" other than 0 and 1.
    """
    source, known = view_buffer(bits), view_buffer(buckets)
    rows, stretch, squash = _check(source.size, known, view_buffer(parts), view_buffer(tables))
    if int(source.max()) > 1:
        raise ValueError("bits")
    encoder = _Encoder()
    model = _Model(stretch, squash)
    ends, start = [], 0
    for row in rows:
        stop = start + row[0]
        model.code(row, source[start:stop].tolist(), known[start:stop].tolist(), encoder)
        ends.append(len(encoder.out))
        start = stop
    return encoder.finish(), tuple(ends)


def mixing_decode(
    data: Buffer, buckets: Buffer, parts: Buffer, tables: Buffer, out: Buffer
) -> None:
    """Decodes what `mixing_encode` returned; `out` gets n bytes, 0 or 1.

    Raises:
        ValueError: as `mixing_encode`; "too short"; "bytes left over" behind the last weight;
            "final state" where coded data ends otherwise than an encoder ends it. What `out` holds
            after these is undefined.
    """
    coded, known = view_buffer(data), view_buffer(buckets)
    layout, numbers = view_buffer(parts), view_buffer(tables)
    target = view_buffer(out, writable=True)
    rows, stretch, squash = _check(target.size, known, layout, numbers)
    decoder = _Decoder(coded.tobytes())
    model = _Model(stretch, squash)
    start = 0
    for row in rows:
        stop = start + row[0]
        bits = [0] * row[0]
        model.code(row, bits, known[start:stop].tolist(), decoder)
        target[start:stop] = bits
        start = stop
    decoder.finish()


def _check(
    weights: int, buckets: NDArray[np.uint8], parts: NDArray[np.uint8], tables: NDArray[np.uint8]
) -> tuple[list[Part], list[int], list[int]]:
    if parts.size % (8 * FIELDS):
        raise ValueError("parts")
    rows: list[Part] = parts.view(np.uint64).reshape(-1, FIELDS).tolist()
    for count, columns, kernel, width, first, density in rows:
        if not (0 < count <= BLOCK and columns and kernel and width and density < 256):
            raise ValueError("parts")
        if columns > _LARGEST // kernel or first > _LARGEST or (first and len(rows) > 1):
            raise ValueError("parts")
    if not 0 < weights <= BLOCK or sum(row[0] for row in rows) != weights:
        raise ValueError("parts")
    if buckets.size != weights or int(buckets.max()) >= BUCKETS:
        raise ValueError("buckets")
    if tables.size != 4 * (STRETCH + SQUASH):
        raise ValueError("tables")
    numbers = tables.view(np.int32)
    stretch, squash = numbers[:STRETCH], numbers[STRETCH:]
    if stretch.min() < -9999 or stretch.max() > 9999 or squash.min() < 1 or squash.max() > 65535:
        raise ValueError("tables")
    return rows, stretch.tolist(), squash.tolist()


class _Encoder:
    """A binary range coder; carries go into what is written."""

    def __init__(self) -> None:
        self.low, self.range = 0, _MASK
        self.out = bytearray()

    def code(self, one: int, bit: int) -> int:
        bound = (self.range >> 16) * one
        if bit:
            self.range = bound
        else:
            self.low += bound
            self.range -= bound
        while self.range < 1 << 24:
            self._put()
        return bit

    def _put(self) -> None:
        if self.low >> 32:
            at = len(self.out) - 1
            while self.out[at] == 0xFF:
                self.out[at] = 0
                at -= 1
            self.out[at] += 1
        self.out.append(self.low >> 24 & 0xFF)
        self.low = (self.low & 0xFFFFFF) << 8
        self.range = self.range << 8 & _MASK

    def finish(self) -> bytes:
        for _ in range(4):
            self._put()
        return bytes(self.out)


class _Decoder:
    def __init__(self, data: bytes) -> None:
        if len(data) < 4:
            raise ValueError("too short")
        self.data, self.at = data, 4
        self.range, self.value = _MASK, int.from_bytes(data[:4], "big")

    def code(self, one: int, _: int) -> int:
        bound = (self.range >> 16) * one
        bit = int(self.value < bound)
        if bit:
            self.range = bound
        else:
            self.value -= bound
            self.range -= bound
        while self.range < 1 << 24:
            if self.at == len(self.data):
                raise ValueError("too short")
            self.value = (self.value << 8 | self.data[self.at]) & _MASK
            self.range = self.range << 8 & _MASK
            self.at += 1
        return bit

    def finish(self) -> None:
        if self.at != len(self.data):
            raise ValueError("bytes left over")
        if self.value:
            raise ValueError("final state")


class _Kind:
    """What the parts of one kind share. A counter is a list [probability, count]."""

    def __init__(self, initial: int) -> None:
        self.weights = [1 << 17] * len(_LIMITS)
        self.coded = 0
        self.crossings = _counters(32 * 32, initial)
        self.positions = _counters(_POSITIONS * 8, initial)
        self.near = _counters(9 * BUCKETS, initial)
        self.around = _counters(81 * 2, initial)


class _Line:
    """Counters of a row or of a column."""

    def __init__(self, initial: int) -> None:
        self.whole = [initial, 0]
        self.signs = _counters(2, initial)
        self.buckets = _counters(BUCKETS, initial)


class _Model:
    def __init__(self, stretch: list[int], squash: list[int]) -> None:
        self.stretch, self.squash = stretch, squash
        self.adaptation = [65536 // (n + 3) for n in range(_SLOW + 1)]
        self.rates = [25 + 328 * 16 // isqrt(256 * (j + 1)) for j in range(256)]
        self.kinds: dict[int, _Kind] = {}
        self.channels: list[list[int]] = []  # of the rows of the part before
        self.channels_of = 0

    def code(
        self, part: Part, bits: list[int], buckets: list[int], coder: _Encoder | _Decoder
    ) -> None:
        count, columns, kernel, width, first, density = part
        initial = self.squash[(density - 128) * 8 + _HALF] << 6
        center = self.stretch[initial >> 10]
        number = 0 if kernel == 1 else 1 if columns == 1 else 2
        kind = self.kinds.setdefault(number, _Kind(initial))
        row_size = columns * kernel
        rows = -(-(first + count) // row_size)
        row, in_row = divmod(first, row_size)
        column, position = divmod(in_row, kernel)
        chained = self.channels_of == (rows if number == 1 else columns)
        lines: defaultdict[int, _Line] = defaultdict(lambda: _Line(initial))
        channels = _counters(min(rows, _CHANNELS), 0)
        of_row, channel = _Line(initial), [initial, 0]
        for i in range(count):
            bucket, sign = buckets[i], buckets[i] // (BUCKETS // 2)
            left, up = position % width > 0, position >= width
            if kernel == 1:
                places = (column >= 1, 1), (column >= 2, 2), (True, row_size), (True, 2 * row_size)
            elif columns == 1:
                places = (left, 1), (up, width), (True, row_size), (left and up, width + 1)
            else:
                places = (left, 1), (up, width), (True, row_size), (column >= 1, kernel)
            pulls = [
                1 + (bits[i - back] ^ (buckets[i - back] < BUCKETS // 2))
                if there and i >= back
                else 0
                for there, back in places
            ]
            near = pulls[0] + 3 * pulls[1]
            around = near + 9 * pulls[2] + 27 * pulls[3]
            of_column = lines[column % _CHANNELS]
            if chained:
                channel = list(self.channels[(row if number == 1 else column) % _CHANNELS])
            across = self._level(of_row.whole, center)
            down = self._level(of_column.whole, center)
            counters = (
                of_row.whole,
                of_column.whole,
                kind.crossings[across * 32 + down],
                of_row.signs[sign],
                of_column.signs[sign],
                of_row.buckets[bucket],
                of_column.buckets[bucket],
                kind.positions[position % _POSITIONS * 8 + bucket // 4],
                kind.near[near * BUCKETS + bucket],
                kind.around[around * 2 + sign],
                channel,
            )
            bits[i] = self._code_bit(kind, counters, bits[i], coder)
            position += 1
            if position == kernel:
                position = 0
                column += 1
                if column == columns:
                    channels[row % _CHANNELS] = of_row.whole
                    of_row = _Line(initial)
                    column = 0
                    row += 1
        if position or column:
            channels[row % _CHANNELS] = of_row.whole
        self.channels, self.channels_of = channels, rows

    def _level(self, counter: list[int], center: int) -> int:
        return min(max((self.stretch[counter[0] >> 10] - center) >> 7, -16), 15) + 16

    def _code_bit(
        self,
        kind: _Kind,
        counters: Sequence[list[int]],
        bit: int,
        coder: _Encoder | _Decoder,
    ) -> int:
        inputs = [self.stretch[probability >> 10] for probability, _ in counters]
        mixed = sum(x * (w >> 7) for x, w in zip(inputs, kind.weights, strict=True)) >> 16
        one = self.squash[min(max(mixed, -_HALF), _HALF - 1) + _HALF]
        bit = coder.code(one, bit)
        error = ((bit << 16) - one) * self.rates[kind.coded >> 6] >> 10
        kind.coded = min(kind.coded + 1, 64 * 256 - 1)
        for j, x in enumerate(inputs):
            weight = kind.weights[j] + (x * error + 512 >> 10)
            kind.weights[j] = min(max(weight, -_WEIGHT_MOST), _WEIGHT_MOST)
        target = (1 << 22) - 1 if bit else 0
        for counter, limit in zip(counters, _LIMITS, strict=True):
            counter[0] += (target - counter[0]) * self.adaptation[counter[1]] >> 16
            counter[1] = min(counter[1] + 1, limit)
        return bit


def _counters(count: int, initial: int) -> list[list[int]]:
    return [[initial, 0] for _ in range(count)]
