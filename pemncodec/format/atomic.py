"""Files that appear under their name, or their URL, only when they are whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pemncodec.remote.stores import upload
from pemncodec.remote.urls import is_url, shown


def write_file(
    pieces: Iterable[bytes | memoryview], target: str | os.PathLike[str] | BinaryIO
) -> None:
    """Writes to a path or URL atomically, or to a binary file object.

    A file appears under its name only when it is whole and on disk, or in the store; what was there
    before stays until then.
    """
    if not isinstance(target, str | os.PathLike):
        for piece in pieces:
            target.write(piece)
            del piece  # before the next one is made
        return
    with (
        named_errors(shown(os.fspath(target))),
        atomic_path(target) as path,
        path.open("wb") as stream,
    ):
        for piece in pieces:
            stream.write(piece)
            del piece


def folder_beside(target: str | os.PathLike[str] | BinaryIO) -> Path | None:
    """Where there is room for a file that becomes `target`; None if that is not a file here."""
    if not isinstance(target, str | os.PathLike) or is_url(target):
        return None
    path = Path(target).resolve()  # links, as `atomic_path` does
    return None if path.exists() and not path.is_file() else path.parent


@contextlib.contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Errors of writing know no file, as of a disk that is full: they get the name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = name
        raise


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `target` that takes its name when the block ends without error.

    The file of a URL is written to this machine first.
    """
    if is_url(target):
        with tempfile.TemporaryDirectory(prefix="pemn-") as folder:
            path = Path(folder, "whole")
            with named_errors(tempfile.gettempdir()):
                yield path
            upload(path, target)
        return
    path = Path(target)
    if path.exists() and not path.is_file():
        yield path  # a device or a pipe: nothing to replace, and a folder refuses by itself
        return
    # Through symbolic links, so that a link to a file stays one.
    path = path.resolve()
    descriptor, name = tempfile.mkstemp(prefix=".pemn-", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    os.close(descriptor)
    try:
        yield temporary
        with contextlib.suppress(OSError):
            temporary.chmod(_mode_of(path))
        _fsync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """The names in a folder are on disk afterwards, where the system can do that."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mode_of(path: Path) -> int:
    """The permissions that a plain `open(path, "w")` would leave."""
    try:
        return path.stat().st_mode & 0o7777
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask
