"""Which masked tensors of a file are smaller packed, and where their values come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pemncodec.coders.packed import unpack
from pemncodec.contents import (
    CARRIERS,
    Array,
    PackedMask,
    Prototype,
    SeededPrototype,
    StoredPrototype,
    bits_of,
    numel,
)
from pemncodec.format.header import MaskedRow
from pemncodec.format.masked_sections import MaskedValues
from pemncodec.format.reader import PemnFile
from pemncodec.values.fill import prototype_values, used_values

FOLDED_BYTES: Final = 1 << 30
"""The largest value that onnxruntime computes when a session is made; larger ones in every run."""

OPERATOR_BYTES: Final = 1 << 14
"""What the operators that make seeded values take, with their table, in an ONNX file."""

_TENSOR_BYTES: Final = 400  # names and operators of one packed tensor
_KINDS: Final = 2  # of values that take a bit each
_SAMPLE: Final = 1000  # values that tell nearly always that there are more


@dataclass(frozen=True, slots=True, eq=False)
class TwoValues:
    """Values of which only two are different.

    Attributes:
        bits: uint8 [ceil(values / 8)], 1 for the second of the two.
        count: of the values.
        pair: [2], in the carrier dtype of the prototype.
    """

    bits: PackedMask
    count: int
    pair: Array


@dataclass(frozen=True, slots=True, eq=False)
class PackedPrototype:
    """What the values of packed tensors are made of.

    Attributes:
        values: [length] or as many as are needed, in the carrier dtype of `dtype`; or the seed that
            makes them.
        dtype: of the values.
        length: number of values before they repeat.
        needed: how many values the largest tensor takes, from the first on.
    """

    values: Array | TwoValues | SeededPrototype
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
    users: dict[int, list[MaskedValues]] = {}
    dense: dict[str, str] = {}
    for name in file.masked_keys():
        masked = file.masked_values(name)
        if _dense_bytes(masked.row) <= _packed_bytes(masked.row):
            dense[name] = "weights so few are smaller than operators that make them"
        elif 4 * _last(masked.row) > FOLDED_BYTES:
            dense[name] = "weights so many would be made again in every run"
        else:
            users.setdefault(masked.row.fill.prototype, []).append(masked)
    found = {index: file.masked.prototype(index) for index in users}
    seeded = {i: own for i, own in found.items() if isinstance(own, SeededPrototype)}
    vectors = sum(4 * min(own.length, _needed(users[i])) for i, own in seeded.items())
    # Words of all prototypes are one value of the graph.
    by_operators = seeded if OPERATOR_BYTES < vectors <= FOLDED_BYTES else {}
    prototypes: dict[int, PackedPrototype] = {}
    for index, prototype in found.items():
        rows = [masked.row for masked in users[index]]
        values = by_operators.get(index) or _shortest(prototype, users[index])
        if _bytes_of(values) + sum(map(_packed_bytes, rows)) < sum(map(_dense_bytes, rows)):
            dtype = prototype.dtype if isinstance(prototype, StoredPrototype) else "float32"
            needed = _needed(users[index])
            prototypes[index] = PackedPrototype(values, dtype, prototype.length, needed)
        else:
            why = "values so many, of no seed that operators know, are no smaller than weights"
            dense |= {row.name: why for row in rows}
    packed = {m.row.name: m for index in prototypes for m in users[index]}
    return Packing(packed, prototypes, dense)


def _shortest(prototype: Prototype, users: Sequence[MaskedValues]) -> Array | TwoValues:
    """The values of a prototype that tensors need; those that no mask uses may be others."""
    values = prototype_values(prototype)[: _needed(users)]
    bits = bits_of(values)
    if np.unique(bits[:_SAMPLE]).size > _KINDS + 1:
        return values
    kinds = np.unique(bits)
    if kinds.size == _KINDS + 1 and kinds[0] == 0:  # +0.0 where no mask uses a stored one
        fills = ((m.row.fill.offset, unpack(m.packed_mask(), numel(m.row.shape))) for m in users)
        if not (bits[used_values(prototype.length, fills)[: values.size]] == 0).any():
            kinds = kinds[1:]
    if kinds.size != _KINDS:
        return values
    packed = np.packbits(bits == kinds[1], bitorder="little")
    return TwoValues(packed, values.size, kinds.view(values.dtype))


def _needed(users: Sequence[MaskedValues]) -> int:
    return max(_last(m.row) for m in users)


def _last(row: MaskedRow) -> int:
    return row.fill.offset + numel(row.shape)


def _bytes_of(values: Array | TwoValues | SeededPrototype) -> int:
    if isinstance(values, TwoValues):
        return values.bits.nbytes
    return values.nbytes if isinstance(values, np.ndarray) else 0


def _dense_bytes(row: MaskedRow) -> int:
    return numel(row.shape) * CARRIERS[row.dtype].itemsize


def _packed_bytes(row: MaskedRow) -> int:
    return -(-numel(row.shape) // 8) + _TENSOR_BYTES
