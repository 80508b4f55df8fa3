"""Commands, URLs and ranks take a model in several files as they take one file."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, fails
from file_server import FileServer, serving
from sharded_models import contents_of, write_shards
from torch import nn
from torch.distributed.checkpoint import load

import pemncodec
from pemncodec.contents import StoredPrototype
from pemncodec.distributed import PemnReader
from pemncodec.errors import DecodeError
from pemncodec.format import opening
from pemncodec.format.opening import FIRST_BYTES_OF_SHARD
from pemncodec.format.remote_sections import FIRST_BYTES
from pemncodec.remote.web import WebRanges
from pemncodec.spool import Spool

INPUTS = torch.rand(3, 40)


def network() -> nn.Module:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 60), nn.Linear(60, 10))
    for number in (0, 2, 3):
        weight = net[number].weight
        with torch.no_grad():
            weight.masked_fill_(torch.rand(weight.shape) < 0.5, 0)
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network as whole.pemn, and in a folder of its own as shards."""
    folder = tmp_path_factory.mktemp("model")
    net = network()
    masks = {f"{number}.weight": net[number].weight != 0 for number in (0, 2, 3)}
    options = {"masks": masks, "example_inputs": INPUTS, "find_seed": "off"}
    pemncodec.encode(net, folder / "whole.pemn", metadata={"run": "7"}, **options)
    contents = contents_of((folder / "whole.pemn").read_bytes())
    assert any(isinstance(prototype, StoredPrototype) for prototype in contents.prototypes)
    places = {tensor.name: number % 3 for number, tensor in enumerate(contents.tensors)}
    (folder / "net").mkdir()
    write_shards(folder / "net", contents, places)
    torch.save(net.state_dict(), folder / "state.pt")
    return folder


