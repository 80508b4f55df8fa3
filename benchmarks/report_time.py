"""How long `pemn report` takes for 25 million weights, and how far its estimates are off: a CSV.

    python benchmarks/report_time.py
    python benchmarks/report_time.py --print

The network is a ResNet-50 with random masks, as a .pemn file and as the checkpoint that it was made
of, each reported in a process of its own. Of the .pemn file, the form that is estimated is also
measured as a whole, by --exact; the checkpoint holds the same tensors. Seconds are those of the
clock and of all processors together; the latter say more on a machine that others use, too.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from models import build_large
from provenance import provenance, read_table, write_table

import pemncodec
from pemncodec.masking import RandomPadding, mask_model
from pemncodec.report.forms import FORMS
from pemncodec.threads import available_threads

RESULTS = Path(__file__).parent / "results" / "report_time.csv"
ESTIMATED = "safetensors_zstd19"


def write_models(folder: Path) -> list[Path]:
    """The network as a checkpoint and as a .pemn file."""
    torch.manual_seed(0)
    model = mask_model(build_large("ResNet-50"), RandomPadding(ratio=1e-3), keep=0.2, seed=0)
    with torch.no_grad():
        for tensor in model.state_dict(keep_vars=True).values():
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    paths = [folder / "resnet50.pemn", folder / "resnet50.pt"]
    pemncodec.encode(model, paths[0], manifest=False, preset="max")
    torch.save(model.state_dict(), paths[1])
    return paths


def report(path: Path, *options: str) -> tuple[dict[str, Any], float, float]:
    """What `pemn report --json` says, and its seconds by the clock and of all processors."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "pemncodec", "report", str(path), "--json", *options],
        capture_output=True, check=True,
    )  # fmt: skip
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (model,) = json.loads(result.stdout)["models"]
    return model, seconds, used


def measure(path: Path) -> dict[str, object]:
    """A row of the CSV."""
    model, seconds, used = report(path)
    estimate = model["forms"][ESTIMATED]["bytes"]
    row: dict[str, object] = {
        "file": path.name,
        "masked weights": model["info"]["masked_weights"],
        "bytes": model["file_bytes"],
        "seconds": round(seconds, 1),
        "processor seconds": round(used, 1),
        "estimated form": FORMS[ESTIMATED].title,
        "estimated bytes": estimate,
    }
    if path.suffix != ".pemn":
        return row
    exact, seconds, used = report(path, "--exact", "--forms", ESTIMATED)
    whole = exact["forms"][ESTIMATED]["bytes"]
    return row | {
        "exact bytes": whole,
        "estimate off by %": round(100 * (estimate / whole - 1), 2),
        "seconds, exact": round(seconds, 1),
        "processor seconds, exact": round(used, 1),
    }


@click.command(help=__doc__.partition("\n")[0])
@click.option("--print", "print_only", is_flag=True, help="Measure nothing: print the CSV.")
@click.option("-o", "--output", type=Path, default=RESULTS)
def main(print_only: bool, output: Path) -> None:
    """Measures, writes the CSV, and prints it."""
    if not print_only:
        measured_on = f"{provenance(['torch', 'zstandard'])}, {available_threads()} threads"
        with tempfile.TemporaryDirectory() as folder:
            rows = [measure(path) for path in write_models(Path(folder))]
        write_table(output, measured_on, rows, rows[0])
    measured_on, table = read_table(output)
    click.echo(f"{measured_on}\n")
    for row in table:
        click.echo("\n".join(f"{name}: {value}" for name, value in row.items()) + "\n")


if __name__ == "__main__":
    main()
