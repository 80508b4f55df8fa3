"""Files behind URLs: what is fetched of them, what servers may do, what is written."""

from __future__ import annotations

import base64
import copy
import errno
import io
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from conftest import Run, fails, pruned_net
from file_server import Asked, FileServer, Handler, serving
from sharded_models import contents_of, write_shards
from torch import Tensor, nn

import pemncodec
from pemncodec import spool
from pemncodec.format import places, remote_sections
from pemncodec.format.container import encode_container
from pemncodec.remote import web
from pemncodec.remote.stores import stored_bytes
from pemncodec.remote.urls import is_url, last_part, shown
from pemncodec.spool import Spool

LOGIN, QUERY = "someone:pass%2Fword@", "?signature=geheim"
SECRETS = ("someone", "pass", "geheim")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(web, "_PAUSE", 0.0)
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def large() -> tuple[bytes, dict[str, Tensor]]:
    """A file whose sections are larger than what opening fetches, and its tensors."""
    generator = torch.Generator().manual_seed(1)
    state, masks = {}, {}
    for name in ("first", "second", "third"):
        values = torch.tensor(pemncodec.generator.generate("normal", 3, 0, 1000))
        masks[name] = torch.rand(700, 1000, generator=generator) < 0.5
        state[name] = values.expand(700, 1000) * masks[name]
    state["bias"] = torch.randn(30_000, generator=generator)
    stream = io.BytesIO()
    prototype = pemncodec.SeededPrototype("normal", seed=3, length=1000)
    pemncodec.encode(
        state, stream, masks=masks, manifest=False, prototypes=[prototype], preset="fast"
    )
    return stream.getvalue(), state


@pytest.fixture(scope="module")
def network() -> bytes:
    stream = io.BytesIO()
    pemncodec.encode(pruned_net(), stream, example_inputs=torch.randn(2, 3, 8, 8))
    return stream.getvalue()


def with_long_front(size: int) -> bytes:
    text = torch.randint(32, 127, (size,), generator=torch.Generator().manual_seed(2))
    stream = io.BytesIO()
    weight = torch.tensor([1.0, 0.0])
    pemncodec.encode(
        {"weight": weight},
        stream,
        masks={"weight": weight > 0},
        manifest=False,
        metadata={"log": bytes(text.tolist()).decode()},
    )
    return stream.getvalue()


# ------------------------------------------------------------------------------------- what is read


def test_inspecting_fetches_the_front_alone(
    server: FileServer, large: tuple[bytes, dict[str, Tensor]], run: Run
) -> None:
    server.files["/net.pemn"] = large[0]
    shown = run("inspect", server.url("/net.pemn"), "--json")
    assert shown.returncode == 0, shown.stderr
    assert [(asked.start, asked.stop) for asked in server.asked] == [(0, 1 << 16)]
    here = json.loads(run("inspect", "-", "--json", stdin=large[0]).stdout)
    there = json.loads(shown.stdout)
    told = {"density", "coder", "order0_bytes"}
    assert all(tensor.pop(key) is None for tensor in there["tensors"] for key in told)
    assert there.pop("order0_bytes") is None
    assert {key: here[key] for key in there if key != "tensors"} == {
        key: there[key] for key in there if key != "tensors"
    }
    assert there["tensors"] == [
        {key: value for key, value in tensor.items() if key not in told}
        for tensor in here["tensors"]
    ]
    decoded = run("inspect", server.url("/net.pemn"), "--json", "--decode")
    assert json.loads(decoded.stdout) == here
    front = run("inspect", "-", "--json", "--front", stdin=large[0])
    assert front.stdout == shown.stdout


def test_a_front_that_is_larger_takes_one_request_more(server: FileServer) -> None:
    server.files["/net.pemn"] = data = with_long_front(300_000)
    with pemncodec.open(server.url("/net.pemn")) as file:
        front = file.info(decode=False).header_bytes
        assert 1 << 16 < front < len(data)
        # All that the front is not known to have is in the table behind the header.
        assert [(asked.start, asked.stop) for asked in server.asked] == [
            (0, 1 << 16),
            (1 << 16, front),
        ]
        assert file.tensor("weight").tolist() == [1.0, 0.0]
        assert file.data() == data


def test_one_tensor_costs_its_sections(
    server: FileServer, large: tuple[bytes, dict[str, Tensor]]
) -> None:
    data, state = large
    server.files["/net.pemn"] = data
    with pemncodec.open(server.url("/net.pemn")) as file:
        size = {tensor.name: tensor.bytes for tensor in file.info(decode=False).tensors}
        assert torch.equal(torch.from_numpy(file.tensor("second")), state["second"])
        assert server.sent == (1 << 16) + size["second"]
        assert len(server.asked) == 2
        file.tensor("second")
        file.mask("second")
        assert len(server.asked) == 2  # kept
        file.tensor("bias")
    assert size["bias"] > 1 << 16
    assert server.sent <= (1 << 16) + size["second"] + size["bias"]


