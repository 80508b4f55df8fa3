"""How many threads of this process work at the same time, and on how much."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import ContextVar
from math import ceil
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_ROOT = Path("/")
_BYTES_AT_ONCE = 1 << 27  # that all threads work on, unless one item has more
_given: ContextVar[int | None] = ContextVar("threads", default=None)


@contextmanager
def threads_given(threads: int | None) -> Iterator[None]:
    """As many threads as the caller says, for what is called in the block; None changes nothing."""
    token = _given.set(_given.get() if threads is None else threads)
    try:
        yield
    finally:
        _given.reset(token)


def given_threads() -> int | None:
    """What the innermost caller of `threads_given` has said."""
    return _given.get()


def is_thread_count(threads: object) -> bool:
    """Whether it says how many threads to use: a whole number from 1 on, or None."""
    is_number = isinstance(threads, int) and not isinstance(threads, bool) and threads >= 1
    return threads is None or is_number


def available_threads() -> int:
    """How many threads to use, 1 or more.

    What the caller has given; else the smallest of three: the processors of the machine; those that
    the process's affinity allows; on Linux, the CPU time that the process's control groups may use,
    as containers set it, in processors and rounded up.
    """
    if (given := _given.get()) is not None:
        return given
    processors = _processors()
    return max(1, min([processors, *(ceil(quota) for quota in _quotas())]))


def each(pool: Executor | None, job: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What a job makes of each item; by the threads of a pool where there is one."""
    return map(job, items) if pool is None else pool.map(job, items)


def each_by_size(
    pool: Executor,
    job: Callable[[T, Executor | None], R],
    items: Sequence[T],
    sizes: Sequence[int],
) -> Iterator[R]:
    """What a job makes of each item, so that those under way at one time have not too many bytes.

    Args:
        pool: does the work.
        job: gets an item, and the pool where it is to share its own work: a large item is alone.
        items: in the order of the results.
        sizes: bytes of each.
    """
    most = _BYTES_AT_ONCE // available_threads()
    small = {
        index: pool.submit(job, item, None)
        for index, (item, size) in enumerate(zip(items, sizes, strict=True))
        if size <= most
    }
    for index, item in enumerate(items):
        yield small.pop(index).result() if index in small else job(item, pool)


def _processors() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas() -> list[float]:
    """CPU quotas, in processors, of the process's control groups and of all that these are in."""
    quotas = []
    for line in _text(_ROOT / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mount = _ROOT / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = _ROOT / "sys/fs/cgroup/cpu"
        else:
            continue
        # In a container the path may be that of the host; then only `mount` itself exists.
        group = mount / path.lstrip("/")
        for folder in [group, *group.parents]:
            quotas += _quota(folder)
            if folder == mount:
                break
    return quotas


def _quota(folder: Path) -> list[float]:
    """The quota of one control group, version 2 or 1; none if it has none."""
    limit = _text(folder / "cpu.max").split() or [
        *_text(folder / "cpu.cfs_quota_us").split(),
        *_text(folder / "cpu.cfs_period_us").split(),
    ]
    if len(limit) != 2 or not limit[0].isdigit() or not limit[1].isdigit():
        return []  # "max" and -1 stand for no limit
    quota, period = map(int, limit)
    return [quota / period] if period > 0 else []


def _text(path: Path) -> str:
    """What is in a file; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
