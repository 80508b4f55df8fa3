"""Files of which a mask or dense section is invalid (sections 5 to 7), each in one way."""

from __future__ import annotations

import math
import struct

from vector_parts import (
    ONES,
    PACKED_10,
    SEEDED_10,
    TWO,
    affine,
    dense,
    floats,
    frame,
    masked,
    mixing,
    pack,
    rans,
    shared_masks,
)


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
