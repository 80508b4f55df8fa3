"""The shortest period of known items, against its definition and in the cases that are hard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pemncodec.values import periods
from pemncodec.values.periods import _contradiction, fold, shortest_period

RNG = np.random.default_rng
Bits = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

densities = st.sampled_from([0.02, 0.2, 0.5, 0.9, 1.0])


def is_period(bits: Bits, known: Mask, length: int) -> bool:
    """By definition, a column at a time."""
    padded = -(-bits.size // length) * length
    rows = np.resize(bits.astype(object), padded).reshape(-1, length)
    used = np.zeros(padded, np.bool_)
    used[: bits.size] = known
    rows_used = used.reshape(-1, length)
    return all(len(set(rows[rows_used[:, c], c])) <= 1 for c in range(length))


def period_by_force(bits: Bits, known: Mask) -> int:
    """As documented: all of them where nothing repeats."""
    if np.unique(bits[known]).size == np.count_nonzero(known) > 0:
        return bits.size
    return next((n for n in range(1, bits.size) if is_period(bits, known, n)), max(1, bits.size))


def period_by_sorting(bits: Bits, known: Mask) -> int:
    """The same by another way, for a few thousand items."""
    places, values = np.flatnonzero(known), bits[known]
    if np.unique(values).size == values.size > 0:
        return bits.size
    for length in range(1, bits.size):
        order = np.argsort(places % length, kind="stable")
        columns, sorted_values = (places % length)[order], values[order]
        if (sorted_values[1:] == sorted_values[:-1])[columns[1:] == columns[:-1]].all():
            return length
    return max(1, bits.size)


def check_fold(bits: Bits, known: Mask, period: int) -> None:
    expected = np.zeros(period, bits.dtype)
    places = np.flatnonzero(known)
    expected[places % period] = bits[places]
    assert np.array_equal(fold(bits, known, period), expected)


@settings(max_examples=400)
@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 6), st.floats(0, 1), st.integers(0))
def test_shortest_period(size: int, period: int, distinct: int, density: float, seed: int) -> None:
    rng = RNG(seed)
    bits = np.resize(rng.integers(0, distinct, period).astype("<u4"), size)
    known = rng.random(size) < density
    assert shortest_period(bits, known) == period_by_force(bits, known)


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(1, 3000),
    period=st.integers(1, 3000) | st.integers(1, 20),
    distinct=st.sampled_from([1, 2, 3, 200, 1 << 16]),
    run=st.integers(1, 40),
    odd=st.integers(0, 6),
    density=densities,
    step=st.sampled_from([1, 2, 3, 7, 50]),
    dtype=st.sampled_from(["<u2", "<u4", "<u8"]),
    seed=st.integers(0, 2**32),
)
def test_shortest_period_with_items_that_spoil_it(
    size: int,
    period: int,
    distinct: int,
    run: int,
    odd: int,
    density: float,
    step: int,
    dtype: str,
    seed: int,
) -> None:
    """Few values, runs of one value, single items that differ, masks that are regular."""
    rng = RNG(seed)
    values = rng.integers(0, distinct, period) * rng.integers(1, 1 << 16)
    bits = np.resize(np.repeat(values, run), size).astype(dtype)
    bits[rng.integers(0, size, odd)] = rng.integers(0, 1 << 16, odd)
    known = (rng.random(size) < density) & (np.arange(size) % step == 0)
    found = shortest_period(bits, known)
    assert found == period_by_sorting(bits, known)
    check_fold(bits, known, found)


def test_shortest_period_of_many() -> None:
    for size, period in ((1 << 17, 1000), (100_003, 50_001), (1 << 17, 1 << 17), (300_000, 80_000)):
        bits = np.resize(RNG(0).integers(0, 1 << 32, period).astype("<u4"), size)
        known = RNG(1).random(size) < 0.5
        assert shortest_period(bits, known) == period
        check_fold(bits, known, period)


@pytest.mark.parametrize("place", [0, 17, 25_000, 49_999])
def test_one_item_that_differs(place: int) -> None:
    """A constant but for it: every length that reaches another item from it is refuted."""
    bits, known = np.full(50_000, 5, "<u4"), np.ones(50_000, np.bool_)
    bits[place] = 7
    assert shortest_period(bits, known) == max(place + 1, 50_000 - place)
    known[place] = False
    assert shortest_period(bits, known) == 1


def test_a_length_whose_multiples_alone_are_refuted() -> None:
    """No two known items are an odd distance apart, nor one that 1009 does not divide."""
    for step in (2, 1009):
        size = 100_000
        known = np.arange(size) % step == 0
        bits = RNG(0).integers(0, 2, size).astype("<u4")
        few = bits[::step]
        shortest = shortest_period(few, np.ones(few.size, np.bool_))
        lengths = (
            length
            for length in range(1, size)
            if length // np.gcd(length, step) % shortest == 0
            or length // np.gcd(length, step) >= few.size
        )
        assert shortest_period(bits, known) == next(lengths)


def test_two_values() -> None:
    """Half of all pairs agree at any distance."""
    generator = RNG(5)
    vector = np.where(generator.random(1234) < 0.5, -1, 1).astype(np.float32)
    tiled = np.resize(vector, 300_000)
    known = generator.random(tiled.size) < 0.5
    assert shortest_period(tiled.view(np.uint32), known) == 1234
    independent = np.where(generator.random(300_000) < 0.5, -1, 1).astype(np.float32)
    assert shortest_period(independent.view(np.uint32), known) > 299_000


def test_a_period_that_many_items_spoil() -> None:
    """Each of them has a value of its own, and all are needed to see which lengths are left."""
    size, rng = 200_000, RNG(2)
    bits = np.resize(rng.integers(0, 1 << 16, 30).astype("<u4"), size)
    odd = np.sort(rng.choice(np.arange(40_000, 160_000), 12, replace=False))
    bits[odd] = (1 << 20) + np.arange(12)
    known = np.ones(size, np.bool_)
    # From each of them a multiple of 30 reaches an item with another value, until it leaves.
    least = max(max(place + 1, size - place) for place in odd.tolist())
    assert shortest_period(bits, known) == -(-least // 30) * 30


@pytest.mark.parametrize("length", [1, 17, 4095, 4096, 5000, 70_000, 99_999])
def test_every_item_is_compared(length: int) -> None:
    """One item differs from those a multiple of the length away, wherever it is."""
    size = 150_000
    known = np.ones(size, np.bool_)
    blocks = [4095, 4096, 12_287, 12_288, size - length - 1, size - length, length - 1, length]
    for place in {0, 1, size - 1, *blocks}:
        bits = np.full(size, 5, "<u4")
        assert _contradiction(bits, known, length) is None
        bits[place] = 7
        found = _contradiction(bits, known, length)
        alone = place - length < 0 and place + length >= size
        assert (found is None) == alone, place
        if found is not None:
            (first, second), _ = found
            assert (second - first) % length == 0
            assert place in (first, second)
            assert bits[first] != bits[second]


@pytest.mark.parametrize("density", [0.2, 0.5])
@pytest.mark.parametrize(
    "case",
    [
        "constant", "two values", "random", "period", "one differs", "few differ",
        "period but for some", "halves", "sorted", "every second", "every 50th",
    ],
)  # fmt: skip
def test_few_lengths_are_compared_item_by_item(
    case: str, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is what keeps the search linear: others are refuted many at a time."""
    size, rng = 1 << 18, RNG(7)
    random = rng.integers(0, 1 << 16, size).astype("<u4")
    bits = {
        "constant": np.full(size, 5, "<u4"),
        "two values": random % 2,
        "period": np.resize(random[:263], size),
        "one differs": np.full(size, 5, "<u4"),
        "few differ": np.full(size, 5, "<u4"),
        "period but for some": np.resize(random[:263], size),
        "halves": np.repeat(np.array([1, 2], "<u4"), size // 2),
        "sorted": np.sort(random),
    }.get(case, random)
    odd = {"one differs": 1, "few differ": 30, "period but for some": 5}.get(case, 0)
    bits[rng.integers(0, size, odd)] = (1 << 20) + np.arange(odd)
    known = rng.random(size) < density
    known[np.arange(size) % {"every second": 2, "every 50th": 50}.get(case, 1) != 0] = False
    compared = []

    def counted(*arguments: Any) -> object:
        found = _contradiction(*arguments)
        compared.append(1 if found is None else found[1] / size)
        return found

    looked_at = []

    def listed(refuted: Mask) -> Iterator[int]:
        for length in periods_left(refuted):
            looked_at.append(length)
            yield length

    periods_left = periods._left
    monkeypatch.setattr(periods, "_contradiction", counted)
    monkeypatch.setattr(periods, "_left", listed)
    shortest_period(bits, known)
    assert len(looked_at) <= 2000
    assert len(compared) <= 300
    assert sum(compared) <= 12


@pytest.mark.parametrize("value", [0, 1, 0xFFFF])
@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<u8"])
def test_extreme_values(dtype: str, value: int) -> None:
    """0 and the largest are what unknown items count as where rows are compared."""
    most = np.iinfo(dtype).max
    for other in (0, most, most - 1):
        bits = np.resize(np.array([value, other, other], dtype), 5000)
        known = RNG(3).random(5000) < 0.5
        period = 1 if value == other else 3
        assert shortest_period(bits, known) == period
        check_fold(bits, known, period)


@example(size=1, seed=0)
@given(st.integers(1, 300), st.integers(0, 2**32))
def test_nothing_known_and_nothing_twice(size: int, seed: int) -> None:
    bits = RNG(seed).permutation(size).astype("<u4")
    assert shortest_period(bits, np.zeros(size, np.bool_)) == 1
    assert shortest_period(bits, np.ones(size, np.bool_)) == size


@pytest.mark.parametrize("length", [1, 7, 4097, 60_001])
@pytest.mark.parametrize("late", [False, True])
def test_periods_that_the_first_items_show(length: int, late: bool) -> None:
    """A later item may refute what they show, and make the period longer."""
    rng = RNG(length)
    bits = np.resize(rng.integers(0, 1 << 20, length, dtype=np.uint32), 1 << 21)
    known = rng.random(bits.size) < 0.5
    known[:3] = True
    if late:
        bits[1_500_000], known[1_500_000] = 1 << 21, True
    found = shortest_period(bits, known)
    assert _contradiction(bits, known, found) is None
    assert found > length if late else found == length
