"""Folders in which files of a model are: of this machine, or of a store.

Names in them may have a folder in front: `.net.pemn.partial/net-00001-of-00003.pemn`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final, Protocol

from pemncodec.format.atomic import sync_folder
from pemncodec.format.index import most_of_index
from pemncodec.limits import Limits
from pemncodec.remote.downloads import download
from pemncodec.remote.ranges import open_ranges
from pemncodec.remote.stores import (
    make_folder,
    move_stored,
    names_stored,
    remove_folder,
    remove_stored,
    stored_bytes,
    upload,
)
from pemncodec.remote.urls import beside, last_part, shown

Location = Path | str
"""NAME.pemn, as which a model is known: a path, or a URL."""

_MOST: Final = most_of_index(Limits()) + 1  # bytes of an index, or of a journal


class Place(Protocol):
    """The folder of a model."""

    def read(self, name: str) -> bytes | None:
        """A file, or more bytes of it than an index may have; None where there is none."""

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def move(self, name: str, new: str) -> None:
        """Gives a file another name, whole or not at all; if interrupted, it may have both."""

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""


class Folder:
    """A folder of this machine; see `Place`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes | None:
        try:
            with (self._path / name).open("rb") as stream:
                return stream.read(_MOST)
        except FileNotFoundError:
            return None

    def has(self, name: str) -> bool:
        return (self._path / name).is_file()

    def move(self, name: str, new: str) -> None:
        (self._path / name).replace(self._path / new)
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
        ranges = open_ranges(self._named(name), min(size, _MOST))
        with contextlib.closing(ranges):
            return ranges.head

    def has(self, name: str) -> bool:
        return stored_bytes(self._named(name)) is not None

    def move(self, name: str, new: str) -> None:
        move_stored(self._named(name), self._named(new))

    def remove(self, name: str) -> None:
        remove_stored(self._named(name))

    def names(self, folder: str) -> list[str]:
        """The names of all files of a folder; none where there is no such folder."""
        return names_stored(self._named(folder))

    def remove_folder(self, folder: str) -> None:
        """Removes a folder without files, where the store has such."""
        remove_folder(self._named(folder))

    def put(self, path: Path, folder: str) -> None:
        """Copies a file of this machine into a folder of the place, which is made if need be.

        Raises:
            OSError: it is not there, and what was there before is.
        """
        make_folder(self._named(folder))
        upload(path, self._named(f"{folder}/{path.name}"))

    def fetch(self, name: str, path: Path) -> bool:
        """Copies a file to this machine; whether there is one.

        Raises:
            OSError: it does not come whole.
        """
        if not self.has(name):
            return False
        download(self._named(name), path)
        return True

    def _named(self, name: str) -> str:
        return beside(self._url, name)


def place_of(target: Location) -> Place:
    """The folder of a path or URL."""
    return Store(target) if isinstance(target, str) else Folder(target.absolute().parent)


def name_of(target: Location) -> str:
    """The last part of a path or URL."""
    return last_part(target) if isinstance(target, str) else target.name


def location_beside(target: Location, name: str) -> Location:
    """Another file of the folder."""
    return beside(target, name) if isinstance(target, str) else target.parent / name


def shown_beside(target: Location, name: str) -> str:
    """Another file of the folder, for messages."""
    return shown(str(location_beside(target, name)))
