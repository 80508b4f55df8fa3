"""Rows of prototypes ↔ the header's tables of them (spec/pemn.md sections 4.2 and 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pemncodec.contents import Seeded, SeededPrototype, TorchPrototype
from pemncodec.errors import ShardError
from pemncodec.format.columns import (
    SectionKind,
    Table,
    broken,
    check_section,
    double_from_hex,
    double_to_hex,
    float_from_hex,
    float_to_hex,
    table_rows,
)
from pemncodec.values.generators import check_prototype
from pemncodec.values.torch_cpu import words_of

Used = Literal["all", "masks"]
_KINDS: Final = ("seeded", "stored", "torch", "shared")
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A stored prototype.

    Attributes:
        used: whether all values are there or those that a mask uses.
        digest: of the values, as other shards have it that take them from here; "" if none does.
    """

    dtype: str
    length: int
    used: Used
    section: int
    digest: str = ""

    @property
    def in_words(self) -> str:
        """What it is, on one line."""
        stored = "stored" if self.used == "all" else "of which the used ones are stored"
        return f"{self.length:,} {self.dtype} values, {stored}"


@dataclass(frozen=True, slots=True)
class SharedRow:
    """A prototype whose values another file of the folder stores.

    Attributes:
        file: name of that file.
        prototype: number of the prototype in it.
        digest: of the values, see `prototype_digest`.
    """

    dtype: str
    length: int
    file: str
    prototype: int
    digest: str

    @property
    def in_words(self) -> str:
        """What it is, on one line."""
        return f"{self.length:,} {self.dtype} values, stored in {self.file}"


PrototypeRow = Seeded | StoredRow | SharedRow
"""A prototype as a file lists it."""


def referred_row(row: SharedRow, prototypes: Sequence[PrototypeRow]) -> StoredRow:
    """The prototype of another file that a shared one refers to.

    Raises:
        ShardError: it is not there.
    """
    found = prototypes[row.prototype] if row.prototype < len(prototypes) else None
    if (
        isinstance(found, StoredRow)
        and found.used == "all"
        and (found.dtype, found.length) == (row.dtype, row.length)
    ):
        return found
    raise ShardError(
        "shard",
        f"it stores no {row.in_words.partition(',')[0]} as prototype {row.prototype}: it is not "
        "the file that belongs to this one",
    )


def encode_prototypes(prototypes: Sequence[PrototypeRow]) -> dict[str, list[_Row]]:
    """The rows of all tables that describe prototypes."""
    rows: dict[str, list[_Row]] = {kind: [] for kind in ("prototypes", *_KINDS)}
    before = (0, 0)
    for prototype in prototypes:
        if isinstance(prototype, SeededPrototype):
            kind, own = "seeded", _encode_seeded(prototype)
        elif isinstance(prototype, TorchPrototype):
            kind, own = "torch", _encode_torch(prototype, before)
            before = prototype.seed, prototype.skip + words_of(prototype)
        elif isinstance(prototype, StoredRow):
            kind, own = "stored", _encode_stored(prototype)
        else:
            kind, own = "shared", _encode_shared(prototype)
        rows["prototypes"].append({"kind": kind, "length": prototype.length})
        rows[kind].append(own)
    return rows


def decode_prototypes(
    tables: Mapping[str, Table], sections: Sequence[SectionKind]
) -> tuple[PrototypeRow, ...]:
    """The prototypes of checked columns.

    Raises:
        CorruptError: a row breaks a rule.
    """
    rows = table_rows(tables, "prototypes", len(tables["prototypes"].get("length", ())))
    kinds = [row["kind"] for row in rows]
    own: dict[str, Iterator[_Row]] = {
        kind: iter(table_rows(tables, kind, kinds.count(kind))) for kind in _KINDS
    }
    prototypes: list[PrototypeRow] = []
    before = (0, 0)
    for row in rows:
        columns, length = next(own[row["kind"]]), row["length"]
        if row["kind"] == "seeded":
            prototypes.append(_decode_seeded(columns, length))
        elif row["kind"] == "torch":
            prototype = _decode_torch(columns, length, before)
            before = prototype.seed, prototype.skip + words_of(prototype)
            prototypes.append(prototype)
        elif row["kind"] == "stored":
            prototypes.append(_decode_stored(columns, length, sections))
        else:
            prototypes.append(_decode_shared(columns, length))
    return tuple(prototypes)


def _encode_seeded(prototype: SeededPrototype) -> _Row:
    return {
        "distribution": prototype.distribution,
        "seed": f"{prototype.seed:016x}",
        "stream": f"{prototype.stream:016x}",
        "period": prototype.period,
    }


def _decode_seeded(row: _Row, length: int) -> SeededPrototype:
    if row["period"] > length:
        raise broken("a prototype's period is longer than the prototype")
    seed, stream = int(row["seed"], 16), int(row["stream"], 16)
    return SeededPrototype(row["distribution"], seed, length, stream, row["period"])


def _encode_torch(prototype: TorchPrototype, before: tuple[int, int]) -> _Row:
    """`before`: the seed of the torch prototype before this one, and where its words end."""
    start = before[1] if before[0] == prototype.seed else 0
    to_hex = double_to_hex if prototype.distribution == "numpy-uniform" else float_to_hex
    return {
        "distribution": prototype.distribution,
        "seed": f"{prototype.seed:08x}",
        "gap": prototype.skip - start,
        "low": to_hex(prototype.low),
        "high": to_hex(prototype.high),
        "variant": prototype.variant,
        "drawn": prototype.drawn,
    }


def _decode_torch(row: _Row, length: int, before: tuple[int, int]) -> TorchPrototype:
    seed = int(row["seed"], 16)
    skip = row["gap"] + (before[1] if before[0] == seed else 0)
    digits, from_hex = 8, float_from_hex
    if row["distribution"] == "numpy-uniform":
        digits, from_hex = 16, double_from_hex
    if not len(row["low"]) == len(row["high"]) == digits:
        raise broken(f"low and high of {row['distribution']} have {digits} digits")
    low, high = from_hex(row["low"]), from_hex(row["high"])
    variant, drawn = row["variant"], row["drawn"]
    prototype = TorchPrototype(row["distribution"], seed, length, skip, low, high, variant, drawn)
    try:
        check_prototype(prototype)
    except ValueError as error:
        raise broken(str(error)) from None
    return prototype


def _encode_stored(row: StoredRow) -> _Row:
    return {"dtype": row.dtype, "used": row.used, "section": row.section}


def _decode_stored(row: _Row, length: int, sections: Sequence[SectionKind]) -> StoredRow:
    check_section(row["section"], "prototype", sections)
    return StoredRow(row["dtype"], length, row["used"], row["section"])


def _encode_shared(row: SharedRow) -> _Row:
    return {
        "dtype": row.dtype,
        "file": row.file,
        "prototype": row.prototype,
        "digest": row.digest,
    }


def _decode_shared(row: _Row, length: int) -> SharedRow:
    return SharedRow(row["dtype"], length, row["file"], row["prototype"], row["digest"])
