"""Which masked tensors of a file are smaller packed, and where their values come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from pemncodec.contents import (
    CARRIERS,
    Array,
    Prototype,
    Seeded,
    SeededPrototype,
    StoredPrototype,
    TorchPrototype,
    numel,
)
from pemncodec.format.header import MaskedRow
from pemncodec.format.masked_sections import MaskedValues
from pemncodec.format.reader import PemnFile
from pemncodec.packed.two_values import TwoValues, two_values
from pemncodec.values.fill import prototype_values

_OPERATOR_BYTES: Final = 1 << 14  # that make seeded values, with their table, in an ONNX file
_TENSOR_BYTES: Final = 400  # names and operators of one packed tensor

_OPERATORS_TOO_LARGE: Final = (
    "operators that make their values of a seed would take too many bytes or too much memory"
)
_ONLY_ONNX: Final = (
    "only ONNX makes the values of torch's and NumPy's seeds: -o x.onnx --packed packs them, up to "
    "some millions of values"
)
_VALUES_OF_ITS_OWN: Final = "each weight has a value of its own, which no seed makes"

Values = Array | TwoValues | Seeded
"""Where the values of packed tensors come from: what a file holds, or a seed."""

Candidates = Mapping[int, tuple[Prototype, int]]
"""Prototypes by number, and how many values of each are needed, from the first on."""

ByOperators = Callable[[Candidates], Mapping[int, int]]
"""Which prototypes operators make of seeds, and how many bytes each takes so."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedPrototype:
    """What the values of packed tensors are made of.

    Attributes:
        values: [length] or as many as are needed, in the carrier dtype of `dtype`; or the seed that
            makes them.
        dtype: of the values.
        length: number of values before they repeat.
        needed: how many of them tensors take, from the first on.
    """

    values: Values
    dtype: str
    length: int
    needed: int


@dataclass(frozen=True, slots=True)
class KeptVector:
    """Values that a packed file holds as they are, though they are many.

    Attributes:
        count: of the values.
        names: of the tensors that take them.
        of_seed: whether a seed makes them.
        only_onnx: whether it is one whose values another form makes.
    """

    count: int
    names: tuple[str, ...]
    of_seed: bool
    only_onnx: bool = False

    @property
    def in_words(self) -> str:
        """What it is, and why, on one line."""
        tensors = f"{len(self.names)} tensor" + "s" * (len(self.names) != 1)
        cause = _ONLY_ONNX if self.only_onnx else _OPERATORS_TOO_LARGE
        seed, why = ("a seed", f": {cause}") if self.of_seed else ("no seed", "")
        return f"the vector of {self.count:,} values of {seed}, for {tensors}, is kept whole{why}"


@dataclass(frozen=True, slots=True)
class NotPacked:
    """What of a packed file is not as small as bits.

    Attributes:
        dense: names of masked tensors that are stored as weights, and why.
        vectors: with at least half as many values as the largest of the tensors that take them.
    """

    dense: Mapping[str, str] = field(default_factory=dict)
    vectors: tuple[KeptVector, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """How the masked tensors of a file are exported.

    Attributes:
        packed: tensors by name.
        prototypes: of these, by number.
        not_packed: all the rest.
    """

    packed: Mapping[str, MaskedValues]
    prototypes: Mapping[int, PackedPrototype]
    not_packed: NotPacked


def plan_packing(
    file: PemnFile, by_operators: ByOperators, *, draws: bool, most_values: int | None = None
) -> Packing:
    """What is worth packing of an open file.

    Args:
        file: open.
        by_operators: which seeds the form makes values of.
        draws: whether seeds of torch and NumPy can be among them.
        most_values: how many of a tensor the form makes no more than once; None if it makes them
            in every run.
    """
    users: dict[int, list[MaskedValues]] = {}
    dense: dict[str, str] = {}
    for name in file.masked_keys():
        masked = file.masked_values(name)
        if _dense_bytes(masked.row) <= _packed_bytes(masked.row):
            dense[name] = "operators would take more bytes than so few weights"
        elif most_values is not None and last_value(masked.row) > most_values:
            dense[name] = "so many weights would be made again in every run"
        else:
            users.setdefault(masked.row.fill.prototype, []).append(masked)
    found = {index: file.masked.prototype(index) for index in users}
    needed = {
        index: min(own.length, max(last_value(masked.row) for masked in users[index]))
        for index, own in found.items()
    }
    made = by_operators({index: (own, needed[index]) for index, own in found.items()})
    prototypes: dict[int, PackedPrototype] = {}
    vectors: list[KeptVector] = []
    for index, prototype in found.items():
        rows = [masked.row for masked in users[index]]
        of_seed = isinstance(prototype, Seeded)
        only_onnx = isinstance(prototype, TorchPrototype) and not draws
        values: Values
        if index in made and isinstance(prototype, Seeded):
            values, size = prototype, made[index]
        else:
            two = two_values(prototype, users[index], needed[index])
            values = prototype_values(prototype)[: needed[index]] if two is None else two
            size = values.nbytes
        if size + sum(map(_packed_bytes, rows)) >= sum(map(_dense_bytes, rows)):
            seeded = _ONLY_ONNX if only_onnx else _OPERATORS_TOO_LARGE
            why = seeded if of_seed else _VALUES_OF_ITS_OWN
            dense |= {row.name: why for row in rows}
            continue
        dtype = prototype.dtype if isinstance(prototype, StoredPrototype) else "float32"
        prototypes[index] = PackedPrototype(values, dtype, prototype.length, needed[index])
        largest = max(numel(row.shape) for row in rows)
        if isinstance(values, np.ndarray) and 2 * values.size >= largest:
            names = tuple(row.name for row in rows)
            vectors.append(KeptVector(values.size, names, of_seed, only_onnx))
    packed = {m.row.name: m for index in prototypes for m in users[index]}
    return Packing(packed, prototypes, NotPacked(dense, tuple(vectors)))


def portable_by_operators(candidates: Candidates) -> dict[int, int]:
    """All that the portable generator makes, unless the values are so few as its operators."""
    seeded = {
        index: needed
        for index, (prototype, needed) in candidates.items()
        if isinstance(prototype, SeededPrototype)
    }
    return dict.fromkeys(seeded, 0) if 4 * sum(seeded.values()) > _OPERATOR_BYTES else {}


def last_value(row: MaskedRow) -> int:
    """Where a tensor's values end in a prototype that is repeated as often as it takes."""
    return row.fill.offset + numel(row.shape)


def _dense_bytes(row: MaskedRow) -> int:
    return numel(row.shape) * CARRIERS[row.dtype].itemsize


def _packed_bytes(row: MaskedRow) -> int:
    return -(-numel(row.shape) // 8) + _TENSOR_BYTES
