"""Reading a .pemn file, with random access to what it holds (spec/pemn.md sections 2 to 4)."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import numpy as np
from bitarray import bitarray

from pemncodec.architecture.manifest import decode_manifest
from pemncodec.coders.packed import unpack
from pemncodec.contents import CARRIERS, Array, Mask, PackedMask, numel
from pemncodec.format.dense_sections import DenseSections
from pemncodec.format.filling import fill_tensors
from pemncodec.format.header import (
    AliasRow,
    ConstantRow,
    DenseRow,
    Header,
    MaskedRow,
    TensorRow,
)
from pemncodec.format.info import FileInfo, file_info
from pemncodec.format.joining import join_prototypes
from pemncodec.format.masked_sections import MaskedSections, MaskedValues
from pemncodec.format.notebook import html_table
from pemncodec.format.opening import index_beside, open_sections
from pemncodec.format.prototype_rows import SharedRow
from pemncodec.format.sections import SectionSource, Source, in_section
from pemncodec.limits import Limits
from pemncodec.remote.urls import shown


class PemnFile:
    """An open file. Decodes what is asked for, and keeps what several tensors share.

    Opening checks signature, header and the file's size; every section is checked when it is
    first touched. Not safe for use by several threads at once.

    Attributes:
        limits: what the file may decode to.
        header: the rows of the file's header.
        dense: what decodes dense sections.
        masked: what decodes masks and prototypes.
    """

    def __init__(
        self,
        source: Source | SectionSource,
        limits: Limits | None = None,
    ) -> None:
        """Opens a path or URL, a binary file object, which stays the caller's, or other sections.

        Raises:
            DecodeError: not a file that this reader can read.
            OSError: from the file system, or from the server.
        """
        self.limits = limits or Limits()
        self._path = self._name = ""
        if isinstance(source, str | os.PathLike):
            self._path = source = os.fspath(source)
            self._name = f"{shown(source)!r}: "
        if not isinstance(source, SectionSource):
            source = open_sections(source, self.limits)
        self._source = source
        self.container = source.container
        self.header: Header = source.header
        self._rows = {row.name: row for row in self.header.tensors}
        self.dense = DenseSections(source, self.header)
        self.masked = MaskedSections(source, self.header)
        self._manifest: dict[str, Any] | None = None

    def close(self) -> None:
        """Closes what opening has opened."""
        self._source.close()

    def __repr__(self) -> str:
        what = "an architecture" if "manifest" in self.header.sections else "no architecture"
        return (
            f"<PemnFile {self._name}{self.container.file_size:,} bytes, {len(self._rows):,} "
            f"tensors, {len(self.header.masks):,} of them masked, {what}>"
        )

    def _repr_html_(self) -> str:
        rows = [(row.name, *self._shown(row)) for row in self.header.tensors]
        return html_table(repr(self)[1:-1], ("tensor", "kind", "dtype", "shape"), rows)

    def _shown(self, row: TensorRow) -> tuple[str, str, str]:
        placed = self.placed_row(row.name)
        kind = f"same as {row.target}" if isinstance(row, AliasRow) else ""
        kind = kind or ("masked" if isinstance(row, MaskedRow) else "dense")
        return kind, placed.dtype, "×".join(map(str, placed.shape)) or "scalar"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def index_beside(self) -> str | None:
        """Name of the index to which this file belongs as a shard, if one is in its folder."""
        return index_beside(self._path)

    def data(self) -> bytes | None:
        """All bytes of the file, which needs no other; None where they may not fit into memory."""
        if any(isinstance(row, SharedRow) for row in self.header.prototypes):
            return join_prototypes(self._source)
        return self._source.data()

    def expect(self, names: Collection[str] | None = None) -> None:
        """Says which tensors are read next, so that a remote file is asked for them together.

        Args:
            names: of the tensors; None for everything in the file.
        """
        if names is None:
            self._source.expect(range(len(self.container.sections)))
            return
        for name in names:
            row = self.placed_row(name)
            if isinstance(row, MaskedRow):
                self._source.expect(self.masked.needed(row))
            elif isinstance(row, DenseRow):
                self._source.expect([row.section])

    @property
    def metadata(self) -> dict[str, str]:
        """What the encoder's caller wanted to be kept, text to text."""
        return dict(self.header.metadata)

    @property
    def aliases(self) -> dict[str, str]:
        """Names of tied tensors to the name of the tensor that they share."""
        return {row.name: row.target for row in self.header.tensors if isinstance(row, AliasRow)}

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The architecture, validated; None in a file without one."""
        if self._manifest is None and "manifest" in self.header.sections:
            index = self.header.sections.index("manifest")
            data = self._source.read(index)
            with in_section(self._source.place(index)):
                self._manifest = decode_manifest(data, self.limits)
        return self._manifest

    def keys(self) -> list[str]:
        """Names of all tensors in `state_dict` order, aliases included."""
        return list(self._rows)

    def masked_keys(self) -> list[str]:
        """Names of the masked tensors."""
        return [row.name for row in self.header.tensors if isinstance(row, MaskedRow)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; KeyError when there is none of that name."""
        return self.placed_row(name).shape

    def dtype(self, name: str) -> str:
        """Name of a tensor's dtype, as torch calls it; KeyError when there is none."""
        return self.placed_row(name).dtype

    def placed_row(self, name: str) -> MaskedRow | DenseRow | ConstantRow:
        """The row of a tensor, of the one that it shares if it is an alias."""
        row = self._rows[name]
        while isinstance(row, AliasRow):
            row = self._rows[row.target]
        return row

    def masked_row(self, name: str) -> MaskedRow:
        """The row of a masked tensor; KeyError when there is none of that name."""
        row = self.placed_row(name)
        if not isinstance(row, MaskedRow):
            raise KeyError(f"{name} is not a masked tensor")
        return row

    def masked_values(self, name: str) -> MaskedValues:
        """A masked tensor whose values are made later; KeyError when there is none of that name."""
        return MaskedValues(self.masked_row(name), self.masked)

    def packed_mask(self, name: str) -> PackedMask:
        """A mask as packed bits, uint8 [ceil(n / 8)], weight i in bit i % 8 of byte i // 8."""
        return self.masked.packed_mask(self.masked_row(name))

    def mask(self, name: str) -> Mask:
        """A mask as bool [*shape]; KeyError when no masked tensor has that name."""
        shape = self.masked_row(name).shape
        return unpack(self.packed_mask(name), numel(shape)).reshape(shape)

    def mask_bits(self, name: str) -> bitarray:
        """A mask as a bitarray of n bits in C order."""
        bits = bitarray(buffer=self.packed_mask(name), endian="little").copy()
        del bits[numel(self.masked_row(name).shape) :]
        return bits

    def prototype(self, index: int) -> Array:
        """A prototype's values [length], +0.0 where no mask uses one that is stored by use.

        Those that several tensors share are kept, and so read-only.
        """
        return self.masked.prototype_values(index)

    def tensor(self, name: str) -> Array:
        """A tensor's values, masks applied, [*shape], in the carrier dtype of its dtype."""
        row = self.placed_row(name)
        if not isinstance(row, MaskedRow):
            return self.dense.values(row)
        values = np.empty(row.shape, CARRIERS[row.dtype])
        self.read_masked({name: values})
        return values

    def read_masked(
        self, targets: Mapping[str, Array], progress: Callable[[float], None] | None = None
    ) -> None:
        """Writes the values of masked tensors, as `tensor` gives them, into the caller's arrays.

        Args:
            targets: by name of the tensor the array to write to: C-ordered [*shape], in the carrier
                dtype of the tensor. After an error arrays may be half written.
            progress: called with the share that is done, 0 to 1.

        Raises:
            KeyError: no masked tensor has that name.
            ValueError: an array is not as described.
        """
        for name, target in targets.items():
            row = self.masked_row(name)
            carrier = CARRIERS[row.dtype]
            fits = target.shape == row.shape and target.dtype == carrier
            if not (fits and target.flags.c_contiguous and target.flags.writeable):
                raise ValueError(f"{name} needs a writable C-ordered {carrier} array {row.shape}")
        self.expect(targets)
        values = [(self.masked_values(name), target) for name, target in targets.items()]
        fill_tensors(values, progress)

    def verify(self, progress: Callable[[float], None] | None = None) -> None:
        """Decodes everything once.

        Args:
            progress: called with the share of all values that is decoded, 0 to 1.

        Raises:
            DecodeError: the first rule of the format that is found broken.
        """
        self.expect()
        own = [row for row in self.header.tensors if not isinstance(row, AliasRow)]
        count, done = sum(numel(row.shape) for row in own), 0
        for row in own:
            self.tensor(row.name)
            done += numel(row.shape)
            if progress is not None and count:
                progress(done / count)
        self.verify_rest()

    def check_sections(self) -> None:
        """Reads every section once.

        Raises:
            DecodeError: a checksum does not match.
        """
        self.expect()
        for index in range(len(self.container.sections)):
            self._source.read(index)

    def verify_rest(self) -> None:
        """Decodes what no tensor's values depend on: the manifest, prototypes without a user."""
        _ = self.manifest
        for index in self.masked.unused_prototypes():
            self.prototype(index)

    def info(self, *, decode: bool = True) -> FileInfo:
        """Bytes of every part and tensor.

        Args:
            decode: decodes the masks to count their ones. False reads nothing but the front of the
                file, and leaves out what that does not say: densities, entropies, coders and
                relative errors.
        """
        if decode:
            self.expect()
        return file_info(self.container, self.header, self.dense, self.masked, decode=decode)


def open_file(source: Source, *, limits: Limits | None = None) -> PemnFile:
    """Opens a .pemn file for reading, without torch.

    Args:
        source: a path; a URL, of which only what is needed is fetched; a binary file object; or the
            bytes of a file. A model in several files is named by its index, or by a folder that has
            no other one.
        limits: bounds on what the file may decode to.

    Raises:
        DecodeError: not a file that this reader can read.
        OSError: from the file system, or from the server.
    """
    return PemnFile(source, limits)
