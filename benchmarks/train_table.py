"""Tables of trained networks: accuracy beside the paper's, and real bytes.

python benchmarks/train_table.py FOLDER… [-o FILE.csv]

Each folder is the --output of benchmarks/train_cifar10.py, with or without --row. "paper" is the
paper's accuracy for the same network, strategy and keep ratio, trained for 100 epochs with full
augmentation; "paper formula" is how the paper counts bytes: one bit a weight and a float32
prototype, nothing else; "order-0" is what the masks' entropy alone needs.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

# Top-1 in percent, from the authors' figures (± 0.01): CIFAR-10, keep 0.5.
_COLUMNS = ("dense", "mask", "one-layer", "mp", "rp 0.1", "rp 0.01", "rp 0.001", "rp 0.0001",
            "rp 1e-05")  # fmt: skip
_ROWS = {
    "convmixer d6-256": (94.01, 89.43, 88.93, 88.98, 89.09, 88.96, 88.51, 85.36, 80.20),
    "convmixer d6-512": (94.64, 91.88, 92.14, 92.04, 92.24, 92.16, 92.03, 90.54, 87.53),
    "convmixer d8-256": (94.61, 90.50, 90.46, 90.65, 90.64, 90.72, 90.19, 87.73, 82.06),
    "convmixer d8-512": (95.48, 92.80, 92.73, 93.29, 92.99, 93.09, 92.95, 91.55, 87.25),
    "vit d6-256": (79.29, 76.48, 75.88, 76.62, 76.91, 76.26, 77.18, 64.39, 66.06),
    "vit d6-512": (82.97, 80.81, 81.16, 81.45, 81.84, 81.39, 80.99, 78.90, 79.07),
    "vit d8-256": (82.18, 79.30, 79.86, 79.61, 79.23, 79.81, 79.53, 73.54, 71.38),
    "vit d8-512": (85.11, 83.62, 83.91, 83.71, 83.71, 83.59, 83.68, 76.21, 79.21),
}
PAPER = {
    (row, column): accuracy
    for row, accuracies in _ROWS.items()
    for column, accuracy in zip(_COLUMNS, accuracies, strict=True)
} | {
    ("resnet32", "dense"): 92.26,
    ("resnet32", "mp"): 86.29,
    ("resnet32", "rp 0.1"): 86.65,
    ("resnet32", "rp 0.01"): 86.41,
    ("resnet56", "dense"): 92.93,
    ("resnet56", "mp"): 88.35,
    ("resnet56", "rp 0.1"): 88.12,
    ("resnet56", "rp 0.01"): 88.32,
}


def network(config: dict[str, Any]) -> str:
    """The network in the words of the paper's tables, with what differs from them."""
    name: str = config["model"]
    if config["depth"] is not None:
        name += f" d{config['depth']}-{config['dim']}"
    patch, kernel = config["patch"], config["kernel"]
    if patch not in (None, 4 if config["model"] == "vit" else 2):
        name += f" patch {patch}"
    if kernel not in (None, 5):
        name += f" kernel {kernel}"
    return name


def strategy(config: dict[str, Any]) -> str:
    """The strategy in the words of the paper's tables, with what differs from them."""
    name: str = config["strategy"]
    if config["ratio"] is not None:
        name += f" {config['ratio']:g}"
    if config["padding"] == "shuffle":
        name += " shuffled"
    if config["distribution"] not in (None, "normal"):
        name += f" {config['distribution']}"
    if config["rescale"]:
        name += " rescaled"
    if config["keep"] not in (None, 0.5):
        name += f" keep {config['keep']:g}"
    return name


def row(result: dict[str, Any]) -> dict[str, str | float | bool | None]:
    """A run as a line of the table; None where a column has no meaning for it."""
    config, env = result["config"], result["environment"]
    images = "" if config["limit"] is None else f", {result['train_images']:,} images"
    hardware = env["cpu"] if env["gpu"] == "none" else env["gpu"]
    return {
        "network": network(config),
        "strategy": strategy(config),
        "epochs": config["epochs"],
        "recipe": f"batch {config['batch']}, lr {config['lr']:g}, {config['augment']}{images}",
        "seed": config["seed"],
        "top-1 %": round(result["top1"], 2),
        "best epoch %": round(result["best_epoch_top1"], 2),
        "paper %": PAPER.get((network(config), strategy(config))),
        "file": result["file_bytes"],
        "header": result.get("header_bytes"),
        "manifest": result.get("manifest_bytes"),
        "prototype": result.get("prototype_bytes"),
        "dense": result.get("dense_bytes"),
        "masks": result.get("mask_bytes"),
        "order-0": result.get("order0_bytes"),
        "paper formula": result.get("paper_formula_bytes"),
        "plain tensors": result["dense_model_bytes"],
        "decoded classifies the same": result.get("same_predictions"),
        "minutes": round(result["train_seconds"] / 60, 1),
        "trained on": f"{env['data']}, {hardware}, {env['threads']} threads, torch {env['torch']}, "
        f"pemncodec {env['pemncodec']}",
    }


# What is printed; the CSV has all columns.
_PRINTED = {
    "CIFAR-10: accuracy": ("network", "strategy", "epochs", "recipe", "top-1 %", "paper %",
                           "decoded classifies the same"),
    "CIFAR-10: bytes": ("network", "strategy", "file", "masks", "order-0", "paper formula"),
}  # fmt: skip


@click.command(help=__doc__.partition("\n")[0])
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Also write a CSV, which has more columns.",
)
def main(folders: tuple[Path, ...], output: Path | None) -> None:
    results = []
    for folder in folders:
        paths = sorted([*folder.glob("result.json"), *folder.glob("*/result.json")])
        results += [json.loads(path.read_text()) for path in paths]
        if not paths:
            click.echo(f"{folder}: skipped, its run is not finished", err=True)
    if not results:
        raise click.ClickException("no run is finished")
    rows = [row(result) for result in results]
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    # Nothing is cut in what goes to a file or pipe.
    console = Console(width=None if sys.stdout.isatty() else 1000)
    for title, columns in _PRINTED.items():
        table = Table(title=title, title_justify="left")
        for column in columns:
            text = column in ("network", "strategy")
            table.add_column(column, justify="left" if text else "right")
        for line in rows:
            table.add_row(*(_cell(line[column]) for column in columns))
        console.print(table)


def _cell(value: str | float | bool | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return value if isinstance(value, str) else f"{value:,}"


if __name__ == "__main__":
    main()
