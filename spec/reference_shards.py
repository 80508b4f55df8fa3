"""A reader of models in several files (4.3 of pemn.md), on top of the reference decoder.

    python spec/reference_shards.py INDEX

prints what `reference_decoder.py` prints of one file.
"""

from __future__ import annotations

import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import reference_digests as digests
from reference_decoder import (
    DECODED_BYTES,
    DRAWN_WORDS,
    DTYPES,
    HEADER_BYTES,
    MANIFEST_BYTES,
    SECTIONS,
    TENSORS,
    Decoder,
    is_file_name,
    is_index,
    is_name,
    numel,
    read_json,
)
from reference_errors import PemnError, require
from reference_manifest import check_manifest
from reference_torch import end_of

FIELDS = {"format", "version", "manifest", "shards", "weight_map"}


def read_index(data: bytes) -> dict[str, Any]:
    """The six rules of 4.3."""
    require(len(data) <= HEADER_BYTES + MANIFEST_BYTES, "limit", "index")  # rule 1
    index = read_json(data)
    named = isinstance(index, dict) and index.get("format") == "pemn-index"
    require(named, "not-pemn", "format of the index")  # rule 2
    version = index.get("version")
    match = isinstance(version, str) and re.fullmatch("([0-9]{1,9})[.][0-9]{1,9}", version)
    require(bool(match), "header", "version of the index")  # rule 3
    require(int(version.partition(".")[0]) == 0, "version", "major version of the index")
    shards, weight_map = index.get("shards"), index.get("weight_map")
    check_keys(index, FIELDS)  # rule 4
    for shard in shards.values() if isinstance(shards, dict) else ():
        check_keys(shard, {"size", "front_crc"})
    for table in (shards, weight_map):  # rule 5
        require(not isinstance(table, dict) or len(table) <= TENSORS, "limit", "entries")
    require(isinstance(shards, dict), "header", "shards")  # rule 6
    for name, shard in shards.items():
        require(is_file_name(name), "header", "name of a shard")
        require(isinstance(shard, dict) and is_index(shard.get("size")), "header", "size")
        crc = shard.get("front_crc")
        digits = isinstance(crc, str) and re.fullmatch("[0-9a-f]{8}", crc)
        require(bool(digits), "header", "front_crc")
    require(isinstance(index.get("manifest", {}), dict), "header", "manifest")
    require(isinstance(weight_map, dict), "header", "weight_map")
    for name, file in weight_map.items():
        require(is_name(name), "header", "name of a tensor")
        require(isinstance(file, str) and file in shards, "header", "a tensor in no shard")
    require(set(weight_map.values()) == set(shards), "header", "a shard without tensors")
    return index


def check_keys(value: Any, known: set[str]) -> None:
    for key in value if isinstance(value, dict) else ():
        require(key in known or key.startswith("?"), "unknown-field", key)


