"""Dense sections → the values of their tensors (spec/pemn.md section 7)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pemncodec.coders.affine import AffinePart
from pemncodec.coders.dense import decode_affine_parts, decode_dense, dense_coder
from pemncodec.contents import CARRIERS, Array, numel
from pemncodec.format.header import ConstantRow, DenseRow, Header
from pemncodec.format.sections import SectionSource, in_section


class DenseSections:
    """Decodes a group of dense tensors when one of them is asked for, and keeps it for the others.

    Attributes:
        groups: section → rows of its tensors, in order.
    """

    def __init__(self, source: SectionSource, header: Header) -> None:
        self._source = source
        self.groups: dict[int, list[DenseRow]] = {}
        for row in header.tensors:
            if isinstance(row, DenseRow):
                self.groups.setdefault(row.section, []).append(row)
        self._kept: dict[str, Array] = {}

    def values(self, row: DenseRow | ConstantRow) -> Array:
        """A tensor's values, [*shape], in the carrier dtype of its dtype."""
        if isinstance(row, ConstantRow):
            carrier = CARRIERS[row.dtype]
            return np.full(row.shape, np.frombuffer(row.value or bytes(carrier.itemsize), carrier))
        if row.name in self._kept:
            return self._kept[row.name]
        decoded = dict(self._decode(row.section))
        if len(decoded) > 1:
            self._kept |= decoded
        return decoded[row.name]

    def coder(self, section: int) -> str:
        """Name of the coder that made a section."""
        with in_section(self._source.place(section)):
            return dense_coder(self._source.read(section))

    def affine_parts(self, section: int) -> list[AffinePart]:
        """Codes and parameters of the tensors of a section whose coder is q8."""
        shapes = [row.shape for row in self.groups[section]]
        with in_section(self._source.place(section)):
            return decode_affine_parts(self._source.read(section), shapes)

    def _decode(self, section: int) -> Iterator[tuple[str, Array]]:
        rows = self.groups[section]
        data = self._source.read(section)
        with in_section(self._source.place(section)):
            items = decode_dense(data, [row.shape for row in rows], rows[0].dtype)
        if len(rows) > 1:
            items.flags.writeable = False
        start = 0
        for row in rows:
            stop = start + numel(row.shape)
            yield row.name, items[start:stop].reshape(row.shape)
            start = stop
