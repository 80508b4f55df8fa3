"""Files with two faults each, which pin the order of checks (section 10.1).

Each name says what is wrong, first what a reader must report.
"""

from __future__ import annotations

from typing import Any

from manifest_attacks import CONV, LAYERS, LINEAR, Json, X, doubling_calls, encoder, row, tree
from manifest_vectors import TORCH_RUN, ModuleFile, tensor
from manifest_vectors import file_of as module_file
from vector_parts import DENSE_1, TWO, canonical, dense, frame, pack

ONE = {"name": ["b"], "shape": [[2]]}


def front() -> dict[str, tuple[str, bytes]]:
    whole = dense(TWO, [2])
    long_varint = b"\x80\0\0\0\0\0"
    return {
        "signature-cut": ("not-pemn", b"PK\3\4"),
        "cut-version": ("truncated", pack({}, version=(1, 0))[:20]),
        "version-limit": ("version", pack({}, version=(1, 0), header_size=1 << 31)),
        "limit-cut": ("limit", pack({}, header_size=1 << 31)[:40]),
        "limit-checksum": ("limit", pack({}, table_size=1 << 31, crc=1)),
        "cut-checksum": ("truncated", pack({}, crc=1)[:-1]),
        "checksum-zstd": ("checksum", pack(b"{}", frame=b"{}", crc=1)),
        "zstd-table": ("zstd", pack(b"{}", frame=b"{}", table=long_varint)),
        "table-trailing": ("section", pack({}, table=long_varint) + b"\0"),
        "table-json": ("section", pack(b"{", table=long_varint)),
        "section-missing-json": ("truncated", pack(b"{", TWO)[:-1]),
        "trailing-json": ("trailing", pack(b"{") + b"\0"),
        "trailing-section-checksum": ("trailing", whole[:-1] + b"\xbf\0"),
        "depth-json": ("limit", pack(b'{"?":' + b"[" * 256 + b"]" * 257)),
        "depth-duplicate": ("limit", pack(b'{"?":1,"?":' + b"[" * 256 + b"]" * 256 + b"}")),
    }


def header() -> dict[str, tuple[str, bytes]]:
    def one(*sections: bytes, **changed: Any) -> bytes:
        return pack({"tensors": ONE} | DENSE_1 | changed, *(sections or (TWO,)))

    wide = ONE | {"shape": [[1] * 17]}
    rows = b"[" + b"0," * (1 << 20) + b"0]"
    large = [[1 << 33]]
    cut = TWO[:-1]
    broken = bytearray(one(metadata=[]))
    broken[-1] ^= 1
    huge = bytearray(one(TWO, tensors=ONE | {"shape": large}))
    huge[-1] ^= 1
    unknown_coder = bytearray(one(b"\7" + TWO[1:]))
    unknown_coder[-1] ^= 1
    return {
        "unknown-field-table": ("unknown-field", one(later=1, tensors=[])),
        "unknown-column-table": ("unknown-field", one(tensors=ONE | {"x": 1}, dense=[])),
        "unknown-column-value": ("unknown-field", one(tensors=ONE | {"x": [1], "dtype": [1]})),
        "unknown-kind-value": (
            "unknown-field",
            one(tensors=ONE | {"dtype": 1}, sections=[["x", 0]]),
        ),
        "unknown-kind-dimensions": ("unknown-field", one(tensors=wide, sections=[["x", 1]])),
        "unknown-column-rows": (
            "unknown-field",
            pack(b'{"dense":{"x":[]},"alias":{"target":' + rows + b"}}"),
        ),
        "unknown-field-decoded-bytes": ("unknown-field", one(tensors=ONE | {"shape": large}, x=1)),
        "rows-value": ("limit", pack(b'{"tensors":{"name":' + rows + b"}}")),
        "rows-columns": (
            "limit",
            pack(b'{"constant":{"value":' + rows + b'},"tensors":{"name":{}}}'),
        ),
        "dimensions-value": ("limit", one(tensors=wide | {"name": [1]})),
        "dimensions-size": ("limit", one(tensors=ONE | {"shape": [[-1] * 17]})),
        "dimensions-of-an-alias": (
            "limit",
            pack({"tensors": {"name": ["a"], "kind": ["alias"], "shape": [[1] * 17]}}),
        ),
        "dimensions-column-length": ("limit", one(tensors=wide | {"name": ["a", "b"]})),
        "dimensions-metadata": ("limit", one(tensors=wide, metadata=[])),
        "value-decoded-bytes": ("header", one(tensors=ONE | {"shape": large, "dtype": ["x"]})),
        "name-twice-decoded-bytes": (
            "header",
            one(tensors={"name": ["a", "a"], "shape": large * 2}, dense={"section": [0, 0]}),
        ),
        "section-decoded-bytes": (
            "header",
            one(tensors=ONE | {"shape": large}, dense={"section": [1]}),
        ),
        "metadata-decoded-bytes": ("header", one(tensors=ONE | {"shape": large}, metadata=[])),
        "inference-only-decoded-bytes": (
            "header",
            one(tensors=ONE | {"shape": large}, inference_only=False),
        ),
        "metadata-section-checksum": ("header", bytes(broken)),
        "decoded-bytes-section-checksum": ("limit", bytes(huge)),
        "section-checksum-coder": ("checksum", bytes(unknown_coder)),
        "section-cut-length": ("section", one(cut)),
    }


