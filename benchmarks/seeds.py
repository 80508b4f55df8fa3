"""Which seeds of torch and NumPy are found behind frozen weights, and what the search costs.

    python benchmarks/seeds.py [--official FOLDER] [--rest] [-o FILE.csv]
    python benchmarks/seeds.py --list
    python benchmarks/seeds.py --print

* networks: 40, each with a random 32-bit seed and 10^6 words drawn before: five ways to initialise,
  four ways to share values, two keep ratios, every other one baked. --list says before any search
  which of them have as many known values in one tensor as the solver needs (NEEDED).
* numpy: 8 networks as FedPM initialises them, by NumPy's legacy generator.
* every: all 2^32 seeds at four places, from a 256th part of them.
* resnet: ResNet-50, kaiming normal, one random seed, encoded with its architecture.
* foreign: 100 networks whose values were drawn in other ways: nothing may be found.
* official: two checkpoints of the official PEMN code, where their folder is there.

Seconds are CPU time of one thread. The README quotes the Markdown table that --print makes of the
CSV.
"""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from models import resnet50
from provenance import provenance, read_table, write_table
from rich.progress import track
from torch import Tensor, nn

import pemncodec
from pemncodec.checkpoints.files import load_checkpoint
from pemncodec.contents import Array, Mask, SeededFill, TorchPrototype
from pemncodec.format.header import MaskedRow
from pemncodec.values.draws import Range, known_weights, normal_draws
from pemncodec.values.every_seed import Place, search_seeds, telling_equations
from pemncodec.values.philox import generate
from pemncodec.values.recovery import Layer, recover_prototypes
from pemncodec.values.seed_search import THOROUGH, find_seeds

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))
from convmixer import convmixer  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "seeds.csv"
RESNET = "ResNet-50, kaiming normal, keep 0.2, baked"
OFFICIAL = {"official-convmixer-onelayer-k20": 0.2, "official-convmixer-rp1e-3-k50": 0.5}
COLUMNS = (
    "part",
    "network",
    "weights",
    "known",
    "expected",
    "found",
    "seconds",
    "bytes",
    "header",
    "stored",
    "seed",
)
Row = dict[str, Any]
Shape = tuple[int, ...]

BEFORE = 1_000_000
RANDOM_VECTOR = 2_003
NEEDED = {
    "normal": {1.0: 1_264, 0.5: 8_192, 0.2: 32_768},
    "uniform": {1.0: 2_560, 0.5: 8_192, 0.2: 8_192},
    "signs": {1.0: 40_960, 0.5: 81_920, 0.2: 102_400},
}
"""Values that a tensor must have of which this share is known."""

SMALL: list[Shape] = [(128, 3, 4, 4), *[(128, 1, 5, 5), (128, 128, 1, 1)] * 4, (10, 128)]
LARGE: list[Shape] = [
    (64, 3, 3, 3), *[(64, 64, 3, 3)] * 3, (128, 64, 3, 3), *[(128, 128, 3, 3)] * 3,
    (256, 128, 3, 3), *[(256, 256, 3, 3)] * 3, (10, 256),
]  # fmt: skip
SHAPES = {"ConvMixer": SMALL, "ResNet": LARGE}


def default(weight: Tensor) -> Tensor:
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return weight


def kaiming_normal(weight: Tensor) -> Tensor:
    nn.init.kaiming_normal_(weight)
    return weight


def kaiming_uniform(weight: Tensor) -> Tensor:
    nn.init.kaiming_uniform_(weight)
    return weight


def xavier(weight: Tensor) -> Tensor:
    nn.init.xavier_normal_(weight)
    return weight


def signed_constant(weight: Tensor) -> Tensor:
    """As hidden-networks does."""
    nn.init.kaiming_normal_(weight)
    return weight.sign() * math.sqrt(2 / (weight[0].numel()))


INITIALISATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "default": ("uniform", default),
    "kaiming normal": ("normal", kaiming_normal),
    "kaiming uniform": ("uniform", kaiming_uniform),
    "xavier": ("normal", xavier),
    "signed constants": ("signs", signed_constant),
}
SHARING = ("one-layer", "mp", "rp", "independent")


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A network of which nobody recorded the seed."""

    number: int
    shapes: str
    initialisation: str
    sharing: str
    keep: float

    @property
    def baked(self) -> bool:
        return self.number % 2 == 1

    @property
    def seed(self) -> int:
        return int(np.random.default_rng(self.number).integers(1 << 32))

    @property
    def title(self) -> str:
        baked = ", baked" * self.baked
        return f"{self.shapes}, {self.initialisation}, {self.sharing}, keep {self.keep}{baked}"

    def layers(self) -> list[Layer]:
        """As a checkpoint has them."""
        shapes = SHAPES[self.shapes]
        torch.manual_seed(self.seed)
        torch.empty(BEFORE).uniform_()
        weights = self._weights(shapes)
        rng = np.random.default_rng(self.number)
        masks = [rng.random(weight.numel()) < self.keep for weight in weights]
        arrays = [weight.numpy().reshape(-1) for weight in weights]
        if self.baked:
            arrays = [array * mask for array, mask in zip(arrays, masks, strict=True)]
        return [
            Layer("float32", array, mask, None, shape)
            for array, mask, shape in zip(arrays, masks, shapes, strict=True)
        ]

    def _weights(self, shapes: Sequence[Shape]) -> list[Tensor]:
        draw = INITIALISATIONS[self.initialisation][1]
        for shape in shapes:  # the layers' own, which others replace
            default(torch.empty(shape))
        if self.sharing == "independent":
            return [draw(torch.empty(shape)) for shape in shapes]
        if self.sharing == "one-layer":
            drawn: dict[Shape, Tensor] = {}
            for shape in shapes:
                if shape not in drawn:
                    drawn[shape] = draw(torch.empty(shape))
            return [drawn[shape].clone() for shape in shapes]
        largest = draw(torch.empty(max(shapes, key=math.prod))).reshape(-1)
        if self.sharing == "rp":
            largest = largest[:RANDOM_VECTOR]
        return [
            torch.from_numpy(np.resize(largest.numpy(), math.prod(shape))).reshape(shape)
            for shape in shapes
        ]


def networks() -> list[Synthetic]:
    ways = [
        (init, sharing, keep)
        for init in INITIALISATIONS
        for sharing in SHARING
        for keep in (0.5, 0.2)
    ]
    return [
        Synthetic(number, "ConvMixer" if number // 2 % 2 else "ResNet", *way)
        for number, way in enumerate(ways)
    ]


def most_known(network: Synthetic, layers: Sequence[Layer]) -> tuple[int, bool]:
    """Known values of the tensor with the most, and whether they are as many as are needed."""
    kind = INITIALISATIONS[network.initialisation][0]
    used: dict[Any, Mask] = {}
    for index, layer in enumerate(layers):
        length = {"rp": RANDOM_VECTOR, "mp": max(one.values.size for one in layers)}.get(
            network.sharing, layer.values.size
        )
        key = {"independent": index, "one-layer": layer.shape}.get(network.sharing, 0)
        mask = used.setdefault(key, np.zeros(length, np.bool_))
        mask[np.flatnonzero(layer.mask) % length] = True
    enough = False
    for mask in used.values():
        shares = [share for share in NEEDED[kind] if mask.mean() >= share - 0.005]
        enough |= bool(shares) and mask.size >= NEEDED[kind][max(shares)]
    return max(int(mask.sum()) for mask in used.values()), enough


def search(layers: Sequence[Layer]) -> tuple[list[SeededFill | None], float]:
    start = time.process_time()
    fills = find_seeds(layers, THOROUGH)
    seconds = time.process_time() - start
    filled = [Layer(x.dtype, x.values, x.mask, fill) for x, fill in zip(layers, fills, strict=True)]
    prototypes, numbers = recover_prototypes(filled)  # compares them bit for bit
    for fill, number in zip(fills, numbers, strict=True):
        assert fill is None or prototypes[number.prototype] == fill.prototype
    return fills, seconds


def measure_network(network: Synthetic) -> Row:
    layers = network.layers()
    known, expected = most_known(network, layers)
    fills, seconds = search(layers)
    seeds = {fill.prototype.seed for fill in fills if fill is not None}
    assert seeds <= {network.seed}
    weights = sum(layer.values.size for layer in layers)
    found = sum(x.values.size for x, fill in zip(layers, fills, strict=True) if fill is not None)
    return {
        "part": "networks", "network": network.title, "weights": weights, "known": known,
        "expected": int(expected), "found": round(found / weights, 4), "seconds": round(seconds, 2),
        "seed": network.seed,
    }  # fmt: skip


# -------------------------------------------------------------------------------------- NumPy

NUMPY: dict[str, Callable[[np.random.RandomState, float, Shape], Array]] = {
    "NumPy signs": lambda state, c, shape: state.choice([-c, c], shape),
    "NumPy uniform": lambda state, c, shape: state.uniform(-c, c, shape) * 3**0.5,
}


def numpy_networks() -> Iterator[tuple[str, float, int]]:
    return ((kind, keep, number) for kind in NUMPY for keep in (0.5, 0.2) for number in range(2))


def numpy_title(kind: str, keep: float, number: int) -> str:
    return f"ResNet, {kind}, keep {keep}{', baked' * number}"


def measure_numpy(kind: str, keep: float, number: int) -> Row:
    """Weights and biases, layer by layer; every other network is baked."""
    rng = np.random.default_rng([number, round(10 * keep)])
    seed = int(rng.integers(1 << 32))
    state = np.random.RandomState(seed)
    state.randint(2, size=BEFORE)
    layers = []
    for shape in LARGE:
        c = math.e * math.sqrt(1 / math.prod(shape[1:]))
        values = NUMPY[kind](state, c, shape).astype("<f4").reshape(-1)
        state.choice([-c, c], shape[0])
        mask = rng.random(values.size) < keep
        layers.append(Layer("float32", values * mask if number else values, mask, None, shape))
    fills, seconds = search(layers)
    assert {fill.prototype.seed for fill in fills if fill is not None} <= {seed}
    found = [x.values.size for x, fill in zip(layers, fills, strict=True) if fill is not None]
    weights = sum(layer.values.size for layer in layers)
    return {
        "part": "numpy", "network": numpy_title(kind, keep, number),
        "weights": weights, "expected": 1, "found": round(sum(found) / weights, 4),
        "seconds": round(seconds, 2), "seed": seed,
    }  # fmt: skip


# --------------------------------------------------------------------------------- all 2^32 seeds

EVERY = "all seeds, one place"
_PART_OF_SEEDS = 256


def measure_every() -> Row:
    """CPU time of all threads together."""
    torch.manual_seed(0)
    weights = torch.empty(400).normal_().numpy()
    known = known_weights(weights, "float32", np.ones(400, np.bool_), 400)
    assert known is not None
    telling = telling_equations(normal_draws(known, Range(0.9, 1.1)))
    assert telling is not None
    places = [Place(telling, skip) for skip in (1_000, 100_000, 1_000_000, 10_000_000)]
    start = time.process_time()
    part = range((1 << 32) // _PART_OF_SEEDS)
    search_seeds(places, part, lambda _, __: False, lambda _: None)
    seconds = (time.process_time() - start) * _PART_OF_SEEDS / len(places)
    return {"part": "every", "network": EVERY, "expected": 0, "found": 0,
            "seconds": round(seconds, 1)}  # fmt: skip


# ------------------------------------------------------------------------------------ foreign


def _trained(shape: Shape, rng: np.random.Generator) -> Array:
    """Drawn by torch, and then a step of training."""
    torch.manual_seed(int(rng.integers(1 << 32)))
    weight = kaiming_normal(torch.empty(shape)).numpy()
    return weight + rng.standard_normal(shape).astype("<f4") * np.float32(1e-3)


def _by_philox(shape: Shape, rng: np.random.Generator) -> Array:
    values = generate("normal", int(rng.integers(1 << 60)), 0, math.prod(shape))
    return values * np.float32(0.05)


def _doubles(shape: Shape, rng: np.random.Generator) -> Array:
    """Drawn by torch in float64, which takes other words."""
    torch.manual_seed(int(rng.integers(1 << 32)))
    return torch.empty(shape, dtype=torch.float64).normal_(0, 0.05).float().numpy()


def _cut(shape: Shape, rng: np.random.Generator) -> Array:
    """Of torch's words, but a distribution that the format does not have."""
    torch.manual_seed(int(rng.integers(1 << 32)))
    return nn.init.trunc_normal_(torch.empty(shape), std=0.02, a=-0.02, b=0.02).numpy()


