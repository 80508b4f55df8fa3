"""Both implementations of the kernels against the spec, each other and hostile input."""

from __future__ import annotations

import ctypes
import importlib
import mmap
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pemncodec import kernels
from pemncodec.coders.mixing import _tables
from pemncodec.kernels import twins
from pemncodec.kernels.generator_twin import philox_block

native: ModuleType | None
try:
    native = importlib.import_module("pemncodec.kernels._native")
except ImportError:
    native = None

needs_native = pytest.mark.skipif(native is None, reason="the C extension is not built")
U64 = st.integers(0, 2**64 - 1) | st.integers(0, 20) | st.integers(2**64 - 20, 2**64 - 1)
LANES = st.sampled_from([1, 8])
Frequencies = NDArray[np.uint32]


# The processor time of other threads than the first, while scores are ranked and given gradients.
THREADS_AT_WORK = """
import os, sys
from pathlib import Path
import numpy as np, torch
from pemncodec.masking.top_k import keep_largest, score_gradient

def others():
    ticks = 0
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) != os.getpid():
            ticks += sum(map(int, (task / "stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks

torch.set_num_threads(int(sys.argv[1]))
scores = torch.from_numpy(np.random.default_rng(0).standard_normal(1 << 22, np.float32))
kept = torch.tensor(1 << 20)
before = others()
with torch.no_grad():
    for _ in range(40):
        keep_largest(scores, scores, kept, True)
        score_gradient(scores, scores, scores, True)
print(others() - before)
"""


@st.composite
def frequency_tables(draw: st.DrawFn) -> Frequencies:
    used = draw(st.lists(st.integers(0, 255), min_size=1, max_size=256, unique=True))
    cuts = draw(
        st.lists(
            st.integers(1, 2**15 - 1), min_size=len(used) - 1, max_size=len(used) - 1, unique=True
        )
    )
    table = np.zeros(256, np.uint32)
    table[used] = np.diff([0, *sorted(cuts), 2**15])
    return table


