"""Models in several files: where they are cut, and what interruptions leave."""

from __future__ import annotations

import contextlib
import csv
import errno
import fnmatch
import functools
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Run, fails
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pemncodec
from pemncodec.contents import (
    AliasTensor,
    Contents,
    DenseTensor,
    Fill,
    MaskedTensor,
    PrototypePlace,
    StoredPrototype,
)
from pemncodec.format.index import Shard, ShardIndex, decode_index, encode_index
from pemncodec.format.journal import contents_digest
from pemncodec.format.leftovers import discard_leftover
from pemncodec.format.partial import open_partial, read_shard
from pemncodec.format.partition import partition
from pemncodec.format.parts import part_target
from pemncodec.format.places import Folder
from pemncodec.format.reader import open_file
from pemncodec.format.writer import encode_contents
from pemncodec.limits import Limits
from pemncodec.proof import prove_network, prove_tensors
from pemncodec.sizes import size_as_text, size_in_bytes

SIZE = 6000
State = dict[str, Tensor]


def network(seed: int = 0, layers: int = 3) -> tuple[State, State]:
    """A state dict of values that no seed makes, and masks of its matrices."""
    random = np.random.default_rng(seed)
    state = {}
    for layer in range(layers):
        values = random.uniform(-1, 1, (24, 40)) ** 3
        state[f"{layer}.weight"] = torch.tensor(values, dtype=torch.float32)
        state[f"{layer}.bias"] = torch.tensor(random.uniform(size=24), dtype=torch.float32)
    state["tied.weight"] = state["1.weight"]
    masks = {
        name: torch.tensor(random.random(tuple(tensor.shape)) < 0.5)
        for name, tensor in state.items()
        if tensor.dim() == 2
    }
    masks["tied.weight"] = masks["1.weight"]
    return state, masks


STATE, MASKS = network()
OTHER, OTHER_MASKS = network(seed=1)


def encode(target: Any, state: State = STATE, masks: State = MASKS, **options: Any) -> Any:
    options = {"shard_size": SIZE, "find_seed": "off", "preset": "fast", **options}
    return pemncodec.encode(state, target, masks=masks, manifest=False, **options)


def files(folder: Path, pattern: str = "*") -> dict[str, str]:
    """What a folder holds: a digest of each file, by name."""
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in folder.glob(pattern)
        if path.is_file()
    }


def model(folder: Path, name: str = "net.pemn") -> dict[str, bytes] | None:
    """The tensors of a model's index or file; what is there is whole, and belongs together."""
    for path in folder.glob("[!.]*.pemn"):
        with open_file(path) as file:
            file.verify()
    index = folder / f"{name}.index.json"
    if not index.exists() and not (folder / name).exists():
        return None
    if not index.exists():
        with open_file(folder / name) as file:
            return {tensor: file.tensor(tensor).tobytes() for tensor in file.keys()}  # noqa: SIM118
    read = decode_index(index.read_bytes(), Limits())
    with open_file(index) as file:
        file.verify()
        assert file.keys() == list(read.weight_map)
    tensors = {}
    for file_name, shard in read.shards.items():
        data = (folder / file_name).read_bytes()
        with open_file(data) as file:
            front = data[: file.container.size]
            assert len(data) == shard.size
            assert int.from_bytes(front[-4:], "little") == shard.front_crc
            own = [tensor for tensor, where in read.weight_map.items() if where == file_name]
            assert file.keys() == own
            tensors |= {tensor: file.tensor(tensor).tobytes() for tensor in own}
    return {tensor: tensors[tensor] for tensor in read.weight_map}


def expected(state: State = STATE, masks: State = MASKS) -> dict[str, bytes]:
    return {
        name: (torch.where(masks[name], tensor, 0.0) if name in masks else tensor).numpy().tobytes()
        for name, tensor in state.items()
    }


@pytest.fixture(autouse=True, scope="module")
def fast_disk() -> Iterator[None]:
    """Nothing waits for the disk; no machine loses its power here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of `STATE`."""
    folder = tmp_path_factory.mktemp("reference")
    encode(folder / "net.pemn")
    return files(folder)


# ------------------------------------------------------------------------------- partition


def test_shards_have_all_tensors_in_order(tmp_path: Path) -> None:
    report = encode(tmp_path / "net.pemn")
    found = model(tmp_path)
    assert found == expected()
    assert list(found) == list(STATE)
    names = list(report.info.shards)
    assert names == [f"net-{i:05}-of-{len(names):05}.pemn" for i in range(1, len(names) + 1)]
    assert set(files(tmp_path)) == {*names, "net.pemn.index.json"}
    for name, size in report.info.shards.items():
        assert (tmp_path / name).stat().st_size == size <= SIZE
    index = decode_index((tmp_path / "net.pemn.index.json").read_bytes(), Limits())
    assert index.weight_map["tied.weight"] == index.weight_map["1.weight"]


def test_what_fits_is_one_file(tmp_path: Path) -> None:
    report = encode(tmp_path / "net.pemn", shard_size="1MB")
    assert set(files(tmp_path)) == {"net.pemn"}
    assert report.info.shards == {}
    alone = io.BytesIO()
    encode(alone, shard_size=None)
    assert (tmp_path / "net.pemn").read_bytes() == alone.getvalue()


def test_a_tensor_that_is_too_large_has_a_file_of_its_own(tmp_path: Path) -> None:
    encode(tmp_path / "net.pemn", shard_size=1)
    index = decode_index((tmp_path / "net.pemn.index.json").read_bytes(), Limits())
    assert [list(index.weight_map.values()).count(name) for name in index.shards] == [
        1, 1, 2, 1, 1, 1
    ]  # fmt: skip
    assert model(tmp_path) == expected()


@st.composite
def contents(draw: st.DrawFn) -> Contents:
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    length = draw(st.integers(1, 400))
    stored = [
        StoredPrototype(random.standard_normal(length).astype(np.float32), "float32")
        for _ in range(2)
    ]
    tensors: list[Any] = []
    for number in range(draw(st.integers(1, 8))):
        name = draw(st.sampled_from(["w", 'Ä"\\', "x" * 40])) + str(number)
        shape = draw(st.sampled_from([(), (0,), (3,), (16, 9), (64, 8), (1, 1, 1, 70)]))
        kind = draw(st.sampled_from(["masked", "dense", "fp16", "bf16", "q8", "alias"]))
        if kind == "alias":
            targets = [tensor.name for tensor in tensors if not isinstance(tensor, AliasTensor)]
            if targets:
                tensors.append(AliasTensor(name, draw(st.sampled_from(targets))))
        elif kind == "masked":
            mask = random.random(shape) < draw(st.sampled_from([0.0, 0.5, 1.0]))
            fill = Fill(draw(st.integers(0, 1)), 0, draw(st.sampled_from([1.0, 0.1])))
            tensors.append(MaskedTensor(name, "float32", shape, fill, np.asarray(mask)))
        else:
            values = np.asarray(random.standard_normal(shape), np.float32)
            mode: Any = "lossless" if kind == "dense" or not values.size else kind
            tensors.append(DenseTensor(name, "float32", shape, values, mode))
    metadata = draw(st.dictionaries(st.text("ab", max_size=3), st.text("cd", max_size=200)))
    return Contents(tuple(stored), tuple(tensors), None, metadata)