def test_all_of_a_file_is_fetched_once(
    server: FileServer, large: tuple[bytes, dict[str, Tensor]]
) -> None:
    data, state = large
    server.files["/net.pemn"] = data
    loaded = pemncodec.load_state_dict(server.url("/net.pemn"))
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert server.sent == len(data)
    assert len(server.asked) <= 3  # the front, masks, what lies before them


@pytest.mark.parametrize("request_bytes", [100_000, 30_000_000])
def test_what_is_fetched_is_kept_in_a_file_where_it_is_much(
    server: FileServer,
    large: tuple[bytes, dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    request_bytes: int,
) -> None:
    monkeypatch.setattr(spool, "_IN_MEMORY", 50_000)
    monkeypatch.setattr(remote_sections, "_REQUEST", request_bytes)
    server.files["/net.pemn"] = large[0]
    with pemncodec.open(server.url("/net.pemn")) as file:
        file.verify()
        file.verify()
        assert file.data() == large[0]
    assert server.sent == len(large[0])


def test_a_decoded_network_has_its_file(server: FileServer, network: bytes) -> None:
    server.files["/net.pemn"] = network
    module = pemncodec.decode(server.url("/net.pemn"))
    assert len(server.asked) == 1
    again = io.BytesIO()
    pemncodec.encode(module, again)
    assert again.getvalue() == network
    filled = pemncodec.decode(server.url("/net.pemn"), into=copy.deepcopy(module))
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(filled(images), module(images))


def test_a_login_goes_to_its_server_alone(server: FileServer, network: bytes) -> None:
    server.files["/net.pemn"] = server.files["/moved"] = network

    def redirect(handler: Handler, data: bytes, start: int, stop: int) -> None:
        if handler.path == "/moved":
            handler.part(data, start, stop)
        else:
            handler.reply(302, {"Location": server.url("/moved")})

    server.answer = redirect
    pemncodec.load_state_dict(server.url("/net.pemn" + QUERY, LOGIN))
    expected = "Basic " + base64.b64encode(b"someone:pass/word").decode()
    assert [(asked.path, asked.authorization) for asked in server.asked] == [
        ("/net.pemn" + QUERY, expected),
        ("/moved", None),
    ]


# ------------------------------------------------------------------------ what servers may do wrong


def _ignores(handler: Handler, data: bytes, _start: int, _stop: int) -> None:
    handler.reply(200, {}, data)


def _endless(handler: Handler, _data: bytes, _start: int, _stop: int) -> None:
    handler.reply(200, {"Content-Length": str(1 << 50)}, bytes(1000))


def _says_nothing(handler: Handler, data: bytes, start: int, stop: int) -> None:
    handler.reply(206, {}, data[start:stop])


def _other(handler: Handler, data: bytes, start: int, stop: int) -> None:
    handler.part(data, start + 1, stop)


def _less(handler: Handler, data: bytes, start: int, stop: int) -> None:
    handler.part(data, start, stop - 1)


def _more(handler: Handler, data: bytes, start: int, stop: int) -> None:
    said = f"bytes {start}-{stop - 1}/{len(data)}"
    handler.part(data, start, stop + 1, Content_Range=said)


def _zipped(handler: Handler, data: bytes, start: int, stop: int) -> None:
    handler.part(data, start, stop, Content_Encoding="gzip")


def _breaks(handler: Handler, data: bytes, start: int, stop: int) -> None:
    body = data[start : (start + stop) // 2] if start == 0 else b""
    handler.reply(
        206,
        {
            "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}",
            "Content-Length": str(stop - start),
        },
        body,
    )


def _hangs_up(handler: Handler, *_: object) -> None:
    handler.close_connection = True


def _status(status: int) -> Callable[[Handler, bytes, int, int], None]:
    return lambda handler, *_: handler.reply(status, {}, b"<html>no</html>")


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (_ignores, OSError, ("cannot send parts of a file", "download it, with its index and all")),
        (_endless, OSError, ("cannot send parts of a file", "download it")),
        (_says_nothing, OSError, ("does not say which part", "download it")),
        (_other, OSError, ("other bytes than 0 to 65535", "download it")),
        (_less, OSError, ("other bytes than 0 to 65535", "download it")),
        (_more, OSError, ("other bytes than 0 to 65535", "download it")),
        (_zipped, OSError, ("compresses what it was asked to send as it is",)),
        (_breaks, ConnectionAbortedError, ("connection broke 5 times", "try again later, or down")),
        (_hangs_up, ConnectionAbortedError, ("connection broke 5 times", "a program that cont")),
        (_status(404), FileNotFoundError, ("No such file", "check the URL")),
        (_status(401), PermissionError, ("refuses access (401 Unauthorized)", "login")),
        (_status(403), PermissionError, ("refuses access (403 Forbidden)", "expired")),
        (_status(429), OSError, ("429 Too Many Requests", "try again later")),
        (_status(503), OSError, ("503 Service Unavailable", "try again later")),
        (_status(418), OSError, ("says 418", "check the URL")),
        (_status(416), OSError, ("says 416", "check the URL")),
        (_status(204), OSError, ("cannot send parts of a file",)),
    ],
)  # fmt: skip
def test_servers_that_misbehave(
    server: FileServer,
    large: tuple[bytes, dict[str, Tensor]],
    run: Run,
    answer: Callable[[Handler, bytes, int, int], None],
    error: type[OSError],
    words: tuple[str, ...],
) -> None:
    server.files["/net.pemn"] = large[0]
    server.answer = answer
    url = server.url("/net.pemn" + QUERY, LOGIN)
    with pytest.raises(error) as raised:
        pemncodec.open(url)
    said = run("inspect", url)
    fails(said, 1, *words, server.url("/net.pemn?…"))
    passing = error is ConnectionAbortedError or "try again later" in words
    attempts = 5 if passing else 1
    assert len(server.asked) == 2 * attempts
    for secret in SECRETS:
        assert secret not in f"{raised.value!r} {raised.value}"
        assert secret not in said.stderr.decode()
    for word in words:
        assert word in str(raised.value)