def _legacy(rng: np.random.Generator) -> np.random.RandomState:
    return np.random.RandomState(int(rng.integers(1 << 32)))


FOREIGN: dict[str, Callable[[Shape, np.random.Generator], Array]] = {
    "NumPy normal": lambda shape, rng: rng.standard_normal(shape) * 0.05,
    "NumPy uniform": lambda shape, rng: rng.uniform(-0.04, 0.04, shape),
    "NumPy signs": lambda shape, rng: rng.choice([-0.05, 0.05], shape),
    "NumPy legacy randn": lambda shape, rng: _legacy(rng).randn(*shape) * 0.05,
    "triangular": lambda shape, rng: rng.triangular(-0.04, 0, 0.04, shape),
    "Laplace": lambda shape, rng: rng.laplace(0, 0.05, shape),
    "trained": _trained,
    "pemncodec's own": _by_philox,
    "torch float64": _doubles,
    "torch trunc_normal_ at 1 σ": _cut,
}


def foreign_networks() -> Iterator[tuple[str, int]]:
    return ((kind, number) for kind in FOREIGN for number in range(10))


def measure_foreign(kind: str, number: int) -> Row:
    rng = np.random.default_rng([number, len(kind)])
    shapes = LARGE if number % 2 else SMALL
    layers = []
    for shape in shapes:
        values = np.asarray(FOREIGN[kind](shape, rng), "<f4").reshape(-1)
        layers.append(
            Layer("float32", values, rng.random(values.size) < (0.5, 0.2)[number // 5], None, shape)
        )
    fills, seconds = search(layers)
    return {
        "part": "foreign", "network": f"{kind} {number}", "expected": 0,
        "weights": sum(layer.values.size for layer in layers),
        "found": sum(fill is not None for fill in fills), "seconds": round(seconds, 2),
    }  # fmt: skip


# ------------------------------------------------------------------------------- whole files


def measure_resnet() -> Row:
    seed = int(np.random.default_rng(50).integers(1 << 32))
    torch.manual_seed(seed)
    model = resnet50()
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            weights[f"{name}.weight"] = module.weight
    rng = np.random.default_rng(51)
    masks = {name: torch.from_numpy(rng.random(w.shape) < 0.2) for name, w in weights.items()}
    with torch.no_grad():  # baked
        for name, weight in weights.items():
            weight *= masks[name]
    return _encoded("resnet", RESNET, model.eval(), {"masks": masks}) | {"seed": seed}


def measure_official(path: Path, keep: float) -> Row:
    module = convmixer(dim=128, depth=4, kernel_size=5, patch_size=4, n_classes=10)
    options = {"keep": keep, "architecture": module, "preset": "max"}
    options["example_inputs"] = torch.zeros(2, 3, 32, 32)
    return _encoded("official", path.stem, load_checkpoint(path), options)


def _encoded(part: str, title: str, source: Any, options: dict[str, Any]) -> Row:
    stream = io.BytesIO()
    start = time.process_time()
    info = pemncodec.encode(source, stream, **options).info
    seconds = time.process_time() - start
    stored = pemncodec.encode(source, io.BytesIO(), find_seed="off", **options).info
    with pemncodec.open(stream) as file:
        rows = [row for row in file.header.tensors if isinstance(row, MaskedRow)]
        seeded = [
            isinstance(file.header.prototypes[r.fill.prototype], TorchPrototype) for r in rows
        ]
    return {
        "part": part, "network": title, "weights": info.masked_weights, "expected": 1,
        "found": round(sum(seeded) / len(seeded), 4), "seconds": round(seconds, 2),
        "bytes": info.file_bytes, "header": info.header_bytes, "stored": stored.file_bytes,
    }  # fmt: skip


# --------------------------------------------------------------------------------------- main


def print_tables(path: Path) -> None:
    """Whole files; of the 40 networks, a row for each initialisation; of the foreign ones, one."""
    _, rows = read_table(path)
    print("| network | without seeds | with seeds | CPU seconds |\n|---|---:|---:|---:|")
    for row in rows:
        if row["bytes"]:
            sizes = f"{int(row['stored']):,} | {int(row['bytes']):,} | {float(row['seconds']):.1f}"
            print(f"| {row['network']} | {sizes} |")
    print()
    print("| networks | enough known values | of these found | of the others | CPU seconds, most |")
    print("|---|---:|---:|---:|---:|")
    for name in (*INITIALISATIONS, *NUMPY):
        parts = ("networks", "numpy")
        own = [r for r in rows if r["part"] in parts and f", {name}," in r["network"]]
        enough = [r for r in own if r["expected"] == "1"]
        others = [r for r in own if r["expected"] == "0"]
        found = sum(float(r["found"]) == 1 for r in enough)
        by_luck = sum(float(r["found"]) == 1 for r in others)
        slowest = max((float(r["seconds"]) for r in own), default=0.0)
        of_others = f"{by_luck} of {len(others)}"
        print(f"| {name} | {len(enough)} of {len(own)} | {found} | {of_others} | {slowest:.1f} |")
    foreign = [r for r in rows if r["part"] == "foreign"]
    false = sum(float(r["found"]) > 0 for r in foreign)
    slowest = max((float(r["seconds"]) for r in foreign), default=0.0)
    print(f"| {len(foreign)} of other values | | {false} | | {slowest:.1f} |")
    for row in rows:
        if row["part"] == "every":
            print(f"\n{row['network']}: {float(row['seconds']):.0f} CPU seconds")


@click.command()
@click.option("--official", type=Path, help="Folder of the two official checkpoints.")
@click.option("--rest", is_flag=True, help="Only what is not yet in the CSV.")
@click.option("--list", "listed", is_flag=True, help="Which of the 40 are expected; no search.")
@click.option("--print", "printed", is_flag=True, help="The tables of the CSV.")
@click.option("-o", "--output", type=Path, default=RESULTS)
def main(official: Path | None, rest: bool, listed: bool, printed: bool, output: Path) -> None:
    """Measures all networks, and prints a table."""
    torch.set_num_threads(1)
    if printed:
        print_tables(output)
        return
    if listed:
        for network in networks():
            known, expected = most_known(network, network.layers())
            print(f"{'expected' if expected else 'too few':8}  {known:7,}  {network.title}")
        return
    measured_on = provenance(("torch", "numpy"))  # before the output changes what git sees
    jobs: dict[str, Callable[[], Row]] = {}
    for network in networks():
        jobs[network.title] = partial(measure_network, network)
    for name, keep in OFFICIAL.items() if official else ():
        jobs[name] = partial(measure_official, official / f"{name}.pt", keep)
    jobs[RESNET] = measure_resnet
    jobs[EVERY] = measure_every
    for kind, keep, number in numpy_networks():
        jobs[numpy_title(kind, keep, number)] = partial(measure_numpy, kind, keep, number)
    for kind, number in foreign_networks():
        jobs[f"{kind} {number}"] = partial(measure_foreign, kind, number)
    there = {row["network"]: row for row in read_table(output)[1]} if rest else {}
    rows = [there[title] for title in jobs if title in there]
    for title in track([title for title in jobs if title not in there], "measuring"):
        rows.append(jobs[title]())
        write_table(output, measured_on, rows, COLUMNS)
    print_tables(output)


if __name__ == "__main__":
    main()
