"""Damaged and hostile files: each is refused for the reason that it is wrong; and how files are
written and read."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import stat
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from conftest import ROOT, MaskedNet, random_masks, small_net
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pemncodec
from pemncodec import (
    CorruptError,
    DecodeError,
    LimitError,
    Limits,
    NotPemnError,
    TruncatedError,
    UnsupportedVersionError,
)
from pemncodec.coders.dense import encode_dense
from pemncodec.coders.masks import encode_mask
from pemncodec.coders.zstd import decode_zstd, encode_zstd
from pemncodec.format.atomic import write_file
from pemncodec.format.container import decode_container, encode_container, read_section
from pemncodec.format.header import DenseRow
from pemncodec.spool import Spool
from pemncodec.tensors import tensor_to_array

SMALL_LIMITS = Limits(decoded_bytes=1 << 20, header_bytes=1 << 20, manifest_bytes=1 << 20)


def read_all(data: bytes, limits: Limits | None = None) -> None:
    with pemncodec.open(io.BytesIO(data), limits=limits) as file:
        file.verify()


READERS: dict[str, Callable[[bytes], Any]] = {
    "verify": read_all,
    "load_state_dict": lambda data: pemncodec.load_state_dict(io.BytesIO(data)),
    "decode": lambda data: pemncodec.decode(io.BytesIO(data)),
}


def encoded_small() -> bytes:
    module = small_net()
    stream = io.BytesIO()
    MaskedNet(module, random_masks(module), torch.ones(1, 3, 8, 8)).encode(
        stream, metadata={"made by": "tests"}
    )
    return stream.getvalue()


@pytest.fixture(scope="module")
def data() -> bytes:
    return encoded_small()


# --------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("reader", READERS)
def test_an_undamaged_file_is_read(data: bytes, reader: str) -> None:
    READERS[reader](data)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("xor", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_refused(data: bytes, reader: str, xor: int) -> None:
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= xor
        with pytest.raises(DecodeError):
            READERS[reader](bytes(damaged))


@pytest.mark.parametrize("reader", READERS)
def test_every_cut_is_refused(data: bytes, reader: str) -> None:
    for length in range(len(data)):
        with pytest.raises(TruncatedError if length else NotPemnError):
            READERS[reader](data[:length])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("more", [b"\0", b"\n", b"\x89PMN"])
def test_bytes_behind_the_end_are_refused(data: bytes, reader: str, more: bytes) -> None:
    with pytest.raises(CorruptError) as caught:
        READERS[reader](data + more)
    assert caught.value.code == "trailing"


def test_a_removed_or_doubled_byte_is_refused(data: bytes) -> None:
    for position in range(len(data)):
        for damaged in (
            data[:position] + data[position + 1 :],
            data[:position] + data[position : position + 1] + data[position:],
        ):
            with pytest.raises(DecodeError):
                read_all(damaged)


@pytest.mark.parametrize(
    "transfer",
    [
        lambda data: data.replace(b"\r\n", b"\n"),
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: bytes(byte & 0x7F for byte in data),
        lambda data: data.decode("latin-1").encode("utf-8"),
        lambda data: data.decode("ascii", "replace").encode("utf-8"),
    ],
)
def test_text_mode_transfers_are_noticed(data: bytes, transfer: Callable[[bytes], bytes]) -> None:
    with pytest.raises(NotPemnError) as caught:
        read_all(transfer(data))
    assert caught.value.code == "not-pemn"


@pytest.mark.parametrize("other", [b"", b"\n", b"PK\3\4" * 20, b"\x89PNG\r\n\x1a\n", bytes(200)])
def test_other_files_are_no_pemn_files(other: bytes) -> None:
    with pytest.raises(NotPemnError) as caught:
        read_all(other)
    assert caught.value.code == "not-pemn"


def with_front(data: bytes, **fields: int) -> bytes:
    """Other fields in front of the header, checksum right."""
    names = ("major", "minor", "header", "frame", "table")
    values = dict(zip(names, struct.unpack("<BBIII", data[8:22]), strict=True))
    size = 22 + values["frame"] + values["table"]
    front = data[:8] + struct.pack("<BBIII", *(values | fields).values()) + data[22:size]
    return front + struct.pack("<I", zlib.crc32(front)) + data[size + 4 :]


def test_versions(data: bytes) -> None:
    read_all(with_front(data, minor=9))
    for major in (1, 2, 255):
        with pytest.raises(UnsupportedVersionError) as caught:
            read_all(with_front(data, major=major))
        assert caught.value.code == "version"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"header": 0}, "zstd"),
        ({"header": 1}, "zstd"),
        ({"header": 1 << 20}, "zstd"),
        ({"header": 0xFFFFFFFF}, "limit"),
        ({"frame": 0xFFFFFFFF}, "limit"),
        ({"table": 0xFFFFFFFF}, "limit"),
        ({"table": 1 << 20}, "truncated"),
        ({"frame": 1 << 20}, "truncated"),
    ],
)
def test_lies_about_sizes(data: bytes, fields: dict[str, int], code: str) -> None:
    with pytest.raises(DecodeError) as caught:
        read_all(with_front(data, **fields))
    assert caught.value.code == code


# ------------------------------------------------------------------------- hostile headers

ONES = b"\0" + np.arange(1, 5, dtype="<f4").tobytes()  # raw
MASK = encode_mask(np.array([True, False, True, True]))


def valid() -> dict[str, Any]:
    """A header that goes with `SECTIONS` and uses every table."""
    return {
        "sections": [["dense", 1], ["mask", 1], ["prototype", 1]],
        "tensors": {
            "name": ["d", "m", "c", "a"],
            "kind": ["dense", "masked", "constant", "alias"],
            "shape": [[2, 2], [4], [], []],
        },
        "masked": {"prototype": [0]},
        "masks": {"section": [1]},
        "dense": {"section": [0]},
        "constant": {"value": ["0000803f"]},
        "alias": {"target": ["m"]},
        "prototypes": {"length": [4]},
        "stored": {"section": [2]},
        "metadata": {"k": "v"},
    }


SECTIONS = [ONES, MASK, ONES]


def build(header: Any, sections: list[bytes] | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    sections = SECTIONS if sections is None else sections
    return b"".join([encode_container(text, map(Spool().add, sections), 1), *sections])


def refusal(data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(DecodeError) as caught:
        read_all(data, limits)
    for reader in (pemncodec.load_state_dict, pemncodec.decode):
        with pytest.raises(DecodeError):
            reader(io.BytesIO(data), limits=limits)
    return caught.value.code


def changed(path: str, value: Any) -> dict[str, Any]:
    """The valid header with another value at a dotted path; ... removes what is there."""
    header = valid()
    *above, last = path.split(".")
    place: Any = header
    for key in above:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    key_ = int(last) if isinstance(place, list) else last
    if value is ...:
        del place[key_]
    else:
        place[key_] = value
    return header


def test_the_valid_header_is_read() -> None:
    with pemncodec.open(io.BytesIO(build(valid()))) as file:
        assert file.keys() == ["d", "m", "c", "a"]
        assert file.tensor("d").tolist() == [[1, 2], [3, 4]]
        assert file.tensor("m").tolist() == file.tensor("a").tolist() == [1, 0, 3, 4]
        assert file.tensor("c").tolist() == 1
        assert file.mask_bits("a").tolist() == [1, 0, 1, 1]
        assert [row.error for row in file.header.tensors if isinstance(row, DenseRow)] == [0]
        assert file.metadata == {"k": "v"}
        file.verify()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("?later", {"any": [1, None, 1e3]}),
        ("tensors.?later", 5),
        ("stored.?later", None),
        ("metadata", {}),
        ("metadata", ...),
        ("metadata.x", "ünï\ncode 😀"),
        ("tensors.dtype", ["float32"] * 4),
        ("masked.offset", [3]),
        ("masked.scale", ["bf800000"]),
        ("tensors.name.0", "ü.weight 日本"),
        ("tensors.name.0", "x" * 4096),
    ],
)
def test_accepted(path: str, value: Any) -> None:
    read_all(build(changed(path, value)))


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ("later", [], "unknown-field"),
        ("tensors.later", [], "unknown-field"),
        ("seeded.later", [], "unknown-field"),
        ("sections.0", ["weights", 1], "unknown-field"),
        ("sections.0", [["dense"], 1], "unknown-field"),
        ("sections.0", ["?dense", 1], "unknown-field"),
        # 1 types
        ("tensors", [], "header"),
        ("tensors", None, "header"),
        ("tensors.name", {}, "header"),
        ("tensors.name", "dmca", "header"),
        ("tensors.name.0", 1, "header"),
        ("tensors.name.0", "", "header"),
        ("tensors.name.0", "x" * 4097, "header"),
        ("tensors.name.0", "a\nb", "header"),
        ("tensors.name.0", "\x1b[31m", "header"),
        ("tensors.name.0", "\x7f", "header"),
        ("tensors.name.0", "\u202e", "header"),
        ("tensors.name.0", "\ue000", "header"),
        ("tensors.kind.0", "Dense", "header"),
        ("tensors.kind.0", [], "header"),
        ("tensors.dtype", ["qint8"] + ["float32"] * 3, "header"),
        ("tensors.dtype", ["float32"] * 3 + [None], "header"),
        ("tensors.shape.0", [2.0, 2], "header"),
        ("tensors.shape.0", [True, 4], "header"),
        ("tensors.shape.0", [-2, -2], "header"),
        ("tensors.shape.0", 4, "header"),
        ("tensors.shape.0", None, "header"),
        ("tensors.shape.0", ["4"], "header"),
        ("tensors.shape.0", [1 << 63], "header"),
        ("tensors.shape.0", [10**4000], "header"),
        ("masked.scale", ["3F800000"], "header"),
        ("masked.scale", ["3f80000"], "header"),
        ("masked.scale", ["3f800000\n"], "header"),
        ("masked.scale", [1.0], "header"),
        ("masked.offset", [-1], "header"),
        ("constant.value.0", "0", "header"),
        ("constant.value.0", "0000803F", "header"),
        ("constant.value.0", "٠٠٠٠٠٠٠٠", "header"),
        ("prototypes.length.0", 0, "header"),
        ("prototypes.length.0", -4, "header"),
        ("prototypes.length.0", 1 << 63, "header"),
        ("prototypes.kind", ["seed"], "header"),
        ("stored.dtype", ["int8"], "header"),
        ("stored.used", ["some"], "header"),
        # 2 lengths of columns
        ("tensors.name", ..., "header"),
        ("tensors.shape", [[4]], "header"),
        ("tensors.kind", [], "header"),
        ("masked.prototype", [0, 0], "header"),
        ("masked.prototype", [], "header"),
        ("masks", ..., "header"),
        ("masks.section", [1, 1], "header"),
        ("dense", {}, "header"),
        ("constant.value", ["", ""], "header"),
        ("alias", ..., "header"),
        ("stored", ..., "header"),
        ("prototypes", ..., "header"),
        ("seeded", {"seed": ["0" * 16]}, "header"),
        # 3 sections
        ("sections", ..., "header"),
        ("sections", {}, "header"),
        ("sections.2", ["prototype", 2], "header"),
        ("sections.2", ["prototype", 0], "header"),
        ("sections.2", ["prototype", 1 << 62], "header"),
        ("sections.2", ["prototype", True], "header"),
        ("sections.2", ["prototype"], "header"),
        ("sections.2", ..., "header"),
        ("sections", [["dense", 1], ["dense", 1], ["mask", 1]], "header"),
        ("sections", [["manifest", 2], ["mask", 1]], "header"),
        # 4 to 8 tensors
        ("tensors.name.1", "d", "header"),
        ("tensors.name.3", "m", "header"),
        ("tensors.shape.0", [1 << 32, 1 << 32], "header"),
        ("tensors.shape.0", [0, 1 << 62], "header"),
        ("tensors.shape.0", [1 << 61, 0], "header"),
        ("tensors.dtype", ["float32", "int32", "float32", "float32"], "header"),
        ("tensors.dtype", ["float32", "complex64", "float32", "float32"], "header"),
        ("masked.prototype", [1], "header"),
        ("masked.prototype", [1 << 62], "header"),
        ("masked.offset", [4], "header"),
        ("masked.scale", ["7f800000"], "header"),
        ("masked.scale", ["7fc00000"], "header"),
        ("alias.target.0", "a", "header"),
        ("alias.target.0", "nobody", "header"),
        ("tensors.shape.3", [4], "header"),
        ("tensors.dtype", ["float32"] * 3 + ["float16"], "header"),
        ("constant.value.0", "", "header"),
        ("constant.value.0", "0000803f00", "header"),
        ("tensors.shape.2", [0], "header"),
        ("tensors.dtype", ["float32", "float32", "bool", "float32"], "header"),
        # 9 sections of others
        ("dense.section.0", 1, "header"),
        ("dense.section.0", 3, "header"),
        ("masks.section.0", 0, "header"),
        ("stored.section.0", 0, "header"),
        ("sections.0", ["manifest", 1], "header"),
        # 10 metadata
        ("metadata", [], "header"),
        ("metadata.k", 1, "header"),
        ("metadata.k", None, "header"),
        # limits
        ("tensors.shape.0", [1] * 17, "limit"),
        ("tensors.shape.0", [1 << 40], "limit"),
        ("prototypes.length.0", 1 << 40, "limit"),
        ("prototypes.length.0", (1 << 63) - 1, "limit"),
        # sections that do not fit the header
        ("tensors.shape.0", [3], "section"),
        ("tensors.shape.0", [5], "section"),
        ("tensors.shape.1", [20], "truncated"),
        ("prototypes.length.0", 5, "section"),
        ("stored.used", ["masks"], "section"),
    ],
)
def test_hostile_headers(path: str, value: Any, code: str) -> None:
    assert refusal(build(changed(path, value))) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "json"),
        (b"{", "json"),
        (b"[]", "header"),
        (b"null", "header"),
        (b"{} {}", "json"),
        (b"\xef\xbb\xbf{}", "json"),
        (b"\xff", "json"),
        (b'{"metadata":{"k":"\xed\xa0\x80"}}', "json"),
        (b'{"metadata":{"k":"\\ud800"}}', "json"),
        (b'{"metadata":{"\\udfff":"v"}}', "json"),
        (b'{"?x":"\\ud83d"}', "json"),
        (b'{"?x":NaN}', "json"),
        (b'{"?x":-Infinity}', "json"),
        (b'{"?x":1e999}', "json"),
        (b'{"?x":01}', "json"),
        (b'{"?x":1,"?x":1}', "json"),
        (b'{"tensors":{"?x":1,"?x":2}}', "json"),
        (b'{"metadata":{"k":"a","k":"b"}}', "json"),
        (b'{"?x":"a\nb"}', "json"),
        (b"{'?x':1}", "json"),
        (b'{"?x":1,}', "json"),
        (b'{"?x":' + b"[" * 256 + b"]" * 256 + b"}", "limit"),
        (b"[" * 1_000_000, "limit"),
        (b'{"a":' * 200_000, "limit"),
    ],
)
def test_json_that_is_not_allowed(text: bytes, code: str) -> None:
    assert refusal(build(text, [])) == code


def test_json_that_is_allowed() -> None:
    for text in (
        b"{}",
        b' {"?x" : [1.5e3, -0, "\\ud83d\\ude00", "\\u0000"]}\n',
        b'{"?x":' + b"[" * 255 + b"]" * 255 + b"}",
        b'{"?x":"' + b"[" * 1000 + b'"}',
    ):
        read_all(build(text, []))


@pytest.mark.parametrize("digits", [4000, 5000, 200_000])
def test_huge_integers_are_refused_where_they_count(digits: int) -> None:
    text = json.dumps(changed("prototypes.length.0", "N")).replace('"N"', "9" * digits)
    assert refusal(build(text.encode())) in ("json", "header")


def test_frames_that_lie() -> None:
    """A header's frame that is larger, or holds more, than the front says."""

    def front(frame: bytes, size: int) -> bytes:
        head = struct.pack("<8sBBIII", b"\x89PMN\r\n\x1a\n", 0, 1, size, len(frame), 0) + frame
        return head + struct.pack("<I", zlib.crc32(head))

    bomb = encode_zstd(b"[" * (1 << 26))
    assert len(bomb) < 10_000
    read_all(front(encode_zstd(b"{}"), 2))
    assert refusal(front(bomb, 2)) == "zstd"
    assert refusal(front(bomb, (1 << 26) + 1)) == "limit"
    assert refusal(front(encode_zstd(b"{}"), 3)) == "zstd"
    assert refusal(front(encode_zstd(b"{}") + b"\0", 2)) == "zstd"
    assert refusal(front(encode_zstd(b"{}") * 2, 2)) == "zstd"
    assert refusal(front(b"", 0)) == "zstd"
    unfinished = zstandard.ZstdCompressor().compressobj(size=2)
    without_end = unfinished.compress(b"{}") + unfinished.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    assert refusal(front(without_end, 2)) == "zstd"
    assert refusal(front(b"\x50\x2a\x4d\x18\4\0\0\0abcd", 0)) == "zstd"
    assert refusal(front(encode_zstd(b"")[:-1], 0)) == "zstd"
    assert refusal(front(b"\x28\xb5\x2f\xfd\0\x58\x11\0\0{}", 2)) == "zstd"  # no content size
    # A frame that gives the right size and holds another.
    frame = bytearray(encode_zstd(b'{"?x":1}'))
    frame[5] -= 1
    assert refusal(front(bytes(frame), 7)) == "zstd"