@settings(max_examples=40)
@given(contents(), st.integers(1, 6000))
def test_no_file_is_larger_than_asked_for(whole: Contents, size: int) -> None:
    parts = partition(whole, size)
    placed = [tensor.name for part in parts for tensor in part.tensors]
    assert sorted(placed) == sorted(tensor.name for tensor in whole.tensors)
    values = {}
    for part in parts:
        data = b"".join(encode_contents(part))
        own = [tensor for tensor in part.tensors if not isinstance(tensor, AliasTensor)]
        assert len(data) <= size or len(own) <= 1
        with open_file(data) as file:
            assert file.metadata == whole.metadata
            values |= {name: file.tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    with open_file(b"".join(encode_contents(whole))) as file:
        assert values == {name: file.tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("kind", ["masked", "stored", "lossless", "fp16", "bf16", "q8"])
def test_values_that_compression_makes_no_smaller(kind: str) -> None:
    random = np.random.default_rng(0)
    shape = (256, 64)
    prototypes: list[Any] = [pemncodec.SeededPrototype("normal", 3, 9)]
    tensors: list[Any] = []
    for number in range(8):
        name, values = f"{number}.weight", random.standard_normal(shape).astype(np.float32)
        prototypes.append(StoredPrototype(values.reshape(-1), "float32"))
        mask = random.random(shape) < 0.5
        tensors.append(
            MaskedTensor(name, "float32", shape, Fill(number + 1 if kind == "stored" else 0), mask)
            if kind in ("masked", "stored")
            else DenseTensor(name, "float32", shape, values, kind)  # type: ignore[arg-type]
        )
    whole = Contents(tuple(prototypes), tuple(tensors))

    def sizes(size: int) -> list[int]:
        parts = partition(whole, size)
        return [len(b"".join(encode_contents(part, preset="fast"))) for part in parts]

    size = 4 * max(sizes(1))
    assert len(sizes(size)) < 8
    assert max(sizes(size)) <= size


def test_the_preset_is_chosen_for_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.rand(24, 40, generator=torch.Generator().manual_seed(0)) < torch.rand(24, 1)
    masks = dict.fromkeys(MASKS, rows)
    encode(tmp_path / "net.pemn", masks=masks, preset="default")
    small = files(tmp_path)
    encode(tmp_path / "net.pemn", masks=masks, preset="fast")
    fast = files(tmp_path)
    assert small != fast  # so that the comparison tells something
    monkeypatch.setattr("pemncodec.coders.masks._CONTEXT_BY_DEFAULT", 24 * 40 * 2)
    encode(tmp_path / "net.pemn", masks=masks, preset="default")
    assert files(tmp_path) == fast


def test_a_network_is_proven_once_and_decoded_from_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 24, bias=False))
    masks = {
        name: torch.rand(p.shape) < 0.5 for name, p in module.named_parameters() if p.dim() > 1
    }
    proofs = []
    monkeypatch.setattr(
        "pemncodec.encoding.prove_network",
        lambda source, *rest: proofs.append(source) or prove_network(source, *rest),
    )
    report = pemncodec.encode(
        module, tmp_path / "net.pemn", masks=masks, shard_size=4000, find_seed="off"
    )
    assert len(report.info.shards) == 2
    assert len(proofs) == 1
    assert "outputs equal" in report.verified
    decoded = pemncodec.decode(tmp_path / "net.pemn.index.json")
    with torch.no_grad():
        for name, mask in masks.items():
            module.get_parameter(name).mul_(mask)
        inputs = torch.rand(3, 40)
        assert torch.equal(decoded(inputs), module.eval()(inputs))
    for path in tmp_path.glob("net-*.pemn"):
        with open_file(path) as file:
            assert file.manifest is None


