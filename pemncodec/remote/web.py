"""http:// and https:// by ranges, with what Python has.

The client of fsspec wants aiohttp, asks for the size in a request of its own, takes in all that a
server sends where it ignores ranges, and does not notice that a file changes.
"""

from __future__ import annotations

import base64
import errno
import re
import time
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from ssl import SSLCertVerificationError
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from pemncodec.remote.ranges import failure, no_such_file
from pemncodec.remote.urls import redacted, shown

_SECONDS: Final = 30.0  # without a byte from the server
_ATTEMPTS: Final = 5  # in a row
_LITTLE: Final = 1 << 16  # bytes, less than which are no progress
_PAUSE: Final = 0.5  # seconds, after the first of them
_LONGEST: Final = 60.0  # seconds that a server may ask for
_CHUNK: Final = 1 << 20
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_NO_SUCH_RANGE: Final = re.compile(r"bytes \*/(\d{1,18})")
_DOWNLOAD: Final = (
    "download it, with its index and all its shards if the model has several files, and give the "
    "path"
)
_IN_PATHS: Final = "%/:@!$&'()*+,;=~[]"


class _PassingError(Exception):
    """What may be over after a while."""

    def __init__(self, error: OSError, wait: float = 0.0) -> None:
        super().__init__(error)
        self.error = error
        self.wait = wait  # seconds


