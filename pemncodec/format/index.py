"""The index of a sharded model ↔ its JSON (spec/pemn.md section 4.3).

Names alone: what the shards hold is checked where they are opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pemncodec.coders.canonical_json import decode_json, encode_json
from pemncodec.errors import (
    CorruptError,
    EncodeError,
    LimitError,
    NotPemnError,
    UnsupportedVersionError,
)
from pemncodec.format.columns import MAX_INDEX, is_file_name, is_int, is_name
from pemncodec.format.container import MAJOR
from pemncodec.limits import Limits

FORMAT: Final = "pemn-index"
VERSION: Final = "0.4"
SUFFIX: Final = ".pemn"
INDEX_SUFFIX: Final = ".pemn.index.json"

_FIELDS: Final = frozenset({"format", "manifest", "shards", "version", "weight_map"})
_SHARD_FIELDS: Final = frozenset({"front_crc", "size"})
_VERSION: Final = re.compile(r"([0-9]{1,9})\.[0-9]{1,9}", re.ASCII)
_CRC: Final = re.compile("[0-9a-f]{8}")
_SHARD: Final = re.compile(r"(.+)-[0-9]{5,}-of-[0-9]{5,}(\.[a-z]+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Shard:
    """What tells a file from one of the same name.

    Attributes:
        size: its bytes.
        front_crc: CRC-32 of its front, which covers the CRC-32 of each section.
    """

    size: int
    front_crc: int


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Which files a model is in.

    Attributes:
        shards: by the name of each file, which is in the index's folder.
        weight_map: name of each tensor, aliases included, to the name of its file; in the order of
            the model's `state_dict`.
        manifest: the architecture, not validated; None where there is none.
    """

    shards: Mapping[str, Shard]
    weight_map: Mapping[str, str]
    manifest: Mapping[str, Any] | None = None


def shard_names(name: str, count: int) -> list[str]:
    """Names of the files of `NAME.pemn` in `count` shards."""
    stem = name.removesuffix(SUFFIX)
    return [f"{stem}-{number:05}-of-{count:05}{SUFFIX}" for number in range(1, count + 1)]


def whole_of_shard(name: str) -> str | None:
    """Name of the file of which another is a shard, by the name of that alone; else None.

    Shards of checkpoints are called alike: `model-00001-of-00003.safetensors`.
    """
    match = _SHARD.fullmatch(name)
    return match[1] + match[2] if match else None


def index_of_shard(name: str) -> str | None:
    """Name of the index to which a file belongs, by its own name; None if that is no shard's."""
    whole = whole_of_shard(name)
    return index_name(whole) if whole is not None and whole.endswith(SUFFIX) else None


def index_name(name: str) -> str:
    """Name of the index of `NAME.pemn`."""
    return name.removesuffix(SUFFIX) + INDEX_SUFFIX


def encode_index(index: ShardIndex) -> bytes:
    """The bytes of an index.

    Raises:
        EncodeError: no reader takes the name of a file.
    """
    for name in index.shards:
        if not is_file_name(name):
            raise EncodeError(f"{name!r:.80} cannot name a shard: use letters, digits, - and _")
    shards = {
        name: {"size": shard.size, "front_crc": f"{shard.front_crc:08x}"}
        for name, shard in index.shards.items()
    }
    fields = {"format": encode_json(FORMAT)}
    if index.manifest is not None:
        fields["manifest"] = encode_json(index.manifest)
    fields["shards"] = encode_json(shards)
    fields["version"] = encode_json(VERSION)
    fields["weight_map"] = _object(  # whose keys are not sorted
        {name: encode_json(file) for name, file in index.weight_map.items()}
    )
    return _object(fields)


def decode_index(data: bytes, limits: Limits) -> ShardIndex:
    """A checked index; its manifest is not validated.

    Raises:
        NotPemnError: JSON, but no index.
        UnsupportedVersionError: another major version.
        CorruptError: a rule of the spec is broken.
        LimitError: larger, or of more tensors, than `limits` allow.
    """
    check_index_size(len(data), limits)
    try:
        value = decode_json(data, depth=limits.json_depth)
    except CorruptError as error:
        raise CorruptError(
            error.code, f"{error}: the index is cut off or damaged; take it once more"
        ) from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise NotPemnError("not-pemn", "not an index of a sharded .pemn model")
    _check_version(value.get("version"))
    _check_fields(value, _FIELDS, "")
    rows = value.get("shards")
    for row in rows.values() if isinstance(rows, dict) else ():
        _check_fields(row, _SHARD_FIELDS, "shards.")
    for key in ("shards", "weight_map"):
        table = value.get(key)
        if isinstance(table, dict) and len(table) > limits.tensors:
            raise LimitError("limit", f"{key} has more than {limits.tensors} entries")
    shards = _decode_shards(rows)
    manifest = value.get("manifest", {})
    if not isinstance(manifest, dict):
        raise CorruptError("header", "manifest is not an object")
    weight_map = _decode_weight_map(value.get("weight_map"), shards)
    return ShardIndex(shards, weight_map, manifest if "manifest" in value else None)


def most_of_index(limits: Limits) -> int:
    """How many bytes of an index a reader takes."""
    return limits.header_bytes + limits.manifest_bytes


def check_index_size(size: int, limits: Limits) -> None:
    """Raises LimitError where an index has more bytes than a reader takes."""
    if size > (most := most_of_index(limits)):
        raise LimitError("limit", f"an index of more than {most:,} bytes, the limit")


def _object(fields: Mapping[str, bytes]) -> bytes:
    return b"{" + b",".join(encode_json(key) + b":" + text for key, text in fields.items()) + b"}"


def _check_version(version: Any) -> None:
    match = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if match is None:
        raise CorruptError("header", f"{version!r:.60} is no version of an index")
    if int(match[1]) != MAJOR:
        raise UnsupportedVersionError(
            "version", f"index version {version}, this reader knows {MAJOR}.x: update pemncodec"
        )


def _check_fields(value: Any, known: frozenset[str], place: str) -> None:
    for key in value if isinstance(value, dict) else ():
        if key not in known and not key.startswith("?"):
            raise CorruptError("unknown-field", f"unknown required field {place}{key!r:.60}")


def _decode_shards(rows: Any) -> dict[str, Shard]:
    if not isinstance(rows, dict):
        raise CorruptError("header", "shards is not an object")
    shards = {}
    for name, row in rows.items():
        if not is_file_name(name):
            raise CorruptError("header", f"{name!r:.60} is not the plain name of a .pemn file")
        if not isinstance(row, dict) or not is_int(0, MAX_INDEX)(row.get("size")):
            raise CorruptError("header", f"the size of shard {name!r:.60} is missing or no size")
        crc = row.get("front_crc")
        if not isinstance(crc, str) or not _CRC.fullmatch(crc):
            raise CorruptError("header", f"front_crc of shard {name!r:.60} is not eight digits")
        shards[name] = Shard(row["size"], int(crc, 16))
    return shards


def _decode_weight_map(value: Any, shards: Mapping[str, Shard]) -> dict[str, str]:
    if not isinstance(value, dict):
        raise CorruptError("header", "weight_map is not an object")
    for name, file in value.items():
        if not is_name(name):
            raise CorruptError("header", f"{name!r:.60} is no name of a tensor")
        if not isinstance(file, str) or file not in shards:
            raise CorruptError("header", f"weight_map: {name!r:.60} is in no shard of the index")
    unused: Sequence[str] = sorted(shards.keys() - set(value.values()))
    if unused:
        raise CorruptError("header", f"shard {unused[0]!r:.60} has no tensor in weight_map")
    return value
