"""Files with an architecture (section 8): valid ones, and ones that a reader refuses to build.

Of a valid one the index says what a reader must find: the classes of all modules, and outputs for
some inputs. These are small integers and halves throughout, which every reader computes without
rounding. What PyTorch makes of a network is taken from the package, since PyTorch is what defines
it (8.9); so are names and shapes of tensors.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from reference_lists import DTYPES, LAYERS, Argument
from reference_manifest import COMPOSITES
from vector_parts import ONES, canonical, dense, floats, frame, pack

import pemncodec
from pemncodec.architecture.manifest import validate_manifest
from pemncodec.architecture.rebuild import build_module, named_tensors
from pemncodec.limits import Limits

Json = dict[str, Any]

X = "%0"
LINEAR = {"cls": "Linear", "in_features": 2, "out_features": 1}
FOUR = {"cls": "Linear", "in_features": 4, "out_features": 4}
NORMS = {"cls": "LayerNorm", "normalized_shape": 4}
ENCODER_LAYER = {"cls": "TransformerEncoderLayer", "d_model": 4, "nhead": 2, "dim_feedforward": 2}
DECODER_LAYER = ENCODER_LAYER | {"cls": "TransformerDecoderLayer"}


@dataclass(frozen=True)
class ModuleFile:
    """A file, what it is read with, and what comes of it.

    Attributes:
        calls: inputs of `forward`, for each of which the index gets the outputs.
        trust: code that the reader's user allows.
        error: that of a reader which is asked for the module; None for a valid file.
        package_alone: why the reference decoder does not find that error.
    """

    data: bytes
    calls: tuple[tuple[torch.Tensor, ...], ...] = ()
    trust: tuple[str, ...] = ()
    error: str | None = None
    package_alone: str | None = None


def tree(node: Json, *inputs: Json, **top: Any) -> Json:
    given = {"inputs": list(inputs)} if inputs else {}
    return {"format": "tree/1", "tree": node} | given | top


def tensor(dtype: str, *shape: int | None) -> Json:
    return {"dtype": dtype, "shape": list(shape)}


def ramp(*shape: int, start: int = -3) -> torch.Tensor:
    """Small integers as float32."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) * 5 % 7 + start).reshape(shape).float()


def file_of(
    manifest: Json,
    *,
    masked: tuple[str, ...] = (),
    ties: Json | None = None,
    changed: Json | None = None,
) -> bytes:
    """A file with the tensors that a manifest needs.

    Args:
        masked: names of tensors whose values are -1 and 1 of a seed, all used.
        ties: name -> name of an earlier tensor that is the same.
        changed: name -> shape that the file has in place of the right one, None for no tensor.
    """
    header: Json = {
        "tensors": {"name": [], "kind": [], "dtype": [], "shape": []},
        "sections": [["manifest", 1]],
    }
    tables: Json = {"alias": {"target": []}, "constant": {"value": []}, "masks": {"section": []}}
    tables |= {"dense": {"section": []}}
    sections, values = [frame(canonical(manifest))], b""
    shapes = {}
    seen: dict[int, str] = {}
    validate_manifest(manifest, Limits())
    for name, own in named_tensors(build_module(manifest)).items():
        target = (ties or {}).get(name, seen.setdefault(id(own), name))
        shapes[name] = target if target != name else list(own.shape)
    shapes |= changed or {}
    for name, shape in shapes.items():
        if shape is None:
            continue
        kind, dtype = "dense", "float32"
        if isinstance(shape, str):
            kind = "alias"
            tables["alias"]["target"].append(shape)
            shape = []
        elif name in masked:
            kind = "masked"
        elif name.endswith("num_batches_tracked"):
            kind, dtype = "constant", "int64"
            tables["constant"]["value"].append("00" * 8)
        elif name.endswith("running_var"):
            kind = "constant"
            tables["constant"]["value"].append(floats(4).hex())
        else:
            numbers = ramp(*shape, start=-len(name) % 3 - 2).flatten().tolist()
            values += floats(*numbers)
            tables["dense"]["section"].append(1)
        row = {"name": name, "kind": kind, "dtype": dtype, "shape": shape}
        for key, column in header["tensors"].items():
            column.append(row[key])
    if values:
        sections.append(b"\0" + values)
        header["sections"].append(["dense", 1])
    if masked:
        tables["masks"]["section"] = [len(sections) + i for i in range(len(masked))]
        sections += [ONES] * len(masked)
        header["sections"].append(["mask", len(masked)])
        header["prototypes"] = {"kind": ["seeded"], "length": [8]}
        header["seeded"] = {"distribution": ["signed-constant"]}
    header |= {key: table for key, table in tables.items() if any(table.values())}
    return pack(header, *sections)


