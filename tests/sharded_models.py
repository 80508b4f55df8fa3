"""Models in several files, for tests of readers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pemncodec
from pemncodec.coders.masks import Preset
from pemncodec.contents import (
    AliasTensor,
    Contents,
    DenseTensor,
    MaskedTensor,
    PrototypePlace,
    StoredPrototype,
    Tensor,
)
from pemncodec.format.header import AliasRow, MaskedRow
from pemncodec.format.index import Shard, ShardIndex, encode_index, index_name, shard_names
from pemncodec.format.writer import encode_contents


def write_shards(
    folder: Path,
    contents: Contents,
    places: Mapping[str, int],
    *,
    name: str = "net.pemn",
    share: bool = False,
    preset: Preset = "default",
) -> Path:
    """Writes a model as shards; returns the path of its index.

    Args:
        folder: of all files.
        contents: of the model.
        places: name of each tensor to the number of its shard, from 0.
        name: of the model.
        share: stored prototypes are in the first shard alone.
        preset: of the shards.
    """
    files = shard_names(name, max(places.values()) + 1)
    shards = {}
    for number, file in enumerate(files):
        names = [name for name, place in places.items() if place == number]
        part = part_of(contents, names)
        if share:
            tensors = tuple(tensor for tensor in contents.tensors if tensor.name in names)
            prototypes = _shared(contents, files[0], own=number == 0)
            part = replace(part, tensors=tensors, prototypes=prototypes)
        shards[file] = write_shard(folder / file, encode_contents(part, preset=preset))
    weight_map = {tensor.name: files[places[tensor.name]] for tensor in contents.tensors}
    return write_index(folder / index_name(name), shards, weight_map, contents.manifest)


def write_shard(path: Path, pieces: Sequence[bytes]) -> Shard:
    data = b"".join(pieces)
    path.write_bytes(data)
    front = next(iter(pieces))
    return Shard(len(data), zlib.crc32(front[:-4]))


def write_index(
    path: Path,
    shards: Mapping[str, Shard],
    weight_map: Mapping[str, str],
    manifest: Mapping[str, Any] | None,
) -> Path:
    path.write_bytes(encode_index(ShardIndex(shards, weight_map, manifest)))
    return path


def part_of(contents: Contents, names: Sequence[str]) -> Contents:
    """Some of the tensors, with the prototypes that these use."""
    tensors = [tensor for tensor in contents.tensors if tensor.name in names]
    used = sorted({t.fill.prototype for t in tensors if isinstance(t, MaskedTensor)})
    moved = [
        replace(t, fill=replace(t.fill, prototype=used.index(t.fill.prototype)))
        if isinstance(t, MaskedTensor)
        else t
        for t in tensors
    ]
    prototypes = tuple(contents.prototypes[index] for index in used)
    return replace(contents, prototypes=prototypes, tensors=tuple(moved), manifest=None)


def _shared(contents: Contents, file: str, *, own: bool) -> Any:
    return tuple(
        (replace(p, whole=True) if own else replace(p, place=PrototypePlace(file, index)))
        if isinstance(p, StoredPrototype)
        else p
        for index, p in enumerate(contents.prototypes)
    )


def contents_of(data: bytes) -> Contents:
    """What a file holds, to be written again."""
    with pemncodec.open(data) as file:
        tensors: list[Tensor] = []
        for row in file.header.tensors:
            if isinstance(row, AliasRow):
                tensors.append(AliasTensor(row.name, row.target))
            elif isinstance(row, MaskedRow):
                mask = file.mask(row.name)
                tensors.append(MaskedTensor(row.name, row.dtype, row.shape, row.fill, mask))
            else:
                values = file.tensor(row.name)
                tensors.append(DenseTensor(row.name, row.dtype, row.shape, values))
        prototypes = map(file.masked.prototype, range(len(file.header.prototypes)))
        return Contents(tuple(prototypes), tuple(tensors), file.manifest, file.metadata)
