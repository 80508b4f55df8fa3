"""Prototype + fill → a layer's values (spec/pemn.md section 5.3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pemncodec import kernels
from pemncodec.contents import (
    Array,
    Fill,
    Prototype,
    SeededPrototype,
    StoredPrototype,
    bits_of,
)
from pemncodec.values.philox import generate, masked_normal, permutation
from pemncodec.values.rounding import one_nan, round_to, widen

Mask = npt.NDArray[np.bool_]
PackedMask = npt.NDArray[np.uint8]

_SLICE = 1 << 16  # values made at one time: they and what they are made of stay in the cache


def prototype_values(prototype: Prototype) -> Array:
    """A prototype's values before scaling, [length]; float32 for a seeded one."""
    if isinstance(prototype, StoredPrototype):
        return prototype.values
    if not prototype.period:
        return seeded_slice(prototype, 0, prototype.length)
    seed, stream, period = prototype.seed, prototype.stream, prototype.period
    values = generate(prototype.distribution, seed, 0, period, stream=stream)
    return values[permutation(seed, period, prototype.length, stream=stream) % period]


def seeded_slice(
    prototype: SeededPrototype, start: int, stop: int, scale: float = 1.0
) -> npt.NDArray[np.float32]:
    """Values `start` to `stop` of a prototype that is not shuffled, scaled in binary32."""
    source = prototype
    return generate(
        source.distribution, source.seed, start, stop, stream=source.stream, scale=scale
    )


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


@dataclass(frozen=True, slots=True, eq=False)
class SeededValues:
    """The values of a masked tensor that are made where they are needed, a slice at a time.

    Attributes:
        prototype: a seeded one that is not shuffled.
        fill: of the tensor.
        dtype: of the tensor.
    """

    prototype: SeededPrototype
    fill: Fill
    dtype: str

    def fill_masked(self, start: int, packed_mask: PackedMask, out: Array) -> None:
        """As `RepeatedValues.fill_masked`."""
        first = (self.fill.offset + start) % self.prototype.length
        if self._is_normal and first + out.size <= self.prototype.length:
            seed, stream = self.prototype.seed, self.prototype.stream
            masked_normal(seed, first, packed_mask, out, stream=stream, scale=self.fill.scale)
            return
        for done in range(0, out.size, _SLICE):
            part = out[done : done + _SLICE]
            values = self._values(self.fill.offset + start + done, part.size)
            _expand(
                round_to(values, self.dtype), 0, packed_mask[done // 8 : (done + _SLICE) // 8], part
            )

    @property
    def _is_normal(self) -> bool:
        """Whether words become weights by one table."""
        return self.prototype.distribution == "normal" and self.dtype == "float32"

    def _values(self, start: int, count: int) -> Array:
        source, parts = self.prototype, []
        while count:
            start %= source.length
            stop = min(start + count, source.length)
            parts.append(seeded_slice(source, start, stop, self.fill.scale))
            count -= stop - start
            start = stop
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _expand(values: Array, offset: int, packed_mask: PackedMask, out: Array) -> None:
    if out.size:
        kernels.expand(bits_of(values), values.itemsize, offset, packed_mask, bits_of(out))


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
