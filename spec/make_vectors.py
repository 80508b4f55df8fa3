"""Writes the conformance vectors: small files in `vectors/`, and `index.json` about them.

    python spec/make_vectors.py

Not run by tests: the files are golden. What a valid file decodes to is taken from the reference
decoder; the tests compare this package with it. Files are put together from the bytes of each
part, so that each invalid one breaks one rule and nothing else.
"""

from __future__ import annotations

import json
import math
import random
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import reference_decoder as reference
import zstandard

from pemncodec.coders.buckets import value_buckets
from pemncodec.coders.mask_coder import MaskContext
from pemncodec.coders.mixing import encode_mixing
from pemncodec.coders.rans import encode_rans
from pemncodec.coders.varint import encode_varint
from pemncodec.contents import SeededPrototype
from pemncodec.values.fill import prototype_values

FOLDER = Path(__file__).parent / "vectors"
SIGNATURE = bytes.fromhex("89504d4e0d0a1a0a")


def frame(content: bytes, **parameters: Any) -> bytes:
    options = {"level": 19, "write_checksum": False, "write_content_size": True} | parameters
    return zstandard.ZstdCompressor(**options).compress(content)


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def pack(header: Any, *sections: bytes, **changed: Any) -> bytes:
    """A file; `changed` replaces parts of its front."""
    text = header if isinstance(header, bytes) else canonical(header)
    coded = changed.get("frame", frame(text))
    table = b"".join(encode_varint(len(s)) + struct.pack("<I", zlib.crc32(s)) for s in sections)
    table = changed.get("table", table)
    sizes = changed.get("header_size", len(text)), len(coded), changed.get("table_size", len(table))
    front = SIGNATURE + bytes(changed.get("version", (0, 1))) + struct.pack("<III", *sizes)
    front += coded + table
    crc = zlib.crc32(front) ^ changed.get("crc", 0)
    return front + struct.pack("<I", crc) + b"".join(sections)


def masked(
    mask: bytes,
    shape: list[int],
    *,
    prototype: Any = None,
    stored: bytes | None = None,
    **more: Any,
) -> bytes:
    """A file of one masked tensor on one prototype, seeded unless `stored` is its section."""
    header: dict[str, Any] = {
        "tensors": {"name": ["w"], "kind": ["masked"], "shape": [shape]},
        "masks": {"section": [0]},
        "sections": [["mask", 1]],
    }
    sections = [mask]
    if stored is None:
        header["prototypes"] = {"kind": ["seeded"], "length": [more.pop("length", 10)]}
        header["seeded"] = prototype or {"seed": ["0123456789abcdef"]}
    else:
        header["prototypes"] = {"length": [more.pop("length")]}
        header["stored"] = {"section": [1]} | (prototype or {})
        header["sections"].append(["prototype", 1])
        sections.append(stored)
    for key, value in more.items():
        header[key] = header.get(key, {}) | value
    return pack(header, *sections)


def dense(section: bytes, shape: list[int], dtype: str = "float32", **more: Any) -> bytes:
    """A file of one dense tensor."""
    header = {
        "tensors": {"name": ["b"], "dtype": [dtype], "shape": [shape]},
        "dense": {"section": [0]},
        "sections": [["dense", 1]],
    }
    return pack(header | more, section)


def constant(value: str, shape: list[int], dtype: str = "float32", **more: Any) -> bytes:
    """A file of one constant."""
    tensors = {"name": ["c"], "kind": ["constant"], "dtype": [dtype], "shape": [shape]}
    return pack({"tensors": tensors, "constant": {"value": [value]}} | more)


def floats(*values: float, code: str = "f") -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)


