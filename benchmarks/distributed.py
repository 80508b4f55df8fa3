"""What ranks decode of a model for their shards, by the way it is sharded: a CSV.

    python benchmarks/distributed.py
    python benchmarks/distributed.py --print

Six layers of 17 to 23 million weights, and layers of 17 to 64 million by themselves; random masks,
static coder. Every rank's shards are compared with the whole, bit for bit. *most* is what the rank
that decodes most decodes, over its share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import click
import torch
from provenance import ROOT, provenance, read_table, write_table

import pemncodec

RESULTS = Path(__file__).parent / "results" / "distributed.csv"
COLUMNS = ("ranks", "keep", "layers", "sharded", "weights", "most decoded", "most")
WAYS = ("rows", "fsdp", "columns", "both")
# Of square layers: quarters of 16, 18, 19, 22, 33 and 62 blocks, of which many begin within one.
SINGLE = (4096, 4300, 4345, 4750, 5800, 8000)
MODEL = (4096, 4300, 4750) * 2


def write_model(folder: Path, keep: float, sizes: Sequence[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    prototype = pemncodec.SeededPrototype("normal", seed=3, length=1000)
    values = torch.tensor(pemncodec.generator.generate("normal", 3, 0, 1000))
    masks, state = {}, {}
    for number, size in enumerate(sizes):
        mask = torch.rand(size, size, generator=generator) < keep
        masks[f"weight{number}"] = mask
        repeated = values.repeat(-(-mask.numel() // 1000))[: mask.numel()]
        state[f"weight{number}"] = repeated.reshape(size, size) * mask
    pemncodec.encode(
        state,
        folder / "net.pemn",
        masks=masks,
        manifest=False,
        prototypes=[prototype],
        preset="fast",
    )
    torch.save(pemncodec.load_state_dict(folder / "net.pemn"), folder / "state.pt")


def measure(
    keep: float, sizes: Sequence[int], ranks: int, ways: Sequence[str]
) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, keep, sizes)
        arguments = folder / "net.pemn", folder / "state.pt", folder, str(ranks)
        subprocess.run(
            [sys.executable, ROOT / "tests" / "ranks.py", *arguments, *ways],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        counts = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
    weights = sum(size * size for size in sizes)
    rows = []
    for way in ways:
        most = max(decoded[way]["rans"] for decoded in counts)
        rows.append({
            "ranks": ranks,
            "keep": keep,
            "layers": len(sizes),
            "sharded": way,
            "weights": weights,
            "most decoded": most,
            "most": round(most / (weights / ranks), 3),
        })  # fmt: skip
    return rows


@click.command()
@click.option("--print", "printed", is_flag=True, help="Print the table of the CSV.")
def main(printed: bool) -> None:
    """Measure, or print what was measured."""
    if not printed:
        measured_on = provenance(["torch"])
        rows = [row for keep in (0.3, 0.2) for row in measure(keep, MODEL, 4, WAYS)]
        for ranks, size in product((4, 2), SINGLE):
            rows += measure(0.2, [size], ranks, ["rows"])
        write_table(RESULTS, measured_on, rows, COLUMNS)
    _, table = read_table(RESULTS)
    click.echo("| ranks | weights | keep | sharded | decoded by a rank, over its share |")
    click.echo("|---:|---:|---:|---|---:|")
    for row in table:
        weights = f"{int(row['weights']):,} in {row['layers']}"
        click.echo(
            f"| {row['ranks']} | {weights} | {row['keep']} | {row['sharded']} | {row['most']} |"
        )


if __name__ == "__main__":
    main()
