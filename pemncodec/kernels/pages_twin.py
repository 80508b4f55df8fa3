"""Memory that was never touched: the twin of pages.c."""

from __future__ import annotations

from pemncodec.kernels.arguments import Buffer, view_buffer


def allow_large_pages(out: Buffer) -> None:
    """Lets the system give memory in pages of 2 MiB, where it has such pages; no byte changes.

    Memory of less than 4 MiB, or that was written before, stays as it is, and so does all memory
    here: NumPy cannot ask.

    Args:
        out: any bytes.
    """
    view_buffer(out, writable=True)