def test_a_tiny_file_that_decodes_to_much_is_refused_before_memory_is_taken() -> None:
    header = {
        "tensors": {"name": ["x"], "kind": ["constant"], "shape": [[1 << 32]]},
        "constant": {"value": ["00000000"]},
    }
    data = build(header, [])
    tracemalloc.start()
    try:
        assert refusal(data, Limits(decoded_bytes=(1 << 34) - 1)) == "limit"
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    small = changed("prototypes.length.0", 4)
    read_all(build(small), Limits(decoded_bytes=16 + 16 + 4 + 16))
    assert refusal(build(small), Limits(decoded_bytes=16 + 16 + 4 + 15)) == "limit"
    # Four values of the stored prototype, in eight bytes each, and in two; others are as before.
    for dtype, width in (("float64", 8), ("float16", 2)):
        header = build(changed("stored.dtype", [dtype]))
        assert refusal(header, Limits(decoded_bytes=16 + 16 + 4 + 4 * width - 1)) == "limit"
        assert refusal(header, Limits(decoded_bytes=16 + 16 + 4 + 4 * width)) != "limit"


@pytest.mark.parametrize(
    "limits",
    [
        Limits(header_bytes=100),
        Limits(json_depth=2),
        Limits(sections=2),
        Limits(tensors=3),
        Limits(dimensions=1),
    ],
)
def test_limits(limits: Limits) -> None:
    assert refusal(build(valid()), limits) == "limit"


