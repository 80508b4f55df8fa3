"""All seeds of torch behind weights, where an architecture suggests: few values are enough."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import pemncodec
from pemncodec import TorchPrototype
from pemncodec.cli import cli
from pemncodec.values.every_seed import EQUATIONS, Place, search_seeds, telling_equations
from pemncodec.values.fill import prototype_values
from pemncodec.values.initialisation import Drawn, words_before
from pemncodec.values.recovery import Layer
from pemncodec.values.seed_search import FULL, Network, find_seeds
from pemncodec.values.sought import hypotheses, sought_tensors

SEED = 3_000_123_456
NEAR = range(SEED - 3000, SEED + 1000)  # in place of all seeds: as many take ten minutes or more
RNG = np.random.default_rng


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `--find-seed full` try those seeds alone."""
    assert FULL.every == range(1 << 32)
    monkeypatch.setattr("pemncodec.options.FULL", replace(FULL, seeds=8, every=NEAR))


def layers_of(count: int, distribution: Any = "normal", **fields: Any) -> list[Layer]:
    """A layer of which so many weights are known."""
    prototype = TorchPrototype(distribution, SEED, fields.pop("length", 400), **fields)
    values = prototype_values(prototype) * np.float32(1 / 8)
    mask = np.zeros(values.size, np.bool_)
    mask[RNG(3).permutation(values.size)[:count]] = True
    return [Layer("float32", values, mask, None, (values.size,))]


def found(layers: Sequence[Layer], network: Network, seeds: range = NEAR) -> list[Any]:
    effort = replace(FULL, solving=0, comparing=0, every=seeds)
    fills = find_seeds(layers, effort, network=network)
    return [fill and fill.prototype for fill in fills]


# ------------------------------------------------------------------------------------- places


def scores(weight: Tensor) -> Tensor:
    return nn.init.kaiming_uniform_(torch.empty_like(weight), a=math.sqrt(5))


def convolution(number: int) -> nn.Conv2d | nn.Linear:
    made = [
        lambda: nn.Conv2d(3, 16, 3),
        lambda: nn.Conv2d(16, 24, 1, bias=False),
        lambda: nn.Linear(33, 10),
    ]
    return made[number]()  # type: ignore[no-any-return]


Initialise = Callable[[Tensor], Tensor]


def again_when_complete(own: Initialise) -> list[nn.Module]:
    layers = [convolution(number) for number in range(3)]
    for layer in layers:
        own(layer.weight)
    return list(layers)


def again_layer_by_layer(own: Initialise) -> list[nn.Module]:
    layers = []
    for number in range(3):
        layers.append(convolution(number))
        own(layers[-1].weight)
    return list(layers)


def with_scores_before(own: Initialise) -> list[nn.Module]:
    layers = []
    for number in range(3):
        layers.append(convolution(number))
        scores(layers[-1].weight)
        own(layers[-1].weight)
    return list(layers)


def with_scores_behind(own: Initialise) -> list[nn.Module]:
    layers = []
    for number in range(3):
        layers.append(convolution(number))
        own(layers[-1].weight)
        scores(layers[-1].weight)
    return list(layers)


def with_scores_when_complete(own: Initialise) -> list[nn.Module]:
    layers = []
    for number in range(3):
        layers.append(convolution(number))
        scores(layers[-1].weight)
    for layer in layers:
        own(layer.weight)
    return list(layers)


def without_defaults(own: Initialise) -> list[nn.Module]:
    layers = again_when_complete(lambda weight: weight)
    torch.manual_seed(SEED)
    for layer in layers:
        own(layer.weight)  # type: ignore[arg-type]
    return layers


WAYS = [
    again_when_complete,
    again_layer_by_layer,
    with_scores_before,
    with_scores_behind,
    with_scores_when_complete,
    without_defaults,
]


def network_of(way: Callable[[Initialise], list[nn.Module]], own: Initialise) -> dict[str, Tensor]:
    torch.manual_seed(SEED)
    return nn.Sequential(*way(own)).state_dict()


