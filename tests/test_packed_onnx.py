"""Packed exports: operators make the weights of bits, with the values of the dense exports."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, random_masks
from torch import Tensor, nn

import pemncodec
from pemncodec import ExportError
from pemncodec.cli import cli
from pemncodec.contents import (
    Contents,
    DenseTensor,
    Fill,
    MaskedTensor,
    SeededPrototype,
    StoredPrototype,
    TorchPrototype,
)
from pemncodec.export import KeptVector, NotPacked, to_onnx, to_program
from pemncodec.format.writer import encode_contents
from pemncodec.masking import Independent, MaxLayerPadding, OneLayer, RandomPadding, mask_model
from pemncodec.values.rounding import round_to

onnx = pytest.importorskip("onnx", reason="ONNX export needs onnx and onnxscript")
pytest.importorskip("onnxscript", reason="ONNX export needs onnx and onnxscript")
runtime = pytest.importorskip("onnxruntime", reason="runs what was exported")

NOTHING = NotPacked()
VECTOR = torch.randn(61, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(0, 60, (2, 7), generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(2, 41, generator=torch.Generator().manual_seed(0))


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


def with_random_padding(model: nn.Module) -> nn.Module:
    """One short vector repeated over every weight."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                values = VECTOR.repeat(-(-weight.numel() // VECTOR.numel()))[: weight.numel()]
                weight.copy_(values.reshape(weight.shape))
    return model.eval()


def encoded(model: nn.Module, inputs: Tensor, **options: Any) -> io.BytesIO:
    target = io.BytesIO()
    pemncodec.encode(
        model, target, example_inputs=inputs, preset="fast", find_seed="off", **options
    )
    return target


def linear_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(41, 121), nn.ReLU(), nn.Linear(121, 43, bias=False)).eval()


def exported(file: io.BytesIO, **options: Any) -> tuple[Any, Any]:
    """The model, and what `to_onnx` says."""
    target = io.BytesIO()
    said = to_onnx(file, target, **options)
    return onnx.load_model_from_string(target.getvalue()), said


def run(model: Any, feeds: dict[str, Any]) -> list[Any]:
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), settings)
    return session.run(None, feeds)


def made_values(model: Any, names: Collection[str]) -> dict[str, Any]:
    """What operators make of constants, as onnxruntime does, widened to float64.

    Of these, the named ones and what other operators take.
    """
    weights = onnx.ModelProto()
    weights.CopyFrom(model)
    graph = weights.graph
    constant = {tensor.name for tensor in graph.initializer}
    nodes, asked_for = [], set()
    for node in model.graph.node:
        if all(name in constant for name in node.input):
            nodes.append(node)
            constant.update(node.output)
        else:
            asked_for.update(node.input)
    made = sorted((asked_for | set(names)) & {name for node in nodes for name in node.output})
    double = onnx.TensorProto.DOUBLE
    nodes += [onnx.helper.make_node("Cast", [name], [f"{name}!"], to=double) for name in made]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.output.extend(
        onnx.helper.make_tensor_value_info(f"{name}!", double, None) for name in made
    )
    return dict(zip(made, run(weights, {}), strict=True))


