"""The number of threads, with faked files of control groups."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pemncodec import threads
from pemncodec.threads import available_threads


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root folder of a Linux machine with 64 processors and without control groups."""
    monkeypatch.setattr(threads, "_ROOT", tmp_path)
    monkeypatch.setattr(threads, "_processors", lambda: 64)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_without_control_groups_all_processors_count(machine: Path) -> None:
    assert not any(machine.iterdir())
    assert available_threads() == 64


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"cpu.max": "200000 100000\n"}, 2, id="two"),
        pytest.param({"cpu.max": "200001 100000\n"}, 3, id="rounded up"),
        pytest.param({"cpu.max": "1000 100000\n"}, 1, id="a hundredth"),
        pytest.param({"cpu.max": "max 100000\n"}, 64, id="no limit"),
        pytest.param({"cpu.max": "9900000 100000\n"}, 64, id="above the processors"),
        pytest.param({"cpu.max": ""}, 64, id="empty"),
        pytest.param({"cpu.max": "1 0"}, 64, id="no period"),
        pytest.param({"pod/cpu.max": "max 100000", "cpu.max": "500000 100000"}, 5, id="outer"),
        pytest.param({"pod/cpu.max": "300000 100000", "cpu.max": "max 100000"}, 3, id="inner"),
        pytest.param({"pod/job/cpu.max": "400000 100000", "pod/cpu.max": "7 1"}, 4, id="own"),
        pytest.param({"other/cpu.max": "100000 100000"}, 64, id="another group's"),
        pytest.param({"../cpu.max": "100000 100000"}, 64, id="not a control group's"),
    ],
)
def test_quota_of_version_2(machine: Path, files: dict[str, str], expected: int) -> None:
    write(machine, {"proc/self/cgroup": "0::/pod/job\n", "sys/fs/cgroup/here": ""})
    write(machine / "sys/fs/cgroup", files)
    assert available_threads() == expected


def test_quota_where_the_group_is_named_as_on_the_host(machine: Path) -> None:
    write(machine, {"proc/self/cgroup": "7:cpuset:/a b\n0::/host/docker 1f\n"})
    write(machine, {"sys/fs/cgroup/cpu.max": "250000 100000\n"})
    assert available_threads() == 3


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("-1\n", "100000\n", 64), ("150000\n", "100000\n", 2), ("600000\n", "100000\n", 6)],
)
def test_quota_of_version_1(machine: Path, quota: str, period: str, expected: int) -> None:
    write(machine, {"proc/self/cgroup": "5:memory:/a\n4:cpu,cpuacct:/docker/1f\n0::/\n"})
    folder = machine / "sys/fs/cgroup/cpu/docker/1f"
    write(folder, {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": period})
    assert available_threads() == expected


def test_real_files_and_affinity() -> None:
    assert 1 <= available_threads() <= (os.cpu_count() or 1)


@pytest.mark.skipif(sys.platform != "linux", reason="affinity of a process is of Linux")
def test_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_threads() == 1
    finally:
        os.sched_setaffinity(0, before)