def manifests() -> dict[str, tuple[str, Any]]:
    """Manifests, or their JSON where the order of keys counts."""
    out = {"out": X}
    linear = tree(LINEAR)
    item = {"dtype": "int8", "shape": []}

    def inputs(*items: Any) -> Json:
        return linear | {"inputs": list(items)}

    def node(fault: Any) -> Json:
        return tree({"graph": "Net"}, graphs={"Net": [{"in": "x"}, fault, out]})

    def call(**fields: Any) -> Json:
        return node({"fn": "torch.relu", "args": [X]} | fields)

    def user(*nodes: Any, **fields: Any) -> Json:
        return tree({"graph": "Net"} | fields, graphs={"Net": [{"in": "x"}, *nodes, out]})

    listed = {"name": "list", "cls": "ModuleList"}
    many = [{"cls": "Tanh"}] * (1 << 16)
    bad_op = {"fn": "os.system"}
    deep = doubling_calls(40)
    return {
        "format-class": ("manifest-schema", tree({"cls": "x"}) | {"format": "tree/2"}),
        "unknown-field-input": ("manifest-schema", inputs({"dtype": "x", "shape": []}) | {"x": 1}),
        "training-input": (
            "manifest-schema",
            inputs({"dtype": "x", "shape": []}) | {"training": 0},
        ),
        "input-frozen": ("manifest-argument", inputs({"dtype": "x", "shape": []}) | {"frozen": {}}),
        "input-next-input": ("manifest-argument", inputs({"dtype": "x", "shape": []}, {})),
        "input-field-dtype": ("manifest-schema", inputs({"dtype": "x", "shape": [], "y": 0})),
        "input-dtype-shape": ("manifest-argument", inputs({"dtype": "x", "shape": 0})),
        "input-shape-sizes": ("manifest-argument", inputs(item | {"shape": [-1], "sizes": 0})),
        "input-dimensions-size": ("limit", inputs(item | {"shape": [-1] * 17})),
        "input-size-dimensions-of-sizes": (
            "manifest-argument",
            inputs(item | {"shape": [-1], "sizes": [1] * 17}),
        ),
        "frozen-name-twice": ("manifest-name", linear | {"frozen": ["a", "a", "__a"]}),
        "frozen-nonpersistent": (
            "manifest-schema",
            linear | {"frozen": ["a", "a"], "nonpersistent": [""]},
        ),
        "frozen-graphs": ("manifest-name", linear | {"frozen": [""], "graphs": []}),
        "nonpersistent-graph": ("manifest-name", node(bad_op) | {"nonpersistent": [""]}),
        "nodes-name": ("limit", linear | {"graphs": {"": [0] * ((1 << 18) + 1)}}),
        "nodes-graph": ("limit", linear | {"graphs": {"A": 0, "B": [0] * ((1 << 18) + 1)}}),
        "graph-name-nodes": ("manifest-name", linear | {"graphs": {"": {}}}),
        "graphs-by-name": (
            "manifest-op",
            '{"format":"tree/1","tree":0,"graphs":{"B":[{"attr":""},{"out":0}],'
            '"A":[{"fn":"x"},{"out":0}]}}',
        ),
        "graph-tree": ("manifest-op", node(bad_op) | {"tree": []}),
        "node-next-node": (
            "manifest-op",
            tree({"graph": "N"}, graphs={"N": [bad_op, {"attr": ""}, {"out": 0}]}),
        ),
        "node-field-target": ("manifest-schema", node(bad_op | {"x": 0})),
        "node-place-target": (
            "manifest-schema",
            tree({"graph": "N"}, graphs={"N": [{"out": 0}, bad_op]}),
        ),
        "target-args": ("manifest-op", node(bad_op | {"args": 0})),
        "path-args": ("manifest-name", node({"mod": "", "args": 0})),
        "args-kwargs": ("manifest-schema", call(args=0, kwargs={"x": 0})),
        "kwargs-keyword": ("manifest-schema", node({"meth": "abs", "args": [0], "kwargs": 0})),
        "keyword-value": ("manifest-argument", call(args=["%9"], kwargs={"x": 0})),
        "operand-value": ("manifest-argument", node({"meth": "abs", "args": [0, "%9"]})),
        "device-value": ("manifest-argument", node({"fn": "aten.zeros", "args": ["%9"]})),
        "equation-value": ("manifest-argument", node({"fn": "torch.einsum", "args": [0, "%9"]})),
        "value-reference": ("manifest-argument", call(args=["eval", "%9"])),
        "reference-value": ("manifest-schema", call(args=["%9", "eval"])),
        "args-value-kwargs-reference": (
            "manifest-argument",
            call(args=["eval"], kwargs={"dim": "%9"}),
        ),
        "kwargs-by-keyword": (
            "manifest-argument",
            '{"format":"tree/1","tree":{"graph":"N"},"graphs":{"N":[{"fn":"torch.sum","kwargs":'
            '{"input":"%9","dim":"eval"}},{"out":"%0"}]}}',
        ),
        "reference-growth": ("manifest-schema", call(fn="torch.tile", args=[X, 1 << 25, "%9"])),
        "input-name-defaults": ("manifest-name", node({"in": "", "default": 0, "only": 0})),
        "input-defaults-value": (
            "manifest-schema",
            node({"in": "y", "default": "eval", "only": 0}),
        ),
        "input-default-tensor": (
            "manifest-argument",
            node({"in": "y", "default": "eval", "dtype": "int8", "shape": []}),
        ),
        "graph-input-dtype-shape": (
            "manifest-argument",
            node({"in": "y", "dtype": "x", "shape": 0}),
        ),
        "graph-input-dimensions-size": (
            "limit",
            node({"in": "y", "dtype": "int8", "shape": [-1] * 17}),
        ),
        "root-name-module": ("manifest-name", tree({"name": ""})),
        "child-name-module": ("manifest-name", row({"name": ""})),
        "child-twice-module": ("manifest-name", row({"name": "1"} | LINEAR, 0)),
        "modules-module": ("limit", row(*many, 0)),
        "module-modules": ("manifest-schema", row(0, *many)),
        "modules-shared-module": (
            "limit",
            row({"cls": "ModuleList", "children": many[: 1 << 15]}, {"same": "0"}, 0),
        ),
        "name-modules": ("manifest-name", row(*many[1:], {"name": ""} | LINEAR)),
        "class-argument": ("manifest-class", tree({"cls": "x", "x": 0})),
        "container-field-children": (
            "manifest-schema",
            tree({"cls": "Sequential", "x": 0, "children": [{"cls": "x"}]}),
        ),
        "composite-children-argument": (
            "manifest-schema",
            tree({"cls": "TransformerEncoder", "x": 0, "children": 0}),
        ),
        "composite-argument-child": (
            "manifest-argument",
            tree({"cls": "TransformerEncoder", "x": 0, "children": [{"cls": "x"}]}),
        ),
        "child-composite": ("manifest-argument", encoder({"cls": "Conv2d"})),
        "composite-next-child": ("manifest-schema", row(encoder()["tree"], {"cls": "x"})),
        "argument-next-class": ("manifest-argument", row(CONV, {"cls": "x"})),
        "user-field-graph": ("manifest-schema", tree({"graph": "x", "cls": "", "x": 0})),
        "user-graph-class": ("manifest-schema", tree({"graph": "x", "cls": ""})),
        "user-train-graph-class": ("manifest-schema", user(train_graph="x", cls="")),
        "user-class-params": ("manifest-name", user(cls="", params=0)),
        "user-name-shape": ("manifest-name", user(params=[["", 0]])),
        "user-dimensions-size": ("limit", user(params=[["p", [-1] * 17]])),
        "user-shape-next-name": ("manifest-argument", user(params=[["p", [-1]], ["", []]])),
        "user-params-buffers": ("manifest-argument", user(params=[["p", [-1]]], buffers=0)),
        "user-buffers-children": ("manifest-argument", user(buffers=[["p", [-1]]], children=0)),
        "user-children-child": (
            "manifest-schema",
            row(user(children=0)["tree"], {"cls": "x"}) | {"graphs": user()["graphs"]},
        ),
        "user-use-child": ("manifest-class", user({"attr": "w"}, children=[{"cls": "x"}])),
        "unused-call": (
            "manifest-schema",
            tree(listed | {"name": "r"}, graphs={"A": [out | {"out": 0}]}) | {"frozen": ["w"]},
        ),
        "unused-use": (
            "manifest-schema",
            tree(
                {"graph": "A"},
                graphs={"A": [{"attr": "w"}, {"out": 0}], "B": [{"out": 0}]},
            ),
        ),
        "tensor-call": (
            "manifest-name",
            user({"mod": "list"}, {"attr": "w"}, children=[listed]),
        ),
        "call-next-call": (
            "manifest-schema",
            user({"mod": "list"}, {"mod": "x"}, children=[listed]),
        ),
        "missing-next-call": (
            "manifest-name",
            user({"mod": "x"}, {"mod": "list"}, children=[listed]),
        ),
        "below-above": (
            "manifest-schema",
            tree(
                {"graph": "A", "children": [{"graph": "B", "children": [listed]}]},
                graphs={"A": [{"attr": "w"}, {"out": 0}], "B": [{"mod": "list"}, {"out": 0}]},
            ),
        ),
        "operations-above": (
            "limit",
            deep
            | {
                "tree": {"graph": "Top", "children": [deep["tree"]]},
                "graphs": deep["graphs"] | {"Top": [{"attr": "w"}, {"out": 0}]},
            },
        ),
        "call-frozen": ("manifest-schema", tree(LAYERS, frozen=["w"])),
        "builder-kwargs": ("manifest-name", {"format": "builder/1", "builder": "x", "kwargs": 0}),
        "builder-training": (
            "manifest-schema",
            {"format": "builder/1", "builder": "x", "training": 0},
        ),
        "builder-frozen": ("manifest-schema", {"format": "builder/1", "frozen": 0}),
    }


