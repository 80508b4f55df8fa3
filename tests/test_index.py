"""The index of a sharded model: what is written is read, and hostile input has its code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pemncodec.errors import DecodeError, EncodeError
from pemncodec.format.columns import is_file_name
from pemncodec.format.index import (
    Shard,
    ShardIndex,
    decode_index,
    encode_index,
    index_name,
    shard_names,
    whole_of_shard,
)
from pemncodec.limits import Limits

FILES = {"n-00001-of-00002.pemn": Shard(100, 0x12), "n-00002-of-00002.pemn": Shard(7, 0xFFFFFFFF)}
ONE, TWO = FILES
INDEX = ShardIndex(FILES, {"z": ONE, "a": TWO, "m": ONE})
SHARD = {"size": 1, "front_crc": "00000000"}


def written(**changed: Any) -> bytes:
    value = json.loads(encode_index(INDEX)) | changed
    return json.dumps({key: value for key, value in value.items() if value is not None}).encode()


names = st.text("abcxyzÄ.01_", min_size=1, max_size=6)


@given(
    st.dictionaries(names, st.integers(0, 2), min_size=1),
    st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1)), min_size=3),
    st.none() | st.dictionaries(names, st.none() | st.integers() | names),
)
def test_what_is_written_is_read(
    placed: dict[str, int], sizes: list[tuple[int, int]], manifest: dict[str, Any] | None
) -> None:
    files = shard_names("net.pemn", 3)
    weight_map = {name: files[number] for name, number in placed.items()}
    used = sorted(set(weight_map.values()))
    index = ShardIndex(
        {file: Shard(*size) for file, size in zip(used, sizes, strict=False)}, weight_map, manifest
    )
    data = encode_index(index)
    read = decode_index(data, Limits())
    assert read == index
    assert list(read.weight_map) == list(weight_map)
    assert encode_index(read) == data


def test_bytes_are_those_of_the_spec() -> None:
    assert encode_index(ShardIndex({"n.pemn": Shard(300, 0x0A)}, {"b": "n.pemn"}, {"x": 1})) == (
        b'{"format":"pemn-index","manifest":{"x":1},'
        b'"shards":{"n.pemn":{"front_crc":"0000000a","size":300}},'
        b'"version":"0.4","weight_map":{"b":"n.pemn"}}'
    )


def test_names() -> None:
    assert shard_names("net.pemn", 2) == ["net-00001-of-00002.pemn", "net-00002-of-00002.pemn"]
    assert index_name("net.pemn") == "net.pemn.index.json"
    assert index_name("net") == "net.pemn.index.json"
    for name in shard_names("net.pemn", 100_000)[::99_999]:
        assert whole_of_shard(name) == "net.pemn"
    assert whole_of_shard("a-1-00001-of-00003.safetensors") == "a-1.safetensors"
    other = ("net.pemn", "net-1-of-2.pemn", "-00001-of-00002.pemn", "net-٠٠٠٠١-of-00002.pemn")
    for name in (*other, "net-00001-of-00002.pemn.index.json"):
        assert whole_of_shard(name) is None


PATHS = ("a/b.pemn", "../b.pemn", "a\\b.pemn", "C:b.pemn", "s3::b.pemn", ".b.pemn", ".pemn", "b.pt")


@pytest.mark.parametrize("name", [*PATHS, "", "b.pemn\n", "\x1b.pemn", "x" * 251 + ".pemn", 1])
def test_what_is_no_plain_name(name: Any) -> None:
    assert not is_file_name(name)
    if isinstance(name, str):
        with pytest.raises(EncodeError, match="cannot name a shard"):
            encode_index(ShardIndex({name: Shard(1, 1)}, {"a": name}))
        with pytest.raises(DecodeError) as caught:
            decode_index(written(shards={name: SHARD}, weight_map={"a": name}), Limits())
        assert caught.value.code == "header"


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("json", b"{"),
        ("json", b'{"format":"pemn-index","format":"pemn-index"}'),
        ("json", written() + b" x"),
        ("limit", b"[" * 300),
        ("not-pemn", b"[]"),
        ("not-pemn", b"{}"),
        ("not-pemn", b'{"metadata":{},"weight_map":{}}'),
        ("not-pemn", written(format="pemn")),
        ("version", written(version="1.0", later=1)),
        ("header", written(version=None)),
        ("header", written(version=0.4)),
        ("header", written(version="0")),
        ("header", written(version="0.4.1")),
        ("header", written(version="٠.4")),
        ("header", written(version="0.4\n")),
        ("unknown-field", written(later=1, shards=3)),
        ("unknown-field", written(shards={ONE: SHARD | {"sha": ""}, TWO: SHARD})),
        ("header", written(shards=None)),
        ("header", written(shards=[])),
        ("header", written(shards={ONE: SHARD})),
        ("header", written(shards={ONE: SHARD, TWO: SHARD, "n.pemn": SHARD})),
        ("header", written(shards={ONE: SHARD, TWO: 3})),
        ("header", written(shards={ONE: SHARD, TWO: {"size": 1}})),
        ("header", written(shards={ONE: SHARD, TWO: {"front_crc": "00000000"}})),
        ("header", written(shards={ONE: SHARD, TWO: SHARD | {"size": -1}})),
        ("header", written(shards={ONE: SHARD, TWO: SHARD | {"size": 1 << 63}})),
        ("header", written(shards={ONE: SHARD, TWO: SHARD | {"size": True}})),
        ("header", written(shards={ONE: SHARD, TWO: SHARD | {"size": 1.0}})),
        ("header", written(shards={ONE: SHARD, TWO: SHARD | {"front_crc": "0000000A"}})),
        ("header", written(shards={ONE: SHARD, TWO: SHARD | {"front_crc": "00000000\n"}})),
        ("header", written(shards={ONE: SHARD, TWO: SHARD | {"front_crc": 0}})),
        ("header", written(weight_map=None)),
        ("header", written(weight_map=[])),
        ("header", written(weight_map={})),
        ("header", written(weight_map={"a": ONE, "b": TWO, "c": "n.pemn"})),
        ("header", written(weight_map={"a": ONE, "b": TWO, "c": 1})),
        ("header", written(weight_map={"a": ONE, "b": TWO, "": ONE})),
        ("header", written(weight_map={"a": ONE, "b": TWO, "c\x1b": ONE})),
        ("header", written(manifest=[])),
    ],
)
def test_hostile_index(code: str, data: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_index(data, Limits())
    assert caught.value.code == code, caught.value
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_limits() -> None:
    data = encode_index(INDEX)
    decode_index(data, Limits(tensors=3, header_bytes=len(data) - 1, manifest_bytes=1))
    for limits in (Limits(tensors=2), Limits(header_bytes=len(data) - 2, manifest_bytes=1)):
        with pytest.raises(DecodeError) as caught:
            decode_index(data, limits)
        assert caught.value.code == "limit"


def test_what_readers_may_ignore() -> None:
    data = written(**{"?note": [1], "version": "0.9"}, shards={ONE: SHARD | {"?x": 1}, TWO: SHARD})
    assert decode_index(data, Limits()).weight_map == INDEX.weight_map
