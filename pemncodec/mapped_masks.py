"""Masks in files without a name: the system takes their memory back where it is needed."""

from __future__ import annotations

import mmap
import tempfile
from typing import Final

import numpy as np

from pemncodec.contents import Mask

_LARGE: Final = 1 << 20  # bytes


def mapped(mask: Mask) -> Mask:
    """The same mask, if it is large in a temporary file that is mapped into memory.

    Masks are made for all layers before the first of them is stored, a byte for each weight. Where
    there is no room for the file, the mask stays in memory.

    Args:
        mask: bool [*shape].

    Returns:
        bool [*shape], in C order where it is mapped.
    """
    if mask.nbytes < _LARGE:
        return mask
    try:
        with tempfile.TemporaryFile(prefix="pemn-") as stream:
            stream.write(np.ascontiguousarray(mask).reshape(-1).view(np.uint8).data)
            stream.flush()
            # Whoever writes to it writes to a copy: torch asks for arrays that could be written.
            pages = mmap.mmap(stream.fileno(), mask.nbytes, access=mmap.ACCESS_COPY)
    except OSError:
        return mask
    return np.frombuffer(pages, np.bool_).reshape(mask.shape)