def test_a_connection_that_breaks_once_is_taken_up_again(
    server: FileServer, large: tuple[bytes, dict[str, Tensor]]
) -> None:
    def breaks_first(handler: Handler, data: bytes, start: int, stop: int) -> None:
        if len(server.asked) > 1:
            handler.part(data, start, stop)
            return
        said = {"Content-Range": f"bytes 0-{stop - 1}/{len(data)}", "Content-Length": str(stop)}
        handler.reply(206, said | {"ETag": '"1"'}, data[:1000])

    server.files["/net.pemn"] = large[0]
    server.answer = breaks_first
    with pemncodec.open(server.url("/net.pemn")) as file:
        file.verify()
    assert [asked.start for asked in server.asked[:2]] == [0, 1000]


def test_a_server_that_breaks_off_again_and_again(
    server: FileServer, large: tuple[bytes, dict[str, Tensor]], run: Run, tmp_path: Path
) -> None:
    """No byte is fetched twice, and what is written is what comes of a whole file."""
    contents = contents_of(large[0])
    places = {tensor.name: number % 3 for number, tensor in enumerate(contents.tensors)}
    write_shards(tmp_path, contents, places)
    server.files |= {f"/{path.name}": path.read_bytes() for path in tmp_path.iterdir()}
    checkpoint = io.BytesIO()
    torch.save({name: tensor.repeat(8, 1) for name, tensor in large[1].items()}, checkpoint)
    server.files["/model.pt"] = checkpoint.getvalue()
    random = Random(5)

    def breaks_or_waits(handler: Handler, data: bytes, start: int, stop: int) -> None:
        server.asked.pop()
        if random.random() < 0.3:
            handler.reply(random.choice([408, 429, 500, 502, 503, 504]), {"Retry-After": "0"})
            return
        sent = data[start : min(stop, start + random.randrange(1, 1 << 20))]
        server.asked.append(Asked(handler.path, start, start + len(sent), None))
        said = f"bytes {start}-{stop - 1}/{len(data)}"
        handler.reply(
            206, {"Content-Range": said, "Content-Length": str(stop - start), "ETag": '"1"'}, sent
        )

    server.answer = breaks_or_waits
    url = server.url("/net.pemn.index.json")
    assert run("decode", url, "-o", "there.safetensors").returncode == 0
    index = len(server.files["/net.pemn.index.json"])
    files = sum(len(data) for name, data in server.files.items() if name.endswith(".pemn"))
    assert server.sent == index + files
    assert run("decode", "net.pemn.index.json", "-o", "here.safetensors").returncode == 0
    here, there = (tmp_path / f"{name}.safetensors" for name in ("here", "there"))
    assert there.read_bytes() == here.read_bytes()
    server.asked.clear()
    options = ("--masks-from", "zeros", "--no-manifest")
    assert run("encode", server.url("/model.pt"), *options).returncode == 0
    assert server.sent == len(checkpoint.getvalue())


