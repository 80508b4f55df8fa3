"""What is in memory at one time follows the largest layer, not the model."""

from __future__ import annotations

import json
import mmap
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import pemncodec
from pemncodec import mapped_masks, spool
from pemncodec import threads as threads_module
from pemncodec.checkpoints.files import load_checkpoint
from pemncodec.cli.comparing import compare_files
from pemncodec.cli.streams import BadDataError
from pemncodec.contents import StoredPrototype, TorchPrototype
from pemncodec.errors import CorruptError
from pemncodec.format import in_turn
from pemncodec.mapped_masks import mapped
from pemncodec.saving import safetensors_pieces
from pemncodec.values.fill import prototype_values
from pemncodec.values.recovery import Layer, SeededBlocks, comes_from

SIZE = 1 << 20  # weights of a layer
LAYERS = 4


@contextmanager
def at_most(size: float) -> Iterator[None]:
    """Bytes that the block may have in memory, mapped files not counted."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size, f"{peak / SIZE:.1f} bytes a weight of one layer"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Layers of values of their own, half of them masked out."""
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for layer in range(LAYERS):
        state[f"{layer}.weight_orig"] = torch.randn(SIZE // 64, 64)
        state[f"{layer}.weight_mask"] = torch.rand(SIZE // 64, 64) < 0.5
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path)
    return path


@pytest.mark.parametrize(("threads", "most"), [(1, 7.5), (4, 9.5)])
def test_stored_values_are_in_memory_a_layer_at_a_time(
    checkpoint: Path, tmp_path: Path, threads: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_IN_MEMORY", 1 << 16)
    monkeypatch.setattr(in_turn, "_BATCH_BYTES", 1 << 16)
    monkeypatch.setattr(in_turn, "_PART", 1 << 14)
    file = tmp_path / "net.pemn"
    monkeypatch.setattr(threads_module, "_BYTES_AT_ONCE", 1 << 16)
    state = load_checkpoint(checkpoint)
    assert isinstance(state, dict)
    # What is imported on the way is not counted.
    one = {"weight_orig": torch.ones(2, 2), "weight_mask": torch.eye(2)}
    pemncodec.encode(one, file, manifest=False)
    with at_most(most * SIZE):
        pemncodec.encode(
            state, file, manifest=False, preset="fast", find_seed="off", threads=threads
        )
    assert file.stat().st_size > LAYERS * SIZE  # stored: 1.8 bytes a weight
    with pemncodec.open(file) as opened:
        with at_most(9.5 * SIZE):
            opened.verify()
        with at_most(5.5 * SIZE):
            for _ in safetensors_pieces(opened):
                pass


def test_values_of_a_prototype_are_those_that_are_known() -> None:
    given = np.array([1, 2, 3, 4, 5, 6, 7], np.float32)
    assert StoredPrototype(given, "float32").values is given
    known = np.array([1, 0, 0, 0, 0, 1, 1], np.bool_)
    whole = StoredPrototype(given, "float32", known=known)
    assert (whole.length, whole.values.tolist()) == (7, [1, 0, 0, 0, 0, 6, 7])
    folded = StoredPrototype(given, "float32", known=known, period=4)
    assert (folded.length, folded.values.tolist()) == (4, [1, 6, 7, 0])
    nothing = StoredPrototype(-given, "float32", known=np.zeros(7, np.bool_))
    assert nothing.values.tobytes() == bytes(28)


@pytest.mark.parametrize("count", [0, 1, mapped_masks._LARGE - 1, mapped_masks._LARGE, 3 << 20])
def test_large_masks_are_in_files(count: int) -> None:
    mask = np.random.default_rng(count).random(2 * count) < 0.5
    for given in (mask[:count], mask[::2], mask[: count // 8 * 8].reshape(-1, 8).T):
        kept = mapped(given)
        assert np.array_equal(kept, given)
        assert kept.shape == given.shape
        assert kept.dtype == np.bool_
        assert (kept is given) == (given.size < mapped_masks._LARGE)
        torch.from_numpy(kept)[:] = False  # warns of what is not writable


def test_masks_stay_in_memory_where_no_file_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.ones(mapped_masks._LARGE, np.bool_)
    monkeypatch.setattr(tempfile, "tempdir", "/no such folder")
    assert mapped(mask) is mask
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", lambda *_, **__: Path("/dev/full").write_bytes(b"1"))
        assert mapped(mask) is mask


@pytest.fixture(scope="module")
def more_memory() -> dict[str, float]:
    """Bytes for each weight of further layers, by the kind of masks."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("memory_of_masks.py")],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(done.stdout))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's settings, and /proc")
@pytest.mark.parametrize(
    "kind",
    ["scores", "short scores", "one cut", "thresholds", "recipes", "recipes of one cut", "zeros"],
)
def test_masks_are_made_a_layer_at_a_time(kind: str, more_memory: dict[str, float]) -> None:
    assert more_memory[kind] < 0.5


@pytest.mark.parametrize("other", ["model.safetensors", "copy.pemn"])
def test_files_are_compared_a_layer_at_a_time(
    checkpoint: Path, tmp_path: Path, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_turn, "_BATCH_BYTES", 1 << 16)
    monkeypatch.setattr(in_turn, "_PART", 1 << 14)
    file = tmp_path / "net.pemn"
    state = load_checkpoint(checkpoint)
    assert isinstance(state, dict)
    pemncodec.encode(state, file, manifest=False, preset="fast", find_seed="off", threads=1)
    shutil.copy(file, tmp_path / "copy.pemn")
    whole = file.stat().st_size if other.endswith(".pemn") else 0  # which is read as it is
    with pemncodec.open(file) as opened, at_most(20 * SIZE + whole):
        compare_files(opened, [str(tmp_path / other)], {}, None, print, trust_pickle=False)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pemncodec.open(file) as opened, pytest.raises(CorruptError):
        compare_files(opened, [str(tmp_path / other)], {}, None, print, trust_pickle=False)
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (tmp_path / "copy.pemn").write_bytes(data)
    with pemncodec.open(file) as opened, pytest.raises(BadDataError, match=r"copy\.pemn: "):
        compare_files(opened, [str(tmp_path / "copy.pemn")], {}, None, print, trust_pickle=False)


def test_values_of_a_seed_are_compared_a_block_at_a_time(tmp_path: Path) -> None:
    torch.manual_seed(5)
    size = 3 << 20  # more than are held
    state = {"weight": torch.empty(size // 64, 64).normal_()}
    masks = {"weight": torch.rand(size // 64, 64) < 0.5}
    with at_most(10 * size):  # most of them while the shortest period is sought
        pemncodec.encode(
            state, tmp_path / "net.pemn", masks=masks, manifest=False, seed=5, threads=1
        )
    with pemncodec.open(tmp_path / "net.pemn") as file:
        assert file.header.prototypes == (TorchPrototype("normal", 5, size),)


@pytest.mark.parametrize("length", [1000, (3 << 20) + 1001])
def test_blocks_of_a_seed_are_its_values_again_and_again(length: int) -> None:
    prototype = TorchPrototype("uniform", 5, length, 77)
    size = 5 * length // 2
    expected = np.resize(prototype_values(prototype), size)
    layer = Layer("float32", expected, np.ones(size, np.bool_))
    with at_most(12 << 20):
        assert comes_from(SeededBlocks(prototype), 1.0, layer)
    end = 0
    for block, part in SeededBlocks(prototype).repeated(size):
        assert part.start == end
        assert np.array_equal(block, expected[part])
        end = part.stop
    assert end == size
    expected[-1] += 1
    assert not comes_from(SeededBlocks(prototype), 1.0, layer)
