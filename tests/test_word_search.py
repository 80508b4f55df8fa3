"""Tensors among the words of a seed: far behind its first ones, and many at one time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from test_seed_search import SEED, drawn, found, layer

from pemncodec import TorchPrototype, kernels
from pemncodec.limits import Limits
from pemncodec.options import EncodeOptions
from pemncodec.seeds import with_seeds
from pemncodec.values import seed_search, word_search
from pemncodec.values.draws import (
    Known,
    Range,
    known_weights,
    normal_draws,
    normal_sign_draws,
    uniform_draws,
    uniform_sign_draws,
)
from pemncodec.values.pattern_tables import pattern_tables
from pemncodec.values.recovery import Layer
from pemncodec.values.seed_search import FAST, GIVEN_DRAWN, Effort, Network
from pemncodec.values.word_patterns import Pattern, pattern_of
from pemncodec.values.word_search import search_words

FAR = 2_000_000_000  # words: more than are looked at for a small network


def far_tensors(skip: int = FAR) -> tuple[list[TorchPrototype], list[Layer]]:
    """Two of a large network: the second is too short to be solved for."""
    expected = [
        TorchPrototype("normal", SEED, 5000, skip),
        TorchPrototype("normal", SEED, 300, skip + 123_457),
    ]
    return expected, [
        layer(drawn("normal", each.length, 0.05, skip=each.skip)) for each in expected
    ]


def test_the_larger_a_network_the_further_back_its_seed_may_be() -> None:
    expected, layers = far_tensors()
    assert found(layers[:1], FAST) == [None]
    assert found(layers[:1], FAST, weights=250_000_000) == expected[:1]


def test_the_larger_a_network_the_further_a_seed_is_looked_at() -> None:
    expected, layers = far_tensors(200_000_000)
    assert found(layers, None, seeds={SEED: GIVEN_DRAWN}) == [None, None]
    assert found(layers, None, seeds={SEED: 0}, weights=30_000_000) == expected


def test_no_seed_is_found_that_readers_of_the_file_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words before the last value are what `Limits` bounds."""
    prototype = TorchPrototype("normal", SEED, 5000, 90_000)
    layers = [layer(drawn("normal", 5000, skip=90_000))]
    last = 95_016  # 16 are drawn once more
    for words, expected in ((last, prototype), (last - 1, None)):
        monkeypatch.setattr(seed_search, "limits_within", lambda _, n=words: Limits(drawn_words=n))
        assert found(layers, Effort(8000, 0, 0)) == [expected]
        assert found(layers, None, seeds={SEED: 0}) == [expected]


class Others:
    """Another process, which says of its part what it is told to."""

    rank, count = 0, 2

    def __init__(self, *said: Any) -> None:
        self._said = iter(said)

    def gather(self, value: Any) -> list[Any]:
        return [value, next(self._said)]


def test_a_part_of_a_network_is_as_far_behind_as_the_network_is_large() -> None:
    expected, layers = far_tensors()
    options = EncodeOptions(manifest=False, preset="fast", peers=Others(250_000_000, []))
    (found,) = with_seeds(layers[:1], Network(), options)
    assert found.fill is not None
    assert found.fill.prototype == expected[0]


def test_a_seed_is_looked_at_as_far_as_other_processes_met_it() -> None:
    expected, layers = far_tensors(150_000_000)
    for words, seen in ((0, False), (150_100_000, True)):
        peers = Others(0, [(SEED - 1, 0), (SEED, words)])
        options = EncodeOptions(manifest=False, preset="fast", peers=peers)
        (found,) = with_seeds(layers[1:], Network(), options)
        assert (found.fill is not None and found.fill.prototype == expected[1]) is seen


# ------------------------------------------------------------------------------ many at one time

KINDS = ["normal", "uniform", "normal-signs", "uniform-signs"]


def draws_of(kind: str, known: Known) -> Any:
    return {
        "normal": lambda: normal_draws(known, Range(0.8, 1.2)),
        "uniform": lambda: uniform_draws(known, Range(-1.01, -1), Range(1, 1.01)),
        "normal-signs": lambda: normal_sign_draws(known),
        "uniform-signs": lambda: uniform_sign_draws(known),
    }[kind]()