def rans(n: int, ones: set[int]) -> bytes:
    bits = bytearray(-(-n // 8))
    for i in ones:
        bits[i // 8] |= 1 << i % 8
    return b"\2" + encode_rans(np.frombuffer(bytes(bits), np.uint8), n)


def mixing(shapes: list[list[int]], values: Any = None, offset: int = 0, seed: int = 0) -> bytes:
    """A section of masks that follow their rows and, where they are known, their values."""
    some = random.Random(seed)
    buckets = None if values is None else partial(value_buckets, values)
    masks, contexts = [], []
    for shape in shapes:
        context = MaskContext(tuple(shape), buckets, offset)
        known = context.weight_buckets(0, int(np.prod(shape)))
        kept = {row: some.random() / 2 for row in range(shape[0] if shape else 1)}
        size = len(known) // len(kept)
        odds = [kept[i // size] + abs(int(b) - 16) / 32 for i, b in enumerate(known)]
        masks.append(np.array([some.random() < p for p in odds]))
        contexts.append(context)
    return b"\3" + encode_mixing(masks, contexts)[0]


def shared_masks(
    section: bytes, shapes: list[list[int]], prototype: dict[str, Any], *stored: bytes, **more: Any
) -> bytes:
    """A file of masked tensors whose masks share a section."""
    header = {
        "tensors": {
            "name": [f"w{i}" for i in range(len(shapes))],
            "kind": ["masked"] * len(shapes),
            "shape": shapes,
        },
        "masks": {"section": [0] * len(shapes)},
        "sections": [["mask", 1], *([["prototype", 1]] if stored else [])],
    }
    return pack(header | prototype | more, section, *stored)


def affine(
    exact: list[tuple[int, float]] | None = None, scale: float = 0.1, offset: float = -1.5
) -> bytes:
    """A section of two elements with one row, and (gap, value) kept exactly."""
    exact = exact or []
    gaps = b"".join(encode_varint(gap) for gap, _ in exact)
    front = b"\6\0" + floats(scale, offset) + encode_varint(len(exact)) + gaps
    return front + floats(*(value for _, value in exact)) + b"\0\x03\xff"


SHORT_FRAME = bytes.fromhex("28b52ffd2003110000") + b"{}"  # says that it has 3 bytes
SKIPPABLE_FRAME = bytes.fromhex("502a4d1802000000") + b"{}"
CHECKED_FRAME = frame(b"{}", write_checksum=True)
ONES = b"\0\1"
PACKED_10 = bytes([1, 0b10110101, 0b01])  # of ten weights
DENSE_1 = {"sections": [["dense", 1]], "dense": {"section": [0]}}
TWO = b"\0" + floats(0.5, -0.25)


def valid() -> dict[str, bytes]:
    files: dict[str, bytes] = {"empty-model": pack({})}
    sections, names = [], list(reference.DTYPES)
    for name in names:
        size = reference.DTYPES[name][0]
        pattern = bytes(range(1, 3 * size + 1)) if name != "bool" else b"\1\0\1"
        sections.append(b"\0" + pattern)
    files["every-dtype"] = pack(
        {
            "tensors": {"name": names, "dtype": names, "shape": [[3]] * len(names)},
            "dense": {"section": list(range(len(names)))},
            "sections": [["dense", len(names)]],
        },
        *sections,
    )
    files["zero-dimensional"] = pack(
        {
            "tensors": {"name": ["w", "b", "c"], "kind": ["masked", "dense", "constant"]},
            "masks": {"section": [0]},
            "dense": {"section": [1]},
            "constant": {"value": ["0000803f"]},
            "prototypes": {"kind": ["seeded"], "length": [1]},
            "sections": [["mask", 1], ["dense", 1]],
        },
        ONES,
        b"\0" + floats(2.5),
    )
    files["no-elements"] = pack(
        {
            "tensors": {
                "name": ["w", "b", "c", "v"],
                "kind": ["masked", "dense", "constant", "masked"],
                "shape": [[0], [0, 3], [2, 0], [3, 0]],
            },
            "masks": {"section": [0, 2]},
            "dense": {"section": [1]},
            "constant": {"value": [""]},
            "prototypes": {"kind": ["seeded"], "length": [4]},
            "sections": [["mask", 1], ["dense", 1], ["mask", 1]],
        },
        ONES,
        b"\0",
        b"\1",
    )
    files["constant-every-bit"] = constant("0100c07f", [2, 2])  # a NaN's payload
    files["constant-complex128"] = constant("000000000000f03f000000000000f0bf", [2], "complex128")
    files["constant-bool"] = constant("01", [3], "bool")
    trained = floats(*[1.0 + i / 7 for i in range(64)])
    columns = [trained[j::4] for j in range(4)]
    stored = b"".join(b"\0" + plane for plane in columns)
    zipped = b"\2" + encode_varint(len(frame(columns[3]))) + frame(columns[3])
    files["dense-raw-negative-zero-nan"] = dense(
        b"\0" + struct.pack("<4I", 0x80000000, 0xFF812345, 1, 0x7F800000), [2, 2]
    )
    files["dense-planes-stored"] = dense(b"\1" + stored, [64])
    files["dense-planes-zstd-frame"] = dense(b"\1" + stored[:195] + zipped, [64])
    checked = frame(columns[3], write_checksum=True)
    files["dense-planes-zstd-frame-with-checksum"] = dense(
        b"\1" + stored[:195] + b"\2" + encode_varint(len(checked)) + checked, [64]
    )
    files["dense-planes-constant"] = dense(b"\1\1\0\1\0\0abc\1\x3f", [3])
    files["dense-planes-complex64"] = dense(b"\1\1\0\1\0\0abcd\1\x3f", [2], "complex64")
    files["dense-rotated-planes-float32"] = dense(b"\2\1\1\0\0\1\1\0\0\x7f\x7e", [2])
    files["dense-rotated-planes-uint8"] = dense(b"\2\0\x81\x02", [2], "uint8")
    files["dense-rotated-planes-int64"] = dense(b"\2" + b"\1\1" * 7 + b"\1\x80", [2], "int64")
    files["dense-palette"] = dense(
        b"\3\2" + struct.pack("<3H", 5, 6, 700) + b"\0\2\0\1\2", [4], "int16"
    )
    files["dense-palette-one-value"] = dense(b"\3\0" + floats(1.5) + b"\1\0", [5])
    files["dense-palette-complex128"] = dense(
        b"\3\1" + floats(0.0, 1.0, code="d") + b"\0\0\1", [1], "complex128"
    )
    halves = struct.pack("<6H", 0x3C01, 0x8000, 0x7C00, 0x7E01, 0x0001, 0xFBFF)
    files["dense-float16"] = dense(b"\4\0" + halves, [6])
    files["dense-bfloat16"] = dense(b"\5\1" + b"\0\1\2\xff" + b"\0\x3f\x80\x7f", [3])
    files["dense-affine"] = dense(affine(), [2])
    files["dense-affine-exact"] = dense(affine([(1, 300.25)]), [2])
    files["dense-affine-overflow"] = dense(affine(scale=3e38), [2])
    files["dense-affine-rows"] = pack(
        {
            "tensors": {
                "name": ["a", "b", "c"],
                "kind": ["dense"] * 3,
                "shape": [[2, 3], [4], []],
            },
            "dense": {"section": [0, 0, 0]},
            "sections": [["dense", 1]],
        },
        b"\6\1" + floats(0.1, 0.7, 1e-3, 2.0) + floats(0.3, -5.0, 1 / 3, 0.25) + b"\2\0\x09"
        + floats(-7.5, 1e-20) + b"\0" + bytes(range(0, 220, 20)),
    )  # fmt: skip
    files["dense-error"] = pack(
        {
            "tensors": {"name": ["a", "b", "c"], "shape": [[1], [1], [1]]},
            "dense": {"section": [0, 0, 0], "error": [0, 0.00098, 2]},
            "sections": [["dense", 1]],
        },
        b"\0" + floats(1, 2, 3),
    )
    files["inference-only"] = pack({"inference_only": True})
    files["dense-group"] = pack(
        {
            "tensors": {"name": ["a", "z", "b"], "shape": [[2], [0], []]},
            "dense": {"section": [0, 0, 0]},
            "sections": [["dense", 1]],
        },
        b"\0" + floats(1, 2, 3),
    )
    files["alias"] = pack(
        {
            "tensors": {
                "name": ["w", "a", "v"],
                "kind": ["dense", "alias", "alias"],
                "shape": [[2], [], []],
            },
            "alias": {"target": ["w", "w"]},
        }
        | DENSE_1,
        TWO,
    )
    for distribution in ("uniform", "signed-constant", "normal"):
        files[f"seeded-{distribution}"] = masked(
            ONES,
            [3, 4],
            prototype={"distribution": [distribution], "seed": ["fedcba9876543210"]},
            length=12,
        )
        for dtype in ("float16", "bfloat16", "float64"):
            files[f"seeded-{distribution}-scaled-{dtype}"] = masked(
                PACKED_10,
                [10],
                prototype={"distribution": [distribution]},
                masked={"scale": ["3d93cd3a"]},
                tensors={"dtype": [dtype]},
            )
    files["seeded-stream"] = masked(ONES, [10], prototype={"stream": ["8000000000000001"]})
    for period in (1, 3, 12):
        files[f"seeded-shuffled-period-{period}"] = masked(
            ONES, [2, 5], prototype={"period": [period]}, length=12
        )
    files["seeded-scaled-float32"] = masked(ONES, [10], masked={"scale": ["bdcccccd"]})
    files["seeded-scale-zero"] = masked(ONES, [10], masked={"scale": ["00000000"]})
    files["seeded-scale-subnormal"] = masked(ONES, [10], masked={"scale": ["00000003"]})
    files["seeded-scale-to-infinity-float16"] = masked(
        ONES, [10], masked={"scale": ["47ffe000"]}, tensors={"dtype": ["float16"]}
    )
    files["seeded-scale-to-subnormal-float16"] = masked(
        ONES, [10], masked={"scale": ["35000001"]}, tensors={"dtype": ["float16"]}
    )
    files["seeded-scale-one-bfloat16"] = masked(ONES, [10], tensors={"dtype": ["bfloat16"]})
    files["fill-offset-wraps"] = masked(PACKED_10, [10], masked={"offset": [6]})
    files["fill-tiled-no-divisor"] = masked(PACKED_10, [10], length=3)
    files["fill-one-value"] = masked(PACKED_10, [2, 5], length=1)
    files["fill-longer-prototype"] = masked(PACKED_10, [10], length=17)
    files["shared-prototype"] = pack(
        {
            "tensors": {"name": ["v", "w"], "kind": ["masked"] * 2, "shape": [[5], [10]]},
            "masked": {"offset": [3, 0], "scale": ["3f800000", "40000000"]},
            "masks": {"section": [1, 0]},
            "prototypes": {"kind": ["seeded"], "length": [4]},
            "sections": [["mask", 2]],
        },
        PACKED_10,
        b"\1\x15",
    )
    values = floats(1, 2, 3, -4)
    files["stored-all"] = masked(PACKED_10, [10], stored=b"\0" + values, length=4)
    files["stored-masks"] = masked(  # weights 0 and 2 use values 3 and 0
        b"\1\x05",
        [3],
        stored=b"\0" + floats(7, 8),
        length=5,
        prototype={"used": ["masks"]},
        masked={"offset": [3]},
    )
    files["stored-masks-tiled"] = masked(
        b"\1\x88", [8], stored=b"\0" + floats(7, 8), length=3, prototype={"used": ["masks"]}
    )
    files["stored-masks-none-used"] = masked(
        b"\0\0", [3], stored=b"\0", length=5, prototype={"used": ["masks"]}
    )
    files["stored-without-user"] = pack(
        {
            "prototypes": {"length": [2]},
            "stored": {"section": [0]},
            "sections": [["prototype", 1]],
        },
        TWO,
    )
    halves = struct.pack("<4H", 0x7C01, 0x8000, 0x3C00, 0xFBFF)
    for dtype in ("float16", "bfloat16"):
        files[f"stored-{dtype}-copied-bit-for-bit"] = masked(
            ONES,
            [4],
            stored=b"\0" + halves,
            length=4,
            prototype={"dtype": [dtype]},
            tensors={"dtype": [dtype]},
        )
    files["stored-float64-rounded-to-float32"] = masked(
        ONES,
        [4],
        stored=b"\0" + floats(0.1, -1 / 3, 1e-45, 1.0000000596046448, code="d"),
        length=4,
        prototype={"dtype": ["float64"]},
    )
    files["stored-bfloat16-to-float16"] = masked(
        ONES,
        [4],
        stored=b"\0" + struct.pack("<4H", 0x3F81, 0xBF80, 0x0001, 0x4049),
        length=4,
        prototype={"dtype": ["bfloat16"]},
        tensors={"dtype": ["float16"]},
    )
    files["mask-constant-0"] = masked(b"\0\0", [10])
    files["mask-constant-1"] = masked(ONES, [10])
    files["mask-packed"] = masked(PACKED_10, [10])
    files["mask-packed-whole-bytes"] = masked(b"\1\xa5\x3c", [16])
    files["mask-rans-runs"] = masked(rans(40, {3, 17}), [40])
    files["mask-rans-bytes"] = masked(rans(40, {2, 3, 5, 6, 11, 17, 20, 30, 31, 38}), [40])
    some = random.Random(1)
    for name, n, density in (
        ("runs-words", 1003, 0.09),
        ("runs-of-ones", 1003, 0.95),
        ("runs-to-the-end", 1001, 0.002),
        ("bytes-words", 1003, 0.3),
        ("bytes-dense", 1003, 0.8),
        ("bytes-8-lanes", 1 << 19, 0.2),
        ("bytes-below-8-lanes", (1 << 19) - 8, 0.2),
        ("runs-8-lanes", 1 << 19, 0.1),
        ("2-blocks", (1 << 20) + 13, 0.001),
    ):
        ones = set(some.sample(range(n - 1), round(density * n))) | {n - 1}
        files[f"mask-rans-{name}"] = masked(rans(n, ones), [n], length=3)
    every = set(range(1 << 20, 1 << 21))
    files["mask-rans-blocks-of-any-density"] = masked(rans(3 << 20, every), [3 << 20], length=3)
    two = rans((1 << 20) + 13, {5, (1 << 20) + 12})
    assert two[1] == 21  # one block; cut in two, a writer may well do so
    half = 8 * 65537
    cut = rans(half, {5})[1:], rans((1 << 20) + 13 - half, {(1 << 20) + 12 - half})[1:]
    body = struct.pack("<BII", 20, len(cut[0]), len(cut[1])) + cut[0] + cut[1]
    files["mask-rans-small-blocks"] = masked(b"\2" + body, [(1 << 20) + 13], length=3)
    files |= valid_mixing()
    manifest = {"format": "tree/1", "tree": {"cls": "Linear", "in_features": 2, "out_features": 1}}
    files["manifest"] = pack(
        {
            "tensors": {
                "name": ["weight", "bias"],
                "kind": ["masked", "dense"],
                "shape": [[1, 2], [1]],
            },
            "masks": {"section": [2]},
            "dense": {"section": [1]},
            "prototypes": {"kind": ["seeded"], "length": [2]},
            "sections": [["manifest", 1], ["dense", 1], ["mask", 1]],
        },
        frame(canonical(manifest)),
        b"\0" + floats(0.5),
        ONES,
    )
    exported = {
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
    both = {
        "tensors": {
            "name": ["fc.weight", "shift"],
            "kind": ["masked", "dense"],
            "shape": [[1, 2], [1]],
        },
        "masks": {"section": [2]},
        "dense": {"section": [1]},
        "prototypes": {"kind": ["seeded"], "length": [2]},
        "sections": [["manifest", 1], ["dense", 1], ["mask", 1]],
    }
    files["manifest-exported"] = pack(both, frame(canonical(exported)), b"\0" + floats(0.5), ONES)
    builder = {"format": "builder/1", "builder": "pkg.nets:linear", "kwargs": {"sizes": [2, 1]}}
    files["manifest-builder"] = pack(both, frame(canonical(builder)), b"\0" + floats(0.5), ONES)
    files["metadata"] = pack({"metadata": {"": "", "author": "Grüße, 世界 🦜", "line": "a\nb"}})
    files["optional-fields"] = dense(
        TWO,
        [2],
        **{
            "?later": [{"x": [1.5e3, None, True]}],
            "tensors": {"name": ["b"], "shape": [[2]], "?unit": "any"},
        },
    )
    files["name-of-any-language"] = constant(
        "00000000", [], tensors={"name": ['層 1/weight "ß"'], "kind": ["constant"], "shape": [[]]}
    )
    files["minor-version-255"] = pack({}, version=(0, 255))
    files["json-spelled-otherwise"] = pack(
        b' {"tensors" : {"shape":[[2]],\n"name":["\\u0062"],"kind":["dense"],'
        b'"dtype":["float32"]},"sections":[["dense",1]],"dense":{"section":[0]},"alias":{}}\t',
        TWO,
    )
    files["front-frame-with-checksum"] = pack(b"{}", frame=CHECKED_FRAME)
    files["sections-in-any-order"] = pack(
        {
            "tensors": {"name": ["b", "a"], "shape": [[2], [1]]},
            "dense": {"section": [1, 0]},
            "sections": [["dense", 2]],
        },
        b"\0" + floats(9),
        TWO,
    )
    return files


SEEDED_10 = {"prototypes": {"kind": ["seeded"], "length": [10]}}
# One of every kind, channels of one layer in the next, kernels of several widths, few dimensions.
LAYERS = [[6, 3, 3, 3], [6, 1, 2, 5], [4, 6, 1, 1], [3, 4], [7], [], [2, 3, 4], [2, 2, 2, 2, 2]]


def valid_mixing() -> dict[str, bytes]:
    files = {}
    files["mask-mixing-example-of-the-spec"] = masked(
        bytes.fromhex("03792727db5400"),
        [2, 4],
        stored=b"\0" + floats(1, 2, 3),
        length=8,
        prototype={"used": ["masks"]},
    )
    normal = prototype_values(SeededPrototype("normal", 0x0123456789ABCDEF, 10))
    files["mask-mixing"] = masked(mixing([[17, 59]], normal), [17, 59])
    files["mask-mixing-offset"] = masked(
        mixing([[17, 59]], normal, 7), [17, 59], masked={"offset": [7]}
    )
    seeded = prototype_values(SeededPrototype("normal", 0, 10))
    files["mask-mixing-shared"] = shared_masks(mixing(LAYERS, seeded), LAYERS, SEEDED_10)
    wide = [[1, 1, 30, 30], [700]]
    files["mask-mixing-many-positions"] = shared_masks(mixing(wide, seeded), wide, SEEDED_10)
    rows = [[66_000], [2, 5]]
    buckets = partial(value_buckets, seeded)
    section = (
        b"\3"
        + encode_mixing(
            [np.arange(66_000) % 3000 == 0, np.arange(10) % 2 == 0],
            [MaskContext((66_000,), buckets), MaskContext((2, 5), buckets)],
        )[0]
    )
    files["mask-mixing-many-columns"] = shared_masks(section, rows, SEEDED_10)
    for dtype, code, carrier in (
        ("float16", "e", "<f2"),
        ("float32", "f", "<f4"),
        ("float64", "d", "<f8"),
    ):
        values = [1.5, -2.0, 0.0, -0.0, 3e-5, -1e-5, 100.0, -100.0, 1.5]
        stored = floats(*values, code=code)
        files[f"mask-mixing-stored-{dtype}"] = masked(
            mixing([[9, 9]], np.frombuffer(stored, carrier)),
            [9, 9],
            stored=b"\0" + stored,
            length=9,
            prototype={"dtype": [dtype]},
            tensors={"dtype": [dtype]},
        )
    return files


def invalid_mixing() -> dict[str, tuple[str, bytes]]:
    sound = mixing([[17, 59]])
    both = mixing([[5, 8], [8, 5]])
    shapes = [[5, 8], [8, 5]]
    large = [(1 << 23) + 1]
    cases: dict[str, tuple[str, bytes, list[int]]] = {
        "without-density": ("truncated", b"\3", [17, 59]),
        "without-data": ("section", sound[:5], [17, 59]),
        "no-weights": ("section", sound, [0, 59]),
        "byte-missing": ("section", sound[:-1], [17, 59]),
        "byte-left-over": ("section", sound + b"\0", [17, 59]),
        "final-state": ("section", sound[:-1] + bytes([sound[-1] ^ 1]), [17, 59]),
        "index-cut": ("truncated", b"\3" + bytes(7), large),
        "index-too-small": ("section", b"\3" + struct.pack("<2I", 5, 5) + bytes(11), large),
    }
    values = {"stored": b"\0" + floats(1), "length": 2000, "prototype": {"used": ["masks"]}}
    files = {
        f"mask-mixing-{name}": (code, masked(data, shape, **values))
        for name, (code, data, shape) in cases.items()
    }
    files["mask-mixing-shared-density-cut"] = (
        "truncated",
        shared_masks(both[:2], shapes, SEEDED_10),
    )
    files["mask-mixing-shared-too-large"] = (
        "section",
        shared_masks(both, [[1 << 23], [1]], SEEDED_10),
    )
    files["mask-shared-not-mixed"] = ("section", shared_masks(ONES, [[1], [1]], SEEDED_10))
    return files


def invalid_front() -> dict[str, tuple[str, bytes]]:
    good = dense(TWO, [2])
    wide = b"\x80" * 9
    return {
        "signature-empty-file": ("not-pemn", b""),
        "signature-other": ("not-pemn", b"PK\3\4" + good[4:]),
        "signature-line-ends-changed": ("not-pemn", good.replace(b"\r\n", b"\n")),
        "signature-cut": ("truncated", good[:5]),
        "front-cut-in-sizes": ("truncated", good[:20]),
        "front-cut-in-header": ("truncated", good[:40]),
        "front-cut-in-checksum": ("truncated", pack({})[:-1]),
        "version-1": ("version", pack({}, version=(1, 0))),
        "front-checksum": ("checksum", pack({}, crc=1)),
        "section-cut": ("truncated", good[:-1]),
        "section-missing": ("truncated", good[:-9]),
        "file-trailing-byte": ("trailing", good + b"\0"),
        "section-checksum": ("checksum", good[:-1] + b"\xbf"),
        "table-cut-in-checksum": ("truncated", pack({}, table=b"\0\0\0\0")),
        "table-cut-in-varint": ("truncated", pack({}, table=b"\x80")),
        "table-varint-not-shortest": ("section", pack({}, table=b"\x80\0\0\0\0\0")),
        "table-varint-65-bits": ("section", pack({}, table=wide + b"\2\0\0\0\0")),
        "table-varint-11-bytes": ("section", pack({}, table=wide + b"\x80\1\0\0\0\0")),
        "table-section-of-2-to-the-63": ("truncated", pack({}, table=wide + b"\1\0\0\0\0")),
        "limit-header-size": ("limit", pack({}, header_size=(1 << 26) + 1)),
        "limit-table-size": ("limit", pack({}, table_size=14 * (1 << 20) + 1)),
        "limit-json-depth": ("limit", pack(b'{"?":' + b"[" * 256 + b"]" * 256 + b"}")),
        "limit-decoded-bytes": ("limit", masked(ONES, [1 << 33])),
        "limit-decoded-bytes-prototype": ("limit", masked(ONES, [1], length=1 << 62)),
        "limit-dimensions": ("limit", dense(TWO, [2] + [1] * 16)),
        "zstd-no-frame": ("zstd", pack(b"{}", frame=b"{}")),
        "zstd-empty": ("zstd", pack(b"{}", frame=b"")),
        "zstd-cut": ("zstd", pack(b"{}", frame=frame(b"{}")[:-1])),
        "zstd-no-content-size": ("zstd", pack(b"{}", frame=frame(b"{}", write_content_size=False))),
        "zstd-other-content-size": ("zstd", pack(b"{}", header_size=3)),
        "zstd-content-size-lies": ("zstd", pack(b"{} ", frame=SHORT_FRAME)),
        "zstd-two-frames": ("zstd", pack(b"{}", frame=frame(b"{}") * 2)),
        "zstd-byte-behind": ("zstd", pack(b"{}", frame=frame(b"{}") + b"\0")),
        "zstd-checksum": ("zstd", pack(b"{}", frame=CHECKED_FRAME[:-1] + b"\0")),
        "zstd-skippable-frame": ("zstd", pack(b"{}", frame=SKIPPABLE_FRAME)),
        "json-malformed": ("json", pack(b'{"a"}')),
        "json-empty": ("json", pack(b"")),
        "json-not-utf-8": ("json", pack(b'{"metadata":{"a":"\xff"}}')),
        "json-byte-order-mark": ("json", pack(b"\xef\xbb\xbf{}")),
        "json-duplicate-key": ("json", pack(b'{"metadata":{"a":"1","a":"1"}}')),
        "json-nan": ("json", pack(b'{"?":NaN}')),
        "json-infinity": ("json", pack(b'{"?":-Infinity}')),
        "json-number-above-binary64": ("json", pack(b'{"?":1e999}')),
        "json-two-values": ("json", pack(b"{}{}")),
        "json-surrogate-as-bytes": ("json", pack(b'{"?":"\xed\xa0\x80"}')),
        "json-surrogate-escaped": ("json", pack(b'{"metadata":{"a":"\\ud800"}}')),
    }


def invalid_header() -> dict[str, tuple[str, bytes]]:
    def one(**tensors: Any) -> bytes:
        return dense(TWO, [2], tensors={"name": ["b"], "shape": [[2]]} | tensors)

    def weight(**fields: Any) -> bytes:
        return masked(ONES, [10], **fields)

    def alias(names: list[str], targets: list[str], **tensors: Any) -> bytes:
        kinds = ["dense"] + ["alias"] * len(targets)
        shapes = [[2]] + [[]] * len(targets)
        rows = {"name": names, "kind": kinds, "shape": shapes} | tensors
        return pack({"tensors": rows, "alias": {"target": targets}} | DENSE_1, TWO)

    both = {"name": ["a", "b"], "shape": [[2], [2]]}
    header: dict[str, bytes] = {
        "not-an-object": pack([]),
        "table-not-an-object": pack({"tensors": []}),
        "column-not-an-array": one(name="b"),
        "value-of-another-type": one(name=[1]),
        "index-true": dense(TWO, [2], dense={"section": [False]}),
        "index-float": dense(TWO, [2], dense={"section": [0.0]}),
        "index-negative": dense(TWO, [2], dense={"section": [-1]}),
        "error-negative": dense(TWO, [2], dense={"section": [0], "error": [-0.5]}),
        "error-text": dense(TWO, [2], dense={"section": [0], "error": ["0.5"]}),
        "error-true": dense(TWO, [2], dense={"section": [0], "error": [True]}),
        "error-out-of-range": dense(TWO, [2], dense={"section": [0], "error": [2**1024]}),
        "error-of-another-length": dense(TWO, [2], dense={"section": [0], "error": [0, 0]}),
        "name-empty": one(name=[""]),
        "name-control-character": one(name=["a\x1b[2J"]),
        "name-format-character": one(name=["a\u202eb"]),
        "name-4097-characters": one(name=["x" * 4097]),
        "unknown-tensor-kind": one(kind=["sparse"]),
        "unknown-dtype": one(dtype=["int4"]),
        "shape-negative": one(shape=[[-2]]),
        "shape-not-an-array": one(shape=[2]),
        "shape-above-63-bits": one(shape=[[1 << 62, 2, 2]]),
        "shape-above-63-bits-with-zero": one(shape=[[1 << 62, 0, 2]]),
        "shape-times-width-above-63-bits": one(shape=[[0, 1 << 62]]),
        "column-longer": one(dtype=["float32", "float32"]),
        "column-shorter": pack({"tensors": both | {"dtype": ["int8"]}} | DENSE_1, TWO),
        "column-missing": pack({"tensors": {"name": ["c"], "kind": ["constant"]}}),
        "rows-without-name": pack({"tensors": {"dtype": ["int8"]}}),
        "rows-without-owner": pack({"constant": {"value": ["00"]}}),
        "prototype-length-0": weight(length=0),
        "prototype-length-missing": pack({"prototypes": {"kind": ["seeded"]}}),
        "unknown-prototype-kind": weight(prototypes={"kind": ["shuffled"]}),
        "unknown-distribution": weight(prototype={"distribution": ["cauchy"]}),
        "seed-upper-case": weight(prototype={"seed": ["ABCDEF0123456789"]}),
        "seed-15-digits": weight(prototype={"seed": ["123456789abcdef"]}),
        "seed-integer": weight(prototype={"seed": [1]}),
        "period-negative": weight(prototype={"period": [-1]}),
        "period-above-length": weight(prototype={"period": [3]}, length=2),
        "stored-dtype": masked(ONES, [2], stored=TWO, length=2, prototype={"dtype": ["int32"]}),
        "unknown-used": masked(ONES, [2], stored=TWO, length=2, prototype={"used": ["explicit"]}),
        "sections-not-an-array": pack({"sections": {}}),
        "sections-not-pairs": dense(TWO, [2], sections=["dense"]),
        "sections-count-0": dense(TWO, [2], sections=[["dense", 1], ["mask", 0]]),
        "sections-too-few": pack(
            {"tensors": both, "dense": {"section": [0, 0]}}, b"\0" + bytes(16)
        ),
        "sections-too-many": pack({"sections": [["manifest", 1]]}),
        "sections-neighbouring-runs": pack(
            {"tensors": both, "dense": {"section": [0, 1]}, "sections": [["dense", 1]] * 2},
            TWO,
            TWO,
        ),
        "sections-two-manifests": pack({"sections": [["manifest", 2]]}, b"", b""),
        "name-twice": pack(
            {
                "tensors": both | {"name": ["a", "a"]},
                "dense": {"section": [0, 0]},
                "sections": [["dense", 1]],
            },
            b"\0" + bytes(16),
        ),
        "masked-integer": weight(tensors={"dtype": ["int32"]}),
        "no-such-prototype": weight(masked={"prototype": [1]}),
        "offset-behind-prototype": weight(masked={"offset": [10]}),
        "scale-infinite": weight(masked={"scale": ["7f800000"]}),
        "scale-nan": weight(masked={"scale": ["7fc00000"]}),
        "scale-number": weight(masked={"scale": [1.0]}),
        "alias-of-nothing": alias(["b", "a"], ["x"]),
        "alias-of-later": pack(
            {
                "tensors": {"name": ["a", "b"], "kind": ["alias", "dense"], "shape": [[], [2]]},
                "alias": {"target": ["b"]},
            }
            | DENSE_1,
            TWO,
        ),
        "alias-of-alias": alias(["b", "a", "c"], ["b", "a"]),
        "alias-of-itself": alias(["b", "a"], ["a"]),
        "alias-with-shape": alias(["b", "a"], ["b"], shape=[[2], [2]]),
        "alias-with-dtype": alias(["b", "a"], ["b"], dtype=["float32", "int8"]),
        "constant-too-long": constant("0000000000", [1]),
        "constant-too-short": constant("000000", [1]),
        "constant-of-no-elements": constant("00000000", [0]),
        "constant-odd-digits": constant("0000000", [1]),
        "constant-bool-2": constant("02", [1], "bool"),
        "section-not-there": dense(TWO, [2], dense={"section": [1]}),
        "section-of-another-kind": dense(TWO, [2], sections=[["mask", 1]]),
        "section-of-nothing": pack({"sections": [["dense", 1]]}, TWO),
        "prototype-section-shared": pack(
            {
                "prototypes": {"length": [2, 2]},
                "stored": {"section": [0, 0]},
                "sections": [["prototype", 1]],
            },
            TWO,
        ),
        "group-of-two-dtypes": pack(
            {
                "tensors": both | {"dtype": ["float32", "int32"]},
                "dense": {"section": [0, 0]},
                "sections": [["dense", 1]],
            },
            b"\0" + bytes(16),
        ),
        "metadata-not-an-object": pack({"metadata": []}),
        "metadata-number": pack({"metadata": {"a": 1}}),
        "inference-only-false": pack({"inference_only": False}),
        "inference-only-1": pack({"inference_only": 1}),
    }
    unknown = {
        "unknown-field-top-level": pack({"later": 1}),
        "unknown-field-column": dense(TWO, [2], tensors={"name": ["b"], "shape": [[2]], "x": [1]}),
        "unknown-field-masks-parent": masked(ONES, [10], masks={"section": [0], "parent": [0]}),
        "unknown-field-section-kind": dense(TWO, [2], sections=[["graph", 1]]),
    }
    return {f"header-{name}": ("header", data) for name, data in header.items()} | {
        name: ("unknown-field", data) for name, data in unknown.items()
    }


def invalid_sections() -> dict[str, tuple[str, bytes]]:
    block = rans(40, {3, 17})
    dense_block = rans(40, {2, 3, 5, 6, 11, 17, 20, 30, 31, 38})
    two = rans((1 << 20) + 13, {5, (1 << 20) + 12})
    eight = rans(1 << 19, set(range(0, 1 << 19, 4)))
    runs = rans(50, {3, 17, 49})
    cases: dict[str, tuple[str, bytes, list[int]]] = {
        "mask-empty": ("truncated", b"", [10]),
        "mask-unknown-coder": ("unknown-field", b"\4", [10]),
        "mask-constant-2": ("section", b"\0\2", [10]),
        "mask-constant-without-bit": ("section", b"\0", [10]),
        "mask-constant-trailing": ("section", b"\0\1\1", [10]),
        "mask-packed-short": ("truncated", PACKED_10[:-1], [10]),
        "mask-packed-long": ("trailing", PACKED_10 + b"\0", [10]),
        "mask-packed-padding": ("section", b"\1\xb5\x05", [10]),
        "mask-rans-no-weights": ("section", block, [0]),
        "mask-rans-without-density": ("truncated", b"\2\1", [40]),
        "mask-rans-density-0": ("section", b"\2\0\0" + block[3:], [40]),
        "mask-rans-without-count": ("truncated", block[:3], [40]),
        "mask-rans-count-0": ("section", block[:3] + b"\0" + block[4:], [40]),
        "mask-rans-count-large": ("section", block[:3] + b"\x29" + block[4:], [40]),
        "mask-rans-count-long": ("section", block[:3] + b"\x83\0" + block[4:], [40]),
        "mask-rans-runs-missing": ("section", block, [60]),
        "mask-rans-runs-left-over": ("section", block, [18]),
        "mask-rans-run-too-long": ("section", block, [17]),
        "mask-rans-one-behind-the-end": ("section", runs, [49]),
        "mask-rans-state-cut": ("section", block[:-2], [40]),
        "mask-rans-odd-bytes": ("section", block + b"\0", [40]),
        "mask-rans-initial-state": ("section", block[:6] + b"\0\0", [40]),
        "mask-rans-words-missing": ("section", dense_block[:-2], [40]),
        "mask-rans-words-left-over": ("section", block + b"\0\0", [40]),
        "mask-rans-final-state": ("section", block[:4] + b"\x0b" + block[5:], [40]),
        "mask-rans-padding": ("section", dense_block, [38]),
        "mask-rans-lanes-cut": ("section", eight[:20], [1 << 19]),
        "mask-rans-block-bits-cut": ("truncated", b"\2", [(1 << 20) + 13]),
        "mask-rans-block-bits-19": ("section", two[:1] + b"\x13" + two[2:], [(1 << 20) + 13]),
        "mask-rans-block-bits-26": ("section", two[:1] + b"\x1a" + two[2:], [(1 << 20) + 13]),
        "mask-rans-index-cut": ("truncated", two[:5], [(1 << 20) + 13]),
        "mask-rans-index-too-small": ("section", two[:2] + b"\0" + two[3:], [(1 << 20) + 13]),
    }
    files = {name: (code, masked(data, shape)) for name, (code, data, shape) in cases.items()}
    files |= invalid_mixing()
    palette = b"\3\1" + struct.pack("<2H", 5, 6)
    short = frame(bytes(5))
    items = {
        "dense-empty": ("truncated", b"", "float32"),
        "dense-unknown-coder": ("unknown-field", b"\7" + bytes(8), "float32"),
        "dense-float16-of-float64": ("section", b"\4\0" + bytes(4), "float64"),
        "dense-float16-empty": ("truncated", b"\4", "float32"),
        "dense-float16-in-float16": ("section", b"\4\4\0" + bytes(4), "float32"),
        "dense-float16-unknown": ("unknown-field", b"\4\7\0" + bytes(4), "float32"),
        "dense-float16-short": ("section", b"\4\0" + bytes(3), "float32"),
        "dense-affine-of-uint8": ("section", affine(), "uint8"),
        "dense-affine-empty": ("truncated", b"\6", "float32"),
        "dense-affine-flag": ("section", b"\6\2" + affine()[2:], "float32"),
        "dense-affine-scale-cut": ("truncated", affine()[:5], "float32"),
        "dense-affine-offset-cut": ("truncated", affine()[:9], "float32"),
        "dense-affine-infinite-scale": ("section", affine(scale=math.inf), "float32"),
        "dense-affine-nan-offset": ("section", affine(offset=math.nan), "float32"),
        "dense-affine-count": ("section", affine([(0, 1.0)] * 3), "float32"),
        "dense-affine-gap-cut": ("truncated", affine([(0, 1.0)])[:11], "float32"),
        "dense-affine-position": ("section", affine([(2, 1.0)]), "float32"),
        "dense-affine-infinite-value": ("section", affine([(0, math.inf)]), "float32"),
        "dense-affine-without-codes": ("truncated", affine()[:11], "float32"),
        "dense-affine-codes-short": ("section", affine()[:-1], "float32"),
        "dense-raw-short": ("section", TWO[:-1], "float32"),
        "dense-raw-long": ("section", TWO + b"\0", "float32"),
        "dense-bool-2": ("section", b"\0\1\2", "bool"),
        "dense-planes-missing": ("truncated", b"\1\1\0", "int16"),
        "dense-planes-stored-cut": ("truncated", b"\1\1\0\0\0", "int16"),
        "dense-planes-constant-cut": ("truncated", b"\1\1\0\1", "int16"),
        "dense-planes-frame-cut": ("truncated", b"\1\2\x10" + frame(b"ab"), "int8"),
        "dense-planes-size-cut": ("truncated", b"\1\2\x80", "int8"),
        "dense-planes-size-not-shortest": ("section", b"\1\2\x80\0", "int8"),
        "dense-planes-trailing": ("trailing", b"\1\1\0\1\0\0", "int16"),
        "dense-planes-unknown-method": ("unknown-field", b"\1\3\0", "int8"),
        "dense-planes-frame-of-another-size": (
            "zstd",
            b"\1\2" + bytes([len(short)]) + short,
            "int8",
        ),
        "dense-palette-empty": ("truncated", b"\3", "int16"),
        "dense-palette-cut": ("truncated", palette[:-1], "int16"),
        "dense-palette-without-indices": ("truncated", palette, "int16"),
        "dense-palette-descending": ("section", b"\3\1\6\0\5\0\0\0\1", "int16"),
        "dense-palette-value-twice": ("section", b"\3\1\5\0\5\0\0\0\1", "int16"),
        "dense-palette-index": ("section", palette + b"\0\0\2", "int16"),
        "dense-palette-bool-2": ("section", b"\3\1\1\2\0\0\1", "bool"),
    }
    files |= {name: (code, dense(data, [2], dtype)) for name, (code, data, dtype) in items.items()}
    files["prototype-longer-than-used"] = (
        "section",
        masked(b"\1\1", [2], stored=TWO, length=2, prototype={"used": ["masks"]}),
    )
    files["prototype-without-user-broken"] = (
        "section",
        pack(
            {
                "prototypes": {"length": [3]},
                "stored": {"section": [0]},
                "sections": [["prototype", 1]],
            },
            TWO,
        ),
    )
    only_manifest = {"sections": [["manifest", 1]]}
    files["manifest-no-frame"] = ("zstd", pack(only_manifest, b"{}"))
    files["manifest-byte-behind"] = ("zstd", pack(only_manifest, frame(b"{}") + b"\0"))
    files["manifest-not-json"] = ("json", pack(only_manifest, frame(b"{")))
    files["manifest-too-large"] = ("limit", pack(only_manifest, frame(bytes((1 << 24) + 1))))
    files["manifest-too-deep"] = ("limit", pack(only_manifest, frame(b"[" * 257 + b"]" * 257)))
    return files


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.pemn"):
        old.unlink()
    index: list[dict[str, Any]] = []
    for name, data in valid().items():
        tensors = {
            key: {"dtype": dtype, "shape": shape, "crc32": f"{zlib.crc32(items):08x}"}
            for key, (dtype, shape, items) in reference.Decoder(data).tensors.items()
        }
        index.append({"name": name, "file": f"{name}.pemn", "tensors": tensors})
        (FOLDER / f"{name}.pemn").write_bytes(data)
    for name, (code, data) in (invalid_front() | invalid_header() | invalid_sections()).items():
        file = f"invalid-{name}.pemn"
        index.append({"name": f"invalid-{name}", "file": file, "error": code})
        (FOLDER / file).write_bytes(data)
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in index)
    (FOLDER / "index.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
