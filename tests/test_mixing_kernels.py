"""Both implementations of the mixing kernels: tables, arguments, results."""

from __future__ import annotations

import zlib
from types import ModuleType
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pemncodec.coders.mixing import _tables
from pemncodec.kernels import twins

STRETCH, SQUASH = 4096, 3072
PART = (6, 3, 1, 1, 0, 128)


# With vectors, where the processor has them, and without.
COMPILED = pytest.mark.parametrize("kernel", ["native", "any processor"], indirect=True)


def parts(*rows: tuple[int, ...]) -> bytes:
    return np.array(rows, np.uint64).tobytes()


def outcome(kernel: ModuleType, name: str, *arguments: Any) -> tuple[str, Any]:
    try:
        return "returned", getattr(kernel, name)(*arguments)
    except (TypeError, ValueError) as error:
        return type(error).__name__, str(error) if isinstance(error, ValueError) else None


def test_tables_are_those_of_the_spec() -> None:
    tables = _tables()
    with mpmath.workprec(100):
        for j in (0, 1, 2047, 2048, 2049, 4094, 4095):
            odds = mpmath.mpf(2 * j + 1) / (8191 - 2 * j)
            assert tables[j] == int(mpmath.nint(1024 * mpmath.log(odds)))
        for x in range(-1536, 1536, 61):
            exact = 65536 / (1 + mpmath.exp(-mpmath.mpf(2 * x + 1) / 256))
            assert tables[STRETCH + 1536 + x] == min(max(int(mpmath.nint(exact)), 1), 65535)
    halves = np.concatenate([tables[2048:4096], tables[4096 + 1536 :]]).astype("<u2")
    assert zlib.crc32(halves.tobytes()) == 0x73BB4889
    assert np.array_equal(tables[:2048], -tables[4095:2047:-1])
    assert np.array_equal(tables[4096 : 4096 + 1536], 65536 - tables[:-1537:-1])


GOOD: dict[str, Any] = {
    "bits": bytes([1, 0, 0, 1, 1, 0]),
    "buckets": bytes([0, 31, 7, 3, 3, 0]),
    "parts": parts(PART),
    "tables": _tables(),
}


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"bits": bytes([1, 0, 0, 1, 1, 2])}, "bits"),
        ({"bits": bytes(5)}, "parts"),
        ({"bits": b""}, "parts"),
        ({"bits": b"", "buckets": b"", "parts": b""}, "parts"),
        ({"buckets": bytes(5)}, "buckets"),
        ({"buckets": bytes([0, 0, 0, 0, 0, 32])}, "buckets"),
        ({"parts": parts(PART)[:-1]}, "parts"),
        ({"parts": parts((0, 3, 1, 1, 0, 128))}, "parts"),
        ({"parts": parts((6, 0, 1, 1, 0, 128))}, "parts"),
        ({"parts": parts((6, 3, 0, 1, 0, 128))}, "parts"),
        ({"parts": parts((6, 3, 1, 0, 0, 128))}, "parts"),
        ({"parts": parts((6, 3, 1, 1, 0, 256))}, "parts"),
        ({"parts": parts((6, 1 << 40, 1 << 40, 1, 0, 1))}, "parts"),
        ({"parts": parts((6, 3, 1, 1, (1 << 62) + 1, 1))}, "parts"),
        ({"parts": parts((3, 3, 1, 1, 3, 1), (3, 3, 1, 1, 0, 1))}, "parts"),
        ({"parts": parts((2**64 - 1, 3, 1, 1, 0, 1), (7, 3, 1, 1, 0, 1))}, "parts"),
        ({"tables": _tables()[:-1]}, "tables"),
        ({"tables": np.where(np.arange(STRETCH + SQUASH) == 9, 10_000, _tables())}, "tables"),
        ({"tables": np.where(np.arange(STRETCH + SQUASH) == 5000, 0, _tables())}, "tables"),
        ({"bits": memoryview(bytes(12))[::2]}, "buffer"),
    ],
)
def test_arguments_out_of_range(kernel: ModuleType, changed: dict[str, Any], error: str) -> None:
    arguments = GOOD | changed
    if isinstance(arguments["tables"], np.ndarray):
        arguments["tables"] = arguments["tables"].astype(np.int32)
    with pytest.raises(ValueError, match=f"^{error}$"):
        kernel.mixing_encode(**arguments)


@pytest.mark.parametrize("rows", [[(1 << 23) + 1], [1 << 23, 1]])
def test_blocks_have_a_largest_size(kernel: ModuleType, rows: list[int]) -> None:
    layout = parts(*((weights, 3, 1, 1, 0, 128) for weights in rows))
    with pytest.raises(ValueError, match=r"^parts$"):
        kernel.mixing_encode(bytes(sum(rows)), bytes(sum(rows)), layout, _tables())


def test_arguments_of_another_type(kernel: ModuleType) -> None:
    for name in GOOD:
        with pytest.raises(TypeError):
            kernel.mixing_encode(**GOOD | {name: "text"})
    with pytest.raises(ValueError, match="buffer"):
        kernel.mixing_decode(bytes(4), GOOD["buckets"], GOOD["parts"], GOOD["tables"], bytes(6))


def test_round_trip(kernel: ModuleType) -> None:
    data, ends = kernel.mixing_encode(**GOOD)
    assert len(ends) == 1
    assert len(data) == ends[0] + 4
    out = bytearray(6)
    kernel.mixing_decode(data, GOOD["buckets"], GOOD["parts"], GOOD["tables"], out)
    assert bytes(out) == GOOD["bits"]


