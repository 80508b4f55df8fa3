"""State dicts as safetensors files, written a few tensors at a time."""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

import pemncodec
from pemncodec.errors import CorruptError, EncodeError
from pemncodec.format import in_turn, masked_sections
from pemncodec.format.in_turn import equal_parts, tensors_in_turn
from pemncodec.saving import safetensors_pieces

SIZE = 1 << 22


def encoded(state: dict[str, Tensor], masked: list[str], **options: object) -> bytes:
    stream = io.BytesIO()
    generator = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(state[n].shape, generator=generator) < 0.5 for n in masked}
    pemncodec.encode(
        state, stream, masks=masks, manifest=False, find_seed="off", preset="fast", **options
    )
    return stream.getvalue()


def saved(data: bytes) -> bytes:
    with pemncodec.open(data) as file:
        return b"".join(safetensors_pieces(file))


def test_what_safetensors_reads_is_the_state_dict(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {
        "flag": torch.tensor([True, False, True]),
        "a.weight": torch.randn(5, 7),
        "none": torch.empty(0, 3),
        "half": torch.randn(3).half(),
        "count": torch.tensor(7),
        "wide": torch.randn(3, dtype=torch.float64),
        "complex": torch.randn(3, dtype=torch.complex64),
        "eight": torch.randn(9).to(torch.float8_e4m3fn),
        "short": torch.randn(2, 2).bfloat16(),
        "b.weight": torch.randn(70_000),
        'ümlaut "x"': torch.arange(9).to(torch.uint16),
    }
    state["tied"] = state["a.weight"]
    data = encoded(state, ["a.weight", "b.weight", "short"], metadata={"by": "ä"})
    expected = pemncodec.load_state_dict(data)
    path = tmp_path / "x.safetensors"
    path.write_bytes(saved(data))
    found = safetensors.torch.load_file(path)
    assert set(found) == set(state)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.shape == expected[name].shape
        same = (t.reshape(-1).view(torch.uint8) for t in (tensor, expected[name]) if t.numel())
        assert len({bytes(t.tolist()) for t in same}) <= 1, name
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"by": "ä", "format": "pt"}


def test_buffers_that_are_not_persistent_are_left_out() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("passing", torch.ones(4), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x) + self.passing
            return y

    stream = io.BytesIO()
    pemncodec.encode(Net(), stream, masks={"fc.weight": torch.eye(4) > 0})
    assert set(safetensors.torch.load(saved(stream.getvalue()))) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ({"__metadata__": torch.ones(2)}, "the name __metadata__"),
        ({"z": torch.ones(2, dtype=torch.complex128)}, "complex128, as z is"),
    ],
)
def test_what_safetensors_cannot_hold(state: dict[str, Tensor], cause: str) -> None:
    data = encoded({"m": torch.ones(3), **state}, ["m"])
    with pytest.raises(EncodeError, match=f"cannot hold {cause}; use .pt"):
        saved(data)