def test_what_is_no_file_is_refused_before_a_pipe_is_read_to_its_end() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    pipe = Pipe(b"something else" * 100)
    with pytest.raises(pemncodec.NotPemnError):
        pemncodec.open(pipe)
    assert len(pipe.read()) == 14 * 100 - 8


def test_masks_of_tensors_that_have_none() -> None:
    with pemncodec.open(io.BytesIO(build(valid()))) as file:
        for ask in (file.mask, file.mask_bits, file.packed_mask, file.masked_values):
            with pytest.raises(KeyError, match="d is not a masked tensor"):
                ask("d")


def test_a_transfer_in_text_mode_is_named() -> None:
    data = encoded_small()
    for damaged in (
        bytes(byte & 0x7F for byte in data),
        data.replace(b"\r\n", b"\n"),
        data.replace(b"\r\n", b"\r"),
        data.replace(b"\n", b"\r\n"),
        data.decode("latin-1").encode(),
        data.decode(errors="replace").encode(),
    ):
        with pytest.raises(pemncodec.NotPemnError, match="damaged by a text-mode transfer"):
            pemncodec.open(io.BytesIO(damaged))
    for damaged in (b"\x88" + data[1:], data[:4] + b"\0" + data[5:]):
        with pytest.raises(pemncodec.NotPemnError, match="whose signature is damaged"):
            pemncodec.open(io.BytesIO(damaged))
    with pytest.raises(pemncodec.NotPemnError, match=r"^offset 0: not a \.pemn file$"):
        pemncodec.open(io.BytesIO(b"\x89PNG" + data[4:]))


