"""What an interrupted encoding has left of a model: found, refused, checked, deleted.

Beside NAME.pemn, on this machine or in a store, that is the folder `.NAME.pemn.partial`, with
finished shards and their journal.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from pemncodec.errors import CorruptError, DecodeError, EncodeArgumentError
from pemncodec.format.index import index_name, index_of_shard
from pemncodec.format.journal import DIGESTED, Journal, decode_journal
from pemncodec.format.places import Location, Store, name_of, place_of, shown_beside
from pemncodec.format.publishing import earlier_files

JOURNAL: Final = "journal.json"


def partial_name(name: str) -> str:
    """Name of the folder in which the shards of `NAME.pemn` are until they get their names."""
    return f".{name}.partial"


def partial_folder(target: Path) -> Path:
    """That folder, of a target on this machine."""
    return target.with_name(partial_name(target.name))


def read_journal(target: Location) -> Journal | None:
    """The journal of a target's partial folder; None where there is none, or no folder.

    Raises:
        EncodeArgumentError: it is damaged, or the folder is none.
        OSError: it cannot be read.
    """
    if isinstance(target, Path):
        check_no_link(partial_folder(target))
    name = name_of(target)
    data = place_of(target).read(f"{partial_name(name)}/{JOURNAL}")
    if data is None:
        return None
    try:
        journal = decode_journal(data)
        for file in journal.replaced:  # which will be deleted
            if file not in (name, index_name(name)) and index_of_shard(file) != index_name(name):
                raise CorruptError("header", f"{file!r:.80} is no file of {name}")
        return journal
    except DecodeError as error:
        folder = _shown(target)
        raise EncodeArgumentError(f"{folder}/{JOURNAL}: {error}; delete {folder}") from None


def check_leftover(target: Location, *, resume: bool) -> None:
    """Refuses to begin where an interrupted encoding has left shards, unless that is continued.

    Raises:
        EncodeArgumentError: says what to do.
        OSError: it cannot be told.
    """
    journal = read_journal(target)
    if journal is not None and not resume:
        with locked(partial_folder(target)) if isinstance(target, Path) else _free():
            raise leftover(target, journal)


def check_nothing_to_continue(target: Location) -> None:
    """Refuses to continue as a single file what an interrupted encoding has left of several.

    Raises:
        EncodeArgumentError: says what to do.
    """
    if read_journal(target) is not None:
        raise EncodeArgumentError(
            f"the shards in {_shown(target)} were made of more tensors: {start_over(target)}"
        )


def is_naming(target: Location) -> bool:
    """Whether an interrupted encoding has begun to give its files their names."""
    journal = read_journal(target)
    return journal is not None and journal.proven


def has_names(target: Location) -> bool:
    """Whether what is there under a model's names comes from an interrupted encoding.

    Or it was there before, and that encoding replaces it.
    """
    journal = read_journal(target)
    if journal is None or not journal.proven:
        return False
    place, name = place_of(target), name_of(target)
    index = index_name(name)
    is_named = not place.has(f"{partial_name(name)}/{index}")
    known = set(journal.replaced) | ({index} if is_named else set())
    return all(file in known or not place.has(file) for file in (name, index))


def check_same(
    target: Location, journal: Journal, made_with: Mapping[str, str], plan: Mapping[str, str]
) -> None:
    """Refuses to continue with shards of something else.

    Args:
        target: NAME.pemn, as which the model is known.
        journal: what is there.
        made_with: what is asked for now, as `Journal` has it.
        plan: likewise: names of all shards, and the digest of what each is to be made of.

    Raises:
        EncodeArgumentError: says what is not the same.
    """
    folder = _shown(target)
    changed = [name for name in made_with if journal.made_with.get(name) != made_with[name]]
    for name in changed:
        if name not in DIGESTED:
            before, value = journal.made_with.get(name), made_with[name]
            raise EncodeArgumentError(
                f"the shards in {folder} were made with {name} {before}, not {value}: "
                f"{start_over(target)}"
            )
    for name, shard in journal.shards.items():
        if plan.get(name) != shard.contents:
            raise EncodeArgumentError(
                f"{folder}/{name} was made of other tensors, or with other options: "
                f"{start_over(target)}"
            )
    for name in changed:
        raise EncodeArgumentError(
            f"the shards in {folder} were made with another {name}: {start_over(target)}"
        )
    if journal.proven and journal.shards.keys() != plan.keys():
        raise EncodeArgumentError(
            f"some shards are missing in {folder}/{JOURNAL}: {start_over(target)}"
        )


def leftover(target: Location, journal: Journal) -> EncodeArgumentError:
    """What is said where shards are there, and not to be continued."""
    return EncodeArgumentError(
        f"an encoding to {name_of(target)} was interrupted, and {len(journal.shards)} of its "
        "shards are kept: --resume (resume=True) continues it; to start over, delete "
        f"{_folders(target)} or give -f"
    )


def start_over(target: Location) -> str:
    """Says how one gets rid of what is there and cannot be continued."""
    return f"to start over, delete {_folders(target)} or give -f without --resume"


def _folders(target: Location) -> str:
    # A part's folder is one of several.
    return re.sub(r"\.\d+(-of-\d+\.pemn\.partial)$", r".*\1", _shown(target))


def discard_leftover(target: Location) -> bool:
    """Deletes what an interrupted encoding has left; whether there was anything.

    Raises:
        EncodeArgumentError: it is still under way, or no encoding has made what is there.
        OSError: it cannot be deleted.
    """
    if isinstance(target, str):
        _remove_named(target)
        return discard_stored(target)
    folder = partial_folder(target)
    check_no_link(folder)
    if not folder.is_dir():
        return False
    with locked(folder):
        if (folder / JOURNAL).exists():
            _remove_named(target)
        else:
            empty(folder)
        shutil.rmtree(folder)
    return True


def discard_stored(url: str) -> bool:
    """Deletes a partial folder of a store, but for files of others; whether there was anything.

    Raises:
        OSError: it cannot be deleted.
    """
    name, place = name_of(url), Store(url)
    folder = partial_name(name)
    own = [
        file
        for file in place.names(folder)
        if file in (JOURNAL, index_name(name)) or _is_part(file)
    ]
    # The journal last, since nobody continues or deletes what has none.
    for file in sorted(own, key=JOURNAL.__eq__):
        place.remove(f"{folder}/{file}")
    place.remove_folder(folder)
    return bool(own)


def empty(folder: Path) -> None:
    """Deletes what an encoding leaves before its first shard is noted.

    Raises:
        EncodeArgumentError: something else is there, too; nothing is deleted.
    """
    paths = sorted(folder.iterdir())
    for path in paths:
        if not _is_part(path.name) or path.is_dir():
            raise EncodeArgumentError(
                f"{path} is of no encoding: move it elsewhere, shards are made in that folder"
            )
    for path in paths:
        path.unlink()


def check_no_link(folder: Path) -> None:
    """Refuses what is no folder of its own: whoever follows a link deletes files of others."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise EncodeArgumentError(
            f"{folder} must be a folder, in which shards are made: remove what is there"
        )


def _is_part(name: str) -> bool:
    return fnmatchcase(name, ".pemn-*.tmp") or index_of_shard(name) is not None


def _remove_named(target: Location) -> None:
    """Deletes shards that have got their names and no index, and those that they replace."""
    try:
        journal = read_journal(target)
    except EncodeArgumentError:  # a damaged one, by which nobody can continue
        return
    if journal is None or not journal.proven:
        return
    place, own = place_of(target), name_of(target)
    kept = earlier_files(place, own)
    named = [name for name in journal.shards if not place.has(f"{partial_name(own)}/{name}")]
    for name in {*named, *journal.replaced}.difference(kept):
        if index_of_shard(name) == index_name(own):
            place.remove(name)


def _shown(target: Location) -> str:
    return shown_beside(target, partial_name(name_of(target)))


@contextlib.contextmanager
def _free() -> Iterator[None]:
    """No store tells whether another process is at it."""
    yield


@contextlib.contextmanager
def locked(folder: Path, *, make: bool = False) -> Iterator[None]:
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
