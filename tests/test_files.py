"""Files that people give: what loads, what does not and what to do then; pipes and devices."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import gzip
import io
import os
import random
import threading
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import Run, fails
from torch import Tensor, nn

import pemncodec
from pemncodec import EncodeArgumentError, EncodeError, NotPemnError
from pemncodec.checkpoints.files import load_checkpoint
from pemncodec.checkpoints.kinds import WHAT_TO_DO, kind_of
from pemncodec.checkpoints.sources import load_masks

State = dict[str, Tensor]
RAN: list[str] = []


@dataclasses.dataclass
class Options:
    rate: float = 0.1
    where: Path = Path("runs")


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    name: str = "a"


class Color(enum.Enum):
    RED = 1


class OwnDict(dict[str, Any]):
    pass


class OwnList(list[Any]):
    pass


Point = collections.namedtuple("Point", "x y")


class Custom:
    """Of a class whose code would run, were it imported and restored."""

    def __init__(self) -> None:
        self.value = 1

    def __setstate__(self, _: Any) -> None:
        RAN.append("setstate")


class Reduced:
    def __reduce__(self) -> Any:
        return RAN.append, ("reduced",)


def counted() -> Any:
    counts = collections.defaultdict(list)
    counts["a"].append(1)
    return counts


BESIDE: dict[str, Any] = {
    "options of argparse": argparse.Namespace(lr=0.1, names=["a"], path=Path("x")),
    "SimpleNamespace": types.SimpleNamespace(a=1),
    "float64": np.float64(0.5),
    "float32 in a list": [np.float32(0.5), np.int64(3), np.bool_(True)],
    "NumPy array": np.arange(3.0),
    "NumPy random state": np.random.get_state(),
    "dataclass": Options(),
    "frozen dataclass with slots": Frozen(),
    "enumeration": Color.RED,
    "own dict": OwnDict(a=OwnDict(b=1, c=2)),
    "own list": OwnList([1, OwnList([2, 3])]),
    "named tuple": Point(1, 2),
    "defaultdict": counted(),
    "Counter": collections.Counter("aab"),
    "path": Path("a/b"),
    "time": datetime.datetime(2026, 1, 1),
    "decimal": decimal.Decimal("0.1"),
    "function": len,
    "class": Options,
    "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1),
    "another module": nn.Linear(2, 2),
    "own class": Custom(),
}


def tensors() -> State:
    torch.manual_seed(0)
    return {"fc.weight": torch.randn(3, 4), "fc.scores": torch.randn(3, 4)}


def same(first: State, second: State) -> bool:
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


# ------------------------------------------------------------------ objects beside a state dict


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("what", BESIDE)
def test_objects_beside_a_state_dict_are_passed_over(
    what: str, legacy: bool, tmp_path: Path
) -> None:
    if legacy and what == "another module":
        pytest.skip("old files hold the source of modules, which torch.load does not read")
    RAN.clear()
    allowed = torch.serialization.get_safe_globals()
    content = {"epoch": 3, "what": BESIDE[what], "state_dict": tensors(), "more": [BESIDE[what]]}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    loaded = load_checkpoint(tmp_path / "x.pt")
    assert isinstance(loaded, dict)
    assert same(loaded, tensors())
    assert not RAN
    assert set(torch.serialization.get_safe_globals()) == set(allowed)


def test_a_state_dict_may_be_a_dict_of_the_user(tmp_path: Path) -> None:
    for content in (OwnDict(tensors()), {"model": OwnDict(tensors()), "options": Options()}):
        torch.save(content, tmp_path / "x.pt")
        loaded = load_checkpoint(tmp_path / "x.pt")
        assert isinstance(loaded, dict)
        assert same(loaded, tensors())


def test_nothing_of_a_file_is_run(tmp_path: Path) -> None:
    RAN.clear()
    torch.save({"state_dict": tensors(), "x": Custom()}, tmp_path / "x.pt")
    load_checkpoint(tmp_path / "x.pt")
    assert not RAN
    load_checkpoint(tmp_path / "x.pt", trust_pickle=True)
    assert RAN == ["setstate"]  # the same file does run code where that is allowed


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": torch.ones(1), "b": np.ones(2)}, "entry 'b' is numpy.ndarray"),
        ({"a": torch.ones(1), "b": Options()}, "entry 'b' is .*test_files.Options"),
        ({"a": torch.ones(1), "b": argparse.Namespace()}, "entry 'b' is argparse.Namespace"),
        ({"epoch": 1, "state_dict": Options()}, "test_files.Options under 'state_dict'.*--trust"),
        ({"epoch": 1, "model": nn.Linear(2, 2)}, r"Linear under 'model'; --trust-pickle"),
        (nn.Linear(2, 2), r"more than tensors, torch\.nn\.modules\.linear\.Linear; --trust-p"),
        (argparse.Namespace(state_dict=1), "more than tensors, argparse.Namespace"),
        ({"a": [1], "b": torch.ones(1)}, "entry 'a' is list"),
    ],
)
def test_what_is_in_the_way_is_named_with_its_place(
    content: Any, words: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(EncodeError, match=words) as caught:
        load_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_code_of_the_system_is_named_and_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"state_dict": tensors(), "x": Hostile()}, tmp_path / "x.pt")
    with pytest.raises(EncodeError, match=r"more than tensors .*mkdir"):
        load_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "made").exists()


def test_a_subclass_of_tensors_is_refused_in_one_line(tmp_path: Path) -> None:
    class Sub(Tensor):
        pass

    globals()["Sub"] = Sub
    Sub.__qualname__ = "Sub"
    torch.save({"w": torch.ones(2).as_subclass(Sub)}, tmp_path / "x.pt")
    with pytest.raises(EncodeError, match="more than tensors") as caught:
        load_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_other_protocols_of_pickle_are_refused_in_one_line(tmp_path: Path) -> None:
    torch.save({"state_dict": tensors(), "x": Options()}, tmp_path / "x.pt", pickle_protocol=4)
    with pytest.raises(EncodeError, match=r"more than tensors \(Unsupported operand") as caught:
        load_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)
    assert isinstance(load_checkpoint(tmp_path / "x.pt", trust_pickle=True), dict)


def test_a_module_within_a_checkpoint_that_is_trusted(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "model": nn.Linear(2, 2)}, tmp_path / "x.pt")
    assert isinstance(load_checkpoint(tmp_path / "x.pt", trust_pickle=True), nn.Linear)


def test_why_a_trusted_file_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"\x80\x02cnothing_like_that\nname\n.")
    with pytest.raises(EncodeError, match=r"x\.pt: cannot load this: \w+: ") as caught:
        load_checkpoint(tmp_path / "x.pt", trust_pickle=True)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------- kinds of files


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    state = tensors()
    for name in ("a", "a.pt", "a.safetensors", "a.bin", "a.npz"):
        torch.save(state, tmp_path / name)
        assert same(load_checkpoint(tmp_path / name), state)
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=False)
        assert same(load_checkpoint(tmp_path / name), state)
        safetensors.torch.save_file(state, tmp_path / name)
        loaded = load_checkpoint(tmp_path / name)
        assert same({key: loaded[key] for key in state}, state)
        with (tmp_path / name).open("wb") as stream:
            np.savez(stream, **{key: tensor.numpy() for key, tensor in state.items()})
        assert same(load_checkpoint(tmp_path / name), state)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": np.array(["x"])}, r"entry 'a': can't convert np\.ndarray of type"),
        ({"a": np.array([None])}, "entry 'a': Object arrays cannot be loaded"),
        ({"a": np.ones(2, ">f4")}, "entry 'a': given numpy array has byte order different"),
    ],
)
def test_arrays_that_are_no_tensors(arrays: Any, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(EncodeError, match=rf"x\.npz: {words}"):
        load_checkpoint(tmp_path / "x.npz")


@pytest.fixture(scope="module")
def other_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("others")
    layer = nn.Linear(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(layer), folder / "torchscript")
    torch.export.save(torch.export.export(layer, (torch.ones(1, 3),)), folder / "pt2.pt2")
    (folder / "pt2.pt2").rename(folder / "pt2")
    np.save(folder / "npy.npy", np.ones(3))
    (folder / "npy.npy").rename(folder / "npy")
    (folder / "onnx.onnx").write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(20))
    (folder / "hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(20))
    (folder / "gguf").write_bytes(b"GGUF" + bytes(20))
    (folder / "gzip").write_bytes(gzip.compress(b"checkpoint"))
    archive = io.BytesIO()
    np.savez(archive, a=np.ones(3))
    (folder / "zip").write_bytes(archive.getvalue().replace(b"PK\x01\x02", b"PK\x01\x03"))
    (folder / "cut").write_bytes(archive.getvalue()[:-9])
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    return folder


@pytest.mark.parametrize("kind", WHAT_TO_DO)
def test_other_files_say_what_they_are_and_what_to_do(kind: Any, other_files: Path) -> None:
    path = other_files / ("onnx.onnx" if kind == "onnx" else kind)
    assert kind_of(path) == kind
    for trust in (False, True):
        with pytest.raises(EncodeError) as caught:
            load_checkpoint(path, trust_pickle=trust)
        assert str(caught.value) == f"{path}: cannot load this: {WHAT_TO_DO[kind]}"


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("index", b'{"some":{}}'),  # with a brace where safetensors have one
        ("index", b'        {"weight_map":{}}'),
        ("pemn-index", b'{"some":{},"format":"pemn-index"}'),
        ("safetensors", (123).to_bytes(8, "little") + b'{"a":{}}'),  # whose length is a brace
    ],
)
def test_what_begins_with_a_brace(kind: Any, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    assert kind_of(tmp_path / "x") == kind
    with pytest.raises(pemncodec.DecodeError) as caught:
        pemncodec.open(tmp_path / "x")
    words = {"index": "not an index", "pemn-index": "version of an index"}
    assert words.get(kind, "not a .pemn file") in str(caught.value)
    assert "JSON" not in str(caught.value)


def test_archives_of_something_else(tmp_path: Path) -> None:
    for names in ([], ["a.txt"], ["a.npy", "b.txt"]):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name in names:
                archive.writestr(name, b"1")
        assert kind_of(tmp_path / "x.zip") == "unknown"
        with pytest.raises(EncodeError, match=r"neither a checkpoint of torch\.save nor"):
            load_checkpoint(tmp_path / "x.zip")


@pytest.mark.parametrize("command", [["inspect"], ["verify"], ["decode", "-o", "out.pt"]])
def test_what_is_no_pemn_file_says_what_it_is(command: list[str], run: Run, tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "m.pt")
    safetensors.torch.save_file(tensors(), tmp_path / "m.safetensors")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"x"))
    (tmp_path / "folder").mkdir()
    first, *rest = command
    for name in ("m.pt", "m.safetensors"):
        fails(run(first, name, *rest), 1, f"{name}: ", "not a .pemn file; it is a checkpoint, wh")
    fails(run(first, "x.gz", *rest), 1, "not a .pemn file; it is compressed with gzip")
    fails(run(first, "text", *rest), 1, "not a .pemn file\n")
    fails(run(first, "folder", *rest), 1, "folder: there is no .pemn file in this folder\n")
    (tmp_path / "m.pt").rename(tmp_path / "folder/m.pt")
    words = "no .pemn file in this folder; its checkpoint is for pemn encode\n"
    fails(run(first, "folder", *rest), 1, words)
    (tmp_path / "net.pemn.index.json").write_text("{}")
    fails(
        run(first, "net.pemn.index.json", *rest),
        1,
        "not an index of a sharded .pemn model; it is damaged: take it once more\n",
    )
    fails(run(first, "nothing", *rest), 1, "nothing")


@pytest.mark.parametrize("wrong", ["model.pt", Path("model.pt"), b"abc", io.BytesIO(b"abc")])
def test_encode_says_how_files_are_loaded(wrong: Any) -> None:
    with pytest.raises(EncodeArgumentError, match=r"not \w+: load it with torch\.load, safet"):
        pemncodec.encode(wrong, io.BytesIO())


# ----------------------------------------------------------------------------- pipes and devices

ENCODE = ["--keep", 0.5, "--no-manifest"]


@pytest.fixture
def pemn_bytes(tmp_path: Path) -> bytes:
    torch.save(tensors(), tmp_path / "m.pt")
    stream = io.BytesIO()
    pemncodec.encode(tensors(), stream, keep=0.5, manifest=False)
    return stream.getvalue()


def feed(path: Path, data: bytes) -> threading.Thread:
    """A named pipe that gives these bytes once, as <(…) of a shell does."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_bytes, args=(data,))
    thread.start()
    return thread


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_checkpoints_from_pipes(kind: str, run: Run, tmp_path: Path, pemn_bytes: bytes) -> None:
    data = (tmp_path / "m.pt").read_bytes()
    if kind == "safetensors":
        data = safetensors.torch.save(tensors())
    writer = feed(tmp_path / "pipe", data)
    result = run("encode", "pipe", *ENCODE, "-q", "-o", "out.pemn")
    writer.join()
    assert result.returncode == 0, result.stderr
    for source in ("-", "/dev/stdin", "/dev/fd/0"):
        result = run("encode", source, *ENCODE, "-q", "-o", "-", stdin=data)
        assert result.returncode == 0, result.stderr
        assert same(pemncodec.load_state_dict(result.stdout), pemncodec.load_state_dict(pemn_bytes))
    writer = feed(tmp_path / "pipe", data)
    result = run("encode", "pipe", *ENCODE, "-q")  # to standard output, as from there
    writer.join()
    assert result.stdout[1:4] == b"PMN"
    (tmp_path / "out.pemn").write_bytes(pemn_bytes)
    writer = feed(tmp_path / "pipe", data)
    result = run("verify", "out.pemn", "--against", "pipe", "--keep", 0.5)
    writer.join()
    assert result.returncode == 0, result.stderr


