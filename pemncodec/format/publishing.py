"""Finished files get their names, in an order in which no index names shards of another model.

What was there before under the model's name goes: a single file, or an index with its shards.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import BinaryIO, Protocol

from pemncodec.errors import DecodeError
from pemncodec.format.atomic import sync_folder, write_file
from pemncodec.format.index import SUFFIX, decode_index, index_name, index_of_shard
from pemncodec.limits import Limits
from pemncodec.remote.ranges import open_ranges
from pemncodec.remote.stores import remove_stored, stored_bytes, upload
from pemncodec.remote.urls import beside, is_url, last_part


class Place(Protocol):
    """Where the files of a model are: a folder of this machine or of a store."""

    def read(self, name: str) -> bytes | None:
        """All of a file; None where there is none."""

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def put(self, path: Path, name: str) -> None:
        """Gives a file its name there, whole or not at all; it may be gone at `path` afterwards."""

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""


class Folder:
    """A folder of this machine; see `Place`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def has(self, name: str) -> bool:
        return (self._path / name).is_file()

    def put(self, path: Path, name: str) -> None:
        path.replace(self._path / name)
        sync_folder(self._path)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)


class Store:
    """The folder of a file of a store; see `Place`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self, name: str) -> bytes | None:
        if not (size := stored_bytes(self._named(name))):
            return None
        ranges = open_ranges(self._named(name), size)
        with contextlib.closing(ranges):
            return ranges.head

    def has(self, name: str) -> bool:
        return stored_bytes(self._named(name)) is not None

    def put(self, path: Path, name: str) -> None:
        upload(path, self._named(name))

    def remove(self, name: str) -> None:
        remove_stored(self._named(name))

    def _named(self, name: str) -> str:
        return beside(self._url, name)


def place_of(target: str | os.PathLike[str]) -> Place:
    """The folder of a path or URL."""
    if is_url(target):
        return Store(target)
    return Folder(Path(target).absolute().parent)


def put_file(pieces: Iterable[bytes], target: str | os.PathLike[str] | BinaryIO) -> None:
    """Writes a model as one file, and removes the shards that it replaces, their index first.

    Raises:
        OSError: from the file system or the store.
    """
    if not isinstance(target, str | os.PathLike):
        write_file(pieces, target)
        return
    name = last_part(target) if is_url(target) else Path(target).name
    place = place_of(target)
    replaced = earlier_files(place, name) if name.endswith(SUFFIX) else ()
    write_file(pieces, target)
    for file in replaced:
        if file != name:
            place.remove(file)


def earlier_files(place: Place, name: str) -> tuple[str, ...]:
    """The files of the model that is known as `NAME.pemn`, its index before its shards.

    Raises:
        OSError: it cannot be told.
    """
    index = index_name(name)
    data = place.read(index)
    files = [name] if place.has(name) else []
    if data is None:
        return tuple(files)
    try:
        shards = decode_index(data, Limits()).shards
    except DecodeError:
        shards = {}
    # An index that somebody has written by hand may name files that belong to others, too.
    return (*files, index, *(shard for shard in shards if index_of_shard(shard) == index))


def put_shards(
    folder: Path, name: str, shards: Collection[str], place: Place, replaced: Collection[str]
) -> None:
    """Gives shards and their index the names in `place`, and removes what they replace.

    After an interruption the same call continues.

    Args:
        folder: where they are; those that are not have their names already.
        name: NAME.pemn, as which the model is known.
        shards: names of all of its shards.
        place: where they go.
        replaced: what `earlier_files` had found.

    Raises:
        OSError: from the file system or the store.
    """
    index = index_name(name)
    if (folder / index).exists():
        if not set(shards).isdisjoint(replaced):
            place.remove(index)
        for shard in shards:
            if (folder / shard).exists():
                place.put(folder / shard, shard)
        place.put(folder / index, index)
    for file in replaced:
        if file not in (index, *shards):
            place.remove(file)
