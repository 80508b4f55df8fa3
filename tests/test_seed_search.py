"""The seeds of torch's CPU generator behind weights: equations, search, what encode makes of it."""

from __future__ import annotations

import importlib
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, Run
from numpy.typing import NDArray
from torch_draws import draw

import pemncodec
from pemncodec import TorchPrototype, kernels
from pemncodec.cli import cli
from pemncodec.contents import CARRIERS, Array, SeededFill
from pemncodec.values.draws import (
    Draws,
    Range,
    equations_of,
    known_weights,
    normal_draws,
    normal_sign_draws,
    uniform_draws,
    uniform_sign_draws,
)
from pemncodec.values.fill import prototype_values, scale_values
from pemncodec.values.recovery import Layer, recover_prototypes
from pemncodec.values.seed_search import FAST, GIVEN_DRAWN, THOROUGH, Effort, find_seeds
from pemncodec.values.seeding import seed_before
from pemncodec.values.word_patterns import pattern_of
from pemncodec.values.word_search import search_words

RNG = np.random.default_rng
SEED = 3_405_691_582  # 32 bits, far from all that are tried
SKIP = 1_000_003


def words_of(seed: int, skip: int, count: int) -> NDArray[np.uint32]:
    generator = np.random.MT19937()
    generator._legacy_seeding(seed)
    return generator.random_raw(skip + count)[skip:].astype(np.uint32)


def drawn(
    distribution: Any, length: int, scale: float = 1.0, dtype: str = "float32", **fields: Any
) -> Array:
    """Weights as torch draws them."""
    prototype = TorchPrototype(distribution, fields.pop("seed", SEED), length, **fields)
    return scale_values(prototype_values(prototype), "float32", float(np.float32(scale)), dtype)


def layer(values: Array, keep: float = 1.0, dtype: str = "float32", seed: int = 0) -> Layer:
    return Layer(dtype, values, RNG(seed).random(values.size) < keep)


def found(layers: Sequence[Layer], effort: Effort = THOROUGH, **options: Any) -> list[Any]:
    """The prototypes that are found, None where none is; each of them is right."""
    fills = find_seeds(layers, effort, **options)
    filled = [replace(one, fill=fill) for one, fill in zip(layers, fills, strict=True)]
    prototypes, numbers = recover_prototypes(filled)
    for fill, number in zip(fills, numbers, strict=True):
        assert fill is None or prototypes[number.prototype] == fill.prototype
    return [fill and fill.prototype for fill in fills]


# ----------------------------------------------------------------------- values to equations


@pytest.mark.parametrize("length", [17, 1009, 20_000])
@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("variant", ["vector", "scalar"])
def test_draws_hold_the_words(length: int, keep: float, dtype: str, variant: str) -> None:
    words = words_of(9, 77, length + 16)
    mask = RNG(length).random(length) < keep

    def check(draws: Draws, known: int) -> None:
        inside = ((words[draws.words] & 0xFFFFFF) - draws.low) % (1 << 24) <= draws.width
        assert inside.all()
        assert (np.diff(draws.words) >= 0).all()
        equations = equations_of(draws)
        parities = np.bitwise_count(words[equations.words] & equations.masks) & 1
        assert np.array_equal(parities, equations.parities)
        if length == 20_000:
            assert equations.words.size >= known

    def weights(kind: str, scale: float) -> Any:
        values = drawn(kind, length, scale, dtype, seed=9, skip=77, variant=variant)
        return known_weights(values, dtype, mask, length)

    # Numbers of float16 that are as small as some of these are far from each other.
    for small in (2.0**-12, 2.0**-9):
        some = weights("uniform", small)
        draws = uniform_draws(some, Range(-small, -small), Range(small, small))
        check(draws, int(4 * keep * length))
        check(normal_draws(weights("normal", small), Range(small, small)), int(length * keep**2))
    normal, uniform = weights("normal", 0.037), weights("uniform", 0.25)
    bits = {"float32": 20, "float16": 10, "bfloat16": 7}[dtype] * length * keep**2
    check(normal_draws(normal, Range(0.037 * (1 - 1e-7), 0.037 * (1 + 1e-7))), int(bits))
    check(normal_draws(normal, Range(0.02, 0.06)), int(bits / 2))
    check(uniform_draws(uniform, Range(-0.25, -0.25), Range(0.25, 0.25)), int(bits))
    check(uniform_draws(uniform, Range(-0.26, -0.25), Range(0.25, 0.26)), int(4 * keep * length))
    check(normal_sign_draws(weights("normal-signs", 0.1)), int(0.95 * keep * length))
    check(uniform_sign_draws(weights("uniform-signs", 0.1)), int(0.95 * keep * length))


