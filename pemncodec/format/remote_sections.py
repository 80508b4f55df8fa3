"""The sections of a file behind a URL: every byte is fetched once, what lies together at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pemncodec.errors import ShardError
from pemncodec.format.container import (
    SectionEntry,
    check_file_size,
    check_section,
    check_stored_size,
    decode_container,
)
from pemncodec.format.header import Header, decode_header
from pemncodec.format.sections import Place, SectionSource, in_file
from pemncodec.limits import Limits
from pemncodec.remote.ranges import Ranges, open_ranges
from pemncodec.remote.urls import beside
from pemncodec.spool import Spool, Spooled

FIRST_BYTES: Final = 1 << 16
"""Of a file, fetched when it is opened: they hold most fronts, and many files."""

_REQUEST: Final = 1 << 24  # bytes at most, so that decoding starts before all is there


class RemoteSections:
    """Fetches sections when they are read, with those behind them that are expected.

    Keeps what it has fetched. Not safe for use by several threads at once.
    """

    def __init__(
        self, url: str, ranges: Ranges, limits: Limits, spool: Spool | None = None
    ) -> None:
        """Fetches and checks the front.

        Args:
            url: of the file.
            ranges: the open file; closed with this.
            limits: bounds on what it may decode to.
            spool: keeps what is fetched, and stays its caller's to close; None opens one.

        Raises:
            DecodeError: not a file that this reader can read.
            OSError: it cannot be fetched.
        """
        self._url, self._limits = url, limits
        self._ranges = ranges
        self._beginning = _Beginning(self._ranges)
        self._owns_spool = spool is None
        self._spool = Spool() if spool is None else spool
        self._fetched: dict[int, list[Spooled]] = {}  # pieces of sections
        self._expected: set[int] = set()
        try:
            self.container = decode_container(self._beginning, limits)
            check_file_size(self._ranges.size, self.container)
            check_stored_size(self._ranges.size, limits)  # so much is not downloaded
            count = len(self.container.sections)
            self.header: Header = decode_header(self.container.header, count, limits)
        except BaseException:
            self.close()
            raise

    def place(self, index: int) -> Place:
        return Place(index)

    def expect(self, indices: Iterable[int]) -> None:
        self._expected.update(indices)

    def read(self, index: int) -> bytes:
        if index not in self._fetched:
            self._fetch(index)
        data = b"".join(map(self._spool.read, self._fetched[index]))
        check_section(data, self.container.sections[index], index)
        return data

    def data(self) -> bytes:
        count = len(self.container.sections)
        self.expect(range(count))
        front = bytes(self._beginning.data[: self.container.size])
        return b"".join([front, *map(self.read, range(count))])

    def beside(self, name: str) -> SectionSource:
        url = beside(self._url, name)
        try:
            with in_file(name):
                return RemoteSections(url, open_ranges(url, FIRST_BYTES), self._limits)
        except FileNotFoundError:
            raise ShardError("shard", f"{name} is missing: it must be beside this file") from None

    def close(self) -> None:
        if self._owns_spool:
            self._spool.close()
        self._ranges.close()

    def _fetch(self, index: int) -> None:
        """Fetches a section, and those that follow it as far as they are expected."""
        sections = self.container.sections
        start, stop, behind = sections[index].offset, _stop(sections[index]), index + 1
        if stop - start > _REQUEST:
            self._fetched[index] = [
                self._spool.add(self._bytes(piece, min(piece + _REQUEST, stop)))
                for piece in range(start, stop, _REQUEST)
            ]
            return
        while (
            behind < len(sections)
            and behind in self._expected
            and behind not in self._fetched
            and _stop(sections[behind]) - start <= _REQUEST
        ):
            stop = _stop(sections[behind])
            behind += 1
        data = self._bytes(start, stop)
        for number, entry in enumerate(sections[index:behind], index):
            own = data[entry.offset - start : _stop(entry) - start]
            self._fetched[number] = [self._spool.add(own)]

    def _bytes(self, start: int, stop: int) -> bytes:
        here = bytes(self._beginning.data[start:stop])
        rest = start + len(here)
        return here + self._ranges.read(rest, stop) if rest < stop else here


def _stop(entry: SectionEntry) -> int:
    return entry.offset + entry.length


class _Beginning:
    """As much of a file, from its first byte, as was asked for."""

    def __init__(self, ranges: Ranges) -> None:
        self.data = bytearray(ranges.head)
        self._ranges = ranges
        self._position = 0

    def read(self, size: int) -> bytes:
        stop = min(self._position + size, self._ranges.size)
        if stop > len(self.data):
            self.data += self._ranges.read(len(self.data), stop)
        part = bytes(self.data[self._position : stop])
        self._position = stop
        return part
