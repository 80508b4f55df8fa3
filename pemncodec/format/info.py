"""What a file costs, part by part: the numbers behind `pemn inspect` and every report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pemncodec.coders.mask_coder import order0_bits
from pemncodec.coders.packed import count_ones
from pemncodec.contents import CARRIERS, numel
from pemncodec.format.container import Container
from pemncodec.format.dense_sections import DenseSections
from pemncodec.format.header import (
    AliasRow,
    ConstantRow,
    DenseRow,
    Header,
    MaskedRow,
    TensorRow,
)
from pemncodec.format.masked_sections import MaskedSections
from pemncodec.format.notebook import html_table

PARTS = ("header", "manifest", "prototype", "dense", "mask")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        kind: "masked", "dense", "constant" or "alias".
        density: share of ones in the mask; None unless masked and decoded.
        coder: name of the mask's or the group's coder; None where there is no section, or where it
            was not read.
        bytes: of its section; of one that is shared, in proportion to the tensor's items.
        order0_bytes: n·H(p)/8 of the mask; None unless masked and decoded.
        max_error: the largest difference of a value from what was encoded, as the file says; 0
            where nothing was lost.
        relative_error: the same relative to the tensor's largest magnitude; 1 where all of it was
            lost; None where it was not decoded.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    density: float | None
    coder: str | None
    bytes: int
    order0_bytes: float | None
    max_error: float = 0.0
    relative_error: float | None = 0.0


@dataclass(frozen=True, slots=True, repr=False)
class FileInfo:
    """A file's bytes in five parts that add up to `file_bytes`.

    Attributes:
        header_bytes: signature, header, section table and their checksum.
        order0_bytes: Σ n·H(p)/8 over masks: what coders that treat bits as independent need; None
            where they were not decoded.
        masked_weights: number of weights under a mask.
        bits_per_weight: mask bits per masked weight; None without masks.
        dense_model_bytes: the same tensors uncompressed, as a dense file holds them.
        prototypes: one line each.
        inference_only: the tensors are good for eval mode alone (folded batch norms).
        shards: bytes of each file by name, of a model in several; the index is not among them.
    """

    file_bytes: int
    header_bytes: int
    manifest_bytes: int
    prototype_bytes: int
    dense_bytes: int
    mask_bytes: int
    order0_bytes: float | None
    masked_weights: int
    bits_per_weight: float | None
    dense_model_bytes: int
    format_version: str
    prototypes: tuple[str, ...]
    metadata: dict[str, str]
    tensors: tuple[TensorInfo, ...]
    inference_only: bool = False
    shards: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        ratio = self.dense_model_bytes / self.file_bytes
        compared = f"{ratio:.1f}× smaller" if ratio >= 1 else "larger"
        return (
            f"{self.file_bytes:,} bytes, {compared} than {self.dense_model_bytes:,} bytes of plain "
            "tensors"
        )

    def __repr__(self) -> str:
        return f"<FileInfo: {self}>"

    def _repr_html_(self) -> str:
        rows = [
            (part, f"{size:,}", f"{size / self.file_bytes:.1%}")
            for part, size in self.parts.items()
        ]
        return html_table(str(self), ("part", "bytes", "share"), rows)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, in the order of the file."""
        return {part: getattr(self, f"{part}_bytes") for part in PARTS}

    @property
    def largest_error(self) -> float:
        """Of any value, relative to the largest of its tensor; 0 if lossless, or not decoded."""
        return max((tensor.relative_error or 0.0 for tensor in self.tensors), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return asdict(self)


def share_bytes(total: int, weights: Sequence[int]) -> list[int]:
    """`total` split in proportion to `weights`, so that the parts add up to it."""
    whole = sum(weights)
    shares, given, seen = [], 0, 0
    for weight in weights:
        seen += weight
        upto = total * seen // whole if whole else total
        shares.append(upto - given)
        given = upto
    return shares


def file_info(
    container: Container,
    header: Header,
    dense: DenseSections,
    masked: MaskedSections,
    *,
    decode: bool,
) -> FileInfo:
    """The costs of an open file; see `PemnFile.info`.

    Raises:
        DecodeError: a section is damaged.
    """
    by_kind = dict.fromkeys(("manifest", "prototype", "dense", "mask"), 0)
    for kind, entry in zip(header.sections, container.sections, strict=True):
        by_kind[kind] += entry.length
    sharers: dict[int, Sequence[DenseRow | MaskedRow]] = {**dense.groups, **masked.sharers}
    coders: dict[int, str] = {}
    if decode:
        coders |= {section: dense.coder(section) for section in dense.groups}
        coders |= {section: masked.coder(section).name for section in masked.sharers}
    costs: dict[str, tuple[str | None, int]] = {}
    for section, rows in sharers.items():
        size = container.sections[section].length
        shares = share_bytes(size, [numel(row.shape) for row in rows])
        for row, share in zip(rows, shares, strict=True):
            costs[row.name] = coders.get(section), share
    placed = {row.name: row for row in header.tensors if not isinstance(row, AliasRow)}
    decoders = (dense, masked) if decode else None
    tensors = [_tensor_info(row, placed, costs, decoders) for row in header.tensors]
    own = [tensor for tensor in tensors if tensor.kind != "alias"]
    weights = sum(numel(tensor.shape) for tensor in own if tensor.kind == "masked")
    return FileInfo(
        file_bytes=container.file_size,
        header_bytes=container.size,
        manifest_bytes=by_kind["manifest"],
        prototype_bytes=by_kind["prototype"],
        dense_bytes=by_kind["dense"],
        mask_bytes=by_kind["mask"],
        order0_bytes=sum(tensor.order0_bytes or 0.0 for tensor in own) if decode else None,
        masked_weights=weights,
        bits_per_weight=8 * by_kind["mask"] / weights if weights else None,
        dense_model_bytes=sum(numel(t.shape) * CARRIERS[t.dtype].itemsize for t in own),
        format_version="{}.{}".format(*container.version),
        prototypes=tuple(row.in_words for row in header.prototypes),
        metadata=dict(header.metadata),
        tensors=tuple(tensors),
        inference_only=header.inference_only,
        shards=container.shards,
    )


def _tensor_info(
    row: TensorRow,
    placed: Mapping[str, MaskedRow | DenseRow | ConstantRow],
    costs: Mapping[str, tuple[str | None, int]],
    decoders: tuple[DenseSections, MaskedSections] | None,
) -> TensorInfo:
    if isinstance(row, AliasRow):
        target = placed[row.target]
        return TensorInfo(row.name, target.shape, target.dtype, "alias", None, None, 0, None)
    if isinstance(row, ConstantRow):
        return TensorInfo(row.name, row.shape, row.dtype, "constant", None, None, 0, None)
    coder, size = costs[row.name]
    kind = "masked" if isinstance(row, MaskedRow) else "dense"
    if decoders is None:
        error = 0.0 if isinstance(row, MaskedRow) else row.error
        relative = None if error else 0.0
        return TensorInfo(
            row.name, row.shape, row.dtype, kind, None, None, size, None, error, relative
        )
    dense, masked = decoders
    if isinstance(row, MaskedRow):
        count = numel(row.shape)
        ones = count_ones(masked.packed_mask(row))
        density = ones / count if count else 0.0
        order0 = order0_bits(ones, count) / 8
        return TensorInfo(row.name, row.shape, row.dtype, kind, density, coder, size, order0)
    largest = float(np.abs(dense.values(row)).max(initial=0)) if row.error else 0.0
    relative = row.error / largest if largest else float(row.error > 0)
    return TensorInfo(
        row.name, row.shape, row.dtype, kind, None, coder, size, None, row.error, relative
    )
