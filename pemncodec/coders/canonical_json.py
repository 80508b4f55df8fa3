"""The JSON subset of header and manifest: one byte sequence per value (spec section 3.4)."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pemncodec.errors import CorruptError, DecodeError, LimitError

# Possessive, and content with a string that never ends: one pass whatever the bytes are.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[][{}]")


def encode_json(value: Any) -> bytes:
    """UTF-8 without white space, keys sorted, no NaN or infinity."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8")


def is_object(head: bytes) -> bool:
    """Whether a file that begins like this, eight bytes or more, can be a JSON object.

    A brace may also be the lowest byte of a number: that of safetensors has zeros behind it.
    """
    return head.lstrip()[:1] == b"{" and b"\0" not in head


def decode_json(data: bytes, *, depth: int) -> Any:
    """Value of canonical JSON.

    Raises:
        CorruptError: not UTF-8, not JSON, a duplicate key, a lone surrogate, or a number that is
            not finite.
        LimitError: nested deeper than `depth`.
    """
    _check_depth(data, depth)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_constant=_reject_constant,
        )
        if b"\\u" in data:
            encode_json(value)  # fails on a lone surrogate, which is no text
        return value
    except DecodeError:
        raise
    except RecursionError:
        raise LimitError("limit", "JSON is nested too deeply") from None
    except ValueError as error:
        raise CorruptError("json", f"not the JSON that the format allows ({error})") from None


def _check_depth(data: bytes, limit: int) -> None:
    depth = 0
    for match in _BRACKET.finditer(_STRING.sub(b"", data)):
        depth += 1 if match.group() in b"[{" else -1
        if depth > limit:
            raise LimitError("limit", f"JSON is nested deeper than {limit}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CorruptError("json", "duplicate key")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise CorruptError("json", f"number out of range: {text[:40]}")
    return value


def _reject_constant(text: str) -> Any:
    raise CorruptError("json", f"{text} is not a JSON number")
