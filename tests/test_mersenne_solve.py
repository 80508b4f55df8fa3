"""The state of MT19937 behind equations over its words, by both implementations of the kernel."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import native_kernels
from numpy.typing import NDArray

from pemncodec.kernels import twins

STATE = 624
Words = NDArray[np.uint32]


@pytest.fixture(params=["native", "numpy"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    return native_kernels() if request.param == "native" else twins


def state_and_words(count: int, seed: int = 5) -> tuple[Words, Words]:
    """A state that others came before, and its words after tempering."""
    generator = np.random.MT19937()
    generator._legacy_seeding(seed)
    generator.random_raw(STATE + 1)
    state = generator.state["state"]["key"].copy()
    generator.state = {"bit_generator": "MT19937", "state": {"key": state, "pos": 0}}
    return state, generator.random_raw(count).astype(np.uint32)


def every_bit(words: Words, first: int, last: int) -> list[tuple[int, int, int]]:
    return [
        (index, 1 << bit, int(words[index]) >> bit & 1)
        for index in range(first, last)
        for bit in range(32)
    ]


def solve(kernel: ModuleType, equations: list[tuple[int, int, int]]) -> tuple[int, Words]:
    words, masks, parities = zip(*sorted(equations), strict=True)
    out = np.zeros(STATE, np.uint32)
    arrays = np.array(words, np.uint32), np.array(masks, np.uint32), np.array(parities, np.uint8)
    return kernel.mersenne_solve(*arrays, out), out


def same_state(found: Words, state: Words) -> bool:
    """Of the first word only the highest bit is part of the state."""
    return bool(found[0] >> 31 == state[0] >> 31 and (found[1:] == state[1:]).all())


def parities(words: Words, places: Any, masks: Any) -> list[tuple[int, int, int]]:
    values = np.bitwise_count(words[places] & masks) & 1
    return list(
        zip(np.asarray(places).tolist(), np.asarray(masks).tolist(), values.tolist(), strict=True)
    )


def test_a_state_from_all_words_after_it(kernel: ModuleType) -> None:
    state, words = state_and_words(2 * STATE)
    found = np.empty(STATE, np.uint32)
    left, found = solve(kernel, every_bit(words, 1, STATE + 1))
    assert left == 0
    assert same_state(found, state)
    assert solve(kernel, every_bit(words, 1, STATE))[0] == 1
    assert solve(kernel, every_bit(words, 0, STATE))[0] == 1


def test_sums_of_bits_of_later_words(kernel: ModuleType) -> None:
    """Four words of the state follow from sums far behind it, of which most depend on others."""
    state, words = state_and_words(5000)
    rng = np.random.default_rng(1)
    places = rng.integers(STATE, 5000, 4000)
    sums = parities(words, places, rng.integers(0, 1 << 32, 4000, np.uint32))
    left, found = solve(kernel, every_bit(words, 5, STATE) + sums)
    assert left == 0
    assert same_state(found, state)
    few = solve(kernel, every_bit(words, 5, STATE) + sums[:120])[0]
    assert 1 + 4 * 32 - 120 < few < 1 + 4 * 32


def test_sums_within_words_of_the_state(kernel: ModuleType) -> None:
    """They need not be single bits: of word 3, all neighbours' sums and then one bit."""
    state, words = state_and_words(STATE + 1)
    known = [e for e in every_bit(words, 1, STATE + 1) if e[0] != 3]
    neighbours = parities(
        words, np.full(31, 3), np.array([3 << bit for bit in range(31)], np.uint32)
    )
    assert solve(kernel, known + neighbours)[0] == 1
    left, found = solve(kernel, known + neighbours + parities(words, [3], np.array([1 << 9])))
    assert left == 0
    assert same_state(found, state)
    again = parities(words, [3], np.array([0b1010], np.uint32))  # follows from the others
    assert solve(kernel, known + neighbours + again)[0] == 1


@pytest.mark.parametrize("place", [0, 3, 700, 1999])
def test_contradictions(kernel: ModuleType, place: int) -> None:
    _, words = state_and_words(2000)
    rng = np.random.default_rng(2)
    right = every_bit(words, 1, STATE + 1) + parities(
        words, rng.integers(STATE, 2000, 40), rng.integers(0, 1 << 32, 40, np.uint32)
    )
    ((word, mask, value),) = parities(words, [place], np.array([0x00F00001], np.uint32))
    assert solve(kernel, [*right, (word, mask, value)])[0] == 0
    left, out = solve(kernel, [*right, (word, mask, value ^ 1), (word, mask, value)])
    assert left == -1
    assert not out.any()


def test_contradictions_without_a_state(kernel: ModuleType) -> None:
    _, words = state_and_words(STATE)
    known = every_bit(words, 9, 12)
    assert solve(kernel, known)[0] == 19_937 - 3 * 32
    assert (
        solve(kernel, [*known, (10, 6, int(words[10]) >> 1 & 1 ^ int(words[10]) >> 2 & 1 ^ 1)])[0]
        == -1
    )


def test_wrong_arguments(kernel: ModuleType) -> None:
    words, masks, values = np.arange(4, dtype=np.uint32), np.ones(4, np.uint32), bytes(4)
    out = np.zeros(STATE, np.uint32)
    large = np.array([0, 1, 2, 1 << 22], np.uint32)
    for arguments, message in (
        ((words[:3], masks, values, out), "words"),
        ((words[::-1].copy(), masks, values, out), "words"),
        ((large, masks, values, out), "words"),
        ((words, masks[:3], values, out), "masks"),
        ((words, masks, values, out[:623]), "out"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            kernel.mersenne_solve(*arguments)
