"""A remote file as a file of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pemncodec.remote.ranges import open_ranges

_PIECE: Final = 1 << 24


def download(url: str, path: Path) -> None:
    """Writes the whole of a remote file to a path.

    Raises:
        OSError: it does not come, or does not fit.
    """
    ranges = open_ranges(url, _PIECE)
    try:
        with path.open("wb") as stream:
            stream.write(ranges.head)
            for start in range(len(ranges.head), ranges.size, _PIECE):
                stream.write(ranges.read(start, min(start + _PIECE, ranges.size)))
    finally:
        ranges.close()