@pytest.fixture(params=["net", "net/net.pemn.index.json"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def done(result: object) -> bytes:
    assert result.returncode == 0, result.stderr.decode()  # type: ignore[attr-defined]
    output: bytes = result.stdout  # type: ignore[attr-defined]
    return output


def test_commands_take_an_index_and_a_folder(
    folder: Path, run: Run, model: str, tmp_path: Path
) -> None:
    def pemn(*arguments: object) -> bytes:
        return done(run(*arguments, cwd=folder))

    whole = json.loads(pemn("inspect", "whole.pemn", "--json"))
    info = json.loads(pemn("inspect", model, "--json"))
    shards = {path.name: path.stat().st_size for path in sorted((folder / "net").glob("*.pemn"))}
    assert info["shards"] == shards
    assert whole["shards"] == {}
    assert info["metadata"] == {"run": "7"}
    assert [t["name"] for t in info["tensors"]] == [t["name"] for t in whole["tensors"]]
    table = pemn("inspect", model).decode()
    for name, size in shards.items():
        assert f"{name}  {size:,} bytes" in table
    assert b"(0): Linear(40, 60)" in pemn("inspect", model, "--architecture")
    assert b"valid" in pemn("verify", model)
    assert b"every one bit for bit" in pemn("verify", model, "--against", "state.pt")
    assert b"every one bit for bit" in pemn("verify", "whole.pemn", "--against", model)
    pemn("decode", model, "-o", tmp_path / "x.safetensors")
    pemn("decode", "whole.pemn", "-o", tmp_path / "y.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()
    lines = [line.split("  ") for line in pemn("digest", model, "whole.pemn").decode().splitlines()]
    assert [name for _, name in lines] == [model, "whole.pemn"]
    assert lines[0][0] == lines[1][0]


def test_encode_takes_an_index(folder: Path, run: Run, tmp_path: Path) -> None:
    done(run("encode", "net", "-o", tmp_path / "again.pemn", "--find-seed", "off", cwd=folder))
    again = pemncodec.digest(tmp_path / "again.pemn")
    assert again == pemncodec.digest(folder / "whole.pemn")


def test_report(folder: Path, run: Run, model: str) -> None:
    output = done(run("report", model, "--json", "--forms", "safetensors", cwd=folder))
    (costs,) = json.loads(output)["models"]
    assert costs["file_bytes"] == sum(p.stat().st_size for p in (folder / "net").iterdir())
    assert costs["info"]["file_bytes"] == costs["file_bytes"]


def test_export(folder: Path, run: Run, model: str, tmp_path: Path) -> None:
    done(run("decode", model, "-o", tmp_path / "net.pt2", "--packed", cwd=folder))
    program = torch.export.load(tmp_path / "net.pt2").module()
    expected = pemncodec.decode(folder / "whole.pemn")(INPUTS)
    assert torch.equal(program(INPUTS), expected)


def test_digest(folder: Path, run: Run) -> None:
    output = json.loads(done(run("digest", "whole.pemn", "--json", "--threads", 1, cwd=folder)))
    digest = pemncodec.digest(folder / "whole.pemn")
    assert output == {"files": [{"file": "whole.pemn", "digest": digest}]}
    data = (folder / "whole.pemn").read_bytes()
    assert done(run("digest", "-", cwd=folder, stdin=data)).decode() == f"{digest}  -\n"
    fails(run("digest", "-", cwd=folder, stdin=data[:-1]), 1, "-: ", "its header says")
    twice = run("digest", "whole.pemn", "net", "state.pt", "whole.pemn", cwd=folder)
    fails(twice, 1, "state.pt: ")  # and the others are not lost
    assert twice.stdout.decode() == "".join(
        f"{digest}  {name}\n" for name in ("whole.pemn", "net", "whole.pemn")
    )
    some = run("digest", "none.pemn", "whole.pemn", "state.pt", "--json", cwd=folder)
    assert some.returncode == 1
    assert json.loads(some.stdout) == {"files": [{"file": "whole.pemn", "digest": digest}]}
    told = some.stderr.decode().splitlines()
    assert [line.split(": ")[1] for line in told] == ["none.pemn", "state.pt"]
    nothing = run("digest", "none.pemn", "state.pt", "--json", cwd=folder)
    assert (nothing.returncode, nothing.stdout) == (1, b"")
    fails(run("digest", "whole.pemn", "--max-memory", "1K", cwd=folder), 1, "whole.pemn: ")


def test_what_is_wrong_is_one_line(folder: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(folder / "net", tmp_path / "net")
    one, two, _ = sorted((tmp_path / "net").glob("*.pemn"))
    index = "net/net.pemn.index.json"
    two.unlink()
    for command in (["inspect"], ["verify"], ["digest"], ["decode", "-o", "x.pt"]):
        words = f"{index}: 1 of 3 shards is missing: {two.name}; they must be in the folder"
        fails(run(command[0], index, *command[1:]), 1, words)
    fails(run("encode", index, "-o", "x.pemn"), 1, "1 of 3 shards", two.name)
    fails(run("report", index), 1, "1 of 3 shards", two.name)
    damaged = bytearray((folder / "net" / two.name).read_bytes())
    damaged[-1] ^= 1
    two.write_bytes(damaged)
    fails(run("verify", index), 1, f"{index}: {two.name}: section", "take the file once more")
    shutil.copy(one, two)
    fails(run("verify", index), 1, f"{index}: {two.name}: it has", "take it and the index from")
    fails(run("inspect", "net/net.pemn"), 1, "several files: open net.pemn.index.json")
    data = (tmp_path / index).read_bytes()
    fails(run("inspect", "-", stdin=data), 1, "-: ", "by its path or URL")
    fails(run("decode", one, "-o", "x.onnx"), 1, "one shard of a model: open net.pemn.index.json")
    shutil.copy(folder / "whole.pemn", tmp_path / "net")
    fails(
        run("inspect", "net"), 2, "net has several models: give one of net.pemn.index.json, whole"
    )
    for number in range(4):
        (tmp_path / f"net/x{number}.pemn").touch()
    fails(run("inspect", "net"), 2, ", whole.pemn, x0.pemn, x1.pemn, x2.pemn or 1 more\n")


@pytest.mark.parametrize(
    ("length", "end", "says"),
    [
        (100, b"", "the index is cut off or damaged; take it once more"),
        (0, b"{}", "not an index of a sharded .pemn model; it is damaged: take it once more"),
        (0, b"<html>", "not a .pemn file; it is damaged: take it once more"),
    ],
)
def test_a_damaged_index(
    folder: Path, run: Run, tmp_path: Path, length: int, end: bytes, says: str
) -> None:
    whole = (folder / "net" / "net.pemn.index.json").read_bytes()
    (tmp_path / "net.pemn.index.json").write_bytes(whole[:length] + end)
    for command in ("inspect", "verify"):
        fails(run(command, "net.pemn.index.json"), 1, "net.pemn.index.json: ", says)


@pytest.mark.parametrize("changed", [("2.weight",), ("0.weight", "2.bias", "3.weight")])
def test_it_is_said_how_many_tensors_differ(
    folder: Path, run: Run, tmp_path: Path, changed: tuple[str, ...]
) -> None:
    state = torch.load(folder / "state.pt")
    state |= {name: state[name] * 2 for name in changed}
    torch.save(state, tmp_path / "other.pt")
    options = ("--masks-from", "zeros", "--no-manifest", "--find-seed", "off")
    done(run("encode", "other.pt", "-o", "other.pemn", *options))
    says = f"3 of 6 tensors differ, first {changed[0]}" if len(changed) > 1 else "2.weight differs"
    for against in ("other.pt", "other.pemn"):
        fails(run("verify", folder / "whole.pemn", "--against", against), 1, f"whole.pemn: {says}")


def test_tables_in_a_pipe(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(columns: str) -> list[str]:
        monkeypatch.setenv("COLUMNS", columns)
        return done(run("inspect", "-v", "net", cwd=folder)).decode().splitlines()

    monkeypatch.delenv("COLUMNS", raising=False)
    whole = done(run("inspect", "-v", "net", cwd=folder)).decode().splitlines()
    assert max(map(len, whole)) > 80
    assert max(map(len, lines("60"))) <= 60
    for none in ("", "0", "wide"):
        assert lines(none) == whole


# ------------------------------------------------------------------------------- URLs


@pytest.fixture
def server(folder: Path) -> Iterator[FileServer]:
    with serving() as served:
        served.files |= {f"/{p.name}": p.read_bytes() for p in (folder / "net").iterdir()}
        yield served


def test_an_index_behind_a_url(folder: Path, server: FileServer, run: Run) -> None:
    url = server.url("/net.pemn.index.json")
    assert pemncodec.digest(url) == pemncodec.digest(folder / "whole.pemn")
    assert {asked.path for asked in server.asked} == set(server.files)
    assert server.sent == sum(map(len, server.files.values()))  # each byte once
    assert torch.equal(pemncodec.decode(url)(INPUTS), pemncodec.decode(folder / "net")(INPUTS))
    info = json.loads(done(run("inspect", url, "--json")))
    assert len(info["shards"]) == 3
    done(run("encode", url, "-o", "again.pemn", "--no-manifest", "--find-seed", "off"))


def test_only_what_is_needed_is_fetched(tmp_path: Path, server: FileServer) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {f"w{i}": torch.randn(300, 400, generator=generator) for i in range(3)}
    masks = {name: torch.rand(300, 400, generator=generator) < 0.5 for name in state}
    state = {name: tensor * masks[name] for name, tensor in state.items()}
    pemncodec.encode(
        state, tmp_path / "w.pemn", masks=masks, manifest=False, find_seed="off", preset="fast"
    )
    contents = contents_of((tmp_path / "w.pemn").read_bytes())
    path = write_shards(tmp_path, contents, {"w0": 0, "w1": 1, "w2": 2}, name="w.pemn")
    server.files |= {f"/{file.name}": file.read_bytes() for file in tmp_path.iterdir()}
    with pemncodec.open(server.url("/w.pemn.index.json?key=1")) as file:
        assert len(server.asked) == 4
        assert {asked.path.partition("?")[2] for asked in server.asked} == {"key=1"}
        assert server.sent == len(path.read_bytes()) + 3 * FIRST_BYTES_OF_SHARD
        before = len(server.asked)
        assert torch.equal(torch.tensor(file.tensor("w1")), state["w1"])
        asked = server.asked[before:]
        assert {request.path for request in asked} == {"/w-00002-of-00003.pemn?key=1"}
    write_shards(tmp_path, contents, {"w0": 0, "w1": 0, "w2": 1}, name="w.pemn")
    server.files |= {f"/{file.name}": file.read_bytes() for file in tmp_path.iterdir()}
    with pemncodec.open(server.url("/w.pemn.index.json")) as file:
        before = len(server.asked)
        file.verify()
        asked = server.asked[before:]  # what follows each other is one request
    assert [request.path for request in asked] == [
        "/w-00001-of-00002.pemn",
        "/w-00002-of-00002.pemn",
    ]
    with pemncodec.open(server.url("/w.pemn.index.json")) as file:
        before = len(server.asked)
        assert file.data()
        assert [request.path for request in server.asked[before:]] == [
            request.path for request in asked
        ]


def test_shards_that_are_not_behind_the_url(server: FileServer) -> None:
    url = server.url("/net.pemn.index.json")
    two = "/net-00002-of-00003.pemn"
    data = server.files.pop(two)
    with pytest.raises(DecodeError, match="1 of 3 shards is missing: net-00002-of-00003"):
        pemncodec.open(url)
    server.files[two] = data[:-1]
    with pytest.raises(DecodeError, match=r"net-00002-of-00003\.pemn: it has") as caught:
        pemncodec.open(url)
    assert caught.value.code == "shard"
    with pytest.raises(OSError, match=r"several files: open net\.pemn\.index\.json"):
        pemncodec.open(server.url("/net.pemn"))
    with pytest.raises(FileNotFoundError, match=r"other\.pemn") as missing:
        pemncodec.open(server.url("/other.pemn"))
    assert "several files" not in str(missing.value)
    with pytest.raises(DecodeError, match=r"one shard of a model: open net\.pemn\.index\.json"):
        pemncodec.decode(server.url("/net-00001-of-00003.pemn"))


def test_what_was_opened_is_closed(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    closed: list[object] = []
    for kind in (Spool, WebRanges):
        make, close = kind.__init__, kind.close

        def made(self: Any, *given: Any, make: Any = make) -> None:
            opened.append(self)
            make(self, *given)

        def shut(self: Any, close: Any = close) -> None:
            closed.append(self)
            close(self)

        monkeypatch.setattr(kind, "__init__", made)
        monkeypatch.setattr(kind, "close", shut)
    url = server.url("/net.pemn.index.json")
    pemncodec.open(url).close()
    server.files["/net-00003-of-00003.pemn"] += b"x"
    with pytest.raises(DecodeError, match="it has"):
        pemncodec.open(url)
    assert sum(isinstance(one, Spool) for one in opened) == 2
    assert len(opened) == 10
    assert {id(one) for one in opened} == {id(one) for one in closed}


@pytest.mark.parametrize("archived", [True, False])
def test_archives_and_caches(
    folder: Path, tmp_path: Path, archived: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "FIRST_BYTES_OF_SHARD", 512)  # so that more is read later
    index = "net.pemn.index.json"
    if archived:
        with zipfile.ZipFile(tmp_path / "net.zip", "w") as archive:
            for path in (folder / "net").iterdir():
                archive.write(path, f"in/{path.name}")
            archive.write(folder / "whole.pemn", "in/whole.pemn")
        url = f"zip://in/{index}::{(tmp_path / 'net.zip').as_uri()}"
        assert pemncodec.digest(url.replace(index, "whole.pemn")) == pemncodec.digest(url)
    else:
        url = f"simplecache::{(folder / 'net' / index).as_uri()}"
    assert pemncodec.digest(url) == pemncodec.digest(folder / "net")


def test_a_long_index(server: FileServer, folder: Path) -> None:
    value = json.loads((folder / "net" / "net.pemn.index.json").read_bytes())
    value["?note"] = "x" * 2 * FIRST_BYTES
    server.files["/net.pemn.index.json"] = json.dumps(value).encode()
    with pemncodec.open(server.url("/net.pemn.index.json")) as file:
        assert len(file.keys()) == 6


def test_a_prototype_beside_a_remote_file(tmp_path: Path, server: FileServer, folder: Path) -> None:
    contents = contents_of((folder / "whole.pemn").read_bytes())
    places = {tensor.name: number % 2 for number, tensor in enumerate(contents.tensors)}
    write_shards(tmp_path, contents, places, name="s.pemn", share=True)
    server.files |= {f"/{file.name}": file.read_bytes() for file in tmp_path.iterdir()}
    url = server.url("/s-00002-of-00002.pemn")
    there = pemncodec.load_state_dict(url)
    here = pemncodec.load_state_dict(tmp_path / "s-00002-of-00002.pemn")
    assert all(torch.equal(tensor, here[name]) for name, tensor in there.items())
    del server.files["/s-00001-of-00002.pemn"]
    with pytest.raises(DecodeError, match=r"s-00001-of-00002\.pemn is missing: it must be beside"):
        pemncodec.load_state_dict(url)


# ------------------------------------------------------------------------------- ranks


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    "make", [PemnReader, lambda path: PemnReader(path.parent)], ids=["index", "folder"]
)
def test_a_checkpoint_of_torch_distributed(
    folder: Path, make: Callable[[Path], PemnReader]
) -> None:
    index = folder / "net" / "net.pemn.index.json"
    state = {name: torch.zeros_like(t) for name, t in network().state_dict().items()}
    load(state, storage_reader=make(index), no_dist=True)
    expected = pemncodec.load_state_dict(folder / "whole.pemn")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert PemnReader.validate_checkpoint_id(index)
    assert not PemnReader.validate_checkpoint_id(folder)


def test_indexes_that_others_wrote_are_checkpoints(folder: Path, run: Run, tmp_path: Path) -> None:
    model = tmp_path / "net"
    shutil.copytree(folder / "net", model)
    index = model / "net.pemn.index.json"
    said = json.loads(index.read_text())
    texts = [
        json.dumps(said, indent=1),
        "\n" + json.dumps(dict(reversed(list(said.items())))),
    ]
    for number, text in enumerate(texts):
        for name in ("net.pemn.index.json", "other.json"):  # as what came from a URL is named
            index.unlink(missing_ok=True)
            index = model / name
            index.write_text(text)
            result = run("encode", index, "--no-manifest", "-o", f"{number}{name}.pemn")
            assert result.returncode == 0, result.stderr
            against = run("verify", folder / "whole.pemn", "--against", index)
            assert b"every one bit for bit" in against.stdout
    (model / "net.pemn.index.json").write_text(texts[0].replace("pemn-index", "index"))
    (model / "other.json").unlink()
    fails(run("encode", model, "--no-manifest", "-o", "x.pemn"), 1, "not an index of a sharded")
