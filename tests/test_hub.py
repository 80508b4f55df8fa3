"""Networks in folders and caches as `huggingface_hub` lays them out; no network is needed."""

from __future__ import annotations

import copy
import importlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import pruned_net
from file_server import FileServer, Handler, serving
from sharded_models import contents_of, write_shards
from torch import nn

import pemncodec

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

from pemncodec.hub import from_pretrained, push_to_hub, save_pretrained  # noqa: E402 where it is


@pytest.fixture(scope="module")
def network() -> bytes:
    stream = io.BytesIO()
    images = torch.randn(2, 3, 8, 8)
    pemncodec.encode(pruned_net(), stream, example_inputs=images, metadata={"top1": "61\n| x"})
    return stream.getvalue()


def test_a_folder_and_back(network: bytes, tmp_path: Path) -> None:
    module = pemncodec.decode(network)
    info = save_pretrained(module, tmp_path / "of" / "mine")
    written = tmp_path / "of" / "mine" / "model.pemn"
    assert written.read_bytes() == network
    assert info.file_bytes == len(network)
    again = from_pretrained(tmp_path / "of" / "mine")
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(images), module(images))
    own = copy.deepcopy(module)
    assert from_pretrained(str(tmp_path / "of" / "mine"), into=own) is own
    with pytest.raises(FileNotFoundError, match=r"other\.pemn"):
        from_pretrained(tmp_path / "of" / "mine", filename="other.pemn")


def test_an_open_file_is_written_as_it_is(network: bytes, tmp_path: Path) -> None:
    file = pemncodec.open(network)
    save_pretrained(file, tmp_path)
    assert (tmp_path / "model.pemn").read_bytes() == network
    info = save_pretrained(file, tmp_path, manifest=False)
    assert info.manifest_bytes == 0
    assert (tmp_path / "model.pemn").stat().st_size == info.file_bytes


