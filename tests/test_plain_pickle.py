"""Pickles whose objects become stand-ins: what is read of them, and what damaged ones cost."""

from __future__ import annotations

import io
import math
import pickle
import sys
import tracemalloc
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pemncodec.checkpoints.plain_pickle import StandIn, load_plain

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(), inner)
    ),
)


@settings(max_examples=60)
@given(PLAIN, st.sampled_from(PROTOCOLS))
def test_plain_values(value: Any, protocol: int) -> None:
    assert load_plain(pickle.dumps(value, protocol)) == value
    twice = load_plain(pickle.dumps([value, value], protocol))
    assert twice == [value, value]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects(protocol: int) -> None:
    path, text = Path("a"), b"\xff" * 300
    value = {
        "path": path,
        "again": [path],
        "size": torch.Size([2, 3]),
        "ordered": OrderedDict(a=1),
        "deque": deque([1, 2]),
        "error": Exception("of", 2),
        "set": {1},
        "text": text,
        "long": [-1, 1 << 100],
    }
    plain = load_plain(pickle.dumps(value, protocol))
    assert plain["again"] == [plain["path"]]
    assert isinstance(plain["path"], StandIn)
    assert plain["size"] == (2, 3)
    assert plain["long"] == [-1, 1 << 100]
    assert isinstance(plain["deque"], StandIn)
    if protocol > 1:
        assert plain["ordered"] == {"a": 1}
        assert plain["deque"].of == ("collections", "deque")
    if protocol > 2:
        assert plain["text"] == text
        assert plain["error"].of == ("builtins", "Exception")
    if protocol > 3:
        assert plain["set"] == [1]


def test_attributes_of_objects() -> None:
    value = Exception("x")
    value.size = 3  # type: ignore[attr-defined]
    plain = load_plain(pickle.dumps({value: 1, (1, 2): 3, 5: 6, "a": 7}))
    (key, text) = plain
    assert (key.state, text) == ({"size": 3}, "a")  # keys of other kinds are left out
    assert list(plain.values()) == [1, 7]


class Calls:
    def __reduce__(self) -> Any:
        return sys.exit, ("it was called",)


def test_nothing_is_called() -> None:
    (made,) = load_plain(pickle.dumps([Calls()]))
    assert made.of == ("sys", "exit")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"N",
        b".",
        b"NN.",
        b"\x85.",
        b"N\x86.",
        b"(N\x85u.",
        b"t.",
        b"h\x05.",
        b"r\x00\x00\x00\x00.",
        b"]a.",
        b"}Ns.",
        b"}(Nu.",
        b"NR.",
        b"NNR.",
        b"NN\x93.",
        b"ctorch\nSize\n])R.",
        b"ctorch\nSize\n]\x85R.",
        b"N2.",
        b"Pid\n.",
        b"\x80\x05\x97.",
        b"\x82\x01.",
        b"\x8c\x09short.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x8b\xff\xff\xff\x7f.",
        b"I" + b"9" * 9000 + b"\n.",
    ],
)
def test_damaged_pickles_are_refused(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        load_plain(data)


def peak(data: bytes) -> int:
    tracemalloc.start()
    try:
        load_plain(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_small_pickle_takes_little_memory() -> None:
    text = b"X" + (1 << 17).to_bytes(4, "little") + b"m" * (1 << 17) + b"q\x00"
    tuples = b"(" + b"N" * (1 << 17) + b"tq\x00"
    bombs = [
        b"\x80\x04Nr\xff\xff\xff\x03.",  # 64 million entries of a memo
        b"Np99999999\n.",
        text + b"0(" + b"h\x00h\x00\x93" * 1000 + b"l.",  # names of classes
        b"ctorch\nSize\nq\x010" + tuples + b"0(" + b"h\x01h\x00\x85R" * 1000 + b"l.",
    ]
    assert max(map(peak, bombs)) < 20 << 20


def test_values_that_are_used_twice_are_not_walked() -> None:
    """Hashing or comparing the last tuple would take 2^200 steps."""
    tuples = b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(200))
    data = b"}(" + tuples + b"NX\x01\x00\x00\x00a" + tuples + b"u."
    (value,) = load_plain(data).values()
    assert len(value) == 2
    assert load_plain(b"(" + tuples + b"\x91.")[0] is not None  # a frozenset
    assert load_plain(b"\x8f(" + tuples + b"\x90.")[0] is not None  # a set
    deep = load_plain(b")" + b"\x85" * 100_000 + b".")
    assert len(deep) == 1
    assert math.isnan(load_plain(pickle.dumps(math.nan)))


def test_bytes_behind_the_end_are_not_read() -> None:
    stream = io.BytesIO()
    pickle.dump({"a": [1]}, stream)
    stream.write(b"more")
    assert load_plain(stream.getvalue()) == {"a": [1]}
