"""Values of NumPy's legacy generator: as NumPy draws them, in files, and the seeds behind them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

import pemncodec
from pemncodec import TorchPrototype
from pemncodec.cli import cli
from pemncodec.contents import Contents, Fill, MaskedTensor
from pemncodec.format.writer import encode_contents
from pemncodec.values.draws import equations_of, known_weights
from pemncodec.values.fill import prototype_values
from pemncodec.values.generators import check_prototype, seeded_slice
from pemncodec.values.initialisation import Drawn
from pemncodec.values.numpy_sought import numpy_sign_draws
from pemncodec.values.recovery import Layer
from pemncodec.values.seed_search import THOROUGH, Effort, Network, find_seeds
from pemncodec.values.torch_cpu import words_of

SEED = 3_405_691_582
RNG = np.random.default_rng
Draw = Callable[[np.random.RandomState], NDArray[np.float64]]


def drawn(draw: Draw, seed: int = SEED, before: int = 0) -> NDArray[np.float32]:
    """What NumPy draws after some words, as a checkpoint has it."""
    state = np.random.RandomState(seed)
    state.randint(2, size=before)
    return draw(state).astype(np.float32).ravel()


# ------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
@pytest.mark.parametrize("before", [0, 1, 623, 100_000])
@pytest.mark.parametrize("length", [1, 5, 700, 70_000])
def test_values_are_those_of_numpy(seed: int, before: int, length: int) -> None:
    for low, high in ((-0.04, 0.04), (0.0, 0.1), (-0.3, 0.8), (0.5, 2.5), (-1.0, 1.0)):
        prototype = TorchPrototype("numpy-uniform", seed, length, before, low, high)
        expected = drawn(lambda state, a=low, b=high: state.uniform(a, b, length), seed, before)
        assert np.array_equal(prototype_values(prototype), expected)
    signs = prototype_values(TorchPrototype("numpy-signs", seed, length, before))
    expected = drawn(lambda state: state.choice([-1, 1], length), seed, before)
    assert np.array_equal(signs, expected)
    expected = drawn(lambda state: state.randint(0, 2, length), seed, before)
    assert np.array_equal(signs, 2 * expected - 1)


@pytest.mark.parametrize("kind", ["numpy-uniform", "numpy-signs"])
def test_slices_are_parts_of_the_whole(kind: Any) -> None:
    prototype = TorchPrototype(kind, 3, 140_000, 17)
    whole = prototype_values(prototype)
    for start, stop in ((0, 1), (1, 2), (65_535, 65_538), (139_999, 140_000), (7, 131_080)):
        part = seeded_slice(prototype, start, stop)
        assert np.array_equal(part, whole[start:stop])
        scaled = seeded_slice(prototype, start, stop, 0.3)
        assert np.array_equal(scaled, part * np.float32(0.3))


def test_words_and_fields() -> None:
    assert words_of(TorchPrototype("numpy-uniform", 0, 33)) == 66
    assert words_of(TorchPrototype("numpy-signs", 0, 33, drawn=40)) == 40
    uniform = TorchPrototype("numpy-uniform", 5, 9, 1, -0.04, 0.04)
    assert uniform.in_words == "9 uniform (-0.04 to 0.04) values, NumPy seed 5, after 1 words"
    signs = TorchPrototype("numpy-signs", 5, 9, 1)
    assert signs.in_words == "9 signs, NumPy seed 5, after 1 words"
    most = (1 << 63) - 1 - 16
    for fine in (uniform, signs, TorchPrototype("numpy-uniform", 0, 5, most - 10)):
        check_prototype(fine)
    for fields in (
        {"variant": "scalar"},
        {"low": 0.5, "high": 0.5},
        {"low": float("-inf")},
        {"high": float("nan")},
        {"low": -2e38, "high": 2e38},
        {"low": 1e39, "high": 2e39},
        {"skip": most - 9},
    ):
        with pytest.raises(ValueError, match=r"NumPy|cannot lie|there cannot be"):
            check_prototype(TorchPrototype("numpy-uniform", 0, 5, **fields))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="low and high are for uniform values alone"):
        check_prototype(TorchPrototype("numpy-signs", 0, 5, low=0.0))


def test_files_say_by_their_version_what_they_hold() -> None:
    def version(*kinds: Any) -> tuple[int, ...]:
        prototypes = tuple(TorchPrototype(kind, 1, 16) for kind in kinds)
        mask = np.ones(16, np.bool_)
        tensors = tuple(
            MaskedTensor(f"w{n}", "float32", (16,), Fill(n), mask) for n in range(len(kinds))
        )
        data = b"".join(encode_contents(Contents(prototypes, tensors)))
        with pemncodec.open(io.BytesIO(data)) as file:
            assert file.header.prototypes == prototypes
        return tuple(data[8:10])

    assert version("normal") == (0, 2)
    assert version("numpy-signs") == version("normal", "numpy-uniform") == (0, 3)


# -------------------------------------------------------------------------------------- seeds


def layer(values: NDArray[np.float32], keep: float = 1.0) -> Layer:
    mask = RNG(0).random(values.size) < keep
    return Layer("float32", values * mask, mask, None, (values.size,))


@pytest.mark.parametrize(
    ("draw", "keep", "expected"),
    [
        (lambda s: s.uniform(-0.04, 0.04, 6000), 0.5, ("numpy-uniform", -0.04, 0.04)),
        (lambda s: s.rand(3000) * 0.3, 1.0, ("numpy-uniform", 0.0, 0.3)),
    ],
)
def test_any_seed_is_solved_for(draw: Draw, keep: float, expected: Any) -> None:
    values = drawn(draw, before=100_003)
    (fill,) = find_seeds([layer(values, keep)], THOROUGH)
    assert fill is not None
    kind, low, high = expected
    assert fill.prototype == TorchPrototype(kind, SEED, values.size, 100_003, low, high)


def test_signs_say_what_the_lowest_bits_are() -> None:
    """Some 20,000 of them are solved like others, in seconds."""
    values = drawn(lambda s: s.choice([-0.05, 0.05], 3000), before=77)
    known = known_weights(values, "float32", RNG(1).random(3000) < 0.4, 3000)
    assert known is not None
    draws = numpy_sign_draws(known)
    equations = equations_of(draws)
    assert equations.words.size == known.places.size
    state = np.random.RandomState(SEED)
    words = state.randint(1 << 32, size=3077, dtype=np.uint32)[77:]
    assert np.array_equal(words[equations.words] & equations.masks, equations.parities)
    assert (equations.masks == 1).all()


def test_bounds_that_were_computed() -> None:
    """As FedPM's: uniform values times the root of 3, in float64."""
    c = np.e / 8
    values = drawn(lambda s: s.uniform(-c, c, 6000) * np.sqrt(3))
    (fill,) = find_seeds([layer(values, 0.5)], THOROUGH)
    assert fill is not None
    made = prototype_values(fill.prototype)
    assert np.abs(made).max() <= c * 3**0.5
    assert fill.prototype.seed == SEED