def valid_modules() -> dict[str, ModuleFile]:
    both = {
        "tensors": {
            "name": ["weight", "bias"],
            "kind": ["masked", "dense"],
            "shape": [[1, 2], [1]],
        },
        "masks": {"section": [2]},
        "dense": {"section": [1]},
        "prototypes": {"kind": ["seeded"], "length": [2]},
        "sections": [["manifest", 1], ["dense", 1], ["mask", 1]],
    }
    half = b"\0" + floats(0.5)
    builder = {"format": "builder/1", "builder": "pkg.nets:linear", "kwargs": {"sizes": [2, 1]}}
    exported, other = exported_by_hand(), {"name": ["fc.weight", "shift"]}
    names = both | {"tensors": both["tensors"] | other}
    return {
        "manifest-exported": ModuleFile(pack(names, frame(canonical(exported)), half, ONES)),
        "manifest-builder": ModuleFile(
            pack(names, frame(canonical(builder)), half, ONES), trust=("pkg.nets:linear",)
        ),
        "manifest-layers": ModuleFile(
            file_of(layers(), masked=("0.weight",)), ((ramp(2, 1, 4, 4),), (ramp(1, 1, 4, 4),))
        ),
        "manifest-graph": ModuleFile(file_of(traced()), ((ramp(2, 4),), (ramp(3, 4),))),
        "manifest-train-graph": ModuleFile(file_of(two_modes()), ((ramp(2, 4),),)),
        "manifest-functions": ModuleFile(file_of(calls(FUNCTION_CALLS)), ((ramp(2, 4),),)),
        "manifest-methods": ModuleFile(file_of(calls(METHOD_CALLS)), ((ramp(2, 4),),)),
        "manifest-aten": ModuleFile(file_of(calls(ATEN_CALLS)), ((ramp(2, 4),),)),
        "manifest-composites": ModuleFile(file_of(composites())),
        "manifest-recurrent": ModuleFile(file_of(recurrent())),
        "manifest-shared": ModuleFile(file_of(shared()), ((ramp(2, 4),),)),
        "manifest-tied": ModuleFile(
            file_of(tied(), ties={"head.weight": "words.weight"}), ((torch.tensor([[1, 0, 2]]),),)
        ),
        "manifest-every-layer": ModuleFile(file_of(every_layer())),
        "manifest-boundaries": ModuleFile(file_of(boundaries())),
        "manifest-optional-fields": ModuleFile(file_of(noted(traced())), ((ramp(2, 4),),)),
        "manifest-graphs-not-sorted": ModuleFile(
            pack({"sections": [["manifest", 1]]}, frame(UNSORTED))
        ),
        "manifest-builder-boundaries": ModuleFile(
            pack({"sections": [["manifest", 1]]}, frame(canonical(LONG_BUILDER))),
            trust=(str(LONG_BUILDER["builder"]),),
        ),
    }


# Its keys stand in another order than writers give them.
UNSORTED = (
    b'{ "tree":{"children":[{"graph":"B"},{"graph":"A"}],"cls":"Sequential"}, "graphs":'
    b'{"B":[{"in":"x"},{"out":"%0"}],"A":[{"in":"x"},{"out":"%0"}]},"format":"tree/1",'
    b'"inputs":[{"shape":[null,1],"dtype":"int8"}]}\n'
)
LONG_BUILDER = {
    "format": "builder/1",
    "builder": ".".join(["p"] * 16) + ":" + "f" * 168,
    "kwargs": {"any": [{"JSON": [None, 1.5, -1e300, 1 << 70, "text"]}]},
    "frozen": ["a.b"],
    "inputs": [tensor("int8", None, 1 << 31)],
    "training": True,
}


def exported_by_hand() -> Json:
    return {
        "format": "tree/1",
        "tree": {
            "cls": "Net",
            "graph": "Net",
            "train_graph": None,
            "children": [
                {"cls": "Linear", "name": "fc", "in_features": 2, "out_features": 1, "bias": False}
            ],
            "buffers": [["shift", [1]]],
        },
        "graphs": {
            "Net": [
                {"in": "x", "dtype": "float32", "shape": [[0, 8], 2]},
                {"attr": "fc.weight"},
                {"fn": "aten.linear", "args": ["%0", "%1"]},
                {"attr": "shift"},
                {"fn": "aten.add.Tensor", "args": ["%2", "%3"], "kwargs": {"alpha": 2}},
                {"out": {"dict": [["y", "%4"]]}},
            ]
        },
        "nonpersistent": ["shift"],
        "inputs": [{"dtype": "float32", "shape": [None, 2], "sizes": [3, 2]}],
    }


