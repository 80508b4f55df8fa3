"""Prototype + fill → a layer's values (spec/pemn.md section 5.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeGuard

import numpy as np

from pemncodec import kernels
from pemncodec.contents import (
    Array,
    Fill,
    Mask,
    PackedMask,
    Prototype,
    Seeded,
    StoredPrototype,
    bits_of,
)
from pemncodec.values.generators import generator_of, seeded_slice
from pemncodec.values.rounding import one_nan, round_to, widen

HELD_VALUES = 1 << 20
"""Values of a seeded prototype that are held where some are needed more than once."""

_SLICE = 1 << 16  # values made at one time: they and what they are made of stay in the cache


def prototype_values(prototype: Prototype) -> Array:
    """A prototype's values before scaling, [length]; float32 for a seeded one."""
    if isinstance(prototype, StoredPrototype):
        return prototype.values
    return seeded_slice(prototype, 0, prototype.length)


def is_made_in_slices(prototype: object, taken: int | None = None) -> TypeGuard[Seeded]:
    """Whether a prototype's values are better made where they are needed than held.

    Args:
        prototype: of any kind.
        taken: how many values are needed, counted as often as they are; None if that is not known.
    """
    if not isinstance(prototype, Seeded):
        return False
    once = taken is not None and taken <= prototype.length
    return (once or prototype.length > HELD_VALUES) and generator_of(prototype).is_sliceable(
        prototype
    )


def held(prototype: Prototype) -> Prototype:
    """The prototype with its values in memory, unless they are better made in slices."""
    if isinstance(prototype, StoredPrototype) or is_made_in_slices(prototype):
        return prototype
    return StoredPrototype(prototype_values(prototype), "float32")


def tensor_values(
    prototype: Prototype, fill: Fill, dtype: str, count: int
) -> RepeatedValues | SeededValues:
    """What fills a tensor of `count` weights.

    Args:
        prototype: as `held` gives it.
        fill: of the tensor.
        dtype: of the tensor.
        count: of weights.
    """
    if isinstance(prototype, Seeded):
        return SeededValues(prototype, fill, dtype)
    values, offset = prototype.values, fill.offset
    # A tensor that is smaller than the prototype must not cost the scaling of all of it.
    if offset + count <= values.size:
        values, offset = values[offset : offset + max(count, 1)], 0
    elif count < values.size:
        values = np.concatenate([values[offset:], values[: offset + count - values.size]])
        offset = 0
    return RepeatedValues(scale_values(values, prototype.dtype, fill.scale, dtype), offset)


def scale_values(values: Array, dtype: str, scale: float, to_dtype: str) -> Array:
    """Values of `dtype`, scaled, in the carrier dtype of `to_dtype`.

    Scale 1 at the same dtype copies bit for bit. Else: one binary32 multiplication, then rounding
    to nearest even.
    """
    if scale == 1.0 and dtype == to_dtype:
        return values
    # Overflow to infinity is what the format asks for.
    with np.errstate(over="ignore", invalid="ignore"):
        return round_to(one_nan(widen(values, dtype) * np.float32(scale)), to_dtype)


@dataclass(frozen=True, slots=True, eq=False)
class RepeatedValues:
    """The values of a masked tensor that are held in memory.

    Attributes:
        values: [length ≥ 1], scaled, in the tensor's carrier dtype.
        offset: of the tensor's first value.
    """

    values: Array
    offset: int

    def fill_masked(self, start: int, packed_mask: PackedMask, out: Array) -> None:
        """Effective weights: `values[(offset + start + i) % length]`, +0.0 where masked out.

        Args:
            start: index of the slice's first weight in its tensor.
            packed_mask: uint8 [ceil(n / 8)], of the slice.
            out: [n].
        """
        offset = (self.offset + start) % self.values.size
        _expand(self.values, offset, packed_mask, out)

    def fill_all(self, packed_mask: PackedMask, out: Array, read_next: bool, threads: int) -> None:
        """As `fill_masked`, of a whole tensor, by several threads of torch's.

        Args:
            packed_mask: uint8 [ceil(n / 8)].
            out: [n].
            read_next: whether the weights are read at once.
            threads: how many.
        """
        _expand(self.values, self.offset, packed_mask, out, read_next, threads)