def many(keep: float, count: int = 48) -> tuple[list[Pattern], list[int]]:
    rng = np.random.default_rng(int(100 * keep))
    patterns, skips = [], sorted(rng.choice(400_000, count, replace=False).tolist())
    for number, skip in enumerate(skips):
        kind, size = KINDS[number % len(KINDS)], 600
        values = drawn(kind, size, seed=4, skip=skip)
        known = known_weights(values, "float32", rng.random(size) < keep, size)
        assert known is not None
        patterns.append(pattern_of(draws_of(kind, known)))
    return patterns, skips


def places_of(patterns: list[Pattern], stop: int) -> list[tuple[int, int]]:
    places: list[tuple[int, int]] = []

    def note(index: int, skip: int) -> range:
        places.append((index, skip))
        return range(len(patterns))

    search_words(4, stop, patterns, note)
    return places


@pytest.mark.parametrize("keep", [0.2, 0.5, 1.0])
def test_many_tensors_are_found_in_one_pass(keep: float, monkeypatch: pytest.MonkeyPatch) -> None:
    patterns, skips = many(keep)
    passes, one_by_one = [], word_search._matches

    def counted(*arguments: Any) -> list[int]:
        passes.append(arguments)
        return one_by_one(*arguments)

    monkeypatch.setattr(word_search, "_matches", counted)
    places = places_of(patterns, 400_000)
    assert sorted(places) == list(enumerate(skips))
    by_tables = len(passes)
    monkeypatch.setattr(word_search, "pattern_tables", lambda _: [])
    assert places_of(patterns, 400_000) == places
    # Without tables each tensor takes a pass over all words before it. Few signs say little.
    assert by_tables < (0.9 if keep < 0.5 else 0.3) * (len(passes) - by_tables)
    assert places_of(patterns, skips[-1]) == [each for each in places if each[1] != skips[-1]]


def test_which_upper_bits_tell_of_a_tensor() -> None:
    """Sixteen of one word where values are exact, else one or two of words in a row."""
    patterns, _ = many(1.0)
    tables = pattern_tables(patterns)
    bits = {member: table.bits for table in tables for member in table.members}
    assert sorted(bits) == list(range(len(patterns)))
    assert [bits[number] for number in range(len(patterns))] == [16, 2, 2, 1] * 12
    for table in tables:
        members = len(table.members)
        assert members <= table.table.sum() <= len(table.rows) <= 16 * members


def words_known(words: npt.NDArray[np.uint32], at: int, bits: int) -> Pattern:
    """Six words from `at` on, whose upper bits are known."""
    low = words[at : at + 6] >> np.uint32(32 - bits) << np.uint32(32 - bits)
    width = np.full(6, (1 << 32 - bits) - 1, np.uint32)
    return Pattern(np.arange(6), low, width, 6.0 * bits, 0)


@pytest.mark.parametrize("bits", [8, 10])
def test_indices_longer_than_what_is_known(bits: int) -> None:
    """They tell of tensors at the end of a part of all words, too."""
    part, around = word_search._PART, 20
    state, words = np.empty(624, np.uint32), np.empty(4 * part, np.uint32)
    kernels.mersenne_seed(4, state)
    kernels.mersenne_words(state, 0, words)
    skips = [end + behind for end in (part, 2 * part) for behind in range(-around, around)]
    patterns = [words_known(words, at, bits) for at in skips]
    (table,) = pattern_tables(patterns)
    assert 16 // table.bits > 6
    assert sorted(places_of(patterns, 3 * part)) == list(enumerate(skips))


def test_tensors_that_tell_too_little_have_no_table() -> None:
    """Few signs, far from each other: any index fits most words."""
    values = drawn("uniform-signs", 9000, seed=4)
    mask = np.arange(9000) % 40 == 0
    known = known_weights(values, "float32", mask, 9000)
    assert known is not None
    patterns = [pattern_of(uniform_sign_draws(known))] * 5
    assert pattern_tables(patterns) == []
    assert places_of(patterns, 1) == [(index, 0) for index in range(5)]
