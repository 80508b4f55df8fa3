"""Packed exports: operators make the weights of bits, with the values of the dense exports."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, random_masks
from onnx_models import (
    NOTHING,
    ROWS,
    checked,
    crafted,
    encoded,
    exported,
    linear_network,
    made_values,
    onnx,
    run,
    with_random_padding,
)
from torch import Tensor, nn

import pemncodec
from pemncodec import ExportError
from pemncodec.cli import cli
from pemncodec.contents import Fill, SeededPrototype, StoredPrototype, TorchPrototype
from pemncodec.export import NotPacked, to_onnx, to_program
from pemncodec.masking import Independent, MaxLayerPadding, OneLayer, RandomPadding, mask_model
from pemncodec.values.rounding import round_to

TOKENS = torch.randint(0, 60, (2, 7), generator=torch.Generator().manual_seed(0))


class Every(nn.Module):
    """A masked tensor of every kind, each of more than 1,100 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 36)
        self.attention = nn.MultiheadAttention(36, 3, batch_first=True)
        self.across = nn.MultiheadAttention(36, 2, kdim=50, vdim=51, batch_first=True)
        self.widen = nn.Linear(36, 51)
        self.flat = nn.Conv1d(51, 10, 3, padding=1)
        self.up = nn.ConvTranspose1d(10, 72, 3, padding=1)
        self.solid = nn.Conv3d(2, 21, 3, padding=1)
        self.plane = nn.ConvTranspose2d(21, 6, 3, padding=1)
        self.plain = nn.Conv2d(6, 24, 3, padding=1)
        self.lstm = nn.LSTM(36, 18, batch_first=True)
        self.last = nn.Linear(18, 108)
        self.out = nn.Linear(36, 60, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        x = self.attention(x, x, x)[0] + x
        y = self.widen(x)
        x = self.across(x, y[..., :50], y)[0] + x
        y = self.up(self.flat(y.transpose(1, 2))).transpose(1, 2)
        y = self.solid(y.unflatten(2, (2, 36)).transpose(1, 2)[:, :, None]).sum(2)
        x = self.plain(self.plane(y)).mean(1) + x
        return self.out(self.last(self.lstm(x)[0]).unflatten(2, (3, 36)).sum(2))


# ------------------------------------------------------------------------- masked weights


@pytest.mark.parametrize(
    "strategy",
    [
        RandomPadding(length=61),
        RandomPadding(length=61, mode="shuffle"),
        MaxLayerPadding(),
        OneLayer(),
        Independent(),
    ],
    ids=repr,
)
def test_values_of_every_strategy(strategy: Any) -> None:
    checked(encoded(mask_model(linear_network(), strategy, keep=0.5, seed=3 << 33), ROWS))


@pytest.mark.parametrize("distribution", ["uniform", "signed-constant"])
def test_values_of_every_distribution(distribution: Any) -> None:
    model = mask_model(linear_network(), Independent(), keep=0.5, distribution=distribution)
    checked(encoded(model, ROWS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_two_values_take_a_bit_each(dtype: torch.dtype) -> None:
    model = linear_network().to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.where(weight < 0, -0.3, 0.2))
    file = encoded(model, ROWS.to(dtype), masks=random_masks(model))
    packed = checked(file)
    program = to_program(file, packed=True)
    assert torch.equal(program.module()(ROWS.to(dtype)), pemncodec.decode(file)(ROWS.to(dtype)))
    assert packed.ByteSize() < 2 * 10_164 / 8 + 4000


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_values_and_a_few_others(dtype: str) -> None:
    """As signs of random numbers, of which hardly any are 0."""
    values = np.where(np.random.default_rng(0).random(5203) < 0.5, -1, 1).astype(np.float32)
    values[[0, 77, 5202]] = 0, 0.5, -0.0
    stored = round_to(values, dtype)
    file = crafted(linear_network(), [StoredPrototype(stored, dtype)], [Fill(0), Fill(0, 0, 0.3)])
    assert checked(file).ByteSize() < 3 * 5203 / 8 + 4000
    program = to_program(file, packed=True)
    assert torch.equal(program.module()(ROWS), pemncodec.decode(file)(ROWS))


def test_tensors_of_every_kind() -> None:
    torch.manual_seed(0)
    model = with_random_padding(Every())
    file = encoded(model, TOKENS, masks=random_masks(model))
    # A fixed batch: sizes that vary take three times as long, and are those of other tests.
    packed, (dense, said) = checked(file, batch=2), exported(file, batch=2)
    assert said == NOTHING
    for model in (packed, dense):
        graph = model.graph
        for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
            assert not part.metadata_props
            assert not part.doc_string
    feeds = {"tokens": TOKENS.numpy()}
    for actual, expected in zip(run(packed, feeds), run(dense, feeds), strict=True):
        np.testing.assert_array_equal(actual, expected)
    module, program = pemncodec.decode(file), to_program(file, packed=True, batch=2)
    assert torch.equal(program.module()(TOKENS), module(TOKENS))
    assert not any(values.dim() > 1 for values in program.state_dict.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = with_random_padding(linear_network().to(dtype))
    file = encoded(model, ROWS.to(dtype), masks=random_masks(model))
    checked(file)
    program = to_program(file, packed=True)
    assert torch.equal(program.module()(ROWS.to(dtype)), pemncodec.decode(file)(ROWS.to(dtype)))


@pytest.mark.parametrize(
    "prototype",
    [
        StoredPrototype(np.arange(-9, 61, dtype=np.float32) / 7, "float32"),
        SeededPrototype("normal", 5, 4700),
        SeededPrototype("normal", 5, 9000, stream=(7 << 32) + 1),
        TorchPrototype("normal", 5, 70),
        TorchPrototype("normal", 5, 4700, skip=1000),
    ],
    ids=["stored", "seeded, repeated", "seeded, longer", "torch, few", "torch, repeated"],
)
def test_offsets_and_scales(prototype: Any) -> None:
    file = crafted(linear_network(), [prototype], [Fill(0), Fill(0, 41, 0.3)])
    checked(file)
    program = to_program(file, packed=True)
    assert torch.equal(program.module()(ROWS), pemncodec.decode(file)(ROWS))


def test_what_stays_dense(tmp_path: Path) -> None:
    model = nn.Sequential(linear_network(), nn.Linear(43, 2))
    shared = with_random_padding(nn.Sequential(nn.Linear(41, 121)))
    model[0][0].load_state_dict(shared[0].state_dict())
    masks = random_masks(model)
    path = tmp_path / "net.pemn"
    path.write_bytes(encoded(model, ROWS, masks=masks).getvalue())
    checked(io.BytesIO(path.read_bytes()), NotPacked({"1.weight": "", "0.2.weight": ""}))
    target = tmp_path / "net.onnx"
    command = ["decode", str(path), "--packed", "--batch", "2", "-o"]
    result = CliRunner().invoke(cli, [*command, str(target)])
    assert result.exit_code == 0, result.output
    first, few, unknown = result.output.splitlines()
    assert first == f"{target}: {target.stat().st_size:,} bytes"
    bytes_more = "operators would take more bytes than so few weights"
    assert few == f"dense, because {bytes_more}: 1.weight"
    own = "each weight has a value of its own, which no seed makes"
    assert unknown == f"dense, because {own}: 0.2.weight"
    result = CliRunner().invoke(cli, [*command, str(tmp_path / "net.pt2"), "--json"])
    assert json.loads(result.output)["dense"].keys() == {"1.weight", "0.2.weight"}
    program = torch.export.load(tmp_path / "net.pt2")
    assert torch.equal(program.module()(ROWS), pemncodec.decode(path)(ROWS))


def test_what_a_runtime_would_not_compute_once(monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded(mask_model(linear_network(), Independent(), keep=0.5), ROWS)
    each, again = "too many bytes or too much memory", "made again in every run"
    for most, why in (
        (5203, {"0.weight": each, "2.weight": each}),
        (5000, {"2.weight": again}),
    ):
        monkeypatch.setattr("pemncodec.export.onnx_weights.FOLDED_BYTES", 4 * most)
        said = to_onnx(file, io.BytesIO(), packed=True).dense
        assert said.keys() == why.keys()
        assert all(why[name] in reason for name, reason in said.items())


class NamedAsInput(nn.Module):
    """Its tensors have names of an input, of outputs, and such as operators get."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(41, 41))
        self.matmul = nn.Parameter(torch.randn(41, 41))
        self.w12 = nn.Parameter(torch.randn(41, 41))
        self.x_ = nn.Parameter(torch.full((41, 41), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.x).relu() @ self.matmul @ self.w12 + (x @ self.x_)


class ReturnsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(41, 41)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight = self.layer.weight
        return self.layer(x), weight, weight.t()


class ReturnsTransposed(ReturnsWeight):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.layer.weight.t()
        return x @ weight, weight


@pytest.mark.parametrize("network", [NamedAsInput, ReturnsWeight, ReturnsTransposed])
def test_names_of_tensors_and_outputs(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = with_random_padding(network())
    masks = {name: mask for name, mask in random_masks(model).items() if name != "x_"}
    file = encoded(model, ROWS, masks=masks)
    (packed, said), (dense, _) = exported(file, packed=True), exported(file)
    assert said == NOTHING
    onnx.checker.check_model(packed, full_check=True)
    for asked in ("input", "output"):
        values, others = (list(getattr(model.graph, asked)) for model in (packed, dense))
        assert [value.SerializeToString() for value in values] == [
            value.SerializeToString() for value in others
        ]
    feeds = {"x": ROWS.numpy()}
    for actual, expected in zip(run(packed, feeds), run(dense, feeds), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6 * abs(expected).max())


def test_no_file_that_no_runtime_opens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = with_random_padding(linear_network())
    file = encoded(model, ROWS, masks=random_masks(model))
    monkeypatch.setattr("pemncodec.export.onnx_graph.OnnxGraph._new_name", lambda _: "w")
    with pytest.raises(ExportError, match="no valid ONNX model"):
        to_onnx(file, tmp_path / "net.onnx", packed=True)
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_models_that_are_too_large_for_protobuf(
    packed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_: object) -> None:
        raise ValueError("This protobuf of onnx model is too large (>2 GiB).")

    model = with_random_padding(linear_network())
    file = encoded(model, ROWS, masks=random_masks(model))
    monkeypatch.setattr("onnx.checker.check_model", refuse)
    with pytest.raises(ExportError, match=r"cannot export to ONNX: .* too large \(>2 GiB\)"):
        to_onnx(file, tmp_path / "net.onnx", packed=packed)
    assert not (tmp_path / "net.onnx").exists()


# ------------------------------------------------------------------------ trained tensors


@pytest.mark.parametrize("mode", ["q8", "fp16", "bf16"])
def test_shorter_trained_tensors(mode: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(41, 300),
        nn.BatchNorm1d(300),
        with_random_padding(nn.Sequential(nn.Linear(300, 90, bias=False))),
    ).eval()
    masks = {"2.0.weight": random_masks(model)["2.0.weight"]}
    with torch.no_grad():
        model[1].weight.uniform_()[7] = 1e4  # kept exactly
        model[1].running_mean.normal_()
    file = encoded(model, ROWS, masks=masks, dense=mode)
    packed, state = checked(file), pemncodec.load_state_dict(file)
    shorter = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    made = made_values(packed, ())
    for name in shorter:
        assert made[name].tobytes() == state[name].double().numpy().tobytes(), name
    (actual,) = run(packed, {packed.graph.input[0].name: ROWS.numpy()})
    expected = pemncodec.decode(file)(ROWS).detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


def test_the_example() -> None:
    path = ROOT / "examples" / "convmixer-rp1e-3-k50.pt"
    kwargs = {"dim": 128, "depth": 4, "patch_size": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        from convmixer import convmixer
    file = io.BytesIO()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pemncodec.encode(
        torch.load(path, weights_only=True),
        file,
        architecture=convmixer(**kwargs),
        example_inputs=images,
        fold_bn=True,
        dense="q8",
    )
    model = checked(file)
    assert model.ByteSize() <= 40_000
    expected = pemncodec.decode(file)(images).detach().numpy()
    (actual,) = run(model, {"input": images.numpy()})
    assert abs(actual - expected).max() <= 1e-5 * abs(expected).max()
