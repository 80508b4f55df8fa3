"""What a training step of a masked model costs on a CPU, against the same model with plain weights.

python benchmarks/step_cost.py [--rounds 7] [--threads 1,2] [-o FILE.csv]

A step is forward, backward and AdamW, whose moments the scores of one model and the weights of the
other take alike. In each round either model trains in a fresh process of its own, one after the
other, as it would for a user; then both train in one process, a step of either in turn. The table
shows medians over rounds: the median step, the ratio of the two with the least and the largest of
it, and the ratio in one process.

What memory costs is a matter of luck: glibc gives freed memory back to the system when enough of it
is at the end of the heap, and the next step, of either model, then has a page fault for each 4 KiB.
So the ratio in one process is also measured with memory that is kept (MALLOC_TRIM_THRESHOLD_ and
MALLOC_MMAP_THRESHOLD_), which leaves the computation itself.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from models import build_model
from provenance import provenance, write_table
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from pemncodec.masking import RandomPadding, mask_model, parameter_groups

ROOT = Path(__file__).parent.parent
WARM_UP, FEWEST, MOST, SECONDS = 3, 5, 25, 2.0  # steps of a process; the time they may take

# Of glibc; 32 MiB is the most that it takes for the latter.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}

Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """A network and the shape of its input, batch first."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


def resnet() -> nn.Module:
    return build_model("resnet20", dim=0, depth=0, patch=0, kernel=0)


def vit() -> nn.Module:
    return build_model("vit", dim=256, depth=6, patch=4, kernel=0)


def convmixer() -> nn.Module:
    return build_model("convmixer", dim=256, depth=8, patch=2, kernel=5)


CASES = (
    Case("ConvMixer 256/8", convmixer, (32, 3, 32, 32)),
    Case("ResNet-20", resnet, (64, 3, 32, 32)),
    Case("ViT 256/6", vit, (32, 3, 32, 32)),
    Case("MLP 1024", perceptron, (512, 1024)),
    Case("MLP 1024", perceptron, (128, 1024)),
    Case("MLP 1024", perceptron, (32, 1024)),
    Case("Linear 4096 × 4096", lambda: nn.Linear(4096, 4096), (128, 4096)),
)


def stepper(model: nn.Module, groups: Sequence[dict[str, object]], x: Tensor) -> Step:
    optimizer = torch.optim.AdamW(groups, lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


def seconds_of(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def milliseconds(index: int, threads: int, kinds: Sequence[str]) -> list[float]:
    """Of the median step of a "plain" and a "masked" model that train in turn in this process."""
    torch.set_num_threads(threads)
    case = CASES[index]
    x = torch.randn(case.shape)
    steps: list[Step] = []
    for kind in kinds:
        model = case.build()
        groups: list[dict[str, object]] = [{"params": list(model.parameters())}]
        if kind == "masked":
            mask_model(model, RandomPadding(ratio=1e-3))
            groups = parameter_groups(model, weight_decay=0.01)
        steps.append(stepper(model, groups, x))
    for _ in range(WARM_UP):
        for step in steps:
            step()
    times: list[list[float]] = []
    end = time.perf_counter() + SECONDS
    while len(times) < FEWEST or (len(times) < MOST and time.perf_counter() < end):
        times.append([seconds_of(step) for step in steps])
    return [1e3 * statistics.median(column) for column in zip(*times, strict=True)]


def row(index: int, rounds: int, threads: int) -> dict[str, object]:
    """A row of the table."""
    ratios: dict[str, list[float]] = {"apart": [], "together": [], "kept": []}
    plain, masked = [], []
    for _ in range(rounds):
        plain += in_fresh_process(index, threads, ["plain"])
        masked += in_fresh_process(index, threads, ["masked"])
        ratios["apart"].append(masked[-1] / plain[-1])
        for way, settings in (("together", {}), ("kept", KEEP_MEMORY)):
            dense, own = in_fresh_process(index, threads, ["plain", "masked"], settings)
            ratios[way].append(own / dense)
    model = mask_model(CASES[index].build(), RandomPadding(ratio=1e-3))
    scores, _ = parameter_groups(model, weight_decay=0.0)
    return {
        "network": CASES[index].name,
        "weights": sum(tensor.numel() for tensor in scores["params"]),
        "batch": CASES[index].shape[0],
        "threads": threads,
        "plain ms": round(statistics.median(plain), 2),
        "masked ms": round(statistics.median(masked), 2),
        "×": round(statistics.median(ratios["apart"]), 2),
        "least ×": round(min(ratios["apart"]), 2),
        "most ×": round(max(ratios["apart"]), 2),
        "× together": round(statistics.median(ratios["together"]), 2),
        "× memory kept": round(statistics.median(ratios["kept"]), 2),
    }


def in_fresh_process(
    index: int, threads: int, kinds: Sequence[str], settings: Mapping[str, str] | None = None
) -> list[float]:
    """`milliseconds`, with other environment variables."""
    before = dict(os.environ)
    os.environ.update(settings or {})
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            return fresh.submit(milliseconds, index, threads, kinds).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def numbers(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    try:
        return [int(number) for number in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value} is no list of numbers") from None


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--threads", default="1,2", show_default=True, callback=numbers, help="Of torch.")
@click.option(
    "-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "step_cost.csv"
)
def main(rounds: int, threads: list[int], output: Path) -> None:
    """Measure, print and write the table."""
    measured_on = provenance(("torch",))
    places = [(index, number) for number in threads for index in range(len(CASES))]
    rows = [
        row(index, rounds, number) for index, number in track(places, "networks", transient=True)
    ]
    show(rows, measured_on)
    write_table(output, measured_on, rows, rows[0])


def show(rows: list[dict[str, object]], title: str) -> None:
    """The table on the terminal."""
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
