"""Whole files of networks: what is rebuilt from them, and what hostile ones are refused for."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import random_masks
from torch import Tensor, nn

import pemncodec
from pemncodec.cli import cli
from pemncodec.contents import Contents, DenseTensor
from pemncodec.errors import DecodeError, EncodeArgumentError, EncodeError
from pemncodec.format.reader import open_file
from pemncodec.format.writer import encode_contents
from pemncodec.limits import Limits


class Tagger(nn.Module):
    """Embedding, LSTM, tied head, and positions that are no part of the state dict."""

    def __init__(self, words: int = 11, width: int = 8) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("positions", torch.randn(6, width), persistent=False)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x, _ = self.lstm(self.words(tokens) + self.positions)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return {"logits": self.head(x), "hidden": x}


class Grown(Tagger):
    """What torch.fx cannot trace."""

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > 6:
            raise ValueError("there are six positions")
        return self.head(self.words(tokens) + self.positions[: tokens.shape[1]])


class Stepwise(Tagger):
    """Does another thing for each length."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        for _ in range(tokens.shape[1] // 3):
            x = x + 1
        return self.head(x)


def made(words: int, width: int = 8) -> nn.Module:
    torch.manual_seed(7)
    return Tagger(words, width)


TOKENS = torch.arange(30).reshape(5, 6) % 11