def test_what_a_reader_ignores_has_no_limit_of_rows() -> None:
    small = Limits(tensors=4)
    read_all(build(changed("tensors.?later", [0] * 4)), small)
    read_all(build(changed("tensors.?later", [0] * 5)), small)
    assert refusal(build(changed("tensors.name", [*"abcde"])), small) == "limit"


@pytest.mark.parametrize("limits", [Limits(manifest_bytes=50), Limits(modules=4), Limits(nodes=1)])
def test_limits_of_the_manifest(data: bytes, limits: Limits) -> None:
    for reader in (pemncodec.decode, pemncodec.load_state_dict):
        with pytest.raises(LimitError):
            reader(io.BytesIO(data), limits=limits)


@pytest.mark.parametrize("shape", [[0, 1 << 62], [1 << 31, 0, 1 << 31]])
def test_tensors_without_items_that_no_array_can_have_the_shape_of(shape: list[int]) -> None:
    header = {
        "tensors": {"name": ["x"], "kind": ["constant"], "shape": [shape]},
        "constant": {"value": [""]},
    }
    assert refusal(build(header, [])) == "header"
    header["tensors"]["shape"] = [[0, 1 << 60]]
    with pemncodec.open(io.BytesIO(build(header, []))) as file:
        assert file.tensor("x").shape == (0, 1 << 60)
        file.verify()
    assert pemncodec.load_state_dict(io.BytesIO(build(header, [])))["x"].shape == (0, 1 << 60)


