"""The headers of shards → one header of the whole model (spec/pemn.md section 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pemncodec.contents import Seeded
from pemncodec.errors import ShardError
from pemncodec.format.columns import SectionKind
from pemncodec.format.header import (
    DenseRow,
    Header,
    MaskedRow,
    MaskRow,
    TensorRow,
    check_totals,
)
from pemncodec.format.index import ShardIndex
from pemncodec.format.prototype_rows import PrototypeRow, SharedRow, StoredRow, referred_row
from pemncodec.format.sections import Place, in_file
from pemncodec.limits import Limits


@dataclass(frozen=True, slots=True)
class Merged:
    """The header of a model in shards.

    Attributes:
        header: of the whole. Its first section is the manifest of the index, if that has one.
        places: of all other sections.
    """

    header: Header
    places: tuple[Place, ...]


def merge_headers(index: ShardIndex, headers: Mapping[str, Header], limits: Limits) -> Merged:
    """One header for all shards; no section of them is needed.

    Args:
        index: of the model.
        headers: of each of its shards, which `check_shard` has passed.
        limits: bounds; `decoded_bytes` covers all shards together.

    Raises:
        ShardError: a shard is not what the index, or another shard, says of it.
        LimitError: a bound is passed.
    """
    files = sorted(headers)
    whole = headers[files[0]]
    for file in files:
        with in_file(file):
            if headers[file].inference_only != whole.inference_only:
                raise ShardError("shard", f"it and {files[0]} disagree about inference_only")
            if headers[file].metadata != whole.metadata:
                raise ShardError("shard", f"it and {files[0]} have different metadata")
    sections: list[SectionKind] = [] if index.manifest is None else ["manifest"]
    places: list[Place] = []
    first: dict[str, int] = {}  # section of each shard
    for file in files:
        first[file] = len(sections)
        sections += headers[file].sections
        places += [Place(number, file) for number in range(len(headers[file].sections))]
    prototypes, numbers = _merge_prototypes(files, headers, first)
    tensors: dict[str, TensorRow] = {}
    masks: dict[str, MaskRow] = {}
    for file in files:
        for row in headers[file].tensors:
            tensors[row.name] = _moved(row, first[file], numbers[file])
        for mask in headers[file].masks:
            masks[mask.tensor] = replace(mask, section=mask.section + first[file])
    header = Header(
        tuple(sections),
        tuple(prototypes),
        tuple(tensors[name] for name in index.weight_map),
        tuple(masks[name] for name in index.weight_map if name in masks),
        whole.metadata,
        whole.inference_only,
    )
    check_totals(header, limits)
    return Merged(header, tuple(places))


def names_by_file(index: ShardIndex) -> dict[str, list[str]]:
    """Names of the tensors of each shard, in order."""
    names: dict[str, list[str]] = {file: [] for file in index.shards}
    for name, file in index.weight_map.items():
        names[file].append(name)
    return names


def check_shard(header: Header, names: Sequence[str], index: ShardIndex) -> None:
    """Refuses a shard that has other tensors than the index says, before others are opened.

    Args:
        header: of the shard.
        names: of its tensors, as `names_by_file` gives them.
        index: of the model.

    Raises:
        ShardError: says which; or they are in another order, or there is an architecture.
    """
    if "manifest" in header.sections:
        raise ShardError("shard", "it has an architecture of its own, so that it is no shard")
    own = [row.name for row in header.tensors]
    if own == names:
        return
    expected = set(names)
    for name in own:
        if name not in expected:
            there = index.weight_map.get(name, "no shard")
            raise ShardError("shard", f"{name!r:.60} is in it, and by the index in {there}")
    missing = expected - set(own)
    if missing:
        raise ShardError("shard", f"{min(missing)!r:.60} is not in it, as the index says")
    raise ShardError("shard", "its tensors are in another order than in the index")


def _merge_prototypes(
    files: Sequence[str], headers: Mapping[str, Header], first: Mapping[str, int]
) -> tuple[list[PrototypeRow], dict[str, dict[int, int]]]:
    """Prototypes of all shards, of seeds each once; and their numbers by shard and number there."""
    prototypes: list[PrototypeRow] = []
    numbers: dict[str, dict[int, int]] = {file: {} for file in files}
    seeded: dict[Seeded, int] = {}
    shared: list[tuple[str, int, SharedRow]] = []
    for file in files:
        for number, row in enumerate(headers[file].prototypes):
            if isinstance(row, SharedRow):
                shared.append((file, number, row))
            elif isinstance(row, StoredRow):
                numbers[file][number] = len(prototypes)
                prototypes.append(replace(row, section=row.section + first[file]))
            else:
                numbers[file][number] = seeded.setdefault(row, len(prototypes))
                if seeded[row] == len(prototypes):
                    prototypes.append(row)
    for file, number, row in shared:
        numbers[file][number] = _resolve(file, row, prototypes, numbers, headers)
    return prototypes, numbers


def _resolve(
    file: str,
    row: SharedRow,
    prototypes: list[PrototypeRow],
    numbers: Mapping[str, Mapping[int, int]],
    headers: Mapping[str, Header],
) -> int:
    """The number of the prototype that a shared one stands for, whose digest it then has."""
    if row.file not in headers:
        with in_file(file):
            raise ShardError(
                "shard", f"its values are in {row.file!r:.80}, which is no shard of the index"
            )
    with in_file(row.file):
        referred_row(row, headers[row.file].prototypes)
        number = numbers[row.file][row.prototype]
        stored = prototypes[number]
        assert isinstance(stored, StoredRow)  # narrows the type: checked above
        if stored.digest not in ("", row.digest):
            raise ShardError("shard", f"{file} and others name different values of its prototype")
        prototypes[number] = replace(stored, digest=row.digest)
    return number


def _moved(row: TensorRow, first_section: int, numbers: Mapping[int, int]) -> TensorRow:
    """A row of a shard, by sections and prototypes of the whole."""
    if isinstance(row, DenseRow):
        return replace(row, section=row.section + first_section)
    if isinstance(row, MaskedRow):
        return replace(row, fill=replace(row.fill, prototype=numbers[row.fill.prototype]))
    return row
