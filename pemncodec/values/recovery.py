"""Given weights → the prototypes behind them.

Recovery is the encoder's own business: it looks for the shortest prototypes that reproduce every
*used* weight bit for bit. A masked-out weight is unknown to it, whether the model still carries its
value or was baked (multiplied by its mask).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pemncodec.contents import (
    CARRIERS,
    Array,
    Fill,
    Floats,
    Mask,
    Prototype,
    Seeded,
    SeededFill,
    StoredPrototype,
    bits_of,
)
from pemncodec.values.fill import (
    HELD_VALUES,
    is_made_in_slices,
    prototype_values,
    scale_values,
)
from pemncodec.values.generators import generator_of, seeded_slice
from pemncodec.values.periods import fold, ones_where_not, shortest_period
from pemncodec.values.scale import ScaleBounds

_BLOCK = 1 << 16  # weights that are compared at one time: they stay in the cache


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A masked layer whose values are to be found.

    Attributes:
        values: [n], carrier dtype of `dtype`.
        mask: bool [n]; only values where it is True count.
        fill: where the values are said to come from.
        shape: of the layer's weight, where it is known.
    """

    dtype: str
    values: Array
    mask: Mask
    fill: SeededFill | None = None
    shape: tuple[int, ...] = ()


def recover_prototypes(
    layers: Sequence[Layer],
    seeded: Sequence[Seeded] = (),
    progress: Callable[[float], None] | None = None,
    longest: int | None = None,
) -> tuple[tuple[Prototype, ...], tuple[Fill, ...]]:
    """Short prototypes that reproduce every used value, and each layer's fill.

    Greedy, from the largest layer to the smallest. Layers share a prototype as long as no used
    value contradicts: with max-layer and random-vector padding all of them do, with One-layer those
    of one shape, else each has its own.

    Args:
        layers: the masked layers.
        seeded: prototypes that the layers may come from, tried before anything is stored.
        progress: called with the share of the weights that have a prototype.
        longest: how many values a prototype may have that a layer is said to come from: as many as
            the network has masked weights; None where `layers` are all of it.
    """
    fills: list[Fill | None] = [None] * len(layers)
    prototypes: list[Prototype] = []
    numbers: dict[Seeded, int] = {}
    latest: dict[Seeded, SeededBlocks] = {}
    weights = sum(layer.values.size for layer in layers)
    done = 0

    def found(layer: Layer) -> None:
        nonlocal done
        done += layer.values.size
        if progress is not None and weights:
            progress(done / weights)

    for index, layer in enumerate(layers):
        # No strategy makes a prototype longer than the model; a damaged checkpoint may claim one.
        most = weights if longest is None else longest
        if (fill := layer.fill) is None or fill.prototype.length > most:
            continue
        # Layers that share a prototype are mostly all of them, or neighbours.
        if fill.prototype not in latest:
            latest = {fill.prototype: SeededBlocks(fill.prototype)}
        if comes_from(latest[fill.prototype], fill.scale, layer):
            number = numbers.setdefault(fill.prototype, len(numbers))
            fills[index] = Fill(number, scale=fill.scale)
            found(layer)
    prototypes += numbers
    for prototype in seeded:
        values = SeededBlocks(prototype)
        matches = {
            index: scale
            for index, layer in enumerate(layers)
            if fills[index] is None and (scale := seeded_scale(values, layer)) is not None
        }
        for index, scale in matches.items():
            fills[index] = Fill(len(prototypes), scale=scale)
            found(layers[index])
        if matches:
            prototypes.append(prototype)

    rest = [index for index, fill in enumerate(fills) if fill is None]
    sharers = shared_values(layers, rest, found)
    shared_of = {index: shared for shared in sharers for index in shared.layers}
    stored: dict[SharedValues, int] = {}
    # In the order of their first layer, so that a file lists prototypes as the network needs them.
    for index in sorted(shared_of):
        shared = shared_of[index]
        if shared not in stored:
            stored[shared] = len(prototypes)
            prototypes.append(shared.shortest())
        fills[index] = Fill(stored[shared])
    return tuple(prototypes), tuple(fill for fill in fills if fill is not None)


def shared_values(
    layers: Sequence[Layer],
    indices: Sequence[int],
    found: Callable[[Layer], None] = lambda _: None,
    least_common: int = 0,
) -> list[SharedValues]:
    """Which of the layers may share a prototype, as `recover_prototypes` lets them.

    Args:
        layers: of a network.
        indices: of those that are looked at.
        found: called with each.
        least_common: how many values a layer must use that others of its prototype use, too.
    """
    sharers: list[SharedValues] = []
    for index in sorted(indices, key=lambda index: -layers[index].values.size):
        layer = layers[index]
        for shared in sharers:
            if shared.agrees(layer, least_common):
                break
        else:
            shared = SharedValues(layer)
            sharers.append(shared)
        shared.merge(index, layer)
        found(layer)
    return sharers


