"""What is in memory at one time follows the largest layer, not the model."""

from __future__ import annotations

import io
import shutil
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import pemncodec
from pemncodec import encoding, spool
from pemncodec import threads as threads_module
from pemncodec.checkpoints.files import load_checkpoint
from pemncodec.cli.comparing import compare_files
from pemncodec.cli.streams import BadDataError
from pemncodec.contents import StoredPrototype, TorchPrototype
from pemncodec.errors import CorruptError
from pemncodec.format import in_turn
from pemncodec.masking import RandomPadding, mask_model
from pemncodec.masking.mask_bits import MaskBits
from pemncodec.masking.masked_state import MaskedState
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


def test_masks_are_bits_unless_somebody_holds_them() -> None:
    rng = np.random.default_rng(0)
    held = torch.from_numpy(rng.random((3, 7, 11)) < 0.5)
    made = {"b": rng.random((9, 13)) < 0.5, "c": rng.random(0) < 0.5, "d": held.numpy() ^ True}
    masks = MaskBits({"a": held[1].numpy(), **made}, [held, torch.zeros(5)])
    assert list(masks) == ["a", *made]
    assert len(masks) == 4
    assert "b" in masks
    assert "e" not in masks
    assert np.shares_memory(masks["a"], held.numpy())
    for name, mask in made.items():
        assert np.array_equal(masks[name], mask)
        assert masks[name].dtype == np.bool_


def test_masks_around_a_given_tensor_are_bits() -> None:
    memory = np.zeros((3, 64), np.bool_)  # one after the other
    below, given, above = memory
    masks = MaskBits({"below": below, "given": given, "above": above}, [torch.from_numpy(given)])
    held = {name: np.shares_memory(masks[name], memory) for name in masks}
    assert held == {"below": False, "given": True, "above": False}
    last = MaskBits({"last": given[-1:], "next": above[:1]}, [torch.from_numpy(given)])
    assert np.shares_memory(last["last"], memory)
    assert not np.shares_memory(last["next"], memory)


def test_masks_of_scores_are_bits_while_networks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Mapping[str, Any]] = []
    real = encoding.prove_network

    def proof(encoded: Any, state: MaskedState, *rest: Any) -> Any:
        seen.append(state.masks)
        return real(encoded, state, *rest)

    monkeypatch.setattr(encoding, "prove_network", proof)
    model = mask_model(nn.Sequential(nn.Linear(8, 8)), RandomPadding(length=16), keep=0.5, seed=0)
    pemncodec.encode(model, io.BytesIO())
    (masks,) = seen
    assert isinstance(masks, MaskBits)
    assert not np.shares_memory(masks["0.weight"], masks["0.weight"])


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
