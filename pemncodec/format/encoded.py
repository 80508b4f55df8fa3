"""A file that is coded, and not yet under its name."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from pemncodec.errors import ShardError
from pemncodec.format.container import check_section, decode_container
from pemncodec.format.header import decode_header
from pemncodec.format.sections import Place
from pemncodec.limits import UNLIMITED
from pemncodec.spool import Spool, Spooled


class EncodedFile:
    """The front of a file and, in a spool, its sections, of which one at a time is in memory.

    As a `SectionSource` it is what `PemnFile` opens. Iterating over it gives the bytes of the file,
    in pieces.
    """

    def __init__(self, front: bytes, sections: Sequence[Spooled], spool: Spool) -> None:
        """Takes the sections in the order of the file. The spool stays its caller's to close."""
        self._front = front
        self._sections = sections
        self._spool = spool
        self.container = decode_container(io.BytesIO(front), UNLIMITED)
        self.header = decode_header(self.container.header, len(sections), UNLIMITED)

    def __iter__(self) -> Iterator[bytes]:
        yield self._front
        for section in self._sections:
            yield from self._spool.pieces(section)

    def place(self, index: int) -> Place:
        return Place(index)

    def expect(self, indices: Iterable[int]) -> None:
        pass

    def read(self, index: int) -> bytes:
        data = self._spool.read(self._sections[index])
        check_section(data, self.container.sections[index], index)
        return data

    def data(self) -> None:
        """Nothing: not all of it may fit into memory."""

    def beside(self, name: str) -> NoReturn:
        """Nothing is beside a file that is not under its name."""
        raise ShardError("shard", f"{name} is needed, too, and this file is not in its folder yet")

    def close(self) -> None:
        pass
