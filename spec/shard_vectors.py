"""Files that belong together (sections 4.3 and 5.6): valid ones, and those that are not what is
said of them."""

from __future__ import annotations

import struct
from typing import Any

import reference_digests as digests
from vector_parts import canonical, floats, frame, pack

VALUES = floats(1.5, -2.0, 0.25)
DIGEST = digests.of_prototype("float32", 4, list(struct.unpack("<3I", VALUES)))
OWNER = "prototype-for-other-files"
MASK = b"\1\x2b"  # packed: 1 1 0 1 0 1


def owner() -> bytes:
    """A file of a masked tensor and prototypes of all kinds."""
    half = floats(1.5, -2.0, 0.25, code="e")
    header = {
        "tensors": {"name": ["w"], "kind": ["masked"], "shape": [[2, 3]]},
        "masks": {"section": [0]},
        "masked": {"prototype": [1]},
        "prototypes": {
            "kind": ["seeded", "stored", "stored", "stored"],
            "length": [3, 3, 3, 3],
        },
        "seeded": {"seed": ["0000000000000001"]},
        "stored": {
            "dtype": ["float32", "float32", "float16"],
            "section": [1, 2, 3],
            "used": ["all", "masks", "all"],
        },
        "sections": [["mask", 1], ["prototype", 3]],
    }
    return pack(header, MASK, b"\0" + VALUES, b"\0", b"\0" + half)


def shared(**changed: Any) -> bytes:
    """A file whose only prototype is in another file."""
    row = {"file": [f"{OWNER}.pemn"], "prototype": [1], "digest": [DIGEST]} | changed
    length = row.pop("length", 3)
    header = {
        "tensors": {"name": ["v"], "kind": ["masked"], "shape": [[2, 3]]},
        "masked": {"offset": [1], "scale": ["40000000"]},
        "masks": {"section": [0]},
        "prototypes": {"kind": ["shared"], "length": [length]},
        "shared": {key: value for key, value in row.items() if value is not None},
        "sections": [["mask", 1]],
    }
    return pack(header, MASK, version=(0, 4))


def valid_shared() -> dict[str, bytes]:
    return {OWNER: owner(), "prototype-in-another-file": shared()}


def invalid_shared() -> dict[str, tuple[str, bytes]]:
    def name(name: Any) -> bytes:
        return shared(file=[name])

    header = {
        "file-missing": shared(file=None),
        "file-empty": name(""),
        "file-number": name(1),
        "file-above": name("../prototype-for-other-files.pemn"),
        "file-in-a-folder": name("vectors/prototype-for-other-files.pemn"),
        "file-backslash": name("..\\prototype-for-other-files.pemn"),
        "file-drive": name("C:prototype-for-other-files.pemn"),
        "file-hidden": name(".pemn"),
        "file-control-character": name("a\x1b.pemn"),
        "file-of-another-kind": name("index.json"),
        "file-256-characters": name("x" * 251 + ".pemn"),
        "prototype-negative": shared(prototype=[-1]),
        "digest-missing": shared(digest=None),
        "digest-upper-case": shared(digest=[DIGEST.upper()]),
        "digest-63-digits": shared(digest=[DIGEST[1:]]),
        "dtype": shared(dtype=["int32"]),
        "two-rows": shared(prototype=[1, 1]),
    }
    other = {
        "file-not-there": name("missing.pemn"),
        "no-such-prototype": shared(prototype=[4]),
        "prototype-seeded": shared(prototype=[0]),
        "prototype-of-used-values": shared(prototype=[2]),
        "prototype-of-another-dtype": shared(prototype=[3]),
        "prototype-of-another-length": shared(length=4),
        "digest-of-others": shared(digest=["0" * 64]),
        "loop-of-one": shared(file=["invalid-shared-loop-of-one.pemn"], prototype=None),
        "loop-there": shared(file=["invalid-shared-loop-back.pemn"], prototype=None),
        "loop-back": shared(file=["invalid-shared-loop-there.pemn"], prototype=None),
    }
    return {
        **{f"header-shared-{name}": ("header", data) for name, data in header.items()},
        **{f"shared-{name}": ("shard", data) for name, data in other.items()},
        "limit-decoded-bytes-shared": ("limit", shared(length=1 << 62)),
        "shared-file-damaged": ("checksum", name("invalid-front-checksum.pemn")),
        "shared-file-of-another-version": ("version", name("invalid-version-1.pemn")),
        "shared-file-not-pemn": ("not-pemn", name("invalid-signature-other.pemn")),
        "unknown-field-shared": ("unknown-field", shared(task=["x"])),
        "header-shared-rows-without-owner": (
            "header",
            pack({"shared": {"file": ["a.pemn"], "digest": [DIGEST]}}),
        ),
    }