@dataclass(frozen=True, slots=True, eq=False)
class SeededValues:
    """The values of a masked tensor that are made where they are needed, a slice at a time.

    Attributes:
        prototype: one whose slices are cheap.
        fill: of the tensor.
        dtype: of the tensor.
    """

    prototype: Seeded
    fill: Fill
    dtype: str

    def fill_masked(self, start: int, packed_mask: PackedMask, out: Array) -> None:
        """As `RepeatedValues.fill_masked`."""
        source, scale = self.prototype, self.fill.scale
        first = (self.fill.offset + start) % source.length
        if self.dtype == "float32" and first + out.size <= source.length:
            generator = generator_of(source)
            if generator.fill_masked(source, first, packed_mask, out, scale):
                return
        for done in range(0, out.size, _SLICE):
            part = out[done : done + _SLICE]
            values = self._values(self.fill.offset + start + done, part.size)
            _expand(
                round_to(values, self.dtype), 0, packed_mask[done // 8 : (done + _SLICE) // 8], part
            )

    def _values(self, start: int, count: int) -> Array:
        source, parts = self.prototype, []
        while count:
            start %= source.length
            stop = min(start + count, source.length)
            parts.append(seeded_slice(source, start, stop, self.fill.scale))
            count -= stop - start
            start = stop
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Which values of a prototype masks use.

    Attributes:
        used: uint8 [ceil(length / 8)], packed bits.
        before: how many are used before each slice, and in all.
        length: of the prototype.
    """

    used: PackedMask
    before: Sequence[int]
    length: int

    @property
    def count(self) -> int:
        """How many are used."""
        return self.before[-1]


def places_of(used: Mask) -> Places:
    """bool [length], True where some mask uses a value."""
    counts = [int(np.count_nonzero(used[at : at + _SLICE])) for at in range(0, used.size, _SLICE)]
    return Places(np.packbits(used, bitorder="little"), [0, *accumulate(counts)], used.size)


@dataclass(frozen=True, slots=True, eq=False)
class UsedValues:
    """The values of a masked tensor of which only those that masks use are in memory.

    They are put in their places where they are needed, a slice at a time.

    Attributes:
        kept: [count], one after the other, scaled, in the tensor's carrier dtype.
        places: where they are in the prototype.
        offset: of the tensor's first value.
    """

    kept: Array
    places: Places
    offset: int

    def fill_masked(self, start: int, packed_mask: PackedMask, out: Array) -> None:
        """As `RepeatedValues.fill_masked`."""
        for done in range(0, out.size, _SLICE):
            part = out[done : done + _SLICE]
            values = self._values(self.offset + start + done, part.size)
            _expand(values, 0, packed_mask[done // 8 : (done + _SLICE) // 8], part)

    def _values(self, start: int, count: int) -> Array:
        values = np.zeros(count, self.kept.dtype)
        done, length = 0, self.places.length
        while done < count:
            first = (start + done) % length
            size = min(length - first, count - done)
            self._place(first, values[done : done + size])
            done += size
        return values

    def _place(self, start: int, out: Array) -> None:
        """Writes used values from `start` on, none of them behind the prototype's last."""
        number, byte, odd = start // _SLICE, start // 8, start % 8
        earlier, own = self.places.used[number * _SLICE // 8 : byte], self.places.used[byte:]
        bits = np.unpackbits(own, count=odd + out.size, bitorder="little").view(np.bool_)
        done = self.places.before[number] + int(np.bitwise_count(earlier).sum(dtype=np.int64))
        done += int(np.count_nonzero(bits[:odd]))
        at = np.flatnonzero(bits[odd:])  # several times as fast as by the mask
        out[at] = self.kept[done : done + at.size]


TensorValues = RepeatedValues | SeededValues | UsedValues
"""What fills a masked tensor."""


def _expand(
    values: Array,
    offset: int,
    packed_mask: PackedMask,
    out: Array,
    read_next: bool = False,
    threads: int = 1,
) -> None:
    if out.size:
        bits, size = bits_of(values), values.itemsize
        kernels.expand(bits, size, offset, packed_mask, bits_of(out), read_next, threads)


def used_values(length: int, fills: Iterable[tuple[int, Mask]]) -> Mask:
    """Which values of a prototype some mask uses, bool [length]; from (offset, mask [n]) pairs."""
    used = np.zeros(length, np.bool_)
    for offset, mask in fills:
        head = min(length - offset, mask.size)
        used[offset : offset + head] |= mask[:head]
        rest = mask[head:]
        whole = rest.size // length * length
        if whole:
            used |= rest[:whole].reshape(-1, length).any(axis=0)
        used[: rest.size - whole] |= rest[whole:]
    return used
