"""Shards in a hidden folder beside their target, until all of them are there and proven.

A process that is killed leaves the folder, and another one continues with what is in it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from pemncodec.errors import CorruptError, DecodeError, EncodeArgumentError
from pemncodec.format.atomic import write_file
from pemncodec.format.index import Shard, ShardIndex, encode_index, index_name, index_of_shard
from pemncodec.format.journal import (
    DIGESTED,
    FinishedShard,
    Journal,
    decode_journal,
    encode_journal,
)
from pemncodec.format.publishing import Place, earlier_files, place_of, put_shards
from pemncodec.format.sections import StreamSections
from pemncodec.limits import UNLIMITED

_JOURNAL: Final = "journal.json"


def partial_folder(target: Path) -> Path:
    """Where the shards of a target are until they get their names."""
    return target.with_name(f".{target.name}.partial")


def check_leftover(target: Path, *, resume: bool) -> None:
    """Refuses to begin where an interrupted encoding has left shards, unless that is continued.

    Raises:
        EncodeArgumentError: says what to do.
    """
    folder = partial_folder(target)
    journal = read_journal(folder)
    if journal is not None and not resume:
        with _locked(folder):
            raise _leftover(folder, journal)


def check_nothing_to_continue(target: Path) -> None:
    """Refuses to continue as a single file what an interrupted encoding has left of several.

    Raises:
        EncodeArgumentError: says what to do.
    """
    folder = partial_folder(target)
    if read_journal(folder) is not None:
        raise EncodeArgumentError(
            f"the shards in {folder} were made of more tensors: {_start_over(folder)}"
        )


def is_naming(target: Path) -> bool:
    """Whether an interrupted encoding has begun to give its files their names."""
    journal = read_journal(partial_folder(target))
    return journal is not None and journal.proven


def has_names(target: Path) -> bool:
    """Whether what is there under a model's names comes from an interrupted encoding.

    Or it was there before, and that encoding replaces it.
    """
    folder = partial_folder(target)
    journal = read_journal(folder)
    if journal is None or not journal.proven:
        return False
    index = index_name(target.name)
    known = set(journal.replaced) | ({index} if not (folder / index).exists() else set())
    return all(
        name in known or not target.with_name(name).exists() for name in (target.name, index)
    )


def discard_leftover(target: Path) -> bool:
    """Deletes what an interrupted encoding has left; whether there was anything.

    Raises:
        EncodeArgumentError: it is still under way, or no encoding has made what is there.
    """
    folder = partial_folder(target)
    _check_no_link(folder)
    if not folder.is_dir():
        return False
    with _locked(folder):
        if (folder / _JOURNAL).exists():
            _remove_named(folder, target)
        else:
            _empty(folder)
        shutil.rmtree(folder)
    return True


@contextlib.contextmanager
def open_partial(
    target: Path, made_with: Mapping[str, str], plan: Mapping[str, str], *, resume: bool
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
        OSError: from the file system.
    """
    folder = partial_folder(target)
    _check_no_link(folder)
    with _locked(folder, make=True):
        journal = read_journal(folder)
        if journal is None:
            _empty(folder)
            journal = Journal(dict(made_with))
        elif not resume:
            raise _leftover(folder, journal)
        check_same(folder, journal, made_with, plan)
        partial = PartialShards(target, folder, journal, plan)
        try:
            yield partial
        finally:
            if not partial.finished:
                shutil.rmtree(folder, ignore_errors=True)


class PartialShards:
    """The shards of an encoding that is under way.

    Attributes:
        folder: where shards are written.
        index: where the index of all of them is written.
    """

    def __init__(
        self, target: Path, folder: Path, journal: Journal, plan: Mapping[str, str]
    ) -> None:
        self._target = target
        self.folder = folder
        self._journal = journal
        self._plan = plan
        self.index = folder / index_name(target.name)

    @property
    def finished(self) -> int:
        """How many shards are."""
        return len(self._journal.shards)

    @property
    def proven(self) -> bool:
        """Whether all shards were compared with the original, and are getting their names."""
        return self._journal.proven

    def has(self, name: str) -> bool:
        """Whether a shard is finished and whole, before any has got its name."""
        shard = self._journal.shards.get(name)
        if shard is None:
            return False
        if _is_whole(self.folder / name, shard):
            return True
        others = {key: value for key, value in self._journal.shards.items() if key != name}
        self._note(replace(self._journal, shards=others))
        return False

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
        shard = read_shard(self.folder / name)
        finished = FinishedShard(self._plan[name], shard.size, shard.front_crc)
        self._note(replace(self._journal, shards={**self._journal.shards, name: finished}))

    def add_index(self, weight_map: Mapping[str, str], manifest: Mapping[str, Any] | None) -> None:
        """Writes the index, when all shards are there; arguments as `ShardIndex` has them."""
        known = self._journal.shards
        shards = {name: Shard(known[name].size, known[name].front_crc) for name in self._plan}
        write_file([encode_index(ShardIndex(shards, weight_map, manifest))], self.index)

    def publish(self, place: Place) -> None:
        """Gives all files their names, after they were proven, or continues that.

        Raises:
            OSError: some may have their names then; the others are kept.
        """
        # Also what has come there while this was interrupted.
        replaced = (*self._journal.replaced, *earlier_files(place, self._target.name))
        self._note(replace(self._journal, proven=True, replaced=tuple(dict.fromkeys(replaced))))
        put_shards(self.folder, self._target.name, self._plan, place, self._journal.replaced)
        self.discard()

    def discard(self) -> None:
        """Deletes all that is here."""
        shutil.rmtree(self.folder)
        self._journal = replace(self._journal, shards={})

    def _note(self, journal: Journal) -> None:
        write_file([encode_journal(journal)], self.folder / _JOURNAL)
        self._journal = journal


