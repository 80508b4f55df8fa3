"""Every other kind of URL, by fsspec: s3://, hf://, gs://, memory:// and so on."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pemncodec.errors import named_line
from pemncodec.remote.ranges import failure, no_such_file
from pemncodec.remote.urls import is_web, redacted, shown

# Stores in which a file appears under its name when its last byte is there.
_WHOLE: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "hf"})
_PACKAGES: Final = {"s3": "s3fs", "s3a": "s3fs", "hf": "huggingface_hub"}


class StoreRanges:
    """A file of a store that fsspec knows; see `Ranges`. IsADirectoryError for a folder."""

    def __init__(self, url: str, head_bytes: int) -> None:
        self.name = shown(url)
        self._url = url
        # Kept, since what an archive is in is closed with the client.
        self._system, path = _file_system(url)
        with _translated(url):
            self._system.invalidate_cache(path)
            try:
                # Else it would read ahead.
                self._stream = self._system.open(path, "rb", cache_type="none")
                self.size = self._stream.seek(0, 2)
            except (OSError, ValueError) as error:  # what clients raise for folders, too
                _refuse_folder(self._system, path)
                if isinstance(error, ValueError) and "/" not in path:  # a bucket that is not there
                    raise FileNotFoundError(path) from None
                raise
            if self.size == 0:  # as which some open folders
                _refuse_folder(self._system, path)
        self.head = self.read(0, min(head_bytes, self.size))

    def read(self, start: int, stop: int) -> bytes:
        """As `Ranges` has it."""
        with _translated(self._url):
            self._stream.seek(start)
            data: bytes = self._stream.read(stop - start) if stop > start else b""
        if len(data) != stop - start:
            raise failure(
                self.name,
                errno.EIO,
                f"{stop - start} bytes were asked for, {len(data)} came: open it once more",
            )
        return data

    def close(self) -> None:
        self._stream.close()


def check_target(url: str) -> None:
    """Refuses a URL that nothing can be written to; asks no server.

    Raises:
        OSError: says why.
    """
    if is_web(url):
        raise failure(
            shown(url), errno.EOPNOTSUPP, "web servers take no files: write one here and upload it"
        )
    _file_system(url)


def stored_bytes(url: str) -> int | None:
    """The size of the file at a URL that can be written to; None where there is none.

    Raises:
        OSError: it cannot be told.
    """
    check_target(url)
    system, path = _file_system(url)
    with _translated(url):
        try:
            system.invalidate_cache(path)  # a listing that is older than the file
            return int(system.size(path))
        except FileNotFoundError:
            return None


def upload(path: Path, url: str) -> None:
    """Puts a file into a store, so that it appears under its name only when it is whole.

    A store without this promise gets it under another name first.

    Raises:
        OSError: it is not there; what was there before is, if the store allows.
    """
    check_target(url)
    system, name = _file_system(url)
    with _translated(url):
        if _appears_whole(system):
            system.put_file(str(path), name)
            return
        folder, slash, last = name.rpartition("/")
        temporary = f"{folder}{slash}.pemn-{os.urandom(4).hex()}-{last}.tmp"
        try:
            system.put_file(str(path), temporary)
            system.mv(temporary, name)
        except BaseException:
            with contextlib.suppress(Exception):
                system.rm_file(temporary)
            raise


def move_stored(url: str, new: str) -> None:
    """Gives a file of a store another name there, as the store does it: its bytes do not travel.

    An object store copies it, and removes the first one.

    Raises:
        OSError: it may have both names then, and never half of the new one.
    """
    system, path = _file_system(url)
    _, new_path = _file_system(new)
    with _translated(new):
        if _appears_whole(system):
            # `mv` would take * and [ in the name of a folder for patterns.
            system.cp_file(path, new_path)
            system.rm_file(path)
        else:
            system.mv(path, new_path)


def names_stored(url: str) -> list[str]:
    """Names of the files in the folder at a URL; none where there is no such folder.

    Raises:
        OSError: that cannot be told.
    """
    system, path = _file_system(url)
    with _translated(url):
        system.invalidate_cache()
        try:
            found = system.find(path, maxdepth=1)
        except FileNotFoundError:
            return []
    return sorted(name.rpartition("/")[2] for name in found if name != path)


def make_folder(url: str) -> None:
    """Makes the folder at a URL, where a store needs one before files are put into it.

    Raises:
        OSError: it cannot be made.
    """
    system, path = _file_system(url)
    with _translated(url):
        if not _appears_whole(system):
            system.makedirs(path, exist_ok=True)


def remove_folder(url: str) -> None:
    """Removes the folder at a URL, which has no files, where `make_folder` has made one.

    Raises:
        OSError: the client is not there.
    """
    system, path = _file_system(url)
    if not _appears_whole(system):
        with contextlib.suppress(Exception):  # an empty folder does no harm
            system.rmdir(path)


def remove_stored(url: str) -> None:
    """Removes the file at a URL, if there is one.

    Raises:
        OSError: it cannot be removed.
    """
    system, name = _file_system(url)
    with _translated(url), contextlib.suppress(FileNotFoundError):
        system.rm_file(name)


def _refuse_folder(system: Any, path: str) -> None:
    is_folder = False
    with contextlib.suppress(Exception):  # what failed before is said
        is_folder = system.isdir(path)
    if is_folder:
        raise IsADirectoryError(errno.EISDIR, "a folder: give the URL of a file in it")


def _appears_whole(system: Any) -> bool:
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    return protocols <= _WHOLE


def _file_system(url: str) -> tuple[Any, str]:
    """The client for a URL, and the name by which that knows the file."""
    name, scheme = shown(url), url.partition("://")[0]
    unknown = f"there is no {scheme}://; a file of that name here is ./{name}"
    if len(scheme) == 1:  # which fsspec takes for a drive
        raise failure(name, errno.EINVAL, unknown)
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(scheme.lower())
        cause = error.__cause__ or error
        if package is None:
            what = redacted(named_line(error), url)
        elif getattr(cause, "name", None) in ("fsspec", package):
            what = f"pip install {package}"
        else:  # it is there, and something that it needs is not
            what = f"{package} says {redacted(named_line(cause), url)}"
        raise failure(
            name, errno.EOPNOTSUPP, f"{scheme}:// needs another package: {what}"
        ) from None
    except ValueError as error:
        what = redacted(named_line(error), url)
        known = "Protocol not known" not in what
        raise failure(name, errno.EINVAL, what if known else unknown) from None
    except Exception as error:
        raise _error_of(error, url) from None
    return system, path


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turns what clients raise into an `OSError` that names the URL and shows no secret."""
    try:
        yield
    except Exception as error:
        raise _error_of(error, url) from None


def _error_of(error: Exception, url: str) -> OSError:
    name = shown(url)
    if isinstance(error, FileNotFoundError):
        return no_such_file(name)
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return failure(
            name,
            errno.EACCES,
            "access is refused: are credentials set as the store's client wants?",
        )
    if type(error).__name__ == "FileExpired":  # of s3fs
        return failure(name, errno.ESTALE, "the file changed while it was read: open it once more")
    if isinstance(error, OSError) and error.strerror:
        return failure(name, error.errno or errno.EIO, redacted(error.strerror, url))
    return failure(name, errno.EIO, redacted(named_line(error), url))