def frames() -> dict[str, tuple[str, bytes]]:
    """Of the manifest's section."""
    only = {"sections": [["manifest", 1]]}
    large = frame(bytes((1 << 24) + 1))
    open_size = frame(bytes((1 << 24) + 1), write_content_size=False)
    damaged = bytearray(pack(only, b"{}"))
    damaged[-1] ^= 1
    return {
        "manifest-checksum-zstd": ("checksum", bytes(damaged)),
        "manifest-no-size-large": ("zstd", pack(only, open_size)),
        "manifest-large-behind": ("limit", pack(only, large + b"\0")),
        "manifest-depth-json": ("limit", pack(only, frame(b"[" * 257))),
        "manifest-duplicate-schema": ("json", pack(only, frame(b'{"a":1,"a":1}'))),
    }


def two_faults() -> dict[str, tuple[str, bytes]]:
    only = {"sections": [["manifest", 1]]}
    files = {f"front-{name}": case for name, case in front().items()}
    files |= {f"header-{name}": case for name, case in header().items()}
    files |= frames()
    for name, (code, manifest) in manifests().items():
        text = manifest.encode() if isinstance(manifest, str) else canonical(manifest)
        files[f"manifest-{name}"] = (code, pack(only, frame(text)))
    return {f"order-{name}": case for name, case in files.items()}


