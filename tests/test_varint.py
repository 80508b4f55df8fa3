"""Integers of variable length: the examples of the spec's rule, and every way to break it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pemncodec.coders.varint import decode_varint, encode_varint
from pemncodec.errors import DecodeError


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, "00"),
        (1, "01"),
        (127, "7f"),
        (128, "8001"),
        (300, "ac02"),
        (16383, "ff7f"),
        (16384, "808001"),
        ((1 << 64) - 1, "ffffffffffffffffff01"),
    ],
)
def test_values(value: int, data: str) -> None:
    assert encode_varint(value).hex() == data
    assert decode_varint(bytes.fromhex(data), 0) == (value, len(data) // 2)


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=3), st.binary(max_size=3))
def test_any_value_in_the_middle_of_others(value: int, before: bytes, behind: bytes) -> None:
    data = encode_varint(value)
    assert decode_varint(before + data + behind, len(before)) == (value, len(before + data))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("", "truncated"),
        ("80", "truncated"),
        ("ffffffffffffffffff", "truncated"),
        ("8000", "section"),  # 0 in two bytes
        ("ff8000", "section"),
        ("ffffffffffffffffff02", "section"),  # 2^64
        ("ffffffffffffffffff7f", "section"),
        ("80808080808080808080", "section"),  # no end after 70 bits
        ("8080808080808080808001", "section"),
    ],
)
def test_refused(data: str, code: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_varint(bytes.fromhex(data), 0)
    assert caught.value.code == code
