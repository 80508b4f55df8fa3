"""Valid files: every dtype, coder, prototype and fill, and what readers must accept."""

from __future__ import annotations

import random
import struct
from functools import partial

import numpy as np
import reference_decoder as reference
from vector_parts import (
    CHECKED_FRAME,
    DENSE_1,
    ONES,
    PACKED_10,
    SEEDED_10,
    TWO,
    affine,
    canonical,
    constant,
    dense,
    floats,
    frame,
    masked,
    mixing,
    pack,
    rans,
    shared_masks,
)

from pemncodec.coders.buckets import value_buckets
from pemncodec.coders.mask_coder import MaskContext
from pemncodec.coders.mixing import encode_mixing
from pemncodec.coders.varint import encode_varint
from pemncodec.contents import SeededPrototype
from pemncodec.values.fill import prototype_values


def valid_files() -> dict[str, bytes]:
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
