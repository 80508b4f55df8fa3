"""What finding the prototypes behind 16.7 million weights costs, by the kind of their values.

python benchmarks/recovery.py [--weights 16777216] [--case NAME] [-o FILE.csv]

One masked layer, already read; the CPU time of `recover_prototypes` in one thread, the least of
three runs. A baked layer has zeros where its mask has them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from provenance import provenance, write_table
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pemncodec import SeededPrototype
from pemncodec.contents import SeededFill
from pemncodec.values.philox import generate
from pemncodec.values.recovery import Layer, recover_prototypes

ROOT = Path(__file__).parent.parent
SEEDED = SeededPrototype("normal", 2026, 0)  # of the length that is asked for
SCALE = float(np.float32(0.03))

Values = npt.NDArray[np.float32]


def repeated(vector: Values, count: int) -> Values:
    return np.resize(vector, count)


def normal(count: int) -> Values:
    return np.random.default_rng(0).standard_normal(count, np.float32) * np.float32(SCALE)


def two_values(count: int) -> Values:
    return generate("signed-constant", 0, 0, count) * np.float32(SCALE)


def spoilt(values: Values, items: int) -> Values:
    places = np.random.default_rng(1).integers(0, values.size, items)
    values[places] = np.float32(1.0) + places.astype(np.float32)
    return values


CASES: dict[str, Callable[[int], Values]] = {
    "constant": lambda count: np.full(count, SCALE, np.float32),
    "two values": two_values,
    "period of 17": lambda count: repeated(normal(17), count),
    "period of 1e-3": lambda count: repeated(normal(count // 1000 + 1), count),
    "random": normal,
    "every value once": lambda count: np.arange(count, dtype=np.uint32).view(np.float32),
    "constant but for the last": lambda count: np.append(
        np.full(count - 1, SCALE, np.float32), np.float32(1)
    ),
    "period of 1e-3 but for 3 items": lambda count: spoilt(
        repeated(normal(count // 1000 + 1), count), 3
    ),
    "seeded, as trained": lambda count: generate("normal", 2026, 0, count, scale=SCALE),
    "seeded, scale unknown": lambda count: generate("normal", 2026, 0, count, scale=SCALE),
}


def measure(case: str, count: int, density: float, baked: bool) -> dict[str, Any]:
    """A row of the table."""
    values = CASES[case](count)
    mask = np.random.default_rng(2).random(count) < density
    if baked:
        values = values * mask
    prototype = SeededPrototype(SEEDED.distribution, SEEDED.seed, count)
    fill = SeededFill(prototype, SCALE) if case == "seeded, as trained" else None
    seeded = [prototype] if case == "seeded, scale unknown" else []
    layer = Layer("float32", values, mask, fill)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        prototypes, _ = recover_prototypes([layer], seeded)
        seconds.append(time.process_time() - start)
    return {
        "values": case,
        "weights": count,
        "density": density,
        "baked": baked,
        "prototype": prototypes[0].length,
        "seconds": round(min(seconds), 2),
    }


@click.command()
@click.option("--weights", type=int, default=1 << 24)
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="Not all.")
@click.option("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "recovery.csv")
def main(weights: int, cases: tuple[str, ...], output: Path) -> None:
    """Measures each case with masks of density 0.2 and 0.5, and baked with the latter."""
    measured_on = provenance(("numpy",))  # before the output changes what git sees
    console = Console()
    masks = ((0.2, False), (0.5, False), (0.5, True))
    jobs = [(case, *mask) for case in cases or CASES for mask in masks]
    rows = [
        measure(case, weights, density, baked)
        for case, density, baked in track(jobs, console=console, transient=True)
    ]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    write_table(output, measured_on, rows, rows[0])


if __name__ == "__main__":
    main()