class SharedValues:
    """What the layers of one prototype say about its values.

    Attributes:
        layers: their indices, from the largest to the smallest.
        dtype: of their values.
        bits: unsigned [n] of the largest; anything where no layer uses a value.
        known: bool [n], where some layer uses a value.
    """

    def __init__(self, largest: Layer) -> None:
        self.layers: list[int] = []
        self.dtype = largest.dtype
        # The layer's own memory, until another one shares the values.
        self.bits = bits_of(largest.values)
        self.known = largest.mask

    @property
    def values(self) -> Array:
        """[n], in the carrier dtype; anything where no layer uses a value."""
        return self.bits.view(CARRIERS[self.dtype])

    def agrees(self, layer: Layer, least_common: int = 0) -> bool:
        if layer.dtype != self.dtype:
            return False
        bits, common = bits_of(layer.values), 0
        for part in _blocks(layer.values.size):
            both = self.known[part] & layer.mask[part]
            if ((self.bits[part] != bits[part]) & both).any():
                return False
            common += int(np.count_nonzero(both)) if common < least_common else 0
        return common >= least_common

    def merge(self, index: int, layer: Layer) -> None:
        self.layers.append(index)
        if len(self.layers) == 1:  # the largest
            return
        if len(self.layers) == 2:
            self.bits, self.known = self.bits.copy(), self.known.copy()
        bits = bits_of(layer.values)
        for part in _blocks(layer.values.size):
            kept = ones_where_not(layer.mask[part], bits.dtype)
            self.bits[part] = (self.bits[part] & kept) | (bits[part] & ~kept)
            self.known[part] |= layer.mask[part]

    def shortest(self) -> StoredPrototype:
        length = shortest_period(self.bits, self.known)
        if 2 * length > self.bits.size:  # no shorter than what is in memory, or mapped, already
            return StoredPrototype(self.values, self.dtype, known=self.known, period=length)
        folded = fold(self.bits, self.known, length)
        return StoredPrototype(folded.view(CARRIERS[self.dtype]), self.dtype)


class SeededBlocks:
    """A seeded prototype's values, a block at a time; held where they are few or not sliceable."""

    def __init__(self, prototype: Seeded) -> None:
        self._prototype = prototype
        self._held = None if is_made_in_slices(prototype) else prototype_values(prototype)
        self._shared = generator_of(prototype).shared(prototype)  # which is worth holding

    def repeated(self, size: int) -> Iterator[tuple[Floats, slice]]:
        """The values, repeated to `size` or cut to it, and where each block lies."""
        if self._held is not None:
            yield from _repeated(self._held, size)
            return
        start, length = 0, self._prototype.length
        while start < size:
            first = start % length
            stop = min(first + HELD_VALUES, length, first + size - start)
            values = seeded_slice(self._prototype, first, stop)
            for part in _blocks(values.size):
                yield values[part], slice(start + part.start, start + part.stop)
            start += values.size


def comes_from(values: SeededBlocks, scale: float, layer: Layer) -> bool:
    """Whether a seeded prototype's values at a known scale make the layer's used ones."""
    bits = bits_of(layer.values)
    for block, part in values.repeated(layer.values.size):
        made = bits_of(scale_values(block, "float32", scale, layer.dtype))
        if ((made != bits[part]) & layer.mask[part]).any():
            return False
    return True


def seeded_scale(values: SeededBlocks, layer: Layer) -> float | None:
    """The scale at which a seeded prototype's values make the layer's used ones; None if none."""
    bounds = ScaleBounds(layer.dtype)
    for block, part in values.repeated(layer.values.size):
        mask = layer.mask[part]
        bounds.narrow(block[mask], layer.values[part][mask])
        if bounds.is_empty:
            return None
        if bounds.is_single:  # further weights can but refute it, which is quicker below
            break
    for scale in bounds.candidates():
        if comes_from(values, scale, layer):
            return scale
    return None


def _repeated(values: Floats, size: int) -> Iterator[tuple[Floats, slice]]:
    """`values`, repeated to `size` or cut to it, a block at a time, and where the block lies."""
    length = values.size
    if length < size:
        values = np.resize(values, length + _BLOCK)
    for part in _blocks(size):
        start = part.start % length
        yield values[start : start + part.stop - part.start], part


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))