def test_values_that_layers_share_are_in_each_file_or_in_one(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    values = random.uniform(-1, 1, 900).astype(np.float32)
    state = {f"{n}.weight": torch.tensor(np.resize(values, (30, 40))) for n in range(6)}
    masks = {name: torch.tensor(random.random((30, 40)) < 0.7) for name in state}
    for name in ("each", "one"):
        (tmp_path / name).mkdir()
        encode(tmp_path / name / "net.pemn", state, masks, share_prototypes=name == "one")
        loaded = pemncodec.load_state_dict(tmp_path / name)
        assert list(loaded) == list(state)
        for key, tensor in loaded.items():
            assert torch.equal(tensor, torch.where(masks[key], state[key], 0.0))
        assert all(size <= SIZE for size in map(len_of, (tmp_path / name).glob("*.pemn")))
    each, one = (list((tmp_path / name).glob("*.pemn")) for name in ("each", "one"))
    assert sum(map(len_of, one)) < sum(map(len_of, each)) - 3000
    for path in each:
        with open_file(path.read_bytes()) as file:  # alone
            file.verify()
    last = max(one)
    with open_file(last) as file:
        file.verify()
    with (
        open_file(last.read_bytes()) as file,
        pytest.raises(pemncodec.DecodeError, match=min(one).name),
    ):
        file.verify()


def len_of(path: Path) -> int:
    return path.stat().st_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9),
        ("2GiB", 2 << 30),
        ("2G", 2 << 30),
        ("1.5 kb", 1500),
        ("512M", 512 << 20),
        ("7", 7),
        ("7B", 7),
        ("1 TiB", 1 << 40),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("7iB", None),
        ("2PB", None),
        ("GB", None),
        ("1e3", None),
        ("٣", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert size_in_bytes(text) == size


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("size", [0, -1, "0", "many", 1.5, True])
def test_sizes_that_are_none(tmp_path: Path, size: Any) -> None:
    with pytest.raises(pemncodec.EncodeArgumentError, match=r"--shard-size .* must be bytes"):
        encode(tmp_path / "net.pemn", shard_size=size)


def test_a_size_without_a_unit_that_nobody_means(tmp_path: Path) -> None:
    with pytest.raises(pemncodec.EncodeArgumentError, match="10 is without a unit: 10GB, 10MB"):
        encode(tmp_path / "net.pemn", shard_size="10")
    assert not list(tmp_path.iterdir())


@given(st.integers(1, 1 << 50) | st.integers(1, 9).map(lambda n: n * 10**9))
def test_sizes_as_text(size: int) -> None:
    assert size_in_bytes(size_as_text(size)) == size
    assert len(size_as_text(size)) <= len(f"{size}B")


@pytest.mark.parametrize("name", ["net", "net.bin", ".net.pemn", "a:b.pemn", "x" * 240 + ".pemn"])
def test_names_that_shards_cannot_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(pemncodec.EncodeArgumentError, match=r"must end in \.pemn"):
        encode(tmp_path / name)
    assert files(tmp_path) == {}


def test_shards_need_a_name() -> None:
    with pytest.raises(pemncodec.EncodeArgumentError, match="writes several files"):
        encode(io.BytesIO())


def test_a_single_file_has_nothing_to_continue(tmp_path: Path) -> None:
    with pytest.raises(pemncodec.EncodeArgumentError, match=r"--resume .* continues shards"):
        encode(tmp_path / "net.pemn", shard_size=None, resume=True)


# ---------------------------------------------------------------------------- interruptions


class Stopped(BaseException):
    """The process is gone."""


def until(
    done: list[str], works: int, error: BaseException, name: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    """A function that notes its name, and fails as soon as `works` names are noted."""

    def call(*arguments: Any, **options: Any) -> Any:
        if len(done) >= works:
            raise error
        done.append(name)
        return function(*arguments, **options)

    return call


@contextlib.contextmanager
def disk(monkeypatch: pytest.MonkeyPatch, works: int, error: BaseException) -> Iterator[list[str]]:
    """Of all that changes a disk, `works` operations succeed; then each one fails."""
    done: list[str] = []
    counted = functools.partial(until, done, works, error)

    opened = io.open

    def half_written(*arguments: Any, **options: Any) -> Any:
        stream = opened(*arguments, **options)
        mode = arguments[1] if len(arguments) > 1 else options.get("mode", "r")
        if "w" not in mode or isinstance(arguments[0], int):
            return stream
        write = counted("write", stream.write)

        def write_or_half(data: Any) -> Any:
            if len(done) >= works:
                stream.write(bytes(data)[: len(data) // 2])
                stream.flush()
            return write(data)

        class Stream(io.BytesIO):
            def __exit__(self, *_: object) -> None:
                stream.close()

            write = staticmethod(write_or_half)  # type: ignore[assignment]

        return Stream()

    with monkeypatch.context() as patch:
        for name in ("replace", "fsync", "mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        patch.setattr(io, "open", half_written)
        yield done


EARLIER: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda _: None,
    "a file": lambda target: encode(target, OTHER, OTHER_MASKS, shard_size=None),
    "as many shards": lambda target: encode(target, OTHER, OTHER_MASKS),
    "more shards": lambda target: encode(target, OTHER, OTHER_MASKS, shard_size=1),
}


@pytest.fixture(scope="module", params=EARLIER)
def earlier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    EARLIER[request.param](folder / "net.pemn")
    return folder


def test_whenever_it_stops_files_are_whole_and_it_can_be_continued(
    tmp_path: Path, earlier: Path, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = False
    works = 0
    seen = set()
    while not finished:
        folder = tmp_path / str(works)
        shutil.copytree(earlier, folder)
        old = model(folder)
        with disk(monkeypatch, works, Stopped()), contextlib.suppress(Stopped):
            encode(folder / "net.pemn")
            finished = True
        found = model(folder)
        seen.add("old" if found == old else "none" if found is None else "new")
        assert found in (old, expected(), None)
        encode(folder / "net.pemn", resume=True)
        assert files(folder) == reference
        shutil.rmtree(folder)
        works += 1 + works // 16  # fewer of the later ones: shard after shard is alike
    assert seen >= {"old", "new"}


def finished(folder: Path) -> int:
    """How many shards are, of an encoding that was interrupted."""
    journal = folder / ".net.pemn.partial" / "journal.json"
    return len(json.loads(journal.read_bytes())["shards"]) if journal.exists() else 0


def works_until(folder: Path, reached: Callable[[Path], bool]) -> int:
    """The first number of operations on a disk after which an encoding has come so far."""
    for works in itertools.count(10):
        trial = folder / "trial"
        trial.mkdir()
        with (
            pytest.MonkeyPatch.context() as patch,
            disk(patch, works, Stopped()),
            contextlib.suppress(Stopped),
        ):
            encode(trial / "net.pemn")
        found = reached(trial)
        shutil.rmtree(trial)
        if found:
            return works
    raise AssertionError


def test_a_full_disk_says_what_is_kept(
    tmp_path: Path,
    reference: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    two_of_three: int,
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        disk(monkeypatch, two_of_three, full),
        pytest.raises(OSError, match="No space left") as caught,
    ):
        encode(tmp_path / "net.pemn")
    assert caught.value.__notes__ == ["2 of 3 shards are kept for --resume"]
    kept = {path.name: path.stat() for path in (tmp_path / ".net.pemn.partial").glob("net-*")}
    assert len(kept) == 2
    report = encode(tmp_path / "net.pemn", resume=True)
    assert "2 of 3 shards were there from an interrupted encoding" in report.notes
    assert files(tmp_path) == reference
    for name, before in kept.items():
        assert (tmp_path / name).stat().st_ino == before.st_ino
        assert (tmp_path / name).stat().st_mtime_ns == before.st_mtime_ns


@pytest.fixture(scope="module")
def two_of_three(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Operations on a disk until two of three shards are finished."""
    return works_until(tmp_path_factory.mktemp("works"), lambda folder: finished(folder) == 2)


@pytest.fixture
def partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_of_three: int) -> Path:
    """The partial folder of an encoding that ended with two of three shards."""
    with disk(monkeypatch, two_of_three, Stopped()), contextlib.suppress(Stopped):
        encode(tmp_path / "net.pemn")
    return tmp_path / ".net.pemn.partial"


def test_what_is_left_is_not_touched_unasked(tmp_path: Path, partial: Path) -> None:
    before = files(partial)
    with pytest.raises(
        pemncodec.EncodeArgumentError,
        match=r"encoding to net.pemn was interrupted, and 2 .* --resume .* or give -f",
    ):
        encode(tmp_path / "net.pemn")
    assert files(partial) == before
    with pytest.raises(pemncodec.EncodeArgumentError, match=r"encoding to net.pemn was interr"):
        encode(tmp_path / "net.pemn", shard_size=None)
    assert files(partial) == before
    # Other files do not mind.
    encode(tmp_path / "other.pemn")
    encode(tmp_path / "single.pemn", shard_size=None)
    assert files(partial) == before


CHANGED = {**STATE, "2.bias": STATE["2.bias"] + 1}
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "masks": ({"masks": {**MASKS, "0.weight": ~MASKS["0.weight"]}}, "made of other tensors"),
    "values": ({"state": {**STATE, "0.bias": STATE["0.bias"] + 1}}, "made of other tensors"),
    "a mode": ({"dense": "fp16"}, "made of other tensors"),
    "metadata": ({"metadata": {"a": "b"}}, "made of other tensors"),
    "fewer": ({"state": dict(list(STATE.items())[:-2])}, "made of other tensors"),
    "few": ({"state": dict(list(STATE.items())[:2])}, "made of more tensors"),
    "the size": ({"shard_size": "7KB"}, "made with --shard-size 6KB, not 7KB"),
    "the preset": ({"preset": "max"}, "made with --preset fast, not max"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_input_or_options_are_not_continued(
    tmp_path: Path, partial: Path, change: str
) -> None:
    before = files(partial)
    options, message = CHANGES[change]
    if "state" in options:
        masks = {name: mask for name, mask in MASKS.items() if name in options["state"]}
        options = {"masks": masks, **options}
    with pytest.raises(pemncodec.EncodeArgumentError, match=f"{message}.*: to start over"):
        encode(tmp_path / "net.pemn", resume=True, **options)
    assert files(partial) == before


def test_a_shard_that_was_not_begun_may_be_of_other_values(tmp_path: Path, partial: Path) -> None:
    assert partial.exists()
    encode(tmp_path / "net.pemn", CHANGED, resume=True)
    assert model(tmp_path) == expected(CHANGED)


def test_what_a_shard_is_made_of() -> None:
    values = np.arange(4, dtype=np.float32)
    fill, mask = Fill(0, 1, 0.5), np.array([True, False])
    masked = MaskedTensor("w", "float32", (2,), fill, mask)
    dense = DenseTensor("b", "float32", (4,), values)
    stored = StoredPrototype(values, "float32")
    seeded = pemncodec.SeededPrototype("normal", 3, 9)
    base = Contents((stored,), (masked, dense, AliasTensor("c", "b")), None, {"a": "b"})

    def tensors(*changed: Any) -> Contents:
        return replace(base, tensors=(*changed, *base.tensors[len(changed) :]))

    def prototype(changed: Any) -> Contents:
        return replace(base, prototypes=(changed,))

    others = [
        tensors(replace(masked, mask=~mask)),
        tensors(replace(masked, name="v")),
        tensors(replace(masked, shape=(2, 1), mask=mask.reshape(2, 1))),
        tensors(replace(masked, fill=replace(fill, offset=0))),
        tensors(replace(masked, fill=replace(fill, scale=0.25))),
        tensors(masked, replace(dense, data=values + 1)),
        tensors(masked, replace(dense, mode="q8")),
        tensors(masked, replace(dense, error=0.5)),
        tensors(masked, replace(dense, dtype="int32")),
        tensors(masked, dense, AliasTensor("c", "w")),
        prototype(replace(stored, given=values + 1)),
        prototype(replace(stored, dtype="float16")),
        prototype(replace(stored, whole=True)),
        prototype(replace(stored, place=PrototypePlace("n.pemn", 0))),
        prototype(seeded),
        prototype(replace(seeded, seed=4)),
        replace(base, metadata={"a": "c"}),
        replace(base, inference_only=True),
        replace(base, tensors=base.tensors[:2]),
    ]
    digests = {contents_digest(each) for each in (base, *others)}
    assert len(digests) == 1 + len(others)
    assert contents_digest(tensors(replace(masked, mask=mask.copy()))) in digests


@pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
def test_damaged_shards_are_made_again(
    tmp_path: Path, partial: Path, reference: dict[str, str], damage: str
) -> None:
    path = partial / "net-00001-of-00003.pemn"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    report = encode(tmp_path / "net.pemn", resume=True)
    assert files(tmp_path) == reference
    assert "1 of 3 shards were there from an interrupted encoding" in report.notes


def test_a_shard_that_vanishes_while_names_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = "net-00001-of-00003.pemn"
    works = works_until(tmp_path, lambda folder: (folder / first).exists())
    with disk(monkeypatch, works, Stopped()), contextlib.suppress(Stopped):
        encode(tmp_path / "net.pemn")
    (tmp_path / first).unlink()
    with pytest.raises(pemncodec.EncodeArgumentError, match="is missing or damaged: to start over"):
        encode(tmp_path / "net.pemn", resume=True)
    shutil.rmtree(tmp_path / ".net.pemn.partial")
    encode(tmp_path / "net.pemn")
    assert model(tmp_path) == expected()


@pytest.fixture
def naming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Path]:
    """Ends an encoding when the first of its files has got its name; the model's path."""
    move = Folder.move

    def move_and_end(*arguments: Any) -> None:
        move(*arguments)
        raise Stopped

    def end(work: Callable[[], Any]) -> Path:
        with monkeypatch.context() as patch, contextlib.suppress(Stopped):
            patch.setattr(Folder, "move", move_and_end)
            work()
            raise AssertionError
        return tmp_path / "net.pemn"

    return end


Naming = Callable[[Callable[[], Any]], Path]


@pytest.mark.parametrize("described", [False, True])
def test_another_architecture_is_not_continued(
    tmp_path: Path, naming: Naming, described: bool
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 24, bias=False))
    masks = {f"{n}.weight": torch.rand(module[n].weight.shape) < 0.5 for n in (0, 2)}

    def run(module: nn.Module, *, resume: bool, manifest: bool) -> Any:
        options: Any = {"shard_size": 4000, "find_seed": "off", "manifest": manifest}
        return pemncodec.encode(
            module, tmp_path / "net.pemn", masks=masks, resume=resume, **options
        )

    naming(lambda: run(module, resume=False, manifest=described))
    before = files(tmp_path, "**/*")
    other = nn.Sequential(module[0], nn.GELU(), module[2])
    changes = [(module, not described), *([(other, True)] if described else [])]
    for changed, manifest in changes:
        with pytest.raises(pemncodec.EncodeArgumentError, match="with another architecture"):
            run(changed, resume=True, manifest=manifest)
        assert files(tmp_path, "**/*") == before
    report = run(module, resume=True, manifest=described)
    assert "2 of 2 shards were there from an interrupted encoding" in report.notes
    with open_file(tmp_path / "net.pemn.index.json") as file:
        assert (file.manifest is not None) == described


def test_tensors_in_another_order_are_not_continued(tmp_path: Path, naming: Naming) -> None:
    target = naming(lambda: encode(tmp_path / "net.pemn"))
    # In its file it stays behind the same tensor.
    names = [name for name in STATE if name != "tied.weight"]
    names.insert(names.index("1.bias") + 1, "tied.weight")
    with pytest.raises(pemncodec.EncodeArgumentError, match="with another order of tensors"):
        encode(target, {name: STATE[name] for name in names}, resume=True)


def test_what_gets_names_is_proven_before(
    tmp_path: Path, naming: Naming, monkeypatch: pytest.MonkeyPatch, reference: dict[str, str]
) -> None:
    target = naming(lambda: encode(tmp_path / "net.pemn"))
    before = files(tmp_path, "**/*")

    def differs(*_: Any) -> None:
        raise pemncodec.EncodeError("0.weight differs")

    with monkeypatch.context() as patch:
        patch.setattr("pemncodec.encoding.prove_tensors", differs)
        with pytest.raises(pemncodec.EncodeError, match="differs"):
            encode(target, resume=True)
    assert files(tmp_path, "**/*") == before
    encode(target, resume=True)
    assert files(tmp_path) == reference


def test_a_journal_that_has_lost_shards(tmp_path: Path, naming: Naming) -> None:
    target = naming(lambda: encode(tmp_path / "net.pemn"))
    journal = tmp_path / ".net.pemn.partial" / "journal.json"
    known = json.loads(journal.read_bytes())
    known["shards"].popitem()
    journal.write_text(json.dumps(known))
    before = files(tmp_path, "**/*")
    with pytest.raises(pemncodec.EncodeArgumentError, match="some shards are missing"):
        encode(target, resume=True)
    assert files(tmp_path, "**/*") == before


def test_shards_of_another_version_are_not_continued(
    tmp_path: Path, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert partial.exists()
    monkeypatch.setattr("pemncodec.sharding.__version__", "0.0.9")
    with pytest.raises(
        pemncodec.EncodeArgumentError, match=r"made with pemncodec .*, not 0\.0\.9: to start over"
    ):
        encode(tmp_path / "net.pemn", resume=True)


def test_a_folder_without_a_journal_holds_nothing(
    tmp_path: Path, reference: dict[str, str]
) -> None:
    (tmp_path / ".net.pemn.partial").mkdir()
    (tmp_path / ".net.pemn.partial" / ".pemn-abc.tmp").touch()
    encode(tmp_path / "net.pemn")
    assert files(tmp_path) == reference


def test_files_in_the_folder_that_are_not_ours_stay(run: Run, tmp_path: Path) -> None:
    checkpoint_of_one(tmp_path)
    command = ["encode", "model.pt", "--no-manifest", "-o", "net.pemn", "--shard-size", "1B"]
    partial, elsewhere = tmp_path / ".net.pemn.partial", tmp_path / "elsewhere"
    for folder in (partial, elsewhere):
        (folder / "sub").mkdir(parents=True)
        (folder / ".pemn-abc.tmp").touch()

    def refused(words: str, *more: str) -> None:
        before = files(tmp_path, "**/*")
        fails(run(*command, *more), 2, words)
        assert files(tmp_path, "**/*") == before

    for more in ((), ("--resume",), ("-f",)):
        refused(".net.pemn.partial/sub is of no encoding: move it elsewhere", *more)
    (partial / "sub").rmdir()
    (partial / "thesis.txt").touch()
    for more in ((), ("--resume",), ("-f",)):
        refused(".net.pemn.partial/thesis.txt is of no encoding: move it", *more)
    shutil.rmtree(partial)
    partial.symlink_to(elsewhere.name)
    for journal in ("", '{"format":"pemn-journal","made_with":{},"shards":{},"proven":true,'):
        (elsewhere / "journal.json").write_text(journal + '"replaced":[]}' if journal else "")
        for more in ((), ("--resume",), ("-f",)):
            refused(".net.pemn.partial must be a folder", *more)
    partial.unlink()
    partial.touch()
    refused(".net.pemn.partial must be a folder", "-f")


def checkpoint_of_one(folder: Path) -> None:
    """A checkpoint of a layer, model.pt."""
    weight, mask = STATE["0.weight"], MASKS["0.weight"]
    state = {"0.weight_orig": weight, "0.weight_mask": mask, "0.bias": STATE["0.bias"]}
    torch.save(state, folder / "model.pt")


def journal_of(**changed: Any) -> bytes:
    shard = {"contents": "", "size": 1, "front_crc": 1}
    fields = {"made_with": {}, "shards": {"net-00001-of-00001.pemn": shard}, "proven": True}
    fields |= {"replaced": ["net.pemn", "net.pemn.index.json", "net-00002-of-00002.pemn"]}
    return json.dumps({"format": "pemn-journal", **fields, **changed}).encode()


DAMAGED = [
    {"replaced": ["../thesis.pemn"]},
    {"replaced": ["thesis-00001-of-00002.pemn"]},
    {"replaced": ["model.pt"]},
    {"replaced": [1]},
    {"replaced": None},
    {"proven": "no"},
    {"made_with": {"--preset": 1}},
    {"made_with": []},
    {"shards": {"../thesis.pemn": {"contents": "", "size": 1, "front_crc": 1}}},
    {"shards": {"net-00001-of-00001.pemn": {"contents": "", "size": "1", "front_crc": 1}}},
    {"shards": {"net-00001-of-00001.pemn": {"contents": 1, "size": 1, "front_crc": 1}}},
    {"shards": {"net-00001-of-00001.pemn": {"contents": "", "size": 1}}},
    {"more": 1},
]


@pytest.mark.parametrize("changed", DAMAGED)
def test_a_journal_names_no_files_of_others(tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = tmp_path / ".net.pemn.partial"
    folder.mkdir()
    (folder / "journal.json").write_bytes(journal_of())
    with pytest.raises(pemncodec.EncodeArgumentError, match="was interrupted"):
        encode(tmp_path / "net.pemn")
    (folder / "journal.json").write_bytes(journal_of(**changed))
    (tmp_path / "thesis.pemn").touch()
    before = files(tmp_path, "**/*")
    for resume in (False, True):
        with pytest.raises(pemncodec.EncodeArgumentError, match=r"journal\.json: .*; delete"):
            encode(tmp_path / "net.pemn", resume=resume)
    assert files(tmp_path, "**/*") == before


@pytest.mark.parametrize("journal", [b"", b"{}", b"[]", b'{"format":"pemn-journal","shards":[]}'])
def test_a_damaged_journal_is_told(tmp_path: Path, journal: bytes) -> None:
    (tmp_path / ".net.pemn.partial").mkdir()
    (tmp_path / ".net.pemn.partial" / "journal.json").write_bytes(journal)
    for resume in (False, True):
        with pytest.raises(pemncodec.EncodeArgumentError, match="not the journal of an encoding"):
            encode(tmp_path / "net.pemn", resume=resume)


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_one_process_at_a_time(tmp_path: Path, partial: Path) -> None:
    import fcntl

    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for resume in (False, True):
            with pytest.raises(pemncodec.EncodeArgumentError, match="another process is encoding"):
                encode(tmp_path / "net.pemn", resume=resume)
    finally:
        os.close(descriptor)
    encode(tmp_path / "net.pemn", resume=True)


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
@pytest.mark.parametrize("moment", ["open", "flock"])
def test_the_folder_vanishes_when_another_process_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: dict[str, str], moment: str
) -> None:
    import fcntl

    module = {"open": os, "flock": fcntl}[moment]
    function, done = getattr(module, moment), []

    def call(*arguments: Any, **options: Any) -> Any:
        folder = tmp_path / ".net.pemn.partial"
        if not done and folder.exists():
            done.append(folder.rmdir())
        return function(*arguments, **options)

    monkeypatch.setattr(module, moment, call)
    encode(tmp_path / "net.pemn")
    assert done
    assert files(tmp_path) == reference


def test_a_first_shard_that_was_not_noted(tmp_path: Path, reference: dict[str, str]) -> None:
    folder = tmp_path / ".net.pemn.partial"
    folder.mkdir()
    (folder / "net-00001-of-00003.pemn").write_bytes(b"x")
    encode(tmp_path / "net.pemn")
    assert files(tmp_path) == reference


def test_finished_shards_are_not_read_whole(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, 1 << 22, np.uint8)
    whole = Contents((), (DenseTensor("a", "uint8", values.shape, values),))
    (tmp_path / "net.pemn").write_bytes(b"".join(encode_contents(whole)))
    tracemalloc.start()
    try:
        assert read_shard(tmp_path / "net.pemn").size > len(values)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_cannot_be_proven_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*_: Any) -> None:
        raise pemncodec.EncodeError("0.weight differs")

    monkeypatch.setattr("pemncodec.encoding.prove_tensors", differs)
    with pytest.raises(pemncodec.EncodeError, match="differs"):
        encode(tmp_path / "net.pemn")
    assert files(tmp_path) == {}


def test_files_that_are_not_ours_stay(tmp_path: Path) -> None:
    others = {"net-00001-of-1.pemn", "net-x.pemn", "netz-00001-of-00002.pemn", "net.pemn.txt"}
    for name in others:
        (tmp_path / name).write_bytes(b"x")
    encode(tmp_path / "net.pemn", shard_size=1)
    encode(tmp_path / "net.pemn", shard_size=None)
    assert set(files(tmp_path)) == {*others, "net.pemn"}
    # An index that names a file of another model.
    index = ShardIndex({"net-x.pemn": Shard(1, 0)}, {"w": "net-x.pemn"})
    (tmp_path / "net.pemn.index.json").write_bytes(encode_index(index))
    encode(tmp_path / "net.pemn", shard_size=None)
    assert set(files(tmp_path)) == {*others, "net.pemn"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_that_are_killed(tmp_path: Path) -> None:
    script, table = ROOT / "benchmarks" / "interruptions.py", tmp_path / "kills.csv"
    subprocess.run([sys.executable, script, "--moments", "2", "-o", table], check=True)
    with table.open(newline="") as stream:
        stream.readline()  # where it was measured
        rows = list(csv.DictReader(stream))
    assert [(row["damaged"], row["continued"]) for row in rows] == [("no", "same bytes")] * 3


# ------------------------------------------------------------------------------------ places


@pytest.fixture
def store() -> Iterator[dict[str, bytes]]:
    """The files of memory://, by name."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def stored(system: Any) -> dict[str, str]:
    return {
        name.rpartition("/")[2]: sha256(system.cat_file(name)).hexdigest()
        for name in system.find("/")
    }


def test_shards_of_a_store(store: Any, reference: dict[str, str]) -> None:
    encode("memory://folder/net.pemn")
    assert stored(store) == reference
    for earlier in ({"shard_size": 1}, {}, {"shard_size": None}):
        encode("memory://folder/net.pemn", OTHER, OTHER_MASKS, **earlier)
        assert stored(store) != reference
        encode("memory://folder/net.pemn")
        assert stored(store) == reference


@contextlib.contextmanager
def store_that_ends(store: Any, works: int, error: BaseException) -> Iterator[list[str]]:
    """Of all that changes a store, `works` operations succeed; then each one fails."""
    done: list[str] = []
    counted = functools.partial(until, done, works, error)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("put_file", "cp_file", "rm_file", "makedirs", "rmdir"):
            patch.setattr(type(store), name, counted(name, getattr(type(store), name)))
        yield done


def model_of_store(store: Any, folder: Path) -> dict[str, bytes] | None:
    """The tensors of the model of a store; as `model` says."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in store.find("/"):
        if ".partial/" not in name and not name.endswith(".tmp"):
            (folder / name.rpartition("/")[2]).write_bytes(store.cat_file(name))
    return model(folder)


@pytest.mark.parametrize("renames", [True, False])
@pytest.mark.parametrize("before", EARLIER)
def test_whenever_it_stops_a_store_has_whole_files_and_it_can_be_continued(
    store: Any,
    tmp_path: Path,
    reference: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    renames: bool,
) -> None:
    """By a process that has nothing but what is in the store."""
    if not renames:  # but lets nobody see half a file
        monkeypatch.setattr("pemncodec.remote.stores._WHOLE", {"memory"})
    url: Any = "memory://folder/net.pemn"
    works, ended, seen = 0, False, set()
    while not ended:
        store.store.clear()
        EARLIER[before](url)
        old = model_of_store(store, tmp_path / "files")
        with store_that_ends(store, works, Stopped()), contextlib.suppress(Stopped):
            encode(url)
            ended = True
        found = model_of_store(store, tmp_path / "files")
        seen.add("old" if found == old else "none" if found is None else "new")
        assert found in (old, expected(), None)
        if before != "as many shards":  # whose names are the same
            assert found in (old, expected())
        encode(url, resume=True)
        assert stored(store) == reference
        works += 1 + works // 8
    assert seen >= {"old", "new"}


def finished_in(store: Any) -> int:
    journals = [name for name in store.find("/") if name.endswith("journal.json")]
    return len(json.loads(store.cat_file(journals[0]))["shards"]) if journals else 0


@pytest.fixture
def left_in_store(store: Any) -> Any:
    """A store with two of three finished shards, since when the connection is broken."""
    broken = ConnectionResetError(errno.ECONNRESET, "reset by peer")
    for works in itertools.count(10):
        with (
            store_that_ends(store, works, broken),
            pytest.raises(OSError, match=r"reset by peer: 'memory://\.net") as caught,
        ):
            encode("memory://net.pemn")
        if getattr(caught.value, "__notes__", None) == ["2 of 3 shards are kept for --resume"]:
            assert finished_in(store) == 2
            return store
        store.store.clear()
    raise AssertionError


def test_shards_of_a_store_are_not_made_again(
    left_in_store: Any, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(
        "pemncodec.sharding.encode_contents",
        lambda *arguments: made.append(arguments) or encode_contents(*arguments),
    )
    (first,) = (name for name in left_in_store.find("/") if name.endswith("-00001-of-00003.pemn"))
    whole = left_in_store.cat_file(first)
    before = stored(left_in_store)
    where = r"memory://\.net\.pemn\.partial"
    for options in ({}, {"shard_size": None}):
        with pytest.raises(pemncodec.EncodeArgumentError, match=f"2 .* --resume .*delete {where} "):
            encode("memory://net.pemn", **options)
    with pytest.raises(pemncodec.EncodeArgumentError, match=f"shards in {where} were made with"):
        encode("memory://net.pemn", preset="max", resume=True)
    with pytest.raises(pemncodec.EncodeArgumentError, match=f"shards in {where} were made of more"):
        encode("memory://net.pemn", shard_size="1MB", resume=True)
    assert stored(left_in_store) == before
    report = encode("memory://net.pemn", resume=True)
    assert "2 of 3 shards were there from an interrupted encoding" in report.notes
    assert len(made) == 1
    assert stored(left_in_store) == reference
    # One that is damaged, or of another encoding, is.
    for data in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        with store_that_ends(left_in_store, 12, Stopped()), contextlib.suppress(Stopped):
            encode("memory://net.pemn")
        assert finished_in(left_in_store)
        left_in_store.pipe_file(first, data)
        encode("memory://net.pemn", resume=True)
        assert stored(left_in_store) == reference


def test_a_shard_that_a_store_loses_while_names_are_given(store: Any) -> None:
    for works in itertools.count(26):
        with store_that_ends(store, works, Stopped()), contextlib.suppress(Stopped):
            encode("memory://net.pemn")
        if store.exists("/net-00002-of-00003.pemn"):
            break
        store.store.clear()
    assert not store.exists("/net.pemn.index.json")
    for folder in ("", "/.net.pemn.partial"):  # it may have both names
        with contextlib.suppress(FileNotFoundError):
            store.rm_file(f"{folder}/net-00002-of-00003.pemn")
    lost = r"memory://net-00002-of-00003\.pemn is missing or damaged: to start over, delete"
    with pytest.raises(pemncodec.EncodeArgumentError, match=lost):
        encode("memory://net.pemn", resume=True)


@contextlib.contextmanager
def taking_turns(store: Any, random: Random, count: int) -> Iterator[Callable[[int], None]]:
    """Lets threads work on a store one operation at a time, in a random order.

    Gives what a thread, by its number, calls when it begins and when it is done.
    """
    changed, waiting = threading.Condition(), set(range(count))
    numbers: dict[int, int] = {}
    now = random.randrange(count)

    def next_one() -> None:
        nonlocal now
        now = random.choice(sorted(waiting)) if waiting else -1
        changed.notify_all()

    def begin_or_end(number: int) -> None:
        with changed:
            if threading.get_ident() not in numbers:
                numbers[threading.get_ident()] = number
                assert changed.wait_for(lambda: now == number, 60)
            else:
                waiting.remove(number)
                next_one()

    def in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            number = numbers.get(threading.get_ident())
            if number is not None:
                with changed:
                    next_one()
                    assert changed.wait_for(lambda: now == number, 60)
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put_file", "cp_file", "rm_file", "find", "size"):
            patch.setattr(type(store), name, in_turn(getattr(type(store), name)))
        yield begin_or_end


@pytest.mark.parametrize("seed", range(24))
def test_two_processes_at_one_store(store: Any, tmp_path: Path, seed: int) -> None:
    """Neither says that all is well with a model of which the other has written a part."""
    url, random = "memory://folder/net.pemn", Random(seed)
    encode(url, *network(seed=2))
    networks = [(STATE, MASKS), (OTHER, OTHER_MASKS)]
    sizes = [SIZE, SIZE if seed % 2 else 1]
    errors: list[Exception | None] = [None, None]

    def run(number: int) -> None:
        begin_or_end(number)
        try:
            if seed % 3 == 0:  # as -f does
                discard_leftover(url)
            encode(url, *networks[number], shard_size=sizes[number])
        except (pemncodec.EncodeError, OSError) as error:
            errors[number] = error
        finally:
            begin_or_end(number)

    with taking_turns(store, random, 2) as begin_or_end:
        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors == [None, None]:
        found = model_of_store(store, tmp_path / "files")
        assert found in [expected(*own) for own in networks]
    discard_leftover(url)
    encode(url)
    assert model_of_store(store, tmp_path / "files") == expected()


@pytest.mark.parametrize("scheme", ["memory", "path"])
@pytest.mark.parametrize("pattern", ["net-00001*", "*.json", "*"])
@pytest.mark.parametrize("change", ["gone", "another"])
def test_what_others_change_gets_no_name(
    store: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reference: dict[str, str],
    scheme: str,
    pattern: str,
    change: str,
) -> None:
    target = tmp_path / "net.pemn" if scheme == "path" else "memory://folder/net.pemn"
    prove = prove_tensors

    def change_after(*arguments: Any) -> Any:
        report = prove(*arguments)
        for file in fnmatch.filter(reference, pattern):
            if scheme == "path":
                path = tmp_path / ".net.pemn.partial" / file
                path.unlink() if change == "gone" else shutil.copy(tmp_path / file, path)
            elif change == "gone":
                store.rm_file(f"/folder/.net.pemn.partial/{file}")
            else:
                store.cp_file(f"/folder/{file}", f"/folder/.net.pemn.partial/{file}")
        return report

    encode(target, OTHER, OTHER_MASKS)
    monkeypatch.setattr("pemncodec.encoding.prove_tensors", change_after)
    with pytest.raises(pemncodec.EncodeArgumentError, match="another process writes or deletes"):
        encode(target)
    assert (
        model(tmp_path) if scheme == "path" else model_of_store(store, tmp_path / "files")
    ) == expected(OTHER, OTHER_MASKS)


@pytest.mark.parametrize("pattern", ["net-00001*", "*.json", "*"])
@pytest.mark.parametrize("change", ["gone", "another"])
def test_what_others_change_when_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, change: str
) -> None:
    """It is told, and what was to be replaced is still there, and the journal."""
    (tmp_path / "other").mkdir()
    encode(tmp_path / "other" / "net.pemn", OTHER, OTHER_MASKS)
    encode(tmp_path / "net.pemn", OTHER, OTHER_MASKS, shard_size=1)
    before = set(files(tmp_path, "net-*"))
    move = Folder.move

    def change_after(place: Folder, name: str, new: str) -> None:
        move(place, name, new)
        if new.endswith(".json"):
            for other in (tmp_path / "other").glob(pattern):
                path = tmp_path / other.name
                path.unlink() if change == "gone" else shutil.copy(other, path)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "move", change_after)
        with pytest.raises(pemncodec.EncodeArgumentError, match="another process writes"):
            encode(tmp_path / "net.pemn")
    assert set(files(tmp_path, "net-*")) >= before
    assert finished(tmp_path) == 3
    discard_leftover(tmp_path / "net.pemn")
    encode(tmp_path / "net.pemn")
    assert model(tmp_path) == expected()


@pytest.mark.parametrize("name", ["net.pemn.index.json", ".net.pemn.partial/journal.json"])
@pytest.mark.parametrize("scheme", ["file", "path"])
def test_no_more_is_read_than_a_reader_takes(tmp_path: Path, name: str, scheme: str) -> None:
    if scheme == "file":
        pytest.importorskip("fsspec")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    with (tmp_path / name).open("wb") as stream:
        stream.truncate(400 << 20)
    target = tmp_path / "net.pemn" if scheme == "path" else (tmp_path / "net.pemn").as_uri()
    refused = pytest.raises(pemncodec.EncodeArgumentError, match="not the journal of an encoding")
    tracemalloc.start()
    try:
        with refused if name.endswith("journal.json") else contextlib.nullcontext():
            encode(target)
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------ command line


@pytest.fixture
def checkpoint(tmp_path: Path) -> list[object]:
    """Arguments that encode a checkpoint into shards."""
    state = {name: t for name, t in STATE.items() if name != "tied.weight"}
    mask_entries = {f"{name}_mask": mask for name, mask in MASKS.items() if name in state}
    originals = {f"{name}_orig" if name in MASKS else name: t for name, t in state.items()}
    torch.save({**originals, **mask_entries}, tmp_path / "model.pt")
    options = ["--no-manifest", "--find-seed", "off", "--preset", "fast"]
    return ["encode", "model.pt", *options, "-o", "net.pemn", "--shard-size", "6kB"]


def test_the_command_lists_shards(run: Run, tmp_path: Path, checkpoint: list[object]) -> None:
    result = run(*checkpoint)
    assert result.returncode == 0, result.stderr
    written = [path for path in sorted(tmp_path.iterdir()) if path.name.startswith("net-")]
    assert len(written) == 3
    lines = result.stdout.decode().splitlines()
    for path in written:
        size = path.stat().st_size
        assert f"{path.name}  {size:,} bytes" in lines
    result = run(*checkpoint, "-f", "--json")
    listed = json.loads(result.stdout)["shards"]
    assert listed == {path.name: path.stat().st_size for path in written}


def test_the_command_overwrites_and_continues_only_when_asked(
    run: Run, tmp_path: Path, checkpoint: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    works = works_until(tmp_path, lambda folder: finished(folder) == 1)
    with disk(monkeypatch, works, full):
        result = run(*checkpoint)
    fails(result, 1, "No space left on device", "1 of 3 shards are kept for --resume")
    before = files(tmp_path / ".net.pemn.partial")
    fails(run(*checkpoint), 2, "--resume continues it; to start over, delete", "or give -f\n")
    for force in ((), ("-f",)):
        options = ("--resume", "--preset", "max", *force)
        says = ("made with --preset fast, not max: ", "or give -f without --resume")
        fails(run(*checkpoint, *options), 2, *says)
    assert files(tmp_path / ".net.pemn.partial") == before
    assert run(*checkpoint, "--resume", "-q").returncode == 0
    done = files(tmp_path)
    assert ".net.pemn.partial" not in done
    fails(run(*checkpoint), 2, "net.pemn.index.json exists: -f overwrites it")
    fails(run(*checkpoint[:-2]), 2, "net.pemn.index.json exists: -f overwrites it")
    fails(run(*checkpoint, "--resume"), 2, "exists: nothing is left to resume; -f overwrites it")
    with disk(monkeypatch, works, full):
        fails(run(*checkpoint, "-f"), 1, "kept for --resume")
    fails(run(*checkpoint, "--resume"), 2, "exists: give -f, too, if what is resumed is to")
    assert b"1 of 3 shards were there" in run(*checkpoint, "--resume", "-f").stdout
    with disk(monkeypatch, works, full):
        fails(run(*checkpoint, "-f"), 1, "kept for --resume")
    result = run(*checkpoint, "-f")
    assert result.returncode == 0
    assert b"what an interrupted encoding had left is deleted" in result.stderr
    assert files(tmp_path) == done
    assert run(*checkpoint[:-2], "-f", "-q").returncode == 0
    assert set(files(tmp_path)) == {"model.pt", "net.pemn"}


def test_the_command_continues_in_a_store(
    run: Run, left_in_store: Any, tmp_path: Path, reference: dict[str, str]
) -> None:
    left_in_store.pipe_file("/.net.pemn.partial/of-others.txt", b"")
    torch.save({"state_dict": STATE, "masks": MASKS}, tmp_path / "model.pt")
    command = ["encode", "model.pt", "-o", "memory://net.pemn", "--no-manifest"]
    command += ["--find-seed", "off", "--preset", "fast"]
    shards = ["--shard-size", SIZE]
    for options in ([], shards):
        fails(run(*command, *options), 2, "--resume continues it; to start over")
    result = run(*command, *shards, "--resume")
    assert result.returncode == 0, result.stderr
    assert b"2 of 3 shards were there" in result.stdout
    others = {"of-others.txt": sha256(b"").hexdigest()}
    assert stored(left_in_store) == reference | others
    fails(run(*command, *shards), 2, "memory://net.pemn.index.json exists: -f overwrites it")
    fails(run(*command, *shards, "--resume"), 2, "exists: nothing is left to resume; -f over")
    with store_that_ends(left_in_store, 16, Stopped()), contextlib.suppress(Stopped):
        run(*command, *shards, "-f")
    assert finished_in(left_in_store)
    fails(run(*command, *shards, "--resume"), 2, "exists: give -f, too, if what is resumed is to")
    result = run(*command, "-f")
    assert result.returncode == 0, result.stderr
    assert b"what an interrupted encoding had left is deleted" in result.stderr
    assert set(stored(left_in_store)) == {"net.pemn", *others}


def test_what_several_processes_left_is_told_to_one(
    run: Run, tmp_path: Path, checkpoint: list[object]
) -> None:
    name = "net-00001-of-00002.pemn"
    (data,) = encode_contents(Contents((), (DenseTensor("a", "float32", (0,), np.zeros(0, "f4")),)))
    folders = [tmp_path / f".net.{rank}-of-12.pemn.partial" for rank in (0, 11)]
    for rank in (0, 11):
        target = part_target(tmp_path / "net.pemn", rank, 12)
        with open_partial(target, {}, {name: ""}, resume=False) as partial:
            partial.add(name, [data])
    other = tmp_path / ".net.x.0-of-12.pemn.partial"  # of net.x.pemn
    other.mkdir()
    before = files(tmp_path, "**/*")
    for command in (checkpoint, [*checkpoint, "--resume"], checkpoint[:-2]):
        fails(
            run(*command),
            2,
            "an encoding to net.pemn by 12 processes was interrupted",
            "as many continue it, by torchrun with --resume",
            "delete .net.*-of-12.pemn.partial or give -f",
        )
    assert files(tmp_path, "**/*") == before
    assert all(folder.is_dir() for folder in folders)
    result = run(*checkpoint[:-2], "-f")
    assert result.returncode == 0, result.stderr
    assert b"what an interrupted encoding had left is deleted" in result.stderr
    assert not any(folder.exists() for folder in folders)
    assert other.exists()


def test_the_command_continues_with_names(
    run: Run, tmp_path: Path, checkpoint: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "net.pemn.index.json"
    works = works_until(tmp_path, lambda folder: (folder / index.name).exists())
    with disk(monkeypatch, works, Stopped()), contextlib.suppress(Stopped):
        run(*checkpoint)
    assert index.exists()
    assert (tmp_path / ".net.pemn.partial").exists()
    result = run(*checkpoint, "--resume")
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / ".net.pemn.partial").exists()


@pytest.mark.parametrize(
    ("before", "moment"),
    [("6kB", "move"), ("1B", "move"), (None, "move"), ("6kB", "remove"), ("1B", "remove")],
)
def test_starting_over_leaves_no_shards_without_an_index(
    run: Run,
    tmp_path: Path,
    checkpoint: list[object],
    monkeypatch: pytest.MonkeyPatch,
    before: str | None,
    moment: str,
) -> None:
    if before is not None:
        assert run(*checkpoint[:-1], before).returncode == 0
    calls: list[str] = []

    def stopping(name: str) -> Callable[..., None]:
        function = getattr(Folder, name)

        def call(*arguments: Any) -> None:
            if name == moment and "move" in calls:
                raise Stopped
            calls.append(name)
            function(*arguments)

        return call

    with monkeypatch.context() as patch, contextlib.suppress(Stopped):
        for name in ("move", "remove"):
            patch.setattr(Folder, name, stopping(name))
        run(*checkpoint, "-f")
    assert "move" in calls
    assert run(*checkpoint[:-1], "10kB", "-f").returncode == 0
    index = decode_index((tmp_path / "net.pemn.index.json").read_bytes(), Limits())
    assert len(index.shards) == 2
    assert set(files(tmp_path)) == {"model.pt", "net.pemn.index.json", *index.shards}


@pytest.mark.parametrize("name", ["net.pemn", "net.pemn.index.json"])
def test_what_has_come_there_meanwhile_is_overwritten_only_when_asked(
    run: Run,
    tmp_path: Path,
    checkpoint: list[object],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    first = "net-00001-of-00003.pemn"
    works = works_until(tmp_path, lambda folder: (folder / first).exists())
    with disk(monkeypatch, works, Stopped()), contextlib.suppress(Stopped):
        run(*checkpoint)
    assert (tmp_path / first).exists()
    fails(run(*checkpoint[:-2]), 2, "encoding to net.pemn was interrupted")
    (tmp_path / name).write_bytes(b"{}")
    fails(run(*checkpoint, "--resume"), 2, f"{name} exists: give -f, too")
    assert (tmp_path / name).read_bytes() == b"{}"
    assert run(*checkpoint, "--resume", "-f", "-q").returncode == 0
    assert not (tmp_path / "net.pemn").exists()
    assert len(pemncodec.load_state_dict(tmp_path / "net.pemn.index.json")) == len(STATE) - 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_command_in_one_line(
    run: Run,
    tmp_path: Path,
    checkpoint: list[object],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    coded = []

    def encode_or_signal(*arguments: Any) -> Any:
        coded.append(arguments)
        if len(coded) == 2:
            os.kill(os.getpid(), number)
        return encode_contents(*arguments)

    before = signal.getsignal(number)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("pemncodec.sharding.encode_contents", encode_or_signal)
            result = run(*checkpoint)
    finally:
        signal.signal(number, before)
    assert result.returncode == 130
    assert result.stderr.decode().strip() == (
        "pemn: interrupted; 1 of 3 shards are kept for --resume"
    )
    assert not list(tmp_path.rglob("*.tmp"))
    assert run(*checkpoint, "--resume").returncode == 0


def test_options_of_shards_are_told_at_once(run: Run, checkpoint: list[object]) -> None:
    *rest, _, _ = checkpoint
    fails(run(*rest, "--resume"), 2, "--resume", "--shard-size")
    fails(run(*rest, "--share-prototypes"), 2, "it needs --shard-size")
    fails(run(*rest, "--shard-size", "many"), 2, "--shard-size", "2GB", "'many'")
    fails(run(*checkpoint, "-o", "-"), 2, "several files")
    fails(run(*checkpoint, "-o", "net"), 2, "must end in .pemn")