def layers() -> Json:
    """Layers in a row, of which the batch norm divides by 2."""
    return tree(
        {
            "cls": "Sequential",
            "children": [
                {"cls": "Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 3,
                 "padding": 1},
                {"cls": "BatchNorm2d", "num_features": 2, "eps": 0.0},
                {"cls": "ReLU", "inplace": True},
                {"cls": "Dropout", "p": 0.25},
                {"cls": "MaxPool2d", "kernel_size": 2},
                {"name": "flat", "cls": "Flatten"},
                {"cls": "Linear", "in_features": 8, "out_features": 3, "bias": False},
            ],
        },
        tensor("float32", None, 1, 4, 4),
        training=True,
        frozen=["1.bias"],
    )  # fmt: skip


def traced() -> Json:
    """Graphs as tracing writes them: modules below, tensors, shapes, dictionaries, defaults."""
    block = [
        {"in": "x"},
        {"in": "mask", "only": None},
        {"in": "scale", "default": 1.5},
        {"mod": "fn", "args": ["%0"]},
        {"attr": "gain"},
        {"attr": "fn.weight"},
        {"fn": "operator.mul", "args": ["%3", "%4"]},
        {"fn": "operator.mul", "args": ["%6", "%2"]},
        {"get": "shape", "args": ["%7"]},
        {"fn": "operator.getitem", "args": ["%8", 0]},
        {"meth": "view", "args": ["%7", {"tuple": ["%9", -1]}]},
        {
            "fn": "operator.getitem",
            "args": ["%10", {"tuple": ["...", {"slice": [0, 2, None]}]}],
        },
        {"fn": "torch.einsum", "args": ["bi,bi->b", "%11", "%11"]},
        {"fn": "torch.nn.functional.linear", "args": ["%7", "%5"]},
        {"out": {"dict": [["sum", "%12"], ["rest", ["%13", None, {"tuple": ["%3"]}]]]}},
    ]
    net = [
        {"in": "x"},
        {"mod": "blocks.0", "args": ["%0"], "kwargs": {"scale": 2.0}},
        {"fn": "operator.getitem", "args": ["%1", "rest"]},
        {"fn": "operator.getitem", "args": ["%2", 0]},
        {"attr": "lists.0"},
        {"fn": "operator.add", "args": ["%3", "%4"]},
        {"mod": "parts.last", "args": ["%5"]},
        {"attr": "offset"},
        {"fn": "operator.sub", "args": ["%6", "%7"]},
        {"out": {"tuple": ["%8", {"dict": [["sum of all", "%1"]]}]}},
    ]
    return tree(
        {
            "cls": "Net",
            "graph": "Net",
            "buffers": [["offset", [4]]],
            "children": [
                {
                    "name": "blocks",
                    "cls": "ModuleList",
                    "children": [
                        {
                            "graph": "Block",
                            "params": [["gain", [4]]],
                            "children": [{"name": "fn"} | FOUR],
                        }
                    ],
                },
                {"name": "lists", "cls": "ParameterList", "graph": None, "params": [["0", [4]]]},
                {
                    "name": "parts",
                    "cls": "ModuleDict",
                    "children": [{"name": "last", "cls": "Hardtanh", "min_val": -100.0,
                                  "max_val": 100}],
                },
            ],
        },
        tensor("float32", None, 4),
        graphs={"Block": block, "Net": net},
        frozen=["blocks.0.gain", "lists.0", "blocks.0.fn.weight"],
    )  # fmt: skip


def two_modes() -> Json:
    train = [
        {"in": "x", "dtype": "float32", "shape": [None, [1, 4]]},
        {"fn": "torch.nn.functional.dropout", "args": ["%0"], "kwargs": {"p": 0.5}},
        {"out": "%1"},
    ]
    evaluation = [{"in": "x"}, {"fn": "operator.neg", "args": ["%0"]}, {"out": "%1"}]
    user = {"cls": "Drop", "graph": "Eval"}
    return tree(
        {
            "cls": "Sequential",
            "children": [user | {"train_graph": "Train"}, user | {"train_graph": None}, user],
        },
        tensor("float32", None, 4),
        graphs={"Eval": evaluation, "Train": train},
    )


# Function, method or attribute; arguments; keywords if there are some. "%0" is the input, "%3" the
# third call, wherever it stands.
Call = tuple[Any, ...]

