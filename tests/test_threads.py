"""The number of threads: what the caller gives, and files of control groups, which are faked."""

from __future__ import annotations

import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import pemncodec
from pemncodec import DecodeArgumentError, EncodeArgumentError, threads
from pemncodec.cli.main import cli
from pemncodec.coders.masks import Preset
from pemncodec.threads import available_threads, threads_given

_DRAW = torch.Generator().manual_seed(0)
STATE = {
    **{f"frozen.{i}": torch.randn(70_000 * (1 + i), generator=_DRAW) for i in range(4)},
    **{f"trained.{i}": torch.randn(300, 10 * i + 70, generator=_DRAW) for i in range(3)},
}
MASKS = {n: torch.rand(t.shape, generator=_DRAW) < 0.4 for n, t in STATE.items() if "fro" in n}


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


def test_what_the_caller_gives_counts(machine: Path) -> None:
    with threads_given(3):
        assert available_threads() == 3
        with threads_given(None):
            assert available_threads() == 3
        with threads_given(100):
            assert available_threads() == 100
        assert available_threads() == 3
    assert available_threads() == 64
    assert machine.is_dir()


@pytest.mark.parametrize("threads", [0, -1, 1.0, True, "2"])
def test_what_is_no_number_of_threads(threads: Any) -> None:
    with pytest.raises(EncodeArgumentError, match="threads"):
        pemncodec.encode(STATE, io.BytesIO(), masks=MASKS, manifest=False, threads=threads)
    with pytest.raises(DecodeArgumentError, match="threads"):
        pemncodec.load_state_dict(b"", threads=threads)
    with pytest.raises(DecodeArgumentError, match="threads"):
        pemncodec.decode(b"", threads=threads)


@pytest.mark.parametrize("preset", ["fast", "max"])
def test_any_number_of_threads_makes_the_same(preset: Preset) -> None:
    files = []
    for count in (1, 2, 5):
        stream = io.BytesIO()
        before = torch.get_num_threads()
        pemncodec.encode(
            STATE, stream, masks=MASKS, manifest=False, find_seed="off", preset=preset,
            threads=count, dense={"trained.1": "q8"},
        )  # fmt: skip
        assert torch.get_num_threads() == before
        files.append(stream.getvalue())
        state = pemncodec.load_state_dict(files[0], threads=count)
        assert all(torch.equal(state[n], STATE[n] * MASKS[n]) for n in MASKS)
    assert files[0] == files[1] == files[2]


def test_the_command_says_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({f"{n}_orig": STATE[n] for n in MASKS} | {f"{n}_mask": MASKS[n] for n in MASKS},
               tmp_path / "m.pt")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    seen: list[int] = []

    def counted(threads: int) -> ThreadPoolExecutor:
        seen.append(threads)
        return ThreadPoolExecutor(threads)

    for module in ("writer", "filling"):
        monkeypatch.setattr(f"pemncodec.format.{module}.ThreadPoolExecutor", counted)
    encode = ["encode", "m.pt", "-f", "--no-manifest", "--find-seed", "off", "-q"]
    decode = ["decode", "m.pemn", "-f", "-o", "m.safetensors", "-q"]
    for arguments, variable, expected in (
        ([*encode, "--threads", "3"], "", 3),
        (encode, "5", 5),
        ([*encode, "--threads", "3"], "5", 3),
        ([*decode, "--threads", "4"], "", 4),
        (["verify", "m.pemn", "-q"], "6", 6),
    ):
        seen.clear()
        environment = {"PEMN_THREADS": variable} if variable else {}
        result = CliRunner().invoke(cli, arguments, env=environment)
        assert result.exit_code == 0, result.output
        assert seen
        assert set(seen) == {expected}


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_checks_the_number(command: str, tmp_path: Path) -> None:
    net = tmp_path / "net.pemn"
    pemncodec.encode(nn.Linear(4, 4), net, masks={"weight": torch.eye(4) > 0}, find_seed="off")
    arguments = [command, str(net), *(["-o", str(tmp_path / "net.pt")] * (command == "decode"))]
    for wrong in ("0", "many"):
        result = CliRunner().invoke(cli, arguments, env={"PEMN_THREADS": wrong})
        assert result.exit_code == 2
        assert "--threads" in result.output


@pytest.mark.parametrize("first_to_end", [0, 1])
@pytest.mark.parametrize("given", [(1, 2), (None, 1)])
def test_overlapping_calls_leave_torch_its_threads(
    first_to_end: int, given: tuple[int | None, int | None]
) -> None:
    before = torch.get_num_threads()
    runs, may_end = [Event(), Event()], [Event(), Event()]

    def encode(index: int) -> None:
        def waits(_: nn.Module) -> float:
            runs[index].set()
            assert may_end[index].wait(60)
            return 0.0

        more = given[index]
        pemncodec.encode(
            nn.Linear(4, 4), io.BytesIO(), masks={"weight": torch.eye(4) > 0}, find_seed="off",
            threads=None if more is None else before + more, accuracy=waits,
        )  # fmt: skip

    # New threads of Python, which take torch's number from the process.
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        calls = []
        for index, pool in enumerate((one, other)):
            calls.append(pool.submit(encode, index))
            assert runs[index].wait(60)
        for index in (first_to_end, 1 - first_to_end):
            may_end[index].set()
            calls[index].result()
        afterwards = [pool.submit(torch.get_num_threads).result() for pool in (one, other)]
    with ThreadPoolExecutor(1) as fresh:
        afterwards.append(fresh.submit(torch.get_num_threads).result())
    afterwards.append(torch.get_num_threads())
    assert afterwards == [before] * 4
