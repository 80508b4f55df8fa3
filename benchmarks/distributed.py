"""What four ranks decode of a model of 115 million weights, by the way it is sharded: a CSV.

    python benchmarks/distributed.py
    python benchmarks/distributed.py --print

Six layers of 17 to 23 million weights, random masks, static coder; every rank's shards are compared
with the whole, bit for bit. *most* is that of the rank that decodes most, over its share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import torch
from provenance import ROOT, provenance, read_table, write_table

import pemncodec

RESULTS = Path(__file__).parent / "results" / "distributed.csv"
COLUMNS = ("keep", "sharded", "weights", "most decoded", "most")
WAYS = ("rows", "fsdp", "columns", "both")
RANKS = 4
SIZES = (4096, 4300, 4750) * 2  # of square layers; not all are cut where their blocks are


def write_model(folder: Path, keep: float) -> None:
    generator = torch.Generator().manual_seed(0)
    prototype = pemncodec.SeededPrototype("normal", seed=3, length=1000)
    values = torch.tensor(pemncodec.generator.generate("normal", 3, 0, 1000))
    masks, state = {}, {}
    for number, size in enumerate(SIZES):
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


def measure(keep: float) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, keep)
        arguments = folder / "net.pemn", folder / "state.pt", folder
        subprocess.run(
            [sys.executable, ROOT / "tests" / "ranks.py", *arguments, *WAYS],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
    weights = sum(size * size for size in SIZES)
    rows = []
    for way in WAYS:
        most = max(decoded[way]["rans"] for decoded in ranks)
        rows.append({
            "keep": keep,
            "sharded": way,
            "weights": weights,
            "most decoded": most,
            "most": round(most / (weights / RANKS), 3),
        })  # fmt: skip
    return rows


@click.command()
@click.option("--print", "printed", is_flag=True, help="Print the table of the CSV.")
def main(printed: bool) -> None:
    """Measure, or print what was measured."""
    if not printed:
        measured_on = provenance(["torch"])
        write_table(RESULTS, measured_on, measure(0.3) + measure(0.2), COLUMNS)
    _, table = read_table(RESULTS)
    click.echo("| keep | sharded | decoded by a rank, over its share |\n|---|---|---:|")
    for row in table:
        click.echo(f"| {row['keep']} | {row['sharded']} | {row['most']} |")


if __name__ == "__main__":
    main()
