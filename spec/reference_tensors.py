"""Whether a file has the tensors that its manifest needs: 8.5 of pemn.md. Standard library only.

The parameters and buffers of layers are those of PyTorch (8.9), written down here once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reference_errors import require
from reference_graphs import Json, naming
from reference_lists import LAYERS
from reference_manifest import Module, Tree

Shapes = dict[str, list[int]]
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def spread(value: Any, r: int) -> list[int]:
    return list(value) if isinstance(value, list) else [value] * r


def within(name: str, shapes: Shapes) -> Shapes:
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


def linear(inputs: int, outputs: int, bias: bool) -> Shapes:
    return {"weight": [outputs, inputs]} | ({"bias": [outputs]} if bias else {})


def attention(a: Json) -> Shapes:
    size = a["embed_dim"]
    k, v = (size if a[key] is None else a[key] for key in ("kdim", "vdim"))
    shapes: Shapes = {"in_proj_weight": [3 * size, size]}
    if (k, v) != (size, size):
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        shapes = {name: [size, n] for name, n in zip(names, (size, k, v), strict=True)}
    if a["bias"]:
        shapes["in_proj_bias"] = [3 * size]
    if a["add_bias_kv"]:
        shapes |= {"bias_k": [1, 1, size], "bias_v": [1, 1, size]}
    return shapes | within("out_proj", linear(size, size, a["bias"]))


def transformer_layer(cls: str, a: Json) -> Shapes:
    size, wide, bias = a["d_model"], a["dim_feedforward"], a["bias"]
    own = {"embed_dim": size, "kdim": None, "vdim": None, "bias": bias, "add_bias_kv": False}
    decoder = cls == "TransformerDecoderLayer"
    shapes = within("linear1", linear(size, wide, bias)) | within(
        "linear2", linear(wide, size, bias)
    )
    for name in ("self_attn", "multihead_attn")[: 1 + decoder]:
        shapes |= within(name, attention(own))
    for name in ("norm1", "norm2", "norm3")[: 2 + decoder]:
        shapes |= within(name, {"weight": [size]} | ({"bias": [size]} if bias else {}))
    return shapes


def recurrent(cls: str, a: Json) -> Shapes:
    shapes: Shapes = {}
    rows, hidden = GATES[cls] * a["hidden_size"], a["hidden_size"]
    projected = a.get("proj_size") or hidden
    for number in range(a["num_layers"]):
        inputs = projected * (1 + a["bidirectional"]) if number else a["input_size"]
        for end in ("", "_reverse")[: 1 + a["bidirectional"]]:
            suffix = f"_l{number}{end}"
            shapes |= {
                f"weight_ih{suffix}": [rows, inputs],
                f"weight_hh{suffix}": [rows, projected],
            }
            if a["bias"]:
                shapes |= {f"bias_ih{suffix}": [rows], f"bias_hh{suffix}": [rows]}
            if a.get("proj_size"):
                shapes[f"weight_hr{suffix}"] = [projected, hidden]
    return shapes


def layer_tensors(cls: str, given: Json) -> Shapes:
    """Parameters and buffers of a layer, with those of the layers in it."""
    a = {name: argument.default for name, argument in LAYERS[cls].items()} | given
    if cls.startswith("Conv"):
        outer, inner = a["out_channels"], a["in_channels"]
        if "Transpose" in cls:
            outer, inner = inner, outer
        kernel = spread(a["kernel_size"], int(cls[-2]))
        bias = {"bias": [a["out_channels"]]} if a["bias"] else {}
        return {"weight": [outer, inner // a["groups"], *kernel]} | bias
    if cls == "Linear":
        return linear(a["in_features"], a["out_features"], a["bias"])
    if cls == "Bilinear":
        weight = [a["out_features"], a["in1_features"], a["in2_features"]]
        return {"weight": weight} | ({"bias": weight[:1]} if a["bias"] else {})
    if cls.startswith("Embedding"):
        return {"weight": [a["num_embeddings"], a["embedding_dim"]]}
    if cls in GATES:
        return recurrent(cls, a)
    if cls.endswith("Cell"):
        rows = GATES[cls.removesuffix("Cell")] * a["hidden_size"]
        bias = {"bias_ih": [rows], "bias_hh": [rows]} if a["bias"] else {}
        return {"weight_ih": [rows, a["input_size"]], "weight_hh": [rows, a["hidden_size"]]} | bias
    if cls == "MultiheadAttention":
        return attention(a)
    if cls in ("TransformerEncoderLayer", "TransformerDecoderLayer"):
        return transformer_layer(cls, a)
    if "num_features" in a:
        size = [a["num_features"]]
        shapes = {"weight": size, "bias": size} if a["affine"] else {}
        running: Shapes = {"running_mean": size, "running_var": size, "num_batches_tracked": []}
        return shapes | (running if a["track_running_stats"] else {})
    if cls == "GroupNorm":
        return {"weight": [a["num_channels"]], "bias": [a["num_channels"]]} if a["affine"] else {}
    if cls in ("LayerNorm", "RMSNorm") and a["elementwise_affine"]:
        shape = spread(a["normalized_shape"], 1)
        return {"weight": shape} | ({"bias": shape} if a.get("bias") else {})
    return {"weight": [a["num_parameters"]]} if cls == "PReLU" else {}


@dataclass(frozen=True)
class Tensor:
    """Of a module: what it is called there, and what it must be in the file."""

    owner: Module
    name: str
    shape: list[int]
    trained: bool  # a parameter, and no buffer


def own_tensors(module: Module) -> dict[str, Tensor]:
    """Those of one module; of a layer also those of the layers in it."""
    shapes = module.params | module.buffers
    if module.kind == "layer":
        shapes = layer_tensors(module.cls, module.arguments)
    return {
        name: Tensor(module, name, shape, name not in module.buffers and name not in BUFFERS)
        for name, shape in shapes.items()
    }


def all_tensors(module: Module, path: str, passing: list[str]) -> dict[str, Tensor]:
    """8.5: by name; the buffers in `passing` by their first one alone."""
    below, first = (f"{p}." if p else "" for p in (path, module.path))
    result = {
        below + name: tensor
        for name, tensor in own_tensors(module).items()
        if path == module.path or first + name not in passing
    }
    for name, child in module.children.items() if module.kind != "layer" else ():
        result |= all_tensors(child, below + name, passing)
    return result


def tensor_at(module: Module, path: str) -> Tensor | None:
    names = path.split(".")
    while len(names) > 1 and module.kind != "layer":
        module = module.children[names.pop(0)]
    return own_tensors(module).get(".".join(names))


def check_tensors(tree: Tree, manifest: Json, shapes: Shapes, aliases: dict[str, str]) -> None:
    """Checks the file's tensors, by name, aliases with the shapes of their targets."""
    for user in tree.users:
        for path in (node["attr"] for graph in user.graphs for node in graph if "attr" in node):
            naming(tensor_at(user, path) is not None, f"no tensor {path}")
    for path in manifest.get("frozen", []):
        tensor = tensor_at(tree.root, path)
        naming(tensor is not None and tensor.trained, f"frozen: {path} is no parameter")
    needed = all_tensors(tree.root, "", manifest.get("nonpersistent", []))
    expected = {name: tensor.shape for name, tensor in needed.items()}
    require(expected == shapes, "manifest-tensor", "other names or shapes")
    targets: dict[tuple[int, str], str] = {}
    parameters = set()
    for name, tensor in needed.items():
        target = aliases.get(name, name)
        one = targets.setdefault((id(tensor.owner), tensor.name), target) == target
        require(one, "manifest-tensor", f"{name} is a tensor of its own")
        if tensor.trained:
            parameters.add(target)
        require(tensor.trained or target not in parameters, "manifest-tensor", f"buffer {name}")
