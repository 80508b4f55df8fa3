"""Torch prototypes in files: encoded, shown, decoded; what readers of them refuse."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from torch import nn

import pemncodec
from pemncodec import TorchPrototype
from pemncodec.contents import (
    Contents,
    Fill,
    MaskedTensor,
    Prototype,
    SeededPrototype,
    StoredPrototype,
    numel,
)
from pemncodec.errors import EncodeArgumentError, LimitError, PrototypeMismatchError
from pemncodec.format import masked_sections
from pemncodec.format.container import decode_container, encode_container
from pemncodec.format.writer import encode_contents
from pemncodec.limits import Limits
from pemncodec.spool import Spool
from pemncodec.tensors import same_bits
from pemncodec.values import fill as fill_module
from pemncodec.values import mersenne
from pemncodec.values.generators import seeded_slice

VECTORS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
needs_vectors = pytest.mark.skipif(not VECTORS, reason="this torch draws the scalar variant")


class Net(nn.Module):
    """Layers that are drawn twice, as those of most networks: their default, then kaiming."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)
        nn.init.kaiming_normal_(self.conv.weight)
        nn.init.kaiming_uniform_(self.fc.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


# 216 words for the default of conv; 40 and 5 for that of fc; then 216 and 8, since 216 % 16 is 8.
CONV = TorchPrototype("normal", 1234, 216, 216 + 45)
FC = TorchPrototype("uniform", 1234, 40, 216 + 45 + 216 + 16)


def network() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(1234)
    net = Net()
    names = ("conv.weight", "fc.weight")
    masks = {name: torch.rand_like(net.state_dict()[name]) < 0.5 for name in names}
    return net, masks


@needs_vectors
def test_a_network_of_a_seed_stores_no_values(tmp_path: Path, run: Run) -> None:
    net, masks = network()
    path = tmp_path / "net.pemn"
    inputs = torch.ones(1, 3, 8, 8)
    pemncodec.encode(net, path, masks=masks, prototypes=[CONV, FC], example_inputs=inputs)
    state = pemncodec.load_state_dict(path)
    for name, tensor in net.state_dict().items():
        kept = torch.where(masks[name], tensor, 0.0) if name in masks else tensor
        assert same_bits(state[name], kept)
    with pemncodec.open(path) as file:
        info = file.info()
    assert info.prototype_bytes == 0
    assert info.format_version == "0.2"
    assert info.prototypes == (
        "216 normal values, torch seed 1234, after 261 words",
        "40 uniform values, torch seed 1234, after 493 words",
    )
    shown = run("inspect", path)
    assert shown.returncode == 0
    assert b"216 normal values, torch seed 1234, after 261 words" in shown.stdout
    assert run("verify", path).returncode == 0


@needs_vectors
@pytest.mark.parametrize("change", [{"seed": 1235}, {"skip": 262}, {"variant": "scalar"}])
def test_a_prototype_that_nothing_comes_from(change: dict[str, object]) -> None:
    net, masks = network()
    fields = {"distribution": "normal", "seed": 1234, "length": 216, "skip": 261}
    wrong = TorchPrototype(**fields | change)  # type: ignore[arg-type]
    with pytest.raises(PrototypeMismatchError, match="no masked layer comes from TorchPrototype"):
        pemncodec.encode(net, io.BytesIO(), masks=masks, prototypes=[wrong], manifest=False)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (TorchPrototype("normal", 1 << 40, 16), "seeds of 32 bits"),
        (TorchPrototype("normal", 1, 16, skip=1 << 60), "readers draw at most 8,589,934,592 words"),
    ],
)
def test_fields_of_given_prototypes_are_checked(wrong: TorchPrototype, words: str) -> None:
    net, masks = network()
    with pytest.raises(EncodeArgumentError, match=words):
        pemncodec.encode(net, io.BytesIO(), masks=masks, prototypes=[wrong])


# --------------------------------------------------------------------------- bytes of files


def file_of(*prototypes: Prototype, scale: float = 1.0) -> bytes:
    """A file of a tensor on each of some prototypes, every value but the first one used."""
    tensors = tuple(
        MaskedTensor(
            f"w{i}", "float32", (prototype.length,), Fill(i, 0, scale),
            np.arange(prototype.length) > 0,
        )
        for i, prototype in enumerate(prototypes)
    )  # fmt: skip
    return b"".join(encode_contents(Contents(prototypes, tensors), preset="fast"))