def test_sections_and_their_users() -> None:
    two_masks = valid()
    two_masks["tensors"]["name"][2:] = ["n"]
    two_masks["tensors"]["kind"][2:] = ["masked"]
    two_masks["tensors"]["shape"][2:] = [[4]]
    two_masks["masks"]["section"] = [1, 1]
    two_masks["masked"]["prototype"] = [0, 0]
    del two_masks["constant"], two_masks["alias"]
    assert refusal(build(two_masks)) == "section"  # not mixed
    two_masks["sections"][1][1] = 2
    two_masks["masks"]["section"] = [1, 2]
    two_masks["stored"]["section"] = [3]
    read_all(build(two_masks, [ONES, MASK, MASK, ONES]))

    group = valid()
    group["tensors"] = {"name": ["x", "y"], "shape": [[2], [2]]}
    group["dense"] = {"section": [0, 0]}
    group["sections"] = [["dense", 1]]
    for table in ("masked", "masks", "constant", "alias", "prototypes", "stored"):
        del group[table]
    with pemncodec.open(io.BytesIO(build(group, [ONES]))) as file:
        assert [file.tensor(name).tolist() for name in "xy"] == [[1, 2], [3, 4]]
    group["tensors"]["dtype"] = ["float32", "int32"]
    assert refusal(build(group, [ONES])) == "header"
    group["tensors"]["dtype"] = ["float32", "float32"]
    group["sections"] = [["dense", 2]]
    assert refusal(build(group, [ONES, ONES])) == "header"  # nothing names section 1