FUNCTION_CALLS: list[Call] = [
    ("torch.abs", X),
    ("torch.clamp", X, -1, 2),
    ("torch.cumsum", X, 1),
    ("torch.flip", X, [0, 1]),
    ("torch.roll", X, 3),
    ("torch.maximum", X, "%1"),
    ("torch.where", "%15", X, "%1"),
    ("torch.cat", [X, "%1"], -1),
    ("torch.stack", {"tuple": [X, "%1"]}),
    ("torch.sum", X, {"dim": 1, "keepdim": True}),
    ("torch.meshgrid", "%31", "%31", {"indexing": "ij"}),
    ("torch.tensordot", X, X, {"dims": 2}),
    ("torch.full_like", X, {"fill_value": 7}),
    ("torch.tril", X),
    ("operator.gt", X, 0),
    ("operator.floordiv", X, 2),
    ("operator.mod", X, 3),
    ("operator.pow", X, 2),
    ("operator.truediv", X, 4),
    ("operator.matmul", X, "%21"),
    ("torch.transpose", X, 0, 1),
    ("operator.getitem", X, {"tuple": [{"slice": [None, None, None]}, None, -1]}),
    ("torch.nn.functional.relu6", "%18"),
    ("torch.nn.functional.leaky_relu", X, 0.5),
    ("torch.nn.functional.pad", X, {"tuple": [1, 0, 0, 1]}, {"mode": "constant", "value": 9.0}),
    ("torch.nn.functional.avg_pool1d", X, {"kernel_size": 2}),
    ("torch.nn.functional.interpolate", "%29", {"scale_factor": 2.0, "mode": "nearest"}),
    ("torch.nn.functional.unfold", "%29", 2),
    ("torch.unsqueeze", X, 0),
    ("math.floor", 2.75),
    ("operator.getitem", X, 0),
]

METHOD_CALLS: list[Call] = [
    ("clone", X),
    ("view", "%1", 8),
    ("add_", "%2", 1),  # changes node 1 as well
    ("mul_", "%2", 2),
    ("t", X),
    ("mean", X, {"dim": -1}),
    ("argmax", X, 1),
    ("topk", X, 2),
    ("sort", X, {"dim": 0, "descending": True}),
    ("masked_fill", X, "%11", {"float": "-inf"}),
    ("gt", X, 2),
    ("clamp", "%10", {"min": -8}),
    ("size", X),
    ("dim", X),
    ("expand", "%16", 3, 2, 4),
    ("unsqueeze", X, 0),
    ("repeat", X, 2, 1),
    ("chunk", X, 2, 1),
    ("unbind", X),
    ("new_zeros", X, {"tuple": [2]}),
    ("bernoulli_", "%20", 1.0),
    ("long", X),
    *[("to", X, {"dtype": {"dtype": dtype}}) for dtype in sorted(DTYPES - {"uint8"})],
    ("shape", X),
    ("ndim", X),
    ("mT", X),
]

ATEN_CALLS: list[Call] = [
    ("aten.add.Tensor", X, X, {"alpha": 3}),
    ("aten.mul.Scalar", X, -2),
    ("aten.slice.Tensor", X, 1, 1, (1 << 31) - 1, 2),
    ("aten.select.int", X, 0, 1),
    ("aten.sum.dim_IntList", X, [0], True),
    ("aten.permute", X, [1, 0]),
    ("aten.mm", X, "%6"),
    ("device", X),
    ("aten.arange", 4, {"device": "%8"}),
    ("aten.full", [2, 2], 1.5, {"device": "%8", "dtype": {"dtype": "float64"}}),
    ("aten.scalar_tensor", 3, {"device": "%8", "dtype": {"dtype": "int64"}}),
    ("aten.index.Tensor", X, [None, "%9"]),
    ("aten._to_copy", X, {"dtype": {"dtype": "int32"}}),
    ("aten.constant_pad_nd", X, [1, 1], 0.5),
    ("aten.unsqueeze", X, 0),
    ("aten.max_pool2d", "%15", [2, 2], [1, 1]),
    ("aten.convolution", "%15", "%18", None, [1], [1], [1], False, [0], 1),
    ("aten.view", X, [4, 2, 1]),
    ("aten.split_with_sizes", X, [1, 3], 1),
    ("aten.where.self", "%21", X, "%2"),
    ("aten.ge.Scalar", X, 0),
    ("aten.einsum", "ij,kj->ik", [X, X]),
    ("aten.sym_size.int", X, 1),
]


def calls(listed: list[Call]) -> Json:
    """A graph of calls on one input, each of which is an output as well."""
    order: dict[int, int] = {}
    nodes: list[Json] = [{"in": "x"}]

    def put(number: int) -> int:
        """Index of the node of call `number` (from 1), which is put behind those it needs."""
        if number not in order:
            name, *args = listed[number - 1]
            kwargs = args.pop() if args and is_kwargs(args[-1]) else None
            args, kwargs = moved(args), moved(kwargs)
            kind = (
                "fn"
                if "." in name
                else "get"
                if name in ("shape", "ndim", "mT", "device")
                else "meth"
            )
            nodes.append({kind: name, "args": args} | ({"kwargs": kwargs} if kwargs else {}))
            order[number] = len(nodes) - 1
        return order[number]

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        if isinstance(value, dict):
            return {key: moved(item) for key, item in value.items()}
        if isinstance(value, str) and value[:1] == "%" and value != X:
            return f"%{put(int(value[1:]))}"
        return value

    for number in range(1, len(listed) + 1):
        put(number)
    outputs = [f"%{i}" for i, node in enumerate(nodes) if i and node.get("get") != "device"]
    nodes.append({"out": outputs})
    return tree({"graph": "Net"}, tensor("float32", 2, 4), graphs={"Net": nodes})


