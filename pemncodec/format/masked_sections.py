"""Mask and prototype sections → masks, prototypes and what fills a tensor (spec sections 5 and 6).

Masks and prototypes need each other: a prototype of which the file has the values that masks use
needs those masks; a mask whose coder knows the weights needs its prototype, which then is whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from pemncodec.coders.dense import decode_dense
from pemncodec.coders.mask_coder import Buckets, MaskBlock, MaskCoder, MaskContext
from pemncodec.coders.masks import blocks_of, decode_masks, mask_blocks, mask_coder
from pemncodec.coders.packed import unpack
from pemncodec.contents import (
    CARRIERS,
    Array,
    Mask,
    PackedMask,
    Prototype,
    Seeded,
    StoredPrototype,
    numel,
)
from pemncodec.format.contexts import prototype_buckets
from pemncodec.format.digests import check_digest
from pemncodec.format.header import Header, MaskedRow
from pemncodec.format.prototype_rows import SharedRow, StoredRow, referred_row
from pemncodec.format.sections import Place, SectionSource, in_file, in_section
from pemncodec.values.fill import (
    TensorValues,
    UsedValues,
    is_made_in_slices,
    places_of,
    prototype_values,
    scale_values,
    tensor_values,
    used_values,
)
from pemncodec.values.generators import generator_of

_BLOCK = 1 << 16  # values that are placed at one time: they stay in the cache
_SMALL_BYTES = 1 << 20  # of a prototype that is kept for the next question about it


class MaskedSections:
    """Decodes masks and prototypes when asked for, and keeps what several tensors share."""

    def __init__(self, source: SectionSource, header: Header) -> None:
        self._source = source
        self._header = header
        rows = {row.name: row for row in header.tensors if isinstance(row, MaskedRow)}
        self._section_of: dict[str, int] = {}
        self._users: dict[int, list[MaskedRow]] = {}
        self._kept_masks: dict[str, PackedMask] = {}
        self._kept_prototypes: dict[int, Array] = {}
        self._kept_buckets: dict[int, Buckets] = {}
        self.sharers: dict[int, list[MaskedRow]] = {}
        """Section → the tensors of its masks, in order."""
        for mask in header.masks:
            self._section_of[mask.tensor] = mask.section
            self.sharers.setdefault(mask.section, []).append(rows[mask.tensor])
        self._taken: dict[int, int] = {}
        for row in rows.values():
            index = row.fill.prototype
            self._users.setdefault(index, []).append(row)
            self._taken[index] = self._taken.get(index, 0) + numel(row.shape)
        self._shared = {
            generator_of(prototype).shared(prototype)
            for prototype in header.prototypes
            if isinstance(prototype, Seeded)
        }

    # -------------------------------------------------------------------------------- masks

    def packed_mask(self, row: MaskedRow) -> PackedMask:
        """The mask of a tensor of n weights as packed bits, uint8 [ceil(n / 8)]."""
        if row.name in self._kept_masks:
            return self._kept_masks[row.name]
        section = self._section_of[row.name]
        decoded = self._decoder(section, self._source.read(section))()
        if len(decoded) > 1:
            for packed in decoded.values():
                packed.flags.writeable = False
            self._kept_masks |= decoded
        return decoded[row.name]

    def own_section(self, row: MaskedRow) -> tuple[Place, bytes] | None:
        """The section that has a tensor's mask and no other: where it is, and its bytes. None where
        masks have to be decoded together, or a prototype needs them first."""
        section, prototype = self._section_of[row.name], self._header.prototypes[row.fill.prototype]
        by_use = isinstance(prototype, StoredRow) and prototype.used == "masks"
        if by_use or len(self.sharers[section]) > 1:
            return None
        return self._source.place(section), self._source.read(section)

    def section_of(self, row: MaskedRow) -> int:
        """The section of a tensor's mask."""
        return self._section_of[row.name]

    def needed(self, row: MaskedRow) -> set[int]:
        """The sections that a tensor's values are made of, as far as rows alone tell."""
        prototype = self._header.prototypes[row.fill.prototype]
        needed = {self._section_of[row.name]}
        if isinstance(prototype, StoredRow):
            needed.add(prototype.section)
            if prototype.used == "masks":
                needed |= {self._section_of[user.name] for user in self._users[row.fill.prototype]}
        return needed

    def coder(self, section: int) -> MaskCoder:
        """The coder that made a section."""
        with in_section(self._source.place(section)):
            return mask_coder(self._source.read(section))

    def _decoder(self, section: int, data: bytes) -> Callable[[], dict[str, PackedMask]]:
        """What decodes the masks of a section, by name; the call reads no more of the file."""
        rows, place = self.sharers[section], self._source.place(section)
        with in_section(place):
            coder = mask_coder(data)
        contexts = [
            MaskContext(
                row.shape,
                self._buckets(row.fill.prototype) if coder.context else None,
                row.fill.offset,
            )
            for row in rows
        ]

        def decode() -> dict[str, PackedMask]:
            with in_section(place):
                decoded = decode_masks(data, contexts)
            return dict(zip([row.name for row in rows], decoded, strict=True))

        return decode

    def _buckets(self, index: int) -> Callable[[], Buckets] | None:
        """What makes those of a prototype; None for one stored by use, which the masks tell."""
        row = self._header.prototypes[index]
        if isinstance(row, StoredRow) and row.used == "masks":
            return None
        if index not in self._kept_buckets:
            make = cache(partial(prototype_buckets, self._prototype(index)))
            if len(self._users[index]) == 1:
                return make  # called when the mask is decoded, and dropped with its decoder
            self._kept_buckets[index] = make()
        return lambda: self._kept_buckets[index]

    # --------------------------------------------------------------------------- prototypes

    def prototype_values(self, index: int) -> Array:
        """A prototype's values [length]; +0.0 where no mask uses one that is stored by use."""
        if index in self._kept_prototypes:
            return self._kept_prototypes[index]
        row = self._header.prototypes[index]
        if isinstance(row, Seeded):
            values = prototype_values(row)
        elif isinstance(row, StoredRow):
            values = self._stored_values(row, index)
        else:
            values = self._shared_values(row)
        # One that a single tensor uses is as large as that tensor.
        if values.nbytes <= _SMALL_BYTES or len(self._users.get(index, ())) > 1:
            values = values.view()
            values.flags.writeable = False
            self._kept_prototypes[index] = values
        return values

    def prototype(self, index: int) -> Prototype:
        """A prototype as the file has it: a seed, or values in memory."""
        row = self._header.prototypes[index]
        if isinstance(row, Seeded):
            return row
        return StoredPrototype(self.prototype_values(index), row.dtype)

    def unused_prototypes(self) -> list[int]:
        """Prototypes without a seed that no tensor takes values from."""
        return [
            index
            for index, row in enumerate(self._header.prototypes)
            if not isinstance(row, Seeded) and index not in self._users
        ]

    def _prototype(self, index: int) -> Prototype:
        """With its values in memory, unless they are better made in slices."""
        row = self._header.prototypes[index]
        if is_made_in_slices(row, self._taken[index]):
            return row
        dtype = "float32" if isinstance(row, Seeded) else row.dtype
        return StoredPrototype(self.prototype_values(index), dtype)

    def _shared_values(self, row: SharedRow) -> Array:
        """Those that another file stores."""
        with contextlib.closing(self._source.beside(row.file)) as other, in_file(row.file):
            stored = referred_row(row, other.header.prototypes)
            values = MaskedSections(other, other.header).prototype_values(row.prototype)
            check_digest(stored.dtype, values, row.digest)
        return values

    def _stored_values(self, row: StoredRow, index: int) -> Array:
        if row.used == "all":
            values = self._decode_stored(row, row.length)
            if row.digest:
                with in_section(self._source.place(row.section)):
                    check_digest(row.dtype, values, row.digest)
            return values
        used = self._used(row, index)
        return _placed(self._decode_stored(row, int(np.count_nonzero(used))), used)

    def _used(self, row: StoredRow, index: int) -> Mask:
        """Which values of a prototype masks use, bool [length]."""
        users = self._users.get(index, [])
        # Kept for when these tensors are filled, which is next.
        self._kept_masks |= {user.name: self.packed_mask(user) for user in users}
        return used_values(
            row.length,
            (
                (user.fill.offset, unpack(self._kept_masks[user.name], numel(user.shape)))
                for user in users
            ),
        )

    def _decode_stored(self, row: StoredRow, count: int) -> Array:
        data = self._source.read(row.section)
        with in_section(self._source.place(row.section)):
            return decode_dense(data, [(count,)], row.dtype)

    # ------------------------------------------------------------------------------ filling

    def fill_jobs(self, targets: Sequence[tuple[MaskedRow, Array]]) -> list[Callable[[], None]]:
        """What fills tensors whose masks are in one section; jobs may run at the same time.

        Args:
            targets: rows, and C-ordered [n] in the carrier dtype of each.
        """
        section = self._section_of[targets[0][0].name]
        place = self._source.place(section)
        # First, since a prototype that is stored by use needs masks, which are kept then.
        values = [self.values_of(row) for row, _ in targets]
        names = {row.name for row, _ in targets}
        sharers = {row.name for row in self.sharers[section]}
        if names != sharers or not names.isdisjoint(self._kept_masks):
            return [
                partial(_fill_block, place, block, own, out)
                for (row, out), own in zip(targets, values, strict=True)
                for block in blocks_of(self._last_mask(row), out.size)
            ]
        data = self._source.read(section)
        with in_section(place):
            coder = mask_coder(data)
        if len(targets) > 1 or coder.context:
            return [partial(_fill_all, self._decoder(section, data), targets, values)]
        ((row, out),) = targets
        with in_section(place):
            blocks = mask_blocks(data, MaskContext(row.shape))
        return [partial(_fill_block, place, block, values[0], out) for block in blocks]

    def part_jobs(
        self, row: MaskedRow, parts: Sequence[tuple[int, int]], out: Array
    ) -> list[Callable[[], None]]:
        """What fills the blocks of a tensor of n weights, as far as some parts of it need them.

        Args:
            row: of the tensor.
            parts: the first weight of each part, and the one behind its last.
            out: C-ordered [n] in the carrier dtype; what is not in these blocks stays as it is, and
                so may what no part needs.
        """
        section = self._section_of[row.name]
        place = self._source.place(section)
        values = self.values_of(row)
        data = self._source.read(section)
        with in_section(place):
            in_blocks = mask_coder(data).blocks is not None and row.name not in self._kept_masks
            context = MaskContext(row.shape)
            if in_blocks:
                blocks = mask_blocks(data, context)
            else:
                blocks = blocks_of(self._last_mask(row), context.count)
        jobs: list[Callable[[], None]] = []
        for block in blocks:
            ends = [stop for start, stop in parts if start < block.stop and block.start < stop]
            if ends:
                count = min(max(ends), block.stop) - block.start
                beginning = out[: min(block.start + -(-count // 8) * 8, block.stop)]
                jobs.append(partial(_fill_block, place, block, values, beginning))
        return jobs

    def mask_and_slices(
        self, row: MaskedRow, size: int, pool: Executor | None = None
    ) -> tuple[PackedMask, list[Callable[[], Array]]]:
        """The mask of a tensor, and what makes its values, of so many weights each.

        Args:
            row: of the tensor.
            size: of all slices but the last; a multiple of 8.
            pool: decodes blocks of the mask at the same time.
        """
        # First, since a prototype that is stored by use needs masks, which are kept then.
        values = self.values_of(row)
        packed, count = self._last_mask(row, pool), numel(row.shape)

        def make(start: int) -> Array:
            out = np.empty(min(size, count - start), CARRIERS[row.dtype])
            values.fill_masked(start, packed[start // 8 : (start + size) // 8], out)
            return out

        return packed, [partial(make, start) for start in range(0, count, size)]

    def _last_mask(self, row: MaskedRow, pool: Executor | None = None) -> PackedMask:
        """`packed_mask`, which is no longer kept if it cost no other mask to decode it."""
        packed = self._mask_in_blocks(row, pool) if pool is not None else self.packed_mask(row)
        if len(self.sharers[self._section_of[row.name]]) == 1:
            self._kept_masks.pop(row.name, None)
        return packed

    def _mask_in_blocks(self, row: MaskedRow, pool: Executor) -> PackedMask:
        """`packed_mask`, its blocks decoded at the same time where it has some."""
        section = self._section_of[row.name]
        data, place = self._source.read(section), self._source.place(section)
        with in_section(place):
            if row.name in self._kept_masks or mask_coder(data).blocks is None:
                return self.packed_mask(row)
            blocks = mask_blocks(data, MaskContext(row.shape))
            decoded = pool.map(lambda block: block.decode(block.stop - block.start), blocks)
            return np.concatenate([np.empty(0, np.uint8), *decoded])

    def values_of(self, row: MaskedRow) -> TensorValues:
        """The values that a tensor takes, scaled."""
        index = row.fill.prototype
        stored = self._header.prototypes[index]
        if isinstance(stored, StoredRow) and self._is_used_once(stored, index):
            places = places_of(self._used(stored, index))
            kept = self._decode_stored(stored, places.count)
            scaled = scale_values(kept, stored.dtype, row.fill.scale, row.dtype)
            return UsedValues(scaled, places, row.fill.offset)
        prototype = self._prototype(index)
        return tensor_values(prototype, row.fill, row.dtype, numel(row.shape))

    def _is_used_once(self, row: StoredRow, index: int) -> bool:
        """Whether a prototype has the values that masks use alone, is large, and one tensor takes
        hardly any of them twice: then no memory is needed for the others."""
        return (
            row.used == "masks"
            and len(self._users[index]) == 1
            and self._taken[index] < 2 * row.length
            and row.length * CARRIERS[row.dtype].itemsize > _SMALL_BYTES
        )


@dataclass(frozen=True, slots=True, eq=False)
class MaskedValues:
    """A masked tensor of an open file whose values are not made yet.

    Attributes:
        row: its name, dtype, shape and fill.
        sections: of the file.
    """

    row: MaskedRow
    sections: MaskedSections

    def packed_mask(self) -> PackedMask:
        """Its mask as packed bits, uint8 [ceil(n / 8)]."""
        return self.sections.packed_mask(self.row)

    def own_section(self) -> tuple[Place, bytes] | None:
        """As `MaskedSections.own_section`."""
        return self.sections.own_section(self.row)

    def prototype(self) -> Prototype:
        """Where its values come from: a seed, or values in memory."""
        return self.sections.prototype(self.row.fill.prototype)


def _placed(kept: Array, used: Mask) -> Array:
    """One value after the other where a mask is True, +0.0 elsewhere."""
    values = np.zeros(used.size, kept.dtype)
    done = 0
    for start in range(0, used.size, _BLOCK):
        # Several times as fast as by the mask.
        places = np.flatnonzero(used[start : start + _BLOCK])
        values[start : start + _BLOCK][places] = kept[done : done + places.size]
        done += places.size
    return values


def _fill_block(place: Place, block: MaskBlock, values: TensorValues, out: Array) -> None:
    """Fills a block's weights, or the first of them where `out` ends within it."""
    own = out[block.start : block.stop]
    with in_section(place):
        packed = block.decode(own.size)
    values.fill_masked(block.start, packed, own)


def _fill_all(
    decode: Callable[[], dict[str, PackedMask]],
    targets: Sequence[tuple[MaskedRow, Array]],
    values: Sequence[TensorValues],
) -> None:
    decoded = decode()
    for (row, out), own in zip(targets, values, strict=True):
        own.fill_masked(0, decoded[row.name], out)
