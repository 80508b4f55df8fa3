"""Values of torch's and NumPy's seeds, made by ONNX operators as the format says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from onnx_models import checked, crafted, linear_network, of_graph, onnx, run
from torch import Tensor, nn

from pemncodec import kernels
from pemncodec.cli import cli
from pemncodec.contents import Fill, StoredPrototype, TorchPrototype
from pemncodec.export import KeptVector, NotPacked
from pemncodec.export.onnx_arithmetic import Value
from pemncodec.export.onnx_graph import OnnxGraph
from pemncodec.export.onnx_mersenne import add_words, row_words
from pemncodec.export.onnx_torch_normal import normal
from pemncodec.values.mersenne import stream_of


def test_values_that_torch_and_numpy_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every distribution that operators make, in every variant, of two seeds and many places."""
    monkeypatch.setattr("pemncodec.export.onnx_drawn._PART", 2048)
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
    model = checked(file)
    assert model.ByteSize() < 50_000  # of 162,000 for the values
    exact = [node.input[1] for node in model.graph.node if node.op_type == "ScatterElements"]
    stored = [values for values in model.graph.initializer if values.name in exact]
    assert 0 < max(len(values.raw_data) // 4 for values in stored) < 30


class Side(nn.Module):
    """Layers of 41 or 121 inputs, side by side."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.cat([x, x, x], 1)[:, :121]
        given = {41: x, 121: wide}
        return torch.cat([layer(given[layer.in_features]) for layer in self.layers], 1)


EXACT = {"Add", "BitwiseAnd", "Cast", "Concat", "Gather", "Less", "Mul", "Range", "ReduceSum"}
EXACT |= {"Reshape", "Split", "Sqrt", "Sub", "Where"}

# Around u1 = 1, 2^-13, √½ and 0.7, and around quarters and eighths of a turn.
WORDS = [0, 1, 0xFFFFFF, 0xFFFFFE, 0xFFF800, 0xFFF000, 0x4B0CCC, 0x4B0000, 0x4CCCCD, 0x4D0000]
WORDS += [quarter * 0x400000 + near & 0xFFFFFF for quarter in range(4) for near in (-2, -1, 0, 1)]
WORDS += [quarter * 0x400000 + 0x200000 + near for quarter in range(4) for near in (-1, 0, 1)]
# u1 from 0.697 to 0.711: at √½ the logarithm gets another form.
AROUND = np.arange(0x4A0000, 0x4D8000, 3)
AROUND = AROUND[: AROUND.size // 8 * 8]


@pytest.mark.parametrize("steps", [4, 25, 64])
def test_words_of_many_states(steps: int) -> None:
    graph, starts = OnnxGraph([]), [(5, 0), (5, 623), (2**32 - 1, 10**6), (5, 624)]
    states = [stream_of(seed).untempered(start) for seed, start in starts]
    made = add_words(graph, [np.stack(states[:3]), states[3][None]], steps)
    count = row_words(steps)
    (words,) = run(of_graph(graph, made, onnx.TensorProto.UINT32, [len(starts), count]), {})
    for row, (seed, start) in zip(words, starts, strict=True):
        np.testing.assert_array_equal(row, stream_of(seed).words(start, count))


@pytest.mark.parametrize("variant", ["vector", "scalar"])
def test_normal_values_of_rare_words(variant: Any) -> None:
    first, second = np.meshgrid(np.resize(WORDS, 40), np.resize(WORDS, 40))
    first = np.concatenate([first.reshape(-1, 1, 8), AROUND.reshape(-1, 1, 8)])
    second = np.concatenate([second.reshape(-1, 1, 8), AROUND[::-1].reshape(-1, 1, 8)])
    words = np.concatenate([first, second], 1).astype(np.uint32)
    words |= 0xAB000000
    graph = OnnxGraph(["words"])
    made = normal(Value(graph, "words", "uint32"), variant).name
    model = of_graph(graph, made, onnx.TensorProto.FLOAT, ["groups", 2, 8])
    # What runtimes are not free to round: none of Log, Cos, Pow, and roots of float64 alone.
    assert {node.op_type for node in model.graph.node} <= EXACT
    made_values = onnx.shape_inference.infer_shapes(model).graph.value_info
    dtypes = {value.name: value.type.tensor_type.elem_type for value in made_values}
    roots = [node.output[0] for node in model.graph.node if node.op_type == "Sqrt"]
    assert [dtypes[name] for name in roots] == [onnx.TensorProto.DOUBLE]
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
    monkeypatch.setattr("pemncodec.export.onnx_drawn.MOST_BYTES", 500 * 5000)
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


def test_why_other_forms_store_weights(tmp_path: Path) -> None:
    """Of torch's seeds, whose values only ONNX makes."""
    file = crafted(linear_network(), [TorchPrototype("normal", 5, 5203)], [Fill(0), Fill(0)])
    own = [TorchPrototype("normal", 5, 5203), TorchPrototype("uniform", 6, 4961)]
    (tmp_path / "alike.pemn").write_bytes(file.getvalue())
    (tmp_path / "own.pemn").write_bytes(
        crafted(linear_network(), own, [Fill(0), Fill(1)]).getvalue()
    )
    why = (
        "only ONNX makes the values of torch's and NumPy's seeds: -o x.onnx --packed packs them, "
        "up to some millions of values"
    )
    vector = "the vector of 5,203 values of a seed, for 2 tensors, is kept whole"
    for name, said in (
        ("alike", f"{vector}: {why}"),
        ("own", f"dense, because {why}: 0.weight, 2.weight"),
    ):
        for suffix, expected in ((".pt2", [said]), (".onnx", [])):
            target = str(tmp_path / f"net{suffix}")
            command = ["decode", str(tmp_path / f"{name}.pemn"), "--packed", "-f", "-o", target]
            result = CliRunner().invoke(cli, command)
            assert result.exit_code == 0, result.output
            assert result.output.splitlines()[1:] == expected
