"""Writes the conformance vectors: small files in `vectors/`, and `index.json` about them.

    python spec/make_vectors.py

Not run by tests: the files are golden. What a valid file decodes to is taken from the reference
decoder; the tests compare this package with it. Files are put together from the bytes of each
part, so that each invalid one breaks one rule and nothing else, or two that say which one counts.
`vectors/README.md` explains the index.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import reference_decoder as reference
import reference_shards
from front_vectors import invalid_front, invalid_header
from manifest_attacks import invalid_manifests
from manifest_vectors import describe, refused_modules, valid_modules
from order_vectors import two_faults, two_faults_of_modules
from section_vectors import invalid_sections
from shard_vectors import invalid_sharded, invalid_shared, shards, valid_sharded, valid_shared
from torch_vectors import invalid_torch, valid_torch
from valid_vectors import valid_files

FOLDER = Path(__file__).parent / "vectors"


def write(name: str, data: bytes, entry: dict[str, Any]) -> dict[str, Any]:
    (FOLDER / f"{name}.pemn").write_bytes(data)
    return {"name": name, "file": f"{name}.pemn"} | entry


def sharded() -> list[dict[str, Any]]:
    """Models in several files, in a folder of their own, one index each."""
    folder = FOLDER / "sharded"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    files = shards()
    for name, data in files.items():
        (folder / name).write_bytes(data)

    def entry(name: str, data: bytes, prefix: str) -> dict[str, Any]:
        path = folder / f"{prefix}{name}.pemn.index.json"
        path.write_bytes(data)
        return {"name": f"{prefix}sharded-{name}", "file": f"sharded/{path.name}"}

    entries = []
    for name, data in valid_sharded(files).items():
        own = entry(name, data, "")
        entries.append(own | described(reference_shards.Model(FOLDER / own["file"])))
    for name, (code, data) in invalid_sharded(files).items():
        entries.append(entry(name, data, "invalid-") | {"error": code})
    return entries


def described(decoded: Any) -> dict[str, Any]:
    """What a reader must make of a valid file."""
    tensors = {
        key: {"dtype": dtype, "shape": shape, "crc32": f"{zlib.crc32(items):08x}"}
        for key, (dtype, shape, items) in decoded.tensors.items()
    }
    return {"digest": decoded.digest(), "tensors": tensors}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.pemn"):
        old.unlink()
    index: list[dict[str, Any]] = []
    modules = valid_modules()
    files = valid_files() | valid_torch() | {n: file.data for n, file in modules.items()}
    files |= valid_shared()
    for name, data in files.items():
        (FOLDER / f"{name}.pemn").write_bytes(data)
    for name, data in files.items():
        decoded = reference.Decoder(data, folder=FOLDER)
        more = describe(modules[name], decoded.classes) if name in modules else {}
        index.append(write(name, data, described(decoded) | more))
    invalid = invalid_front() | invalid_header() | invalid_sections() | invalid_manifests()
    invalid |= two_faults() | invalid_torch() | invalid_shared()
    for name, (code, data) in invalid.items():
        index.append(write(f"invalid-{name}", data, {"error": code}))
    for name, file in (refused_modules() | two_faults_of_modules()).items():
        entry: dict[str, Any] = {"asked_for": "module", "error": file.error}
        if file.trust:
            entry["trust"] = list(file.trust)
        if file.package_alone:
            entry["package_alone"] = file.package_alone
        index.append(write(f"refused-{name}", file.data, entry))
    index += sharded()
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in index)
    (FOLDER / "index.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