def test_every_error_of_decoding(kernel: ModuleType) -> None:
    data, _ = kernel.mixing_encode(**GOOD)
    for damaged, error in (
        (data[:3], "too short"),
        (data + b"\0", "bytes left over"),
        (data[:-1] + bytes([data[-1] ^ 1]), "final state"),
    ):
        with pytest.raises(ValueError, match=error):
            kernel.mixing_decode(
                damaged, GOOD["buckets"], GOOD["parts"], GOOD["tables"], bytearray(6)
            )


def bits_decoded_from(data: bytes) -> list[int]:
    """What a decoder makes of data where ones have the probability 32767/65536."""
    bits, span, code, rest = [], 2**32 - 1, int.from_bytes(data[:4], "big"), list(data[4:])
    while rest:
        bound = (span >> 16) * 32767
        bits.append(int(code < bound))
        code, span = (code, bound) if bits[-1] else (code - bound, span - bound)
        while span < 1 << 24:
            code, span = (code << 8 | (rest.pop(0) if rest else 0)), span << 8
    return bits


@pytest.mark.parametrize("zeros", [5, 6, 7, 8, 50, 2000])
def test_carries_run_through_what_is_written(kernel: ModuleType, zeros: int) -> None:
    """The bits of 80 00 00 … are written as 7F FF FF … until a zero bit leads above it."""
    tables = _tables().copy()
    tables[STRETCH:] = 32767
    bits = bytes(bits_decoded_from(b"\x80" + bytes(zeros)) + [0] * 20)
    layout = parts((len(bits), len(bits), 1, 1, 0, 128))
    data, _ = kernel.mixing_encode(bits, bytes(len(bits)), layout, tables)
    assert data.startswith(b"\x80" + bytes(zeros - 4))
    out = bytearray(len(bits))
    kernel.mixing_decode(data, bytes(len(bits)), layout, tables, out)
    assert bytes(out) == bits


NUMBERS = st.integers(0, 9) | st.sampled_from([1 << 16, 1 << 31, 1 << 32, 1 << 62, 2**64 - 1])


@COMPILED
@settings(max_examples=300)
@given(
    rows=st.lists(st.tuples(*[NUMBERS] * 6), max_size=3),
    data=st.binary(max_size=40),
    weights=st.integers(0, 20),
)
def test_any_layout_ends_alike(
    kernel: ModuleType, rows: list[tuple[int, ...]], data: bytes, weights: int
) -> None:
    results = []
    for module in (kernel, twins):
        out = bytearray(weights)
        result = outcome(
            module, "mixing_decode", data, bytes(weights), parts(*rows), _tables(), out
        )
        results.append((result, bytes(out) if result[0] == "returned" else None))
    assert results[0] == results[1]


@COMPILED
@settings(max_examples=100)
@given(
    columns=st.sampled_from([1, 2, 5, 1 << 17, 1 << 40]),
    kernel_size=st.sampled_from([1, 9, 600, 1 << 20]),
    width=st.sampled_from([1, 3, 1 << 30]),
    first=st.integers(0, 50) | st.sampled_from([1 << 20, (1 << 62) - 1]),
    bits=st.lists(st.integers(0, 1), min_size=1, max_size=60),
)
def test_blocks_from_anywhere_are_coded_alike(
    kernel: ModuleType, columns: int, kernel_size: int, width: int, first: int, bits: list[int]
) -> None:
    layout = parts((len(bits), columns, kernel_size, width, first, 100))
    arguments = bytes(bits), bytes(i % 32 for i in range(len(bits))), layout, _tables()
    expected = twins.mixing_encode(*arguments)
    assert kernel.mixing_encode(*arguments) == expected
    out = bytearray(len(bits))
    kernel.mixing_decode(expected[0], *arguments[1:], out)
    assert list(out) == bits


def extreme_tables(least: int, most: int = 9999) -> NDArray[np.int32]:
    """The largest inputs that are allowed, up to `most`; weights reach their bounds, the lower ones
    if `most` is negative, if no prediction is sure."""
    stretch = np.where(np.arange(STRETCH) < STRETCH // 2, -most, most)
    squash = np.where(np.arange(SQUASH) < SQUASH // 2, least, 65536 - least)
    return np.append(stretch, squash).astype(np.int32)


@COMPILED
@pytest.mark.parametrize(
    ("columns", "kernel_size", "tables"),
    [
        (40, 1, _tables()),
        (3, 9, _tables()),
        (1, 9, _tables()),
        (1 << 15, 1, _tables()),
        (40, 1, extreme_tables(1)),
        (40, 1, extreme_tables(32_000)),
        (40, 1, extreme_tables(32_000, -9999)),
    ],
)
def test_long_blocks(
    kernel: ModuleType, columns: int, kernel_size: int, tables: NDArray[np.int32]
) -> None:
    """Counters reach their limits, and the rate of learning its last step."""
    random = np.random.default_rng(0)
    channels = -(-20_000 // (columns * kernel_size))  # which the next two parts know of
    first, linear = (20_000, columns, kernel_size, 3, 0, 40), (2 * channels, channels, 1, 1, 0, 40)
    depthwise = (18, 1, 9, 3, 0, 40)
    rows = np.array([first, linear, depthwise], np.uint64)
    count = int(rows[:, 0].sum())
    rare = random.random(count) < 0.1
    bits = (rare ^ (np.arange(count) > 10_000)).astype(np.uint8)
    buckets = random.integers(0, 32, count).astype(np.uint8)
    expected = twins.mixing_encode(bits, buckets, rows, tables)
    assert kernel.mixing_encode(bits, buckets, rows, tables) == expected
    out = np.empty(count, np.uint8)
    kernel.mixing_decode(expected[0], buckets, rows, tables, out)
    assert np.array_equal(out, bits)
