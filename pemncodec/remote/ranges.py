"""A remote file as ranges of its bytes, by whichever client its URL asks for."""

from __future__ import annotations

import errno
import os
from typing import Protocol

from pemncodec.remote.urls import is_web


class Ranges(Protocol):
    """An open remote file.

    Attributes:
        name: its URL, as it may be shown.
        size: of the file.
        head: its first bytes, which opening it has fetched.
    """

    name: str
    size: int
    head: bytes

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`, which is not behind the end: one request, if all goes
        well.

        Raises:
            OSError: they do not come, or are not of the file that was opened.
        """

    def close(self) -> None:
        """Gives back what opening took."""


def open_ranges(url: str, head_bytes: int) -> Ranges:
    """Opens the file at a URL and fetches its first bytes.

    Raises:
        OSError: it cannot be read; names the URL and says what to do.
    """
    if is_web(url):
        from pemncodec.remote.web import WebRanges

        return WebRanges(url, head_bytes)
    from pemncodec.remote.stores import StoreRanges

    return StoreRanges(url, head_bytes)


def failure(name: str, code: int, text: str) -> OSError:
    """An error of a remote file: of the class that the code stands for, such as FileNotFoundError.

    Args:
        name: the URL as it may be shown.
        code: of the module `errno`.
        text: what happened, and what to do.
    """
    return OSError(code, text, name)


def no_such_file(name: str) -> OSError:
    return failure(name, errno.ENOENT, f"{os.strerror(errno.ENOENT)}: check the URL")
