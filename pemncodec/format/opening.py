"""What a reader is given → where its sections come from: a file, bytes, a URL, or shards."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from pemncodec.coders.canonical_json import is_object
from pemncodec.errors import DecodeArgumentError, NotPemnError
from pemncodec.format.index import (
    INDEX_SUFFIX,
    SUFFIX,
    Shard,
    check_index_size,
    index_name,
    index_of_shard,
    most_of_index,
)
from pemncodec.format.remote_sections import FIRST_BYTES, RemoteSections
from pemncodec.format.sections import ReopenedSections, SectionSource, Source, StreamSections
from pemncodec.format.sharded_sections import ShardedSections, check_shard_size
from pemncodec.limits import Limits
from pemncodec.remote.ranges import failure, open_ranges
from pemncodec.remote.stores import names_stored
from pemncodec.remote.urls import beside, is_url, is_web, last_part, shown, within
from pemncodec.spool import Spool

_HEAD: Final = 16  # bytes that tell an index
_AT_ONCE: Final = 8  # fronts that are fetched
# How web servers answer for a folder: no such file, no access, a page of names.
_OF_FOLDERS: Final = (errno.ENOENT, errno.EACCES, errno.EOPNOTSUPP, errno.EPROTO)
_SHOWN: Final = 5  # models of a folder

FIRST_BYTES_OF_SHARD: Final = 1 << 13
"""Fetched of each shard when an index is opened: there may be many."""


def open_sections(source: Source, limits: Limits) -> SectionSource:
    """The sections of a file, or of all shards of a model.

    Args:
        source: a path or URL of a file, an index, or a folder with one of them (web servers list
            none); a binary file object, which stays the caller's; the bytes of a file.
        limits: bounds on what is read.

    Raises:
        DecodeError: not a file that this reader can read.
        DecodeArgumentError: a folder with several models.
        OSError: from the file system, or from the server.
    """
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        return _open_url(name, limits) if is_url(name) else _open_path(Path(name), limits)
    return StreamSections(source, limits)


def open_while_read(path: Path, limits: Limits) -> SectionSource:
    """The sections of a file or an index of this machine, without a file that stays open.

    Raises:
        DecodeError: not a file that this reader can read.
        OSError: from the file system.
    """
    return _open_index(path, limits) or ReopenedSections(path, limits)


def index_beside(source: str) -> str | None:
    """Name of the index that is beside a shard; None where it is none, or there is no index."""
    name = last_part(source) if is_url(source) else Path(source).name
    index = index_of_shard(name)
    if index is None:
        return None
    there = _is_there(source, index) if is_url(source) else Path(source).with_name(index).is_file()
    return index if there else None


def _open_path(path: Path, limits: Limits) -> SectionSource:
    if path.is_dir():
        names = [file.name for file in path.iterdir() if file.is_file()]
        path /= _model_among(names, str(path))
    if path.is_file() and (sharded := _open_index(path, limits)) is not None:
        return sharded
    index = path.parent / index_name(path.name)
    if not path.exists() and index.is_file():
        raise FileNotFoundError(errno.ENOENT, _in_shards(index.name), str(path))
    return StreamSections(path, limits)


def _open_index(path: Path, limits: Limits) -> ShardedSections | None:
    """The sections of the shards that a file names; None where it is no JSON."""
    with path.open("rb") as stream:
        if not is_object(stream.read(_HEAD)):
            return None
        stream.seek(0)
        data = stream.read(most_of_index(limits) + 1)
    open_shard = partial(_open_local_shard, path.parent, limits)
    return ShardedSections(data, open_shard, lambda name: (path.parent / name).exists(), limits)


def _open_local_shard(folder: Path, limits: Limits, name: str, shard: Shard) -> SectionSource:
    check_shard_size((folder / name).stat().st_size, shard)
    return ReopenedSections(folder / name, limits)


def _model_among(files: Sequence[str], folder: str) -> str:
    """Name of the only file or index of a folder, which messages call `folder`.

    Raises:
        FileNotFoundError: it has none.
        DecodeArgumentError: it has several.
    """
    names = sorted(files)
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    shards = [name for name in names if index_of_shard(name) is not None]
    models = indices + [name for name in names if name.endswith(SUFFIX) and name not in shards]
    if len(models) == 1:
        return models[0]
    if models:
        more = f" or {len(models) - _SHOWN:,} more" if len(models) > _SHOWN else ""
        raise DecodeArgumentError(
            f"{folder} has several models: give one of {', '.join(models[:_SHOWN])}{more}"
        )
    if shards:
        missing = index_of_shard(shards[0])
        raise FileNotFoundError(
            errno.ENOENT, f"shards without their index, {missing}: copy that there", folder
        )
    raise FileNotFoundError(errno.ENOENT, "there is no .pemn file in this folder", folder)


def _open_url(url: str, limits: Limits) -> SectionSource:
    try:
        return _open_model_at(url, limits)
    except (OSError, NotPemnError) as error:
        named = last_part(url).endswith((SUFFIX, INDEX_SUFFIX))
        maybe_folder = isinstance(error, NotPemnError) or error.errno in _OF_FOLDERS
        if is_web(url) and maybe_folder and not named:
            error.add_note("web servers list no folders: give the URL of the index or .pemn file")
        raise


def _open_model_at(url: str, limits: Limits) -> SectionSource:
    try:
        ranges = open_ranges(url, FIRST_BYTES)
    except IsADirectoryError:
        model = _model_among(names_stored(url), shown(url))
        return _open_model_at(within(url, model), limits)
    except FileNotFoundError:
        if last_part(url).endswith(SUFFIX) and _is_there(url, index_name(last_part(url))):
            message = _in_shards(index_name(last_part(url)))
            raise failure(shown(url), errno.ENOENT, message) from None
        raise
    if not is_object(ranges.head[:_HEAD]):
        return RemoteSections(url, ranges, limits)
    try:
        check_index_size(ranges.size, limits)
        data = ranges.head
        if ranges.size > len(data):
            data += ranges.read(len(data), ranges.size)
    finally:
        ranges.close()
    spool = Spool()
    open_shard = partial(_open_remote_shard, url, limits, spool)
    has_shard = partial(_is_there, url)
    return ShardedSections(data, open_shard, has_shard, limits, threads=_AT_ONCE, spool=spool)


def _open_remote_shard(
    url: str, limits: Limits, spool: Spool, name: str, shard: Shard
) -> SectionSource:
    there = beside(url, name)
    ranges = open_ranges(there, FIRST_BYTES_OF_SHARD)
    try:
        check_shard_size(ranges.size, shard)
    except BaseException:
        ranges.close()
        raise
    return RemoteSections(there, ranges, limits, spool)


def _is_there(url: str, name: str) -> bool:
    try:
        open_ranges(beside(url, name), 1).close()
    except OSError:
        return False
    return True


def _in_shards(index: str) -> str:
    return f"the model is in several files: open {index}"
