"""Manifests that are invalid by the rules of section 8, each in one way, by the code of its error.

Many were attacks once: names that are code, classes and functions that open files or crash, work
that doubles at every level. `invalid_manifests` has a file for each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from vector_parts import canonical, frame, pack

Json = dict[str, Any]

X = "%0"
LINEAR = {"cls": "Linear", "in_features": 4, "out_features": 4}
CONV = {"cls": "Conv2d", "in_channels": 1, "out_channels": 1}
ENCODER_LAYER = {"cls": "TransformerEncoderLayer", "d_model": 4, "nhead": 2}
LAYERS = {"name": "layers", "cls": "ModuleList", "children": [ENCODER_LAYER]}
CODE = "x); import os"


def tree(node: Any, **top: Any) -> Json:
    return {"format": "tree/1", "tree": node} | top


def row(*nodes: Any) -> Json:
    return tree({"cls": "Sequential", "children": list(nodes)})


def encoder(*nodes: Any) -> Json:
    return tree({"cls": "TransformerEncoder", "children": list(nodes)})


def graph(*nodes: Any, **user: Any) -> Json:
    """A user module; its graph has one input before the nodes."""
    return tree({"graph": "Net"} | user, graphs={"Net": [{"in": "x"}, *nodes]})


def call(name: str, *args: Any, kind: str = "fn", **kwargs: Any) -> Json:
    return graph({kind: name, "args": list(args), "kwargs": kwargs}, {"out": "%1"})


def named(prefix: str, values: Iterable[Any], make: Any) -> dict[str, Json]:
    """A manifest for each value, called after it."""
    result: dict[str, Json] = {}
    for value in values:
        text = re.sub("[^A-Za-z0-9._]+", "-", str(value))[:40].strip("-") or "other"
        name = f"{prefix}-{text}"
        while name.lower() in map(str.lower, result):
            name += "-2"
        result[name] = make(value)
    return result


def words(text: str) -> list[str]:
    return text.split()


def child(name: Any) -> Json:
    return graph({"out": X}, children=[{"name": name} | LINEAR])


def schemas() -> dict[str, Json]:
    out = {"out": X}
    linear = tree(LINEAR)
    no_forward = {"name": "list", "cls": "ModuleList"}
    norm = {"name": "norm", "cls": "LayerNorm", "normalized_shape": 4}
    user = {"graph": "Net", "cls": "LayerNorm", "name": "norm"}
    net = {"Net": [{"in": "x"}, out]}
    return {
        **named("value", [None, [], 3, "tree/1", True], lambda value: value),
        "empty": {},
        "format-unknown": linear | {"format": "tree/2"},
        "format-missing": {"tree": LINEAR},
        "format-array": linear | {"format": ["tree/1"]},
        "unknown-field": linear | {"later": 1},
        "training-1": linear | {"training": 1},
        "inputs-object": linear | {"inputs": {}},
        "inputs-of-arrays": linear | {"inputs": [[]]},
        "inputs-without-shape": linear | {"inputs": [{"dtype": "float32"}]},
        "inputs-unknown-field": linear | {"inputs": [{"dtype": "int8", "shape": [], "max": 1}]},
        "inputs-sizes-null": linear | {"inputs": [{"dtype": "int8", "shape": [], "sizes": None}]},
        "frozen-text": linear | {"frozen": "weight"},
        "frozen-twice": linear | {"frozen": ["weight", "weight"]},
        "nonpersistent-twice": graph(out, buffers=[["b", []]]) | {"nonpersistent": ["b", "b"]},
        "graphs-array": linear | {"graphs": []},
        "graph-empty": linear | {"graphs": {"G": []}},
        "graph-object": linear | {"graphs": {"G": {}}},
        "graph-not-used": linear | {"graphs": {"Unused": [{"in": "x"}, out]}},
        "tree-with-builder": linear | {"builder": "os.system"},
        "tree-missing": {"format": "tree/1"},
        "tree-array": tree([]),
        "tree-null": tree(None),
        "module-without-class": tree({}),
        "module-class-number": tree({"cls": 1}),
        "module-text": row("Linear"),
        "children-object": tree({"cls": "Sequential", "children": {}}),
        "children-of-a-user-module": graph(out, children="f"),
        "children-of-a-composite": tree({"cls": "TransformerEncoder", "children": {}}),
        "container-unknown-field": tree({"cls": "Sequential", "in_features": 1}),
        "list-is-called": tree({"cls": "ModuleList"}),
        "dict-is-called": tree({"cls": "ModuleDict"}),
        "list-in-a-row-is-called": row(no_forward),
        "list-is-called-in-a-graph": graph(
            {"mod": "list", "args": [X]}, {"out": "%1"}, children=[no_forward]
        ),
        "no-forward-is-called": tree({"graph": None, "cls": "Net"}),
        "no-forward-without-class": graph(out, children=[{"graph": None}]),
        "no-forward-but-train-graph": graph(
            out, children=[{"cls": "Net", "graph": None, "train_graph": "Net"}]
        ),
        "no-forward-but-train-graph-null": graph(
            out, children=[{"cls": "Net", "graph": None, "train_graph": None}]
        ),
        "shared-with-children": row({"same": "0", "children": []}, LINEAR),
        "graph-missing": tree({"graph": "Missing"}),
        "graph-number": tree({"graph": 3}),
        "graph-array": tree({"graph": ["Net"]}),
        "train-graph-missing": graph(out, train_graph="Missing"),
        "train-graph-number": graph(out, train_graph=0),
        "user-module-argument": graph(out, in_features=4),
        "params-object": graph(out, params={}),
        "params-without-shape": graph(out, params=[["p"]]),
        "params-of-three": graph(out, params=[["p", [], []]]),
        "params-shape-number": graph(out, params=[["p", 4]]),
        "buffers-text": graph(out, buffers=["b"]),
        "composite-without-layers": encoder(),
        "composite-more-children": encoder(LAYERS, {"name": "extra", "cls": "ReLU"}),
        "composite-no-layer": encoder(LAYERS | {"children": []}),
        "composite-another-layer": encoder(LAYERS | {"children": [LINEAR]}),
        "composite-layer-of-the-other": encoder(
            LAYERS | {"children": [ENCODER_LAYER | {"cls": "TransformerDecoderLayer"}]}
        ),
        "composite-named-layer": encoder(
            LAYERS | {"children": [ENCODER_LAYER | {"name": "first"}]}
        ),
        "composite-shared-layer": encoder(
            LAYERS | {"children": [ENCODER_LAYER, {"same": "layers.0"}]}
        ),
        "composite-layers-in-sequence": encoder(LAYERS | {"cls": "Sequential"}),
        "composite-norm-first": encoder(norm, LAYERS),
        "composite-norm-of-another-class": encoder(LAYERS, {"name": "norm"} | LINEAR),
        "composite-norm-of-the-user": encoder(LAYERS, user) | {"graphs": net},
        "composite-list-of-the-user": encoder(
            {"name": "layers", "cls": "ModuleList", "graph": "Net", "children": [ENCODER_LAYER]}
        )
        | {"graphs": net},
        "composite-layer-of-the-user": encoder(
            LAYERS | {"children": [{"cls": "TransformerEncoderLayer", "graph": "Net"}]}
        )
        | {"graphs": net},
        "composite-shared-layers": row(LINEAR, encoder({"name": "layers", "same": "0"})["tree"]),
        "composite-transformer-alone": tree({"cls": "Transformer", "d_model": 4, "nhead": 2}),
        "composite-two-encoders": tree(
            {
                "cls": "Transformer",
                "d_model": 4,
                "nhead": 2,
                "children": [encoder(LAYERS)["tree"] | {"name": n} for n in ("encoder", "decoder")],
            }
        ),
        "builder-with-tree": {"format": "builder/1", "builder": "os:system", "tree": LINEAR},
        "builder-kwargs-array": {"format": "builder/1", "builder": "os:system", "kwargs": ["x"]},
        "builder-nonpersistent": {
            "format": "builder/1",
            "builder": "os:system",
            "nonpersistent": [],
        },
        "node-array": graph([], out),
        "node-text": graph("exec", out),
        "node-of-no-kind": graph({"name": "x"}, out),
        "node-of-two-kinds": graph({"in": "y", "out": X}),
        "node-unknown-field": graph({"attr": "w", "args": []}, out, params=[["w", []]]),
        "attribute-with-keywords": graph({"get": "T", "args": [X], "kwargs": {}}, out),
        "no-out": graph({"get": "shape", "args": [X]}),
        "two-outs": graph(out, out),
        "input-behind-out": graph(out, {"in": "y"}),
        "input-behind-tensor": graph({"attr": "w"}, {"in": "y"}, out, params=[["w", []]]),
        "input-with-two-defaults": graph({"in": "y", "default": None, "only": None}, out),
        "input-behind-default": graph({"in": "y", "default": None}, {"in": "z"}, out),
        "input-behind-only": graph({"in": "y", "only": 1}, {"in": "z"}, out),
        "input-of-another": graph({"in": "y", "default": X}, out),
        "input-shape-number": graph({"in": "y", "dtype": "int8", "shape": 4}, out),
        "input-shape-missing": graph({"in": "y", "dtype": "int8"}, out),
        "input-tensor-with-default": graph(
            {"in": "y", "dtype": "int8", "shape": [], "default": None}, out
        ),
        "target-number": graph({"fn": 3}, out),
        "target-null": graph({"meth": None}, out),
        "args-text": graph({"fn": "torch.relu", "args": X}, out),
        "args-object": graph({"mod": "f", "args": {}}, out, children=[{"name": "f"} | LINEAR]),
        "kwargs-array": graph({"fn": "torch.relu", "args": [X], "kwargs": []}, out),
        "reference-to-itself": call("torch.relu", "%1"),
        "reference-to-later": call("torch.relu", "%2"),
        "reference-in-keyword": call("torch.relu", X, input="%1"),
        "reference-in-tuple": call("torch.relu", {"tuple": [[{"slice": [0, "%1", 1]}]]}),
        "reference-in-dict": graph({"out": {"dict": [["a", X], ["b", "%1"]]}}),
        "reference-of-out": graph({"out": "%1"}),
        "reference-beyond-all": graph({"out": "%999999999"}),
        "references-in-a-circle": graph(
            {"fn": "torch.relu", "args": ["%2"]}, {"fn": "torch.relu", "args": ["%1"]}, out
        ),
    }


def names() -> dict[str, Json]:
    out = {"out": X}
    linear = tree(LINEAR)
    below = [{"name": "f"} | LINEAR]
    bad = ["__class__", "a.b", "", 0, None, "if", "ü", " ", "-a", [], "a\n", "a" * 129, CODE]
    return {
        **named("module", [*bad, ".", "..", "../a", "class", "__dict__"], child),
        "module-root": tree({"name": "a.b"} | LINEAR),
        "module-twice": row({"name": "1"} | LINEAR, LINEAR),
        "module-and-tensor": graph(out, params=[["f", []]], children=below),
        **named(
            "input",
            ["x", "self", "x): pass", "lambda", "__init__", "*args", "1", "a-b", None, 1, []],
            lambda name: graph({"in": name}, out),
        ),
        **named(
            "class",
            [*bad, "1a", "a-b", "exec('')", "__main__"],
            lambda name: graph(out, cls=name),
        ),
        **named("tensor", bad, lambda name: graph(out, params=[[name, []]])),
        "tensor-twice": graph(out, params=[["w", []], ["w", []]]),
        "tensor-and-buffer": graph(out, params=[["w", []]], buffers=[["w", []]]),
        **named(
            "graph",
            [CODE, "__class__", "import", "a.b", "", "1", "a-b"],
            lambda name: tree({"graph": name}, graphs={name: [{"in": "x"}, out]}),
        ),
        **named(
            "use-of-tensor",
            ["__class__", "", "a..b", None, 1, "w", "a.w"],
            lambda path: graph({"attr": path}, out),
        ),
        **named(
            "use-of-layer-tensor",
            ["in_features", "forward", "weight_g", "weight_ih_l10000", "bias_", "running_std"],
            lambda name: graph({"attr": f"f.{name}"}, out, children=below),
        ),
        "use-of-module-as-tensor": graph({"attr": "f"}, out, children=below),
        "use-of-container-tensor": graph(
            {"attr": "f.weight"}, out, children=[{"name": "f", "cls": "Sequential"}]
        ),
        "use-of-inner-layer": graph({"attr": "f.out_proj.weight"}, out, children=below),
        **named(
            "call",
            ["", "..", "fn", "fn.__init__", "a b", "__call__"],
            lambda path: graph({"mod": path}, out),
        ),
        "call-within-layer": graph({"mod": "f.0", "args": [X]}, out, children=below),
        "call-with-keyword": graph(
            {"mod": "f", "args": [X], "kwargs": {CODE: 1}}, out, children=below
        ),
        "call-with-keyword-dashed": graph(
            {"mod": "f", "args": [X], "kwargs": {"a-b": 1}}, out, children=below
        ),
        "same-itself": row({"same": "0"}),
        "same-around-itself": row({"same": ""}),
        "same-later": row({"same": "1"}, LINEAR),
        "same-missing": row({"same": "missing"}),
        "same-null": row({"same": None}),
        "same-array": row({"same": ["0"]}),
        "same-of-shared": row(LINEAR, {"same": "0"}, {"same": "1"}),
        "same-root": tree({"same": ""}),
        "same-relative": row({"cls": "Sequential", "children": [LINEAR, {"same": "0"}]}),
        **named(
            "frozen",
            ["missing", "a.weight", "__class__", 1, ["weight"], "", "weight.", "in_features"],
            lambda path: linear | {"frozen": [path]},
        ),
        **named(
            "nonpersistent",
            ["weight", "__dict__", None, "b.c"],
            lambda path: graph(out, params=[["weight", []]], buffers=[["b", []]])
            | {"nonpersistent": [path]},
        ),
        **named(
            "builder",
            ["os.system", "os:system('true')", ":f", "a:", "a:b:c", "a..b:c", "", None, 1, "a:ü",
             "1a:b", ".".join("p" * 17) + ":f", "p:" + "f" * 199, ["a:b"], "a:b\n", "a:b.c"],
            lambda name: {"format": "builder/1", "builder": name},
        ),
        "builder-missing": {"format": "builder/1"},
        "builder-argument": {"format": "builder/1", "builder": "a:b", "kwargs": {"a b": 1}},
    }  # fmt: skip


CLASSES = words("""
    LazyLinear NonDynamicallyQuantizableLinear Module os.system torch.nn.Linear functional __class__
    Parameter DataParallel linear Conv4d ConvRd ParameterList AdaptiveLogSoftmaxWithLoss MSELoss
