"""What is a URL, and what of one may be shown."""

from __future__ import annotations

import re
from typing import Final, TypeGuard
from urllib.parse import quote, unquote, urlsplit

_URL: Final = re.compile(r"([a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(name: object) -> TypeGuard[str]:
    """Whether a name is of the form `scheme://…`, which no path is taken for.

    A file of such a name in the working folder is `./scheme://…`.
    """
    return isinstance(name, str) and _URL.match(name) is not None


def is_web(url: str) -> bool:
    """Whether a web server is asked for it, which has no folders that can be listed."""
    return url.lower().startswith(("http://", "https://"))


def shown(name: str) -> str:
    """A name without what may be secret in a URL: user, password, and what is behind `?` or `#`."""
    if not is_url(name):
        return name
    public = re.sub(r"://[^/]*@", "://", name)
    # A password with a slash in it, which should be %2F; what is behind a port is a path.
    public = re.sub(r"://[^/?#@]*:(?!\d{1,5}/)[^?#]*@", "://", public)
    return re.sub(r"[?#].*?(?=::|$)", "?…", public)


def redacted(text: str, url: str) -> str:
    """Text of other code without what `shown` leaves out of the URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return text.replace(url, shown(url))
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    values = [value.partition("=")[2] for value in re.split("[&;]", parts.query)]
    for secret in (url, user, password, parts.query, parts.fragment, *values):
        for form in {secret, unquote(secret)} - {""}:
            text = text.replace(form, shown(url) if form == url else "…")
    return text


def last_part(url: str) -> str:
    """The name of the file at a URL."""
    return shown(url).removesuffix("?…").rstrip("/").rpartition("/")[2]


def within(folder: str, name: str) -> str:
    """The URL of a file in the folder of a store at a URL."""
    first, chain, rest = folder.partition("::")
    if "://" not in first:  # as in simplecache::s3://…
        return f"{first}{chain}{within(rest, name)}"
    return f"{first}{'' if first.endswith('/') else '/'}{name}{chain}{rest}"


def beside(url: str, name: str) -> str:
    """The URL of another file in the folder of the file at a URL.

    What is behind `?` stays. Web servers are sent `?`, `#` and `%` of a name as parts of it; names
    of shards have nothing else that has a meaning in URLs.
    """
    first, chain, rest = url.partition("::")
    if "://" not in first:  # as in simplecache::s3://…
        return f"{first}{chain}{beside(rest, name)}"
    if is_web(first):
        place, mark, query = first.partition("#")[0].partition("?")
        return f"{place.rpartition('/')[0]}/{quote(name)}{mark}{query}{chain}{rest}"
    return f"{first.rpartition('/')[0]}/{name}{chain}{rest}"
