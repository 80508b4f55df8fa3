"""Hostile and damaged manifests: each is refused for the reason that it is wrong."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pemncodec.architecture.layers import COMPOSITES, REQUIRED
from pemncodec.architecture.manifest import (
    LEAF_CLASSES,
    decode_manifest,
    encode_manifest,
    validate_manifest,
)
from pemncodec.architecture.operators import FUNCTIONS, METHODS
from pemncodec.architecture.rebuild import build_module, check_run
from pemncodec.coders.canonical_json import encode_json
from pemncodec.coders.zstd import encode_zstd
from pemncodec.errors import CorruptError, LimitError, ManifestError
from pemncodec.limits import Limits

Manifest = dict[str, Any]
LINEAR = {"cls": "Linear", "in_features": 4, "out_features": 4}
ENCODER_LAYER = {"cls": "TransformerEncoderLayer", "d_model": 4, "nhead": 2}
LAYERS = {"name": "layers", "cls": "ModuleList", "children": [ENCODER_LAYER]}


def valid() -> Manifest:
    """Uses every kind of field once."""
    manifest = {
        "format": "tree/1",
        "graphs": {
            "Block": [
                {"in": "x"},
                {"in": "mask", "only": None},
                {"in": "scale", "default": 1.5},
                {"mod": "fn", "args": ["%0"]},
                {"attr": "gain"},
                {"attr": "fn.weight"},
                {"fn": "operator.add", "args": ["%3", "%4"]},
                {"get": "shape", "args": ["%6"]},
                {"fn": "operator.getitem", "args": ["%7", 0]},
                {"meth": "view", "args": ["%6", {"tuple": ["%8", -1]}]},
                {"fn": "torch.softmax", "args": ["%9"], "kwargs": {"dim": -1}},
                {"fn": "operator.getitem", "args": ["%10", {"slice": [None, "%8", None]}]},
                {"meth": "to", "args": ["%11"], "kwargs": {"dtype": {"dtype": "float32"}}},
                {"fn": "torch.einsum", "args": ["bi,bi->b", "%12", "%12"]},
                {"meth": "masked_fill", "args": ["%12", "%12", {"float": "-inf"}]},
                {"out": {"dict": [["a", "%13"], ["b", ["%14", None]]]}},
            ],
            "Train": [
                {"in": "x", "dtype": "float32", "shape": [None, [1, 64]]},
                {"fn": "torch.nn.functional.dropout", "args": ["%0"], "kwargs": {"p": 0.5}},
                {"get": "device", "args": ["%1"]},
                {"fn": "aten.arange", "args": [4], "kwargs": {"device": "%2"}},
                {"fn": "aten.add.Tensor", "args": ["%1", "%3"]},
                {"out": "%4"},
            ],
        },
        "tree": {
            "cls": "Sequential",
            "children": [
                LINEAR,
                {
                    "graph": "Block",
                    "train_graph": "Train",
                    "cls": "Other",
                    "params": [["gain", [4]]],
                    "buffers": [["steps", []]],
                    "children": [{"name": "fn", **LINEAR}, {"name": "list", "cls": "ModuleList"}],
                },
                {"name": "again", "same": "0"},
                {"cls": "LSTM", "input_size": 4, "hidden_size": 4},
                {"cls": "TransformerEncoder", "children": [LAYERS]},
            ],
        },
        "nonpersistent": ["1.steps"],
        "training": True,
        "frozen": ["0.weight"],
        "inputs": [{"dtype": "float32", "shape": [None, 4], "sizes": [3, 4]}],
    }
    return copy.deepcopy(manifest)


def graph(*nodes: Any, **user: Any) -> Manifest:
    return {
        "format": "tree/1",
        "graphs": {"Net": [{"in": "x"}, *nodes]},
        "tree": {"graph": "Net", **user},
    }


def encoder(*nodes: Any) -> Manifest:
    return tree({"cls": "TransformerEncoder", "children": list(nodes)})


def call(name: str, *args: Any, kind: str = "fn", **kwargs: Any) -> Manifest:
    return graph({kind: name, "args": list(args), "kwargs": kwargs}, {"out": "%1"})


def tree(node: Any) -> Manifest:
    return {"format": "tree/1", "tree": node}


def children(*nodes: Any) -> Manifest:
    return tree({"cls": "Sequential", "children": list(nodes)})


def test_round_trip() -> None:
    manifest = valid()
    data = encode_manifest(manifest)
    assert decode_manifest(data, Limits()) == manifest
    assert encode_manifest(decode_manifest(data, Limits())) == data
    build_module(manifest)


@pytest.mark.parametrize(
    "place",
    [
        lambda m: m,
        lambda m: m["tree"],
        lambda m: m["tree"]["children"][0],
        lambda m: m["tree"]["children"][1],
        lambda m: m["tree"]["children"][2],
        lambda m: m["inputs"][0],
        *[lambda m, i=i: m["graphs"]["Block"][i] for i in (0, 3, 4, 6, 7, 9, 15)],
    ],
)
def test_unknown_and_optional_fields(place: Callable[[Manifest], Manifest]) -> None:
    manifest = valid()
    place(manifest)["?note"] = {"any": ["thing", 1 << 70]}
    validate_manifest(manifest, Limits())
    build_module(manifest)
    manifest = valid()
    place(manifest)["note"] = 1
    with pytest.raises(ManifestError) as caught:
        validate_manifest(manifest, Limits())
    assert caught.value.code in ("manifest-schema", "manifest-argument")


X = "%0"
ATTACKS: dict[str, list[Manifest]] = {
    "manifest-schema": [
        {},
        {"format": "tree/2", "tree": LINEAR},
        {"tree": LINEAR},
        {"format": "tree/1"},
        {"format": "tree/1", "tree": []},
        {"format": "tree/1", "tree": None},
        {"format": "tree/1", "tree": LINEAR, "training": 1},
        {"format": "tree/1", "tree": LINEAR, "inputs": {}},
        {"format": "tree/1", "tree": LINEAR, "inputs": [[]]},
        {"format": "tree/1", "tree": LINEAR, "inputs": [{"dtype": "float32"}]},
        {"format": "tree/1", "tree": LINEAR, "frozen": "weight"},
        {"format": "tree/1", "tree": LINEAR, "frozen": ["weight", "weight"]},
        {"format": "tree/1", "tree": LINEAR, "graphs": []},
        {"format": "tree/1", "tree": LINEAR, "graphs": {"G": []}},
        {"format": "tree/1", "tree": LINEAR, "graphs": {"G": {}}},
        {"format": "tree/1", "tree": LINEAR, "graphs": {"Unused": [{"in": "x"}, {"out": X}]}},
        {"format": "tree/1", "tree": LINEAR, "builder": "os.system"},
        tree({}),
        tree({"cls": 1}),
        tree({"cls": "Sequential", "children": {}}),
        tree({"cls": "Sequential", "in_features": 1}),
        tree({"cls": "ModuleList"}),  # has no forward
        tree({"graph": None, "cls": "Net"}),
        tree({"graph": None}),
        tree({"graph": "Missing"}),
        tree({"graph": 3}),
        tree({"graph": ["Net"]}),
        children({"same": "0", "children": []}, LINEAR),
        graph({"out": X}, train_graph="Missing"),
        encoder(),
        encoder(LAYERS, {"name": "extra", "cls": "ReLU"}),
        encoder({**LAYERS, "children": []}),
        encoder({**LAYERS, "children": [LINEAR]}),
        encoder({**LAYERS, "children": [{**ENCODER_LAYER, "name": "first"}]}),
        encoder({**LAYERS, "cls": "Sequential"}),
        encoder({"name": "norm", "cls": "LayerNorm", "normalized_shape": 4}, LAYERS),
        encoder(LAYERS, {"name": "norm", **LINEAR}),
        children(LINEAR, encoder({"name": "layers", "same": "0"})["tree"]),
        tree({"cls": "Transformer", "d_model": 4, "nhead": 2}),
        {"format": "builder/1", "builder": "os:system", "tree": LINEAR},
        {"format": "builder/1", "builder": "os:system", "kwargs": ["true"]},
        tree({"cls": "Net", "graph": None, "train_graph": None}),
        graph({"out": X}, params={}),
        graph({"out": X}, params=[["p"]]),
        graph({"out": X}, params=[["p", 4]]),
        graph({"out": X}, in_features=4),
        graph({"out": X}, {"out": X}),
        graph({"get": "shape", "args": [X]}),
        graph({"out": X}, {"in": "y"}),
        graph({"attr": "w"}, {"in": "y"}, {"out": X}, params=[["w", []]]),
        graph({"in": "y", "default": None, "only": None}, {"out": X}),
        graph({"in": "y", "default": None}, {"in": "z"}, {"out": X}),
        graph({"in": "y", "out": X}),
        graph({"name": "x"}, {"out": X}),
        graph([], {"out": X}),
        graph("exec", {"out": X}),
        graph({"fn": 3}, {"out": X}),
        graph({"fn": None}, {"out": X}),
        graph({"fn": "torch.relu", "args": "%0"}, {"out": X}),
        graph({"fn": "torch.relu", "args": [X], "kwargs": []}, {"out": X}),
        graph({"out": "%1"}),
        graph({"out": "%999999999"}),
        call("torch.relu", "%1"),  # itself
        call("torch.relu", "%2"),
        call("torch.relu", X, input="%1"),
        graph(
            {"fn": "torch.relu", "args": ["%2"]}, {"fn": "torch.relu", "args": ["%1"]}, {"out": X}
        ),
        graph({"in": "y", "default": X}, {"out": X}),
        graph(
            {"mod": "list", "args": [X]},
            {"out": X},
            children=[{"name": "list", "cls": "ModuleList"}],
        ),
    ],
    "manifest-name": [
        *[
            graph({"out": X}, children=[{"name": name, **LINEAR}])
            for name in (
                "x); import os",
                "",
                ".",
                "..",
                "a.b",
                "../a",
                "class",
                "__class__",
                "__dict__",
                "a\n",
                "ü",
                "a" * 200,
                " ",
                "-a",
                3,
                None,
                [],
            )
        ],
        *[
            graph({"in": name}, {"out": X})
            for name in (
                "x",
                "self",
                "x): pass",
                "lambda",
                "__init__",
                "*args",
                "1",
                "a-b",
                None,
                1,
            )
        ],
        *[graph({"out": X}, cls=name) for name in ("exec('')", "__main__", "a b", "", None, 1)],
        *[
            graph({"out": X}, params=[[name, []]])
            for name in ("__class__", "a.b", "", 0, None, "if")
        ],
        *[
            {
                "format": "tree/1",
                "tree": {"graph": name},
                "graphs": {name: [{"in": "x"}, {"out": X}]},
            }
            for name in ("x); import os", "__class__", "import", "a.b", "")
        ],
        *[
            graph({"attr": path}, {"out": X})
            for path in ("__class__", "", "a..b", None, 1, "w", "a.w")
        ],
        *[
            graph({"mod": path}, {"out": X})
            for path in ("", "..", "fn", "fn.__init__", "a b", "__call__")
        ],
        graph({"mod": "fn", "args": [X], "kwargs": {"x); import os": 1}}, {"out": X}),
        graph({"mod": "fn.0", "args": [X]}, {"out": X}, children=[{"name": "fn", **LINEAR}]),
        graph({"attr": "fn.in_features"}, {"out": X}, children=[{"name": "fn", **LINEAR}]),
        graph({"attr": "fn.forward"}, {"out": X}, children=[{"name": "fn", **LINEAR}]),
        graph({"attr": "fn"}, {"out": X}, children=[{"name": "fn", **LINEAR}]),
        graph({"out": X}, params=[["w", []], ["w", []]]),
        graph({"out": X}, params=[["w", []]], buffers=[["w", []]]),
        graph({"out": X}, params=[["fn", []]], children=[{"name": "fn", **LINEAR}]),
        children({"name": "1", **LINEAR}, LINEAR),
        children({"same": "0"}),  # itself
        children({"same": ""}),  # around itself
        children({"same": "1"}, LINEAR),  # behind it
        children({"same": "missing"}),
        children({"same": None}),
        children({"same": ["0"]}),
        children(LINEAR, {"same": "0"}, {"same": "1"}),
        tree({"same": ""}),
        children({"cls": "Sequential", "children": [LINEAR, {"same": "0"}]}),
        {"format": "tree/1", "tree": LINEAR, "frozen": ["missing"]},
        {"format": "tree/1", "tree": LINEAR, "frozen": ["a.weight"]},
        {"format": "tree/1", "tree": LINEAR, "frozen": ["__class__"]},
        {"format": "tree/1", "tree": LINEAR, "frozen": [1]},
        {"format": "tree/1", "tree": LINEAR, "frozen": [["weight"]]},
        {"format": "tree/1", "tree": LINEAR, "nonpersistent": ["weight"]},
        {"format": "tree/1", "tree": LINEAR, "nonpersistent": ["__dict__"]},
        *[
            {"format": "builder/1", "builder": name}
            for name in ("os.system", "os:system('true')", ":f", "a:b:c", "a..b:c", "", None, 1)
        ],
        {"format": "builder/1", "builder": "os:system", "kwargs": {"a b": 1}},
    ],
    "manifest-class": [
        tree({"cls": name})
        for name in (
            "LazyLinear",
            "NonDynamicallyQuantizableLinear",
            "Module",
            "os.system",
            "torch.nn.Linear",
            "functional",
            "__class__",
            "Parameter",
            "DataParallel",
            "",
            "linear",
        )
    ],
    "manifest-op": [
        *[
            call(name, X)
            for name in (
                "torch.load",
                "torch.save",
                "torch.from_file",
                "torch.ops.aten.from_file",
                "aten.from_file",
                "torch.ones",
                "torch.zeros",
                "torch.empty",
                "torch.arange",
                "torch.full",
                "torch.randn",
                "torch.rand_like",
                "torch.empty_like",
                "aten.lstm.input",
                "aten.empty.memory_format",
                "aten.new_empty",
                "aten.as_strided",
                "aten.set_.source_Tensor",
                "aten.randn",
                "aten.add",
                "aten.add.Tensor.x",
                "aten.",
                "torch.ops.aten.add.Tensor",
                "torch.as_strided",
                "torch.hub.load",
                "torch.compile",
                "torch.lstm",
                "torch.nn.functional.multi_head_attention_forward",
                "torch.nn.functional.one_hot",
                "operator.setitem",
                "operator.delitem",
                "operator.attrgetter",
                "operator.methodcaller",
                "operator.lshift",
                "operator.concat",
                "builtins.getattr",
                "builtins.eval",
                "builtins.exec",
                "builtins.__import__",
                "os.system",
                "math.factorial",
                "torch",
                "relu",
                "",
                "x); import os",
            )
        ],
        *[
            call(name, X, kind="meth")
            for name in (
                "__class__",
                "__reduce__",
                "__getattribute__",
                "numpy",
                "tolist",
                "item",
                "data_ptr",
                "resize_",
                "set_",
                "as_strided",
                "storage",
                "untyped_storage",
                "register_hook",
                "backward",
                "apply_",
                "map_",
                "new_empty",
                "random_",
                "format",
                "",
            )
        ],
        *[
            graph({"get": name, "args": [X]}, {"out": X})
            for name in (
                "__class__",
                "__dict__",
                "grad_fn",
                "data",
                "grad",
                "_base",
                "",
                "H",
                "real",
            )
        ],
    ],
    "manifest-argument": [
        tree({"cls": "Linear", "in_features": 4}),
        *[
            tree({"cls": "Linear", "in_features": value, "out_features": 4})
            for value in (10**14, 1 << 32, -1, 0, 1.5, True, None, "4", [4], {"a": 1}, "%0")
        ],
        tree({**LINEAR, "bias": 1}),
        tree({**LINEAR, "device": "cuda"}),
        tree({**LINEAR, "dtype": "float32"}),
        tree({**LINEAR, "__class__": 1}),
        tree({**LINEAR, "children": [LINEAR], "x); import os": 1}),
        tree({"cls": "Linear", "in_features": 1 << 31, "out_features": 1 << 31}),
        tree(
            {
                "cls": "Bilinear",
                **dict.fromkeys(("in1_features", "in2_features", "out_features"), 10**7),
            }
        ),
        tree({"cls": "LayerNorm", "normalized_shape": [1 << 20] * 3}),
        tree({"cls": "LayerNorm", "normalized_shape": []}),
        tree({"cls": "LayerNorm", "normalized_shape": [2] * 17}),
        tree({"cls": "GELU", "approximate": "exact"}),
        tree({"cls": "Upsample", "mode": "__import__"}),
        tree({"cls": "Upsample", "size": 10**6}),
        tree({"cls": "ZeroPad2d", "padding": 10**9}),
        tree({"cls": "ZeroPad2d", "padding": [1, 2, 3]}),
        tree({"cls": "Dropout", "p": "0.5"}),
        tree({"cls": "Dropout", "p": 1e999}),
        tree({"cls": "Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": [3]}),
        tree({"cls": "Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": [3, [3]]}),
        tree({"cls": "Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 1 << 17}),
        tree(
            {"cls": "Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 1, "padding": "x"}
        ),
        {"format": "tree/1", "tree": LINEAR, "inputs": [{"dtype": "object", "shape": []}]},
        {"format": "tree/1", "tree": LINEAR, "inputs": [{"dtype": ["int8"], "shape": []}]},
        {"format": "tree/1", "tree": LINEAR, "inputs": [{"dtype": "int8", "shape": [-1]}]},
        *[
            {"format": "tree/1", "tree": LINEAR, "inputs": [{"dtype": "int8", **sizes}]}
            for sizes in (
                {"shape": ["__import__('os').system('true')"]},
                {"shape": [None, 3], "sizes": [2, 4]},
                {"shape": [None, 3], "sizes": [2]},
                {"shape": [None, 3], "sizes": [None, 3]},
            )
        ],
        *[
            {
                "format": "tree/1",
                "tree": {"graph": "N"},
                "graphs": {"N": [{"in": "x", **given}, {"out": X}]},
            }
            for given in (
                {"dtype": "float32", "shape": ["__import__('os').system('true')"]},
                {"dtype": "expr", "shape": []},
                {"shape": []},
            )
        ],
        *[
            graph(
                {"get": "device", "args": [X]},
                {"fn": name, "args": args, "kwargs": {"device": "%1"}},
                {"out": "%2"},
            )
            for name, args in (
                ("aten.ones", [[10**14]]),
                ("aten.ones", [[1 << 20, 1 << 20]]),
                ("aten.arange", [1e13]),
                ("aten.full", [[1 << 13, 1 << 13], 1]),
            )
        ],
        call("aten.arange", 4),
        call("aten.new_zeros", X, [1 << 30]),
        call("aten.one_hot", X, 10**9),
        call("aten.upsample_nearest2d.vec", X, [10**5, 10**5], None),
        call("aten.einsum", "__import__('os')", [X]),
        call("aten.arange", 4, device="cuda"),
        tree({"cls": "LSTM", "input_size": 4, "hidden_size": 4, "num_layers": 10**6}),
        tree({"cls": "LSTM", "input_size": 1 << 31, "hidden_size": 1 << 31}),
        tree({"cls": "TransformerEncoderLayer", "d_model": 4, "nhead": 2, "activation": "eval"}),
        tree({"cls": "MultiheadAttention", "embed_dim": 1 << 31, "num_heads": 0}),
        {"format": "tree/1", "tree": LINEAR, "inputs": [{"dtype": "int8", "shape": [True]}]},
        *[
            graph({"out": X}, params=[["w", shape]])
            for shape in ([10**14], [-1], [None], [True], ["4"], [1 << 30, 1 << 30], [4.0])
        ],
        *[
            call("torch.relu", X, value)
            for value in (
                "__import__('os')",
                "cuda:0",
                "/etc/passwd",
                "%",
                "%-1",
                "%01",
                "%0 ",
                1 << 40,
                -(10**14),
                float("inf"),
                {},
                {"tuple": X},
                {"tuple": [], "dtype": "int8"},
                {"slice": [1, 2]},
                {"dtype": "object"},
                {"dtype": ["int8"]},
                {"float": "1e5"},
                {"float": 1.0},
                {"device": "cuda"},
                {"dict": {}},
                {"dict": [["a"]]},
                {"dict": [["a", 1], ["a", 2]]},
                {"dict": [[["a"], 1]]},
                {"dict": [["%0", 1]]},
                [["relu"]],
            )
        ],
        call("torch.relu", X, out=X),
        call("torch.relu", X, generator=None),
        call("torch.relu", X, device="cuda"),
        call("torch.relu", X, device=None),
        call("torch.relu", X, **{"x); import os": 1}),
        call("torch.relu", X, __class__=1),
        call("torch.einsum", "a" * 1000, X),
        call("torch.einsum", X, X),
        call("torch.einsum", "__import__('os')", X),
        call("operator.getitem", X, "__import__('os')"),
        call("operator.getitem", X, "a", "b"),
        call("view", 4, kind="meth"),
        call("view", kind="meth"),
        call("to", X, "cuda", kind="meth"),
        call("repeat", X, 10**6, 10**6, kind="meth"),
        call("expand", X, {"tuple": [1 << 20, 1 << 20]}, kind="meth"),
        call("torch.nn.functional.pad", X, {"tuple": [1 << 30, 0]}),
        call("torch.nn.functional.interpolate", X, size=[10**5, 10**5]),
        call("torch.tile", X, [1 << 13] * 500),
        graph({"get": "shape", "args": []}, {"out": X}),
        graph({"get": "shape", "args": [3]}, {"out": X}),
        graph({"get": "shape", "args": [X, X]}, {"out": X}),
    ],
}


@pytest.mark.parametrize(
    ("code", "manifest"),
    [(code, manifest) for code, manifests in ATTACKS.items() for manifest in manifests],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_attack(code: str, manifest: Manifest) -> None:
    with pytest.raises(ManifestError) as caught:
        validate_manifest(manifest, Limits())
    assert caught.value.code == code


@pytest.mark.parametrize("value", [None, [], 3, "tree/1", True])
def test_not_an_object(value: Any) -> None:
    with pytest.raises(ManifestError) as caught:
        decode_manifest(encode_zstd(encode_json(value)), Limits())
    assert caught.value.code == "manifest-schema"


BUILD_ATTACKS: dict[str, list[Manifest]] = {
    "manifest-name": [
        *[
            graph({"out": X}, children=[{"name": name, **LINEAR}])
            for name in (
                "forward",
                "training",
                "_modules",
                "_parameters",
                "state_dict",
                "_pemn_class",
            )
        ],
        graph({"out": X}, params=[["forward", []]]),
        graph({"out": X}, buffers=[["pemn_programs", []]]),
        graph({"attr": "fn.weight"}, {"out": X}, children=[{"name": "fn", "cls": "ReLU"}]),
        graph({"attr": "fn.bias"}, {"out": X}, children=[{"name": "fn", **LINEAR, "bias": False}]),
        {
            "format": "tree/1",
            "tree": {"cls": "BatchNorm1d", "num_features": 1},
            "frozen": ["running_mean"],
        },
    ],
    "manifest-argument": [
        tree({"cls": "Conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 1, "groups": 2}),
        tree({"cls": "Dropout", "p": 2}),
        tree({"cls": "Embedding", "num_embeddings": 3, "embedding_dim": 4, "padding_idx": 3}),
        tree({"cls": "GroupNorm", "num_groups": 2, "num_channels": 3}),
    ],
}


@pytest.mark.parametrize(
    ("code", "manifest"),
    [(code, manifest) for code, manifests in BUILD_ATTACKS.items() for manifest in manifests],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_attack_on_the_builder(code: str, manifest: Manifest) -> None:
    validate_manifest(manifest, Limits())
    with pytest.raises(ManifestError) as caught:
        build_module(manifest)
    assert caught.value.code == code


def nested(depth: int, *, twice: bool = False) -> Any:
    node: Any = LINEAR
    for level in range(depth):
        again = [{"same": ".".join(["0"] * (depth - level))}] if twice else []
        node = {"cls": "Sequential", "children": [node, *again]}
    return node


def doubling_calls(depth: int) -> Manifest:
    """Each module calls its child twice: one call of the outermost makes 2^depth calls."""
    manifest = graph({"mod": "f", "args": [X]}, {"mod": "f", "args": ["%1"]}, {"out": "%2"})
    node: Any = {"name": "f", "cls": "ReLU"}
    for _ in range(depth):
        node = {"name": "f", "graph": "Net", "children": [node]}
    manifest["tree"] = {"graph": "Net", "children": [node]}
    return manifest


@pytest.mark.parametrize(
    ("manifest", "limits"),
    [
        (children(*[LINEAR] * 11), Limits(modules=11)),
        (tree(nested(20)), Limits(modules=20)),
        (tree(nested(40, twice=True)), Limits()),  # a state dict with 2^40 names
        (doubling_calls(40), Limits()),
        (graph(*[{"fn": "torch.relu", "args": [X]}] * 10, {"out": X}), Limits(nodes=11)),
        (graph({"out": X}, params=[["w", [1] * 17]]), Limits()),
        (
            {"format": "tree/1", "tree": LINEAR, "inputs": [{"dtype": "int8", "shape": [1] * 9}]},
            Limits(dimensions=8),
        ),
        (tree(nested(300)), Limits()),
        (tree(nested(5000)), Limits(json_depth=1 << 20)),
    ],
    ids=range(9),
)
def test_limit(manifest: Manifest, limits: Limits) -> None:
    with pytest.raises(LimitError) as caught:
        validate_manifest(manifest, limits)
    assert caught.value.code == "limit"


def test_within_the_limits() -> None:
    validate_manifest(children(*[LINEAR] * 10), Limits(modules=11))
    validate_manifest(doubling_calls(8), Limits())
    validate_manifest(tree(nested(8, twice=True)), Limits())


@pytest.mark.parametrize(
    ("data", "limits", "code"),
    [
        (b"", Limits(), "zstd"),
        (b"{}", Limits(), "zstd"),
        (encode_zstd(b"{" * 100), Limits(json_depth=10), "limit"),
        (encode_zstd(b'{"a":' * 300 + b"0" + b"}" * 300), Limits(), "limit"),
        (encode_zstd(b" " * 1000), Limits(manifest_bytes=999), "limit"),
        (encode_zstd(b'{"format":"tree/1","format":"tree/1"}'), Limits(), "json"),
        (encode_zstd(b'{"format":NaN}'), Limits(), "json"),
        (encode_zstd(b'{"format":1e999}'), Limits(), "json"),
        (encode_zstd(b"\xff"), Limits(), "json"),
        (encode_zstd(b"1" * 10000), Limits(), "json"),
        (encode_manifest(valid()) + b"\0", Limits(), "zstd"),
    ],
)
def test_bytes(data: bytes, limits: Limits, code: str) -> None:
    with pytest.raises((CorruptError, LimitError)) as caught:
        decode_manifest(data, limits)
    assert caught.value.code == code


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.sampled_from(["%0", "%1", "Linear", "Net", "Block", "0", "x", "", "...", "same", "weight"])
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["cls", "graph", "same", "children", "name", "fn", "args", "out", "tuple"]
            )
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found.append((value, key))
            found.extend(_places(value[key]))
    return found


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_any_change_is_refused_or_can_be_built(data: st.DataObject) -> None:
    """Whatever stands in one place, the answer is a module or an error of this package."""
    manifest = valid()
    container, key = data.draw(st.sampled_from(_places(manifest)))
    if data.draw(st.booleans()):
        container[key] = data.draw(JSON)
    else:
        del container[key]
    with contextlib.suppress(ManifestError, LimitError):
        validate_manifest(manifest, Limits())
        check_run(build_module(manifest), manifest.get("inputs", []), Limits())


@pytest.mark.parametrize("name", LEAF_CLASSES)
def test_defaults_are_in_their_own_domain(name: str) -> None:
    for argument in LEAF_CLASSES[name].values():
        assert argument.default is REQUIRED or argument.accepts(argument.default)


def test_the_spec_lists_what_is_allowed() -> None:
    text = (Path(__file__).parent.parent / "spec" / "pemn.md").read_text(encoding="utf-8")
    graphs = text.partition("### 8.4 Graphs")[2].partition("### 8.5")[0]
    blocks = {
        before.strip().splitlines()[-1]: frozenset(names.split())
        for before, names in re.findall(r"([^\n]+)\n\n((?:    [^\n]+\n)+)", graphs)
    }

    def listed(start: str) -> frozenset[str]:
        (names,) = (names for head, names in blocks.items() if start in head)
        return names

    both = listed("Both of `torch.`")
    functions = {
        "operator.": listed("Of `operator.`"),
        "torch.": both | listed("Only of `torch.`"),
        "torch.nn.functional.": listed("Functions of `torch.nn.functional.`"),
        "aten.": listed("Operators of `aten.`"),
        "math.": {"ceil", "floor", "sqrt"},
    }
    assert {prefix + name for prefix, names in functions.items() for name in names} == FUNCTIONS
    assert both | listed("Only methods") == METHODS
    layers = text.partition("### 8.3 Layers")[2].partition("### 8.4")[0]
    rows = [line.split("|")[1] for line in layers.splitlines() if line.startswith("| `")]
    classes = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    expanded = {name.replace("Rd", f"{n}d") for name in classes for n in (1, 2, 3)}
    assert expanded == {*LEAF_CLASSES, *COMPOSITES}