def two_faults_of_modules() -> dict[str, ModuleFile]:
    """What a reader that is asked for a module reports."""
    damaged = {}
    by_code = {"format": "builder/1", "builder": "pkg.nets:linear"}
    for name, manifest in (
        ("argument", tree(CONV)),
        ("trust", by_code),
        ("run", tree(LINEAR, inputs=[tensor("float32", None, 3)])),
    ):
        kept = pack(
            {
                "tensors": {"name": ["weight", "bias"], "shape": [[4, 4], [4]]},
                "dense": {"section": [1, 1]},
                "sections": [["manifest", 1], ["dense", 1]],
            },
            frame(canonical(manifest)),
            b"\0" + bytes(80),
        )
        damaged[name] = kept[:-1] + b"\1"
    wrong = tree(LINEAR, inputs=[tensor("float32", None, 3)])
    pair = {"cls": "Sequential", "children": [LINEAR, {"same": "0"}]}
    untied = tree(pair, inputs=[tensor("float32", None, 3)])
    return {
        "order-module-tie-run": ModuleFile(
            module_file(untied, changed={"1.bias": [4]}), error="manifest-tensor"
        ),
        "order-module-argument-checksum": ModuleFile(
            damaged["argument"], error="manifest-argument"
        ),
        "order-module-trust-checksum": ModuleFile(damaged["trust"], error="manifest-trust"),
        "order-module-run-checksum": ModuleFile(
            damaged["run"], error="manifest-run", package_alone=TORCH_RUN
        ),
        "order-module-tensor-run": ModuleFile(
            module_file(wrong, changed={"bias": [5]}), error="manifest-tensor"
        ),
    }