def test_equations_of_an_interval() -> None:
    """In Gray code, of which neighbours differ in one digit; also across zero."""
    at = np.zeros(1, np.int64)
    for low, width in ((0, 0), (5, 3), ((1 << 24) - 2, 3), ((1 << 23) - 1, 1), (7, 70_000)):
        equations = equations_of(Draws(at, np.array([low]), np.array([width])))
        numbers = (low + np.arange(width + 1)) % (1 << 24)
        for bit in range(24):
            mask = 1 << 23 if bit == 23 else 3 << bit
            values = np.unique(np.bitwise_count(numbers & mask) & 1)
            listed = equations.parities[equations.masks == mask].tolist()
            assert listed == (values.tolist() if values.size == 1 else [])


# ------------------------------------------------------------------------------ states, words


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("skip", [0, 1, 394, 395, 396, 623, 624, 5000, 1_000_000])
def test_the_seed_of_a_state(seed: int, skip: int) -> None:
    words = words_of(seed, skip, 624)
    state = words ^ (words >> 18)  # tempering, undone
    state ^= (state << 15) & np.uint32(0xEFC60000)
    lower = state
    for _ in range(4):
        lower = state ^ ((lower << 7) & np.uint32(0x9D2C5680))
    state = lower ^ (lower >> 11) ^ (lower >> 22)
    assert seed_before(state, skip) == (seed, skip)
    assert seed_before(state, skip + 7) == (seed, skip)
    if skip:
        assert seed_before(state, skip - 1) is None


def test_a_state_of_no_seed() -> None:
    state = RNG(0).integers(0, 1 << 32, 624, np.uint32)
    assert seed_before(state, 5000) is None


def test_tensors_among_the_words_of_a_seed() -> None:
    kinds = ["normal", "uniform-signs", "normal-signs", "uniform"]
    skips = [0, 79_870, 160_001, 400_000]
    patterns = []
    for kind, skip in zip(kinds, skips, strict=True):
        values = drawn(kind, 600, seed=4, skip=skip)
        known = known_weights(values, "float32", RNG(skip).random(600) < 0.4, 600)
        assert known is not None
        draws = {
            "normal": normal_draws(known, Range(0.8, 1.2)),
            "uniform": uniform_draws(known, Range(-1.01, -1), Range(1, 1.01)),
            "normal-signs": normal_sign_draws(known),
            "uniform-signs": uniform_sign_draws(known),
        }[kind]
        patterns.append(pattern_of(draws))
    places: list[tuple[int, int]] = []

    def note(index: int, skip: int) -> range:
        places.append((index, skip))
        return range(4)

    search_words(4, 400_001, patterns, note)
    assert sorted(places) == list(enumerate(skips))
    places.clear()
    search_words(4, 400_000, patterns, note)
    assert sorted(places) == list(enumerate(skips[:3]))
    places.clear()
    search_words(4, 400_001, patterns, lambda index, skip: note(index, skip)[:0])
    assert places == [(0, 0)]


# -------------------------------------------------------------------------------------- seeds

WAYS = [
    # Known values as few as can be; whatever the scale.
    ("normal", 1264, 1.0, math.sqrt(2 / 576)),
    ("normal", 8192, 0.5, 0.031415),
    ("uniform", 1300, 1.0, 1 / math.sqrt(576)),
    ("normal-signs", 22_000, 1.0, 0.05),
    ("uniform-signs", 22_000, 1.0, 0.05),
]


