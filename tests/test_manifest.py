"""Hostile and damaged manifests: each is refused for the reason that it is wrong."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pemncodec.architecture.arguments import REQUIRED
from pemncodec.architecture.composites import INNER_LAYERS
from pemncodec.architecture.layers import check_arguments
from pemncodec.architecture.manifest import (
    LEAF_CLASSES,
    decode_manifest,
    encode_manifest,
    validate_manifest,
)
from pemncodec.architecture.rebuild import build_module, check_run
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


@pytest.mark.parametrize(
    "manifest",
    [tree({"cls": "Dropout", "p": math.inf}), call("torch.relu", X, math.nan)],
    ids=["layer", "graph"],
)
def test_numbers_that_no_file_holds(manifest: Manifest) -> None:
    """What files hold is attacked by `spec/vectors`, see `spec/manifest_attacks.py`."""
    with pytest.raises(ManifestError) as caught:
        validate_manifest(manifest, Limits())
    assert caught.value.code == "manifest-argument"


@pytest.mark.parametrize(
    "manifest",
    [
        *[
            graph({"out": X}, children=[{"name": name, **LINEAR}])
            for name in ("_parameters", "_pemn_class")
        ],
        graph({"out": X}, buffers=[["pemn_programs", []]]),
    ],
)
def test_names_of_the_rebuilt_classes(manifest: Manifest) -> None:
    validate_manifest(manifest, Limits())
    with pytest.raises(ManifestError) as caught:
        build_module(manifest)
    assert caught.value.code == "manifest-name"


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


def test_what_fills_a_tensor_is_no_size() -> None:
    def check(*arguments: Any) -> None:
        nodes = [{"in": "x"}, {"fn": "aten.new_full", "args": ["%0", *arguments]}, {"out": "%1"}]
        manifest = {"format": "tree/1", "graphs": {"G": nodes}, "tree": {"graph": "G"}}
        validate_manifest(manifest, Limits())

    check([2, 2], 1 << 30)
    with pytest.raises(ManifestError) as caught:
        check([2, 1 << 30], 0)
    assert caught.value.code == "manifest-argument"


@pytest.mark.parametrize("name", INNER_LAYERS)
def test_inner_layers_are_those_that_pytorch_makes(name: str) -> None:
    made = dict(getattr(nn, name)(4, 2).named_children())
    assert made.keys() == INNER_LAYERS[name].keys()
    for child, class_name in INNER_LAYERS[name].items():
        assert isinstance(made[child], getattr(nn, class_name))


def test_one_number_stands_for_equal_ones_where_pytorch_keeps_an_array() -> None:
    stride = LEAF_CLASSES["Conv2d"]["stride"]
    assert stride.compact([2, 2]) == 2
    assert stride.compact([2, 1]) == [2, 1]
    assert stride.compact([2]) == [2]
    assert stride.compact(2) == 2
    assert LEAF_CLASSES["AvgPool1d"]["stride"].compact([2]) == 2
    assert LEAF_CLASSES["AvgPool2d"]["stride"].compact([2, 2]) == [2, 2]
    assert LEAF_CLASSES["Embedding"]["padding_idx"].compact([]) == []


@pytest.mark.parametrize("name", LEAF_CLASSES)
def test_defaults_are_in_their_own_domain(name: str) -> None:
    for argument in LEAF_CLASSES[name].values():
        assert argument.default is REQUIRED or argument.accepts(argument.default)


def test_a_layer_has_at_most_2_to_the_50_elements() -> None:
    check_arguments("Linear", {"in_features": 1 << 25, "out_features": 1 << 25}, "layer")
    with pytest.raises(ManifestError, match=r"a Linear of more than 2\^50 elements"):
        check_arguments("Linear", {"in_features": 1 << 25, "out_features": (1 << 25) + 1}, "layer")
