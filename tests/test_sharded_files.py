"""A model in several files: read as one file is, wherever a file is taken; hostile shards."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sharded_models import part_of, write_index, write_shard, write_shards
from torch import nn

import pemncodec
from pemncodec.coders.masks import Preset
from pemncodec.contents import (
    AliasTensor,
    Contents,
    DenseTensor,
    Fill,
    MaskedTensor,
    PrototypePlace,
    SeededPrototype,
    StoredPrototype,
    TorchPrototype,
)
from pemncodec.errors import DecodeArgumentError, DecodeError
from pemncodec.format import opening
from pemncodec.format.index import Shard, decode_index
from pemncodec.format.writer import encode_contents
from pemncodec.limits import Limits

RANDOM = np.random.default_rng(11)
LINEAR = {"cls": "Linear", "in_features": 12, "out_features": 12, "bias": False}
MANIFEST = {
    "format": "tree/1",
    "inputs": [{"dtype": "float32", "shape": [2, 12]}],
    "tree": {
        "cls": "Sequential",
        "children": [
            {"name": "0", "cls": "Linear", "in_features": 12, "out_features": 12},
            {"name": "1"} | LINEAR,
            {"name": "2"} | LINEAR,
            {"name": "3", "cls": "Linear", "in_features": 12, "out_features": 5},
        ],
    },
}


def weight(name: str, rows: int, prototype: int, offset: int = 0) -> MaskedTensor:
    mask = RANDOM.random((rows, 12)) < 0.4
    return MaskedTensor(name, "float32", (rows, 12), Fill(prototype, offset, 0.5), mask)


def dense(name: str, *values: float) -> DenseTensor:
    data = np.array(values, "<f4")
    return DenseTensor(name, "float32", data.shape, data)


STORED = StoredPrototype(RANDOM.standard_normal(100).astype("<f4"), "float32")
CONTENTS = Contents(
    (
        SeededPrototype("normal", 3, 60),
        STORED,
        TorchPrototype("normal", 5, 144, 16),
        TorchPrototype("uniform", 5, 144, 200),
    ),
    (
        weight("0.weight", 12, 0),
        dense("0.bias", *range(12)),
        weight("1.weight", 12, 1, 7),
        weight("2.weight", 12, 3),
        weight("3.weight", 5, 1),
        dense("3.bias", 1, 1, 1, 1, 1),
    ),
    MANIFEST,
    {"run": "7"},
)
PLACES = {
    "0.weight": 0,
    "0.bias": 2,
    "1.weight": 0,
    "2.weight": 1,
    "3.weight": 1,
    "3.bias": 2,
}
ONE, TWO, THREE = (f"net-0000{number}-of-00003.pemn" for number in (1, 2, 3))
WHOLE = b"".join(encode_contents(CONTENTS))
DIGEST = pemncodec.digest(WHOLE)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return write_shards(tmp_path, CONTENTS, PLACES)


def test_an_index_is_read_as_one_file_is(index: Path) -> None:
    assert index.name == "net.pemn.index.json"
    with pemncodec.open(index) as file, pemncodec.open(WHOLE) as whole:
        file.verify()
        assert file.keys() == whole.keys()
        assert file.masked_keys() == whole.masked_keys()
        assert file.metadata == whole.metadata == {"run": "7"}
        assert file.manifest == whole.manifest == MANIFEST
        for name in file.keys():  # noqa: SIM118
            assert np.array_equal(file.tensor(name), whole.tensor(name))
            assert file.shape(name) == whole.shape(name)
        for name in file.masked_keys():
            assert np.array_equal(file.mask(name), whole.mask(name))
        assert pemncodec.digest(file) == DIGEST
    with pemncodec.open(index.parent) as file:
        assert pemncodec.digest(file) == DIGEST


@given(
    places=st.lists(st.integers(0, 4), min_size=6, max_size=6),
    order=st.permutations(range(6)),
    share=st.booleans(),
    preset=st.sampled_from(["fast", "max"]),
)
@settings(max_examples=20)
def test_however_tensors_are_placed(
    tmp_path_factory: pytest.TempPathFactory,
    places: list[int],
    order: list[int],
    share: bool,
    preset: Preset,
) -> None:
    folder = tmp_path_factory.mktemp("model")
    contents = replace(CONTENTS, tensors=tuple(CONTENTS.tensors[number] for number in order))
    numbers = sorted(set(places))  # no shard is empty
    placed = {
        tensor.name: numbers.index(place)
        for tensor, place in zip(contents.tensors, places, strict=True)
    }
    path = write_shards(folder, contents, placed, share=share, preset=preset)
    whole = b"".join(encode_contents(contents))
    assert pemncodec.digest(path, threads=2) == pemncodec.digest(whole)
    with pemncodec.open(path) as file:
        again = file.data()
    assert again is not None
    with pemncodec.open(again) as one:  # what a decoded module keeps
        one.verify()
        assert pemncodec.digest(one) == pemncodec.digest(whole)
        seeded = [row for row in one.header.prototypes if isinstance(row, SeededPrototype)]
        assert len(seeded) == 1
    shutil.rmtree(folder)


def test_each_shard_opens_alone(index: Path) -> None:
    expected = pemncodec.load_state_dict(WHOLE)
    seen: set[str] = set()
    for name in (ONE, TWO, THREE):
        state = pemncodec.load_state_dict(index.parent / name)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in state.items())
        seen |= state.keys()
    assert seen == expected.keys()
    with pytest.raises(
        DecodeError, match=r"one shard of a model: open net\.pemn\.index\.json"
    ) as e:
        pemncodec.decode(index.parent / ONE)
    assert e.value.code == "no-manifest"
    index.unlink()
    with pytest.raises(DecodeError) as e:
        pemncodec.decode(index.parent / ONE)
    assert "shard" not in str(e.value)


def test_networks_and_what_is_made_of_them(index: Path) -> None:
    inputs = torch.rand(2, 12)
    expected = pemncodec.decode(WHOLE)(inputs)
    module = pemncodec.decode(index)
    assert torch.equal(module(inputs), expected)
    assert torch.allclose(pemncodec.decode(index, packed=True)(inputs), expected, atol=1e-5)
    assert torch.equal(pemncodec.decode(index, into=nn.Sequential(*_layers()))(inputs), expected)
    state = pemncodec.load_state_dict(index.parent)
    assert list(state) == list(module.state_dict())
    stream = io.BytesIO()
    pemncodec.encode(module, stream, example_inputs=inputs)
    again = stream.getvalue()
    assert torch.equal(pemncodec.decode(again)(inputs), expected)
    with pemncodec.open(again) as file:
        assert file.metadata == {"run": "7"}
        assert any(isinstance(row, SeededPrototype) for row in file.header.prototypes)


def _layers() -> list[nn.Module]:
    return [nn.Linear(12, 12), *(nn.Linear(12, 12, bias=False) for _ in range(2)), nn.Linear(12, 5)]


def test_an_open_index_is_a_source_of_encode(index: Path) -> None:
    stream = io.BytesIO()
    with pemncodec.open(index) as file:
        pemncodec.encode(file, stream, manifest=False)
    state = pemncodec.load_state_dict(stream.getvalue())
    expected = pemncodec.load_state_dict(WHOLE)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_opening_reads_fronts_alone(index: Path) -> None:
    for name in (ONE, TWO, THREE):
        path = index.parent / name
        with pemncodec.open(path) as file:
            front = file.container.size
        data = path.read_bytes()
        path.write_bytes(data[:front] + bytes(len(data) - front))
    with pemncodec.open(index) as file:
        assert file.shape("2.weight") == (12, 12)
        assert file.info(decode=False).masked_weights == 12 * 36 + 60
        assert file.manifest == MANIFEST
        with pytest.raises(DecodeError) as caught:
            file.tensor("2.weight")
    assert caught.value.code == "checksum"
    assert str(caught.value).startswith(f"{TWO}: section 0: ")


def test_what_it_costs_adds_up(index: Path) -> None:
    with pemncodec.open(index) as file:
        info = file.info()
    sizes = {path.name: path.stat().st_size for path in index.parent.iterdir()}
    assert info.file_bytes == sum(sizes.values()) == sum(info.parts.values())
    assert info.manifest_bytes == len(json.dumps(MANIFEST, separators=(",", ":")))
    del sizes[index.name]
    assert info.shards == sizes
    with pemncodec.open(WHOLE) as file:
        assert file.info().shards == {}
        assert info.masked_weights == file.info().masked_weights
        assert [t.density for t in info.tensors] == [t.density for t in file.info().tensors]


# ------------------------------------------------------------------------ what is not there


def refused(path: Path, code: str, *words: str, limits: Limits | None = None) -> None:
    with pytest.raises(DecodeError) as caught, pemncodec.open(path, limits=limits) as file:
        file.verify()
    assert caught.value.code == code, caught.value
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_missing_shards_are_named_at_once(index: Path) -> None:
    (index.parent / TWO).unlink()
    refused(index, "shard", "1 of 3 shards is missing", TWO, "in the folder of the index")
    (index.parent / ONE).write_bytes(b"")  # which is said when all are there
    refused(index, "shard", "1 of 3 shards is missing", TWO)
    (index.parent / ONE).unlink()
    refused(index, "shard", "2 of 3 shards are missing", f"{ONE}, {TWO}")


def test_many_missing_shards_are_counted(tmp_path: Path) -> None:
    names = [f"n-{number:05}-of-00030.pemn" for number in range(1, 31)]
    shards = {name: Shard(1, 1) for name in names}
    path = write_index(
        tmp_path / "n.pemn.index.json", shards, {n.removesuffix(".pemn"): n for n in names}, None
    )
    refused(path, "shard", "30 of 30", names[0], "and 20 more")


def test_shards_of_another_encoding(index: Path) -> None:
    other = replace(CONTENTS, metadata={"run": "8"})  # which takes as many bytes
    folder = index.parent / "other"
    folder.mkdir()
    write_shards(folder, other, PLACES)
    shutil.copy(folder / TWO, index.parent / TWO)
    refused(index, "shard", f"{TWO}: ", "another encoding")
    other = replace(CONTENTS, tensors=CONTENTS.tensors[:-1])
    write_shards(folder, other, {name: PLACES[name] for name in list(PLACES)[:-1]})
    shutil.copy(folder / THREE, index.parent / THREE)
    shutil.copy(folder / ONE, index.parent / TWO)
    refused(index, "shard", f"{TWO}: ", "bytes")


def test_a_shard_that_is_cut_off_or_damaged(index: Path) -> None:
    path = index.parent / TWO
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    refused(index, "shard", f"{TWO}: it has {len(data) - 1} bytes", f"{len(data)}", "cut off")
    path.write_bytes(data[:30] + bytes([data[30] ^ 1]) + data[31:])
    refused(index, "checksum", f"{TWO}: ")
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(index, "checksum", f"{TWO}: section")
    path.write_bytes(b"x" * len(data))
    refused(index, "not-pemn", f"{TWO}: ")


def test_bytes_and_streams_of_an_index_have_no_shards(index: Path) -> None:
    for source in (index.read_bytes(), io.BytesIO(index.read_bytes())):
        with pytest.raises(DecodeError, match="by its path or URL") as caught:
            pemncodec.open(source)
        assert caught.value.code == "not-pemn"


def test_the_name_of_the_model(index: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"several files: open net\.pemn\.index\.json"):
        pemncodec.open(index.parent / "net.pemn")
    with pytest.raises(FileNotFoundError) as caught:
        pemncodec.open(index.parent / "other.pemn")
    assert "several files" not in str(caught.value)


def test_folders(index: Path) -> None:
    folder = index.parent
    (folder / "other.pemn").write_bytes(WHOLE)
    with pytest.raises(DecodeArgumentError, match=r"net\.pemn\.index\.json, other\.pemn"):
        pemncodec.open(folder)
    index.unlink()
    assert pemncodec.digest(folder) == DIGEST  # of the one model that is whole
    (folder / "other.pemn").unlink()
    with pytest.raises(FileNotFoundError, match=r"net\.pemn\.index\.json: copy that there"):
        pemncodec.open(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.pemn file in this folder"):
        pemncodec.open(folder)


def test_no_more_of_an_index_is_read_than_may_be(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = Path.stat
    size = index.stat().st_size
    limits = Limits(header_bytes=size, manifest_bytes=size)
    with index.open("ab") as stream:
        stream.write(b" " * (8 << 20))

    def before(path: Path, **options: Any) -> Any:  # it has grown since
        return stat(index.parent / ONE if path == index else path, **options)

    monkeypatch.setattr(Path, "stat", before)
    tracemalloc.start()
    refused(index, "limit", "index of more than", limits=limits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_json_that_is_no_index(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(' \n{"metadata": {}, "weight_map": {"a": "b.safetensors"}}')
    refused(path, "not-pemn", "index")


@given(st.data())
@settings(max_examples=60)
def test_any_damage_is_an_error_of_the_format(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    if not folder.exists():
        folder.mkdir()
        write_shards(folder, CONTENTS, PLACES, share=True)
    path = folder / data.draw(st.sampled_from(sorted(file.name for file in folder.iterdir())))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = data.draw(st.sampled_from([b"", b"\0", b"9", b'"', b"}", whole[at : at + 1] * 2]))
    path.write_bytes(whole[:at] + changed + whole[at + 1 :])
    same = path.read_bytes() == whole
    try:
        with contextlib.suppress(DecodeError), pemncodec.open(folder / "net.pemn.index.json") as f:
            f.verify()  # what is changed in the index may be another valid one
            assert same or path.suffix == ".json"
    finally:
        path.write_bytes(whole)


# -------------------------------------------------------------------- shards that disagree


def write_parts(folder: Path, *parts: Contents, **tensors: int) -> Path:
    """A model of given shards, and of an index that says what is asked for."""
    shards = {}
    for number, part in enumerate(parts, 1):
        file = f"m-0000{number}-of-0000{len(parts)}.pemn"
        shards[file] = write_shard(folder / file, encode_contents(part))
    names = list(shards)
    weight_map = {name: names[number] for name, number in tensors.items()}
    return write_index(folder / "m.pemn.index.json", shards, weight_map, None)


def plain(*tensors: Any, **changed: Any) -> Contents:
    return replace(Contents((), tensors), **changed)


A, B, C = dense("a", 1, 2), dense("b", 3, 4), dense("c", 5, 6)
FIRST, SECOND = "m-00001-of-00002.pemn", "m-00002-of-00002.pemn"


@pytest.mark.parametrize(
    ("parts", "tensors", "words"),
    [
        ((plain(A, B), plain(B)), {"a": 0, "b": 1}, (f"{FIRST}: 'b'", f"in {SECOND}")),
        ((plain(A, C), plain(B)), {"a": 0, "b": 1}, (f"{FIRST}: 'c'", "no shard")),
        ((plain(A), plain(B)), {"a": 0, "b": 1, "c": 1}, (f"{SECOND}: 'c' is not in it",)),
        ((plain(A, C), plain(B)), {"c": 0, "b": 1, "a": 0}, (f"{FIRST}: ", "another order")),
        (
            (plain(A), plain(B, inference_only=True)),
            {"a": 0, "b": 1},
            (f"{SECOND}: it and {FIRST} disagree about inference_only",),
        ),
        (
            (plain(A, metadata={"x": "1"}), plain(B)),
            {"a": 0, "b": 1},
            (f"{SECOND}: it and {FIRST} have different metadata",),
        ),
        (
            (plain(A), plain(B, manifest={"format": "builder/1", "inputs": [], "builder": "a:b"})),
            {"a": 0, "b": 1},
            (f"{SECOND}: it has an architecture",),
        ),
    ],
)
def test_shards_that_are_not_what_the_index_says(
    tmp_path: Path,
    parts: tuple[Contents, ...],
    tensors: dict[str, int],
    words: tuple[str, ...],
) -> None:
    refused(write_parts(tmp_path, *parts, **tensors), "shard", *words)


def sharing(place: PrototypePlace, **changed: Any) -> Contents:
    mask = MaskedTensor("w", "float32", (9,), Fill(0), np.arange(9) % 2 == 0)
    shared = replace(StoredPrototype(np.arange(9, dtype="<f4"), "float32", place), **changed)
    return Contents((shared,), (mask,))


def owning(values: Any = None, **changed: Any) -> Contents:
    values = np.arange(9, dtype="<f4") if values is None else values
    stored = replace(StoredPrototype(values, "float32", whole=True), **changed)
    mask = MaskedTensor("v", "float32", (9,), Fill(0), np.arange(9) % 3 == 0)
    return Contents((stored,), (mask,))


def test_shared_prototypes_of_shards(tmp_path: Path) -> None:
    user = sharing(PrototypePlace(FIRST, 0))
    path = write_parts(tmp_path, owning(), user, v=0, w=1)
    with pemncodec.open(path) as file:
        assert len(file.header.prototypes) == 1
        assert file.tensor("w").tolist() == [0, 0, 2, 0, 4, 0, 6, 0, 8]
        info = file.info()
    assert info.prototype_bytes > 0
    assert info.format_version == "0.4"
    other = np.arange(9, dtype="<f4") + 1
    refused(
        write_parts(tmp_path, owning(other), user, v=0, w=1), "shard", f"{FIRST}: ", "other values"
    )
    refused(
        write_parts(tmp_path, owning(whole=False), user, v=0, w=1), "shard", f"{FIRST}: ", "stores"
    )
    there = sharing(PrototypePlace("elsewhere.pemn", 0))
    refused(
        write_parts(tmp_path, owning(), there, v=0, w=1), "shard", f"{SECOND}: ", "'elsewhere.pemn'"
    )
    back = replace(user, tensors=(replace(user.tensors[0], name="v"),))
    loop = replace(back, prototypes=(replace(user.prototypes[0], place=PrototypePlace(SECOND, 0)),))
    refused(write_parts(tmp_path, loop, user, v=0, w=1), "shard")


def test_two_shards_that_name_different_values(tmp_path: Path) -> None:
    first = sharing(PrototypePlace("m-00001-of-00003.pemn", 0))
    stored = replace(first.prototypes[0], given=np.ones(9, "<f4"))
    second = Contents((stored,), (replace(first.tensors[0], name="x"),))
    path = write_parts(tmp_path, owning(), first, second, v=0, w=1, x=2)
    refused(path, "shard", "m-00001-of-00003.pemn: m-00003-of-00003.pemn and others name")


def test_no_more_is_read_once_a_shard_is_refused(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    original = opening.ReopenedSections

    def counted(path: Path, limits: Limits) -> Any:
        opened.append(path)
        return original(path, limits)

    monkeypatch.setattr(opening, "ReopenedSections", counted)
    said = json.loads(index.read_text())
    said["weight_map"]["0.weight"] = TWO
    index.write_text(json.dumps(said))
    refused(index, "shard", f"{ONE}: '0.weight' is in it, and by the index in {TWO}")
    assert [path.name for path in opened] == [ONE]
    (index.parent / THREE).unlink()
    refused(index, "shard", f"1 of 3 shards is missing: {THREE}")


def test_prototypes_of_all_shards_are_counted(tmp_path: Path) -> None:
    rows = [SeededPrototype("normal", seed, 60) for seed in range(3)]
    parts = [Contents(tuple(rows), (weight(name, 2, 0),)) for name in "ab"]  # only one is used
    files = {
        f"{number}.pemn": write_shard(tmp_path / f"{number}.pemn", encode_contents(part))
        for number, part in enumerate(parts)
    }
    path = write_index(tmp_path / "m.pemn.index.json", files, {"a": "0.pemn", "b": "1.pemn"}, None)
    pemncodec.open(path, limits=Limits(tensors=6)).close()
    refused(path, "limit", "more than 5 prototypes", limits=Limits(tensors=5))


def test_limits_hold_for_all_shards_together(index: Path) -> None:
    with pemncodec.open(index) as file:
        total = sum(4 * int(np.prod(file.shape(name))) for name in file.keys())  # noqa: SIM118
    total += 4 * (60 + 2 * 100 + 144)  # what is stored is in two shards
    limits = Limits(decoded_bytes=total)
    pemncodec.open(index, limits=limits).close()
    refused(index, "limit", limits=replace(limits, decoded_bytes=total - 1))
    ends = 200 + 144
    pemncodec.open(index, limits=replace(limits, drawn_words=ends)).close()
    refused(index, "limit", limits=replace(limits, drawn_words=ends - 1))
    refused(index, "limit", limits=Limits(header_bytes=300, manifest_bytes=300))
    with contextlib.ExitStack() as stack:
        shards = [
            stack.enter_context(pemncodec.open(index.parent / name)) for name in (ONE, TWO, THREE)
        ]
        header = sum(len(shard.container.header) for shard in shards)
        sections = sum(len(shard.container.sections) for shard in shards)
    pemncodec.open(index, limits=Limits(header_bytes=header, sections=sections)).close()
    says = ("header bytes", "limits=Limits(header_bytes=…)")
    refused(index, "limit", *says, limits=Limits(header_bytes=header - 1))
    refused(index, "limit", "sections", limits=Limits(sections=sections - 1))
    refused(index, "limit", limits=Limits(manifest_bytes=100))
    data = index.read_bytes()
    assert decode_index(data, Limits()).manifest == MANIFEST


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda manifest: manifest | {"format": "tree/9"}, "manifest-schema"),
        (lambda manifest: manifest | {"tree": {"cls": "System"}}, "manifest-class"),
        (lambda manifest: manifest | {"frozen": ["x.weight"]}, "manifest-name"),
    ],
)
def test_the_manifest_of_an_index_is_checked(
    index: Path, change: Callable[[dict[str, Any]], dict[str, Any]], code: str
) -> None:
    value = json.loads(index.read_bytes())
    value["manifest"] = change(value["manifest"])
    index.write_text(json.dumps(value))
    refused(index, code)


def test_aliases(tmp_path: Path) -> None:
    alias = AliasTensor("2.alias", "0.weight")
    contents = replace(CONTENTS, tensors=(*CONTENTS.tensors, alias), manifest=None)
    path = write_shards(tmp_path, contents, PLACES | {"2.alias": 0})
    with pemncodec.open(path) as file:
        assert file.aliases == {"2.alias": "0.weight"}
        assert file.keys()[-1] == "2.alias"
    assert pemncodec.digest(path) == pemncodec.digest(b"".join(encode_contents(contents)))
    assert part_of(contents, ["0.weight"]).manifest is None