class WebRanges:
    """A file of a web server; see `Ranges`."""

    def __init__(self, url: str, head_bytes: int) -> None:
        self.name = shown(url)
        self._given = url
        self._url, self._authorization = _without_login(url, self.name)
        self._opener = OpenerDirector()
        for handler in (
            ProxyHandler(),
            HTTPHandler(),
            HTTPSHandler(),
            HTTPRedirectHandler(),
            HTTPErrorProcessor(),
            HTTPDefaultErrorHandler(),
        ):
            self._opener.add_handler(handler)
        self._version: tuple[int, str | None] | None = None
        self.size = head_bytes  # until a server says it
        self.head = self.read(0, head_bytes)

    def read(self, start: int, stop: int) -> bytes:
        """As `Ranges` has it.

        What fails in passing is tried again after a pause that doubles, and a connection that
        breaks is taken up from where it broke. That ends when several tries in a row bring little.
        """
        data = bytearray()
        failed = 0
        while True:
            before, wait = len(data), 0.0
            try:
                self._take(start + len(data), stop, data)
                error = self._broken("less came than the server said")
            except HTTPException as cause:
                error = self._broken(type(cause).__name__)
            except _PassingError as cause:
                error, wait = cause.error, cause.wait
            if len(data) == min(stop, self.size) - start:
                return bytes(data)
            failed = 1 if len(data) - before >= _LITTLE else failed + 1
            if failed == _ATTEMPTS:
                raise error
            time.sleep(max(wait, _PAUSE * 2 ** (failed - 1)))

    def close(self) -> None:
        self._opener.close()

    def _take(self, start: int, stop: int, data: bytearray) -> None:
        """Appends what one request brings."""
        request = Request(
            self._url,
            headers={
                "Range": f"bytes={start}-{stop - 1}",
                "Accept-Encoding": "identity",
                "User-Agent": "pemncodec",
            },
        )
        if self._authorization:  # for this server, and none that it sends us to
            request.add_unredirected_header("Authorization", self._authorization)
        try:
            answer = self._opener.open(request, timeout=_SECONDS)
        except HTTPError as error:
            with error:
                if error.code == 416 and self._is_cut(error.headers):
                    return
                refused = self._refused(error.code)
                if error.code in _PASSING:
                    raise _PassingError(refused, _asked_wait(error.headers)) from None
                raise refused from None
        except OSError as error:
            raise self._lost(error) from None
        assert isinstance(answer, HTTPResponse)
        with answer:
            missing = self._checked(answer, start, stop)
            try:
                while missing:
                    chunk = answer.read(min(missing, _CHUNK))
                    if not chunk:
                        return
                    data += chunk
                    missing -= len(chunk)
            except OSError as error:
                raise self._lost(error) from None

    def _checked(self, answer: HTTPResponse, start: int, stop: int) -> int:
        """The number of bytes that an answer has, all of which were asked for."""
        said = answer.headers.get("Content-Length") or ""
        length = int(said) if re.fullmatch(r"\d{1,18}", said) else None
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise self._failed(
                errno.EPROTO, "the server compresses what it was asked to send as it is"
            )
        if answer.status == HTTPStatus.OK and start == 0 and length is not None and length <= stop:
            self._check_version(length, answer.headers)  # no ranges, and no need of any
            return length
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            raise self._failed(
                errno.EOPNOTSUPP, f"the server cannot send parts of a file: {_DOWNLOAD}"
            )
        given = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range") or "")
        if given is None:
            raise self._failed(
                errno.EPROTO,
                f"the server does not say which part of the file it sends: {_DOWNLOAD}",
            )
        first, last, size = map(int, given.groups())
        if (first, last) != (start, min(stop, size) - 1) or length not in (None, last + 1 - first):
            raise self._failed(
                errno.EPROTO,
                f"the server sends other bytes than {start} to {min(stop, size) - 1}, which it was "
                f"asked for: {_DOWNLOAD}",
            )
        self._check_version(size, answer.headers)
        return last + 1 - first

    def _is_cut(self, headers: Message) -> bool:
        """Whether a file is empty, by an answer that it has no such range; raises if it shrank."""
        said = _NO_SUCH_RANGE.fullmatch(headers.get("Content-Range") or "")
        if said is None:
            return False
        size = int(said[1])
        changed = self._version is not None and size != self.size
        if size == 0 or changed:
            self._check_version(size, headers)
        return size == 0

    def _check_version(self, size: int, headers: Message) -> None:
        version = (size, headers.get("ETag") or headers.get("Last-Modified"))
        if self._version not in (None, version):
            raise self._failed(
                errno.ESTALE, "the file changed while it was read: open it once more"
            )
        self._version = version
        self.size = size

    def _refused(self, status: int) -> OSError:
        try:
            said = f"{status} {HTTPStatus(status).phrase}"
        except ValueError:
            said = f"{status}"
        if status in (404, 410):
            return no_such_file(self.name)
        if status in (401, 403):
            return self._failed(
                errno.EACCES,
                f"the server refuses access ({said}): has the URL a login, or expired?",
            )
        if status == 429 or status >= 500:
            return self._failed(errno.EIO, f"the server cannot answer ({said}): try again later")
        return self._failed(errno.EIO, f"the server says {said}: check the URL")

    def _lost(self, error: OSError) -> Exception:
        """What is raised where there is no connection, or none any more."""
        reason = error.reason if isinstance(error, URLError) else error
        what = (isinstance(reason, OSError) and reason.strerror) or str(reason)
        what = redacted(what.partition("\n")[0], self._given) or type(reason).__name__
        answered = self._version is not None  # a server that has may do so again
        if isinstance(reason, TimeoutError):
            slow = self._failed(
                errno.ETIMEDOUT,
                f"the server sent nothing for {_SECONDS:.0f} seconds: try again later",
            )
            return _PassingError(slow) if answered else slow
        broke = isinstance(reason, ConnectionError) and not isinstance(
            reason, ConnectionRefusedError
        )
        final = isinstance(reason, str | SSLCertVerificationError)
        if broke or (answered and not final):
            return _PassingError(self._broken(what))
        return self._failed(errno.EHOSTUNREACH, f"cannot reach the server ({what}): check the URL")

    def _broken(self, cause: str) -> OSError:
        return self._failed(
            errno.ECONNABORTED,
            f"the connection broke {_ATTEMPTS} times in a row ({cause}): try again later, or "
            "download the file by a program that continues, and give its path",
        )

    def _failed(self, code: int, text: str) -> OSError:
        return failure(self.name, code, text)


def _without_login(url: str, name: str) -> tuple[str, str | None]:
    """The URL as a server is asked for it, and the header with user and password."""
    try:
        parts = urlsplit(url)
        port = parts.port  # checked here
        host = parts.hostname
    except ValueError:
        host = port = None
    if not host or port == 0:
        raise failure(name, errno.EINVAL, "this is no URL: it needs a host, as https://host/file")
    login, _, place = parts.netloc.rpartition("@")
    parts = parts._replace(
        netloc=place,
        path=quote(parts.path, _IN_PATHS),
        query=quote(parts.query, _IN_PATHS + "?"),
        fragment="",
    )
    encoded = base64.b64encode(unquote(login).encode()).decode()
    return parts.geturl(), f"Basic {encoded}" if login else None


def _asked_wait(headers: Message) -> float:
    """The seconds that a server asks to be left alone."""
    said = headers.get("Retry-After") or ""
    return min(float(said), _LONGEST) if re.fullmatch(r"\d{1,9}", said) else 0.0
