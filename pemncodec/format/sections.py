"""Where a reader takes the sections of a file from."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from pemncodec.errors import DecodeError, ShardError
from pemncodec.format.container import (
    Container,
    check_file_size,
    check_stored_size,
    decode_container,
    read_section,
    read_up_to,
)
from pemncodec.format.header import Header, decode_header
from pemncodec.format.pipes import taken_in
from pemncodec.limits import Limits

Source = str | os.PathLike[str] | BinaryIO | bytes | memoryview
"""A path, a URL (`scheme://…`), a binary file object, or the bytes of a file.

A path or URL may be that of an index, whose shards are beside it; a path that of a folder with one
model."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a section is, for messages: its number in a file, which is named if there are more."""

    section: int
    file: str = ""


@runtime_checkable
class SectionSource(Protocol):
    """The front of a file, and its sections one by one; or those of several files in one row."""

    @property
    def container(self) -> Container:
        """Sizes and the section table, checked."""

    @property
    def header(self) -> Header:
        """The rows of the header, checked."""

    def place(self, index: int) -> Place:
        """Where a section is."""

    def expect(self, indices: Iterable[int]) -> None:
        """Says which sections are read next: where requests are dear, several are one request."""

    def read(self, index: int) -> bytes:
        """One section's bytes, its checksum verified; raises `DecodeError` where it is damaged."""

    def data(self) -> bytes | None:
        """All bytes of the file, of shards as one file; None where they may not fit into memory."""

    def beside(self, name: str) -> SectionSource:
        """Opens another file of the folder; raises `ShardError` where there is none, or no folder.

        It is the caller's to close.
        """

    def close(self) -> None:
        """Gives back what the source has opened."""


class StreamSections:
    """The sections of a file or of its bytes; a file object stays its caller's to close.

    Not safe for use by several threads at once.
    """

    def __init__(self, source: Source, limits: Limits) -> None:
        """Reads and checks the front.

        Raises:
            DecodeError: not a file that this reader can read.
            OSError: from the file system.
        """
        self._owned = isinstance(source, str | os.PathLike)
        self._path = Path(source) if isinstance(source, str | os.PathLike) else None
        self._limits = limits
        self._opened = self._stream = _opened(source)
        try:
            self._stream = _seekable(self._opened, limits)
            self.container = decode_container(self._stream, limits)
            check_file_size(self._stream.seek(0, os.SEEK_END), self.container)
            check_stored_size(self.container.file_size, limits)
            count = len(self.container.sections)
            self.header: Header = decode_header(self.container.header, count, limits)
        except BaseException:
            self.close()
            raise

    def place(self, index: int) -> Place:
        return Place(index)

    def expect(self, indices: Iterable[int]) -> None:
        pass

    def read(self, index: int) -> bytes:
        return read_section(self._stream, self.container.sections[index], index)

    def data(self) -> bytes:
        self._stream.seek(0)
        return read_up_to(self._stream, self.container.file_size)

    def beside(self, name: str) -> SectionSource:
        if self._path is None:
            raise ShardError("shard", f"{name} is needed, too: open this file by its path")
        return _open_beside(self._path, name, self._limits)

    def close(self) -> None:
        if self._owned:
            self._opened.close()
        if self._stream is not self._opened:
            self._stream.close()


class ReopenedSections:
    """The sections of a file of this machine that is open only while it is read."""

    def __init__(self, path: Path, limits: Limits) -> None:
        """Reads and checks the front; raises as `StreamSections`."""
        source = StreamSections(path, limits)
        source.close()
        self.container = source.container
        self.header = source.header
        self._path, self._limits = path, limits

    def place(self, index: int) -> Place:
        return Place(index)

    def expect(self, indices: Iterable[int]) -> None:
        pass

    def read(self, index: int) -> bytes:
        with self._path.open("rb") as stream:
            return read_section(stream, self.container.sections[index], index)

    def data(self) -> bytes:
        return self._path.read_bytes()

    def beside(self, name: str) -> SectionSource:
        return _open_beside(self._path, name, self._limits)

    def close(self) -> None:
        pass


def _open_beside(path: Path, name: str, limits: Limits) -> StreamSections:
    there = path.with_name(name)
    if not there.is_file():
        raise ShardError("shard", f"{name} is missing: it must be beside this file")
    with in_file(name):
        return StreamSections(there, limits)


def _opened(source: Source) -> BinaryIO:
    if isinstance(source, str | os.PathLike):
        return Path(source).open("rb")
    return io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source


def _seekable(stream: BinaryIO, limits: Limits) -> BinaryIO:
    """The stream from its first byte; of a pipe, what it gave."""
    if not hasattr(stream, "seekable"):
        kind = type(stream).__name__
        raise TypeError(f"expected a path, a binary file object or bytes, not {kind}")
    if not stream.seekable():
        return taken_in(stream, limits)
    stream.seek(0)
    return stream


@contextlib.contextmanager
def in_section(place: Place) -> Iterator[None]:
    """Adds the section to errors that coders raise, which know only their own bytes."""
    try:
        yield
    except DecodeError as error:
        if error.section is None:
            error.section, error.file = place.section, place.file
        raise


@contextlib.contextmanager
def in_file(name: str) -> Iterator[None]:
    """Adds the name of one of several files to errors that know only its content."""
    try:
        yield
    except DecodeError as error:
        error.file = error.file or name
        raise
