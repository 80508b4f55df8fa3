"""What a training step of a masked model costs on a CPU, against the same model with plain weights.

python benchmarks/step_cost.py [--rounds 7] [--threads 1,2] [-o FILE.csv]

A step is forward, backward and AdamW, whose moments the scores of one model and the weights of the
other take alike. In each round either model trains in a fresh process of its own, one after the
other, as it would for a user: memory that a process gives back between its steps costs page faults
in the next, and whether it does depends on all that it allocates. The table shows medians over
rounds of the median step, and of the ratio of the two, with the least and the largest ratio. For
comparison `× together` is the ratio where steps of both alternate in one process.
"""

from __future__ import annotations

import csv
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from models import build_model
from provenance import provenance
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from pemncodec.masking import RandomPadding, mask_model, parameter_groups

ROOT = Path(__file__).parent.parent
WARM_UP, FEWEST, MOST, SECONDS = 3, 5, 25, 2.0  # steps of a process; the time they may take

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
    plain, masked, together = [], [], []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as fresh:
        for _ in range(rounds):
            plain += fresh.submit(milliseconds, index, threads, ["plain"]).result()
            masked += fresh.submit(milliseconds, index, threads, ["masked"]).result()
            both = fresh.submit(milliseconds, index, threads, ["plain", "masked"]).result()
            together.append(both[1] / both[0])
    ratios = [own / dense for dense, own in zip(plain, masked, strict=True)]
    model = mask_model(CASES[index].build(), RandomPadding(ratio=1e-3))
    scores, _ = parameter_groups(model, weight_decay=0.0)
    return {
        "network": CASES[index].name,
        "weights": sum(tensor.numel() for tensor in scores["params"]),
        "batch": CASES[index].shape[0],
        "threads": threads,
        "plain ms": round(statistics.median(plain), 2),
        "masked ms": round(statistics.median(masked), 2),
        "×": round(statistics.median(ratios), 2),
        "least ×": round(min(ratios), 2),
        "most ×": round(max(ratios), 2),
        "× together": round(statistics.median(together), 2),
    }


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
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as stream:
        stream.write(f"# {measured_on}\n")
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


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
