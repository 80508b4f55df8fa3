"""Packed programs: weights are made in each call, and everything else stays as it was."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import random_masks
from onnx_models import encoded, with_random_padding
from torch import Tensor, nn

import pemncodec
from pemncodec import ExportError
from pemncodec.cli import cli
from pemncodec.export import to_program
from pemncodec.masking import Independent, OneLayer, RandomPadding, mask_model

X = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """A masked layer, whose outputs `forward` multiplies by what it makes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.register_buffer("gain", torch.linspace(1, 2, 64))


class WrittenConstant(Layer):
    def forward(self, x: Tensor) -> Tensor:
        factor = torch.zeros(64)
        factor[2:40] = 1
        return self.layer(x) * factor


class Sinusoids(Layer):
    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(8)[:, None] / 100 ** (torch.arange(32) / 32)
        encoding = torch.zeros(8, 64)
        encoding[:, 0::2] = torch.sin(angles)
        encoding[:, 1::2] = torch.cos(angles)
        return self.layer(x)[:, None] + encoding


class WrittenState(Layer):
    def forward(self, x: Tensor) -> Tensor:
        factor = self.gain.clone()
        factor[3:].mul_(0.25)
        return self.layer(x) * factor


class WrittenWeight(Layer):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight.clone()
        twice = weight * 2
        weight[3:].mul_(0.25)
        return nn.functional.linear(x, weight) + nn.functional.linear(x, twice)


class OwnNames(Layer):
    """Has a module and a buffer of the names that packed ones would take."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Linear(64, 64)
        self.register_buffer("packed_bits_0", torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        return self.packed(self.layer(x)) * self.packed_bits_0


class Counting(Layer):
    def forward(self, x: Tensor) -> Tensor:
        self.gain.add_(1)
        return self.layer(x) * self.gain


class Attending(Layer):
    """Of a layer that has operators of its own in eval mode, which torch.export does not record."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(64, 2, 96, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.layer(x)[:, None])


def padded(model: nn.Module) -> io.BytesIO:
    model = with_random_padding(model)
    return encoded(model, X, masks=random_masks(model))


@pytest.mark.parametrize(
    "network",
    [WrittenConstant, Sinusoids, WrittenState, WrittenWeight, OwnNames, Attending],
)
def test_what_forward_writes(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    file = padded(network())
    program = to_program(file, packed=True)
    assert not any(values.dim() > 1 for values in program.parameters())
    for x in (X, torch.cat([X, -X])):
        assert torch.equal(program.module()(x), pemncodec.decode(file)(x))


@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # torch's own, in unflatten
def test_a_weight_is_made_where_it_is_used() -> None:
    layers = [part for _ in range(3) for part in (nn.Linear(64, 64), nn.ReLU(inplace=True))]
    file = padded(nn.Sequential(*layers))
    program = to_program(file, packed=True)
    order = [str(node.target) for node in program.graph.nodes]
    kinds = ("aten.where.ScalarOther", "aten.linear.default")
    assert [name for name in order if name in kinds] == [*kinds] * 3
    expected = pemncodec.decode(file)(X)
    assert torch.equal(program.module()(X), expected)
    assert torch.equal(torch.export.unflatten(program)(X), expected)


@pytest.mark.parametrize("packed", [False, True])
def test_the_program_keeps_its_state(packed: bool) -> None:
    file = padded(Counting())
    before = pemncodec.load_state_dict(file)["gain"]
    program = to_program(file, packed=packed)
    assert torch.equal(program.state_dict["gain"], before)


def test_a_program_that_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, target = tmp_path / "net.pemn", tmp_path / "net.pt2"
    path.write_bytes(padded(WrittenState()).getvalue())
    sink = "pemncodec.export.program.sink_weights"
    monkeypatch.setattr(sink, lambda program, _: program.state_dict["packed.bits_0"].fill_(0))
    with pytest.raises(ExportError, match="outputs differ from the network's"):
        to_program(path, packed=True)
    result = CliRunner().invoke(cli, ["decode", str(path), "--packed", "-o", str(target)])
    assert result.exit_code == 1
    assert "without --packed" in result.output
    assert not target.exists()


@pytest.mark.parametrize(
    "strategy",
    [RandomPadding(length=61, mode="shuffle"), OneLayer(), Independent()],
    ids=repr,
)
def test_values_of_every_strategy(strategy: Any) -> None:
    model = mask_model(nn.Sequential(nn.Linear(64, 80), nn.Linear(80, 90)), strategy, keep=0.5)
    file = encoded(model.eval(), X)
    program = to_program(file, packed=True)
    assert torch.equal(program.module()(X), pemncodec.decode(file)(X))
