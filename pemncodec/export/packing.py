"""Which masked tensors of a file are smaller packed, and where their values come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from pemncodec.coders.packed import unpack
from pemncodec.contents import (
    CARRIERS,
    Array,
    PackedMask,
    Prototype,
    Seeded,
    SeededPrototype,
    StoredPrototype,
    bits_of,
    numel,
)
from pemncodec.format.header import MaskedRow
from pemncodec.format.masked_sections import MaskedValues
from pemncodec.format.reader import PemnFile
from pemncodec.values.fill import prototype_values, used_values

_OPERATOR_BYTES: Final = 1 << 14  # that make seeded values, with their table, in an ONNX file
_TENSOR_BYTES: Final = 400  # names and operators of one packed tensor
_SAMPLE: Final = 1000  # values that tell nearly always that there are more than two
_FEW_KINDS: Final = 6  # in the sample, where nearly all are two
_FEW_SHARE: Final = 256  # of values, at most one of so many is neither of the two

_OPERATORS_TOO_LARGE: Final = (
    "operators that make their values of a seed would take too many bytes or too much memory"
)
_VALUES_OF_ITS_OWN: Final = "each weight has a value of its own, which no seed makes"


@dataclass(frozen=True, slots=True, eq=False)
class TwoValues:
    """Values of which all but a few are one of two.

    Attributes:
        bits: uint8 [ceil(values / 8)], 1 for the second of the two.
        count: of the values.
        pair: [2], in the carrier dtype of the prototype.
        places: int32, of the few: signs of random numbers are seldom 0.
        others: these values, in the carrier dtype of the prototype.
    """

    bits: PackedMask
    count: int
    pair: Array
    places: npt.NDArray[np.int32]
    others: Array


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
        needed: how many values the largest tensor takes, from the first on.
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
    """

    count: int
    names: tuple[str, ...]
    of_seed: bool

    @property
    def in_words(self) -> str:
        """What it is, and why, on one line."""
        tensors = f"{len(self.names)} tensor" + "s" * (len(self.names) != 1)
        seed, why = ("a seed", f": {_OPERATORS_TOO_LARGE}") if self.of_seed else ("no seed", "")
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
    file: PemnFile, by_operators: ByOperators, most_values: int | None = None
) -> Packing:
    """What is worth packing of an open file.

    Args:
        file: open.
        by_operators: which seeds the form makes values of.
        most_values: how many of a tensor the form makes no more than once; None if it makes them
            in every run.
    """
    users: dict[int, list[MaskedValues]] = {}
    dense: dict[str, str] = {}
    for name in file.masked_keys():
        masked = file.masked_values(name)
        if _dense_bytes(masked.row) <= _packed_bytes(masked.row):
            dense[name] = "operators would take more bytes than so few weights"
        elif most_values is not None and _last(masked.row) > most_values:
            dense[name] = "so many weights would be made again in every run"
        else:
            users.setdefault(masked.row.fill.prototype, []).append(masked)
    found = {index: file.masked.prototype(index) for index in users}
    made = by_operators({i: (own, min(own.length, _needed(users[i]))) for i, own in found.items()})
    prototypes: dict[int, PackedPrototype] = {}
    vectors: list[KeptVector] = []
    for index, prototype in found.items():
        rows = [masked.row for masked in users[index]]
        of_seed = isinstance(prototype, Seeded)
        values: Values = (
            prototype
            if index in made and isinstance(prototype, Seeded)
            else _shortest(prototype, users[index])
        )
        size = _bytes_of(values) + made.get(index, 0)
        if size + sum(map(_packed_bytes, rows)) >= sum(map(_dense_bytes, rows)):
            why = _OPERATORS_TOO_LARGE if of_seed else _VALUES_OF_ITS_OWN
            dense |= {row.name: why for row in rows}
            continue
        dtype = prototype.dtype if isinstance(prototype, StoredPrototype) else "float32"
        prototypes[index] = PackedPrototype(values, dtype, prototype.length, _needed(users[index]))
        largest = max(numel(row.shape) for row in rows)
        if isinstance(values, np.ndarray) and 2 * values.size >= largest:
            names = tuple(row.name for row in rows)
            vectors.append(KeptVector(values.size, names, of_seed))
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


def _shortest(prototype: Prototype, users: Sequence[MaskedValues]) -> Array | TwoValues:
    """The values of a prototype that tensors need; those that no mask uses may be others."""
    values = prototype_values(prototype)[: _needed(users)]
    bits = bits_of(values)
    if np.unique(bits[:_SAMPLE]).size > _FEW_KINDS:
        return values
    known = bits != 0  # a stored value that no mask uses is +0.0
    if not known.all():
        fills = ((m.row.fill.offset, unpack(m.packed_mask(), numel(m.row.shape))) for m in users)
        known |= used_values(prototype.length, fills)[: values.size]
    kinds, counts = np.unique(bits[known], return_counts=True)
    if kinds.size < 2:
        return values
    first, second = pair = np.sort(kinds[np.argsort(counts)[-2:]])
    places = np.flatnonzero(known & (bits != first) & (bits != second))
    if places.size > values.size // _FEW_SHARE:
        return values
    packed = np.packbits(bits == second, bitorder="little")
    which = places.astype(np.int32)
    return TwoValues(packed, values.size, pair.view(values.dtype), which, values[places])


def _needed(users: Sequence[MaskedValues]) -> int:
    return max(_last(m.row) for m in users)


def _last(row: MaskedRow) -> int:
    return row.fill.offset + numel(row.shape)


def _bytes_of(values: Values) -> int:
    if isinstance(values, TwoValues):
        return values.bits.nbytes + values.places.nbytes + values.others.nbytes
    return values.nbytes if isinstance(values, np.ndarray) else 0


def _dense_bytes(row: MaskedRow) -> int:
    return numel(row.shape) * CARRIERS[row.dtype].itemsize


def _packed_bytes(row: MaskedRow) -> int:
    return -(-numel(row.shape) // 8) + _TENSOR_BYTES