def test_small_seeds_of_few_values() -> None:
    values = drawn(lambda s: s.uniform(-0.125, 0.125, 64), 37, 999)
    small = Layer("float32", values, np.ones(64, np.bool_), None, (1, 64))
    signs = drawn(lambda s: s.choice([-1, 1], 300), 37, 5000)
    found = find_seeds([small, layer(signs)], THOROUGH)
    assert [fill and fill.prototype.seed for fill in found] == [37, 37]


def test_every_seed_where_the_architecture_suggests() -> None:
    values = drawn(lambda s: s.choice([-0.1, 0.1], 400), before=110)
    network = Network((Drawn(100, 10), Drawn(400)), (1,))
    effort = Effort(0, 0, 0, range(SEED - 500, SEED + 100))
    (fill,) = find_seeds([layer(values, 0.25)], effort, network=network)
    assert fill is not None
    assert fill.prototype == TorchPrototype("numpy-signs", SEED, 400, 110)
    (fill,) = find_seeds([layer(-values, 0.25)], effort, network=network)
    assert fill is None  # the other way round: choice([0.1, -0.1])


# ------------------------------------------------------------------------------------- encode


def test_what_numpy_drew_is_stored_as_a_seed(tmp_path: Path) -> None:
    state = np.random.RandomState(37)
    first = torch.tensor(state.choice([-0.2, 0.2], (15, 150)), dtype=torch.float)
    second = torch.tensor(state.uniform(-0.1, 0.1, (60, 50)), dtype=torch.float)
    tensors = {"a.weight": first, "b.weight": second}
    masks = {name: torch.rand(t.shape) < 0.95 for name, t in tensors.items()}
    stream = io.BytesIO()
    report = pemncodec.encode(tensors, stream, masks=masks, manifest=False, seed=37)
    assert report.info.prototypes == (
        "2,250 signs, NumPy seed 37, after 0 words",
        "3,000 uniform (-0.1 to 0.1) values, NumPy seed 37, after 2,250 words",
    )
    assert report.notes == ("NumPy seed 37: 5,250 of 5,250 frozen weights",)
    assert report.info.prototype_bytes == 0
    for name, loaded in pemncodec.load_state_dict(stream).items():
        assert torch.equal(loaded, tensors[name] * masks[name])
    torch.save(tensors, tmp_path / "net.pt")
    given = ["seed", str(tmp_path / "net.pt"), "--seed", "37"]
    result = CliRunner().invoke(cli, given)
    assert "2,250 signs, NumPy seed 37, after 0 words, × 0.2" in result.output


def test_seeds_of_both_are_named() -> None:
    torch.manual_seed(11)
    uniform = np.random.RandomState(12).uniform(-0.1, 0.1, (60, 60))
    tensors = {
        "a": torch.empty(40, 50).normal_(),
        "b": torch.tensor(uniform, dtype=torch.float),
    }
    masks = {name: torch.ones(t.shape, dtype=torch.bool) for name, t in tensors.items()}
    notes = pemncodec.encode(tensors, io.BytesIO(), masks=masks, manifest=False).notes
    assert notes == ("torch seed 11 and NumPy seed 12: 5,600 of 5,600 frozen weights",)
