"""The header's rows ↔ columnar JSON (spec/pemn.md section 4).

What a row may hold by itself is checked in `columns`; here, that rows fit each other, the section
table and the reader's limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pemncodec.coders.canonical_json import decode_json, encode_json
from pemncodec.contents import CARRIERS, WEIGHT_DTYPES, Fill, Seeded, TorchPrototype, numel
from pemncodec.errors import LimitError
from pemncodec.format.columns import (
    MAX_INDEX,
    SCHEMA,
    SectionKind,
    Table,
    broken,
    check_fields,
    check_section,
    check_sizes,
    decode_columns,
    encode_columns,
    float_from_hex,
    float_to_hex,
    is_int,
    table_rows,
)
from pemncodec.format.prototype_rows import (
    PrototypeRow,
    SharedRow,
    StoredRow,
    decode_prototypes,
    encode_prototypes,
)
from pemncodec.limits import RAISED_BY, Limits
from pemncodec.values.numpy_legacy import is_numpy
from pemncodec.values.torch_cpu import words_of


@dataclass(frozen=True, slots=True)
class MaskedRow:
    """A masked tensor: where its values come from. Its mask has a row of its own."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    fill: Fill


@dataclass(frozen=True, slots=True)
class MaskRow:
    """The mask of a masked tensor; its section holds the masks of all rows that name it, in order.

    Attributes:
        tensor: name of the tensor.
    """

    tensor: str
    section: int


@dataclass(frozen=True, slots=True)
class DenseRow:
    """A dense tensor; its section holds the rows that name it, in order.

    Attributes:
        error: how far its values are from what the writer was given, as the writer says.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    section: int
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class ConstantRow:
    """A dense tensor whose items all have the bytes `value`; b"" when there is no item."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    value: bytes


@dataclass(frozen=True, slots=True)
class AliasRow:
    """A second name of the earlier tensor `target`."""

    name: str
    target: str


TensorRow = MaskedRow | DenseRow | ConstantRow | AliasRow