def test_messages_name_standard_input(run: Run, tmp_path: Path) -> None:
    fails(run("encode", "-", *ENCODE, "-o", "x.pemn", stdin=b"text"), 1, "pemn: -: cannot load")
    writer = feed(tmp_path / "pipe", b"text")
    fails(run("encode", "pipe", *ENCODE, "-o", "x.pemn"), 1, "pemn: pipe: cannot load this: nei")
    writer.join()


@pytest.mark.parametrize("command", [["inspect"], ["verify"], ["decode", "-o", "out.pt"]])
def test_pemn_files_from_pipes(
    command: list[str], run: Run, tmp_path: Path, pemn_bytes: bytes
) -> None:
    first, *rest = command
    writer = feed(tmp_path / "pipe", pemn_bytes)
    result = run(first, "pipe", *rest)
    writer.join()
    assert result.returncode == 0, result.stderr
    result = run(first, "/dev/stdin", *rest, *["-f"] * (first == "decode"), stdin=pemn_bytes)
    assert result.returncode == 0, result.stderr


def test_outputs_that_are_devices_and_pipes(run: Run, tmp_path: Path, pemn_bytes: bytes) -> None:
    result = run("encode", "m.pt", *ENCODE, "-q", "-o", os.devnull)
    assert (result.returncode, result.stdout) == (0, b"")
    assert Path(os.devnull).is_char_device()
    os.mkfifo(tmp_path / "out")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "out").read_bytes()))
    reader.start()
    result = run("encode", "m.pt", *ENCODE, "-q", "-o", "out")
    reader.join()
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out").is_fifo()
    ours, theirs = os.pipe()  # as >(…) of a shell: a name that leads to no path
    result = run("encode", "m.pt", *ENCODE, "-q", "-o", f"/dev/fd/{theirs}")
    assert result.returncode == 0, result.stderr
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        assert pipe.read() == read[0]
    for output in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        result = run("encode", "m.pt", *ENCODE, "-q", "-o", output)
        assert result.stdout == read[0]
    assert same(pemncodec.load_state_dict(read[0]), pemncodec.load_state_dict(pemn_bytes))
    (tmp_path / "x.pemn").write_bytes(pemn_bytes)
    result = run("decode", "x.pemn", "-q", "-o", "/dev/stdout")
    assert set(safetensors.torch.load(result.stdout)) == {"fc.weight"}


