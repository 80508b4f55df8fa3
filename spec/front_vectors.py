"""Files whose front or header is invalid (sections 3 and 4), each in one way."""

from __future__ import annotations

from typing import Any

from vector_parts import (
    CHECKED_FRAME,
    DENSE_1,
    ONES,
    SHORT_FRAME,
    SKIPPABLE_FRAME,
    TWO,
    constant,
    dense,
    frame,
    masked,
    pack,
)


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