def is_kwargs(value: Any) -> bool:
    return isinstance(value, dict) and not value.keys() & {"tuple", "slice", "float", "dict"}


def transformer(kind: str, *more: Json) -> Json:
    repeated = {"cls": f"Transformer{kind}Layer"}
    stack = {"name": "layers", "cls": "ModuleList", "children": [ENCODER_LAYER | repeated] * 2}
    return {"cls": f"Transformer{kind}", "children": [stack, *more]}


def composites() -> Json:
    norm = {"name": "norm"} | NORMS
    net = [
        {"in": "x"},
        {"mod": "encoder", "args": ["%0"]},
        {"mod": "decoder", "args": ["%0", "%1"]},
        {"mod": "both", "args": ["%1", "%2"]},
        {"attr": "encoder.layers.0.self_attn.out_proj.weight"},
        {"attr": "encoder.layers.1.norm2.weight"},
        {"attr": "decoder.layers.0.multihead_attn.in_proj_weight"},
        {"attr": "attention.bias_k"},
        {"mod": "attention", "args": ["%3", "%3", "%3"], "kwargs": {"need_weights": False}},
        {"mod": "encoder.layers.0.linear1", "args": ["%0"]},
        {"out": ["%4", "%5", "%6", "%7", "%8", "%9"]},
    ]
    attention = {"cls": "MultiheadAttention", "embed_dim": 4, "num_heads": 1, "add_bias_kv": True}
    return tree(
        {
            "graph": "Net",
            "children": [
                {"name": "encoder"} | transformer("Encoder", norm),
                {"name": "decoder"} | transformer("Decoder"),
                {
                    "name": "both",
                    "cls": "Transformer",
                    "d_model": 4,
                    "nhead": 2,
                    "children": [
                        {"name": "encoder"} | transformer("Encoder", norm | {"cls": "RMSNorm"}),
                        {"name": "decoder"} | transformer("Decoder", norm),
                    ],
                },
                {"name": "attention"} | attention,
            ],
        },
        tensor("float32", None, 3, 4),
        graphs={"Net": net},
    )


def recurrent() -> Json:
    net: list[Json] = [{"in": "x"}]
    sizes = {"input_size": 2, "hidden_size": 3}
    children = []
    for cls, more in (
        ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
        ("GRU", {"bias": False}),
        ("LSTM", {"bidirectional": True, "proj_size": 1, "batch_first": True}),
    ):
        children.append({"name": cls, "cls": cls} | sizes | more)
        net.append({"mod": cls, "args": ["%0"]})
    net += [
        {"attr": "LSTM.weight_hr_l0_reverse"},
        {"attr": "RNN.bias_hh_l1"},
        {"fn": "operator.getitem", "args": ["%0", 0]},
    ]
    for cls in ("RNNCell", "GRUCell", "LSTMCell"):
        children.append({"name": cls, "cls": cls} | sizes)
        net.append({"mod": cls, "args": ["%6"]})
    outputs = [f"%{i}" for i in range(1, len(net))]
    inputs = tensor("float32", None, None, 2)
    return tree(
        {"graph": "Net", "children": children}, inputs, graphs={"Net": [*net, {"out": outputs}]}
    )


def shared() -> Json:
    again = [{"in": "x"}, {"mod": "f", "args": [X]}, {"mod": "f", "args": ["%1"]}, {"out": "%2"}]
    return tree(
        {
            "cls": "Sequential",
            "children": [
                {"graph": "Again", "children": [{"name": "f"} | FOUR]},
                {"cls": "Identity"},
                {"same": "0"},
                {"name": "inner", "same": "0.f"},
            ],
        },
        tensor("float32", None, 4),
        graphs={"Again": again},
        frozen=["0.f.bias"],
    )


def tied() -> Json:
    return tree(
        {
            "cls": "Sequential",
            "children": [
                {"name": "words", "cls": "Embedding", "num_embeddings": 3, "embedding_dim": 2,
                 "padding_idx": 0},
                {"name": "head", "cls": "Linear", "in_features": 2, "out_features": 3,
                 "bias": False},
            ],
        },
        tensor("int64", None, None) | {"sizes": [2, 5]},
    )  # fmt: skip


NEEDED = {"num_heads": 1, "nhead": 1, "num_groups": 1, "groups": 1}