""")

FUNCTIONS = words("""
    torch.load torch.save torch.from_file torch.ops.aten.from_file aten.from_file torch.ones
    torch.zeros torch.empty torch.arange torch.full torch.randn torch.rand_like torch.empty_like
    aten.lstm.input aten.empty.memory_format aten.new_empty aten.as_strided aten.set_.source_Tensor
    aten.randn aten.add aten.add.Tensor.x aten. torch.ops.aten.add.Tensor torch.as_strided
    torch.hub.load torch.compile torch.lstm torch.nn.functional.multi_head_attention_forward
    torch.nn.functional.one_hot operator.setitem operator.delitem operator.attrgetter
    operator.methodcaller operator.lshift operator.concat builtins.getattr builtins.eval
    builtins.exec builtins.__import__ os.system math.factorial torch relu torch.nn.functional
    torch.add_ torch.dropout math.pow operator.abs.x Torch.abs
""")

METHODS = words("""
    __class__ __reduce__ __getattribute__ numpy tolist item data_ptr resize_ set_ as_strided storage
    untyped_storage register_hook backward apply_ map_ new_empty random_ format torch.abs cat shape
    requires_grad_ share_memory_ is_shared
""")

ATTRIBUTES = words("__class__ __dict__ grad_fn data grad _base H real requires_grad size")


def operators() -> dict[str, Json]:
    def attribute(name: str) -> Json:
        return graph({"get": name, "args": [X]}, {"out": X})

    return {
        **named("function", [*FUNCTIONS, CODE, ""], lambda name: call(name, X)),
        **named("method", [*METHODS, ""], lambda name: call(name, X, kind="meth")),
        **named("attribute", [*ATTRIBUTES, ""], attribute),
    }


def arguments() -> dict[str, Json]:
    out = {"out": X}
    linear = tree(LINEAR)

    def given(**inputs: Any) -> Json:
        return linear | {"inputs": [{"dtype": "int8"} | inputs]}

    def factory(name: str, *args: Any) -> Json:
        device = {"get": "device", "args": [X]}
        node = {"fn": name, "args": list(args), "kwargs": {"device": "%1"}}
        return graph(device, node, {"out": "%2"})

    def layer(cls: str, **values: Any) -> Json:
        return tree({"cls": cls} | values)

    half = 1 << 12
    above = {"grows": (half, half, 2), "grows-by-1": ((1 << 24) + 1,)}
    layers = {
        "missing": layer("Linear", in_features=4),
        "unknown": tree(LINEAR | {"device": "cuda"}),
        "unknown-dtype": tree(LINEAR | {"dtype": "float32"}),
        "unknown-code": tree(LINEAR | {CODE: 1}),
        "unknown-class": tree(LINEAR | {"__class__": 1}),
        "children-of-a-layer": tree(LINEAR | {"children": []}),
        "flag-1": tree(LINEAR | {"bias": 1}),
        "flag-null": tree(LINEAR | {"bias": None}),
        "elements": layer("Linear", in_features=1 << 31, out_features=1 << 31),
        "elements-bilinear": layer(
            "Bilinear", **dict.fromkeys(("in1_features", "in2_features", "out_features"), 10**7)
        ),
        "elements-kernel": tree(CONV | {"in_channels": 1 << 19, "kernel_size": 1 << 16}),
        "elements-kernel-array": tree(
            CONV | {"in_channels": 1 << 19, "kernel_size": [1 << 16, 1 << 16]}
        ),
        "elements-norm": layer("LayerNorm", normalized_shape=[1 << 20] * 3),
        "elements-recurrent": layer("LSTM", input_size=1 << 31, hidden_size=1 << 31),
        "elements-attention": layer("MultiheadAttention", embed_dim=1 << 31, num_heads=0),
        "elements-embedding": layer("Embedding", num_embeddings=1 << 31, embedding_dim=1 << 20),
        "array-empty": layer("LayerNorm", normalized_shape=[]),
        "array-of-17": layer("LayerNorm", normalized_shape=[2] * 17),
        "array-of-1-for-2": tree(CONV | {"kernel_size": [3]}),
        "array-of-3-for-2": tree(CONV | {"kernel_size": [3, 3, 3]}),
        "array-of-arrays": tree(CONV | {"kernel_size": [3, [3]]}),
        "array-of-words": tree(CONV | {"kernel_size": 1, "padding": ["same", "same"]}),
        "array-of-null": tree(CONV | {"kernel_size": [None, 1]}),
        "array-for-one": layer("Softmax", dim=[1]),
        "padding-3-for-4": layer("ZeroPad2d", padding=[1, 2, 3]),
        "padding-far": layer("ZeroPad2d", padding=65537),
        "padding-far-negative": layer("ZeroPad2d", padding=[0, 0, 0, -65537]),
        "word-unknown": layer("GELU", approximate="exact"),
        "word-code": layer("Upsample", mode="__import__"),
        "word-of-another": tree(CONV | {"kernel_size": 1, "padding": "zeros"}),
        "word-transposed": tree(
            CONV | {"cls": "ConvTranspose2d", "kernel_size": 1, "padding_mode": "reflect"}
        ),
        "word-activation": tree(ENCODER_LAYER | {"activation": "eval"}),
        "window-65537": tree(CONV | {"kernel_size": 65537}),
        "window-0": tree(CONV | {"kernel_size": 0}),
        "padding-negative": tree(CONV | {"kernel_size": 1, "padding": -1}),
        "size-65537": layer("Upsample", size=65537),
        "dimension-16": layer("Softmax", dim=16),
        "dimension-17-from-behind": layer("GLU", dim=-17),
        "number-text": layer("Dropout", p="0.5"),
        "number-true": layer("Dropout", p=True),
        "number-large": layer("Threshold", threshold=0, value=(1 << 31) + 1),
        "number-null": layer("Softshrink", lambd=None),
        "number-array": layer("Dropout", p=[0.5]),
        "layers-1025": layer("LSTM", input_size=4, hidden_size=4, num_layers=1025),
        "heads-0": layer("MultiheadAttention", embed_dim=4, num_heads=0),
        "padding-index": layer("Embedding", num_embeddings=1, embedding_dim=1, padding_idx=-1),
        "unflattened": layer("Unflatten", dim=0, unflattened_size=-2),
        "composite-unknown": tree({"cls": "TransformerDecoder", "norm_first": True}),
    }
    return {
        **{f"layer-{name}": manifest for name, manifest in layers.items()},
        **named(
            "layer-size",
            [(1 << 31) + 1, -1, 0, 1.5, 4.0, True, None, "4", [4], {"a": 1}, "%0"],
            lambda value: layer("Linear", in_features=value, out_features=4),
        ),
        "inputs-dtype": given(dtype="object", shape=[]),
        "inputs-dtype-of-the-file": given(dtype="uint16", shape=[]),
        "inputs-dtype-array": given(dtype=["int8"], shape=[]),
        "inputs-dtype-missing": linear | {"inputs": [{"shape": []}]},
        **named(
            "inputs-size",
            [-1, (1 << 31) + 1, True, 1.0, "__import__('os').system('true')", [1, 2]],
            lambda size: given(shape=[size]),
        ),
        "inputs-elements": given(shape=[1 << 26, 1 << 25]),
        "inputs-sizes-differ": given(shape=[None, 3], sizes=[2, 4]),
        "inputs-sizes-fewer": given(shape=[None, 3], sizes=[2]),
        "inputs-sizes-open": given(shape=[None, 3], sizes=[None, 3]),
        **named(
            "graph-input",
            [[-1], [[1]], [[2, 1]], [[0, (1 << 31) + 1]], [[0, None]], [[0, True]], ["8"],
             [1 << 26, 1 << 25]],
            lambda shape: graph({"in": "y", "dtype": "float32", "shape": shape}, out),
        ),
        "graph-input-dtype": graph({"in": "y", "dtype": "expr", "shape": []}, out),
        "graph-input-dtype-missing": graph({"in": "y", "shape": []}, out),
        "graph-input-default": graph({"in": "y", "default": "eval"}, out),
        "graph-input-only": graph({"in": "y", "only": {"set": []}}, out),
        **named(
            "tensor-shape",
            [[10**14], [-1], [None], [True], ["4"], [1 << 30, 1 << 30], [4.0], [[1, 2]]],
            lambda shape: graph(out, params=[["w", shape]]),
        ),
        **named(
            "value",
            ["__import__('os')", "cuda:0", "/etc/passwd", "%", "%-1", "%01", "%0 ", "%1e0", "relu",
             "float32", "", (1 << 31) + 1, -(1 << 31) - 1, ["relu"], {}, {"tuple": X},
             {"tuple": [], "dtype": "int8"}, {"tuple": None}, {"slice": [1, 2]},
             {"slice": [1, 2, 3, 4]}, {"dtype": "object"}, {"dtype": ["int8"]}, {"float": "1e5"},
             {"float": 1.0}, {"float": "infinity"}, {"device": "cuda"}, {"list": []},
             {"?note": 1}],
            lambda value: call("torch.relu", X, value),
        ),
        **named(
            "dictionary",
            [{}, [["a"]], [["a", 1], ["a", 2]], [[["a"], 1]], [["%0", 1]], [["", 1]],
             [["k" * 129, 1]], [[1, 1]], [["a", 1, 2]], ["ab"], [["a", "eval"]]],
            lambda pairs: graph({"out": {"dict": pairs}}),
        ),
        **named(
            "keyword",
            ["out", "generator", "pin_memory", "memory_format", "layout", CODE, "__class__", "?n"],
            lambda key: call("torch.relu", X, **{key: X}),
        ),
        "keyword-generator-null": call("torch.relu", X, generator=None),
        "keyword-device-text": call("torch.relu", X, device="cuda"),
        "keyword-device-null": call("torch.relu", X, device=None),
        "keyword-value": call("torch.relu", X, dim="eval"),
        "einsum-long": call("torch.einsum", "a" * 129, X),
        "einsum-of-a-value": call("torch.einsum", X, X),
        "einsum-code": call("torch.einsum", "__import__('os')", X),
        "einsum-result-long": call("torch.einsum", "a->" + "b" * 65, X),
        "einsum-second": call("torch.einsum", "i,i", "i,i"),
        "einsum-aten": call("aten.einsum", "__import__('os')", [X]),
        "einsum-method": call("view", X, "i,i->i", kind="meth"),
        "key-code": call("operator.getitem", X, "__import__('os')"),
        "key-and-more": call("operator.getitem", X, "a", "b"),
        "key-of-another": call("operator.eq", X, "a"),
        "method-of-a-number": call("view", 4, kind="meth"),
        "method-of-nothing": call("view", kind="meth"),
        "method-device": call("to", X, "cuda", kind="meth"),
        "attribute-of-nothing": graph({"get": "shape"}, out),
        "attribute-of-no-arguments": graph({"get": "shape", "args": []}, out),
        "attribute-of-a-number": graph({"get": "shape", "args": [3]}, out),
        "attribute-with-argument": graph({"get": "shape", "args": [X, X]}, out),
        "device-missing": call("aten.arange", 4),
        "device-missing-overload": call("aten.arange.start_step", 0, 4, 1),
        "device-text": call("aten.arange", 4, device="cuda"),
        **{f"repeat-{name}": call("repeat", X, *n, kind="meth") for name, n in above.items()},
        **{f"tile-{name}": call("torch.tile", X, [*n]) for name, n in above.items()},
        **{f"ones-{name}": factory("aten.ones", [*n]) for name, n in above.items()},
        "tile-grows-far": call("torch.tile", X, [1 << 13] * 500),
        "expand-grows": call("expand", X, {"tuple": [1 << 20, 1 << 20]}, kind="meth"),
        "pad-grows": call("torch.nn.functional.pad", X, {"tuple": [1 << 30, 0]}),
        "pad-grows-negative": call("torch.nn.functional.pad", X, [-half, half, 2.5]),
        "interpolate-grows": call("torch.nn.functional.interpolate", X, size=[10**5, 10**5]),
        "arange-grows": factory("aten.arange", 1e13),
        "full-grows": factory("aten.full", [half, half, 2], 1),
        "new-full-grows": call("aten.new_full", X, [1 << 25], 1),
        "new-zeros-grows": call("aten.new_zeros", X, [1 << 30]),
        "new-zeros-method-grows": call("new_zeros", X, 1 << 25, kind="meth"),
        "one-hot-grows": call("aten.one_hot", X, 10**9),
        "upsample-grows": call("aten.upsample_nearest2d.vec", X, [10**5, 10**5], None),
        "dictionary-grows": call("torch.tile", X, {"dict": [["k", 1 << 25]]}),
    }  # fmt: skip


def nested(depth: int) -> Any:
    """A module in a module and so on, each of them twice."""
    node: Any = LINEAR
    for level in range(depth):
        again = {"same": ".".join(["0"] * (depth - level))}
        node = {"cls": "Sequential", "children": [node, again]}
    return node


def doubling_calls(depth: int) -> Json:
    """Each module calls its child twice: one call of the outermost makes 2^depth calls."""
    twice = [{"mod": "f", "args": [X]}, {"mod": "f", "args": ["%1"]}, {"out": "%2"}]
    node: Any = {"name": "f", "cls": "ReLU"}
    for _ in range(depth):
        node = {"name": "f", "graph": "Net", "children": [node]}
    return graph(*twice, children=[node])


def limits() -> dict[str, Json]:
    out = {"out": X}
    many = [{"attr": f"p{i}"} for i in range(1000)]
    users = [{"graph": "Net"}] * 263  # 263,000 names
    return {
        "modules": row(*[{"cls": "Tanh"}] * (1 << 16)),
        "modules-shared": tree(nested(40)),
        "nodes": graph(*[{"attr": "w"}] * (1 << 18), out, params=[["w", []]]),
        "nodes-of-one-call": doubling_calls(40),
        "nodes-named": tree(
            {"cls": "Sequential", "children": users}, graphs={"Net": [{"in": "x"}, *many, out]}
        ),
        "dimensions-of-a-tensor": graph(out, params=[["w", [1] * 17]]),
        "dimensions-of-an-input": tree(
            LINEAR, inputs=[{"dtype": "int8", "shape": [None] * 17, "sizes": []}]
        ),
        "dimensions-of-a-graph-input": graph(
            {"in": "y", "dtype": "int8", "shape": [[0, 1]] * 17}, out
        ),
    }


def file_of(manifest: Any) -> bytes:
    return pack({"sections": [["manifest", 1]]}, frame(canonical(manifest)))


def invalid_manifests() -> dict[str, tuple[str, bytes]]:
    cases = {
        "manifest-schema": schemas(),
        "manifest-name": names(),
        "manifest-class": named("module", [*CLASSES, ""], lambda name: tree({"cls": name})),
        "manifest-op": operators(),
        "manifest-argument": arguments(),
        "limit": {f"manifest-{name}": manifest for name, manifest in limits().items()},
    }
    files = {
        f"{code}-{name}": (code, file_of(manifest))
        for code, manifests in cases.items()
        for name, manifest in manifests.items()
    }
    only_manifest = {"sections": [["manifest", 1]]}
    files["manifest-no-frame"] = ("zstd", pack(only_manifest, b"{}"))
    files["manifest-byte-behind"] = ("zstd", pack(only_manifest, frame(b"{}") + b"\0"))
    files["manifest-not-json"] = ("json", pack(only_manifest, frame(b"{")))
    files["manifest-key-twice"] = (
        "json",
        pack(only_manifest, frame(b'{"format":"tree/1","format":"tree/1"}')),
    )
    files["manifest-nan"] = ("json", pack(only_manifest, frame(b'{"format":NaN}')))
    files["manifest-too-large"] = ("limit", pack(only_manifest, frame(bytes((1 << 24) + 1))))
    files["manifest-too-deep"] = ("limit", pack(only_manifest, frame(b"[" * 257 + b"]" * 257)))
    return files
