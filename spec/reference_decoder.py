"""An educational decoder of .pemn files in plain Python, in the order of pemn.md.

Slow on purpose: nothing here is clever. It checks every rule that it meets. Manifests (section 8)
are checked in `reference_manifest.py`; nothing is built of them.

    python spec/reference_decoder.py FILE

prints name, dtype, shape and CRC-32 of the bytes of every tensor, then the digest (3.5). Models in
several files are read by `reference_shards.py`.
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import reference_digests as digests
import zstandard
from reference_errors import PemnError, require
from reference_manifest import check_asked_for, check_manifest
from reference_tensors import check_tensors
from reference_torch import TORCH_DISTRIBUTIONS, check_torch, end_of, torch_values

# Section 9.
HEADER_BYTES, MANIFEST_BYTES, DECODED_BYTES = 1 << 26, 1 << 24, 1 << 34
DRAWN_WORDS = 1 << 33
SECTIONS = TENSORS = 1 << 20
JSON_DEPTH, DIMENSIONS = 256, 16


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """3.2: value, and the position behind it."""
    value = shift = 0
    while True:
        require(at < len(data), "truncated", "varint")
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        require(value < 1 << 64 and shift < 70, "section", "a varint above 2^64 - 1")
        if byte < 0x80:
            require(byte > 0 or shift == 0, "section", "a varint is not in its shortest form")
            return value, at
        shift += 7


def read_frame(frame: bytes, size: int | None, limit: int) -> bytes:
    """3.3: "exactly one frame. It must give its content size, [...] not be a skippable frame"."""
    require(frame[:4] == bytes.fromhex("28b52ffd"), "zstd", "not a Zstandard frame")
    try:
        declared = zstandard.frame_content_size(frame)
        require(declared >= 0, "zstd", "a frame without content size")
        require(size in (None, declared), "zstd", "another size than expected")
        require(declared <= limit, "limit", "content size")
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        content = decompressor.decompress(frame)
    except zstandard.ZstdError as error:
        raise PemnError("zstd", str(error)) from None
    whole = decompressor.eof and not decompressor.unused_data
    require(whole and len(content) == declared, "zstd", "cut off, or bytes behind the frame")
    return content


def read_json(data: bytes) -> Any:
    """3.4."""
    depth, at, in_string = 0, 0, False
    while at < len(data):  # "brackets within strings do not count"
        byte = data[at : at + 1]
        if in_string:
            at += byte == b"\\"
        else:
            depth += (byte in b"[{") - (byte in b"]}")
            require(depth <= JSON_DEPTH, "limit", "JSON depth")
        in_string ^= byte == b'"'
        at += 1

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len(dict(pairs)) == len(pairs), "json", "a key twice")
        return dict(pairs)

    def finite(text: str) -> float:
        require(math.isfinite(float(text)), "json", text)
        return float(text)

    try:
        value = json.loads(
            data.decode(), object_pairs_hook=unique, parse_float=finite, parse_constant=finite
        )
        json.dumps(value, ensure_ascii=False).encode()  # fails on a lone surrogate
    except ValueError as error:
        raise PemnError("json", str(error)) from None
    return value


# 7.6: dtype -> bytes of an element, W
# fmt: off
DTYPES = {
    "bool": (1, 1), "uint8": (1, 1), "uint16": (2, 2), "uint32": (4, 4), "uint64": (8, 8),
    "int8": (1, 1), "int16": (2, 2), "int32": (4, 4), "int64": (8, 8),
    "float16": (2, 2), "bfloat16": (2, 2), "float32": (4, 4), "float64": (8, 8),
    "complex32": (4, 2), "complex64": (8, 4), "complex128": (16, 8),
    "float8_e4m3fn": (1, 1), "float8_e4m3fnuz": (1, 1), "float8_e5m2": (1, 1),
    "float8_e5m2fnuz": (1, 1), "float8_e8m0fnu": (1, 1), "float4_e2m1fn_x2": (1, 1),
}
# fmt: on
WEIGHTS = ("float32", "float64", "float16", "bfloat16")
SECTION_KINDS = {"masked": "mask", "dense": "dense", "stored": "prototype"}


def is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def is_length(value: Any) -> bool:
    return is_index(value) and value > 0


def is_gap(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 63


def is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_index, value))


def is_name(value: Any) -> bool:
    if not isinstance(value, str) or any(unicodedata.category(c)[0] == "C" for c in value):
        return False
    return 1 <= len(value) <= 4096


def is_file_name(value: Any) -> bool:
    """4.3 and 5.6."""
    plain = is_name(value) and len(value) <= 255 and not set(value) & set("/\\:")
    return plain and value[0] != "." and value.endswith(".pemn")


def is_error(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


# 4.2: table -> column -> check (a function, a regular expression or choices), default
Columns = dict[str, tuple[Any, Any]]
SECTION: Columns = {"section": (is_index, None)}
COLUMNS: dict[str, Columns] = {
    "tensors": {
        "name": (is_name, None),
        "kind": (("masked", "dense", "constant", "alias"), "dense"),
        "dtype": (tuple(DTYPES), "float32"),
        "shape": (is_shape, []),
    },
    "masked": {
        "prototype": (is_index, 0),
        "offset": (is_index, 0),
        "scale": ("[0-9a-f]{8}", "3f800000"),
    },
    "masks": SECTION,
    "dense": {"error": (is_error, 0)} | SECTION,
    "constant": {"value": ("([0-9a-f]{2})*", None)},
    "alias": {"target": (is_name, None)},
    "prototypes": {
        "length": (is_length, None),
        "kind": (("seeded", "stored", "torch", "shared"), "stored"),
    },
    "seeded": {
        "distribution": (("uniform", "signed-constant", "normal"), "normal"),
        "seed": ("[0-9a-f]{16}", "0" * 16),
        "stream": ("[0-9a-f]{16}", "0" * 16),
        "period": (is_index, 0),
    },
    "stored": {"dtype": (WEIGHTS, "float32"), "used": (("all", "masks"), "all")} | SECTION,
    "torch": {
        "distribution": (TORCH_DISTRIBUTIONS, "normal"),
        "seed": ("[0-9a-f]{8}", None),
        "gap": (is_gap, 0),
        "low": ("([0-9a-f]{8}){1,2}", "bf800000"),
        "high": ("([0-9a-f]{8}){1,2}", "3f800000"),
        "variant": (("vector", "scalar"), "vector"),
        "drawn": (is_index, 0),
    },
    "shared": {
        "dtype": (WEIGHTS, "float32"),
        "file": (is_file_name, None),
        "prototype": (is_index, 0),
        "digest": ("[0-9a-f]{64}", None),
    },
}


def is_valid(check: Any, value: Any) -> bool:
    if callable(check):
        return bool(check(value))
    if isinstance(check, str):
        return isinstance(value, str) and re.fullmatch(check, value) is not None
    return isinstance(value, str) and value in check


def read_rows(header: dict[str, Any], table: str, count: int | None = None) -> list[Any]:
    """4.2: the rows of one table, defaults filled in."""
    columns = header.get(table, {})
    require(isinstance(columns, dict), "header", f"{table} is not an object")
    for key, values in columns.items():
        if not key.startswith("?"):
            require(isinstance(values, list), "header", f"{table}.{key} is not an array")
            check = COLUMNS[table][key][0]
            require(all(is_valid(check, value) for value in values), "header", f"{table}.{key}")
    if count is None:
        count = len(columns.get("name" if table == "tensors" else "length", []))
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for key, (_, default) in COLUMNS[table].items():
        values = columns.get(key, [] if default is None else [default] * count)
        require(len(values) == count, "header", f"rows of {table}.{key}")
        for row, value in zip(rows, values, strict=True):
            row[key] = value
    return rows


def check_fields(header: dict[str, Any]) -> None:
    """4.2: "A key [...] that is not listed above is refused [...], and so is an unknown kind"."""
    for key, table in header.items():
        single = key in ("sections", "metadata", "inference_only") or key.startswith("?")
        require(single or key in COLUMNS, "unknown-field", key)
        for column in table if not single and isinstance(table, dict) else ():
            known = column in COLUMNS[key] or column.startswith("?")
            require(known, "unknown-field", f"{key}.{column}")
    runs = header.get("sections")
    for run in runs if isinstance(runs, list) else ():
        if isinstance(run, list) and len(run) == 2:
            known = run[0] in ("manifest", *SECTION_KINDS.values())
            require(known, "unknown-field", f"section kind {run[0]}")


def check_sizes(header: dict[str, Any]) -> None:
    """9: rows and dimensions."""
    for table in (header.get(key) for key in COLUMNS):
        for key, values in table.items() if isinstance(table, dict) else ():
            if isinstance(values, list) and not key.startswith("?"):
                require(len(values) <= TENSORS, "limit", "rows")
                shapes = [v for v in values if key == "shape" and isinstance(v, list)]
                require(all(len(v) <= DIMENSIONS for v in shapes), "limit", "dimensions")


def numel(row: dict[str, Any]) -> int:
    return math.prod(row["shape"])


class Decoder:
    """A whole file. `tensors` is name -> dtype, shape, bytes; `manifest` is JSON or None.

    `classes` is path -> class of the modules that a manifest describes. With `as_module` the reader
    is asked for the module, and `trust` is the code that its user allows (8.8). `folder` is where
    the file is, if that is known. With `front_only` the reader stops behind the header.
    """

    def __init__(
        self,
        data: bytes,
        *,
        as_module: bool = False,
        trust: Sequence[str] = (),
        folder: Path | None = None,
        front_only: bool = False,
    ) -> None:
        self.data, self.folder = data, folder
        self.entries: list[tuple[int, int, int]] = []  # of each section: start, stop, CRC-32
        self.items: dict[int, list[int]] = {}  # of dense sections, those not yet taken
        self.read_header(self.read_container(data))
        self.manifest: Any = None
        self.classes: dict[str, str] = {}
        self.masks: dict[str, list[int]] = {}
        self.values: dict[int, list[int]] = {}
        self.tensors: dict[str, tuple[str, list[int], bytes]] = {}
        if front_only:
            return
        tree = None
        if "manifest" in self.kinds:
            frame = self.payload(self.kinds.index("manifest"))
            self.manifest = read_json(read_frame(frame, None, MANIFEST_BYTES))
            tree = check_manifest(self.manifest)
            if tree is not None:
                self.classes = {path: module.cls for path, module in tree.modules.items()}
        if as_module:
            check_asked_for(self.manifest, trust)
            if tree is not None:
                aliases = {r["name"]: r["target"] for r in self.rows if r["kind"] == "alias"}
                shapes = {row["name"]: row["shape"] for row in self.rows}
                shapes |= {name: shapes[target] for name, target in aliases.items()}
                check_tensors(tree, self.manifest, shapes, aliases)
        for index in range(len(self.prototypes)):
            self.prototype(index)
        for row in self.rows:
            self.tensors[row["name"]] = self.read_tensor(row)

    def read_container(self, data: bytes) -> Any:
        """4.1: front and sections; returns the header's JSON."""
        signature = bytes.fromhex("89504d4e0d0a1a0a")
        if data and signature.startswith(data[:8]):
            require(len(data) >= 22, "truncated", "front")
        require(data[:8] == signature, "not-pemn", "signature")
        major, _, header_size, frame_size, table_size = struct.unpack_from("<BBIII", data, 8)
        require(major == 0, "version", f"major version {major}")
        require(max(header_size, frame_size - 1024) <= HEADER_BYTES, "limit", "header")
        require(table_size <= 14 * SECTIONS, "limit", "sections")
        end = 22 + frame_size + table_size
        require(len(data) >= end + 4, "truncated", "front")
        crc = struct.pack("<I", zlib.crc32(data[:end]))
        require(crc == data[end : end + 4], "checksum", "front")
        header = read_frame(data[22 : 22 + frame_size], header_size, HEADER_BYTES)
        table, at, start = data[22 + frame_size : end], 0, end + 4
        while at < len(table):
            require(len(self.entries) < SECTIONS, "limit", "sections")
            length, at = read_varint(table, at)
            require(at + 4 <= len(table), "truncated", "section table")
            self.entries.append((start, start + length, *struct.unpack_from("<I", table, at)))
            at, start = at + 4, start + length
        require(len(data) >= start, "truncated", "sections")
        require(len(data) == start, "trailing", "bytes behind the last section")
        return read_json(header)

    def payload(self, index: int) -> bytes:
        """2: "A section is checked when it is used"."""
        start, stop, crc = self.entries[index]
        require(zlib.crc32(self.data[start:stop]) == crc, "checksum", f"section {index}")
        return self.data[start:stop]

    def read_header(self, header: Any) -> None:
        """4.2: the ten rules, behind what goes before them (10.1)."""
        require(isinstance(header, dict), "header", "not an object")  # rule 1
        check_fields(header)
        check_sizes(header)
        runs, count = header.get("sections", []), len(self.entries)
        require(isinstance(runs, list), "header", "sections")  # rule 3
        self.kinds: list[str] = []
        for run in runs:
            pair = isinstance(run, list) and len(run) == 2 and is_length(run[1])
            require(pair and run[1] <= count - len(self.kinds), "header", "a run of sections")
            require(self.kinds[-1:] != [run[0]], "header", "neighbouring runs")
            self.kinds += [run[0]] * run[1]
        require(len(self.kinds) == count, "header", "number of sections")
        require(self.kinds.count("manifest") <= 1, "header", "two manifests")
        self.prototypes = read_rows(header, "prototypes")  # rule 2
        self.rows = read_rows(header, "tensors")
        for kind in (
            *("seeded", "stored", "torch", "shared"),
            "masked",
            "masks",
            "dense",
            "constant",
            "alias",
        ):
            owner = "masked" if kind == "masks" else kind
            mine = [row for row in self.prototypes + self.rows if row["kind"] == owner]
            for row, own in zip(mine, read_rows(header, kind, len(mine)), strict=True):
                row |= own
        for row in self.prototypes:  # rule 6
            require(row.get("period", 0) <= row["length"], "header", "period above the length")
        ends = self.place_torch()
        seen: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            require(row["name"] not in seen, "header", "two tensors of one name")  # rule 4
            self.check_tensor(row, seen)
            seen[row["name"]] = row
        self.check_sections()
        require(header.get("inference_only", True) is True, "header", "inference_only")  # rule 10
        self.inference_only = "inference_only" in header
        self.metadata = header.get("metadata", {})
        require(isinstance(self.metadata, dict), "header", "metadata")
        text = all(isinstance(value, str) for value in self.metadata.values())
        require(text, "header", "metadata")
        total = sum(numel(r) * DTYPES[r["dtype"]][0] for r in self.rows if r["kind"] != "alias")
        for row in self.prototypes:
            total += row["length"] * DTYPES[row.get("dtype", "float32")][0]
        require(total <= DECODED_BYTES, "limit", "decoded bytes")  # 9
        require(sum(ends.values()) <= DRAWN_WORDS, "limit", "drawn words")

    def place_torch(self) -> dict[str, int]:
        """5.5: `skip` of torch prototypes; returns the largest end for each seed."""
        ends: dict[str, int] = {}
        before, end = "", 0
        for row in self.prototypes:
            if row["kind"] == "torch":
                row["skip"] = row["gap"] + (end if row["seed"] == before else 0)
                check_torch(row)
                before, end = row["seed"], end_of(row)
                ends[before] = max(ends.get(before, 0), end)
        return ends

    def check_tensor(self, row: dict[str, Any], seen: dict[str, dict[str, Any]]) -> None:
        size = DTYPES[row["dtype"]][0]
        span = math.prod(max(n, 1) for n in row["shape"]) * size
        require(is_index(span), "header", "shape out of range")  # rule 5
        if row["kind"] == "masked":  # rule 6
            require(row["dtype"] in WEIGHTS, "header", "dtype of a masked tensor")
            require(row["prototype"] < len(self.prototypes), "header", "no such prototype")
            length = self.prototypes[row["prototype"]]["length"]
            require(row["offset"] < length, "header", "offset behind the prototype")
            (row["scale"],) = struct.unpack(">f", bytes.fromhex(row["scale"]))
            require(math.isfinite(row["scale"]), "header", "scale")
        elif row["kind"] == "alias":  # rule 7
            target = seen.get(row["target"], row)
            require(target["kind"] != "alias", "header", "target of an alias")
            plain = (row["dtype"], row["shape"]) == ("float32", [])
            require(plain, "header", "an alias with dtype or shape")
        elif row["kind"] == "constant":  # rule 8
            row["value"] = value = bytes.fromhex(row["value"])
            require(len(value) == (size if numel(row) else 0), "header", "bytes of a constant")
            require(row["dtype"] != "bool" or value <= b"\1", "header", "a constant bool")

    def check_sections(self) -> None:
        used: dict[int, Any] = {}  # rule 9: section -> its owner, or the dtype of its group
        for row in self.prototypes + self.rows:
            if row["kind"] in SECTION_KINDS:
                index, kind = row["section"], SECTION_KINDS[row["kind"]]
                named = index < len(self.kinds) and self.kinds[index] == kind
                require(named, "header", f"section {index} is no {kind} section")
                owner = {"dense": row.get("dtype"), "mask": kind}.get(kind, id(row))
                require(used.setdefault(index, owner) == owner, "header", "a shared section")
        for index, kind in enumerate(self.kinds):
            require(index in used or kind == "manifest", "header", "a section of nothing")

    def prototype(self, index: int) -> list[int]:
        if index not in self.values:
            self.values[index] = self.read_prototype(index)
        return self.values[index]

    def mask(self, row: dict[str, Any]) -> list[int]:
        """6: with it come all masks of its section."""
        if row["name"] not in self.masks:
            payload = self.payload(row["section"])
            sharers = [
                r for r in self.rows if r["kind"] == "masked" and r["section"] == row["section"]
            ]
            require(len(payload) > 0, "truncated", "an empty mask section")
            if payload[0] == 3:
                tensors = [(r["shape"], self.buckets(r)) for r in sharers]
                masks = read_mixed(payload[1:], tensors)
            else:
                require(payload[0] < 3, "unknown-field", f"mask coder {payload[0]}")
                require(len(sharers) == 1, "section", "a section of several masks is not mixed")
                masks = [read_mask(payload, numel(row))]
            self.masks |= zip([r["name"] for r in sharers], masks, strict=True)
        return self.masks[row["name"]]

    def buckets(self, row: dict[str, Any]) -> list[int]:
        """6.4: of each weight."""
        source = self.prototypes[row["prototype"]]
        if source.get("used") == "masks":
            return [0] * numel(row)
        size = DTYPES[source.get("dtype", "float32")][0]
        keys = [item >> 8 * size - 16 for item in self.prototype(row["prototype"])]
        keys = [key ^ 0xFFFF if key >> 15 else key | 0x8000 for key in keys]
        ranks = sorted(keys)
        first = {key: i for i, key in reversed(list(enumerate(ranks)))}
        bucket = [32 * first[key] // len(keys) for key in keys]
        return [bucket[(row["offset"] + i) % len(keys)] for i in range(numel(row))]

    def read_prototype(self, index: int) -> list[int]:
        """5: the bits of P[0] ... P[L - 1]."""
        row = self.prototypes[index]
        length = row["length"]
        if row["kind"] == "seeded":
            seed, stream = int(row["seed"], 16), int(row["stream"], 16)
            value = DISTRIBUTIONS[row["distribution"]]
            word = lambda i: philox(seed, stream, i // 4)[i % 4]  # noqa: E731
            period = row["period"]
            values = [value(word(i)) for i in range(period or length)]
            if period:
                order = sorted(range(length), key=lambda i: word(period + i))
                return [values[i % period] for i in order]
            return values
        if row["kind"] == "torch":
            return torch_values(row)
        if row["kind"] == "shared":
            return self.read_shared(row)
        stored = set(range(length))
        if row["used"] == "masks":  # 5.4
            stored = set()
            for user in self.rows:
                if user["kind"] == "masked" and user["prototype"] == index:
                    mask = enumerate(self.mask(user))
                    stored |= {(user["offset"] + i) % length for i, bit in mask if bit}
        kept = read_group(self.payload(row["section"]), [[len(stored)]], row["dtype"])
        values = dict(zip(sorted(stored), kept, strict=True))
        return [values.get(j, 0) for j in range(length)]

    def read_shared(self, row: dict[str, Any]) -> list[int]:
        """5.6: the values of a stored prototype of another file."""
        path = self.folder and self.folder / row["file"]
        require(path is not None and path.is_file(), "shard", f"{row['file']} is not there")
        assert path is not None
        other = Decoder(path.read_bytes(), front_only=True)
        require(row["prototype"] < len(other.prototypes), "shard", "no such prototype")
        stored = other.prototypes[row["prototype"]]
        found = [stored.get(key) for key in ("kind", "used", "dtype", "length")]
        wanted = ["stored", "all", row["dtype"], row["length"]]
        require(found == wanted, "shard", "another prototype")
        values = other.prototype(row["prototype"])
        digest = digests.of_prototype(row["dtype"], DTYPES[row["dtype"]][0], values)
        require(digest == row["digest"], "shard", "another digest")
        return values

    def tensor_digest(self, row: dict[str, Any]) -> str:
        mask = self.mask(row) if row["kind"] == "masked" else None
        return digests.of_tensor(row, self.tensors[row["name"]], mask)

    def digest(self) -> str:
        """3.5."""
        tensors = [self.tensor_digest(row) for row in self.rows]
        return digests.of_model(self.inference_only, self.manifest, tensors)

    def read_tensor(self, row: dict[str, Any]) -> tuple[str, list[int], bytes]:
        if row["kind"] == "alias":
            return self.tensors[row["target"]]
        dtype, shape, count = row["dtype"], row["shape"], numel(row)
        size, width = DTYPES[dtype]
        if row["kind"] == "constant":  # 7.4
            return dtype, shape, row["value"] * count
        section = row["section"]
        if row["kind"] == "dense":
            if section not in self.items:  # 7: "one tensor after the other"
                group = [
                    r for r in self.rows if (r["kind"], r.get("section")) == ("dense", section)
                ]
                shapes = [r["shape"] for r in group]
                self.items[section] = read_group(self.payload(section), shapes, dtype)
            end = count * (size // width)
            items, self.items[section] = self.items[section][:end], self.items[section][end:]
            return dtype, shape, b"".join(item.to_bytes(width, "little") for item in items)
        values = self.values[row["prototype"]]
        source = self.prototypes[row["prototype"]].get("dtype", "float32")
        if (row["scale"], source) != (1.0, dtype):
            values = [scale(item, source, row["scale"], dtype) for item in values]
        result = bytearray()
        for i, bit in enumerate(self.mask(row)):
            item = values[(row["offset"] + i) % len(values)] if bit else 0  # "+0.0 (all bits 0)"
            result += item.to_bytes(size, "little")
        return dtype, shape, bytes(result)


def philox(seed: int, stream: int, block: int) -> list[int]:
    """5.1: one block of four words."""
    low = 0xFFFFFFFF
    c0, c1, c2, c3 = block & low, block >> 32, stream & low, stream >> 32
    k0, k1 = seed & low, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & low, (p0 >> 32) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return [c0, c1, c2, c3]


FORMATS = {"float16": ("<e", 2), "float32": ("<f", 4), "float64": ("<d", 8)}
INFINITIES = {"float16": 0x7C00, "float32": 0x7F800000, "float64": 0x7FF << 52}
NANS = {"float16": 0x7E00, "bfloat16": 0x7FC0, "float32": 0x7FC00000, "float64": 0x7FF8 << 48}


def pack(value: float, dtype: str = "float32") -> int:
    """Bits of the number of a dtype that is nearest to a binary64 (for bfloat16: a binary32)."""
    if math.isnan(value):
        return NANS[dtype]
    if dtype == "bfloat16":
        bits = pack(value)
        return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    code, size = FORMATS[dtype]
    try:
        return int.from_bytes(struct.pack(code, value), "little")
    except OverflowError:
        return INFINITIES[dtype] | (value < 0) << 8 * size - 1


def unpack(bits: int, dtype: str = "float32") -> float:
    if dtype == "bfloat16":
        bits, dtype = bits << 16, "float32"
    code, size = FORMATS[dtype]
    return float(struct.unpack(code, bits.to_bytes(size, "little"))[0])


def scale(bits: int, source: str, factor: float, dtype: str) -> int:
    """5.3: to binary32, times `scale`, to the tensor's dtype; each step rounds once."""
    value = unpack(pack(unpack(bits, source)))
    return pack(unpack(pack(value * factor)), dtype)  # the product is exact in binary64


# 5.2: "the binary32 nearest to" the quantile of (j + 1/2) / 4096.
UPPER = [pack(NormalDist().inv_cdf((2 * j + 1) / 8192)) for j in range(2048, 4096)]
if zlib.crc32(struct.pack("<2048I", *UPPER)) != 0xE6C06AFF:
    raise RuntimeError("this Python computes other quantiles of the normal distribution")
QUANTILES = [bits | 1 << 31 for bits in reversed(UPPER)] + UPPER
DISTRIBUTIONS = {
    "uniform": lambda w: pack((2 * (w >> 8) + 1 - 2**24) / 2**24),
    "signed-constant": lambda w: 0x3F800000 | (w & 0x80000000),
    "normal": lambda w: QUANTILES[w >> 20],
}

# ------------------------------------------------------------------------------------ 6 Masks


def read_mask(section: bytes, n: int) -> list[int]:
    """6.1 to 6.3: the mask's n bits."""
    coder, body = section[0], section[1:]
    if coder == 0:  # 6.1
        require(body in (b"\0", b"\1"), "section", "a constant mask")
        return [body[0]] * n
    size = -(-n // 8)
    if coder == 2:
        require(n > 0, "section", "rANS without weights")
        return read_rans(body, n)
    require(len(body) >= size, "truncated", "a packed mask")
    require(len(body) == size, "trailing", "a packed mask")
    bits = [body[i // 8] >> i % 8 & 1 for i in range(8 * size)]
    require(not any(bits[n:]), "section", "padding bits")
    return bits[:n]


def read_rans(body: bytes, n: int) -> list[int]:
    """6.3: bits."""
    if n <= 1 << 20:
        return read_block(body, n)
    require(len(body) >= 1, "truncated", "block bits")
    require(20 <= body[0] <= 25, "section", "block bits")
    size = 8 * -(-n // (8 * -(-n >> body[0])))
    weights = [min(size, n - start) for start in range(0, n, size)]
    at = 1 + 4 * len(weights)
    require(len(body) >= at, "truncated", "block index")
    sizes = struct.unpack_from(f"<{len(weights)}I", body, 1)
    require(sum(sizes) == len(body) - at, "section", "block sizes")
    bits = []
    for m, size in zip(weights, sizes, strict=True):
        bits += read_block(body[at : at + size], m)
        at += size
    return bits


def read_block(block: bytes, m: int) -> list[int]:
    require(len(block) >= 2, "truncated", "a block's density")
    q = block[0] | block[1] << 8
    require(q > 0, "section", "density 0")
    r = min(q, 65536 - q)
    if r >= 10240:
        powers = [q**k * (65536 - q) ** (8 - k) for k in range(9)]
        frequency = [max(1, (powers[s.bit_count()] + (1 << 112)) >> 113) for s in range(256)]
        frequency[0x00 if q <= 32768 else 0xFF] += 32768 - sum(frequency)
        symbols = read_symbols(block[2:], -(-m // 8), frequency)
        bits = [symbols[i // 8] >> i % 8 & 1 for i in range(8 * len(symbols))]
        require(not any(bits[m:]), "section", "padding bits")
        return bits[:m]
    count, at = read_varint(block, 2)
    require(1 <= count <= m, "section", "number of runs")
    longest, reach, frequency = min(255, (1 << 17) // r), 1 << 32, []
    for _ in range(longest):
        frequency.append(max(1, (reach * r + (1 << 32)) >> 33))
        reach = reach * (65536 - r) >> 16
    frequency.append(32768 - sum(frequency))
    rarer, bits = int(q < 32768), []
    for s in read_symbols(block[at:], count, frequency):
        require(len(bits) < m, "section", "runs are left over")
        bits += [1 - rarer] * s
        if s < longest:
            bits.append(rarer)
            require(len(bits) <= m, "section", "a run is too long")
    require(len(bits) >= m, "section", "runs are missing")
    return bits[:m]


def read_symbols(data: bytes, count: int, frequency: list[int]) -> bytes:
    lanes = 8 if count >= 1 << 16 else 1
    start = [sum(frequency[:s]) for s in range(len(frequency))]
    symbol_of = [s for s, f in enumerate(frequency) for _ in range(f)]
    fits = len(data) >= 4 * lanes and len(data) % 2 == 0
    require(fits, "section", "states are cut off, or an odd number of bytes")
    states = list(struct.unpack_from(f"<{lanes}I", data))
    require(min(states) >= 1 << 16, "section", "initial state")
    at, symbols = 4 * lanes, bytearray()
    for j in range(count):
        x = states[j % lanes]
        slot = x % 32768
        s = symbol_of[slot]
        x = frequency[s] * (x >> 15) + slot - start[s]
        if x < 1 << 16:
            require(at < len(data), "section", "words are missing")
            x = x << 16 | data[at] | data[at + 1] << 8
            at += 2
        states[j % lanes] = x
        symbols.append(s)
    require(at == len(data), "section", "words are left over")
    require(set(states) == {1 << 16}, "section", "final state")
    return bytes(symbols)


# 6.4: "the integer nearest to"; squash(x) is SQUASH[x + 1536]
STRETCH = [round(1024 * math.log((2 * j + 1) / (8191 - 2 * j))) for j in range(4096)]
SQUASH = [
    min(max(round(65536 / (1 + math.exp(-(2 * x + 1) / 256))), 1), 65535)
    for x in range(-1536, 1536)
]
if zlib.crc32(struct.pack("<3584H", *STRETCH[2048:], *SQUASH[1536:])) != 0x73BB4889:
    raise RuntimeError("this Python computes other logarithms and exponentials")


def stretch(p: int) -> int:
    return STRETCH[p >> 10]


def squash(x: int) -> int:
    return SQUASH[min(max(x, -1536), 1535) + 1536]


def read_mixed(body: bytes, tensors: list[tuple[list[int], list[int]]]) -> list[list[int]]:
    """6.4: the masks of tensors of which shape and buckets are known."""
    counts = [math.prod(shape) for shape, _ in tensors]
    require(0 not in counts, "section", "mixing without weights")
    if len(tensors) > 1:
        require(sum(counts) <= 1 << 23, "section", "too many weights in one section")
        return read_mixed_block(body, tensors, 0, sum(counts))
    ((shape, buckets),) = tensors
    starts = range(0, counts[0], 1 << 23)
    sizes, at = [len(body)], 0
    if len(starts) > 1:
        at = 4 * len(starts)
        require(len(body) >= at, "truncated", "block index")
        sizes = list(struct.unpack_from(f"<{len(starts)}I", body))
        require(sum(sizes) == len(body) - at, "section", "block sizes")
    bits: list[int] = []
    for start, size in zip(starts, sizes, strict=True):
        stop = min(start + (1 << 23), counts[0])
        block = body[at : at + size]
        bits += read_mixed_block(block, [(shape, buckets[start:stop])], start, stop)[0]
        at += size
    return [bits]


def read_mixed_block(
    block: bytes, tensors: list[tuple[list[int], list[int]]], start: int, stop: int
) -> list[list[int]]:
    """One block: several tensors, or the weights from `start` to `stop` of one."""
    require(len(block) >= len(tensors), "truncated", "densities")
    decoder = RangeDecoder(block[len(tensors) :])
    kinds: dict[int, Kind] = {}
    channels: dict[int, Counter] = {}
    rows_before = 0
    masks = []
    for d, (shape, buckets) in zip(block, tensors, strict=False):
        columns = shape[1] if len(shape) > 1 else shape[0] if shape else 1
        kernel = math.prod(shape[2:])
        width = shape[-1] if len(shape) > 2 else 1
        row_size = columns * kernel
        number = 0 if kernel == 1 else 1 if columns == 1 else 2
        p0 = squash(8 * (d - 128)) * 64
        kind = kinds.setdefault(number, Kind(p0))
        first = start if len(tensors) == 1 else 0
        count = stop - start if len(tensors) == 1 else len(buckets)
        rows = -(-(first + count) // row_size)
        chained = rows_before == (rows if number == 1 else columns)
        row_counters: dict[int, Counter] = {}  # counters 0 as the rows left them
        lines = Counters(p0)
        mask: list[int] = []
        for i, bucket in enumerate(buckets):
            row, within = divmod(first + i, row_size)
            x, y = divmod(within, kernel)
            sign, column = bucket // 16, x % 16384
            left, up = y % width > 0, y >= width
            if number == 0:
                places = [(1, x >= 1), (2, x >= 2), (row_size, True), (2 * row_size, True)]
            elif number == 1:
                places = [(1, left), (width, up), (row_size, True), (width + 1, left and up)]
            else:
                places = [(1, left), (width, up), (row_size, True), (kernel, x >= 1)]
            pulls = [
                (2 if mask[i - far] == buckets[i - far] // 16 else 1) if there and i >= far else 0
                for far, there in places
            ]
            of_row, of_column = lines.of("row", row), lines.of("column", column)
            row_counters[row % 16384] = of_row
            levels = [
                min(max((stretch(c.p) - stretch(p0)) >> 7, -16), 15) for c in (of_row, of_column)
            ]
            counters = [
                of_row,
                of_column,
                kind.counters.of("crossing", *levels),
                lines.of("row and sign", row, sign),
                lines.of("column and sign", column, sign),
                lines.of("row and bucket", row, bucket),
                lines.of("column and bucket", column, bucket),
                kind.counters.of("position", y % 512, bucket // 4),
                kind.counters.of("near", *pulls[:2], bucket),
                kind.counters.of("around", *pulls, sign),
                channels[(row if number == 1 else x) % 16384] if chained else lines.of("channel"),
            ]
            s = [stretch(counter.p) for counter in counters]
            mixed = sum(a * (b >> 7) for a, b in zip(s, kind.w, strict=True)) >> 16
            one = squash(mixed)
            bit = decoder.bit(one)
            e = ((bit << 16) - one) * (25 + 5248 // math.isqrt(256 * (kind.t // 64 + 1))) >> 10
            most = (1 << 21) - 1
            kind.w = [
                min(max(b + (a * e + 512 >> 10), -most), most)
                for a, b in zip(s, kind.w, strict=True)
            ]
            kind.t = min(kind.t + 1, 16383)
            for j, counter in enumerate(counters):
                if j < 10 or not chained:
                    counter.learn(bit, 1023 if j < 3 else 255)
            mask.append(bit)
        masks.append(mask)
        channels, rows_before = row_counters, rows
    require(decoder.at == len(decoder.data), "section", "bytes left over")
    require(decoder.code == 0, "section", "final state")
    return masks


class Counter:
    """A probability in 1/2^22 and a count."""

    def __init__(self, p: int) -> None:
        self.p, self.n = p, 0

    def learn(self, bit: int, most: int) -> None:
        target = (1 << 22) - 1 if bit else 0
        self.p += (target - self.p) * (65536 // (self.n + 3)) >> 16
        self.n = min(self.n + 1, most)


class Counters:
    """Counters by what there is one for each of."""

    def __init__(self, p0: int) -> None:
        self.p0 = p0
        self.counters: dict[tuple[Any, ...], Counter] = {}

    def of(self, *key: Any) -> Counter:
        return self.counters.setdefault(key, Counter(self.p0))


class Kind:
    """What parts of one kind share: counters, weights of the mixer, bits coded."""

    def __init__(self, p0: int) -> None:
        self.counters, self.w, self.t = Counters(p0), [131072] * 11, 0


class RangeDecoder:
    def __init__(self, data: bytes) -> None:
        require(len(data) >= 4, "section", "data of fewer than four bytes")
        self.data, self.at = data, 4
        self.range, self.code = (1 << 32) - 1, int.from_bytes(data[:4], "big")

    def bit(self, one: int) -> int:
        bound = (self.range >> 16) * one
        bit = int(self.code < bound)
        self.code -= 0 if bit else bound
        self.range = bound if bit else self.range - bound
        while self.range < 1 << 24:
            require(self.at < len(self.data), "section", "bytes are missing")
            self.range *= 256
            self.code = (self.code * 256 + self.data[self.at]) % (1 << 32)
            self.at += 1
        return bit


# ------------------------------------------------------------------------------------ 7 Dense


def read_group(section: bytes, shapes: list[list[int]], dtype: str) -> list[int]:
    """The items of tensors of those shapes."""
    elements = sum(map(math.prod, shapes))
    require(len(section) > 0, "truncated", "an empty dense section")
    coder, body = section[0], section[1:]
    require(coder <= 6, "unknown-field", f"dense coder {coder}")
    if coder <= 3:
        return read_items(section, elements, dtype)
    require(dtype == "float32", "section", "a shorter float of another dtype")  # 7.5
    if coder == 6:
        return read_affine(body, shapes, elements)
    shorter = ("float16", "bfloat16")[coder - 4]
    require(len(body) > 0, "truncated", "an empty dense section")
    require(body[0] <= 6, "unknown-field", f"dense coder {body[0]}")
    require(body[0] <= 3, "section", "a shorter float within another")
    return [pack(unpack(item, shorter)) for item in read_items(body, elements, shorter)]


def read_affine(body: bytes, shapes: list[list[int]], elements: int) -> list[int]:
    """7.5: binary32 as items."""

    def floats(at: int, count: int) -> tuple[list[float], int]:
        require(len(body) >= at + 4 * count, "truncated", "numbers of an affine body")
        numbers = list(struct.unpack_from(f"<{count}f", body, at))
        require(all(map(math.isfinite, numbers)), "section", "a number that is not finite")
        return numbers, at + 4 * count

    require(len(body) > 0, "truncated", "an empty affine body")
    require(body[0] <= 1, "section", "in rows")
    rows = [shape[0] if body[0] and len(shape) > 1 else 1 for shape in shapes]
    scales, at = floats(1, sum(rows))
    offsets, at = floats(at, sum(rows))
    count, at = read_varint(body, at)
    require(count <= elements, "section", "number of exact values")
    positions = [-1]
    for _ in range(count):
        gap, at = read_varint(body, at)
        positions.append(positions[-1] + gap + 1)
        require(positions[-1] < elements, "section", "position of an exact value")
    exact, at = floats(at, count)
    codes = read_group(body[at:], [[elements]], "uint8")
    row_of: list[int] = []
    for index, shape in enumerate(shapes):
        first, size = sum(rows[:index]), math.prod(shape)
        row_of += [first + i * rows[index] // size for i in range(size)]
    values = [
        pack(unpack(pack(code * scales[row])) + offsets[row])
        for code, row in zip(codes, row_of, strict=True)
    ]
    for position, value in zip(positions[1:], exact, strict=True):
        values[position] = pack(value)
    return values


def read_items(section: bytes, elements: int, dtype: str) -> list[int]:
    """The items of a group, of W bytes each."""
    size, w = DTYPES[dtype]
    n = elements * (size // w)
    coder, body = section[0], section[1:]
    if coder == 0:  # 7.1
        require(len(body) == n * w, "section", "length of raw items")
        items = [int.from_bytes(body[i * w : i * w + w], "little") for i in range(n)]
    elif coder == 3:  # 7.3
        end = 1 + (body[0] + 1) * w if body else 1
        require(len(body) >= end, "truncated", "palette")
        values = [int.from_bytes(body[i : i + w], "little") for i in range(1, end, w)]
        require(values == sorted(set(values)), "section", "the values do not ascend")
        indices = read_planes(body[end:], n, 1)
        require(max(indices, default=0) < len(values), "section", "an index above count")
        items = [values[i] for i in indices]
    else:  # 7.2: rotated planes "are rotated right by one bit after they are put together"
        items = read_planes(body, n, w)
        if coder == 2:
            items = [item >> 1 | (item & 1) << 8 * w - 1 for item in items]
    require(dtype != "bool" or max(items, default=0) <= 1, "section", "a bool")
    return items


def read_planes(body: bytes, n: int, w: int) -> list[int]:
    """7.2: w planes of n bytes."""
    at, items = 0, [0] * n
    for j in range(w):
        require(at < len(body), "truncated", "a plane is missing")
        method, at = body[at], at + 1
        require(method <= 2, "unknown-field", f"plane method {method}")
        size = (n, 1)[method] if method < 2 else 0
        if method == 2:
            size, at = read_varint(body, at)
        require(at + size <= len(body), "truncated", "a plane is cut off")
        plane, at = body[at : at + size], at + size
        if method == 1:
            plane *= n
        elif method == 2:
            plane = read_frame(plane, n, n)
        items = [item | byte << 8 * j for item, byte in zip(items, plane, strict=True)]
    require(at == len(body), "trailing", "bytes behind the last plane")
    return items


if __name__ == "__main__":
    try:
        path = Path(sys.argv[1])
        decoded = Decoder(path.read_bytes(), folder=path.parent)
        for name, (dtype, shape, data) in decoded.tensors.items():
            print(f"{name} {dtype} {shape} {zlib.crc32(data):08x}")
        print(decoded.digest())
    except PemnError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