def test_the_card_has_the_sizes(network: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "small-net"
    info = save_pretrained(pemncodec.open(network), folder, card_data={"license": "mit"})
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.library_name == "pemncodec"
    assert card.data.tags == ["pemncodec", "masked-network"]
    assert card.data.license == "mit"
    assert card.text.startswith("\n# small-net\n")
    rows = [line.split("|")[1:3] for line in card.text.splitlines() if line.startswith("|")]
    sizes = {name.strip(" *"): size.strip(" *") for name, size in rows}
    assert sizes["model.pemn"] == f"{info.file_bytes:,}"
    assert sizes["the same tensors, plain"] == f"{info.dense_model_bytes:,}"
    assert sizes["masks"] == f"{info.mask_bytes:,}"
    assert 'from_pretrained("user/small-net")' in card.text
    assert "\n* top1: 61 | x\n" in card.text
    (folder / "README.md").write_text("mine")
    save_pretrained(pemncodec.open(network), folder)
    assert (folder / "README.md").read_text() == "mine"


def test_the_card_says_what_is_lost(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 8, 8)
    net = pruned_net()
    info = save_pretrained(net, tmp_path / "q8", example_inputs=images, dense="q8", fold_bn=True)
    assert info.largest_error > 0
    card = (tmp_path / "q8" / "README.md").read_text()
    assert "Lossy: trained tensors are shortened" in card
    assert f"by up to {100 * info.largest_error:.2g} % of its largest" in card
    assert "For inference only: batch norms are folded" in card
    save_pretrained(net, tmp_path / "exact", example_inputs=images)
    card = (tmp_path / "exact" / "README.md").read_text()
    assert "Lossy" not in card
    assert "inference only" not in card


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"dens": "q8"}, TypeError, "dens"),
        ({"dense": "q9"}, pemncodec.EncodeError, "q9"),
        ({"card_data": "mit"}, pemncodec.EncodeError, "card_data must be fields by name"),
        ({"card_data": {1: "mit"}}, pemncodec.EncodeError, "card_data must be fields by name"),
        ({"masks": {"none": torch.ones(2)}}, pemncodec.EncodeError, "none"),
    ],
)
def test_nothing_is_left_of_what_failed(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        save_pretrained(pruned_net(), tmp_path / "a" / "net", **options)
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder_to_save_into(network: bytes, tmp_path: Path) -> None:
    (tmp_path / "net").write_text("mine")
    with pytest.raises(NotADirectoryError, match="a file, not a folder"):
        save_pretrained(pemncodec.open(network), tmp_path / "net")
    assert (tmp_path / "net").read_text() == "mine"


def test_files_and_urls_are_not_asked_of_the_hub(
    network: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    monkeypatch.setattr("pemncodec.hub.hf_hub_download", lambda *_a, **_o: pytest.fail("asked"))
    (tmp_path / "net.pemn").write_bytes(network)
    store = fsspec.filesystem("memory")
    store.pipe("/hub-test/model.pemn", network)
    images = torch.randn(2, 3, 8, 8)
    expected = pemncodec.decode(network)(images)
    names = (tmp_path / "net.pemn", "memory://hub-test", "memory://hub-test/model.pemn")
    for name in names:
        assert torch.equal(from_pretrained(name)(images), expected)
    store.rm("/hub-test", recursive=True)
    with pytest.raises(FileNotFoundError, match=r"(?i)no such file"):
        from_pretrained("memory://hub-test")


@pytest.mark.parametrize("name", ["./nett", "/tmp/no/nett", "of/my/nett", "nett/"])
def test_names_that_no_repository_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder, and no repository"):
        from_pretrained(name, cache_dir=tmp_path, local_files_only=True)


def test_what_could_be_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        from_pretrained("my-nett", cache_dir=tmp_path, local_files_only=True)
    assert caught.value.__notes__ == ["The Hub was asked, since there is no folder 'my-nett' here."]


def test_the_cache_is_used_without_a_network(network: bytes, tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--net"
    for commit, name, content in (("1" * 40, "main", network), ("2" * 40, "old", b"")):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "model.pemn").write_bytes(content)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    module = from_pretrained("someone/net", cache_dir=tmp_path, local_files_only=True)
    assert isinstance(module, nn.Module)
    with pytest.raises(pemncodec.NotPemnError):
        from_pretrained("someone/net", cache_dir=tmp_path, local_files_only=True, revision="old")
    with pytest.raises(FileNotFoundError):
        from_pretrained("someone/other", cache_dir=tmp_path, local_files_only=True)


def test_shards_in_a_folder_and_in_the_cache(
    network: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pemncodec.open(network) as file:
        names = file.keys()
    folder = tmp_path / "net"
    folder.mkdir()
    contents = contents_of(network)
    index = write_shards(
        folder, contents, {n: i % 3 for i, n in enumerate(names)}, name="model.pemn"
    )
    images = torch.randn(2, 3, 8, 8)
    expected = pemncodec.decode(network)(images)
    assert torch.equal(from_pretrained(folder)(images), expected)
    assert torch.equal(from_pretrained(folder.as_uri())(images), expected)
    assert torch.equal(from_pretrained(index.as_uri())(images), expected)
    with pytest.raises(FileNotFoundError, match=r"other\.pemn"):
        from_pretrained(folder, filename="other.pemn")

    asked = []

    def download(_: str, *, filename: str, **__: Any) -> str:
        asked.append(filename)
        if not (folder / Path(filename).name).exists():
            raise huggingface_hub.errors.EntryNotFoundError(f"no {filename}")
        return str(folder / Path(filename).name)

    monkeypatch.setattr("pemncodec.hub.hf_hub_download", download)
    assert torch.equal(from_pretrained("user/net", filename="sub/model.pemn")(images), expected)
    shards = [f"sub/model-0000{number}-of-00003.pemn" for number in (1, 2, 3)]
    assert asked == ["sub/model.pemn", "sub/model.pemn.index.json", *shards]
    with pytest.raises(huggingface_hub.errors.EntryNotFoundError, match=r"no other\.pemn"):
        from_pretrained("user/net", filename="other.pemn")


COMMIT = "0123456789" * 4


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server in place of the Hub, as far as files are downloaded."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50)  # less of which is not kept

    def do_head(handler: Handler) -> None:
        path = handler.path.replace(f"/{COMMIT}/", "/main/")
        data = handler.served.files.get(path)
        said = {"X-Repo-Commit": COMMIT, "ETag": f'"{path.rpartition("/")[2]}"'}
        if data is None:
            handler.reply(404, said | {"X-Error-Code": "EntryNotFound"})
        else:
            handler.reply(200, said | {"Content-Length": str(len(data))})

    monkeypatch.setattr(Handler, "do_HEAD", do_head, raising=False)
    with serving() as served:
        template = served.url("/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "ENDPOINT", served.url(""))
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served


def test_downloads_that_break_off_are_continued(
    hub: FileServer, network: bytes, tmp_path: Path
) -> None:
    """Within a file for as long as a call lasts, and by shards after it."""
    contents = contents_of(network)
    names = [tensor.name for tensor in contents.tensors]
    (tmp_path / "net").mkdir()
    write_shards(
        tmp_path / "net", contents, {n: i % 3 for i, n in enumerate(names)}, name="model.pemn"
    )
    for path in (tmp_path / "net").iterdir():
        for revision in ("main", COMMIT):
            hub.files[f"/user/net/resolve/{revision}/{path.name}"] = path.read_bytes()
    working = 0
    sent: list[int] = []

    def breaks(handler: Handler, data: bytes, start: int, stop: int) -> None:
        part = data[start : start + 100 if len(hub.asked) <= working else start]
        sent.append(len(part))
        said = {"Content-Length": str(stop - start)}
        if start:
            said["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        handler.reply(206 if start else 200, said, part)

    hub.answer = breaks
    shards = [path for path in hub.files if f"/{COMMIT}/" in path and path.endswith(".pemn")]
    index = len(hub.files["/user/net/resolve/main/model.pemn.index.json"])
    first = len(hub.files[min(shards)])
    working = -(-index // 100) - (-first // 100) + 1  # and a part of the second shard
    load = partial(from_pretrained, "user/net", cache_dir=tmp_path / "cache", token=False)
    with pytest.raises(OSError, match=r"broke .* files that came whole are in") as raised:
        load()
    assert raised.value.filename == "user/net/model-00002-of-00003.pemn"
    assert sum(sent) == index + first + 100
    hub.asked.clear()
    working = 1000
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(load()(images), pemncodec.decode(network)(images))
    asked = {request.path.rpartition("/")[2] for request in hub.asked}
    assert asked == {"model-00002-of-00003.pemn", "model-00003-of-00003.pemn"}
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


@pytest.mark.parametrize(
    ("error", "broke"),
    [
        (RuntimeError("Data processing error: CAS service error"), True),
        (RecursionError("maximum recursion depth exceeded"), False),
        (AttributeError("no attribute"), False),
        (KeyError("etag"), False),
        (PermissionError("cache"), False),
    ],
)
def test_what_is_a_broken_connection(
    monkeypatch: pytest.MonkeyPatch, error: Exception, broke: bool
) -> None:
    def fails(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr("pemncodec.hub.hf_hub_download", fails)
    with pytest.raises(ConnectionAbortedError if broke else type(error)) as raised:
        from_pretrained("user/net")
    assert (raised.value is error) is not broke


def test_all_shards_are_of_the_commit_of_their_index(
    hub: FileServer, network: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though others are pushed as soon as the index is there."""
    contents = contents_of(network)
    count = len(contents.tensors)
    for revision, cut in ((COMMIT, 1), ("f" * 40, count - 1)):
        folder = tmp_path / revision
        folder.mkdir()
        write_shards(
            folder,
            contents,
            {tensor.name: int(i >= cut) for i, tensor in enumerate(contents.tensors)},
            name="model.pemn",
        )
        for path in folder.iterdir():
            hub.files[f"/user/net/resolve/{revision}/sub/{path.name}"] = path.read_bytes()
            is_first = path.name.endswith(".json") == (revision == COMMIT)
            if is_first:  # of the branch, at its time
                hub.files[f"/user/net/resolve/main/sub/{path.name}"] = path.read_bytes()

    def do_head(handler: Handler) -> None:
        data = handler.served.files.get(handler.path)
        if data is None:
            handler.reply(404, {"X-Repo-Commit": COMMIT, "X-Error-Code": "EntryNotFound"})
            return
        revision = handler.path.split("/")[4]
        if revision == "main":
            revision = COMMIT if handler.path.endswith(".json") else "f" * 40
        said = {"X-Repo-Commit": revision, "ETag": f'"{sha256(data).hexdigest()}"'}
        handler.reply(200, said | {"Content-Length": str(len(data))})

    monkeypatch.setattr(Handler, "do_HEAD", do_head)
    loaded = from_pretrained(
        "user/net", filename="sub/model.pemn", cache_dir=tmp_path / "cache", token=False
    )
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(images), pemncodec.decode(network)(images))


def test_networks_are_saved_in_shards(network: bytes, tmp_path: Path) -> None:
    module = pemncodec.decode(network)
    info = save_pretrained(module, tmp_path / "a" / "net", shard_size=4000)
    names = {f"model-{number:05}-of-00003.pemn" for number in (1, 2, 3)}
    assert info.shards.keys() == names
    written = {path.name for path in (tmp_path / "a" / "net").iterdir()}
    assert written == {*names, "model.pemn.index.json", "README.md"}
    assert "| **model.pemn, in 3 shards** |" in (tmp_path / "a" / "net" / "README.md").read_text()
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(from_pretrained(tmp_path / "a" / "net")(images), module(images))
    save_pretrained(module, tmp_path / "a" / "net")
    written = {path.name for path in (tmp_path / "a" / "net").iterdir()}
    assert written == {"model.pemn", "README.md"}


@pytest.mark.parametrize("has_card", [False, True])
def test_what_is_pushed(network: bytes, monkeypatch: pytest.MonkeyPatch, has_card: bool) -> None:
    sent: dict[str, Any] = {}

    def record(name: str, result: Any) -> Callable[..., Any]:
        def call(_api: Any, *arguments: Any, **options: Any) -> Any:
            sent[name] = arguments, options
            if name == "upload_folder":
                folder = Path(options["folder_path"])
                sent["files"] = {path.name: path.read_bytes() for path in folder.iterdir()}
            return result

        return call

    api = huggingface_hub.HfApi
    repository = SimpleNamespace(repo_id="someone/net")
    monkeypatch.setattr(api, "create_repo", record("create_repo", repository))
    monkeypatch.setattr(api, "file_exists", record("file_exists", has_card))
    monkeypatch.setattr(api, "upload_folder", record("upload_folder", "https://hub/commit/1"))
    url = push_to_hub(pemncodec.open(network), "net", private=True, branch="new")
    assert url == "https://hub/commit/1"
    assert sent["create_repo"] == (("net",), {"private": True, "exist_ok": True})
    assert sent["files"]["model.pemn"] == network
    assert b"# net\n" in sent["files"]["README.md"]
    options = sent["upload_folder"][1]
    assert (options["repo_id"], options["revision"]) == ("someone/net", "new")
    assert options["ignore_patterns"] == ("README.md" if has_card else None)
    assert "model-*-of-*.pemn" in options["delete_patterns"]
    sent.clear()
    with pytest.raises(pemncodec.EncodeError):
        push_to_hub(nn.Linear(2, 2), "net")
    assert not sent


def test_a_url_is_no_folder(network: bytes) -> None:
    with pytest.raises(pemncodec.EncodeError, match="push_to_hub"):
        save_pretrained(pemncodec.open(network), "hf://someone/net")


def test_the_client_is_named_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "pemncodec.hub")
    with pytest.raises(ImportError, match=r"needs huggingface_hub: pip install huggingface_hub$"):
        importlib.import_module("pemncodec.hub")


def test_what_the_client_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub").mkdir()
    (tmp_path / "huggingface_hub" / "__init__.py").write_text("import not_installed_here")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "pemncodec.hub")
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        importlib.import_module("pemncodec.hub")