AWAY = (
    OSError(errno.ENETUNREACH, "Network is unreachable"),
    OSError(errno.EHOSTUNREACH, "No route to host"),
    socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol"),
    ssl.SSLError(ssl.SSL_ERROR_SSL, "bad record mac"),
)
FORGED = ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, "certificate has expired")


def failing(function: Callable[..., Any], error: OSError, first: int, last: int) -> Any:
    """A function whose calls from `first` to `last` fail."""
    calls = count(1)

    def call(*arguments: Any, **options: Any) -> Any:
        if first <= next(calls) <= last:
            raise error
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("error", AWAY, ids=str)
@pytest.mark.parametrize("place", ["connecting", "waiting", "body"])
def test_a_network_that_is_away_for_a_moment(
    server: FileServer,
    large: tuple[bytes, dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: OSError,
) -> None:
    server.files["/net.pemn"] = large[0]
    ranges = web.WebRanges(server.url("/net.pemn"), 1000)
    where, name = {
        "connecting": (socket, "create_connection"),
        "waiting": (HTTPConnection, "getresponse"),
        "body": (HTTPResponse, "read"),
    }[place]
    real = getattr(where, name)
    monkeypatch.setattr(where, name, failing(real, error, 1, 4))
    assert ranges.read(500, 3000) == large[0][500:3000]
    monkeypatch.setattr(where, name, failing(real, error, 1, 5))
    with pytest.raises(OSError, match="broke 5 times in a row") as raised:
        ranges.read(500, 3000)
    assert error.strerror in str(raised.value)
    assert raised.value.filename == ranges.name


@pytest.mark.parametrize("error", [*AWAY, FORGED], ids=str)
def test_a_server_that_never_answered_is_not_waited_for(
    server: FileServer, network: bytes, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    server.files["/net.pemn"] = network
    monkeypatch.setattr(socket, "create_connection", failing(socket.create_connection, error, 1, 1))
    with pytest.raises(OSError, match=r"cannot reach the server .*: check the URL") as raised:
        pemncodec.open(server.url("/net.pemn"))
    assert error.strerror in str(raised.value)


def test_a_certificate_is_not_tried_again(
    server: FileServer, network: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/net.pemn"] = network
    ranges = web.WebRanges(server.url("/net.pemn"), 10)
    monkeypatch.setattr(
        socket, "create_connection", failing(socket.create_connection, FORGED, 1, 1)
    )
    with pytest.raises(OSError, match=r"cannot reach the server .*certificate has expired"):
        ranges.read(10, 20)


@pytest.mark.parametrize("command", ["decode", "encode"])
def test_a_server_that_is_gone_leaves_no_file(
    server: FileServer,
    large: tuple[bytes, dict[str, Tensor]],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server.files["/net.pemn"] = large[0]

    def gone(handler: Handler, data: bytes, start: int, stop: int) -> None:
        if start == 0:
            said = f"bytes 0-{stop - 1}/{len(data)}"
            handler.part(data, 0, 1 << 16, Content_Range=said, Content_Length=str(stop))
        else:
            handler.close_connection = True

    server.answer = gone
    if command == "decode":
        result = run("decode", server.url("/net.pemn"), "-o", "x.safetensors")
    else:
        result = run("encode", server.url("/net.pemn"), "-o", "x.pemn", "--no-manifest")
    fails(result, 1, "/net.pemn: the connection broke 5 times in a row", "and give its path")
    assert not list(tmp_path.iterdir())


def test_a_server_is_left_alone_as_long_as_it_asks(
    server: FileServer, network: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(web, "_PAUSE", 0.5)
    monkeypatch.setattr(time, "sleep", waited.append)
    server.files["/net.pemn"] = network

    def busy(handler: Handler, data: bytes, start: int, stop: int) -> None:
        asked = [{}, {"Retry-After": "7"}, {"Retry-After": "999999"}, {"Retry-After": "x"}]
        if len(server.asked) <= len(asked):
            handler.reply(503, asked[len(server.asked) - 1])
        else:
            handler.part(data, start, stop)

    server.answer = busy
    pemncodec.open(server.url("/net.pemn")).close()
    assert waited == [0.5, 7.0, 60.0, 4.0]


@pytest.mark.parametrize("change", ["etag", "size"])
def test_a_file_that_changes_between_two_reads(
    server: FileServer, large: tuple[bytes, dict[str, Tensor]], change: str
) -> None:
    server.files["/net.pemn"] = large[0]
    with pemncodec.open(server.url("/net.pemn")) as file:
        if change == "etag":
            server.etags["/net.pemn"] = '"2"'
        else:
            server.files["/net.pemn"] += b"more"
        with pytest.raises(
            OSError, match=r"changed while it was read: open it once more.*net\.pemn"
        ):
            file.tensor("first")


@pytest.mark.parametrize("left", [0, 500])
def test_a_file_that_shrank(
    server: FileServer, large: tuple[bytes, dict[str, Tensor]], left: int
) -> None:
    def no_such_range(handler: Handler, data: bytes, _start: int, _stop: int) -> None:
        handler.reply(416, {"Content-Range": f"bytes */{len(data)}"})

    server.files["/net.pemn"] = large[0]
    ranges = web.WebRanges(server.url("/net.pemn"), 1000)
    server.answer = no_such_range
    with pytest.raises(OSError, match=r"says 416 .*check the URL"):
        ranges.read(1000, 2000)
    server.files["/net.pemn"] = large[0][:left]
    with pytest.raises(OSError, match="changed while it was read: open it once more"):
        ranges.read(1000, 2000)


def test_damage_is_found_as_in_other_files(
    server: FileServer, large: tuple[bytes, dict[str, Tensor]], run: Run
) -> None:
    data = bytearray(large[0])
    data[-5] ^= 1
    server.files |= {"/net.pemn": bytes(data), "/cut": large[0][:-1], "/long": large[0] + b"x"}
    fails(run("verify", server.url("/net.pemn")), 1, "net.pemn: section", "checksum")
    with pytest.raises(pemncodec.TruncatedError):
        pemncodec.open(server.url("/cut"))
    with pytest.raises(pemncodec.CorruptError, match="1 bytes behind the end"):
        pemncodec.open(server.url("/long"))
    server.files["/empty"] = b""
    server.files["/page"] = b"<html>"
    fails(run("inspect", server.url("/empty")), 1, "not a .pemn file")
    fails(run("inspect", server.url("/page")), 1, "not a .pemn file")


def test_limits_hold_before_anything_is_downloaded(
    server: FileServer, large: tuple[bytes, dict[str, Tensor]]
) -> None:
    server.files["/net.pemn"] = large[0]
    with pytest.raises(pemncodec.LimitError):
        pemncodec.open(server.url("/net.pemn"), limits=pemncodec.Limits(decoded_bytes=8_000_000))
    assert server.sent == 1 << 16
    lying = bytearray(large[0])
    lying[10:18] = b"\xff" * 8  # header and frame of four GiB
    server.files["/lying.pemn"] = bytes(lying)
    with pytest.raises(pemncodec.LimitError):
        pemncodec.open(server.url("/lying.pemn"))
    assert server.sent == 1 << 17
    few = pemncodec.Limits(decoded_bytes=8 << 20, header_bytes=10_000, manifest_bytes=0)
    server.files["/wide.pemn"] = wide = with_section_of(9 << 20)
    with pytest.raises(pemncodec.LimitError, match=f"a file of {len(wide):,} bytes"):
        pemncodec.open(server.url("/wide.pemn"), limits=few)
    assert server.sent == 3 << 16


def with_section_of(size: int) -> bytes:
    """A file with a section that no tensor could need so much of."""
    return encode_container(b"{}", [Spool().add(bytes(size))], 1) + bytes(size)


def test_a_small_file_needs_no_ranges(server: FileServer, network: bytes) -> None:
    server.files["/net.pemn"] = network
    server.answer = _ignores
    pemncodec.decode(server.url("/net.pemn"))
    assert len(server.asked) == 1


def test_servers_that_are_not_there(run: Run) -> None:
    fails(run("inspect", "http://127.0.0.1:1/net.pemn"), 1, "cannot reach the server", "refused")
    for url in ("https:///net.pemn", "http://host:port/net.pemn", "http://[::1/x"):
        fails(run("inspect", url), 1, "this is no URL: it needs a host")


# --------------------------------------------------------------------------------------- other URLs


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("s3://bucket/net.pemn", True),
        ("HTTPS://host/net.pemn", True),
        ("simplecache::s3://bucket/net.pemn", True),
        ("a://b", True),
        ("./a://b", False),
        ("C:\\net.pemn", False),
        ("C:/net.pemn", False),
        ("https:/host/net.pemn", False),
        ("://b", False),
        ("1a://b", False),
        ("net.pemn", False),
        (Path("https://host/net.pemn"), False),
        (b"https://host/net.pemn", False),
    ],
)
def test_what_is_a_url(name: object, url: bool) -> None:
    assert is_url(name) is url


@pytest.mark.parametrize(
    ("url", "public", "last"),
    [
        ("https://me:secret@host/a/net.pemn?sig=x#y", "https://host/a/net.pemn?…", "net.pemn"),
        ("https://me:se?cr#et@host/net.pemn", "https://host/net.pemn", "net.pemn"),
        ("https://me:se/cr/et@host/net.pemn", "https://host/net.pemn", "net.pemn"),
        ("s3://AKIA:ab/cd+e@bucket/a@b.pemn?x", "s3://b.pemn?…", "b.pemn"),
        ("https://host:8080/a@1.0/net.pemn", "https://host:8080/a@1.0/net.pemn", "net.pemn"),
        ("hf://me/model@main/net.pemn", "hf://me/model@main/net.pemn", "net.pemn"),
        ("zip://a.pemn::https://me@host/a.zip?x", "zip://a.pemn::https://host/a.zip?…", "a.zip"),
        ("me@host/net.pemn?x", "me@host/net.pemn?x", "net.pemn?x"),
        ("s3://bucket/folder/", "s3://bucket/folder/", "folder"),
    ],
)  # fmt: skip
def test_secrets_of_a_url_are_not_shown(url: str, public: str, last: str) -> None:
    assert shown(url) == public
    assert last_part(url) == last


def test_a_file_may_have_a_name_like_a_url(network: bytes, run: Run, tmp_path: Path) -> None:
    (tmp_path / "a:").mkdir()
    (tmp_path / "a:" / "b").write_bytes(network)
    fails(run("verify", "a://b"), 1, "there is no a://; a file of that name here is ./a://b")
    assert run("verify", "./a://b").returncode == 0
    fails(run("verify", "nonsense://b"), 1, "there is no nonsense://", "./nonsense://b")


def test_a_store_whose_client_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(sys.modules[fsspec.get_filesystem_class.__module__], "_registry", {})
    with pytest.raises(OSError, match=r"needs another package: pip install s3fs: "):
        pemncodec.open("s3://bucket/net.pemn")


def test_a_store_whose_client_lacks_a_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import fsspec

    (tmp_path / "s3fs.py").write_text("import not_installed_here")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "s3fs", raising=False)
    monkeypatch.setattr(sys.modules[fsspec.get_filesystem_class.__module__], "_registry", {})
    with pytest.raises(OSError, match=r"needs another package: s3fs says .*not_installed_here"):
        pemncodec.open("s3://bucket/net.pemn")


@pytest.fixture
def memory() -> Iterator[dict[str, bytes]]:
    """The files of memory://, by name."""
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    yield MemoryFileSystem.store
    MemoryFileSystem.store.clear()


def test_files_are_written_whole(
    memory: dict[str, io.BytesIO], network: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    file = pemncodec.open(network)
    report = pemncodec.encode(file, "memory://folder/net.pemn")
    assert memory.keys() == {"/folder/net.pemn"}
    assert memory["/folder/net.pemn"].getvalue() == network
    assert report.info.file_bytes == len(network)
    loaded = pemncodec.load_state_dict("memory://folder/net.pemn")
    assert all(
        torch.equal(loaded[name], t) for name, t in pemncodec.decode(network).state_dict().items()
    )

    def put_half(system: MemoryFileSystem, source: str, name: str) -> None:
        system.pipe_file(name, Path(source).read_bytes()[:100])
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_half)
    with pytest.raises(ConnectionResetError, match=r"reset by peer: 'memory://folder/net\.pemn'"):
        pemncodec.encode(file, "memory://folder/net.pemn", preset="fast")
    assert memory.keys() == {"/folder/net.pemn"}
    assert memory["/folder/net.pemn"].getvalue() == network


def test_web_servers_take_no_files(network: bytes, run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.pemn").write_bytes(network)
    url = "https://me:secret@host/x.safetensors"
    fails(run("decode", "net.pemn", "-o", url), 1, "web servers take no files", "https://host/x.")
    with pytest.raises(OSError, match="web servers take no files"):
        pemncodec.encode(nn.Linear(2, 2), "https://host/net.pemn")


# ------------------------------------------------------------------------------------- command line


def test_commands_take_urls(
    server: FileServer, memory: dict[str, io.BytesIO], run: Run, tmp_path: Path
) -> None:
    torch.save(pruned_net().state_dict(), checkpoint := io.BytesIO())
    server.files["/a/model.pt"] = checkpoint.getvalue()
    source = server.url("/a/model.pt" + QUERY, LOGIN)
    results = [
        run("encode", source, "--no-manifest"),
        run("encode", source, "--no-manifest", "-o", "memory://net.pemn"),
        run("inspect", "memory://net.pemn"),
        run("verify", "memory://net.pemn", "--against", source),
        run("verify", "memory://net.pemn", "--against", source, "--json"),
        run("decode", "memory://net.pemn", "-o", "memory://net.safetensors"),
        run("decode", "memory://net.pemn", "-o", "memory://net.pt", "--json"),
        run("report", "memory://net.pemn", source, "--forms", "safetensors", "--csv", "memory://t"),
        run("seed", source),
    ]
    for result in results[:-1]:
        assert result.returncode == 0, result.stderr
    said = b"".join(result.stdout + result.stderr for result in results).decode()
    assert not [secret for secret in SECRETS if secret in said]
    assert server.url("/a/model.pt?…") in said
    assert (tmp_path / "model.pemn").read_bytes() == memory["/net.pemn"].getvalue()
    assert memory.keys() == {"/net.pemn", "/net.safetensors", "/net.pt", "/t"}
    assert memory["/t"].getvalue().count(b"\n") == 3
    fails(
        run("decode", "memory://net.pemn", "-o", "memory://net.pt"), 2, "exists: -f overwrites it"
    )
    fails(run("encode", "memory://net.pemn", "-o", "memory://net.pemn"), 2, "is the input")
    assert run("decode", "memory://net.pemn", "-o", "memory://net.pt", "-f").returncode == 0
    server.answer = _status(403)
    fails(run("encode", source, "--no-manifest", "-f"), 1, "403 Forbidden", "model.pt?…")


def test_a_checkpoint_keeps_its_suffix_and_masks_may_be_remote(
    server: FileServer, run: Run
) -> None:
    import numpy as np

    np.savez(stream := io.BytesIO(), weight=np.eye(8, dtype=bool))
    np.savez(weights := io.BytesIO(), weight=np.ones((8, 8), np.float32))
    server.files |= {"/masks.npz": stream.getvalue(), "/weights.npz": weights.getvalue()}
    arguments = ("--masks", server.url("/masks.npz"), "--no-manifest")
    result = run("encode", server.url("/weights.npz"), *arguments)
    assert result.returncode == 0, result.stderr
    assert b"from masks.npz" in result.stdout


def test_importing_costs_no_client() -> None:
    code = (
        "import sys, pemncodec.cli; "
        "print(sorted({'fsspec', 'urllib.request', 'ssl', 'http.client'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert result.stdout.strip() == b"[]"


@pytest.mark.parametrize("form", ["memory://{}", "memory://{}/", "simplecache::memory://{}"])
def test_a_folder_of_a_store_is_its_one_model(
    form: str, memory: dict[str, io.BytesIO], network: bytes
) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    system.pipe({"/one/net.pemn": network, "/one/x.txt": b"x", "/one/two/net.pemn": b"x"})
    system.pipe({"/none/x": b"x", "/cut/net-00001-of-00003.pemn": network})
    pemncodec.encode(pemncodec.open(network), "memory://shards/net.pemn", shard_size=4000)
    assert len([name for name in memory if "/shards/" in name]) == 4
    expected = pemncodec.digest(network)
    for folder in ("one", "shards"):
        assert pemncodec.digest(form.format(folder)) == expected
    for folder, error, words in (
        ("none", FileNotFoundError, r"no \.pemn file in this folder: .*none"),
        ("cut", FileNotFoundError, r"shards without their index, net\.pemn\.index\.json"),
        ("nothing", FileNotFoundError, "No such file"),
    ):
        with pytest.raises(error, match=words):
            pemncodec.open(form.format(folder))
    system.pipe({"/other.pemn": network, "/third.pemn": network})
    with pytest.raises(
        pemncodec.DecodeArgumentError, match=r"several models: give one of other\.pemn, third"
    ):
        pemncodec.open("memory://")


def test_web_servers_list_no_folders(server: FileServer, run: Run) -> None:
    server.files["/page"] = b"<html>"
    hint = "web servers list no folders: give the URL of the index or .pemn file"
    for place in ("/page", "/folder", "/folder/"):
        fails(run("inspect", server.url(place)), 1, f"{server.url(place)}: ", hint)
    missing = run("inspect", server.url("/net.pemn"))
    assert missing.returncode == 1
    assert hint.encode() not in missing.stderr


# ----------------------------------------------------------------------------------------------- S3


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket that a server in this process holds."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    import fsspec

    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(fsspec.config.conf)
    fsspec.config.conf["s3"] = {
        "key": "k",
        "secret": "s",
        "endpoint_url": f"http://{host}:{port}",
    }
    try:
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    finally:
        fsspec.config.conf.clear()
        fsspec.config.conf.update(before)
        server.stop()


def test_s3(
    bucket: str,
    large: tuple[bytes, dict[str, Tensor]],
    network: bytes,
    run: Run,
    tmp_path: Path,
) -> None:
    data = large[0]
    url = f"{bucket}/nets/net.pemn"
    pemncodec.encode(pemncodec.open(data), url, manifest=False, preset="fast")
    with pemncodec.open(url) as file:
        assert file.data() == data
        pemncodec.encode(pemncodec.open(network), url)
    loaded = pemncodec.load_state_dict(url)
    assert loaded.keys() == pemncodec.load_state_dict(network).keys()
    assert run("inspect", url).returncode == 0
    fails(run("inspect", f"{bucket}/nets/other.pemn"), 1, "No such file", "check the URL")
    (tmp_path / "x.pemn").write_bytes(network)
    fails(run("encode", "x.pemn", "-o", url), 2, "exists: -f overwrites it")
    report = pemncodec.encode(pemncodec.open(network), url, shard_size=4000)
    assert len(report.info.shards) == 3
    assert pemncodec.load_state_dict(f"{url}.index.json").keys() == loaded.keys()
    fails(run("inspect", url), 1, "open net.pemn.index.json")
    fails(run("encode", "x.pemn", "-o", url), 2, "net.pemn.index.json exists: -f overwrites it")


def test_folders_of_s3(bucket: str, network: bytes, run: Run) -> None:
    pemncodec.encode(pemncodec.open(network), f"{bucket}/shards/net.pemn", shard_size=4000)
    for folder in (f"{bucket}/shards", f"{bucket}/shards/"):
        assert run("verify", folder).returncode == 0
    fails(run("inspect", bucket), 1, f"{bucket}: there is no .pemn file in this folder")
    fails(run("inspect", "s3://nowhere"), 1, "s3://nowhere: No such file", "check the URL")
    fails(run("encode", f"{bucket}/shards", "-o", "x.pemn"), 1, "a folder: give the URL of a file")


@pytest.mark.parametrize("stopped", ["upload", "move_stored"])
def test_s3_is_continued(
    bucket: str, network: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: str
) -> None:
    import fsspec

    store = fsspec.filesystem("s3")

    def files(folder: str) -> dict[str, bytes]:
        store.invalidate_cache()
        return {name.rpartition("/")[2]: store.cat_file(name) for name in store.find(folder)}

    function = getattr(places, stopped)
    calls: list[object] = []

    def once_more(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) > 3:
            raise ConnectionResetError(104, "Connection reset by peer")
        function(*arguments)

    pemncodec.encode(pemncodec.open(network), tmp_path / "net.pemn", shard_size=4000)
    url = f"{bucket}/{stopped}/net.pemn"
    with monkeypatch.context() as patch:
        patch.setattr(places, stopped, once_more)
        with pytest.raises(ConnectionResetError, match="by peer"):
            pemncodec.encode(pemncodec.open(network), url, shard_size=4000)
    assert "net.pemn.index.json" not in store.ls(f"bucket/{stopped}")
    report = pemncodec.encode(pemncodec.open(network), url, shard_size=4000, resume=True)
    kept = 1 if stopped == "upload" else 3
    assert f"{kept} of 3 shards were there from an interrupted encoding" in report.notes
    assert files(f"bucket/{stopped}") == {
        path.name: path.read_bytes() for path in tmp_path.iterdir()
    }


def test_s3_notices_a_file_that_changes(
    bucket: str, large: tuple[bytes, dict[str, Tensor]]
) -> None:
    import fsspec

    store = fsspec.filesystem("s3")
    store.pipe_file("bucket/changing.pemn", large[0])
    with pemncodec.open(f"{bucket}/changing.pemn") as file:
        store.pipe_file("bucket/changing.pemn", large[0][:-1] + b"\0")
        with pytest.raises(OSError, match=r"changed while it was read.*s3://bucket/changing"):
            file.tensor("first")


def test_s3_is_asked_for_what_was_written_since_a_listing(
    bucket: str, network: bytes, tmp_path: Path
) -> None:
    """By another machine, whose writing leaves the listings of this one as they are."""
    import fsspec

    store, other = fsspec.filesystem("s3"), fsspec.filesystem("s3", skip_instance_cache=True)
    url = f"{bucket}/listed/net.pemn"
    other.pipe_file("bucket/listed/x", b"x")
    store.ls("bucket/listed")
    pemncodec.encode(pemncodec.open(network), tmp_path / "net.pemn", shard_size=4000)
    for path in tmp_path.iterdir():
        other.put_file(str(path), f"bucket/listed/{path.name}")
    assert pemncodec.load_state_dict(f"{url}.index.json")
    for path in tmp_path.iterdir():
        other.rm_file(f"bucket/listed/{path.name}")
    store.ls("bucket/listed")
    for path in tmp_path.iterdir():
        other.put_file(str(path), f"bucket/listed/{path.name}")
    pemncodec.encode(pemncodec.open(network), url)
    store.invalidate_cache()
    assert store.ls("bucket/listed", detail=False) == ["bucket/listed/net.pemn", "bucket/listed/x"]
    other.rm_file("bucket/listed/net.pemn")
    assert stored_bytes(url) is None