@st.composite
def coded_symbols(draw: st.DrawFn) -> tuple[bytes, Frequencies, int]:
    table = draw(frequency_tables())
    count = draw(st.integers(0, 40) | st.integers(0, 3000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = table / 2**15 if draw(st.booleans()) else (table > 0) / np.count_nonzero(table)
    symbols = rng.choice(256, size=count, p=weights).astype(np.uint8)
    return symbols.tobytes(), table, draw(LANES)


def table_of(**counts: int) -> Frequencies:
    table = np.zeros(256, np.uint32)
    for name, count in counts.items():
        table[int(name[1:])] = count
    return table


def outcome(kernel: ModuleType, name: str, *arguments: object) -> tuple[str, object]:
    """What a call returned or raised, comparable between implementations."""
    try:
        return "returned", getattr(kernel, name)(*arguments)
    except (TypeError, ValueError) as error:
        return type(error).__name__, str(error) if isinstance(error, ValueError) else None


def words(kernel: ModuleType, count: int, seed: int, stream: int, start: int) -> list[int]:
    out = np.empty(count, np.uint32)
    kernel.philox4x32(out, seed, stream, start)
    return [int(word) for word in out]


# Philox


def philox_reference(seed: int, stream: int, index: int) -> int:
    low = 0xFFFFFFFF
    block = index // 4
    c = [block & low, block >> 32, stream & low, stream >> 32]
    k = [seed & low, seed >> 32]
    for _ in range(10):
        p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [q >> 32 ^ c[1] ^ k[0], q & low, p >> 32 ^ c[3] ^ k[1], p & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c[index % 4]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_block_matches_random123(
    counter: list[int], key: tuple[int, int], expected: list[int]
) -> None:
    column = np.array(counter, np.uint64)[:, None]
    assert philox_block(column, key).tolist() == [expected]


def test_philox_first_block_matches_random123(kernel: ModuleType) -> None:
    assert words(kernel, 4, 0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("start", [0, 1, 2**32 - 3, 2**34 - 5, 2**34, 2**63 - 7, 2**64 - 600])
def test_philox_matches_reference(kernel: ModuleType, start: int) -> None:
    seed, stream = 0xFEDCBA9876543210, 0x0123456789ABCDEF
    expected = [philox_reference(seed, stream, start + i) for i in range(600)]
    assert words(kernel, 600, seed, stream, start) == expected


def test_philox_crosses_chunks(kernel: ModuleType) -> None:
    count = 3 * 2**15 + 5
    got = words(kernel, count, 5, 6, 7)
    for i in [*range(0, count, 997), *range(2**15 - 10, 2**15 + 10), count - 1]:
        assert got[i] == philox_reference(5, 6, 7 + i)


def test_philox_stream_ends_at_the_last_word(kernel: ModuleType) -> None:
    last = 2**64 - 1
    assert words(kernel, 1, 1, 2, last) == [philox_reference(1, 2, last)]
    assert words(kernel, 0, 1, 2, last) == []
    with pytest.raises(ValueError, match=r"^start$"):
        words(kernel, 2, 1, 2, last)


@pytest.mark.parametrize("position", [1, 2, 3])
@pytest.mark.parametrize("value", [-1, 2**64, -(2**70)])
def test_philox_refuses_numbers_out_of_range(kernel: ModuleType, position: int, value: int) -> None:
    arguments: list[object] = [bytearray(4), 0, 0, 0]
    arguments[position] = value
    with pytest.raises(ValueError, match=f"^{('seed', 'stream', 'start')[position - 1]}$"):
        kernel.philox4x32(*arguments)


def test_philox_refuses_part_of_a_word(kernel: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"^out$"):
        kernel.philox4x32(bytearray(7), 0, 0, 0)


@needs_native
@given(st.integers(0, 700), U64, U64, U64)
def test_philox_implementations_agree(count: int, seed: int, stream: int, start: int) -> None:
    assert native is not None
    ours, theirs = bytearray(4 * count), bytearray(4 * count)
    result = outcome(native, "philox4x32", ours, seed, stream, start)
    assert result == outcome(twins, "philox4x32", theirs, seed, stream, start)
    assert ours == theirs


# rANS


def rans_encode_reference(symbols: bytes, table: Frequencies, lanes: int) -> bytes:
    states, emitted = [2**16] * lanes, []
    for i in reversed(range(len(symbols))):
        f, c = int(table[symbols[i]]), int(table[: symbols[i]].sum())
        x = states[i % lanes]
        if x >= f << 17:
            emitted.append(x & 0xFFFF)
            x >>= 16
        states[i % lanes] = (x // f << 15) + x % f + c
    return struct.pack(f"<{lanes}I{len(emitted)}H", *states, *reversed(emitted))


RANS = ("rans_decode", "rans_decode_first")


def decoded(kernel: ModuleType, data: bytes, table: Frequencies, lanes: int, count: int) -> bytes:
    out = bytearray(b"\xaa" * (count + 64))
    kernel.rans_decode(data, table, lanes, memoryview(out)[32 : 32 + count])
    assert out[:32] == out[32 + count :] == b"\xaa" * 32
    return bytes(out[32 : 32 + count])


@pytest.mark.parametrize(
    ("lanes", "times", "expected"),
    [
        (1, 1, "90481f010000b39d"),
        (
            8,
            3,
            "f3871000810108000080ee420000bb8bb39d2200fd8b21001c022200fd8b21000000008000000000",
        ),
    ],
)
def test_rans_bytes_are_those_of_the_format(
    kernel: ModuleType, lanes: int, times: int, expected: str
) -> None:
    table = table_of(_3=1, _7=1000, _200=2**15 - 1001)
    symbols = bytes([200, 7, 3, 3, 200, 200, 7]) * times
    coded = kernel.rans_encode(symbols, table, lanes)
    assert coded.hex() == expected
    assert decoded(kernel, coded, table, lanes, len(symbols)) == symbols


@settings(deadline=None)
@given(case=coded_symbols())
def test_rans_round_trip_and_reference(
    kernel: ModuleType, case: tuple[bytes, Frequencies, int]
) -> None:
    symbols, table, lanes = case
    coded = kernel.rans_encode(symbols, table, lanes)
    assert coded == rans_encode_reference(symbols, table, lanes)
    assert decoded(kernel, coded, table, lanes, len(symbols)) == symbols


@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("count", [*range(40), 1000, 1001, 1007])
def test_rans_any_number_of_symbols(kernel: ModuleType, lanes: int, count: int) -> None:
    table = table_of(_0=1, _1=2**14, _2=3, _255=2**14 - 4)
    symbols = bytes(random.Random(count).choices([0, 1, 2, 255], [1, 60, 1, 60], k=count))
    coded = kernel.rans_encode(symbols, table, lanes)
    assert coded == rans_encode_reference(symbols, table, lanes)
    assert decoded(kernel, coded, table, lanes, len(symbols)) == symbols


@pytest.mark.parametrize("lanes", [1, 8])
def test_rans_the_first_symbols(kernel: ModuleType, lanes: int) -> None:
    table = table_of(_0=2, _1=2**14, _2=3, _255=2**14 - 5)
    symbols = bytes(random.Random(0).choices([0, 1, 2, 255], [1, 60, 1, 60], k=1001))
    coded = kernel.rans_encode(symbols, table, lanes)
    for count in (*range(3 * lanes + 1), *range(980, 1002)):
        out = bytearray(b"\xaa" * (count + 64))
        kernel.rans_decode_first(coded, table, lanes, memoryview(out)[32 : 32 + count])
        assert out == b"\xaa" * 32 + symbols[:count] + b"\xaa" * 32
    with pytest.raises(ValueError, match=r"^too short$"):
        kernel.rans_decode_first(coded, table, lanes, bytearray(1100))
    with pytest.raises(ValueError, match=r"^too short$"):
        kernel.rans_decode_first(coded[: 4 * lanes + 10], table, lanes, bytearray(500))


@pytest.mark.parametrize("lanes", [1, 8])
def test_rans_single_symbol_takes_no_words(kernel: ModuleType, lanes: int) -> None:
    table = table_of(_9=2**15)
    coded = kernel.rans_encode(b"\x09" * 5000, table, lanes)
    assert coded == struct.pack("<I", 2**16) * lanes
    assert decoded(kernel, coded, table, lanes, 5000) == b"\x09" * 5000


@pytest.mark.parametrize("lanes", [1, 8])
def test_rans_without_symbols(kernel: ModuleType, lanes: int) -> None:
    table = table_of(_0=2**14, _1=2**14)
    coded = kernel.rans_encode(b"", table, lanes)
    assert coded == struct.pack("<I", 2**16) * lanes
    assert decoded(kernel, coded, table, lanes, 0) == b""


def test_rans_every_frequency_divides_exactly(kernel: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for frequency in [*range(1, 40), *(2**k + d for k in range(6, 15) for d in (-1, 0, 1)), 2**15]:
        table = table_of(_1=frequency, _2=2**15 - frequency)
        symbols = (1 + (rng.random(400) * 2**15 >= frequency)).astype(np.uint8).tobytes()
        symbols += b"\x01" * 40
        coded = kernel.rans_encode(symbols, table, 1)
        assert coded == rans_encode_reference(symbols, table, 1)


@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_rans_refuses_symbol_without_frequency(kernel: ModuleType, lanes: int, count: int) -> None:
    table = table_of(_0=2**14, _255=2**14)
    for position in {0, count // 2, count - 1}:
        symbols = bytearray(count)
        symbols[position] = 1
        with pytest.raises(ValueError, match=r"^symbol without frequency$"):
            kernel.rans_encode(symbols, table, lanes)


@pytest.mark.parametrize("lanes", [0, 2, 7, 9, 64, 2**32 + 8, -1, 2**64, -(2**64)])
def test_rans_refuses_lanes(kernel: ModuleType, lanes: int) -> None:
    table = table_of(_0=2**15)
    with pytest.raises(ValueError, match=r"^lanes$"):
        kernel.rans_encode(b"", table, lanes)
    with pytest.raises(ValueError, match=r"^lanes$"):
        kernel.rans_decode(bytes(400), table, lanes, bytearray())


@pytest.mark.parametrize(
    "table",
    [
        np.zeros(256, np.uint32),
        table_of(_0=2**15 - 1),
        table_of(_0=2**15, _1=1),
        table_of(_0=2**32 - 1, _1=2**15 + 1),
        table_of(_0=2**31, _1=2**31, _2=2**15),
        table_of(_0=2**15)[:255],
        np.append(table_of(_0=2**15), np.uint32(0)),
        table_of(_0=2**15).astype(np.uint16),
        b"",
    ],
)
def test_rans_refuses_frequencies(kernel: ModuleType, table: object) -> None:
    with pytest.raises(ValueError, match=r"^frequencies$"):
        kernel.rans_encode(b"\0", table, 8)
    with pytest.raises(ValueError, match=r"^frequencies$"):
        kernel.rans_decode(struct.pack("<I", 2**16), table, 1, bytearray(1))


@pytest.mark.parametrize("lanes", [1, 8])
def test_rans_names_what_is_wrong_with_data(kernel: ModuleType, lanes: int) -> None:
    table = table_of(_0=2**14, _1=2**14)
    symbols = bytes(random.Random(0).choices([0, 1], k=4096))
    coded = kernel.rans_encode(symbols, table, lanes)
    out = bytearray(len(symbols))

    def refused(message: str, data: bytes) -> None:
        with pytest.raises(ValueError, match=f"^{message}$"):
            kernel.rans_decode(data, table, lanes, out)

    refused("too short", b"")
    refused("too short", coded[: 4 * lanes - 1])
    refused("too short", coded[: 4 * lanes])
    for missing in range(2, len(coded) - 4 * lanes, 2):
        refused("too short", coded[:-missing])
    refused("odd length", coded[:-1])
    refused("odd length", coded + b"\0")
    refused("words left over", coded + b"\0\0")
    refused("words left over", coded + bytes(1000))
    for lane in {0, lanes // 2, lanes - 1}:
        state = struct.pack("<I", 2**16 - 1)
        refused("initial state out of range", coded[: 4 * lane] + state + coded[4 * lane + 4 :])
    single = struct.pack("<I", 2**16) * (lanes - 1) + struct.pack("<I", 2**16 + 1)
    with pytest.raises(ValueError, match=r"^final state$"):
        kernel.rans_decode(single, table_of(_0=2**15), lanes, bytearray(100))
    with pytest.raises(ValueError, match=r"^final state$"):
        kernel.rans_decode(single, table, lanes, bytearray())


def test_rans_one_symbol_too_few_or_many(kernel: ModuleType) -> None:
    table = table_of(_0=100, _1=2**15 - 100)
    for lanes in (1, 8):
        coded = kernel.rans_encode(bytes([0, 1, 1]) * 100, table, lanes)
        for count in (0, 1, 299, 301, 1000):
            with pytest.raises(ValueError, match=r"^(too short|words left over|final state)$"):
                kernel.rans_decode(coded, table, lanes, bytearray(count))


@needs_native
@pytest.mark.parametrize("lanes", [1, 8])
def test_rans_words_that_end_too_early(lanes: int) -> None:
    """Every symbol asks for a word, but for the first of lane 0: nothing reads further ahead."""
    table = table_of(_0=1, _1=2**15 - 1)
    states = struct.pack("<I", 2**31) + struct.pack("<I", 2**16) * (lanes - 1)
    assert native is not None
    for words in range(3 * lanes):
        for count in range(5 * lanes):
            for name in RANS:
                call = name, states + bytes(2 * words), table, lanes, bytearray(count)
                assert outcome(native, *call) == outcome(twins, *call)


@needs_native
@settings(deadline=None, max_examples=300)
@given(coded_symbols(), st.data())
def test_rans_damaged_data_gives_the_same_outcome(
    case: tuple[bytes, Frequencies, int], draw: st.DataObject
) -> None:
    symbols, table, lanes = case
    coded = bytearray(twins.rans_encode(symbols, table, lanes))
    for _ in range(draw.draw(st.integers(0, 3))):
        coded[draw.draw(st.integers(0, len(coded) - 1))] = draw.draw(st.integers(0, 255))
    damaged = bytes(coded[: draw.draw(st.integers(0, len(coded)) | st.just(len(coded)))])
    damaged += draw.draw(st.binary(max_size=6))
    count = draw.draw(st.just(len(symbols)) | st.integers(0, 3000))
    assert native is not None
    for name in RANS:
        ours, theirs = bytearray(count), bytearray(count)
        result = outcome(native, name, damaged, table, lanes, ours)
        assert result == outcome(twins, name, damaged, table, lanes, theirs)
        assert result[0] != "returned" or ours == theirs


@needs_native
@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=700), frequency_tables(), LANES, st.integers(0, 2000))
def test_rans_random_data_gives_the_same_outcome(
    data: bytes, table: Frequencies, lanes: int, count: int
) -> None:
    valid_states = struct.pack("<I", 2**17 + 5) * lanes + data
    assert native is not None
    for source in (data, valid_states):
        for name in RANS:
            result = outcome(native, name, source, table, lanes, bytearray(count))
            assert result == outcome(twins, name, source, table, lanes, bytearray(count))


# expand


def expand_reference(values: bytes, itemsize: int, offset: int, mask: bytes, count: int) -> bytes:
    period = len(values) // itemsize
    out = bytearray(count * itemsize)
    for i in range(count):
        if mask[i // 8] >> i % 8 & 1:
            at = (offset + i) % period * itemsize
            out[i * itemsize : (i + 1) * itemsize] = values[at : at + itemsize]
    return bytes(out)


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("period", [1, 3, 8, 17, 1000, 40000])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 70001])
def test_expand_matches_reference(
    kernel: ModuleType, itemsize: int, period: int, count: int
) -> None:
    rng = random.Random(count)
    values, mask = rng.randbytes(period * itemsize), rng.randbytes(-(-count // 8))
    for offset in {0, period // 2, period - 1}:
        out = bytearray(b"\xaa" * (count * itemsize + 32))
        kernel.expand(values, itemsize, offset, mask, memoryview(out)[16:-16], 0, 1)
        assert out[16:-16] == expand_reference(values, itemsize, offset, mask, count)
        assert out[:16] == out[-16:] == b"\xaa" * 16


@settings(deadline=None)
@given(
    itemsize=st.sampled_from([1, 2, 4, 8, 16]),
    period=st.integers(1, 300) | st.integers(500, 9000),
    count=st.integers(0, 3000),
    seed=st.integers(0, 2**32 - 1),
)
def test_expand_matches_reference_at_random(
    kernel: ModuleType, itemsize: int, period: int, count: int, seed: int
) -> None:
    rng = random.Random(seed)
    values, mask = rng.randbytes(period * itemsize), rng.randbytes(-(-count // 8))
    offset = rng.randrange(period)
    expected = expand_reference(values, itemsize, offset, mask, count)
    out = bytearray(count * itemsize)
    kernel.expand(values, itemsize, offset, mask, out, 0, 1)
    assert out == expected


@pytest.mark.parametrize(
    ("message", "values", "itemsize", "offset", "mask", "out"),
    [
        ("itemsize", 16, 0, 0, 1, 8),
        ("itemsize", 15, 3, 0, 1, 24),
        ("itemsize", 32, 32, 0, 1, 32),
        ("itemsize", 16, -1, 0, 1, 8),
        ("itemsize", 16, 2**64, 0, 1, 8),
        ("values", 0, 1, 0, 1, 8),
        ("values", 5, 4, 0, 1, 32),
        ("values", 3, 4, 0, 1, 32),
        ("offset", 8, 4, 2, 1, 32),
        ("offset", 8, 4, -1, 1, 32),
        ("offset", 8, 4, 2**63, 1, 32),
        ("offset", 8, 4, 2**64, 1, 32),
        ("out", 8, 4, 0, 1, 31),
        ("mask", 8, 4, 0, 0, 32),
        ("mask", 8, 4, 0, 2, 32),
        ("mask", 8, 4, 0, 1, 36),
        ("mask", 8, 4, 0, 1, 0),
    ],
)
def test_expand_refuses(
    kernel: ModuleType, message: str, values: int, itemsize: int, offset: int, mask: int, out: int
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        kernel.expand(bytes(values), itemsize, offset, bytes(mask), bytearray(out), 0, 1)


@pytest.mark.parametrize(
    ("read_next", "threads", "message"),
    [(2, 1, "read_next"), (-1, 1, "read_next"), (0, 0, "threads"), (1, -1, "threads")],
)
def test_expand_refuses_how(kernel: ModuleType, read_next: int, threads: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        kernel.expand(bytes(4), 4, 0, b"\xff", bytearray(32), read_next, threads)


@pytest.mark.parametrize("read_next", [0, 1])
@pytest.mark.parametrize("threads", [1, 2, 3, 1 << 40])
@pytest.mark.parametrize("count", [65_535, 65_537, 5 * 65_536 + 9])
def test_expand_in_parts(kernel: ModuleType, count: int, threads: int, read_next: int) -> None:
    rng = np.random.default_rng(count)
    values = rng.standard_normal(5003, np.float32)
    mask, out = rng.integers(0, 256, -(-count // 8), np.uint8), np.ones(count, np.float32)
    kernel.expand(values, 4, 77, mask, out, read_next, threads)
    kept = np.unpackbits(mask, count=count, bitorder="little") == 1
    assert np.array_equal(out, np.where(kept, values[(77 + np.arange(count)) % 5003], 0))


# Arguments


# --------------------------------------------------------------------------------- quantiles


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_quantiles_are_looked_up_by_the_upper_bits(kernel: ModuleType, count: int) -> None:
    source = np.array(words(kernel, count, 1, 2, 3), np.uint32)
    table = np.arange(4096, dtype=np.float32)
    out = np.empty(count, np.float32)
    kernel.quantiles(source, table, out)
    assert out.tolist() == (source >> 20).tolist()
    kernel.quantiles(source, table, source)
    assert source.view(np.float32).tolist() == out.tolist()


@settings(deadline=None)
@given(
    st.integers(0, 2000) | st.sampled_from([65_535, 65_544, 270_003]),
    U64,
    U64,
    U64,
    st.integers(0, 2**32 - 1),
)
def test_expand_normal_is_made_of_the_others(
    kernel: ModuleType, count: int, seed: int, stream: int, start: int, mask_seed: int
) -> None:
    mask = random.Random(mask_seed).randbytes(-(-count // 8))
    table = np.arange(1, 4097, dtype=np.uint32)
    memory = bytearray(b"\xaa" * (4 * count + 64))
    arguments = (seed, stream, start, table, mask, memoryview(memory)[32 : 32 + 4 * count])
    if count and start + count > 2**64:
        with pytest.raises(ValueError, match=r"^start$"):
            kernel.expand_normal(*arguments)
        return
    kernel.expand_normal(*arguments)
    assert memory[:32] == memory[32 + 4 * count :] == b"\xaa" * 32
    words = np.empty(count, np.uint32)
    twins.philox4x32(words, seed, stream, start)
    ones = np.unpackbits(np.frombuffer(mask, np.uint8), count=count, bitorder="little")
    made = np.frombuffer(memory[32 : 32 + 4 * count], np.uint32)
    assert np.array_equal(made, ((words >> 20) + 1) * ones)


def test_expand_normal_refuses(kernel: ModuleType) -> None:
    table = bytes(4 * 4096)
    for arguments, message in (
        ((-1, 0, 0, table, b"\0", bytearray(32)), "seed"),
        ((0, 2**64, 0, table, b"\0", bytearray(32)), "stream"),
        ((0, 0, -1, table, b"\0", bytearray(32)), "start"),
        ((0, 0, 2**64 - 7, table, b"\0", bytearray(32)), "start"),
        ((0, 0, 0, table[:-4], b"\0", bytearray(32)), "table"),
        ((0, 0, 0, table, b"\0", bytearray(31)), "out"),
        ((0, 0, 0, table, b"", bytearray(32)), "mask"),
        ((0, 0, 0, table, b"\0\0", bytearray(32)), "mask"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            kernel.expand_normal(*arguments)


def test_quantiles_refuses(kernel: ModuleType) -> None:
    table = np.zeros(4096, np.float32)
    for message, sizes in (
        ("words", (7, table, 7)),
        ("table", (8, table[:-1], 8)),
        ("out", (8, table, 4)),
        ("out", (8, table, 9)),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            kernel.quantiles(bytes(sizes[0]), sizes[1], bytearray(sizes[2]))


# -------------------------------------------------------------------------------------- runs


def runs_reference(bits: list[int], longest: int) -> bytes:
    runs, run = [], 0
    for bit in bits:
        if bit:
            runs.append(run)
            run = 0
        elif (run := run + 1) == longest:
            runs.append(longest)
            run = 0
    return bytes(runs + [longest] * (run > 0))


@given(bits=st.lists(st.integers(0, 1), max_size=300) | st.integers(0, 900).map(lambda n: [0] * n),
       longest=st.integers(1, 255) | st.integers(1, 9))  # fmt: skip
def test_runs_round_trip_and_reference(kernel: ModuleType, bits: list[int], longest: int) -> None:
    mask = np.packbits(np.array(bits, np.uint8), bitorder="little")
    runs = kernel.runs_encode(mask, len(bits), longest)
    assert runs == runs_reference(bits, longest)
    out = np.full(mask.size, 0xFF, np.uint8)
    kernel.runs_decode(runs, longest, len(bits), out)
    assert out.tolist() == mask.tolist()


@pytest.mark.parametrize("count", [1, 7, 9, 63, 65, 127])
def test_runs_ignore_bits_behind_the_mask(kernel: ModuleType, count: int) -> None:
    mask = bytearray(-(-count // 8))
    expected = kernel.runs_encode(mask, count, 9)
    mask[-1] = 0xFF << count % 8 & 0xFF
    assert kernel.runs_encode(mask, count, 9) == expected == runs_reference([0] * count, 9)


@needs_native
@given(runs=st.binary(max_size=40), longest=st.integers(1, 255), count=st.integers(0, 400))
def test_any_runs_give_the_same_outcome(runs: bytes, longest: int, count: int) -> None:
    results = []
    for module in (native, twins):
        out = bytearray(-(-count // 8))
        problem = outcome(module, "runs_decode", runs, longest, count, out)
        results.append((problem, None if problem else out))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("message", "runs", "longest", "count", "size"),
    [
        ("longest", b"", 0, 0, 0),
        ("longest", b"", 256, 0, 0),
        ("count", b"", 1, -1, 0),
        ("out", b"", 1, 8, 2),
        ("out", b"", 1, 2**64 - 1, 2),
        ("run too long", b"\4", 3, 8, 1),
        ("one behind the end", b"\2", 3, 2, 1),
        ("runs left over", b"\1\1", 3, 2, 1),
        ("runs left over", b"\0", 3, 0, 0),
        ("runs missing", b"\3", 3, 8, 1),
    ],
)
def test_runs_decode_refuses(
    kernel: ModuleType, message: str, runs: bytes, longest: int, count: int, size: int
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        kernel.runs_decode(runs, longest, count, bytearray(size))


# -------------------------------------------------------------------------------------- top_k

VALUES = st.lists(st.floats(allow_nan=False, width=32) | st.sampled_from([-0.0, 0.0, 1.0, -1.0]))


@given(VALUES, st.data())
def test_top_k_is_that_of_a_stable_sort(
    kernel: ModuleType, values: list[float], data: st.DataObject
) -> None:
    kept = data.draw(st.integers(0, len(values)))
    order = sorted(range(len(values)), key=lambda index: values[index])
    out = np.full(len(values), 7, np.uint8)
    kernel.top_k(np.array(values, np.float32), kept, out)
    assert set(np.flatnonzero(out)) == set(order[len(values) - kept :])
    assert out.sum() == kept


@given(st.binary(max_size=400), st.data())
def test_top_k_of_any_bits_ends(kernel: ModuleType, raw: bytes, data: st.DataObject) -> None:
    values = raw[: len(raw) // 4 * 4]
    out = np.full(len(values) // 4, 7, np.uint8)
    kernel.top_k(values, data.draw(st.integers(0, out.size)), out)
    assert out.size == 0 or out.max() <= 1


def test_top_k_refuses(kernel: ModuleType) -> None:
    for arguments, message in (
        ((bytes(12), 1, bytearray(4)), "values"),
        ((bytes(15), 1, bytearray(4)), "values"),
        ((bytes(16), 5, bytearray(4)), "kept"),
        ((bytes(16), -1, bytearray(4)), "kept"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            kernel.top_k(*arguments)


def kept_largest(
    kernel: ModuleType, scores: NDArray[np.float32], magnitude: int, kept: int, threads: int = 1
) -> NDArray[np.uint32]:
    """Indices, from 1, of what is kept; 0 elsewhere."""
    out = np.full(scores.size, 7, np.uint32)
    values = np.arange(1, scores.size + 1, dtype=np.uint32)
    kernel.keep_largest(scores, magnitude, kept, values, out, threads)
    return out


def expected_largest(scores: NDArray[np.float32], magnitude: int, kept: int) -> NDArray[np.uint32]:
    order = np.argsort(np.abs(scores) if magnitude else scores, kind="stable")
    out = np.zeros(scores.size, np.uint32)
    out[order[scores.size - kept :]] = order[scores.size - kept :] + 1
    return out


@given(VALUES, st.integers(0, 1), st.data())
def test_keep_largest_is_that_of_a_stable_sort(
    kernel: ModuleType, values: list[float], magnitude: int, data: st.DataObject
) -> None:
    scores = np.array(values, np.float32)
    kept = data.draw(st.integers(0, len(values)))
    expected = expected_largest(scores, magnitude, kept)
    assert np.array_equal(kept_largest(kernel, scores, magnitude, kept), expected)


def column_pattern(size: int) -> NDArray[np.float32]:
    return np.tile(np.linspace(-1, 1, 512, dtype=np.float32), -(-size // 512))[:size]


@pytest.mark.parametrize("size", [63, 64, 65, 4097, (1 << 17) - 1, 1 << 17, 300_001])
@pytest.mark.parametrize(
    "make",
    [
        lambda size: np.random.default_rng(size).standard_normal(size, np.float32),
        lambda size: np.random.default_rng(size).integers(-3, 4, size).astype(np.float32),
        lambda size: np.where(np.arange(size) < size // 2, np.float32(-1), np.float32(1)),
        lambda size: np.linspace(-1, 1, size, dtype=np.float32),
        lambda size: np.where(np.arange(size) % 1001, np.float32(0.5), np.float32(-1e-40)),
        column_pattern,
    ],
)
def test_keep_largest_of_large_tensors(
    kernel: ModuleType, make: Callable[[int], NDArray[np.float32]], size: int
) -> None:
    scores = make(size)
    for magnitude in (0, 1):
        for kept in {0, 1, size // 1000, size // 5, size // 2, size - 1, size}:
            expected = expected_largest(scores, magnitude, kept)
            assert np.array_equal(kept_largest(kernel, scores, magnitude, kept), expected)


@pytest.mark.parametrize("threads", [2, 3, 1 << 40])
@pytest.mark.parametrize(
    "make",
    [
        lambda size: np.random.default_rng(size).standard_normal(size, np.float32),
        lambda size: np.random.default_rng(size).integers(-3, 4, size).astype(np.float32),
        lambda size: np.where(np.arange(size) % 1001, np.float32(0.5), np.float32(-1e-40)),
    ],
)
def test_keep_largest_by_threads(
    kernel: ModuleType, make: Callable[[int], NDArray[np.float32]], threads: int
) -> None:
    scores = make(3 * (1 << 21) + 65)
    expected = expected_largest(scores, 1, scores.size // 3)
    assert np.array_equal(kept_largest(kernel, scores, 1, scores.size // 3, threads), expected)


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="other builds of torch have other runtimes")
def test_the_process_has_the_threads_of_torch() -> None:
    assert hasattr(ctypes.CDLL(None), "GOMP_parallel")


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="processor time by thread is of Linux")
@pytest.mark.parametrize("threads", [1, 2])
def test_training_uses_the_threads_of_torch(threads: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", THREADS_AT_WORK, str(threads)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (int(result.stdout) > 0) == (threads > 1)


@pytest.mark.parametrize("magnitude", [0, 1])
def test_keep_largest_of_subnormal_scores_is_the_same_for_any_threads(
    kernel: ModuleType, magnitude: int
) -> None:
    scores = np.random.default_rng(0).integers(-5, 5, 1 << 20).astype(np.float32)
    expected = expected_largest(scores, magnitude, 1 << 18)
    scores *= np.float32(1e-42)
    torch.ones(1 << 22).add_(1)  # threads that are there already keep their own mode
    flushes = torch.set_flush_denormal(True)
    try:
        results = [kept_largest(kernel, scores, magnitude, 1 << 18, n) for n in (1, 2)]
    finally:
        torch.set_flush_denormal(False)
    assert np.array_equal(results[0], results[1])
    if not (kernel is twins and flushes):
        assert np.array_equal(results[0], expected)


def test_kernels_of_training_take_unaligned_memory(kernel: ModuleType) -> None:
    size = 100_001
    random = np.random.default_rng(0)
    scores, gradient, values = random.standard_normal((3, size), np.float32)
    shifted = [np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:] for a in (scores, gradient, values)]
    kept, product = np.zeros(4 * size + 1, np.uint8)[1:], np.zeros(4 * size + 1, np.uint8)[1:]
    kernel.keep_largest(shifted[0], 1, size // 3, shifted[2], kept, 2)
    kernel.magnitude_gradient(shifted[1], shifted[2], shifted[0], product, 2)
    mask = expected_largest(scores, 1, size // 3) > 0
    assert kept.tobytes() == np.where(mask, values, np.float32(0)).tobytes()
    assert product.tobytes() == (gradient * values * np.sign(scores)).tobytes()


@given(st.binary(max_size=400), st.integers(0, 1), st.data())
def test_keep_largest_of_any_bits_ends(
    kernel: ModuleType, raw: bytes, magnitude: int, data: st.DataObject
) -> None:
    scores = np.frombuffer(raw[: len(raw) // 4 * 4], np.float32)
    kept = data.draw(st.integers(0, scores.size))
    out = kept_largest(kernel, scores, magnitude, kept)
    assert np.count_nonzero(out) <= kept
    assert ((out == 0) | (out == np.arange(1, scores.size + 1))).all()


def test_keep_largest_refuses(kernel: ModuleType) -> None:
    for arguments, message in (
        ((bytes(15), 1, 1, bytes(15), bytearray(15), 1), "scores"),
        ((bytes(16), 2, 1, bytes(16), bytearray(16), 1), "magnitude"),
        ((bytes(16), 1, 5, bytes(16), bytearray(16), 1), "kept"),
        ((bytes(16), 1, -1, bytes(16), bytearray(16), 1), "kept"),
        ((bytes(16), 1, 1, bytes(12), bytearray(16), 1), "values"),
        ((bytes(16), 1, 1, bytes(16), bytearray(12), 1), "out"),
        ((bytes(16), 1, 1, bytes(16), bytearray(16), 0), "threads"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            kernel.keep_largest(*arguments)


@given(st.lists(st.tuples(*[st.floats(width=32)] * 3)))
def test_magnitude_gradient(kernel: ModuleType, triples: list[tuple[float, ...]]) -> None:
    gradient, values, scores = np.array(triples, np.float32).reshape(-1, 3).T.copy()
    out = np.full(gradient.size, 7, np.float32)
    kernel.magnitude_gradient(gradient, values, scores, out, 1)
    with np.errstate(all="ignore"):
        expected = gradient * values * np.nan_to_num(np.sign(scores))
    assert np.array_equal(out, expected, equal_nan=True)
    ordinary = ~np.isnan(out)
    assert np.array_equal(np.signbit(out[ordinary]), np.signbit(expected[ordinary]))


@pytest.mark.parametrize("size", [65, 150_001, 3 * (1 << 21) + 65])
@pytest.mark.parametrize("threads", [1, 2, 3, 1 << 40])
def test_magnitude_gradient_in_parts(kernel: ModuleType, size: int, threads: int) -> None:
    gradient, values, scores = np.random.default_rng(0).standard_normal((3, size), np.float32)
    expected = gradient * values * np.sign(scores)
    kernel.magnitude_gradient(gradient, values, scores, gradient, threads)
    assert np.array_equal(gradient, expected)


def test_magnitude_gradient_refuses(kernel: ModuleType) -> None:
    for sizes, message in (
        ((15, 15, 15, 15), "gradient"),
        ((16, 12, 16, 16), "values"),
        ((16, 16, 12, 16), "scores"),
        ((16, 16, 16, 12), "out"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            kernel.magnitude_gradient(*map(bytearray, sizes), 1)
    with pytest.raises(ValueError, match=r"^threads$"):
        kernel.magnitude_gradient(*map(bytearray, (16, 16, 16, 16)), 0)


# ------------------------------------------------------------- words and values of torch's CPU


@pytest.mark.parametrize("seed", [0, 5489, 2**32 - 1])
@pytest.mark.parametrize("skip", [0, 1, 623])
def test_mersenne_words_are_those_of_numpy(kernel: ModuleType, seed: int, skip: int) -> None:
    theirs = np.random.MT19937()
    theirs._legacy_seeding(seed)  # type: ignore[attr-defined]
    expected = theirs.random_raw(3 * 624 + skip + 700).astype(np.uint32)[3 * 624 + skip :]
    state, out = np.empty(624, np.uint32), np.empty(700, np.uint32)
    kernel.mersenne_seed(seed, state)
    kernel.mersenne_advance(state, 3)
    before = state.copy()
    kernel.mersenne_words(state, skip, out)
    assert np.array_equal(out, expected)
    assert np.array_equal(state, before)


@given(st.binary(min_size=2496, max_size=2496), st.integers(0, 623), st.integers(0, 1300))
def test_mersenne_words_of_any_state_agree(
    kernel: ModuleType, state: bytes, skip: int, count: int
) -> None:
    ours, theirs = np.empty(count, np.uint32), np.empty(count, np.uint32)
    kernel.mersenne_words(state, skip, ours)
    twins.mersenne_words(state, skip, theirs)
    assert np.array_equal(ours, theirs)


@given(st.binary(min_size=2496, max_size=2496), st.integers(0, 3))
def test_mersenne_rewind_undoes_advance(kernel: ModuleType, given: bytes, blocks: int) -> None:
    state = np.frombuffer(given, np.uint32).copy()
    twins.mersenne_advance(state, blocks)
    assert kernel.mersenne_rewind(state, blocks) == -1
    # Of the first word only the highest bit is part of a state.
    assert np.array_equal(state[1:], np.frombuffer(given, np.uint32)[1:])
    assert (state[0] ^ int.from_bytes(given[:4], sys.byteorder)) >> 31 == 0 or blocks == 0


@pytest.mark.parametrize("back", [1, 226, 228, 229, 396, 397, 398, 623, 624, 625, 1248, 3001])
def test_mersenne_rewind_stops_at_a_seed(kernel: ModuleType, back: int) -> None:
    seeding, blocks = np.empty(624, np.uint32), -(-back // 624)
    twins.mersenne_seed(5489, seeding)
    words = [seeding.copy()]
    for _ in range(blocks + 1):
        words.append(words[-1].copy())
        twins.mersenne_advance(words[-1], 1)
    given = np.concatenate(words)[back : back + 624]
    state = given.copy()
    assert kernel.mersenne_rewind(state, blocks - 1) == -1
    state = given.copy()
    assert kernel.mersenne_rewind(state, blocks + 5) == back
    assert np.array_equal(state[1:], seeding[1:])
    assert (state[0] ^ seeding[0]) >> 31 == 0


def test_mersenne_rewind_takes_no_part_of_a_seeding_for_one(kernel: ModuleType) -> None:
    """What looks like the words of a seed but for one, at either end or inside."""
    for wrong in (2, 300, 623):
        words = np.empty(624, np.uint32)
        twins.mersenne_seed(7, words)
        words[wrong] ^= np.uint32(2)
        twins.mersenne_advance(words, 1)
        assert kernel.mersenne_rewind(words, 2) == -1


def test_mersenne_refuses(kernel: ModuleType) -> None:
    state = bytearray(4 * 624)
    for name, arguments, message in (
        ("mersenne_seed", (-1, state), "seed"),
        ("mersenne_seed", (2**32, state), "seed"),
        ("mersenne_seed", (1, state[:-4]), "out"),
        ("mersenne_advance", (state[:-4], 1), "state"),
        ("mersenne_advance", (state, -1), "blocks"),
        ("mersenne_advance", (state, 2**16 + 1), "blocks"),
        ("mersenne_rewind", (state[:-4], 1), "state"),
        ("mersenne_rewind", (state, -1), "blocks"),
        ("mersenne_rewind", (state, 2**16 + 1), "blocks"),
        ("mersenne_words", (state[:-1], 1, bytearray(4)), "state"),
        ("mersenne_words", (state, 624, bytearray(4)), "skip"),
        ("mersenne_words", (state, 1, bytearray(3)), "out"),
    ):
        assert outcome(kernel, name, *arguments) == ("ValueError", message)


@given(st.sampled_from([1, 2, 4, 8, 16]), st.integers(0, 400), st.integers(0, 2**32 - 1))
def test_words_whose_upper_bits_are_in_a_table(
    kernel: ModuleType, bits: int, count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << 32, count, np.uint32)
    table = rng.integers(0, 256, 1 << 16, np.uint8) & rng.integers(0, 256, 1 << 16, np.uint8)
    together, expected = 16 // bits, []
    for at in range(count - together + 1):
        digits = [f"{word:032b}"[:bits] for word in words[at : at + together].tolist()]
        index = int("".join(digits), 2)
        if table[index] & 1:
            expected.append(at << 16 | index)
    out = np.empty(count, np.uint64)
    assert kernel.match_words(words, bits, table, out) == len(expected)
    assert out[: len(expected)].tolist() == expected


def test_matches_of_words_refuse(kernel: ModuleType) -> None:
    words, table, out = bytes(8), bytes(1 << 16), bytearray(16)
    for arguments, message in (
        ((bytes(7), 1, table, out), "words"),
        ((words, 0, table, out), "bits"),
        ((words, 17, table, out), "bits"),
        ((words, 3, table, out), "bits"),
        ((words, 16, table[1:], out), "table"),
        ((words, 16, table + b"0", out), "table"),
        ((words, 16, table, bytearray(15)), "out"),
    ):
        assert outcome(kernel, "match_words", *arguments) == ("ValueError", message)


def equations_of_a_seed(
    rng: np.random.Generator, seed: int, count: int, skip: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint8]]:
    """Words, sums of their bits, and the parities that a seed gives them."""
    words = np.sort(rng.integers(0, 1500, count)).astype(np.uint32) + np.uint32(skip)
    masks = rng.integers(0, 1 << 32, count, np.uint32)
    generator = np.random.MT19937()
    generator._legacy_seeding(seed)  # type: ignore[attr-defined]
    given = generator.random_raw(int(words[-1]) + 1).astype(np.uint32)[words]
    return words, masks, np.bitwise_count(given & masks).astype(np.uint8)


@pytest.mark.parametrize("skip", [0, 1, 226, 227, 228, 623, 624, 5000])
def test_equations_over_the_words_of_a_seed(kernel: ModuleType, skip: int) -> None:
    rng = np.random.default_rng(skip)
    for seed, count in ((0, 1), (2**32 - 1, 17), (123, 64)):
        words, masks, parities = equations_of_a_seed(rng, seed, count, skip)
        sums, state = np.empty((624, count), np.uint32), np.empty((624, 1), np.uint32)
        kernel.mersenne_pull_back(words, masks, sums)
        kernel.mersenne_seed(seed, state)
        ours = np.bitwise_count(np.bitwise_xor.reduce(state & sums, axis=0)) & 1
        assert np.array_equal(ours, parities & 1)
    nothing = np.empty(0, np.uint32)
    kernel.mersenne_pull_back(nothing, nothing, nothing)


@pytest.mark.parametrize("places", [1, 2, 3, 4, 5, 9])
def test_seeds_of_which_equations_hold(kernel: ModuleType, places: int) -> None:
    """Those that are there and some by chance, the same ones in every version."""
    rng = np.random.default_rng(places)
    # Fewer equations than a place can tell 5,000 seeds by, and so many that it can.
    for count, chance in ((14, 5), (40, 0)):
        made = [equations_of_a_seed(rng, 70_000 + p, count, 300 * p) for p in range(places)]
        tables = np.empty((places, 624, count), np.uint32)
        for table, (words, masks, _) in zip(tables, made, strict=True):
            kernel.mersenne_pull_back(words, masks, table)
        parities = np.concatenate([parities for _, _, parities in made])
        for first, tried in ((70_000 - 1, places + 1), (69_990, 5000), (65_003, 4997)):
            given = tables, parities, places, first, tried
            found = kernel.mersenne_seeds(*given)
            assert found == twins.mersenne_seeds(*given)
            hits = np.frombuffer(found, np.uint64).tolist()
            right = [p << 32 | 70_000 + p for p in range(places) if 70_000 + p < first + tried]
            assert set(right) <= set(hits)
            assert len(right) <= len(hits) <= len(right) + chance * places


def test_seeds_at_the_end_and_none(kernel: ModuleType) -> None:
    """Equations that say nothing hold for all."""
    tables, parities = np.zeros((2, 624, 14), np.uint32), bytes(28)
    found = kernel.mersenne_seeds(tables, parities, 2, 2**32 - 130, 130)
    seeds = [2**32 - 130 + i for i in range(130)]
    assert np.frombuffer(found, np.uint64).tolist() == seeds + [s + 2**32 for s in seeds]
    assert kernel.mersenne_seeds(tables, parities, 2, 2**32 - 1, 0) == b""
    assert kernel.mersenne_seeds(tables, b"\1" + bytes(27), 2, 7, 1) == (7 + 2**32).to_bytes(
        8, sys.byteorder
    )


def test_seeds_refuses(kernel: ModuleType) -> None:
    def pull_back(words: list[int], masks: int, room: int) -> tuple[str, ...]:
        at = np.array(words, np.uint32)
        return outcome(kernel, "mersenne_pull_back", at, bytes(masks), bytearray(room))

    assert pull_back([3, 2], 8, 4992) == ("ValueError", "words")
    assert pull_back([3, 1 << 28], 8, 4992) == ("ValueError", "words")
    assert pull_back([3, 3], 4, 4992) == ("ValueError", "masks")
    assert pull_back([3, 3], 8, 4991) == ("ValueError", "out")
    assert pull_back([3, 3], 8, 4996) == ("ValueError", "out")
    room = bytearray(2496)
    assert outcome(kernel, "mersenne_pull_back", bytes(3), b"", room) == ("ValueError", "words")
    tables, parities = bytes(2 * 2496 * 14), bytes(28)
    for arguments, message in (
        ((tables[:-1], parities, 2, 0, 1), "masks"),
        ((tables[:-2496], parities, 2, 0, 1), "masks"),
        ((tables, parities, 3, 0, 1), "parities"),
        ((tables, parities, 4, 0, 1), "parities"),
        ((bytes(2 * 2496 * 13), bytes(26), 2, 0, 1), "parities"),
        ((tables, parities, 0, 0, 1), "places"),
        ((tables, parities, 65, 0, 1), "places"),
        ((tables, parities, 2, 2**32, 0), "first"),
        ((tables, parities, 2, 2**32 - 5, 6), "count"),
    ):
        assert outcome(kernel, "mersenne_seeds", *arguments) == ("ValueError", message)


@pytest.mark.parametrize("fused", [0, 1])
def test_normal_values_of_many_radii_and_angles_agree(kernel: ModuleType, fused: int) -> None:
    """Every 97th radius with every 97th angle, the ends of both included."""
    source = np.empty((2**24 // 97 // 8, 2, 8), np.uint32)
    source[:, 0] = np.arange(source[:, 0].size).reshape(-1, 8) * 97
    source[:, 1] = (2**24 - 1) - source[:, 0]
    source[0] = np.arange(8)
    source[1] = (2**24 - 1) - source[0]
    source |= np.uint32(0xAB000000)  # upper bits that do not count
    ours, theirs = np.empty(source.size, np.float32), np.empty(source.size, np.float32)
    kernel.torch_normal(source, fused, ours)
    twins.torch_normal(source, fused, theirs)
    assert ours.tobytes() == theirs.tobytes()
    kernel.torch_normal(source, fused, source)
    assert source.tobytes() == ours.tobytes()


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.integers(0, 2**32 - 1), st.integers(0, 1030), st.integers(0, 1), NUMBERS, NUMBERS)
def test_uniform_values_agree(
    kernel: ModuleType, seed: int, count: int, fused: int, low: float, high: float
) -> None:
    source = np.random.default_rng(seed).integers(0, 2**32, count, np.uint32)
    bounds = np.array([low, high], np.float32)
    ours, theirs = np.empty(count, np.float32), np.empty(count, np.float32)
    result = outcome(kernel, "torch_uniform", source, fused, bounds, ours)
    assert result == outcome(twins, "torch_uniform", source, fused, bounds, theirs)
    if result[0] == "returned":
        assert ours.tobytes() == theirs.tobytes()
        kernel.torch_uniform(source, fused, bounds, source)
        assert source.tobytes() == ours.tobytes()


@pytest.mark.parametrize("fused", [0, 1])
def test_uniform_values_by_exact_arithmetic(kernel: ModuleType, fused: int) -> None:
    source = np.random.default_rng(0).integers(0, 2**32, 300, np.uint32)
    bounds = np.array([-0.3, 0.8], np.float32)
    values = np.empty(source.size, np.float32)
    kernel.torch_uniform(source, fused, bounds, values)
    low, span = map(Fraction, (float(bounds[0]), float(bounds[1] - bounds[0])))
    for word, value in zip(source.tolist(), values.tolist(), strict=True):
        product = Fraction(word % 2**24, 2**24) * span
        # A double is near enough to the exact sum: none of these lies that near to a half.
        total = float((product if fused else Fraction(float(np.float32(float(product))))) + low)
        assert value == float(np.float32(total))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 623),
    st.integers(0, 3000) | st.sampled_from([65_535, 65_544, 270_003]),
    st.integers(0, 1),
    st.booleans(),
)
def test_expand_drawn_is_made_of_the_others(
    kernel: ModuleType, seed: int, skip: int, count: int, fused: int, normal: bool
) -> None:
    rng = np.random.default_rng(seed)
    state, mask = rng.integers(0, 2**32, 624, np.uint32), rng.bytes(-(-count // 8))
    bounds = np.empty(0, np.float32) if normal else np.array([-0.3, 0.8], np.float32)
    scale = np.array([-0.7], np.float32)
    memory = bytearray(b"\xaa" * (4 * count + 64))
    out = memoryview(memory)[32 : 32 + 4 * count]
    kernel.expand_drawn(state, skip, fused, bounds, scale, mask, out)
    assert memory[:32] == memory[32 + 4 * count :] == b"\xaa" * 32
    source = np.empty(-(-count // 16) * 16, np.uint32)
    twins.mersenne_words(state, skip, source)
    values = source.view(np.float32)
    if normal:
        twins.torch_normal(source, fused, values)
    else:
        twins.torch_uniform(source, fused, bounds, values)
    ones = np.unpackbits(np.frombuffer(mask, np.uint8), count=count, bitorder="little")
    expected = np.where(ones == 1, values[:count] * scale, np.float32(0))
    assert bytes(out) == expected.tobytes()


def test_expand_drawn_refuses(kernel: ModuleType) -> None:
    good = {
        "state": bytes(2496), "skip": 0, "fused": 1, "bounds": bytes(8), "scale": bytes(4),
        "mask": b"\0", "out": bytearray(32),
    }  # fmt: skip
    for change, message in (
        ({"state": bytes(2495)}, "state"),
        ({"skip": 624}, "skip"),
        ({"fused": 2}, "fused"),
        ({"bounds": bytes(4)}, "bounds"),
        ({"bounds": b"\0\0\x80\x7f" * 2}, "bounds"),
        ({"scale": bytes(8)}, "scale"),
        ({"out": bytearray(31)}, "out"),
        ({"mask": b""}, "mask"),
        ({"mask": b"\0\0"}, "mask"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            kernel.expand_drawn(**good | change)


def test_torch_values_refuse(kernel: ModuleType) -> None:
    good, infinite = bytes(8), np.array([-3e38, 3e38], np.float32)
    for name, arguments, message in (
        ("torch_normal", (bytes(60), 1, bytearray(60)), "words"),
        ("torch_normal", (bytes(64), 2, bytearray(64)), "fused"),
        ("torch_normal", (bytes(64), 1, bytearray(128)), "out"),
        ("torch_uniform", (bytes(7), 1, good, bytearray(7)), "words"),
        ("torch_uniform", (bytes(8), -1, good, bytearray(8)), "fused"),
        ("torch_uniform", (bytes(8), 1, good[:-1], bytearray(8)), "bounds"),
        ("torch_uniform", (bytes(8), 1, infinite, bytearray(8)), "bounds"),
        ("torch_uniform", (bytes(8), 1, b"\0\0\xc0\x7f" * 2, bytearray(8)), "bounds"),
        ("torch_uniform", (bytes(8), 1, good, bytearray(4)), "out"),
    ):
        assert outcome(kernel, name, *arguments) == ("ValueError", message)


def valid_calls() -> dict[str, list[object]]:
    return {
        "philox4x32": [np.zeros(4, np.uint32), 1, 2, 3],
        "quantiles": [np.zeros(2, np.uint32), np.zeros(4096, np.float32), np.zeros(2, np.float32)],
        "runs_encode": [b"\x10", 8, 3],
        "runs_decode": [b"\3\1\3", 3, 8, np.zeros(1, np.uint8)],
        "rans_encode": [b"\0\0", table_of(_0=2**15), 8],
        "rans_decode": [struct.pack("<I", 2**16), table_of(_0=2**15), 1, np.zeros(4, np.uint8)],
        "allow_large_pages": [np.zeros(8, np.float32)],
        "expand": [b"abcd", 4, 0, b"\xff", np.zeros(8, np.float32), 1, 2],
        "expand_normal": [1, 2, 3, bytes(4 * 4096), b"\xff", np.zeros(8, np.float32)],
        "top_k": [np.zeros(8, np.float32), 3, np.zeros(8, np.uint8)],
        "keep_largest": [np.zeros(8, np.float32), 1, 3, bytes(32), np.zeros(8, np.float32), 2],
        "magnitude_gradient": [bytes(8), bytes(8), bytes(8), np.zeros(2, np.float32), 2],
        "packed_product": [b"\xff", bytes(12), 1, 4, bytes(32), np.zeros(4, np.float32), 2],
        "column_product": [b"\xff", bytes(12), 1, 4, bytes(32), np.zeros(4, np.float32), 2],
        "signed_product": [
            b"\xff", b"\x05", 3, 1, bytes(4), 4, bytes(32), np.zeros(4, np.float32), 2
        ],
        "mersenne_solve": [
            np.ones(2, np.uint32), np.ones(2, np.uint32), b"\0\1", np.zeros(624, np.uint32)
        ],
        "mersenne_seed": [1, np.zeros(624, np.uint32)],
        "mersenne_advance": [np.zeros(624, np.uint32), 2],
        "mersenne_rewind": [np.zeros(624, np.uint32), 2],
        "mersenne_words": [np.zeros(624, np.uint32), 2, np.zeros(4, np.uint32)],
        "mersenne_pull_back": [
            np.ones(2, np.uint32), np.ones(2, np.uint32), np.zeros(1248, np.uint32)
        ],
        "mersenne_seeds": [np.ones(624 * 14, np.uint32), bytes(14), 1, 5, 6],
        "match_words": [np.ones(9, np.uint32), 2, bytes(1 << 16), np.zeros(9, np.uint64)],
        "expand_drawn": [
            np.zeros(624, np.uint32), 2, 1, bytes(8), bytes(4), b"\xff", np.zeros(8, np.float32)
        ],
        "torch_normal": [np.zeros(16, np.uint32), 1, np.zeros(16, np.float32)],
        "torch_uniform": [np.zeros(3, np.uint32), 1, bytes(8), np.zeros(3, np.float32)],
    }  # fmt: skip


KEYWORDS = {
    "philox4x32": ["out", "seed", "stream", "start"],
    "quantiles": ["words", "table", "out"],
    "runs_encode": ["mask", "count", "longest"],
    "runs_decode": ["runs", "longest", "count", "out"],
    "rans_encode": ["symbols", "frequencies", "lanes"],
    "rans_decode": ["data", "frequencies", "lanes", "out"],
    "allow_large_pages": ["out"],
    "expand": ["values", "itemsize", "offset", "mask", "out", "read_next", "threads"],
    "expand_normal": ["seed", "stream", "start", "table", "mask", "out"],
    "top_k": ["values", "kept", "out"],
    "keep_largest": ["scores", "magnitude", "kept", "values", "out", "threads"],
    "magnitude_gradient": ["gradient", "values", "scores", "out", "threads"],
    "packed_product": ["bits", "values", "offset", "columns", "inputs", "out", "threads"],
    "column_product": ["bits", "values", "offset", "rows", "inputs", "out", "threads"],
    "signed_product": [
        "bits",
        "signs",
        "period",
        "offset",
        "constant",
        "columns",
        "inputs",
        "out",
        "threads",
    ],
    "mersenne_solve": ["words", "masks", "parities", "out"],
    "mersenne_seed": ["seed", "out"],
    "mersenne_advance": ["state", "blocks"],
    "mersenne_rewind": ["state", "blocks"],
    "mersenne_words": ["state", "skip", "out"],
    "mersenne_pull_back": ["words", "masks", "out"],
    "mersenne_seeds": ["masks", "parities", "places", "first", "count"],
    "match_words": ["words", "bits", "table", "out"],
    "expand_drawn": ["state", "skip", "fused", "bounds", "scale", "mask", "out"],
    "torch_normal": ["words", "fused", "out"],
    "torch_uniform": ["words", "fused", "bounds", "out"],
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_keywords(kernel: ModuleType, name: str) -> None:
    getattr(kernel, name)(**dict(zip(KEYWORDS[name], valid_calls()[name], strict=True)))


@pytest.mark.parametrize("name", KEYWORDS)
@pytest.mark.parametrize("wrong", [None, 1.5, "text", object()])
def test_wrong_types(kernel: ModuleType, name: str, wrong: object) -> None:
    for position in range(len(KEYWORDS[name])):
        arguments = valid_calls()[name]
        arguments[position] = wrong
        with pytest.raises(TypeError):
            getattr(kernel, name)(*arguments)
    with pytest.raises(TypeError):
        getattr(kernel, name)(*valid_calls()[name], 0)
    with pytest.raises(TypeError):
        getattr(kernel, name)(*valid_calls()[name][:-1])


@pytest.mark.parametrize("name", KEYWORDS)
def test_buffers_that_do_not_fit(kernel: ModuleType, name: str) -> None:
    read_only = np.zeros(4, np.uint32)
    read_only.flags.writeable = False
    for position, keyword in enumerate(KEYWORDS[name]):
        if isinstance(valid_calls()[name][position], int):
            continue
        unfit: list[object] = [np.zeros(32, np.uint32)[::2], memoryview(bytearray(32))[::2]]
        if keyword == "out":
            unfit += [read_only, bytes(16), memoryview(bytes(16))]
        for wrong in unfit:
            arguments = valid_calls()[name]
            arguments[position] = wrong
            with pytest.raises(ValueError, match=r"^buffer$"):
                getattr(kernel, name)(*arguments)


def test_unaligned_buffers(kernel: ModuleType) -> None:
    memory = bytearray(4 * 257)
    kernel.philox4x32(memoryview(memory)[1:41], 1, 2, 3)
    assert np.frombuffer(memory[1:41], np.uint32).tolist() == words(kernel, 10, 1, 2, 3)

    table = table_of(_0=2**14, _1=2**14)
    memoryview(memory)[1:1025] = table.tobytes()
    unaligned = memoryview(memory)[1:1025]
    symbols = bytes(random.Random(0).choices([0, 1], k=99))
    coded = kernel.rans_encode(symbols, unaligned, 8)
    assert coded == kernel.rans_encode(symbols, table, 8)
    kernel.rans_decode(memoryview(b"\0" + coded)[1:], unaligned, 8, memoryview(memory)[3:102])
    assert memory[3:102] == symbols

    for itemsize in (2, 4, 8, 16):
        values, mask = random.Random(1).randbytes(5 * itemsize), b"\x9b\x5a"
        kernel.expand(
            memoryview(b"\0" + values)[1:],
            itemsize,
            2,
            mask,
            memoryview(memory)[3 : 3 + 12 * itemsize],
            0,
            1,
        )
        expected = expand_reference(values, itemsize, 2, mask, 12)
        assert memory[3 : 3 + 12 * itemsize] == expected


@pytest.mark.parametrize("shift", [1, 4, 8, 16])
def test_large_unaligned_buffers(kernel: ModuleType, shift: int) -> None:
    """Stores that leave large results out of the cache want aligned memory."""
    count = (1 << 18) + 8
    values, mask = np.arange(1, count + 1, dtype=np.uint32), np.full(-(-count // 8), 0x5A, np.uint8)
    bits = np.unpackbits(mask, bitorder="little")
    memory = np.zeros(4 * count + shift, np.uint8)
    kernel.expand(values, 4, 0, mask, memory[shift:], 0, 1)
    assert memory[shift:].tobytes() == (values * bits).tobytes()

    table, generated = np.arange(4096, dtype=np.uint32), np.empty(count, np.uint32)
    twins.philox4x32(generated, 1, 2, 3)
    kernel.expand_normal(1, 2, 3, table, mask, memory[shift:])
    assert memory[shift:].tobytes() == ((generated >> 20) * bits).tobytes()


def test_integers_by_index(kernel: ModuleType) -> None:
    out = np.empty(3, np.uint32)
    kernel.philox4x32(out, np.uint64(2**64 - 1), np.int8(5), True)
    assert out.tolist() == words(kernel, 3, 2**64 - 1, 5, 1)


@pytest.mark.parametrize("name", KEYWORDS)
def test_buffers_are_released(kernel: ModuleType, name: str) -> None:
    def buffers() -> list[object]:
        return [
            argument if isinstance(argument, int) else bytearray(memoryview(argument))  # type: ignore[arg-type]
            for argument in valid_calls()[name]
        ]

    for position in range(len(KEYWORDS[name]) + 1):
        arguments = buffers()
        calls = [arguments]
        if position < len(arguments):
            calls = [
                [*arguments[:position], wrong, *arguments[position + 1 :]] for wrong in (None, -1)
            ]
        for call in calls:
            outcome(kernel, name, *call)
        for argument in arguments:
            if isinstance(argument, bytearray):
                argument.append(0)  # refused while a view of it exists


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="the size of a process is read from /proc")
@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("name", ["rans_encode", "runs_encode", "mixing_encode", "mixing_decode",
                                  "top_k", "keep_largest", "packed_product",
                                  "signed_product"])  # fmt: skip
def test_allocated_memory_is_given_back(name: str, damaged: bool) -> None:
    """Each call allocates more than half a MiB, and fails where the data is damaged."""
    even, many = np.full(256, 2**7, np.uint32), np.arange(1 << 19)
    ones = np.full(1 << 19, 255, np.uint8)
    bits, layout = bytes(8), np.array([8, 1 << 14, 1, 1, 0, 128], np.uint64)
    scores, out = many.astype(np.float32), np.empty(many.size, np.float32)
    mixing = {"buckets": bytes(8), "parts": layout, "tables": _tables()}
    product = {"columns": scores.size, "inputs": scores, "out": bytearray(4), "threads": 1}
    arguments: dict[str, dict[str, object]] = {
        "rans_encode": {"symbols": many.astype(np.uint8), "frequencies": even, "lanes": 8},
        "runs_encode": {"mask": ones, "count": 8 * ones.size, "longest": 255},
        "mixing_encode": {"bits": bits, **mixing},
        "mixing_decode": {"data": bytes(4), **mixing, "out": bytearray(8)},
        "top_k": {"values": scores, "kept": 9, "out": np.empty(many.size, np.uint8)},
        "keep_largest": {"scores": scores, "magnitude": 0, "kept": 9, "values": scores, "out": out,
                         "threads": 1},
        "packed_product": {"bits": bytes(1 << 16), "values": bytes(4), "offset": 0, **product},
        "signed_product": {"bits": bytes(1 << 16), "signs": bytes(1), "period": 1, "offset": 0,
                           "constant": bytes(4), **product},
    }  # fmt: skip
    wrong: dict[str, dict[str, object]] = {
        "rans_encode": {"frequencies": table_of(_0=2**15)},
        "runs_encode": {"count": 7},
        "mixing_encode": {"bits": bytes([2] * 8)},
        "mixing_decode": {"data": bytes(5)},
        "top_k": {"kept": 1 << 40},
        "keep_largest": {"kept": 1 << 40},
        "packed_product": {"bits": bytes(9)},
        "signed_product": {"bits": bytes(9)},
    }
    call = arguments[name] | (wrong[name] if damaged else {})

    def pages() -> int:
        for _ in range(100):
            try:
                getattr(native, name)(**call)
            except ValueError:
                assert damaged
            else:
                assert not damaged
        return int(Path("/proc/self/statm").read_text().split()[0])

    before = pages()
    assert (pages() - before) * mmap.PAGESIZE < 25 << 20


def test_threads_do_not_disturb_each_other(kernel: ModuleType) -> None:
    table = table_of(_0=2**14, _1=2**13, _2=2**13)
    sources = [bytes(random.Random(i).choices([0, 1, 2], k=20000)) for i in range(4)]
    results: list[bytes] = [b""] * len(sources)

    def work(index: int) -> None:
        coded = kernel.rans_encode(sources[index], table, 8)
        results[index] = decoded(kernel, coded, table, 8, len(sources[index]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(sources))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == sources


def test_package_uses_the_extension_where_it_is_built() -> None:
    chosen = twins if native is None else native
    assert ("numpy" if native is None else "native") == kernels.IMPLEMENTATION
    for name in KEYWORDS:
        assert getattr(kernels, name) is getattr(chosen, name)


def test_package_falls_back_to_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pemncodec.kernels._native", None)
    monkeypatch.delattr(kernels, "_native", raising=False)
    try:
        reloaded = importlib.reload(kernels)
        assert reloaded.IMPLEMENTATION == "numpy"
        assert reloaded.expand is twins.expand
    finally:
        monkeypatch.undo()
        importlib.reload(kernels)
