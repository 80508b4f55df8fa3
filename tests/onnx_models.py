"""Packed ONNX models, and what every one of them has to be."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_masks
from torch import Tensor, nn

import pemncodec
from pemncodec.contents import Contents, DenseTensor, Fill, MaskedTensor
from pemncodec.export import NotPacked, to_onnx
from pemncodec.format.writer import encode_contents

onnx = pytest.importorskip("onnx", reason="ONNX export needs onnx and onnxscript")
pytest.importorskip("onnxscript", reason="ONNX export needs onnx and onnxscript")
runtime = pytest.importorskip("onnxruntime", reason="runs what was exported")

NOTHING = NotPacked()
VECTOR = torch.randn(61, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(2, 41, generator=torch.Generator().manual_seed(0))


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


def of_graph(graph: Any, made: str, dtype: int, shape: Sequence[int | str]) -> Any:
    """A model of operators alone, whose input, if it has one, are uint32 words."""
    words = onnx.helper.make_tensor_value_info("words", onnx.TensorProto.UINT32, ["words"])
    taken = [words] if any("words" in node.input for node in graph.nodes) else []
    output = onnx.helper.make_tensor_value_info(made, dtype, shape)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "graph", taken, [output], graph.initializers),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model, full_check=True)
    return model