def sections_of(data: bytes) -> list[tuple[int, str]]:
    container = decode_container(io.BytesIO(data), Limits())
    return [(entry.length, f"{entry.crc:08x}") for entry in container.sections]


def header_of(data: bytes) -> tuple[tuple[int, int], str]:
    container = decode_container(io.BytesIO(data), Limits())
    return container.version, container.header.decode()


def test_files_without_torch_prototypes_are_those_of_format_0_1() -> None:
    values = np.arange(4, dtype=np.float32)
    data = file_of(SeededPrototype("uniform", 5, 9, period=2), StoredPrototype(values, "float32"))
    assert header_of(data) == (
        (0, 1),
        '{"masked":{"prototype":[0,1]},"masks":{"section":[0,1]},'
        '"prototypes":{"kind":["seeded","stored"],"length":[9,4]},'
        '"sections":[["mask",2],["prototype",1]],'
        '"seeded":{"distribution":["uniform"],"period":[2],"seed":["0000000000000005"]},'
        '"stored":{"section":[2],"used":["masks"]},'
        '"tensors":{"kind":["masked","masked"],"name":["w0","w1"],"shape":[[9],[4]]}}',
    )
    assert sections_of(data) == [(3, "03bb4f80"), (2, "bf7a0eb9"), (13, "c6af165c")]


def test_torch_prototypes_cost_their_gaps() -> None:
    first = TorchPrototype("normal", 1, 17, 100)  # ends at 133
    data = file_of(
        first,
        TorchPrototype("normal", 1, 32, 133),
        TorchPrototype("uniform", 1, 4, 160, -0.5, 0.5),
        TorchPrototype("normal-signs", 0xABCDEF01, 16, 7, variant="scalar"),
        first,
    )
    version, text = header_of(data)
    assert version == (0, 2)
    header = json.loads(text)
    assert header["prototypes"] == {"kind": ["torch"] * 5, "length": [17, 32, 4, 16, 17]}
    assert header["torch"] == {
        "distribution": ["normal", "normal", "uniform", "normal-signs", "normal"],
        "gap": [100, 0, -5, 7, 100],
        "high": ["3f800000", "3f800000", "3f000000", "3f800000", "3f800000"],
        "low": ["bf800000", "bf800000", "bf000000", "bf800000", "bf800000"],
        "seed": ["00000001", "00000001", "00000001", "abcdef01", "00000001"],
        "variant": ["vector", "vector", "vector", "scalar", "vector"],
    }
    with pemncodec.open(io.BytesIO(data)) as file:
        assert file.header.prototypes[0] == file.header.prototypes[4] == first
        assert file.header.prototypes[2] == TorchPrototype("uniform", 1, 4, 160, -0.5, 0.5)


def test_a_file_of_many_layers_stays_small() -> None:
    prototypes, skip = [], 1000
    for layer in range(54):
        length = 64 * 9 * (layer % 5 + 1)
        prototypes.append(TorchPrototype("normal", 0xDEADBEEF, length, skip))
        skip += 2 * length + 64
    tensors = tuple(
        MaskedTensor(f"w{i}", "float32", (p.length,), Fill(i, 0, 0.125), np.ones(p.length, bool))
        for i, p in enumerate(prototypes)
    )
    lone = (TorchPrototype("normal", 0xDEADBEEF, 64 * 9 * 5, 1000),)
    shared = tuple(replace(tensor, fill=Fill(0, 0, 0.125)) for tensor in tensors)
    data = encode_contents(Contents(tuple(prototypes), tensors))
    less = encode_contents(Contents(lone, shared))
    assert data.container.size - less.container.size < 54 * 6