def test_tables_of_sections_that_lie() -> None:
    sound = build(valid())
    frame_size, table_size = struct.unpack("<II", sound[14:22])
    start = 22 + frame_size
    table = sound[start : start + table_size]

    def with_table(table: bytes) -> bytes:
        head = sound[:18] + struct.pack("<I", len(table)) + sound[22:start] + table
        return head + struct.pack("<I", zlib.crc32(head)) + sound[start + table_size + 4 :]

    assert with_table(table) == sound
    assert refusal(with_table(table[:-1])) == "truncated"
    assert refusal(with_table(table + b"\0")) == "truncated"
    assert refusal(with_table(table + b"\x80")) == "truncated"
    assert refusal(with_table(b"")) in ("header", "trailing")
    length = bytes([table[0] | 0x80, 0])
    assert refusal(with_table(length + table[1:])) == "section"  # not the shortest form
    assert refusal(with_table(b"\xff" * 9 + b"\x01" + table[1:])) == "truncated"
    assert refusal(with_table(b"\xff" * 9 + b"\x02" + table[1:])) == "section"
    assert refusal(with_table(b"\xff" * 12 + table[1:])) == "section"
    longest = (b"\xff" * 9 + b"\x01" + bytes(4)) * 3  # as long as a table of three sections can be
    assert refusal(with_table(longest), Limits(sections=3)) == "truncated"
    assert refusal(with_table(longest + b"\0"), Limits(sections=3)) == "limit"
    assert refusal(with_table(table + bytes(5)), Limits(sections=3)) == "limit"
    assert refusal(with_table(table[:1] + b"\0\0\0\0" + table[5:])) == "checksum"


def test_errors_name_the_section(data: bytes) -> None:
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(CorruptError, match="section") as caught:
        read_all(damaged)
    with pemncodec.open(io.BytesIO(data)) as file:
        assert caught.value.section == len(file.header.sections) - 1
    broken = build(valid(), [ONES, b"\1", ONES])
    with pytest.raises(TruncatedError) as truncated:
        read_all(broken)
    assert truncated.value.section == 1


# ------------------------------------------------------------- anything, with good checksums

