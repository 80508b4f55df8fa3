"""Which masked tensors of a file are smaller packed, and where their values come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pemncodec.contents import (
    CARRIERS,
    Array,
    Prototype,
    SeededPrototype,
    StoredPrototype,
    numel,
)
from pemncodec.format.header import MaskedRow
from pemncodec.format.masked_sections import MaskedValues
from pemncodec.format.reader import PemnFile
from pemncodec.values.fill import prototype_values

OPERATOR_BYTES: Final = 1 << 14
"""What the operators that make seeded values take, with their table, in an ONNX file."""

_TENSOR_BYTES: Final = 400  # names and operators of one packed tensor


@dataclass(frozen=True, slots=True, eq=False)
class PackedPrototype:
    """What the values of packed tensors are made of.

    Attributes:
        values: [length], in the carrier dtype of `dtype`, or the seed that makes them.
        dtype: of the values.
        length: number of values before they repeat.
        needed: how many values the largest tensor takes, from the first on.
    """

    values: Array | SeededPrototype
    dtype: str
    length: int
    needed: int


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """How the masked tensors of a file are exported.

    Attributes:
        packed: tensors by name.
        prototypes: of these, by number.
        dense: names of the others, and why they stay dense.
    """

    packed: Mapping[str, MaskedValues]
    prototypes: Mapping[int, PackedPrototype]
    dense: Mapping[str, str]


def plan_packing(file: PemnFile) -> Packing:
    """What is worth packing of an open file."""
    users: dict[int, list[MaskedRow]] = {}
    dense: dict[str, str] = {}
    for name in file.masked_keys():
        row = file.masked_row(name)
        if _dense_bytes(row) <= _packed_bytes(row):
            dense[name] = "weights so few are smaller than operators that make them"
        else:
            users.setdefault(row.fill.prototype, []).append(row)
    found = {index: file.masked.prototype(index) for index in users}
    seeded = {i for i, prototype in found.items() if isinstance(prototype, SeededPrototype)}
    vectors = sum(4 * min(found[i].length, _needed(users[i])) for i in seeded)
    by_operators = seeded if vectors > OPERATOR_BYTES else set()
    prototypes: dict[int, PackedPrototype] = {}
    for index, prototype in found.items():
        rows = users[index]
        packed = _packed_prototype(prototype, _needed(rows), by_operators=index in by_operators)
        size = packed.values.nbytes if isinstance(packed.values, np.ndarray) else 0
        if size + sum(map(_packed_bytes, rows)) < sum(map(_dense_bytes, rows)):
            prototypes[index] = packed
        else:
            why = "values so many, of no seed that operators know, are no smaller than weights"
            dense |= {row.name: why for row in rows}
    return Packing(
        {row.name: file.masked_values(row.name) for index in prototypes for row in users[index]},
        prototypes,
        dense,
    )


def _needed(rows: Sequence[MaskedRow]) -> int:
    return max(row.fill.offset + numel(row.shape) for row in rows)


def _packed_prototype(prototype: Prototype, needed: int, *, by_operators: bool) -> PackedPrototype:
    dtype = prototype.dtype if isinstance(prototype, StoredPrototype) else "float32"
    if by_operators and isinstance(prototype, SeededPrototype):
        return PackedPrototype(prototype, dtype, prototype.length, needed)
    values = prototype_values(prototype)[:needed]
    return PackedPrototype(values, dtype, prototype.length, needed)


def _dense_bytes(row: MaskedRow) -> int:
    return numel(row.shape) * CARRIERS[row.dtype].itemsize


def _packed_bytes(row: MaskedRow) -> int:
    return -(-numel(row.shape) // 8) + _TENSOR_BYTES