@dataclass(frozen=True, slots=True)
class Header:
    """What the file lists in front of its sections.

    Attributes:
        masks: one for each masked tensor, in the order of these.
        inference_only: the tensors are good for eval mode alone, such as folded batch norms.
    """

    sections: tuple[SectionKind, ...]
    prototypes: tuple[PrototypeRow, ...]
    tensors: tuple[TensorRow, ...]
    masks: tuple[MaskRow, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    inference_only: bool = False


# ----------------------------------------------------------------------------------- encode


def encode_header(header: Header) -> bytes:
    """Rows to canonical JSON."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMA}
    for tensor in header.tensors:
        _encode_tensor(tensor, rows)
    rows["masks"] = [{"section": mask.section} for mask in header.masks]
    rows |= encode_prototypes(header.prototypes)
    value: dict[str, Any] = {**encode_columns(rows)}
    if header.sections:
        value["sections"] = _run_lengths(header.sections)
    if header.metadata:
        value["metadata"] = header.metadata
    if header.inference_only:
        value["inference_only"] = True
    return encode_json(value)


def minor_version(header: Header) -> int:
    """The first minor version that has all that is in a header."""
    if any(isinstance(row, SharedRow) for row in header.prototypes):
        return 4
    drawn = [row for row in header.prototypes if isinstance(row, TorchPrototype)]
    return 3 if any(map(is_numpy, drawn)) else 2 if drawn else 1


def _encode_tensor(tensor: TensorRow, rows: dict[str, list[dict[str, Any]]]) -> None:
    if isinstance(tensor, AliasRow):
        rows["tensors"].append(
            {"name": tensor.name, "kind": "alias", "dtype": "float32", "shape": []}
        )
        rows["alias"].append({"target": tensor.target})
        return
    common = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    if isinstance(tensor, MaskedRow):
        rows["tensors"].append(common | {"kind": "masked"})
        fill = tensor.fill
        rows["masked"].append(
            {
                "prototype": fill.prototype,
                "offset": fill.offset,
                "scale": float_to_hex(fill.scale),
            }
        )
    elif isinstance(tensor, DenseRow):
        rows["tensors"].append(common | {"kind": "dense"})
        rows["dense"].append({"section": tensor.section, "error": tensor.error or 0})
    else:
        rows["tensors"].append(common | {"kind": "constant"})
        rows["constant"].append({"value": tensor.value.hex()})


def _run_lengths(kinds: Sequence[str]) -> list[list[Any]]:
    runs: list[list[Any]] = []
    for kind in kinds:
        if runs and runs[-1][0] == kind:
            runs[-1][1] += 1
        else:
            runs.append([kind, 1])
    return runs


# ----------------------------------------------------------------------------------- decode


def decode_header(data: bytes, section_count: int, limits: Limits) -> Header:
    """Checked rows of canonical JSON: fields, limits, then what they hold (spec section 10).

    Args:
        data: the JSON.
        section_count: how many sections the file's table lists.
        limits: bounds; `decoded_bytes` covers all tensors and prototypes together.

    Raises:
        CorruptError: a rule of the spec is broken, or a required field is unknown.
        LimitError: a bound is passed.
    """
    value = decode_json(data, depth=limits.json_depth)
    if not isinstance(value, dict):
        raise broken("the header is not an object")
    check_fields(value)
    check_sizes(value, limits)
    tables = {name: decode_columns(value, name) for name in SCHEMA}
    sections = _decode_sections(value.get("sections", []), section_count)
    prototypes = decode_prototypes(tables, sections)
    tensors = _decode_tensors(tables, sections, prototypes)
    masks = _decode_masks(tables, sections, tensors)
    _check_sections_used(sections, prototypes, tensors, masks)
    if value.get("inference_only", True) is not True:
        raise broken("inference_only is there, but not true")
    metadata = _decode_metadata(value.get("metadata", {}))
    header = Header(sections, prototypes, tensors, masks, metadata, "inference_only" in value)
    check_totals(header, limits)
    return header


def check_totals(header: Header, limits: Limits) -> None:
    """Check what all prototypes and tensors decode to, and what prototypes take to be made.

    Raises:
        LimitError: a bound is passed.
    """
    _check_decoded_bytes(header.prototypes, header.tensors, limits)
    _check_drawn_words(header.prototypes, limits)


def _decode_sections(value: Any, section_count: int) -> tuple[SectionKind, ...]:
    kinds: list[SectionKind] = []
    if not isinstance(value, list):
        raise broken("sections is not an array")
    for run in value:
        if not (isinstance(run, list) and len(run) == 2 and is_int(1, section_count)(run[1])):
            raise broken("sections is not an array of [kind, count]")
        kind, count = run
        if kinds and kinds[-1] == kind:
            raise broken("two runs of sections of one kind follow each other")
        if len(kinds) + count > section_count:
            break
        kinds += [kind] * count
    else:
        if len(kinds) == section_count:
            if kinds.count("manifest") > 1:
                raise broken("more than one manifest")
            return tuple(kinds)
    raise broken(f"the header does not list the {section_count} sections of the table")


def _decode_tensors(
    tables: Mapping[str, Table],
    sections: Sequence[SectionKind],
    prototypes: Sequence[PrototypeRow],
) -> tuple[TensorRow, ...]:
    rows = table_rows(tables, "tensors", len(tables["tensors"].get("name", ())))
    kinds = [row["kind"] for row in rows]
    own = {
        kind: iter(table_rows(tables, kind, kinds.count(kind)))
        for kind in ("masked", "dense", "constant", "alias")
    }
    tensors: list[TensorRow] = []
    targets: set[str] = set()
    names: set[str] = set()
    for row in rows:
        name, kind, dtype = row["name"], row["kind"], row["dtype"]
        if name in names:
            raise broken(f"two tensors are named {name!r:.60}")
        names.add(name)
        shape = _decode_shape(row["shape"], dtype, name)
        columns = next(own[kind])
        if kind == "alias":
            if columns["target"] not in targets:
                raise broken(f"{name!r:.60} is an alias of no earlier tensor")
            if (dtype, shape) != ("float32", ()):
                raise broken(f"the alias {name!r:.60} has a dtype or shape of its own")
            tensors.append(AliasRow(name, columns["target"]))
            continue
        targets.add(name)
        if kind == "masked":
            if dtype not in WEIGHT_DTYPES:
                raise broken(f"a masked tensor of dtype {dtype}")
            tensors.append(MaskedRow(name, dtype, shape, _decode_fill(columns, prototypes)))
        elif kind == "dense":
            check_section(columns["section"], "dense", sections)
            error = float(columns["error"])
            tensors.append(DenseRow(name, dtype, shape, columns["section"], error))
        else:
            value = _decode_constant(columns["value"], dtype, shape, name)
            tensors.append(ConstantRow(name, dtype, shape, value))
    return tuple(tensors)


def _decode_masks(
    tables: Mapping[str, Table], sections: Sequence[SectionKind], tensors: Sequence[TensorRow]
) -> tuple[MaskRow, ...]:
    masked = [row.name for row in tensors if isinstance(row, MaskedRow)]
    rows = table_rows(tables, "masks", len(masked))
    for row in rows:
        check_section(row["section"], "mask", sections)
    return tuple(MaskRow(name, row["section"]) for name, row in zip(masked, rows, strict=True))


def _decode_shape(dimensions: list[int], dtype: str, name: str) -> tuple[int, ...]:
    width = CARRIERS[dtype].itemsize
    if width * math.prod(max(size, 1) for size in dimensions) > MAX_INDEX:
        raise broken(f"the shape of {name!r:.60} is out of range")
    return tuple(dimensions)


def _decode_constant(digits: str, dtype: str, shape: tuple[int, ...], name: str) -> bytes:
    value = bytes.fromhex(digits)
    if len(value) != (CARRIERS[dtype].itemsize if numel(shape) else 0):
        raise broken(f"the constant of {name!r:.60} has {len(value)} bytes")
    if dtype == "bool" and value > b"\1":
        raise broken(f"the constant of {name!r:.60} is no bool")
    return value


def _decode_fill(row: Mapping[str, Any], prototypes: Sequence[PrototypeRow]) -> Fill:
    if row["prototype"] >= len(prototypes):
        raise broken(f"there is no prototype {row['prototype']}")
    if row["offset"] >= prototypes[row["prototype"]].length:
        raise broken(f"offset {row['offset']} is behind the prototype's last value")
    scale = float_from_hex(row["scale"])
    if not math.isfinite(scale):
        raise broken(f"a scale of {scale}")
    return Fill(row["prototype"], row["offset"], scale)


def _check_sections_used(
    sections: Sequence[SectionKind],
    prototypes: Sequence[PrototypeRow],
    tensors: Sequence[TensorRow],
    masks: Sequence[MaskRow],
) -> None:
    used = [row.section for row in prototypes if isinstance(row, StoredRow)]
    if len(set(used)) != len(used):
        raise broken("two prototypes share a section")
    used += [mask.section for mask in masks]
    group_dtypes: dict[int, str] = {}
    for row in tensors:
        if isinstance(row, DenseRow) and row.dtype != group_dtypes.setdefault(
            row.section, row.dtype
        ):
            raise broken(f"section {row.section} holds tensors of different dtypes")
    unused = set(range(len(sections))) - set(used) - set(group_dtypes)
    unused -= {index for index, kind in enumerate(sections) if kind == "manifest"}
    if unused:
        raise broken(f"section {min(unused)} belongs to nothing")


def _check_decoded_bytes(
    prototypes: Sequence[PrototypeRow], tensors: Sequence[TensorRow], limits: Limits
) -> None:
    total = sum(
        row.length * CARRIERS["float32" if isinstance(row, Seeded) else row.dtype].itemsize
        for row in prototypes
    )
    total += sum(
        numel(row.shape) * CARRIERS[row.dtype].itemsize
        for row in tensors
        if not isinstance(row, AliasRow)
    )
    if total > limits.decoded_bytes:
        raise LimitError(
            "limit",
            f"the file decodes to {total:,} bytes, the limit is {limits.decoded_bytes:,}: "
            f"{RAISED_BY}",
        )


def _check_drawn_words(prototypes: Sequence[PrototypeRow], limits: Limits) -> None:
    """Words that torch's generator draws up to the last one that is used, for each seed."""
    ends: dict[int, int] = {}
    for row in prototypes:
        if isinstance(row, TorchPrototype):
            ends[row.seed] = max(ends.get(row.seed, 0), row.skip + words_of(row))
    total = sum(ends.values())
    if total > limits.drawn_words:
        raise LimitError(
            "limit",
            f"the prototypes need {total:,} words of torch's generator, the limit is "
            f"{limits.drawn_words:,}: {RAISED_BY}",
        )


def _decode_metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise broken("metadata is not an object of strings")
    return value