WEIRD = st.sampled_from(
    [
        *(None, True, -1, 0, 1, 2, 3, 4, 17, 1 << 31, (1 << 63) - 1, 1 << 63, 0.5, 1e300, ""),
        *("d", "m", "?", "0" * 8, "0" * 16, "ff" * 8, "7f7fffff", "dense", "masked", "seeded"),
        *("float64", "bfloat16", "bool", "complex128", "float8_e5m2", "masks", "uniform"),
        *("constant", "\ud800", [], {}, [0], [2, 2], [0, 1 << 62], [1] * 16, ["mask", 1]),
        {"a": []},
    ]
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def attempt(data: bytes) -> None:
    """Everything that can be asked of a file; only DecodeError may come of it."""
    for reader in (pemncodec.load_state_dict, pemncodec.decode):
        with contextlib.suppress(DecodeError):
            reader(io.BytesIO(data), limits=SMALL_LIMITS)
    with (
        contextlib.suppress(DecodeError),
        pemncodec.open(io.BytesIO(data), limits=SMALL_LIMITS) as file,
    ):
        file.info().to_json()
        for name in file.masked_keys():
            assert len(file.mask_bits(name)) == file.mask(name).size
        file.verify()


@settings(max_examples=400)
@given(st.data())
def test_any_header_is_read_or_refused(draw: st.DataObject) -> None:
    header = valid()
    for _ in range(draw.draw(st.integers(1, 3))):
        every = list(places(header))
        if not every:
            break
        place, key = every[draw.draw(st.integers(0, len(every) - 1))]
        action = draw.draw(st.sampled_from(["put", "put", "put", "delete", "append"]))
        if action == "delete":
            del place[key]
        elif action == "append" and isinstance(place, list):
            place.append(copy.deepcopy(draw.draw(WEIRD)))
        else:
            place[key] = copy.deepcopy(draw.draw(WEIRD))
    attempt(build(header))


@settings(max_examples=300)
@given(st.data())
def test_any_section_is_read_or_refused(draw: st.DataObject) -> None:
    sections = [bytearray(section) for section in SECTIONS]
    for _ in range(draw.draw(st.integers(1, 4))):
        section = sections[draw.draw(st.integers(0, 2))]
        if section and draw.draw(st.booleans()):
            section[draw.draw(st.integers(0, len(section) - 1))] = draw.draw(st.integers(0, 255))
        else:
            section[draw.draw(st.integers(0, len(section))) :] = draw.draw(st.binary(max_size=20))
    attempt(build(valid(), [bytes(section) for section in sections]))


@settings(max_examples=150)
@given(st.data())
def test_any_manifest_is_built_or_refused(data: bytes, draw: st.DataObject) -> None:

    stream = io.BytesIO(data)
    front = decode_container(stream, Limits())
    sections = [read_section(stream, entry, i) for i, entry in enumerate(front.sections)]
    manifest = json.loads(decode_zstd(sections[0], limit=1 << 20))
    every = list(places(manifest))
    for _ in range(draw.draw(st.integers(1, 2))):
        place, key = every[draw.draw(st.integers(0, len(every) - 1))]
        place[key] = copy.deepcopy(draw.draw(WEIRD))
    sections[0] = encode_zstd(json.dumps(manifest).encode())
    attempt(build(front.header, sections))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("source", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("scale", ["7f7fffff", "00000001", "80000000", "3f800000"])
def test_any_scale_gives_values_without_warnings(dtype: str, source: str, scale: str) -> None:
    """Section 5.3: subnormals count, too much is infinite, NaN loses its payload."""
    values = torch.tensor(
        [float("nan"), float("-inf"), 0.0, -0.0, 1.1, -1.1, 1e-40, 3e38, 65504, 6e-8],
        dtype=getattr(torch, source),
    )
    header = valid()
    count = values.numel()
    header["tensors"] = {
        "name": ["m"],
        "kind": ["masked"],
        "shape": [[count]],
        "dtype": [dtype],
    }
    header["masked"] = {"scale": [scale]}
    header["prototypes"]["length"] = [count]
    header["stored"] = {"section": [1], "dtype": [source]}
    header["sections"] = [["mask", 1], ["prototype", 1]]
    for table in ("dense", "constant", "alias"):
        del header[table]
    header["masks"]["section"] = [0]

    section = encode_dense([tensor_to_array(values, "m")], source)
    data = build(header, [encode_mask(np.ones(count, np.bool_)), section])
    decoded = pemncodec.load_state_dict(io.BytesIO(data))["m"]
    factor = struct.unpack(">f", bytes.fromhex(scale))[0]
    if factor == 1 and source == dtype:
        expected = values
    else:
        expected = (values.float() * torch.tensor(factor)).to(getattr(torch, dtype))
        expected[expected.isnan()] = float("nan")
    assert decoded.dtype == expected.dtype
    assert bytes(decoded.view(torch.uint8).numpy()) == bytes(expected.view(torch.uint8).numpy())


# --------------------------------------------------------------------------------- reading


class Pipe(io.RawIOBase):
    """A stream that cannot seek and gives few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(7, len(buffer))
        part, self.rest = self.rest[:count], self.rest[count:]
        buffer[: len(part)] = part
        return len(part)


def test_pipes_are_read(data: bytes) -> None:
    for stream in (Pipe(data), io.BufferedReader(Pipe(data), 16)):
        with pemncodec.open(stream) as file:
            file.verify()
    with pytest.raises(TruncatedError):
        pemncodec.load_state_dict(Pipe(data[:-1]))


def test_a_pipe_of_the_system_is_read(data: bytes) -> None:
    reading, writing = os.pipe()
    with open(writing, "wb") as pipe:  # noqa: PTH123 a descriptor
        pipe.write(data)
    with open(reading, "rb") as pipe, pemncodec.open(pipe) as file:  # noqa: PTH123
        file.verify()


def test_streams_that_read_little_at_a_time(data: bytes) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size, 5) if size and size > 0 else 5)

    with pemncodec.open(Slow(data)) as file:
        file.verify()


def test_the_stream_stays_open_and_is_read_from_its_start(data: bytes) -> None:
    stream = io.BytesIO(data)
    stream.seek(11)
    pemncodec.decode(stream)
    pemncodec.load_state_dict(stream)
    assert not stream.closed


def test_paths(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pemn"
    path.write_bytes(data)
    for name in (path, str(path)):
        pemncodec.decode(name)
    with pytest.raises(FileNotFoundError):
        pemncodec.open(tmp_path / "nothing.pemn")


def test_one_tensor_is_read_alone() -> None:
    """Its own sections, and no others."""

    class Watched(io.BytesIO):
        def __init__(self, data: bytes) -> None:
            super().__init__(data)
            self.touched: set[int] = set()

        def read(self, size: int | None = -1) -> bytes:
            start = self.tell()
            data = super().read(size)
            self.touched |= set(range(start, start + len(data)))
            return data

    torch.manual_seed(0)
    state = {
        "a.weight": torch.randn(40, 10),
        "a.bias": torch.randn(10),
        "b.weight": torch.randn(30, 10),
        "b.bias": torch.randn(10),
        "large": torch.randn(20_000),
        "count": torch.tensor(5),
    }
    masks = {name: torch.rand(state[name].shape) < 0.5 for name in ("a.weight", "b.weight")}
    stream = io.BytesIO()
    pemncodec.encode(state, stream, masks=masks, manifest=False)
    data = stream.getvalue()
    front = sum(struct.unpack("<II", data[14:22])) + 26

    def touched(name: str) -> int:
        watched = Watched(data)
        with pemncodec.open(watched) as file:
            assert len(watched.touched) == front
            file.tensor(name)
        return len(watched.touched) - front

    with pemncodec.open(io.BytesIO(data)) as file:
        info = file.info()
        sizes = {tensor.name: tensor.bytes for tensor in info.tensors}
        prototypes = len(file.header.prototypes)
    assert prototypes == 2
    assert touched("count") == 0
    assert touched("large") == sizes["large"]
    assert touched("a.bias") == touched("b.bias") == sizes["a.bias"] + sizes["b.bias"]
    # A mask and the prototype that it needs.
    alone = touched("a.weight"), touched("b.weight")
    assert sum(alone) == sizes["a.weight"] + sizes["b.weight"] + info.prototype_bytes


def test_what_is_kept_of_a_prototype_cannot_be_changed(data: bytes) -> None:
    with pemncodec.open(io.BytesIO(data)) as file:
        values = file.prototype(0)
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1


def test_arrays_that_masked_tensors_cannot_be_written_to(data: bytes) -> None:
    with pemncodec.open(io.BytesIO(data)) as file:
        name = next(name for name in file.masked_keys() if len(file.shape(name)) > 1)
        right = file.tensor(name)
        target = np.full_like(right, np.nan, order="C")
        file.read_masked({name: target})
        assert target.tobytes() == right.tobytes()
        locked = target.copy()
        locked.flags.writeable = False
        for wrong in (
            np.asfortranarray(target),
            target.reshape(-1),
            target.astype(np.float64),
            target[:1],
            locked,
        ):
            with pytest.raises(ValueError, match="needs a writable C-ordered float32 array"):
                file.read_masked({name: wrong})
        with pytest.raises(KeyError):
            file.read_masked({"nobody": target})


def test_reading_tensors_in_any_order_gives_the_same(data: bytes) -> None:
    with pemncodec.open(io.BytesIO(data)) as file:
        forward = {name: file.tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    with pemncodec.open(io.BytesIO(data)) as file:
        for name in reversed(file.keys()):
            assert file.tensor(name).tobytes() == forward[name]
            assert file.tensor(name).tobytes() == forward[name]
        with pytest.raises(KeyError):
            file.tensor("nobody")
        with pytest.raises(KeyError):
            file.mask("1.running_mean")


# --------------------------------------------------------------------------------- writing

PROGRAM = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import hashlib
import test_container
print(hashlib.sha256(test_container.encoded_small()).hexdigest())
"""


def test_encoding_twice_gives_the_same_bytes(data: bytes) -> None:
    assert encoded_small() == data
    program = PROGRAM.format(tests=str(ROOT / "tests"), root=str(ROOT))
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # another than here
    fresh = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": seed},
        check=True,
        capture_output=True,
        text=True,
    )
    assert fresh.stdout.strip() == hashlib.sha256(data).hexdigest()


def failing() -> Iterator[bytes]:
    yield b"half a file"
    raise RuntimeError("in the middle")


def test_failed_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pemn"
    with pytest.raises(RuntimeError, match="in the middle"):
        write_file(failing(), path)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="in the middle"):
        write_file(failing(), path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_failed_renaming_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pemn"
    path.write_bytes(b"old")

    def refuse(*_: Any) -> None:
        raise OSError("no space left")

    for owner, function in ((os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, function, refuse)
            with pytest.raises(OSError, match="no space left"):
                write_file([b"new"], path)
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == b"old"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "x.pemn"
    before = os.umask(umask)
    try:
        write_file([b"x"], path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
        path.chmod(0o640)
        write_file([b"y"], path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "x.pemn"
    link = tmp_path / "link.pemn"
    link.symlink_to(path)
    write_file([b"x"], link)
    assert link.is_symlink()
    assert path.read_bytes() == b"x"


def test_long_file_names(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".pemn")
    write_file([b"x"], path)
    assert path.read_bytes() == b"x"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of POSIX")
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    """As /dev/null and named pipes."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    got: list[bytes] = []
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        thread = threading.Thread(target=write_file, args=([b"x", b"y"], path), daemon=True)
        thread.start()
        thread.join(10)
        assert stat.S_ISFIFO(path.lstat().st_mode)
        got.append(os.read(reading, 10))
    finally:
        os.close(reading)
    assert got == [b"xy"]


def test_a_missing_folder_is_an_error_of_the_system(small: MaskedNet, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        small.encode(tmp_path / "nowhere" / "x.pemn")


def test_encoding_to_a_stream(small: MaskedNet, tmp_path: Path) -> None:
    stream = io.BytesIO()
    small.encode(stream)
    small.encode(tmp_path / "x.pemn")
    assert (tmp_path / "x.pemn").read_bytes() == stream.getvalue()
    assert isinstance(pemncodec.decode(tmp_path / "x.pemn"), nn.Module)
