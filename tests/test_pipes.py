"""Files that come and go through pipes, and places that have no room."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from conftest import ROOT, fails
from torch import nn

import pemncodec
from pemncodec.cli import streams
from pemncodec.errors import CorruptError, LimitError, TruncatedError
from pemncodec.format import pipes
from pemncodec.limits import Limits

Run = Callable[..., subprocess.CompletedProcess[bytes]]


class Pipe(io.BytesIO):
    """Gives what it has once, some bytes at a time."""

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert size >= 0, "a pipe may be endless"
        return super().read(min(size, 1000))


class Endless(Pipe):
    """Zeros without end behind what it has."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size) or bytes(min(size or 0, 1000))


@pytest.fixture(scope="module")
def data() -> bytes:
    """A file of stored values."""
    torch.manual_seed(0)
    state = {f"{i}.weight": torch.randn(300, 40) for i in range(3)}
    masks = {name: torch.rand(300, 40) < 0.5 for name in state}
    stream = io.BytesIO()
    pemncodec.encode(state, stream, masks=masks, manifest=False, find_seed="off")
    return stream.getvalue()


@pytest.mark.parametrize("in_memory", [0, 1 << 24])
def test_what_a_pipe_gives_is_read_as_a_file_is(
    data: bytes, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes, "_IN_MEMORY", in_memory)
    with pemncodec.open(Pipe(data)) as file:
        assert file.data() == data
        file.verify()
    expected = pemncodec.load_state_dict(data)
    for name, tensor in pemncodec.load_state_dict(Pipe(data)).items():
        assert torch.equal(tensor, expected[name])