def checked(file: io.BytesIO, kept: NotPacked = NOTHING, **options: Any) -> Any:
    """The packed ONNX model of a file, after a check of all that every one has to be.

    No initializer has half as many bytes as a packed tensor in fp32, but for vectors that no seed
    makes and tensors share: of these the export tells.
    """
    model, said = exported(file, packed=True, **options)
    assert said.dense.keys() == kept.dense.keys()
    assert said.vectors == kept.vectors
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    state = pemncodec.load_state_dict(file)
    with pemncodec.open(file) as opened:
        packed = set(opened.masked_keys()) - said.dense.keys()
    made = made_values(model, state)
    transposed = {values.tobytes() for name, values in made.items() if name not in state}
    for name in packed:
        weight = state[name].double().numpy()
        if name in made:
            assert made[name].tobytes() == weight.tobytes(), name
        else:
            assert weight.T.tobytes() in transposed, name
    masked_bytes = min(4 * state[name].numel() for name in packed)
    large = []
    for tensor in model.graph.initializer:
        assert tensor.data_location == onnx.TensorProto.DEFAULT
        if tensor.name not in said.dense and len(tensor.raw_data) >= masked_bytes / 2:
            large.append(len(tensor.raw_data) // 4)
    assert large == [vector.count for vector in kept.vectors]
    return model


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


def crafted(model: nn.Module, prototypes: Sequence[Any], fills: Sequence[Fill]) -> io.BytesIO:
    """A network with other values in its layers' weights, one fill for each."""
    with pemncodec.open(encoded(model, ROWS, masks=random_masks(model))) as file:
        manifest = file.manifest
    generator, given = np.random.default_rng(0), iter(fills)
    tensors: list[Any] = []
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        if name.endswith("bias"):
            tensors.append(DenseTensor(name, "float32", shape, tensor.numpy()))
        else:
            mask = generator.random(shape) < 0.4
            tensors.append(MaskedTensor(name, "float32", shape, next(given), mask))
    contents = Contents(tuple(prototypes), tuple(tensors), manifest)
    return io.BytesIO(b"".join(encode_contents(contents)))


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


def test_values_that_torch_and_numpy_drew() -> None:
    """Of every distribution that operators make, in every variant, of two seeds and many places."""
    prototypes = [
        TorchPrototype("normal", 5, 5203, skip=77),  # the last 16 are drawn once more
        TorchPrototype("normal", 5, 4961, skip=9000, drawn=70_000),
        TorchPrototype("normal", 6, 5200, variant="scalar"),
        TorchPrototype("uniform", 5, 4961, skip=20_000),
        TorchPrototype("uniform", 6, 5203, low=float(np.float32(-0.3)), high=0.75),
        TorchPrototype("uniform", 6, 4961, low=-0.125, high=0.75, variant="scalar"),
        TorchPrototype("numpy-uniform", 5, 5203, skip=11, low=-0.3, high=0.8),
        TorchPrototype("uniform-signs", 5, 4961),
    ]
    layers = [nn.Linear(*((121, 43) if p.length > 5000 else (41, 121)), False) for p in prototypes]
    fills = [Fill(index) for index in range(len(prototypes))]
    file = crafted(Side(layers), prototypes, fills)
    assert checked(file).ByteSize() < 4 * sum(prototype.length for prototype in prototypes) / 2


class Side(nn.Module):
    """Layers of 41 or 121 inputs, side by side."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.cat([x, x, x], 1)[:, :121]
        given = {41: x, 121: wide}
        return torch.cat([layer(given[layer.in_features]) for layer in self.layers], 1)


WORDS = [0, 1, 0xFFFFFF, 0xFFFFFE, 0xFFF800, 0xFFF000, 0x4B0CCC, 0x4B0000, 0x4CCCCD, 0x4D0000]
WORDS += [quarter * 0x400000 + near & 0xFFFFFF for quarter in range(4) for near in (-2, -1, 0, 1)]
WORDS += [quarter * 0x400000 + 0x200000 + near for quarter in range(4) for near in (-1, 0, 1)]


@pytest.mark.parametrize("variant", ["vector", "scalar"])
def test_normal_values_of_rare_words(variant: Any) -> None:
    from pemncodec import kernels
    from pemncodec.export.onnx_arithmetic import Value
    from pemncodec.export.onnx_graph import OnnxGraph
    from pemncodec.export.onnx_torch_normal import normal

    first, second = np.meshgrid(np.resize(WORDS, 40), np.resize(WORDS, 40))
    words = np.concatenate([first.reshape(-1, 1, 8), second.reshape(-1, 1, 8)], 1).astype(np.uint32)
    words |= 0xAB000000
    graph = OnnxGraph(["words"])
    made = normal(Value(graph, "words", "uint32"), variant).name
    uint32, floats = onnx.TensorProto.UINT32, onnx.TensorProto.FLOAT
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "normal",
            [onnx.helper.make_tensor_value_info("words", uint32, ["words"])],
            [onnx.helper.make_tensor_value_info(made, floats, ["groups", 2, 8])],
            graph.initializers,
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model, full_check=True)
    expected = np.empty(words.shape, np.float32)
    kernels.torch_normal(words.reshape(-1), int(variant == "vector"), expected.reshape(-1))
    (values,) = run(model, {"words": words.reshape(-1)})
    known = np.repeat(words[:, :1] & 0xFFFFFF <= 0xFFF800, 2, 1)
    assert known.mean() > 0.8
    np.testing.assert_array_equal(values[known], expected[known])  # +0 and −0 are equal here


@pytest.mark.parametrize("made_of", ["no seed", "a seed"])
def test_vectors_that_stay_whole(
    made_of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pemncodec.export.onnx_drawn.MOST_WORDS", 5000)
    prototype: Any = TorchPrototype("normal", 5, 5203)
    if made_of == "no seed":
        values = np.random.default_rng(0).standard_normal(5203).astype(np.float32)
        prototype = StoredPrototype(values, "float32")
    file = crafted(linear_network(), [prototype], [Fill(0), Fill(0)])
    names = ("0.weight", "2.weight")
    checked(file, NotPacked(vectors=(KeptVector(5203, names, made_of == "a seed"),)))
    (tmp_path / "net.pemn").write_bytes(file.getvalue())
    command = ["decode", str(tmp_path / "net.pemn"), "--packed", "-o", str(tmp_path / "net.onnx")]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    why = (
        ": operators that make their values of a seed would take too many bytes or too much memory"
    )
    vector = f"the vector of 5,203 values of {made_of}, for 2 tensors, is kept whole"
    assert result.output.splitlines()[1:] == [vector + why * (made_of == "a seed")]


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