def plain_value(name: str, domain: Argument) -> Any:
    if name in NEEDED:
        return NEEDED[name]
    return 0.5 if domain.kind == "x" else -1 if domain.low < -1 else 2


def every_layer() -> Json:
    """Every class of 8.3 that is no composite, with the arguments that it needs."""
    children = []
    for cls, arguments in LAYERS.items():
        if cls not in COMPOSITES:
            given = {
                n: plain_value(n, domain) for n, domain in arguments.items() if domain.required
            }
            if cls.startswith("Fractional"):
                given["output_size"] = 1
            if cls == "Unflatten":
                given = {"dim": 1, "unflattened_size": [2, -1]}
            if cls.startswith("Transformer"):
                given["dim_feedforward"] = 1
            children.append({"name": cls, "cls": cls} | given)
    graph = [{"in": "x"}, {"out": X}]
    inputs = tensor("float32", None)
    return tree({"graph": "Net", "children": children}, inputs, graphs={"Net": graph})


def boundaries() -> Json:
    """The largest and longest of what is allowed, in modules that are there and not called."""
    most, longest = 1 << 31, "n" * 128
    window = {"cls": "MaxPool3d", "kernel_size": [1, 65536, 1], "padding": 65536, "stride": None}
    net = [
        {"in": longest},
        {"in": "only", "only": {"dict": [["k./ -" + "k" * 123, {"tuple": []}]]}},
        {"in": "default", "default": [[], {"float": "nan"}, {"slice": [None, -most, most]}]},
        {"fn": "torch.tile", "args": [X, [4096, -4096.75, 0, True]]},
        {"fn": "torch.einsum", "args": ["a" * 128 + "->" + "b" * 64, X]},
        {"fn": "torch.nn.functional.pad", "args": [X, [1 << 24, 0.5]], "kwargs": {"value": 1}},
        {"meth": "new_ones", "args": [X, 1 << 24]},
        {"get": "device", "args": [X]},
        {"fn": "aten.full", "args": [[1 << 24], most], "kwargs": {"device": "%7"}},
        {"fn": "operator.getitem", "args": [X, "k" * 128]},
        {"fn": "operator.getitem", "args": [X, "..."]},
        {"out": {"dict": []}},
    ]
    typed = [
        {"in": "x", "dtype": "uint8", "shape": [[0, most], [most, most], None, 0, most]},
        {"out": None},
    ]
    return tree(
        {
            "graph": "Typed",
            "params": [["w-" + "1" * 126, [1] * 16], ["0", [0, most, 1 << 27]]],
            "buffers": [["A_b", []]],
            "children": [
                {"name": longest, "cls": longest, "graph": "Net"},
                {"name": "1" * 128, "cls": "Module", "graph": None},
                window,
                {"cls": "Softmax", "dim": -16},
                {"cls": "GLU", "dim": 15},
                {"cls": "ZeroPad3d", "padding": [-65536, 65536, 0, 0, 0, 0]},
                {"cls": "AdaptiveAvgPool2d", "output_size": [None, 7]},
                {"cls": "Upsample", "size": 65536, "align_corners": False, "mode": "trilinear"},
                {"cls": "Upsample", "scale_factor": [1, 2.5, most], "mode": "nearest-exact"},
                {"cls": "LayerNorm", "normalized_shape": [1] * 16, "elementwise_affine": False},
                {"cls": "BatchNorm1d", "num_features": 1, "momentum": None, "affine": False,
                 "track_running_stats": False, "eps": 1},
                {"cls": "Threshold", "threshold": -most, "value": 1e300},
                {"cls": "Conv1d", "in_channels": 1, "out_channels": 1, "kernel_size": 1,
                 "padding": "same", "padding_mode": "circular", "bias": False},
                {"cls": "Unflatten", "dim": 0, "unflattened_size": [-1]},
            ],
        },
        graphs={"Typed": typed, "Net": net},
        nonpersistent=["A_b"],
        inputs=[tensor("uint8", None, most, 0, 0, most) | {"sizes": [0, most, 0, 0, most]}],
        frozen=["0"],
    )  # fmt: skip


def noted(value: Any) -> Any:
    """The same with a field that readers ignore in every object of 8.1, 8.2 and 8.4."""
    manifest = dict(value)
    note = {"?note": {"any": ["thing", 1 << 70]}}

    def module(node: Json) -> Json:
        below = (
            {"children": [module(child) for child in node["children"]]}
            if "children" in node
            else {}
        )
        return node | below | note

    manifest["tree"] = module(manifest["tree"])
    manifest["inputs"] = [item | note for item in manifest["inputs"]]
    manifest["graphs"] = {
        name: [node | note for node in nodes] for name, nodes in manifest["graphs"].items()
    }
    return manifest | note


