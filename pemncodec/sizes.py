"""Sizes as people write them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_SIZE: Final = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s?([KMGT]?)(I?B)?", re.ASCII | re.IGNORECASE)


def size_in_bytes(text: str) -> int | None:
    """The bytes of `2GB` (2 · 10^9), `2GiB` or `2G` (2 · 2^30), or plain bytes; None of others."""
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    number, prefix, unit = match[1], match[2].upper(), (match[3] or "").upper()
    if (unit == "IB" and not prefix) or ("." in number and not prefix):
        return None
    base = 1000 if unit == "B" else 1024
    return int(Decimal(number) * base ** "_KMGT".index(prefix or "_"))
