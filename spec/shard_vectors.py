"""Files that belong together (sections 4.3 and 5.6): valid ones, and those that are not what is
said of them."""

from __future__ import annotations

import struct
from typing import Any

import reference_digests as digests
from vector_parts import floats, pack

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
