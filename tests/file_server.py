"""A web server in this process: it sends parts of files, counts them, and misbehaves if asked."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Asked:
    """A request, and the bytes of the file that were sent."""

    path: str
    start: int
    stop: int
    authorization: str | None


@dataclass
class FileServer:
    """What is served; `answer`, where there is one, answers in place of the server."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    answer: Callable[[Handler, bytes, int, int], None] | None = None

    def url(self, path: str, login: str = "") -> str:
        return f"http://{login}127.0.0.1:{self.port}{path}"

    @property
    def sent(self) -> int:
        return sum(asked.stop - asked.start for asked in self.asked)


class Handler(BaseHTTPRequestHandler):
    served: FileServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        data = self.served.files.get(path)
        if data is None:
            self.send_error(404)
            return
        first, _, last = (self.headers["Range"] or "").removeprefix("bytes=").partition("-")
        start, stop = int(first or 0), min(int(last or len(data)) + 1, len(data))
        asked = Asked(self.path, start, stop, self.headers["Authorization"])
        self.served.asked.append(asked)
        if self.served.answer is not None:
            self.served.answer(self, data, start, stop)
        elif not data:
            self.reply(416, {"Content-Range": "bytes */0"})
        else:
            self.part(data, start, stop)

    def part(self, data: bytes, start: int, stop: int, **headers: str) -> None:
        """The right answer, but for given headers."""
        said = {
            "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}",
            "ETag": self.served.etags.get(self.path, '"1"'),
        }
        self.reply(
            206, said | {k.replace("_", "-"): v for k, v in headers.items()}, data[start:stop]
        )

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[FileServer]:
    served = FileServer()
    handler = type("Handler", (Handler,), {"served": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        served.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
