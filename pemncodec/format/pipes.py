"""What comes from a pipe → a file that can be read at any place.

Stored prototypes are behind the masks that use them, so that a file cannot be decoded as it comes.
"""

from __future__ import annotations

import io
import tempfile
from typing import BinaryIO, Final, cast

from pemncodec.format.atomic import named_errors
from pemncodec.format.container import (
    SIGNATURE,
    Readable,
    check_signature,
    check_stored_size,
    decode_container,
    read_up_to,
)
from pemncodec.limits import Limits

_IN_MEMORY: Final = 1 << 24  # bytes; a larger file goes to a temporary one
_PART: Final = 1 << 20  # bytes that are copied at one time
_BEHIND: Final = 1 << 16  # bytes behind the end that are looked for


def taken_in(pipe: Readable, limits: Limits) -> BinaryIO:
    """All of a file, in memory or in a temporary file without a name; the caller's to close.

    No more is read than the file's front says, but for what shows that there is more.

    Raises:
        DecodeError: the front is damaged, or says that the file is larger than `limits`.
        OSError: from the pipe, or there is no room in the folder of temporary files.
    """
    head = read_up_to(pipe, len(SIGNATURE))
    check_signature(head)  # before more is read
    front = _Front(pipe, head)
    container = decode_container(front, limits)
    check_stored_size(container.file_size, limits)
    taken: BinaryIO = io.BytesIO()
    with named_errors(tempfile.gettempdir()):
        if container.file_size > _IN_MEMORY:
            # The caller closes it.
            taken = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115
        taken.write(front.data)
        missing = container.file_size - len(front.data) + _BEHIND
        while missing and (part := pipe.read(min(missing, _PART))):
            taken.write(part)
            missing -= len(part)
        taken.flush()
    taken.seek(0)
    return taken


class _Front:
    """Reads a pipe from its first byte, and keeps what it has read."""

    def __init__(self, pipe: Readable, head: bytes) -> None:
        self.data = head
        self._pipe = pipe
        self._head = head

    def read(self, size: int) -> bytes:
        given, self._head = self._head[:size], self._head[size:]
        more = read_up_to(self._pipe, size - len(given))
        self.data += more
        return given + more
