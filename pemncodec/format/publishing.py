"""Finished files get their names, in an order in which no index names shards of another model.

What was there before under the model's name goes: a single file, or an index with its shards.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import BinaryIO

from pemncodec.errors import DecodeError
from pemncodec.format.atomic import write_file
from pemncodec.format.index import SUFFIX, decode_index, index_name, index_of_shard
from pemncodec.format.places import Place, name_of, place_of
from pemncodec.limits import Limits
from pemncodec.remote.urls import is_url


def put_file(pieces: Iterable[bytes], target: str | os.PathLike[str] | BinaryIO) -> None:
    """Writes a model as one file, and removes the shards that it replaces, their index first.

    Raises:
        OSError: from the file system or the store.
    """
    if not isinstance(target, str | os.PathLike):
        write_file(pieces, target)
        return
    location = target if is_url(target) else Path(target)
    name, place = name_of(location), place_of(location)
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
    folder: str, name: str, shards: Collection[str], place: Place, replaced: Collection[str]
) -> None:
    """Gives shards and their index their names.

    After an interruption the same call continues.

    Args:
        folder: where they are; those that are not have their names already.
        name: NAME.pemn, as which the model is known.
        shards: names of all of its shards.
        place: where they go, and where the folder is.
        replaced: what `earlier_files` had found.

    Raises:
        OSError: from the file system or the store.
    """
    index = index_name(name)
    if place.has(f"{folder}/{index}"):
        if not set(shards).isdisjoint(replaced):
            place.remove(index)
        for file in (*shards, index):
            if place.has(f"{folder}/{file}"):
                place.move(f"{folder}/{file}", file)
