"""Masked tensors into memory of the caller's, by several threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pemncodec.contents import Array
from pemncodec.format.header import MaskedRow
from pemncodec.format.large_pages import allow_large_pages
from pemncodec.format.masked_sections import MaskedValues
from pemncodec.threads import available_threads

_JOBS_AHEAD = 2  # for each thread
_SMALL_WEIGHTS = 1 << 18  # in all: starting threads would take longer than the work


def fill_tensors(
    targets: Sequence[tuple[MaskedValues, Array]],
    progress: Callable[[float], None] | None = None,
) -> None:
    """Decodes masks and makes values; by several threads, a block at a time, where that pays.

    Args:
        targets: masked tensors of one file, each with the array that its values are written to:
            C-ordered [*shape], in the carrier dtype. After an error arrays may be half written.
        progress: called with the share that is done, 0 to 1.
    """
    if not targets:
        return
    by_section: dict[int, list[tuple[MaskedRow, Array]]] = {}
    for values, target in targets:
        own = by_section.setdefault(values.sections.section_of(values.row), [])
        own.append((values.row, target.reshape(-1)))
    sections = targets[0][0].sections
    if sum(target.size for _, target in targets) <= _SMALL_WEIGHTS:
        for together in by_section.values():
            for fill in sections.fill_jobs(together):
                fill()
        return
    allow_large_pages([target for _, target in targets])
    threads = available_threads()
    with ThreadPoolExecutor(threads) as pool:
        running: list[Future[None]] = []
        try:
            # The first jobs run while sections are read for the next; not too far ahead, since
            # jobs hold what they need.
            for together in by_section.values():
                if len(running) > _JOBS_AHEAD * threads:
                    running[-_JOBS_AHEAD * threads].result()
                running += [pool.submit(job) for job in sections.fill_jobs(together)]
            for done, job in enumerate(running):
                if progress is not None:
                    progress(done / len(running))
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