# ------------------------------------------------------------------------------- sharded models

ONE, TWO = "net-00001-of-00002.pemn", "net-00002-of-00002.pemn"
WEIGHT_MAP = {"w": ONE, "v": TWO, "u": TWO, "b": ONE, "t": TWO}
SEED = {"seed": ["0000000000000005"]}
MANIFEST = {"format": "builder/1", "inputs": [], "builder": "pkg.nets:net"}


def shards() -> dict[str, bytes]:
    """Two shards with a stored prototype in one of them, and a seeded one in both."""
    one = {
        "tensors": {"name": ["w", "b"], "kind": ["masked", "dense"], "shape": [[2, 3], [2]]},
        "masked": {"prototype": [1]},
        "masks": {"section": [1]},
        "dense": {"section": [0]},
        "prototypes": {"kind": ["seeded", "stored"], "length": [7, 3]},
        "seeded": SEED,
        "stored": {"section": [2]},
        "sections": [["dense", 1], ["mask", 1], ["prototype", 1]],
        "metadata": {"run": "7"},
    }
    two = {
        "tensors": {
            "name": ["v", "u", "t"],
            "kind": ["masked", "masked", "alias"],
            "shape": [[2, 3], [2, 3], []],
        },
        "alias": {"target": ["u"]},
        "masked": {"prototype": [0, 1]},
        "masks": {"section": [0, 1]},
        "prototypes": {"kind": ["shared", "seeded"], "length": [3, 7]},
        "seeded": SEED,
        "shared": {"file": [ONE], "prototype": [1], "digest": [DIGEST]},
        "sections": [["mask", 2]],
        "metadata": {"run": "7"},
    }
    prototype = b"\0" + VALUES
    good = pack(one, b"\0" + floats(0.5, 4), MASK, prototype)
    return {
        ONE: good,
        TWO: pack(two, MASK, b"\1\x15", version=(0, 4)),
        "other-metadata.pemn": pack(two | {"metadata": {}}, MASK, b"\1\x15", version=(0, 4)),
        "other-inference-only.pemn": pack(
            two | {"inference_only": True}, MASK, b"\1\x15", version=(0, 4)
        ),
        "other-digest.pemn": pack(
            two | {"shared": two["shared"] | {"digest": ["0" * 64]}},
            MASK,
            b"\1\x15",
            version=(0, 4),
        ),
        "with-manifest.pemn": pack(
            one
            | {"sections": [["manifest", 1], *one["sections"]]}
            | {"dense": {"section": [1]}, "masks": {"section": [2]}, "stored": {"section": [3]}},
            frame(canonical(MANIFEST)),
            b"\0" + floats(0.5, 4),
            MASK,
            prototype,
        ),
        "damaged.pemn": good[:-1] + b"\0",
        "net-damaged.pemn": good[:24] + b"\0" + good[25:],
    }


def index(files: dict[str, bytes], tensors: dict[str, str], **changed: Any) -> bytes:
    """An index of files, but for what is changed; `None` leaves a field out."""
    rows = {
        name: {"size": len(data), "front_crc": f"{crc_of(data):08x}"}
        for name, data in files.items()
    }
    fields = {"format": "pemn-index", "shards": rows, "version": "0.4"} | changed
    parts = {key: canonical(value) for key, value in fields.items() if value is not None}
    if "weight_map" not in changed:
        pairs = (canonical(key) + b":" + canonical(file) for key, file in tensors.items())
        parts["weight_map"] = b"{" + b",".join(pairs) + b"}"
    return b"{" + b",".join(canonical(key) + b":" + parts[key] for key in sorted(parts)) + b"}"


def crc_of(data: bytes) -> int:
    """4.1: front_crc."""
    frame_size, table_size = struct.unpack_from("<II", data, 14)
    (crc,) = struct.unpack_from("<I", data, 22 + frame_size + table_size)
    return int(crc)


def valid_sharded(files: dict[str, bytes]) -> dict[str, bytes]:
    both = {name: files[name] for name in (ONE, TWO)}
    only = {ONE: files[ONE]}
    return {
        "net": index(both, WEIGHT_MAP, manifest=MANIFEST),
        "without-manifest": index(both, WEIGHT_MAP),
        "one-shard": index(only, {"w": ONE, "b": ONE}),
        "later-minor-version": index(both, WEIGHT_MAP, version="0.999", **{"?note": [1]}),
        "spaced": b" \n" + index(both, WEIGHT_MAP).replace(b",", b" , "),
    }


