"""The header's schema: its tables, their columns, what each may hold (spec/pemn.md section 4.2).

One object a table, one array a field over all rows of the table; a field that has its default in
every row is left out. Unknown fields are refused, unless their name starts with "?".
"""

from __future__ import annotations

import re
import struct
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pemncodec.contents import CARRIERS, WEIGHT_DTYPES
from pemncodec.errors import CorruptError, LimitError
from pemncodec.limits import Limits
from pemncodec.values.philox import DISTRIBUTIONS
from pemncodec.values.torch_cpu import TORCH_DISTRIBUTIONS, TORCH_VARIANTS

MAX_INDEX = (1 << 63) - 1

SectionKind = Literal["manifest", "prototype", "dense", "mask"]
SECTION_KINDS: tuple[str, ...] = get_args(SectionKind)
SINGLE_FIELDS = ("sections", "metadata", "inference_only")  # fields that are no tables

Table = dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Column:
    """How a field's values are checked, and what stands for a column that is left out."""

    valid: Callable[[Any], bool]
    what: str
    default: Any = None


def is_int(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_one_of(choices: Sequence[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in choices


def _is_match(pattern: str) -> Callable[[Any], bool]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _is_error(value: Any) -> bool:
    # Comparing is exact for integers too, however long.
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def is_name(value: Any) -> bool:
    """A tensor name: text of 1 to 4096 characters that a terminal can show."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= 4096
        and not any(unicodedata.category(character).startswith("C") for character in value)
    )


def is_file_name(value: Any) -> bool:
    """Whether it names a file of the folder, on every system and in every URL, and nothing else."""
    return (
        is_name(value)
        and len(value) <= 255
        and value.endswith(".pemn")
        and not value.startswith(".")
        and not any(separator in value for separator in "/\\:")
    )


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_int(0, MAX_INDEX), value))


_SECTION = Column(is_int(0, MAX_INDEX), "an index")
_NAME = Column(is_name, "a name")
_KINDS = ("masked", "dense", "constant", "alias")

_TENSORS = {
    "name": _NAME,
    "kind": Column(_is_one_of(_KINDS), "a tensor kind", "dense"),
    "dtype": Column(_is_one_of(tuple(CARRIERS)), "a dtype", "float32"),
    "shape": Column(_is_shape, "a shape", []),
}
_MASKED = {
    "prototype": Column(is_int(0, MAX_INDEX), "an index", 0),
    "offset": Column(is_int(0, MAX_INDEX), "an offset", 0),
    "scale": Column(_is_match("[0-9a-f]{8}"), "eight hexadecimal digits", "3f800000"),
}
_MASKS = {"section": _SECTION}
_DENSE = {
    "section": _SECTION,
    "error": Column(_is_error, "a finite number from 0 on", 0),
}
_CONSTANT = {"value": Column(_is_match("([0-9a-f]{2})*"), "hexadecimal digits")}
_ALIAS = {"target": _NAME}
_PROTOTYPES = {
    "kind": Column(
        _is_one_of(("seeded", "stored", "torch", "shared")), "a prototype kind", "stored"
    ),
    "length": Column(is_int(1, MAX_INDEX), "a length"),
}
_SEEDED = {
    "distribution": Column(_is_one_of(DISTRIBUTIONS), "a distribution", "normal"),
    "seed": Column(_is_match("[0-9a-f]{16}"), "sixteen hexadecimal digits", "0" * 16),
    "stream": Column(_is_match("[0-9a-f]{16}"), "sixteen hexadecimal digits", "0" * 16),
    "period": Column(is_int(0, MAX_INDEX), "a period", 0),
}
_TORCH = {
    "distribution": Column(_is_one_of(TORCH_DISTRIBUTIONS), "a distribution", "normal"),
    # Has no default, so that the table is always there, and readers that do not know it refuse it.
    "seed": Column(_is_match("[0-9a-f]{8}"), "eight hexadecimal digits"),
    "gap": Column(is_int(-MAX_INDEX, MAX_INDEX), "a number of words", 0),
    "low": Column(_is_match("([0-9a-f]{8}){1,2}"), "8 or 16 hexadecimal digits", "bf800000"),
    "high": Column(_is_match("([0-9a-f]{8}){1,2}"), "8 or 16 hexadecimal digits", "3f800000"),
    "variant": Column(_is_one_of(TORCH_VARIANTS), "a variant", "vector"),
    "drawn": Column(is_int(0, MAX_INDEX), "a number of elements", 0),
}
_STORED = {
    "dtype": Column(_is_one_of(WEIGHT_DTYPES), "a dtype", "float32"),
    "used": Column(_is_one_of(("all", "masks")), "a used set", "all"),
    "section": _SECTION,
}
_SHARED = {
    "dtype": Column(_is_one_of(WEIGHT_DTYPES), "a dtype", "float32"),
    "file": Column(is_file_name, "the plain name of a .pemn file"),
    "prototype": Column(is_int(0, MAX_INDEX), "an index", 0),
    "digest": Column(_is_match("[0-9a-f]{64}"), "64 hexadecimal digits"),
}
SCHEMA: Mapping[str, Mapping[str, Column]] = {
    "tensors": _TENSORS,
    "masked": _MASKED,
    "masks": _MASKS,
    "dense": _DENSE,
    "constant": _CONSTANT,
    "alias": _ALIAS,
    "prototypes": _PROTOTYPES,
    "seeded": _SEEDED,
    "stored": _STORED,
    "torch": _TORCH,
    "shared": _SHARED,
}


def encode_columns(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Table]:
    """Rows of every table to its columns; neither default columns nor empty tables."""
    tables = {}
    for name, columns in SCHEMA.items():
        table = {
            key: [row[key] for row in rows[name]]
            for key, column in columns.items()
            if any(row[key] != column.default for row in rows[name])
        }
        if table:
            tables[name] = table
    return tables


def check_fields(header: Mapping[str, Any]) -> None:
    """Check that every field is known, before anything else: one may change what others mean.

    Raises:
        CorruptError: "unknown-field".
    """
    for key, table in header.items():
        if key.startswith("?") or key in SINGLE_FIELDS:
            continue
        if key not in SCHEMA:
            raise CorruptError("unknown-field", f"unknown required header field {key!r:.60}")
        for column in table if isinstance(table, dict) else ():
            if column not in SCHEMA[key] and not column.startswith("?"):
                raise CorruptError(
                    "unknown-field", f"unknown required header field {key}.{column!r:.60}"
                )
    runs = header.get("sections")
    for run in runs if isinstance(runs, list) else ():
        if isinstance(run, list) and len(run) == 2 and run[0] not in SECTION_KINDS:
            raise CorruptError("unknown-field", f"unknown section kind {run[0]!r:.60}")


def check_sizes(header: Mapping[str, Any], limits: Limits) -> None:
    """Check how many rows and dimensions there are, before any of them is looked at.

    Raises:
        LimitError: more rows than `limits.tensors`, or dimensions than `limits.dimensions`.
    """
    for name in SCHEMA:
        table = header.get(name)
        for key, values in table.items() if isinstance(table, dict) else ():
            if key.startswith("?") or not isinstance(values, list):
                continue
            if len(values) > limits.tensors:
                raise LimitError("limit", f"{name}.{key} has more than {limits.tensors} rows")
            for value in values if key == "shape" else ():
                if isinstance(value, list) and len(value) > limits.dimensions:
                    raise LimitError(
                        "limit", f"a tensor of more than {limits.dimensions} dimensions"
                    )


def decode_columns(header: Mapping[str, Any], name: str) -> Table:
    """The columns of one of the header's tables, every value checked.

    Raises:
        CorruptError: a column is no array, or has a value that it may not have.
    """
    table = header.get(name, {})
    if not isinstance(table, dict):
        raise CorruptError("header", f"{name} is not an object")
    result: Table = {}
    for key, values in table.items():
        if key.startswith("?"):
            continue
        if not isinstance(values, list):
            raise CorruptError("header", f"{name}.{key} is not an array")
        column = SCHEMA[name][key]
        for value in values:
            if not column.valid(value):
                raise CorruptError(
                    "header", f"{name}.{key} has {value!r:.60} in place of {column.what}"
                )
        result[key] = values
    return result


def table_rows(tables: Mapping[str, Table], name: str, count: int) -> list[dict[str, Any]]:
    """`count` rows of a table, left-out columns filled with their defaults."""
    table = tables[name]
    full = {}
    for key, column in SCHEMA[name].items():
        values = table.get(key)
        if values is None:
            if column.default is None and count:
                raise CorruptError("header", f"{name}.{key} is missing")
            values = [column.default] * count
        if len(values) != count:
            raise CorruptError("header", f"{name}.{key} has {len(values)} rows, expected {count}")
        full[key] = values
    return [{key: values[row] for key, values in full.items()} for row in range(count)]


def broken(message: str) -> CorruptError:
    """The error of a rule of the header that is broken."""
    return CorruptError("header", message)


def check_section(index: int, kind: SectionKind, sections: Sequence[SectionKind]) -> None:
    """Raises CorruptError unless there is a section of that kind."""
    if index >= len(sections) or sections[index] != kind:
        raise broken(f"section {index} is not a {kind} section")


def float_to_hex(value: float) -> str:
    """The bits of a binary32."""
    return struct.pack(">f", value).hex()


def float_from_hex(text: str) -> float:
    """A binary32 of its bits."""
    (value,) = struct.unpack(">f", bytes.fromhex(text))
    return float(value)


def double_to_hex(value: float) -> str:
    """The bits of a binary64."""
    return struct.pack(">d", value).hex()


def double_from_hex(text: str) -> float:
    """A binary64 of its bits."""
    (value,) = struct.unpack(">d", bytes.fromhex(text))
    return float(value)
