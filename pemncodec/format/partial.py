"""Shards in a hidden folder beside their target, until all of them are there and proven.

A process that is killed leaves the folder, and another one continues with what is in it. Shards of
a store are made on this machine; the folder is in the store, where each is put as it is finished,
since the next process may be on another machine.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pemncodec.errors import DecodeError, EncodeArgumentError
from pemncodec.format.atomic import write_file
from pemncodec.format.index import Shard, ShardIndex, encode_index, index_name
from pemncodec.format.journal import FinishedShard, Journal, encode_journal
from pemncodec.format.leftovers import (
    JOURNAL,
    check_no_link,
    check_same,
    discard_stored,
    empty,
    leftover,
    locked,
    partial_folder,
    partial_name,
    read_journal,
    start_over,
)
from pemncodec.format.opening import open_sections
from pemncodec.format.places import (
    Location,
    Store,
    location_beside,
    name_of,
    place_of,
    shown_beside,
)
from pemncodec.format.publishing import earlier_files, put_shards
from pemncodec.format.sections import StreamSections
from pemncodec.format.sharded_sections import ShardedSections
from pemncodec.limits import UNLIMITED


@contextlib.contextmanager
def open_partial(
    target: Location, made_with: Mapping[str, str], plan: Mapping[str, str], *, resume: bool
) -> Iterator[PartialShards]:
    """The partial folder of a target, for one process at a time.

    It is gone afterwards if its shards have got their names, or if none is finished.

    Args:
        target: NAME.pemn, as which the model is known.
        made_with: as `Journal` has it.
        plan: names of all shards, and the digest of what each is to be made of.
        resume: whether to continue with what is there.

    Raises:
        EncodeArgumentError: another process is at it; or shards are there, and not to be continued,
            or made with other options or of other contents; or no encoding has made what is there.
        OSError: from the file system or the store.
    """
    with _folder_for(target) as folder:
        journal = read_journal(target)
        if journal is None:
            if isinstance(target, str):
                discard_stored(target)
            else:
                empty(folder)
            journal = Journal(dict(made_with))
        elif not resume:
            raise leftover(target, journal)
        check_same(target, journal, made_with, plan)
        partial = PartialShards(target, folder, journal, plan)
        try:
            yield partial
        finally:
            if not partial.finished:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _folder_for(target: Location) -> Iterator[Path]:
    """Where shards are made."""
    if isinstance(target, str):
        with tempfile.TemporaryDirectory(prefix="pemn-") as temporary:
            folder = Path(temporary, "shards")
            folder.mkdir()
            yield folder
        return
    folder = partial_folder(target)
    check_no_link(folder)
    with locked(folder, make=True):
        yield folder


class PartialShards:
    """The shards of an encoding that is under way.

    Attributes:
        folder: where shards are written.
        index: where the index of all of them is written.
    """

    def __init__(
        self, target: Location, folder: Path, journal: Journal, plan: Mapping[str, str]
    ) -> None:
        self._target = target
        self._store = Store(target) if isinstance(target, str) else None
        self.folder = folder
        self._journal = journal
        self._plan = plan
        self.index = folder / index_name(name_of(target))

    @property
    def finished(self) -> int:
        """How many shards are."""
        return len(self._journal.shards)

    @property
    def proven(self) -> bool:
        """Whether all shards were compared with the original, and are getting their names."""
        return self._journal.proven

    def has(self, name: str) -> bool:
        """Whether a shard is finished and whole; one that is in a store is here then.

        Raises:
            EncodeArgumentError: it is not, and others may have their names.
            OSError: the store does not give it.
        """
        shard = self._journal.shards.get(name)
        if shard is None:
            return False
        if self._is_here(name) and _is_whole(self.folder / name, shard):
            return True
        if self.proven:
            raise _missing(self._target, shown_beside(self._target, name))
        others = {key: value for key, value in self._journal.shards.items() if key != name}
        self._note(replace(self._journal, shards=others))
        return False

    def _is_here(self, name: str) -> bool:
        if self._store is None:
            return True
        partial = f"{partial_name(name_of(self._target))}/{name}"
        path = self.folder / name
        return self._store.fetch(partial, path) or (self.proven and self._store.fetch(name, path))

    def add(self, name: str, pieces: Iterable[bytes]) -> None:
        """Writes a shard.

        Raises:
            OSError: it cannot be written; the others are kept.
        """
        write_file(pieces, self.folder / name)
        self._finished(name)

    def take(self, name: str, path: Path) -> None:
        """Has a shard that was finished in another folder.

        Raises:
            OSError: it cannot be moved.
        """
        path.replace(self.folder / name)
        self._finished(name)

    def _finished(self, name: str) -> None:
        self._put(self.folder / name)
        shard = read_shard(self.folder / name)
        finished = FinishedShard(self._plan[name], shard.size, shard.front_crc)
        self._note(replace(self._journal, shards={**self._journal.shards, name: finished}))

    def add_index(self, weight_map: Mapping[str, str], manifest: Mapping[str, Any] | None) -> None:
        """Writes the index, when all shards are there; arguments as `ShardIndex` has them."""
        index = ShardIndex(self._shards, weight_map, manifest)
        write_file([encode_index(index)], self.index)
        if not self.proven:  # else it may have got its name
            self._put(self.index)

    def publish(self) -> None:
        """Gives all files their names, after they were proven, or continues that.

        Raises:
            EncodeArgumentError: another process has changed them; nothing is removed.
            OSError: some may have their names then; the others are kept.
        """
        name, place = name_of(self._target), place_of(self._target)
        if not self.proven:
            self._check_own(f"{partial_name(name)}/{self.index.name}")
        # Also what has come there while this was interrupted.
        replaced = (*self._journal.replaced, *earlier_files(place, name))
        self._note(replace(self._journal, proven=True, replaced=tuple(dict.fromkeys(replaced))))
        put_shards(partial_name(name), name, self._plan, place, self._journal.replaced)
        self._check_own(self.index.name)
        for file in self._journal.replaced:
            if file not in (self.index.name, *self._plan):
                place.remove(file)
        self.discard()

    def _check_own(self, index: str) -> None:
        """Refuses what others have changed: a store has no lock that would keep them away."""
        cause = None
        try:
            with contextlib.closing(
                open_sections(location_beside(self._target, index), UNLIMITED)
            ) as sections:
                if isinstance(sections, ShardedSections) and sections.index.shards == self._shards:
                    return
        except (DecodeError, FileNotFoundError) as error:
            cause = error
        raise EncodeArgumentError(
            f"{shown_beside(self._target, index)} or its shards are not as they were written: "
            "another process writes or deletes there; encode once more when it has ended"
        ) from cause

    @property
    def _shards(self) -> dict[str, Shard]:
        """All shards, when they are finished."""
        known = self._journal.shards
        return {name: Shard(known[name].size, known[name].front_crc) for name in self._plan}

    def discard(self) -> None:
        """Deletes all that is there."""
        if isinstance(self._target, str):
            discard_stored(self._target)
        shutil.rmtree(self.folder)
        self._journal = replace(self._journal, shards={})

    def _note(self, journal: Journal) -> None:
        write_file([encode_journal(journal)], self.folder / JOURNAL)
        self._put(self.folder / JOURNAL)
        self._journal = journal

    def _put(self, path: Path) -> None:
        """Copies a file of the folder to the store, if that is where the target is."""
        if self._store is not None:
            self._store.put(path, partial_name(name_of(self._target)))


def finished_path(target: Path, name: str, shard: FinishedShard) -> Path:
    """Where a proven shard is, which may have got its name.

    Raises:
        EncodeArgumentError: it is missing or damaged.
    """
    path = partial_folder(target) / name
    if not path.exists():
        path = target.with_name(name)
    if not _is_whole(path, shard):
        raise _missing(target, str(path))
    return path


def _missing(target: Location, name: str) -> EncodeArgumentError:
    return EncodeArgumentError(f"{name} is missing or damaged: {start_over(target)}")


def read_shard(path: Path) -> Shard:
    """What an index says of a file.

    Raises:
        DecodeError: it is damaged, as far as its front and its size show.
    """
    sections = StreamSections(path, UNLIMITED)
    try:
        return Shard(sections.container.file_size, sections.container.crc)
    finally:
        sections.close()


def _is_whole(path: Path, expected: FinishedShard) -> bool:
    """Whether a file is the one that was finished, and every section of it undamaged."""
    try:
        shard = read_shard(path)
        if (shard.size, shard.front_crc) != (expected.size, expected.front_crc):
            return False
        sections = StreamSections(path, UNLIMITED)
        try:
            for index in range(len(sections.container.sections)):
                sections.read(index)
        finally:
            sections.close()
    except (FileNotFoundError, DecodeError):
        return False
    return True
