"""Byte strings that wait for their place in a file that is being made."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Final, Self

_IN_MEMORY: Final = 1 << 24  # bytes; what is more goes to a temporary file
_PIECE: Final = 1 << 20  # bytes that are read at one time


@dataclass(frozen=True, slots=True)
class Spooled:
    """Where a byte string lies in its spool, its size, and its CRC-32."""

    offset: int
    size: int
    crc: int


class Spool:
    """Keeps byte strings: in memory while they are few, then in a temporary file.

    That file has no name where the system allows it, so that nothing is left of a process that is
    killed. Several threads may use a spool at the same time.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Opens no file yet.

        Args:
            folder: of the temporary file; None takes the system's, which may be memory, too.
        """
        self._folder = folder
        self._stream: IO[bytes] = io.BytesIO()
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, data: bytes | bytearray) -> Spooled:
        """Keeps a byte string.

        Raises:
            OSError: the disk is full.
        """
        crc = zlib.crc32(data)
        with self._lock:
            offset = self._stream.seek(0, os.SEEK_END)
            if isinstance(self._stream, io.BytesIO) and offset + len(data) > _IN_MEMORY:
                before = self._stream.getbuffer()
                self._stream = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 until close
                self._stream.write(before)
            self._stream.write(data)
            self._stream.flush()  # so that a full disk is an error here
        return Spooled(offset, len(data), crc)

    def read(self, spooled: Spooled) -> bytes:
        """What was added."""
        return self._bytes(spooled.offset, spooled.size)

    def pieces(self, spooled: Spooled) -> Iterator[bytes]:
        """What was added, a piece in memory at a time."""
        for start in range(0, spooled.size, _PIECE):
            yield self._bytes(spooled.offset + start, min(_PIECE, spooled.size - start))

    def _bytes(self, offset: int, size: int) -> bytes:
        with self._lock:
            self._stream.seek(offset)
            return self._stream.read(size)

    def close(self) -> None:
        """Forgets everything."""
        with contextlib.suppress(OSError):  # what a full disk did not take
            self._stream.close()