class Model:
    """All shards of a model; attributes as `Decoder` has them."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.index = read_index(path.read_bytes())
        self.files = sorted(self.index["shards"])
        for name in self.files:
            there = self.folder / name
            require(there.is_file(), "shard", f"{name} is missing")
        fronts = dict[str, Decoder]()
        for name in self.files:  # rule 2
            fronts[name] = self.open(name, front_only=True)
            self.check_tensors(name, fronts[name])
            self.check_fronts(list(fronts.values()))
        for name in self.files:
            self.check_same(name, fronts)
        self.check_shared(fronts)
        self.check_limits(list(fronts.values()))
        self.metadata = fronts[self.files[0]].metadata
        self.manifest = self.index.get("manifest")
        if self.manifest is not None:
            text = digests.text_of(self.manifest)
            require(len(text) <= MANIFEST_BYTES, "limit", "manifest")
            check_manifest(self.manifest)
        shards = {name: self.open(name) for name in self.files}
        of_tensor = self.index["weight_map"]
        self.tensors = {name: shards[file].tensors[name] for name, file in of_tensor.items()}
        rows = {row["name"]: (shard, row) for shard in shards.values() for row in shard.rows}
        self.digests = [shard.tensor_digest(row) for shard, row in map(rows.get, of_tensor)]
        self.inference_only = fronts[self.files[0]].inference_only

    def open(self, name: str, *, front_only: bool = False) -> Decoder:
        data = (self.folder / name).read_bytes()
        shard = self.index["shards"][name]
        require(len(data) == shard["size"], "shard", f"size of {name}")
        decoder = Decoder(data, folder=self.folder, front_only=front_only)
        frame_size, table_size = struct.unpack_from("<II", data, 14)
        (crc,) = struct.unpack_from("<I", data, 22 + frame_size + table_size)
        require(f"{crc:08x}" == shard["front_crc"], "shard", f"front of {name}")
        return decoder

    def check_tensors(self, name: str, shard: Decoder) -> None:
        require("manifest" not in shard.kinds, "shard", "a shard with a manifest")
        expected = [tensor for tensor, file in self.index["weight_map"].items() if file == name]
        require([row["name"] for row in shard.rows] == expected, "shard", f"tensors of {name}")

    def check_fronts(self, shards: list[Decoder]) -> None:
        sizes = [struct.unpack_from("<I", shard.data, 10)[0] for shard in shards]
        require(sum(sizes) <= HEADER_BYTES, "limit", "headers of all shards")
        require(sum(len(s.entries) for s in shards) <= SECTIONS, "limit", "sections of all shards")
        require(sum(len(s.prototypes) for s in shards) <= TENSORS, "limit", "prototypes of all")

    def check_same(self, name: str, fronts: dict[str, Decoder]) -> None:
        """Rule 3 of shards."""
        shard, first = fronts[name], fronts[self.files[0]]
        same = shard.inference_only == first.inference_only and shard.metadata == first.metadata
        require(same, "shard", f"{name} and {self.files[0]} disagree")

    def check_shared(self, fronts: dict[str, Decoder]) -> None:
        """Rule 4 of shards."""
        said: dict[tuple[str, int], str] = {}
        for row in (row for name in self.files for row in fronts[name].prototypes):
            if row["kind"] != "shared":
                continue
            require(row["file"] in fronts, "shard", "values in a file that is no shard")
            other = fronts[row["file"]].prototypes
            require(row["prototype"] < len(other), "shard", "no such prototype")
            stored = other[row["prototype"]]
            found = [stored.get(key) for key in ("kind", "used", "dtype", "length")]
            wanted = ["stored", "all", row["dtype"], row["length"]]
            require(found == wanted, "shard", "another prototype")
            digest = said.setdefault((row["file"], row["prototype"]), row["digest"])
            require(digest == row["digest"], "shard", "two digests")

    def check_limits(self, shards: list[Decoder]) -> None:
        total, ends, seen = 0, dict[str, int](), list[dict[str, Any]]()
        for shard in shards:
            total += sum(
                numel(r) * DTYPES[r["dtype"]][0] for r in shard.rows if r["kind"] != "alias"
            )
            for row in shard.prototypes:
                # "a shared prototype counts where it is stored", "equal ones [...] count once"
                if row["kind"] == "shared" or (row["kind"] != "stored" and as_made(row) in seen):
                    continue
                seen.append(as_made(row))
                total += row["length"] * DTYPES[row.get("dtype", "float32")][0]
                if row["kind"] == "torch":
                    ends[row["seed"]] = max(ends.get(row["seed"], 0), end_of(row))
        require(total <= DECODED_BYTES, "limit", "decoded bytes")
        require(sum(ends.values()) <= DRAWN_WORDS, "limit", "drawn words")

    def digest(self) -> str:
        """3.5."""
        return digests.of_model(self.inference_only, self.manifest, self.digests)


def as_made(row: dict[str, Any]) -> dict[str, Any]:
    """What makes a prototype's values: `gap` is only how `skip` is written."""
    return {key: value for key, value in row.items() if key != "gap"}


def read(path: Path, **options: Any) -> Decoder | Model:
    """A file, or the model of an index."""
    data = path.read_bytes()
    if data.lstrip()[:1] == b"{":
        return Model(path)
    return Decoder(data, folder=path.parent, **options)


if __name__ == "__main__":
    try:
        decoded = read(Path(sys.argv[1]))
        for name, (dtype, shape, items) in decoded.tensors.items():
            print(f"{name} {dtype} {shape} {zlib.crc32(items):08x}")
        print(decoded.digest())
    except PemnError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