def finished_path(target: Path, name: str, shard: FinishedShard) -> Path:
    """Where a proven shard is, which may have got its name.

    Raises:
        EncodeArgumentError: it is missing or damaged.
    """
    folder = partial_folder(target)
    path = folder / name
    if not path.exists():
        path = target.with_name(name)
    if not _is_whole(path, shard):
        raise EncodeArgumentError(f"{path} is missing or damaged: {_start_over(folder)}")
    return path


def check_same(
    folder: Path, journal: Journal, made_with: Mapping[str, str], plan: Mapping[str, str]
) -> None:
    """Refuses to continue with shards of something else.

    Args:
        folder: the partial folder.
        journal: what is there.
        made_with: what is asked for now, as `Journal` has it.
        plan: likewise, as `open_partial` has it.

    Raises:
        EncodeArgumentError: says what is not the same.
    """
    changed = [name for name in made_with if journal.made_with.get(name) != made_with[name]]
    for name in changed:
        if name not in DIGESTED:
            before, value = journal.made_with.get(name), made_with[name]
            raise EncodeArgumentError(
                f"the shards in {folder} were made with {name} {before}, not {value}: "
                f"{_start_over(folder)}"
            )
    for name, shard in journal.shards.items():
        if plan.get(name) != shard.contents:
            raise EncodeArgumentError(
                f"{folder / name} was made of other tensors, or with other options: "
                f"{_start_over(folder)}"
            )
    for name in changed:
        raise EncodeArgumentError(
            f"the shards in {folder} were made with another {name}: {_start_over(folder)}"
        )
    if journal.proven and journal.shards.keys() != plan.keys():
        raise EncodeArgumentError(
            f"some shards are missing in {folder / _JOURNAL}: {_start_over(folder)}"
        )


def _leftover(folder: Path, journal: Journal) -> EncodeArgumentError:
    return EncodeArgumentError(
        f"an encoding to {_target_name(folder)} was interrupted, and {len(journal.shards)} of its "
        f"shards are kept: --resume (resume=True) continues it; {_start_over(folder)}"
    )


def _start_over(folder: Path) -> str:
    # A part's folder is one of several.
    folders = re.sub(r"\.\d+(-of-\d+\.pemn\.partial)$", r".*\1", str(folder))
    return f"to start over, delete {folders} or give -f"


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


def read_journal(folder: Path) -> Journal | None:
    """The journal of a partial folder; None where there is none, or no folder.

    Raises:
        EncodeArgumentError: it is damaged, or the folder is none.
    """
    _check_no_link(folder)
    try:
        journal = decode_journal((folder / _JOURNAL).read_bytes())
        name = _target_name(folder)
        for file in journal.replaced:  # which will be deleted
            if file not in (name, index_name(name)) and index_of_shard(file) != index_name(name):
                raise CorruptError("header", f"{file!r:.80} is no file of {name}")
        return journal
    except FileNotFoundError:
        return None
    except DecodeError as error:
        raise EncodeArgumentError(f"{folder / _JOURNAL}: {error}; delete {folder}") from None


def _target_name(folder: Path) -> str:
    """Of a partial folder."""
    return folder.name.removeprefix(".").removesuffix(".partial")


def _remove_named(folder: Path, target: Path) -> None:
    """Deletes shards that have got their names and no index, and those that they replace."""
    try:
        journal = read_journal(folder)
    except EncodeArgumentError:  # a damaged one, by which nobody can continue
        return
    if journal is None or not journal.proven:
        return
    place = place_of(target)
    kept = earlier_files(place, target.name)
    named = [name for name in journal.shards if not (folder / name).exists()]
    for name in {*named, *journal.replaced}.difference(kept):
        if index_of_shard(name) == index_name(target.name):
            place.remove(name)


def _check_no_link(folder: Path) -> None:
    """Refuses what is no folder of its own: whoever follows a link deletes files of others."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise EncodeArgumentError(
            f"{folder} must be a folder, in which shards are made: remove what is there"
        )


def _empty(folder: Path) -> None:
    """Deletes what an encoding leaves before its first shard is noted.

    Raises:
        EncodeArgumentError: something else is there, too; nothing is deleted.
    """
    paths = sorted(folder.iterdir())
    for path in paths:
        own = fnmatchcase(path.name, ".pemn-*.tmp") or index_of_shard(path.name) is not None
        if not own or path.is_dir():
            raise EncodeArgumentError(
                f"{path} is of no encoding: move it elsewhere, shards are made in that folder"
            )
    for path in paths:
        path.unlink()


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


@contextlib.contextmanager
def _locked(folder: Path, *, make: bool = False) -> Iterator[None]:
    """The folder for one process at a time, where the system can tell.

    Args:
        folder: a partial folder.
        make: whether to make it where there is none.

    Raises:
        EncodeArgumentError: another process has it.
        FileNotFoundError: there is none.
    """
    if os.name != "posix":
        if make:
            folder.mkdir(exist_ok=True)
        yield
        return
    while True:
        if make:
            folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            if make:
                continue
            raise
        try:
            _lock(descriptor, folder)
            # Else who had it has deleted it, and it may be there again.
            if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EncodeArgumentError(
            f"another process is encoding into {folder}: wait for it, or end it"
        ) from None
    except OSError:  # a file system without locks
        pass