@pytest.mark.parametrize(("kind", "length", "keep", "scale"), WAYS)
def test_any_seed_is_solved_for(kind: Any, length: int, keep: float, scale: float) -> None:
    other = drawn(kind, 320, 2 * scale, skip=SKIP + length + 5000)
    layers = [
        replace(
            layer(drawn(kind, length, scale, skip=SKIP), keep), shape=(length // 576, 64, 3, 3)
        ),
        layer(other, 0.6),
        layer(RNG(1).standard_normal(500).astype("<f4")),
    ]
    prototypes = found(layers)
    assert prototypes[0] == TorchPrototype(kind, SEED, length, SKIP)
    assert prototypes[1:] == [TorchPrototype(kind, SEED, 320, SKIP + length + 5000), None]


@pytest.mark.parametrize("variant", ["vector", "scalar"])
@pytest.mark.parametrize(("kind", "dtype"), [("normal", "float16"), ("uniform", "bfloat16")])
def test_short_floats(kind: Any, dtype: str, variant: Any) -> None:
    values = drawn(kind, 9001, 0.05, dtype, skip=SKIP, variant=variant)
    (prototype,) = found([layer(values, dtype=dtype)])
    assert prototype.seed == SEED
    assert (prototype.skip, prototype.length) == (SKIP, 9001)


def test_scalar_uniform_values() -> None:
    """Their rounding depends on the bound itself."""
    low, high = -float(np.float32(1 / 24)), float(np.float32(1 / 24))
    values = drawn("uniform", 1300, low=low, high=high, skip=SKIP, variant="scalar")
    (prototype,) = found([replace(layer(values), shape=(2, 64, 3, 3))])
    assert prototype == TorchPrototype("uniform", SEED, 1300, SKIP, low, high, "scalar")


def test_values_from_zero_on() -> None:
    (prototype,) = found([layer(drawn("uniform", 5000, 0.2, low=0.0, skip=SKIP))])
    assert prototype == TorchPrototype("uniform", SEED, 5000, SKIP, 0.0)


def test_signs_of_zero() -> None:
    """The third value's word is the middle of all: torch's sign of it is 0."""
    values = drawn("uniform-signs", 22_000, 0.05, seed=7, skip=972_420)
    assert np.count_nonzero(values == 0) == 1
    expected = TorchPrototype("uniform-signs", 7, 22_000, 972_420)
    assert find_seeds([layer(values)], THOROUGH, {7: 0})[0] == SeededFill(
        expected, float(np.float32(0.05))
    )


def test_layers_that_share_values_know_them_together() -> None:
    """Each of four layers uses 30 % of values, too few by itself."""
    values = drawn("normal", 8001, 0.04, skip=SKIP)
    layers = [layer(values, 0.3, seed=seed) for seed in range(4)]
    assert found(layers[:1]) == [None]
    assert found(layers) == [TorchPrototype("normal", SEED, 8001, SKIP)] * 4


def test_repeated_vectors() -> None:
    """Drawn by themselves, or cut from a tensor of the largest layer's size, as PEMN does."""
    values = np.resize(drawn("normal", 2001, 0.04, skip=SKIP), 9000)
    layers = [layer(values, 0.7), layer(values[:5000], 0.5)]
    assert found(layers) == [TorchPrototype("normal", SEED, 2001, SKIP)] * 2
    values = np.resize(drawn("normal", 9000, 0.04, skip=SKIP)[:2001], 9000)
    assert found([layer(values, 0.7)]) == [TorchPrototype("normal", SEED, 2001, SKIP, drawn=9000)]


def test_small_seeds_of_few_values() -> None:
    values = drawn("normal", 25, 0.3, seed=37, skip=90_001)
    layers = [layer(np.resize(values, 5000), 0.5), layer(drawn("uniform", 40, seed=37, skip=11))]
    expected = [TorchPrototype("normal", 37, 25, 90_001), TorchPrototype("uniform", 37, 40, 11)]
    assert found(layers) == expected
    assert found(layers, Effort(0, 1 << 30, 20)) == [None, None]
    assert found(layers, FAST) == expected
    values = drawn("normal", 5000, 0.3, seed=37, skip=90_001)[:17]
    expected = [TorchPrototype("normal", 37, 17, 90_001, drawn=5000)]
    assert found([layer(np.resize(values, 5000), 0.5)]) == expected
    behind = drawn("normal", 25, 0.3, seed=37, skip=110_000)
    assert found([layer(np.resize(behind, 5000), 0.5)]) == [None]  # too far for so few weights


def test_a_seed_that_is_given() -> None:
    values = drawn("normal", 25, 0.3, skip=40_000_000)
    assert found([layer(values)]) == [None]
    given = find_seeds([layer(values)], None, {7: GIVEN_DRAWN, SEED: GIVEN_DRAWN})
    assert given[0] is not None
    assert given[0].prototype == TorchPrototype("normal", SEED, 25, 40_000_000)


def test_small_tensors_together() -> None:
    """None is enough by itself; torch drew defaults between them."""
    skip, layers, expected = SKIP, list[Layer](), []
    for number, length in enumerate((4000, 4007, 5000)):
        skip += length * (number > 0)
        expected.append(TorchPrototype("normal", SEED, length, skip))
        layers.append(layer(drawn("normal", length, 0.1 + number, skip=skip), 0.35, seed=number))
        skip += length + 16 * (length % 16 > 0)
    assert found(layers[1:2]) == [None]
    assert found(layers) == expected


def test_small_tensors_of_signs_together() -> None:
    values = drawn("uniform-signs", 26_000, 0.1, skip=SKIP)
    layers = [layer(values[:13_000] * 2), layer(values[13_000:])]
    assert found(layers) == [
        TorchPrototype("uniform-signs", SEED, 13_000, SKIP),
        TorchPrototype("uniform-signs", SEED, 13_000, SKIP + 13_000),
    ]


def test_several_seeds() -> None:
    layers = [layer(drawn("normal", 3000, 0.1, seed=SEED + i, skip=i)) for i in range(3)]
    assert found(layers) == [TorchPrototype("normal", SEED + i, 3000, i) for i in range(3)]


def test_what_was_changed_since_it_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is met among the words of a seed that is known, and not solved for again."""
    solve, sizes = kernels.mersenne_solve, []

    def counted(words: Any, *rest: Any) -> int:
        sizes.append(words.size)
        return solve(words, *rest)

    monkeypatch.setattr(kernels, "mersenne_solve", counted)
    values = drawn("normal", 8000, 0.1, skip=SKIP)
    changed = drawn("normal", 7000, 0.1, skip=SKIP + 9000)
    changed[3000] /= 2
    other = drawn("normal", 6000, 0.1, seed=SEED - 1, skip=8)
    assert found([layer(values), layer(changed), layer(other)]) == [
        TorchPrototype("normal", SEED, 8000, SKIP),
        None,
        TorchPrototype("normal", SEED - 1, 6000, 8),
    ]
    assert len(sizes) == 2


def foreign(kind: str, count: int) -> Array:
    rng = RNG(5)
    values = {
        "normal": lambda: rng.standard_normal(count) * 0.05,
        "uniform": lambda: rng.uniform(-0.04, 0.04, count),
        "signs": lambda: rng.choice([-0.05, 0.05], count),
        "legacy": lambda: np.random.RandomState(3).randn(count) * 0.05,
        "cut": lambda: np.clip(rng.standard_normal(count), -1, 1),
        "integers": lambda: rng.integers(-9, 9, count),
        "odd": lambda: np.where(rng.random(count) < 0.01, np.inf, rng.random(count)),
        "zeros": lambda: np.zeros(count),
    }[kind]()
    return values.astype("<f4")


@pytest.mark.parametrize(
    "kind",
    ["normal", "uniform", "signs", "legacy", "cut", "integers", "odd", "zeros"],
)
def test_values_of_others_have_no_seed(kind: str) -> None:
    layers = [layer(foreign(kind, count), 0.5) for count in (1, 2, 15, 300, 12_000)]
    assert found(layers, FAST) == [None] * 5
    assert found(layers[:4]) == [None] * 4


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_weights_of_any_bits_raise_no_warning(dtype: str) -> None:
    """NaNs of every kind, infinities, the largest and the smallest numbers."""
    carrier = CARRIERS[dtype]
    for size in (1, 33, 500):
        values = np.frombuffer(RNG(size).bytes(size * carrier.itemsize), carrier)
        finite = Layer(dtype, values, np.abs(as_doubles(values, dtype)) < np.inf)
        assert found([layer(values, dtype=dtype), finite], FAST) == [None, None]


def as_doubles(values: Array, dtype: str) -> NDArray[np.float64]:
    tensor = torch.from_numpy(values.view(np.uint8).copy()).view(getattr(torch, dtype))
    return tensor.double().numpy()


def test_one_changed_value_is_no_find() -> None:
    """All values must come from the seed, bit for bit."""
    values = drawn("normal", 3000, 0.1, skip=SKIP)
    values[2500] = np.nextafter(values[2500], np.float32(1))
    assert found([layer(values)]) == [None]


def test_effort_is_counted() -> None:
    values = layer(drawn("normal", 3000, 0.1, skip=SKIP))
    assert found([values], Effort(400, 0, 0)) == [None]
    assert found([values], Effort(500, 0, 0)) != [None]
    shares: list[float] = []
    signs = layer(foreign("signs", 6000))
    find_seeds([signs], Effort(9000, 1 << 28, 16), progress=lambda _, share: shares.append(share))
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] <= 1


# ------------------------------------------------------------------------------------- encode


def encoded(layers: dict[str, Array], keep: float = 0.5, **options: Any) -> Any:
    state = {name: torch.from_numpy(values) for name, values in layers.items()}
    masks = {name: torch.from_numpy(RNG(1).random(t.shape) < keep) for name, t in state.items()}
    stream = io.BytesIO()
    report = pemncodec.encode(state, stream, masks=masks, manifest=False, **options)
    for name, tensor in pemncodec.load_state_dict(stream).items():
        assert torch.equal(tensor, torch.where(masks[name], state[name], torch.zeros(())))
    return report


def test_what_torch_initialised_is_stored_as_a_seed() -> None:
    """As torch itself draws it: a default, then another initialisation, layer by layer."""
    first = draw("kaiming_normal_", [], SEED, 70_000, [64, 32, 3, 3])
    second = draw("xavier_uniform_", [], SEED, 70_000 + first.size, [128, 64])
    report = encoded({"a": first, "b": second})
    assert report.info.prototypes == (
        f"18,432 normal values, torch seed {SEED}, after 70,000 words",
        f"8,192 uniform values, torch seed {SEED}, after 88,432 words",
    )
    assert report.info.prototype_bytes == 0
    assert report.notes == (f"torch seed {SEED}: 26,624 of 26,624 frozen weights",)
    off = encoded({"a": first, "b": second}, find_seed="off")
    assert off.info.prototype_bytes > 40_000
    assert off.notes == ()
    assert report.info.file_bytes < off.info.file_bytes - 40_000


def test_a_seed_can_be_given() -> None:
    values = drawn("normal", 60, 0.3, skip=20_000_000)
    given = encoded({"a": values}, seed=SEED - (1 << 32), find_seed="off")
    assert given.notes == (f"torch seed {SEED}: 60 of 60 frozen weights",)
    with pytest.raises(
        pemncodec.PrototypeMismatchError, match="no masked layer comes from seed 5 "
    ):
        encoded({"a": values}, seed=5)
    for wrong in (1 << 64, -(1 << 63) - 1, 0.5, "1"):
        with pytest.raises(pemncodec.EncodeError, match=r"what torch\.manual_seed takes"):
            encoded({"a": values}, seed=wrong)
    with pytest.raises(
        pemncodec.EncodeError, match="unknown find_seed 'some', have auto, quick, full"
    ):
        encoded({"a": values}, find_seed="some")


def test_weights_that_come_from_no_seed_take_the_same_bytes() -> None:
    values = foreign("normal", 3000)
    report = encoded({"a": values})
    assert report.info.file_bytes == encoded({"a": values}, find_seed="off").info.file_bytes


# ------------------------------------------------------------------------------ command line


def pemn(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(arguments))
    return result.exit_code, result.output


def test_the_command_says_what_it_finds(tmp_path: Path) -> None:
    first = torch.from_numpy(drawn("normal", 3600, 0.1, skip=SKIP).reshape(60, 60))
    used = torch.from_numpy(RNG(0).random((60, 60)) < 0.9)
    other = torch.from_numpy(foreign("normal", 900).reshape(30, 30))
    path = tmp_path / "net.pt"
    torch.save({"a.weight": first * used, "a.bias": torch.ones(40), "b.weight": other}, path)
    masks = tmp_path / "masks.pt"
    torch.save({"a.weight": used}, masks)
    found = f"a.weight: 3,600 normal values, torch seed {SEED}, after {SKIP:,} words, × 0.1\n"
    assert pemn("seed", str(path), "--masks", str(masks)) == (0, found)
    code, output = pemn("seed", str(path), "--masks", str(masks), "--json", "--seed", str(SEED))
    assert code == 0
    (row,) = json.loads(output)["weights"]
    assert row == {
        "name": "a.weight",
        "prototype": asdict(TorchPrototype("normal", SEED, 3600, SKIP)),
        "scale": float(np.float32(0.1)),
    }
    # Without masks all weights count, and here zeros among them, which torch did not draw.
    note = "note: one of its tensors holds zeros: if these are pruned weights, give --masks-from "
    note += "zeros (masks_from=…)\n"
    assert pemn("seed", str(path)) == (1, f"a.weight: not found\nb.weight: not found\n{note}")
    assert pemn("seed", str(path), "--masks-from", "zeros") == (0, found)
    torch.save({"a.weight": first, "a.bias": torch.ones(40), "b.weight": other}, path)
    assert pemn("seed", str(path)) == (0, f"{found}b.weight: not found\n")
    code, output = pemn("seed", str(path), "--seed", "3")
    assert code == 1
    assert "no masked layer comes from seed 3 of torch's CPU generator, or of NumPy" in output


def test_encode_takes_the_options(tmp_path: Path) -> None:
    weight = torch.from_numpy(drawn("normal", 60, 0.3, skip=20_000_000))
    path, output = tmp_path / "net.pt", tmp_path / "net.pemn"
    torch.save({"a_orig": weight, "a_mask": torch.ones(60)}, path)
    encode = ("encode", str(path), "--no-manifest", "-f", "-o", str(output))
    for options, note in (
        (["--seed", str(SEED)], True),
        (["--seed", str(SEED), "--find-seed", "off"], True),
        ([], False),
        (["--find-seed", "quick"], False),
    ):
        code, said = pemn(*encode, *options)
        assert code == 0
        assert (f"note: torch seed {SEED}: 60 of 60 frozen weights" in said) is note
    assert pemn(*encode, "--seed", "3")[0] == 1
    code, said = pemn("seed", str(output))
    assert code == 2
    assert "a .pemn file says it itself: pemn inspect" in said


# ---------------------------------------------------------------------------------- benchmark


def test_the_benchmark_measures_what_it_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of its networks: found where there are enough known values, with the right seed."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = ("seeds", "models", "provenance", "convmixer")
    try:
        seeds = importlib.import_module("seeds")
        networks = seeds.networks()
        assert len({network.title for network in networks}) == len(networks) == 40
        for number, expected in ((29, 1), (15, 0)):  # the last by its tensors together
            row = seeds.measure_network(networks[number])
            assert row["expected"] == expected
            assert row["found"] == 1
        row = seeds.measure_foreign("NumPy normal", 0)
        assert (row["expected"], row["found"]) == (0, 0)
        assert len(list(seeds.foreign_networks())) == 100
    finally:
        for name in names:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("amount", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (32, 3, 3, 3), (64, 32)])
def test_weights_pruned_by_magnitude(shape: tuple[int, ...], amount: float) -> None:
    """Small values are missing, so that the largest are no longer far from the others."""
    values = draw("kaiming_normal_", [], 1234, 500, list(shape))
    kept = np.abs(values) > np.quantile(np.abs(values), amount)
    tensor = torch.from_numpy(values)
    stream = io.BytesIO()
    report = pemncodec.encode(
        {"a": tensor}, stream, masks={"a": torch.from_numpy(kept)}, manifest=False
    )
    assert report.info.prototypes == (
        f"{values.size:,} normal values, torch seed 1234, after 500 words",
    )


def test_the_command_says_by_its_status_whether_seeds_are_found(run: Run, tmp_path: Path) -> None:
    torch.save(
        {"a": torch.from_numpy(drawn("normal", 400, 0.3)).view(20, 20)}, tmp_path / "seeded.pt"
    )
    torch.save(
        {"a": torch.from_numpy(foreign("normal", 400)).view(20, 20)}, tmp_path / "foreign.pt"
    )
    assert run("seed", "seeded.pt", "--seed", SEED).returncode == 0
    result = run("seed", "foreign.pt")
    assert (result.returncode, result.stdout) == (1, b"a: not found\n")
    quiet = run("seed", "foreign.pt", "-q")
    assert (quiet.stdout, quiet.stderr) == (b"", b"")


def test_the_command_says_what_to_try_next(run: Run, tmp_path: Path) -> None:
    few = drawn("normal", 256, 0.3, seed=3_000_000_001).reshape(16, 16)
    torch.save({"a": torch.from_numpy(few)}, tmp_path / "few.pt")
    result = run("seed", "few.pt")
    assert (result.returncode, result.stdout) == (1, b"a: not found\n")
    assert b"--seed tries one that you know, and --find-seed full tries every" in result.stderr
    off = run("seed", "few.pt", "--find-seed", "off")
    assert (off.returncode, off.stdout) == (1, b"a: not looked for\n")
    assert b"--find-seed off looks for no seed: leave it out, or give --seed" in off.stderr
    known = run("seed", "few.pt", "--find-seed", "off", "--seed", "3000000001")
    assert known.stdout.startswith(b"a: 256 normal values, torch seed 3000000001")
    assert (known.returncode, known.stderr) == (0, b"")