def test_pipes_are_read_no_further_than_a_file_goes(data: bytes) -> None:
    pipe = Pipe(data + bytes(1 << 20))
    with pytest.raises(CorruptError) as trailing:
        pemncodec.open(pipe)
    assert trailing.value.code == "trailing"
    assert len(data) < pipe.tell() < len(data) + (1 << 17)
    for end in (7, 20, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(TruncatedError):
            pemncodec.open(Pipe(data[:end]))


def test_limits_hold_for_what_pipes_give_and_files_have(data: bytes) -> None:
    small = Limits(decoded_bytes=len(data) // 2, header_bytes=1000, manifest_bytes=1000)
    pipe = Pipe(data)
    for source in (pipe, data):
        with pytest.raises(LimitError, match=r"a file of .* bytes, the limit is"):
            pemncodec.open(source, limits=small)
    assert pipe.tell() < 2000


def test_a_damaged_section_is_found_before_anything_goes_to_a_pipe(
    data: bytes, run: Run, tmp_path: Path
) -> None:
    whole = run("decode", "-", "-o", "-", stdin=data)
    assert whole.returncode == 0
    assert sorted(safetensors.torch.load(whole.stdout)) == ["0.weight", "1.weight", "2.weight"]
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    (tmp_path / "net.pemn").write_bytes(damaged)
    for source in ("-", "net.pemn"):
        result = run("decode", source, "-o", "-", stdin=damaged)
        fails(result, 1, "the checksum does not match")
        assert result.stdout == b""


@pytest.mark.parametrize("output", ["-", "x.safetensors", "x.pt", "x.onnx", "x.pt2"])
def test_what_never_ends_is_refused(data: bytes, run: Run, tmp_path: Path, output: str) -> None:
    """By every way that `pemn decode` may take."""
    fails(run("decode", "-", "-o", output, stdin=Endless()), 1, "not a .pemn file")
    fails(
        run("decode", "-", "-o", output, stdin=Endless(data)), 1, "bytes behind the end of the file"
    )
    limited = ("--max-memory", len(data) // 2)
    fails(run("decode", "-", *limited, "-o", output, stdin=Pipe(data)), 1, "--max-memory")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["encode", "seed", "report", "verify", "masks"])
@pytest.mark.parametrize("kind", ["text", "pickle", "archive", "safetensors", "pemn"])
def test_a_checkpoint_that_never_ends_is_refused(
    data: bytes, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, kind: str
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (tmp_path / "net.pemn").write_bytes(data)
    torch.save({"x": torch.zeros(2)}, archive := io.BytesIO())
    beginnings = {
        "text": b"y\ny\n",
        "pickle": b"\x80\x02",
        "archive": archive.getvalue(),
        "safetensors": safetensors.torch.save({"x": torch.zeros(2)}),
        "pemn": data,
    }
    pipe = Endless(beginnings[kind])
    taken = []
    read = pipe.read

    def counted(size: int | None = -1) -> bytes:
        taken.append(part := read(size))
        return part

    monkeypatch.setattr(pipe, "read", counted)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(streams, "_UNKNOWN", 2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=6_000_000))
    arguments = {
        "encode": ["-", "-o", "-", "--no-manifest"],
        "seed": ["-"],
        "report": ["-"],
        "verify": ["net.pemn", "--against", "-"],
        "masks": ["net.pemn", "--masks", "-", "-o", "x.pemn", "--no-manifest"],
    }
    name = "encode" if command == "masks" else command
    words = ["neither a checkpoint" if kind == "text" else "more than 3,000,000 bytes come"]
    if kind != "text":
        words += [f"half of what is free in {temporary}: give a file", "(TMPDIR)"]
    fails(run(name, *arguments[command], stdin=pipe), 1, *words)
    assert sum(map(len, taken)) < 4_100_000
    assert not list(temporary.iterdir())


def test_networks_are_exported_from_pipes(run: Run, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    stream, inputs = io.BytesIO(), torch.randn(2, 3)
    pemncodec.encode(
        net,
        stream,
        masks={"0.weight": torch.rand(2, 3) < 0.5},
        example_inputs=inputs,
        find_seed="off",
    )
    assert run("decode", "-", "-o", "x.pt2", stdin=Pipe(stream.getvalue())).returncode == 0
    assert torch.equal(
        torch.export.load(tmp_path / "x.pt2").module()(inputs), pemncodec.decode(stream)(inputs)
    )


def test_a_file_that_waits_for_standard_output_is_on_disk(
    data: bytes, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pemncodec.cli import encode

    monkeypatch.setattr(encode, "_IN_MEMORY", 1000)
    options = ("--no-manifest", "--find-seed", "off")
    assert run("encode", "-", "-o", "-", *options, stdin=data).stdout == data


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux")
@pytest.mark.parametrize("kind", ["spool", "pipe", "checkpoint", "output"])
def test_a_disk_that_is_full_is_named_and_left_empty(
    data: bytes, tmp_path: Path, kind: str
) -> None:
    """The largest size of a file stands for it."""
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    (work / "net.pemn").write_bytes(data)
    arguments = ["encode", "net.pemn", "-o", "new.pemn", "--no-manifest", "--find-seed", "off"]
    if kind == "pipe":
        arguments = ["decode", "-", "-o", "x.safetensors"]
    elif kind == "checkpoint":
        arguments[1] = "-"
    elif kind == "output":
        arguments[3] = "-"
    code = f"""
import resource, runpy, signal, sys
from pemncodec import spool
from pemncodec.format import pipes
spool._IN_MEMORY = pipes._IN_MEMORY = 1000
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.argv = ["pemn", *{arguments}]
runpy.run_module("pemncodec", run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work, input=data, capture_output=True, check=False,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    where = "new.pemn" if kind == "spool" else str(temporary)
    fails(result, 1, f"pemn: {where}: File too large; make room there")
    assert [path.name for path in work.iterdir()] == ["net.pemn"]
    assert not list(temporary.iterdir())


def test_a_file_object_without_room_is_left_to_its_caller(data: bytes) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:  # type: ignore[override]
            raise OSError(28, "No space left on device")

    with pemncodec.open(data) as file, pytest.raises(OSError, match="No space left"):
        pemncodec.encode(file, Full(), manifest=False, find_seed="off")