def encoded(model: nn.Module, **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    options = {"masks": random_masks(model), "example_inputs": TOKENS, **options}
    pemncodec.encode(model, stream, **options)
    stream.seek(0)
    return stream


def test_a_tagger() -> None:
    torch.manual_seed(0)
    model = Tagger().eval()
    file = encoded(model)
    masks = random_masks(model)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    rebuilt = pemncodec.decode(file)
    for batch in (1, 4):
        expected, actual = model(TOKENS[:batch]), rebuilt(TOKENS[:batch])
        assert list(actual) == ["logits", "hidden"]
        assert all(torch.equal(actual[key], expected[key]) for key in expected)
    assert rebuilt.head.weight is rebuilt.words.weight
    assert "positions" not in rebuilt.state_dict()
    assert dict(rebuilt.named_buffers())["positions"].equal(model.positions)
    file.seek(0)
    assert list(pemncodec.load_state_dict(file)) == list(model.state_dict())


def test_the_file_of_a_rebuilt_module_is_the_same() -> None:
    for model in (Tagger(), Grown()):
        first = encoded(model)
        rebuilt = pemncodec.decode(first)
        second = encoded(rebuilt, masks=random_masks(model))
        with open_file(io.BytesIO(first.getvalue())) as a, open_file(second) as b:
            assert {**a.manifest, "training": True} == {**b.manifest, "training": True}


def test_an_exported_graph_with_a_length_that_varies() -> None:
    model = Grown().eval()
    with pytest.raises(EncodeError, match=r"one thing where \(tokens.shape\[1\] // 3\) == 2"):
        encoded(Stepwise().eval(), dynamic_axes=[[1]])
    file = encoded(model, dynamic_axes=[[1]], train_graph=True)
    with pytest.raises(DecodeError, match="limit"):
        pemncodec.decode(file, limits=Limits(decoded_bytes=1 << 10))
    rebuilt = pemncodec.decode(file)
    assert rebuilt(TOKENS[:2, :4]).shape == (2, 4, 11)
    with pytest.raises(ValueError, match=r"\(any, 0 to 6\), not torch.int64 of \(2, 7\)"):
        rebuilt(torch.zeros(2, 7, dtype=torch.int64))


class NonAffineBatchNorm(nn.BatchNorm2d):
    """As in the official code of PEMN, edge-popup and others; its forward takes an `input`."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)


class Builtins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, input: Tensor, type: Tensor, input_1: Tensor) -> Tensor:  # noqa: A002
        if input.shape[1] < 4:  # which torch.fx does not trace
            return type
        return self.fc(input) * type.sum() - input_1.sum()


def test_arguments_that_are_called_as_builtins() -> None:
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Conv2d(3, 4, 1), NonAffineBatchNorm(4)).eval()
    x = torch.randn(3, 2, 4).unbind()
    for model, inputs in ((norm, [torch.randn(2, 3, 5, 5)]), (Builtins().eval(), list(x))):
        file = encoded(model, example_inputs=inputs)
        weight = next(iter(random_masks(model)))
        with torch.no_grad():
            model.get_parameter(weight).mul_(random_masks(model)[weight])
            assert torch.equal(pemncodec.decode(file)(*inputs), model(*inputs))


class Encoder(nn.Module):
    """Its layers take a fused path in eval mode, which an exported graph does not."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encoder(self.words(tokens)) if tokens.shape[1] < 9 else None


def test_outputs_that_round_otherwise() -> None:
    torch.manual_seed(0)
    model, stream = Encoder().eval(), io.BytesIO()
    masks = {"words.weight": torch.rand(11, 8) < 0.5}
    report = pemncodec.encode(model, stream, masks=masks, example_inputs=TOKENS)
    assert "e-07 of the largest at batch sizes" in report.verified
    model.words.weight.data *= masks["words.weight"]
    with torch.no_grad():
        torch.testing.assert_close(pemncodec.decode(stream)(TOKENS), model(TOKENS))


@pytest.mark.parametrize("axes", [[[0]], [[2]], [[1], [1]]])
def test_axes_that_cannot_vary(axes: list[list[int]]) -> None:
    with pytest.raises(EncodeArgumentError, match="dynamic_axes"):
        encoded(Grown(), dynamic_axes=axes)


class Chosen(nn.Module):
    """The shape of what it gives depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return x[x > 0]


def test_shapes_that_depend_on_values_are_refused() -> None:
    x = torch.randn(5, 6)
    with pytest.raises(pemncodec.UnsupportedModelError, match="cannot be run"):
        encoded(Chosen(), example_inputs=x)


# ------------------------------------------------------------------------------ builder


def test_code_runs_only_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(sys.modules, "architectures_of_a_test", sys.modules[__name__])
    name = "architectures_of_a_test:made"
    file = encoded(made(11), builder=(name, {"words": 11}))
    for trust in (
        (),
        ("architectures_of_a_test",),
        ("os:system", "architectures_of_a_test:Tagger"),
    ):
        with pytest.raises(pemncodec.ManifestError) as caught:
            pemncodec.decode(file, trust=trust)
        assert caught.value.code == "manifest-trust"
        assert f"--trust {name}" in str(caught.value)
    rebuilt = pemncodec.decode(file, trust=[name])
    assert type(rebuilt) is Tagger
    assert rebuilt.head.weight is rebuilt.words.weight
    assert not rebuilt.training
    state = pemncodec.load_state_dict(io.BytesIO(file.getvalue()))
    assert all(torch.equal(value, state[key]) for key, value in rebuilt.state_dict().items())
    assert not rebuilt.words.weight.requires_grad  # masked, so frozen


def test_code_that_makes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "architectures_of_a_test", sys.modules[__name__])
    name = "architectures_of_a_test:made"
    with pytest.raises(EncodeArgumentError, match="makes another network"):
        encoded(made(11), builder=(name, {"words": 12}))
    with pytest.raises(EncodeArgumentError, match="TypeError"):
        encoded(made(11), builder=(name, {"sides": 12}))
    file = encoded(made(11), builder=(name, {"words": 11}))
    monkeypatch.setattr(sys.modules[__name__], "made", lambda words: Tagger(words, 4))
    with pytest.raises(pemncodec.ManifestError) as caught:
        pemncodec.decode(file, trust=[name])
    assert caught.value.code == "manifest-tensor"


@pytest.mark.parametrize("builder", ["made", "a:b()", "a b:c", "./a.py:made"])
def test_not_the_name_of_code(builder: str) -> None:
    with pytest.raises(EncodeArgumentError, match="import path"):
        encoded(made(11), builder=(builder, {}))


def test_code_and_no_manifest() -> None:
    with pytest.raises(EncodeArgumentError, match="stores no --builder"):
        encoded(made(11), builder=("a:b", {}), manifest=False)


# ------------------------------------------------------------------------------ hostile files


def hostile(manifest: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> io.BytesIO:
    """A file of constant tensors, which cost nothing, with a manifest that breaks no rule."""
    tensors = tuple(
        DenseTensor(name, "float32", shape, np.zeros(shape, np.float32))
        for name, shape in shapes.items()
    )
    return io.BytesIO(b"".join(encode_contents(Contents((), tensors, manifest, {}), None, "fast")))


INPUT = {"dtype": "float32", "shape": [None, 4]}
LINEAR = {"cls": "Linear", "in_features": 4, "out_features": 4, "bias": False}


def graph(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": "tree/1",
        "graphs": {"Net": [{"in": "x"}, *nodes]},
        "tree": {"graph": "Net", "params": [["weight", [4, 4]]]},
        "inputs": [INPUT],
    }


HOSTILE = {
    "a layer without tensors of its size": (
        {**graph(), "tree": {**LINEAR, "in_features": 10**7, "out_features": 10**7}, "graphs": {}},
        "manifest-tensor",
    ),
    "memory at each step": (
        graph(
            *[{"meth": "repeat", "args": [f"%{i}", 1 << 11, 1]} for i in range(4)],
            {"out": "%4"},
        ),
        "limit",
    ),
    "memory in an operator": (
        graph(
            {"get": "device", "args": ["%0"]},
            {"fn": "aten.ones", "args": [[1 << 24]], "kwargs": {"device": "%1"}},
            {"fn": "torch.outer", "args": ["%2", "%2"]},
            {"out": "%3"},
        ),
        "limit",
    ),
    "shapes that do not fit": (
        graph({"attr": "weight"}, {"fn": "torch.cat", "args": [["%0", "%1"], 2]}, {"out": "%2"}),
        "manifest-run",
    ),
    "an operator with arguments of other kinds": (
        graph({"fn": "aten.linear", "args": ["%0", 3]}, {"out": "%1"}),
        "manifest-run",
    ),
    "a number as a dtype": (
        graph({"fn": "aten.to.dtype", "args": ["%0", (1 << 31) - 1]}, {"out": "%1"}),
        "manifest-run",
    ),
    "a computed number as a dtype": (
        graph(
            {"fn": "aten.sym_size.int", "args": ["%0", 1]},
            {"fn": "operator.mul", "args": ["%1", 999]},
            {"fn": "aten.sum", "args": ["%0"], "kwargs": {"dtype": "%2"}},
            {"out": "%3"},
        ),
        "manifest-run",
    ),
    "no inputs": ({**graph({"out": "%0"}), "inputs": []}, "manifest-run"),
    "an input of another size": (
        {
            **graph(),
            "graphs": {"Net": [{"in": "x", "dtype": "float32", "shape": [None, 5]}, {"out": "%0"}]},
        },
        "manifest-run",
    ),
    "a list that grows": (
        graph(
            {"get": "shape", "args": ["%0"]},
            *[{"fn": "operator.mul", "args": [f"%{i}", 60000]} for i in range(1, 3)],
            {"out": "%3"},
        ),
        "manifest-run",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str) -> None:
    manifest, code = HOSTILE[case]
    manifest = {key: value for key, value in manifest.items() if value not in ({}, [])}
    file = hostile(manifest, {"weight": (4, 4)})
    with pytest.raises(DecodeError) as caught:
        pemncodec.decode(file)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


VECTORS = Path(__file__).parent.parent / "spec" / "vectors"


def test_the_golden_exported_graph() -> None:
    rebuilt = pemncodec.decode(VECTORS / "manifest-exported.pemn")
    x = torch.randn(4, 2)
    expected = nn.functional.linear(x, rebuilt.fc.weight) + 2 * 0.5
    assert torch.equal(rebuilt(x)["y"], expected)
    assert list(rebuilt.state_dict()) == ["fc.weight"]
    with pytest.raises(ValueError, match=r"\(0 to 8, 2\)"):
        rebuilt(torch.zeros(9, 2))


def test_the_golden_name_of_code() -> None:
    path = VECTORS / "manifest-builder.pemn"
    assert list(pemncodec.load_state_dict(path)) == ["fc.weight", "shift"]
    with pytest.raises(pemncodec.ManifestError, match=r"trust=\['pkg.nets:linear'\]"):
        pemncodec.decode(path)


# ------------------------------------------------------------------------------ command line


ARCHITECTURE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.first(x)) if x.shape[-1] == 6 else x
"""


def test_a_train_graph_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(ARCHITECTURE)
    state = {"first.weight_orig": torch.randn(6, 6), "first.bias": torch.randn(6)}
    state["first.weight_mask"] = (torch.rand(6, 6) > 0.5).float()
    torch.save(state, "net.pt")
    command = ["encode", "net.pt", "--arch", "net.py:Net", "--example-shape", "4?,6", "-f", "-q"]
    for options, trains in (([], False), (["--train-graph"], True)):
        result = CliRunner().invoke(cli, [*command, *options])
        assert result.exit_code == 0, result.output
        rebuilt = pemncodec.decode("net.pemn").train()
        if trains:
            assert rebuilt(torch.ones(3, 2, 6)).eq(0).any()
        else:
            with pytest.raises(NotImplementedError, match="--train-graph"):
                rebuilt(torch.ones(3, 2, 6))
    result = CliRunner().invoke(cli, [*command, "--builder"])
    assert result.exit_code == 2
    assert "code that is installed" in result.output


def test_architecture_as_text(tmp_path: Path) -> None:
    path = tmp_path / "tagger.pemn"
    path.write_bytes(encoded(Tagger()).getvalue())
    script = (
        "import sys; from pemncodec.cli import cli; "
        f"cli(['inspect', '--architecture', {str(path)!r}], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == [
        "inputs: int64 [any, 6]",
        "Tagger(",
        "  positions [6, 8], not in the state dict",
        "  forward: 4 operations",
        "  (words): Embedding(11, 8)  weight [11, 8]",
        "  (lstm): LSTM(8, 4, batch_first=True, bidirectional=True)  weight_ih_l0 [16, 8], "
        "weight_hh_l0 [16, 4], bias_ih_l0 [16], bias_hh_l0 [16], weight_ih_l0_reverse [16, 8], "
        "weight_hh_l0_reverse [16, 4], bias_ih_l0_reverse [16], bias_hh_l0_reverse [16]",
        "  (attention): MultiheadAttention(8, 2, batch_first=True)  in_proj_weight [24, 8], "
        "in_proj_bias [24], out_proj.weight [8, 8], out_proj.bias [8]",
        "  (head): Linear(8, 11, bias=False)  weight [11, 8]",
        ")",
    ]
    result = CliRunner().invoke(cli, ["inspect", "--architecture", "--json", str(path)])
    assert json.loads(result.output)["format"] == "tree/1"