def invalid_sharded(files: dict[str, bytes]) -> dict[str, tuple[str, bytes]]:
    both = {name: files[name] for name in (ONE, TWO)}
    sizes = {
        name: {"size": len(data), "front_crc": f"{crc_of(data):08x}"} for name, data in both.items()
    }

    def of(**changed: Any) -> bytes:
        return index(both, WEIGHT_MAP, **changed)

    def row(**changed: Any) -> bytes:
        return of(shards=sizes | {TWO: sizes[TWO] | changed})

    def second(name: str) -> bytes:
        """With another file in place of the second one."""
        other = {key: name if file == TWO else file for key, file in WEIGHT_MAP.items()}
        return index({ONE: files[ONE], name: files[name]}, other)

    def first(name: str) -> bytes:
        return index({name: files[name]}, {"w": name, "b": name})

    def named(name: str) -> bytes:
        return of(shards={name: sizes[ONE]}, weight_map={"w": name})

    later = "net-damaged.pemn"
    moved = {"v": TWO, "w": ONE, "u": TWO, "t": TWO, "b": TWO}
    return {
        "cut": ("json", of()[:-1]),
        "key-twice": ("json", of()[:-1] + b',"version":"0.4"}'),
        "too-deep": ("limit", of(**{"?": 1})[:-1] + b',"?x":' + b"[" * 256 + b"]" * 256 + b"}"),
        "empty-object": ("not-pemn", b"{}"),
        "of-safetensors": ("not-pemn", b'{"metadata":{},"weight_map":{"w":"a.safetensors"}}'),
        "version-1": ("version", of(version="1.0")),
        "version-number": ("header", of(version=0.4)),
        "version-missing": ("header", of(version=None)),
        "unknown-field": ("unknown-field", of(later=1)),
        "unknown-field-of-a-shard": ("unknown-field", row(sha256="")),
        "shards-missing": ("header", of(shards=None)),
        "size-missing": ("header", of(shards=sizes | {TWO: {"front_crc": "00000000"}})),
        "size-float": ("header", row(size=1.0)),
        "front-crc-upper-case": ("header", row(front_crc="ABCDEF01")),
        "name-above": ("header", named("../net-00001-of-00002.pemn")),
        "name-in-a-folder": ("header", named("sharded/net-00001-of-00002.pemn")),
        "name-of-a-drive": ("header", named("C:net.pemn")),
        "name-hidden": ("header", named(".pemn")),
        "weight-map-missing": ("header", of(weight_map=None)),
        "tensor-in-no-shard": ("header", of(weight_map=WEIGHT_MAP | {"x": "x.pemn"})),
        "tensor-name": ("header", of(weight_map=WEIGHT_MAP | {"\x1b": ONE})),
        "shard-without-tensors": ("header", of(weight_map={"w": ONE, "b": ONE})),
        "manifest-array": ("header", of(manifest=[])),
        "manifest-schema": ("manifest-schema", of(manifest={"format": "tree/9"})),
        "shard-not-there": (
            "shard",
            of(
                shards=sizes | {"missing.pemn": sizes[ONE]},
                weight_map=WEIGHT_MAP | {"x": "missing.pemn"},
            ),
        ),
        "size-of-another": ("shard", row(size=1)),
        "front-of-another": ("shard", row(front_crc="00000000")),
        "front-of-a-section-damaged": ("checksum", first("damaged.pemn")),
        "tensor-in-another-shard": ("shard", index(both, moved)),
        "tensor-not-listed-before-a-damaged-front": (
            "shard",
            index({name: files[name] for name in (ONE, later)}, {"w": ONE, "x": later}),
        ),
        "tensor-not-there": ("shard", index(both, WEIGHT_MAP | {"x": TWO})),
        "tensor-not-listed": (
            "shard",
            index(both, {k: f for k, f in WEIGHT_MAP.items() if k != "b"}),
        ),
        "another-order": ("shard", index(both, {"b": ONE, **WEIGHT_MAP})),
        "shard-with-manifest": ("shard", first("with-manifest.pemn")),
        "metadata-differ": ("shard", second("other-metadata.pemn")),
        "inference-only-differs": ("shard", second("other-inference-only.pemn")),
        "digest-of-others": ("shard", second("other-digest.pemn")),
        "prototype-in-no-shard": (
            "shard",
            index({TWO: files[TWO]}, {"v": TWO, "u": TWO, "t": TWO}),
        ),
    }