def encoded(state: dict[str, Tensor], count: int, **options: Any) -> Any:
    """Of each weight so many elements are known, and neighbours of the same group."""
    masks = {}
    for name, tensor in state.items():
        if tensor.dim() > 1:
            used = np.zeros(tensor.numel(), np.bool_)
            used[:count] = True
            masks[name] = torch.from_numpy(used).view(tensor.shape)
    stream = io.BytesIO()
    report = pemncodec.encode(state, stream, masks=masks, manifest=False, **options)
    loaded = pemncodec.load_state_dict(stream)
    assert all(torch.equal(loaded[n], state[n] * masks.get(n, 1)) for n in state)
    return report


def signs(weight: Tensor) -> Tensor:
    """Of the default, as in real checkpoints."""
    return weight.copy_(weight.sign() / 8)


@pytest.mark.usefixtures("near")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("own", [nn.init.kaiming_normal_, nn.init.kaiming_uniform_, signs])
def test_layers_of_every_way_to_initialise_them(way: Any, own: Initialise) -> None:
    with torch.no_grad():
        state = network_of(way, own)
    report = encoded(state, 80, find_seed="full", preset="fast")
    assert report.notes == (f"torch seed {SEED}: 1,146 of 1,146 frozen weights",)


def test_words_before_a_layer() -> None:
    layers = [Drawn(100, 10), Drawn(7), Drawn(320, 5)]
    assert words_before(layers, 0, normal=False) == (442, 110, 0, 210, 869)
    assert words_before(layers, 2, normal=False) == (549, 117, 976, 224, 107, 656, 0)
    # Normal values fill their groups, or are drawn by pairs.
    assert words_before(layers, 2, normal=True) == (574, 117, 1001, 224, 132, 681, 0)


# ------------------------------------------------------------------------------------- search


CHAIN = Network((Drawn(100, 10), Drawn(400)), (1,))  # its second layer is sought


