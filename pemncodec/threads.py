"""How many threads of this process can run at the same time."""

from __future__ import annotations

import os
import sys
from math import ceil
from pathlib import Path

_ROOT = Path("/")


def available_threads() -> int:
    """How many threads can run at the same time, 1 or more.

    The smallest of three: the processors of the machine; those that the process's affinity allows;
    on Linux, the CPU time that the process's control groups may use, as containers set it, in
    processors and rounded up.
    """
    processors = _processors()
    return max(1, min([processors, *(ceil(quota) for quota in _quotas())]))


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