# ------------------------------------------------------------------- refused when it is built

TORCH_ARGUMENTS = "a class of PyTorch decides which of its arguments go together"
TORCH_NAMES = "which names a module of PyTorch gives another meaning is known to PyTorch alone"
TORCH_RUN = "a trial run (8.7) needs the operators of PyTorch"
TORCH_CODE = "code is imported by readers that can run it"


def refused_modules() -> dict[str, ModuleFile]:
    """Files that open, and of which a reader that is asked for the module makes none."""
    by_code = valid_modules()["manifest-builder"].data
    files = {
        "no-manifest": ModuleFile(dense(b"\0" + floats(1), [1]), error="no-manifest"),
        "manifest-trust": ModuleFile(by_code, error="manifest-trust"),
        "manifest-trust-other-code": ModuleFile(
            by_code, trust=("pkg.nets", "pkg:nets.linear", "pkg.nets:linea"), error="manifest-trust"
        ),
    }
    run = {"error": "manifest-run", "package_alone": TORCH_CODE}
    for name, builder in (
        ("builder-not-there", "pemn_no_such_package.nets:net"),
        ("builder-fails", "operator:add"),
        ("builder-returns-no-module", "builtins:dict"),
    ):
        manifest = {"format": "builder/1", "builder": builder}
        data = pack({"sections": [["manifest", 1]]}, frame(canonical(manifest)))
        files[f"manifest-run-{name}"] = ModuleFile(data, trust=(builder,), **run)
    conv = {"cls": "Conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 1, "groups": 2}
    for name, node in {
        "groups": conv,
        "dropout-above-1": {"cls": "Dropout", "p": 2},
        "padding-index": {"cls": "Embedding", "num_embeddings": 3, "embedding_dim": 4,
                          "padding_idx": 3},
        "group-norm": {"cls": "GroupNorm", "num_groups": 2, "num_channels": 3},
        "heads": {"cls": "MultiheadAttention", "embed_dim": 4, "num_heads": 3},
    }.items():  # fmt: skip
        files[f"manifest-argument-{name}"] = manifest_alone(
            tree(node), "manifest-argument", TORCH_ARGUMENTS
        )
    graph = {"Net": [{"in": "x"}, {"out": X}]}
    for name in ("forward", "training", "_modules", "state_dict"):
        child = {"graph": "Net", "children": [{"name": name} | LINEAR]}
        files[f"manifest-name-module-{name.strip('_')}"] = manifest_alone(
            tree(child, graphs=graph), "manifest-name", TORCH_NAMES
        )
    for key in ("params", "buffers"):
        node = {"graph": "Net", key: [["forward", []]]}
        files[f"manifest-name-{key}-forward"] = manifest_alone(
            tree(node, graphs=graph), "manifest-name", TORCH_NAMES
        )
    batch_norm = {"cls": "BatchNorm1d", "num_features": 1}
    files["manifest-name-frozen-buffer"] = manifest_alone(
        tree(batch_norm, frozen=["running_mean"]), "manifest-name"
    )
    for name, layer in (("weight", {"cls": "ReLU"}), ("bias", LINEAR | {"bias": False})):
        nodes = [{"in": "x"}, {"attr": f"f.{name}"}, {"out": X}]
        node = {"graph": "Net", "children": [{"name": "f"} | layer]}
        files[f"manifest-name-layer-without-{name}"] = manifest_alone(
            tree(node, graphs={"Net": nodes}), "manifest-name"
        )
    return files | other_tensors() | other_runs()


def manifest_alone(manifest: Json, error: str, why: str | None = None) -> ModuleFile:
    data = pack({"sections": [["manifest", 1]]}, frame(canonical(manifest)))
    return ModuleFile(data, error=error, package_alone=why)


def other_tensors() -> dict[str, ModuleFile]:
    twice = {"cls": "Linear", "in_features": 1, "out_features": 1}
    pair = tree({"cls": "Sequential", "children": [twice, {"same": "0"}]}, tensor("float32", 1))
    buffer = tree(
        {"graph": "Net", "buffers": [["a", [2]]]},
        graphs={"Net": [{"in": "x"}, {"out": X}]},
        nonpersistent=["a"],
    )
    files = {
        "missing": file_of(tree(LINEAR), changed={"bias": None}),
        "none": pack({"sections": [["manifest", 1]]}, frame(canonical(tree(LINEAR)))),
        "extra": file_of(tree(LINEAR), changed={"extra": [1]}),
        "shape": file_of(tree(LINEAR), changed={"weight": [2, 1]}),
        "dimension": file_of(tree(LINEAR), changed={"bias": [1, 1]}),
        "shared-missing": file_of(pair, changed={"1.weight": None}),
        "shared-not-an-alias": file_of(pair, changed={"1.bias": [1]}),
        "shared-alias-of-another": file_of(
            tree({"cls": "Sequential", "children": [{"cls": "Bilinear", "in1_features": 1,
                 "in2_features": 1, "out_features": 1}, {"same": "0"}]}),
            changed={"0.weight": [1, 1, 1], "1.weight": "0.bias"},
        ),
        "nonpersistent-missing": file_of(buffer, changed={"a": None}),
        "of-another-module": file_of(
            tree({"cls": "Sequential", "children": [{"cls": "ReLU"}]}), changed={"0.weight": [1]}
        ),
    }  # fmt: skip
    return {
        f"manifest-tensor-{name}": ModuleFile(data, error="manifest-tensor")
        for name, data in files.items()
    }


def other_runs() -> dict[str, ModuleFile]:
    def net(*nodes: Json) -> Json:
        graph = [{"in": "x"}, *nodes, {"out": f"%{len(nodes)}"}]
        return tree({"graph": "Net"}, tensor("float32", None, 4), graphs={"Net": graph})

    cases = {
        "shape": tree(LINEAR, tensor("float32", None, 3)),
        "dtype": tree(
            {"cls": "Embedding", "num_embeddings": 3, "embedding_dim": 2}, tensor("float32", None)
        ),
        "no-inputs": tree(LINEAR),
        "two-inputs": tree(LINEAR, *[tensor("float32", None, 2)] * 2),
        "sizes": tree(FOUR, tensor("float32", None, None) | {"sizes": [2, 3]}),
        "arguments": net({"fn": "torch.relu", "args": [X, X]}),
        "keyword": net({"fn": "torch.relu", "args": [X], "kwargs": {"dim": 1}}),
        "method-of-a-shape": net({"get": "shape", "args": [X]}, {"meth": "abs", "args": ["%1"]}),
        "attribute-of-a-shape": net({"get": "shape", "args": [X]}, {"get": "T", "args": ["%1"]}),
        "python-operator-on-strings": net({"fn": "operator.add", "args": ["area", "area"]}),
        "python-operator-on-large-integers": net({"fn": "operator.pow", "args": [1 << 31, 3]}),
        "other-value-than-only": tree(
            {"graph": "Net", "children": [{"name": "f", "graph": "Inner"}]},
            tensor("float32", None, 4),
            graphs={
                "Net": [{"in": "x"}, {"mod": "f", "args": [X, 2]}, {"out": "%1"}],
                "Inner": [{"in": "x"}, {"in": "y", "only": 1}, {"out": X}],
            },
        ),
        "other-shape-than-declared": tree(
            {"graph": "Net"},
            tensor("float32", None, 4),
            graphs={"Net": [{"in": "x", "dtype": "float32", "shape": [[3, 9], 4]}, {"out": X}]},
        ),
    }
    files = {
        f"manifest-run-{name}": ModuleFile(
            file_of(manifest), error="manifest-run", package_alone=TORCH_RUN
        )
        for name, manifest in cases.items()
    }
    doubled = [{"meth": "repeat", "args": [f"%{i}", 1 << 12, 1 << 12]} for i in range(2)]
    files["limit-trial-run"] = ModuleFile(
        file_of(net(*doubled)), error="limit", package_alone=TORCH_RUN
    )
    return files


# ---------------------------------------------------------------------------------- the index


def describe(file: ModuleFile, classes: dict[str, str]) -> Json:
    """What the index says of a valid one beside its tensors."""
    entry: Json = {"modules": classes}
    if file.trust:
        return entry | {"trust": list(file.trust)}
    if file.calls:
        entry["calls"] = []
        module = pemncodec.decode(io.BytesIO(file.data))
        for inputs in file.calls:
            with torch.no_grad():
                outputs = module(*[value.clone() for value in inputs])
            given, made = [list(map(listed, flat(values))) for values in (inputs, outputs)]
            entry["calls"].append({"inputs": given, "outputs": made})
    return entry


def flat(value: Any) -> Iterator[Any]:
    """Tensors and numbers of an output, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    elif value is not None:
        yield value


def listed(value: Any) -> Json:
    if not isinstance(value, torch.Tensor):
        return {"number": value}
    items = torch.view_as_real(value) if value.is_complex() else value
    numbers = [float(item) for item in items.flatten().tolist()]
    exact = [math.isinf(n) or (n * 1024 % 1 == 0 and abs(n) < 1 << 20) for n in numbers]
    assert all(exact), numbers
    dtype = str(value.dtype).removeprefix("torch.")
    values = [str(n) if math.isinf(n) else int(n) if n % 1 == 0 else n for n in numbers]
    return {"dtype": dtype, "shape": list(value.shape), "values": values}
