"""Sizes as people write them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_SIZE: Final = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s?([KMGT]?)(I?B)?", re.ASCII | re.IGNORECASE)


_NAMES: Final = {
    prefix + unit: base**power
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMGT", 1)
}


def size_as_text(size: int) -> str:
    """The shortest way to write a number of bytes, which `size_in_bytes` reads."""
    exact = [f"{size // unit}{name}" for name, unit in _NAMES.items() if size % unit == 0]
    return min(exact, key=len) if size and exact else f"{size}B"


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