@pytest.mark.parametrize(
    ("distribution", "count", "skip"),
    [("normal", 60, 626), ("normal-signs", 62, 0), ("uniform-signs", 62, 710)],
)
def test_few_values_are_enough(distribution: Any, count: int, skip: int) -> None:
    expected = TorchPrototype(distribution, SEED, 400, skip)
    assert found(layers_of(count, distribution, skip=skip), CHAIN) == [expected]
    assert found(layers_of(count, distribution, skip=skip), CHAIN, range(SEED)[-500:]) == [None]
    assert found(layers_of(count, distribution, skip=skip + 1), CHAIN) == [None]
    assert found(layers_of(count // 8, distribution, skip=skip), CHAIN) == [None]


def test_few_uniform_values_of_a_usual_bound() -> None:
    values = prototype_values(TorchPrototype("uniform", SEED, 64, 110)) * np.float32(0.125)
    mask = np.zeros(64, np.bool_)
    mask[[3, 9, 40, 63]] = True
    network = Network((Drawn(100, 10), Drawn(64)), (1,))
    layer = Layer("float32", values, mask, None, (1, 64))  # whose default is up to 1 / 8
    assert found([layer], network) == [TorchPrototype("uniform", SEED, 64, 110)]


def test_vectors_that_layers_share() -> None:
    """Cut from a tensor of the largest layer's size, or drawn for the first by itself."""
    network = Network((Drawn(100), Drawn(2000), Drawn(500)), (1, 2))
    masks = [RNG(n).random(size) < 0.9 for n, size in enumerate((2000, 500))]
    for prototype in (
        TorchPrototype("normal", SEED, 17, 2716, drawn=2000),
        TorchPrototype("normal", SEED, 17, 0),
    ):
        vector = prototype_values(prototype)
        layers = [
            Layer("float32", np.resize(vector, mask.size), mask, None, (mask.size,))
            for mask in masks
        ]
        assert found(layers, network) == [prototype, prototype]


def test_other_layers_at_their_own_places() -> None:
    """Of which too little is known to find them among many words."""
    network = Network((Drawn(400), Drawn(320), Drawn(160)), (0, 1, 2))
    first = layers_of(60, skip=880)
    few = layers_of(5, length=320, skip=1280)
    wrong = layers_of(5, length=160, skip=1601)
    expected = [TorchPrototype("normal", SEED, 400, 880), TorchPrototype("normal", SEED, 320, 1280)]
    assert found(first + few + wrong, network) == [*expected, None]


def test_the_order_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = layers_of(80, skip=510)
    (tensor,) = sought_tensors(layers)
    telling = telling_equations(hypotheses(tensor, [])[0].draws)
    assert telling is not None
    assert telling.words.size == EQUATIONS
    monkeypatch.setattr("pemncodec.values.every_seed._AT_ONCE", 100)
    for threads in (1, 3):
        monkeypatch.setattr("pemncodec.values.every_seed.available_threads", lambda n=threads: n)
        hits: list[tuple[int, int]] = []
        shares: list[float] = []

        def note(index: int, seed: int, hits: list[tuple[int, int]] = hits) -> bool:
            hits.append((index, seed))
            return len(hits) == 3

        places = [Place(telling, skip) for skip in (5, 510, 7, 510, 9, 510, 510)]
        search_seeds(places, NEAR, note, shares.append)
        assert hits == [(1, SEED), (3, SEED), (5, SEED)]
        assert shares == sorted(shares)
        assert shares[-1] < 1
        search_seeds(places[:1], NEAR, note, shares.append)
        assert shares[-1] == 1


def test_it_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pemncodec.values.every_seed._AT_ONCE", 100)
    shares: list[float] = []

    def stop(_: str, share: float) -> None:
        shares.append(share)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_seeds(
            layers_of(80, skip=5), replace(FULL, solving=0, comparing=0), progress=stop,
            network=CHAIN,
        )  # fmt: skip
    assert len(shares) == 1


def test_without_a_network_all_seeds_are_not_tried() -> None:
    assert find_seeds(layers_of(80, skip=510), replace(FULL, solving=0, comparing=0)) == [None]


# ------------------------------------------------------------------------------ command line


def pemn(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(arguments))
    return result.exit_code, result.output


@pytest.mark.usefixtures("near")
def test_the_commands_take_the_option(tmp_path: Path) -> None:
    state = network_of(again_when_complete, nn.init.kaiming_normal_)
    used = {n: torch.arange(t.numel()).view(t.shape) < 80 for n, t in state.items() if t.dim() > 1}
    path, masks = tmp_path / "net.pt", tmp_path / "masks.pt"
    torch.save(state, path)
    torch.save(used, masks)
    given = (str(path), "--masks", str(masks))
    assert pemn("seed", *given)[0] == 1
    code, said = pemn("seed", *given, "--find-seed", "full")
    assert code == 0
    assert f"0.weight: 432 normal values, torch seed {SEED}, after 1,172 words, × " in said
    code, said = pemn("seed", *given, "--find-seed", "full", "--json")
    assert all(row["prototype"]["seed"] == SEED for row in json.loads(said)["weights"])
    encode = ("encode", *given, "--no-manifest", "-f", "-o", str(tmp_path / "net.pemn"))
    hint = "note: no seed of torch or NumPy is found behind 1,146 values, so that they are stored"
    for options, note in (
        ([], f"{hint} (--find-seed full tries all)"),
        (["--find-seed", "full"], f"note: torch seed {SEED}: 1,146 of 1,146 frozen weights"),
        (["--find-seed", "quick"], None),
    ):
        code, said = pemn(*encode, *options)
        assert code == 0
        assert note in said if note else "no seed of" not in said


@pytest.mark.usefixtures("near")
def test_a_search_that_finds_nothing_says_so() -> None:
    values = torch.from_numpy(RNG(0).standard_normal((20, 20), np.float32))
    note = "no seed of torch or NumPy is found behind 400 values, so that they are stored"
    assert encoded({"a": values}, 80, find_seed="full").notes == (note,)
    assert encoded({"a": values}, 80).notes == (f"{note} (--find-seed full tries all)",)
    assert encoded({"a": values}, 80, find_seed="off").notes == ()
    assert encoded({"a": values[:3]}, 60).notes == ()  # not worth a word
