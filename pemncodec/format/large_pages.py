"""Large pages for memory that is filled next, where the system has them at hand.

Most of the time that it takes to fill new memory goes into page faults, one for each page. On Linux
a page can be of 2 MiB instead of 4 KiB. But where no block of that size is free, the system first
moves other pages out of the way, which can take longer than all faults would. So large pages are
asked for only where enough of these blocks are free.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from pemncodec import kernels
from pemncodec.contents import Array

_ROOT = Path("/")
_LARGE: Final = "sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
_FREE: Final = "proc/buddyinfo"
_REPORTED: Final = "sys/module/page_reporting/parameters/page_reporting_order"
_WORTHWHILE: Final = 8  # large pages: less is faster than the look at free memory
_MARGIN: Final = 2  # what is free, to what is needed: other programs take memory, too


def allow_large_pages(arrays: Sequence[Array]) -> None:
    """Ask for large pages for arrays that nobody has written to; never fails.

    Args:
        arrays: C-ordered. Those with fewer bytes than two large pages stay as they are, and so do
            all where that is not worth the question.
    """
    order = _large_order(_ROOT)
    if order == 0:
        return
    large_page = mmap.PAGESIZE << order
    large = [array for array in arrays if array.nbytes >= 2 * large_page]
    needed = sum(array.nbytes for array in large)
    if needed >= _WORTHWHILE * large_page and _free_bytes(order) >= _MARGIN * needed:
        for array in large:
            kernels.allow_large_pages(array)


@cache
def _large_order(root: Path) -> int:
    """n where a large page is 2 ** n pages; 0 where there are none that are quick to have."""
    order = (_number(root / _LARGE) // mmap.PAGESIZE).bit_length() - 1
    # A virtual machine that reports free blocks to its host has given them back: the first touch
    # of such a block takes the host as long as all of its small pages take.
    reported = 0 < _number(root / _REPORTED) <= order
    return 0 if reported else max(0, order)


def _free_bytes(order: int) -> int:
    """In blocks of 2 ** order pages and more, of the memory node that has fewest of them."""
    pages: Counter[str] = Counter()
    for line in _text(_ROOT / _FREE).splitlines():
        # "Node 0, zone   Normal   2501  47248 ...": free blocks of 1, 2, 4 ... pages
        node, _, zone = line.partition(", zone")
        counts = [int(count) for count in zone.split()[1:] if count.isdigit()]
        pages[node] += sum(count << at for at, count in enumerate(counts) if at >= order)
    return mmap.PAGESIZE * min(pages.values(), default=0)


def _number(path: Path) -> int:
    """What a file says; 0 where it says nothing."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else 0


def _text(path: Path) -> str:
    """What is in a file; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
