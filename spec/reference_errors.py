"""The error of the reference decoder: a code of section 10 of pemn.md."""

from __future__ import annotations


class PemnError(Exception):
    """The file is invalid; `code` is one of section 10."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


def require(condition: bool, code: str, message: str) -> None:
    if not condition:
        raise PemnError(code, message)
