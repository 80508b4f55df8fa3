"""Bytes of masked checkpoints as .pemn and as what one would use instead, as a table and a CSV.

python benchmarks/storage.py [--official FOLDER] [--trained RUN …] [--data CIFAR-10] [-o FILE.csv]

Measures the example checkpoint; where the folder is there, the two that the official PEMN code
trained; and runs of train_cifar10.py. With the data, also how many test images each file
classifies correctly. Every competitor stores the same effective state dict, and no architecture;
"packed masks + fp32" is what a masked network needs without a codec: one bit a weight, the used
prototype values, the rest as it is.
"""

from __future__ import annotations

import csv
import io
import lzma
import sys
from pathlib import Path

import click
import safetensors.torch
import torch
from cifar10 import Images, load_cifar10
from provenance import provenance
from rich.console import Console
from rich.progress import track
from rich.table import Table
from train_cifar10 import predict, top1

import pemncodec
from pemncodec.torch.alternatives import dense_bytes, masked_bytes
from pemncodec.torch.checkpoint import load_checkpoint, read_masks

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

CHECKPOINTS = {
    "example, RP 1e-3, keep 0.5": ("examples/convmixer-rp1e-3-k50.pt", None),
    "official, RP 1e-3, keep 0.5": ("official-convmixer-rp1e-3-k50.pt", 0.5),
    "official, One-layer, keep 0.2": ("official-convmixer-onelayer-k20.pt", 0.2),
}


def measure(path: Path, keep: float | None, images: Images | None) -> dict[str, float]:
    """Bytes of one checkpoint in every form."""
    from convmixer import convmixer

    loaded = load_checkpoint(path, trust_pickle=path.name == "last.pt")
    target = io.BytesIO()
    options = {
        "keep": keep,
        "architecture": convmixer(128, 4, kernel_size=5, patch_size=4),
        "example_inputs": torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        "accuracy": None if images is None else lambda model: top1(predict(model, images), images),
    }
    info = pemncodec.encode(loaded, target, **options).info
    shorter = {
        mode: pemncodec.encode(loaded, io.BytesIO(), fold_bn=True, dense=mode, **options)
        for mode in ("lossless", "fp16", "q8")
    }
    state = read_masks(loaded, keep=keep).effective()
    with pemncodec.open(target) as file:
        alternatives = dense_bytes(state) | masked_bytes(state, file)
    whole = safetensors.torch.save(state)
    return alternatives | {
        "safetensors + xz -9e": len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME)),
        ".pemn": info.file_bytes,
        ".pemn header": info.header_bytes,
        ".pemn manifest": info.manifest_bytes,
        ".pemn prototype": info.prototype_bytes,
        ".pemn dense": info.dense_bytes,
        ".pemn masks": info.mask_bytes,
        "order-0 entropy of the masks": round(info.order0_bytes, 1),
    } | {
        f".pemn --fold-bn --dense {mode}": report.info.file_bytes
        for mode, report in shorter.items()
    } | ({} if images is None else {
        "top-1 % of the checkpoint": round(shorter["q8"].accuracy[0], 2),
        **{f"top-1 %, --fold-bn --dense {mode}": round(report.accuracy[1], 2)
           for mode, report in shorter.items()},
    })  # fmt: skip


@click.command()
@click.option("--official", type=Path, default=ROOT.parent / "shared" / "checkpoints")
@click.option(
    "--trained",
    type=(str, Path),
    multiple=True,
    metavar="TITLE RUN",
    help="A run of train_cifar10.py: ConvMixer, dim 128, depth 4, patch 4.",
)
@click.option("--data", type=Path, help="CIFAR-10, as for train_cifar10.py.")
@click.option("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "storage.csv")
def main(
    official: Path, trained: tuple[tuple[str, Path], ...], data: Path | None, output: Path
) -> None:
    """Measure, print and write the table."""
    images = None if data is None else load_cifar10(data)[1]
    measured_on = provenance(("torch", "zstandard"))  # before the output changes what git sees
    columns: dict[str, dict[str, float]] = {}
    paths = {
        title: (ROOT / name if name.startswith("examples/") else official / name, keep)
        for title, (name, keep) in CHECKPOINTS.items()
    } | {title: (run / "last.pt", None) for title, run in trained}
    for title, (path, keep) in track(list(paths.items()), "measuring", transient=True):
        if path.exists():
            columns[title] = measure(path, keep, images)
        else:
            click.echo(f"{title}: skipped, there is no {path.name}", err=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    table = Table(title=measured_on, title_justify="left")
    table.add_column("bytes", no_wrap=True)
    with output.open("w", newline="") as stream:
        stream.write(f"# {measured_on}\n")
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["bytes", *columns])
        for title in columns:
            table.add_column(title, justify="right")
        for form in next(iter(columns.values())):
            values = [columns[title][form] for title in columns]
            writer.writerow([form, *values])
            table.add_row(form, *(f"{value:,}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    main()
