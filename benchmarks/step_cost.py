"""What a training step of a masked model costs on a CPU, against the same model with plain weights.

python benchmarks/step_cost.py [--rounds 15] [--threads 1] [-o FILE.csv]

A step is forward, backward and AdamW, whose moments the scores of one model and the weights of the
other take alike. Rounds are interleaved, a step of either model in turn; the table shows medians of
the times, and the median over rounds of the ratio of the two.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Sequence
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
WARM_UP = 3

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


def measure(case: Case, rounds: int) -> dict[str, object]:
    """A row of the table."""
    torch.manual_seed(0)
    plain, masked = case.build(), mask_model(case.build(), RandomPadding(ratio=1e-3))
    x = torch.randn(case.shape)
    groups = parameter_groups(masked, weight_decay=0.01)
    plain_step = stepper(plain, [{"params": list(plain.parameters())}], x)
    masked_step = stepper(masked, groups, x)
    pairs = [(seconds_of(plain_step), seconds_of(masked_step)) for _ in range(WARM_UP + rounds)]
    pairs = pairs[WARM_UP:]
    return {
        "network": case.name,
        "weights": sum(scores.numel() for scores in groups[0]["params"]),
        "batch": case.shape[0],
        "plain ms": round(1e3 * statistics.median(dense for dense, _ in pairs), 2),
        "masked ms": round(1e3 * statistics.median(own for _, own in pairs), 2),
        "×": round(statistics.median(own / dense for dense, own in pairs), 2),
    }


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--threads", default=1, show_default=True, help="Of torch's operators.")
@click.option(
    "-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "step_cost.csv"
)
def main(rounds: int, threads: int, output: Path) -> None:
    """Measure, print and write the table."""
    measured_on = f"{provenance(('torch',))}, {threads} used"
    torch.set_num_threads(threads)
    rows = [measure(case, rounds) for case in track(CASES, "networks", transient=True)]
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