def test_few_tensors_are_in_memory_at_a_time() -> None:
    torch.manual_seed(0)
    vector = torch.randn(1000)
    state = {f"{i}.weight": vector.repeat(SIZE // 1000 + 1)[:SIZE] for i in range(8)}
    state |= {f"{i}.bias": torch.randn(SIZE // 8) for i in range(8)}
    with pemncodec.open(encoded(state, [f"{i}.weight" for i in range(8)])) as file:
        tracemalloc.start()
        for _ in safetensors_pieces(file):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 3.5 * 4 * SIZE  # two tensors at a time, and what they are made of


def test_arrays_come_in_the_order_that_was_asked_for() -> None:
    state = {name: torch.full((3,), float(i)) for i, name in enumerate("abcd")}
    with pemncodec.open(encoded(state, ["b", "d"])) as file:
        found = [float(next(parts).max()) for parts in tensors_in_turn(file, list("dbacb"))]
    assert found == [3, 1, 0, 2, 1]


@pytest.mark.parametrize("prototypes_held", [0, 1 << 20])
def test_large_tensors_come_in_parts(prototypes_held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_turn, "_BATCH_BYTES", 10_000)
    monkeypatch.setattr(in_turn, "_PART", 1 << 10)
    monkeypatch.setattr(masked_sections, "_SMALL_BYTES", prototypes_held)
    torch.manual_seed(0)
    state = {
        "first": torch.randn(9),
        "own": torch.randn(101, 99),
        "wide": torch.randn(3001, dtype=torch.float64),
        "dense": torch.randn(5000),
        "repeated": torch.randn(999).repeat(17),
        "all": torch.randn(2501),
        "last": torch.randn(2),
    }
    masked = ["own", "wide", "repeated", "all", "last"]
    state["all"][:] = torch.arange(2501)
    data = encoded(state, masked)
    expected = pemncodec.load_state_dict(data)
    with pemncodec.open(data) as file:
        found = {
            name: [part.copy() for part in parts]
            for name, parts in zip(state, tensors_in_turn(file, state), strict=True)
        }
        skipped = [next(parts) for parts in tensors_in_turn(file, ["own", "repeated", "last"])]
    assert {name: len(parts) for name, parts in found.items()} == {
        **dict.fromkeys(state, 1), "own": 10, "wide": 3, "repeated": 17, "all": 3,
    }  # fmt: skip
    for name, tensor in expected.items():
        assert np.concatenate(found[name]).tobytes() == tensor.numpy().tobytes()
    assert [part.size for part in skipped] == [1024, 1024, 2]
    assert safetensors.torch.load(saved(data)).keys() == state.keys()


@given(st.data())
def test_parts_that_are_cut_anywhere_are_compared(data: st.DataObject) -> None:
    values = np.arange(data.draw(st.integers(0, 30)), dtype=np.float64)
    others = values.copy()
    if values.size and data.draw(st.booleans()):
        others[data.draw(st.integers(0, values.size - 1))] *= -1  # 0 and -0 differ, too
    others = others[: data.draw(st.sampled_from([values.size, max(values.size - 1, 0)]))]
    cuts = st.lists(st.integers(0, 30)).map(sorted)
    first, second = np.split(values, data.draw(cuts)), np.split(others, data.draw(cuts))
    same = values.tobytes() == others.tobytes()
    assert equal_parts(first, second) == equal_parts(second, first) == same


def test_damage_is_found_and_no_file_is_left(tmp_path: Path) -> None:
    state = {"a": torch.randn(999), "b": torch.randn(999)}
    data = bytearray(encoded(state, ["a"]))
    data[-5] ^= 1
    with pytest.raises(CorruptError):
        saved(bytes(data))
    (tmp_path / "net.pemn").write_bytes(data)
    command = [sys.executable, "-m", "pemncodec", "decode", "net.pemn", "-o", "net.safetensors"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert result.returncode == 1
    assert b"checksum" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["net.pemn"]


def test_torch_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "net.pemn").write_bytes(encoded({"a": torch.randn(99)}, ["a"]))
    code = """
import sys
from click.testing import CliRunner
from pemncodec.cli.main import cli
result = CliRunner().invoke(cli, ["decode", "net.pemn", "-o", "net.safetensors"])
assert result.exit_code == 0, result.output
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert set(safetensors.torch.load_file(tmp_path / "net.safetensors")) == {"a"}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux")
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_disk_that_is_full_is_named(tmp_path: Path, name: str) -> None:
    """The largest size of a file stands for it."""
    (tmp_path / "net.pemn").write_bytes(encoded({"a": torch.randn(99_999)}, ["a"]))
    code = f"""
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.argv = ["pemn", "decode", "net.pemn", "-o", "{name}"]
runpy.run_module("pemncodec", run_name="__main__")
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert result.returncode == 1
    room = "make room there, or name another place (-o; TMPDIR for temporary files)"
    assert result.stderr.decode().strip() == f"pemn: {name}: File too large; {room}"
    assert [path.name for path in tmp_path.iterdir()] == ["net.pemn"]