@pytest.mark.parametrize("apart", [1, 128])
@pytest.mark.parametrize("held", [16, 1 << 20])
def test_slices_and_states_change_no_values(
    apart: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prototypes = [TorchPrototype("normal", 3, 70_001, 1000), TorchPrototype("uniform", 3, 9_000, 5)]
    expected = pemncodec.load_state_dict(io.BytesIO(file_of(*prototypes, scale=0.25)))
    monkeypatch.setattr(mersenne, "_BLOCKS_APART", apart)
    monkeypatch.setattr(mersenne, "_MOST_KEPT", 8)
    monkeypatch.setattr(fill_module, "HELD_VALUES", held)
    monkeypatch.setattr(fill_module, "_SLICE", 1 << 10)
    made = pemncodec.load_state_dict(io.BytesIO(file_of(*prototypes, scale=0.25)))
    for name, tensor in expected.items():
        assert same_bits(made[name], tensor)


@pytest.mark.parametrize("kind", ["normal", "uniform", "normal-signs", "uniform-signs"])
@pytest.mark.parametrize("offset", [0, 5, 16, 640])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_tensor_takes_its_values_from_an_offset(kind: Any, offset: int, dtype: str) -> None:
    prototype = TorchPrototype(kind, 77, 1001, 30)
    mask = np.random.default_rng(0).random(361) < 0.5
    fill = Fill(0, offset, 0.375)
    contents = Contents((prototype,), (MaskedTensor("w", dtype, (361,), fill, mask),))
    state = pemncodec.load_state_dict(io.BytesIO(b"".join(encode_contents(contents))))
    whole = seeded_slice(prototype, 0, 1001) * np.float32(0.375)
    expected = np.where(mask, whole[offset : offset + 361], np.float32(0))
    assert same_bits(state["w"], torch.from_numpy(expected).to(getattr(torch, dtype)))


def test_many_tensors_of_a_prototype_are_looked_at_once_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = 50
    looked_at: list[tuple[int, ...]] = []
    mask = np.ones(16, np.bool_)
    tensors = tuple(MaskedTensor(f"{i}", "float32", (16,), Fill(0), mask) for i in range(count))
    data = b"".join(encode_contents(Contents((TorchPrototype("normal", 1, 16),), tensors)))

    def counted(shape: tuple[int, ...]) -> int:
        looked_at.append(shape)
        return numel(shape)

    monkeypatch.setattr(masked_sections, "numel", counted)
    pemncodec.load_state_dict(io.BytesIO(data))
    assert len(looked_at) < 10 * count


# ---------------------------------------------------------------------------------- limits


def test_words_before_a_prototype_are_limited() -> None:
    data = file_of(TorchPrototype("normal", 1, 17, 1000), TorchPrototype("uniform", 2, 1, 10))
    with pemncodec.open(io.BytesIO(data), limits=Limits(drawn_words=1033 + 11)) as file:
        file.verify()
    same = file_of(*[TorchPrototype("normal", 1, 17, skip) for skip in (0, 1000, 500)])
    pemncodec.open(io.BytesIO(same), limits=Limits(drawn_words=1033)).close()
    with pytest.raises(LimitError):
        pemncodec.open(io.BytesIO(same), limits=Limits(drawn_words=1032))
    with pytest.raises(
        LimitError, match="need 1,044 words of torch's generator, the limit is 1,043"
    ):
        pemncodec.open(io.BytesIO(data), limits=Limits(drawn_words=1043))


def test_a_file_of_far_words_is_refused_at_once() -> None:
    data = file_of(TorchPrototype("normal", 1, 16, 0))
    _, text = header_of(data)
    far = text.replace('"torch":{', '"torch":{"gap":[4611686018427387904],')
    container = decode_container(io.BytesIO(data), Limits())
    sections = [data[e.offset : e.offset + e.length] for e in container.sections]
    front = encode_container(far.encode(), map(Spool().add, sections), 2)
    with pytest.raises(LimitError, match="need 4,611,686,018,427,387,920 words"):
        pemncodec.open(io.BytesIO(b"".join([front, *sections])))


def test_more_memory_allows_more_words(tmp_path: Path, run: Run) -> None:
    far = TorchPrototype("normal", 1, 16, Limits().drawn_words)  # which no tensor uses
    path = tmp_path / "far.pemn"
    path.write_bytes(b"".join(encode_contents(Contents((far,), ()))))
    refused = run("verify", path)
    assert refused.returncode != 0
    assert b"need 8,589,934,608 words of torch's generator" in refused.stderr
    assert run("verify", path, "--max-memory", "17G").returncode == 0


def test_every_flipped_byte_is_refused() -> None:
    data = file_of(TorchPrototype("normal", 1, 40, 1000))
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(pemncodec.DecodeError), pemncodec.open(io.BytesIO(damaged)) as file:
            file.verify()