def test_bytes_are_files(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "m.pt")
    stream = io.BytesIO()
    pemncodec.encode(
        nn.Linear(3, 2), stream, masks={"weight": torch.eye(2, 3)}, example_inputs=torch.ones(1, 3)
    )
    data = stream.getvalue()
    expected = pemncodec.load_state_dict(io.BytesIO(data))
    for given in (data, bytearray(data), memoryview(data)):
        assert same(pemncodec.load_state_dict(given), expected)
        assert same(dict(pemncodec.decode(given).state_dict()), expected)
        with pemncodec.open(given) as file:
            file.verify()
    for wrong in (b"", b"x" * 20, memoryview(b"\x89PMX")):
        with pytest.raises(pemncodec.DecodeError):
            pemncodec.open(wrong)
    with pytest.raises(NotPemnError):
        pemncodec.open((tmp_path / "m.pt").read_bytes())
    for nothing in (5, None, [1]):
        with pytest.raises(TypeError, match="a path, a binary file object or bytes, not"):
            pemncodec.open(nothing)  # type: ignore[arg-type]


def test_checkpoints_that_are_cut_off_are_named(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.pt", tmp_path / "cut.pt"
    torch.save({f"{i}.weight": torch.rand(40, 40) for i in range(8)}, whole)
    data, said = whole.read_bytes(), set()
    for share in (0.02, 0.1, 0.3, 0.6, 0.9, 0.999):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(EncodeError, match=r"cut\.pt: cannot load this: \S") as caught:
            load_checkpoint(path)
        said.add(str(caught.value).partition("cannot load this: ")[2])
    assert said == {WHAT_TO_DO["cut"]}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoints_are_mapped(tmp_path: Path, suffix: str) -> None:
    """Their values are no memory of the process."""
    state = {"a": torch.ones(1 << 24), "b": torch.zeros(3)}
    path = tmp_path / f"x{suffix}"
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    del state
    before = anonymous_bytes()
    loaded = load_checkpoint(path)
    assert isinstance(loaded, dict)
    assert float(loaded["a"].sum()) == 1 << 24
    assert anonymous_bytes() - before < 1 << 24


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize("name", ["m.pt", "old.pt", "m.npz", "packed.npz", "m.safetensors"])
def test_damaged_checkpoints_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    arrays = {key: tensor.numpy() for key, tensor in tensors().items()}
    if name == "m.npz":
        np.savez(path, **arrays)
    elif name == "packed.npz":
        np.savez_compressed(path, **arrays)
    elif name == "m.safetensors":
        safetensors.torch.save_file(tensors(), path)
    else:
        torch.save(tensors(), path, _use_new_zipfile_serialization=name == "m.pt")
    data = path.read_bytes()
    draw = random.Random(0)
    refused: list[str] = []
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(draw.choice([1, 2, 5])):
            damaged[draw.randrange(len(data))] = draw.choice([0, 255, draw.randrange(256)])
        path.write_bytes(damaged[: draw.choice([len(data)] * 4 + [draw.randrange(len(data))])])
        for read in (load_checkpoint, load_masks):
            try:
                read(path)
            except EncodeError as error:
                refused.append(str(error))
    assert refused
    assert not [said for said in refused if "\n" in said or not said.startswith(f"{path}: ")]


def test_an_archive_without_a_directory(run: Run, tmp_path: Path) -> None:
    for name in ("m.npz", "m.pt"):
        path = tmp_path / name
        if name == "m.npz":
            np.savez(path, a=np.ones(3))
        else:
            torch.save(tensors(), path)
        path.write_bytes(path.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x03"))
        result = run("encode", name, "--no-manifest", "--keep", 0.5)
        fails(result, 1, f"{name}: cannot load this: an archive that is damaged or cut off: take")
        fails(run("inspect", name), 1, "not a .pemn file; it is an archive that is damaged or cut")


def test_checkpoints_that_are_cut_off(run: Run, tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "m.pt")
    safetensors.torch.save_file(tensors(), tmp_path / "m.safetensors")
    for name, kind in (
        ("m.pt", "a zip file, as torch.save writes, whose end is missing: it is cut off"),
        ("m.safetensors", "a safetensors file that is cut off"),
    ):
        data = (tmp_path / name).read_bytes()
        for left in (20, len(data) // 2, len(data) - 1):
            (tmp_path / name).write_bytes(data[:left])
            result = run("encode", name, "--no-manifest", "--keep", 0.5)
            fails(result, 1, f"{name}: cannot load this: {kind}, get it once more")
    (tmp_path / name).write_bytes(data + b"x")
    fails(run("encode", name, "--no-manifest", "--keep", 0.5), 1, "not a safetensors file (")
