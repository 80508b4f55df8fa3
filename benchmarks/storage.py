"""Bytes of masked networks as .pemn and as what one would use instead: a CSV, and tables of it.

    python benchmarks/storage.py [--trained RUN …] [--official FOLDER] [--data CIFAR-10] [--large]
    python benchmarks/storage.py --print

What is measured:

* the example checkpoint;
* two checkpoints that the official PEMN code trained, where their folder is there;
* runs of train_cifar10.py (--trained);
* networks of ImageNet's sizes whose masks and trained tensors are random (--large).

With the data, it is also measured how many test images each file classifies correctly. Every
other form stores the same effective state dict, without an architecture. "packed masks + fp32" is
what a masked network needs without a codec: one bit for each weight, the prototype values that are
used, and all other tensors as they are. zipnn and nncodec are measured where they are installed.
README.md of this folder quotes the tables that the script prints, and the one of the project the
first of them; --print makes them from the CSV alone.
Rows of networks that are not measured stay in the CSV; each says where and by which code it was.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch
from cifar10 import Images, load_cifar10
from models import IMAGE_SIZE, LARGE, LARGE_IMAGE_SIZE, build_large, build_model
from provenance import provenance
from rich.progress import track
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from train_cifar10 import predict, top1
from train_table import network, strategy

import pemncodec
from pemncodec.checkpoints.dialects import read_masks
from pemncodec.checkpoints.files import load_checkpoint
from pemncodec.masking import RandomPadding, mask_model
from pemncodec.report.dense_forms import as_safetensors
from pemncodec.report.form import Network, network_of
from pemncodec.report.forms import FORMS, measure_forms

ROOT = Path(__file__).parent.parent

CONVMIXER = {"model": "convmixer", "dim": 128, "depth": 4, "patch": 4, "kernel": 5}
EXAMPLE = ("rp 0.001, keep 0.5: the example", ROOT / "examples" / "convmixer-rp1e-3-k50.pt")
OFFICIAL = {
    "official rp 0.001, keep 0.5": ("official-convmixer-rp1e-3-k50.pt", 0.5),
    "official one-layer, keep 0.2": ("official-convmixer-onelayer-k20.pt", 0.2),
}
MEASURED_ON = "measured on"
MODES = ("lossless", "fp16", "q8")  # of files with folded batch norms, where there are any
XZ_BYTES = 1 << 26  # larger ones take xz tens of minutes

HEADLINE = {
    "model": "bytes of",
    "safetensors": "safetensors",
    "safetensors + zstd-19": "+ zstd-19",
    ".pemn": "**.pemn**",
    ".pemn q8": "**.pemn, q8**",
}
HEADLINERS = (EXAMPLE[0], "ResNet-50, rp 0.001, keep 0.2", "ViT-B/16, rp 0.001, keep 0.2")
LOSSLESS = {
    "model": "model",
    "top-1 %": "top-1 %",
    "safetensors": "safetensors",
    "safetensors + zstd-19": "+ zstd-19",
    "packed masks + fp32": "packed masks",
    ".pemn": "**.pemn**",
}
LOSSY = {
    "model": "model",
    "top-1 %": "top-1 %",
    ".pemn fp16": "**fp16**",
    "top-1 %, fp16": "top-1 %",
    ".pemn q8": "**q8**",
    "top-1 %, q8": "top-1 %",
    "nncodec qp -32 (lossy)": "nncodec",
}
PARTS = {
    "model": "model",
    "header": "header",
    "manifest": "manifest",
    "prototype": "prototype",
    "dense": "trained tensors",
    "masks": "masks",
}
MASKS = {
    "model": "model",
    "masked weights": "masked weights",
    "order-0 entropy of the masks": "order-0 entropy",
    "masks": "mask bytes",
    "bits per weight": "bits per weight",
}
TABLES = {
    "In short: what README.md quotes": HEADLINE,
    "How many bytes do the same tensors take, without loss?": LOSSLESS,
    "What do shorter trained tensors save, and what do they cost in accuracy?": LOSSY,
    "Where are the bytes of the lossless file?": PARTS,
    "How do the masks compare with the entropy of independent bits?": MASKS,
}

Row = dict[str, str | float | None]


@dataclass(frozen=True, slots=True)
class Case:
    """A network to measure: `load` gives what `encode` takes, and the plain module of a state dict.

    Attributes:
        keep: for checkpoints with scores alone.
        image_size: of its inputs; networks for CIFAR-10 have a metric.
    """

    title: str
    load: Callable[[], tuple[nn.Module | dict[str, Tensor], nn.Module | None]]
    keep: float | None = None
    image_size: int = IMAGE_SIZE


def checkpoint(title: str, path: Path, config: dict[str, Any], keep: float | None = None) -> Case:
    """A trained network of train_cifar10.py's kinds."""
    shape = {key: config[key] for key in ("dim", "depth", "patch", "kernel")}

    def load() -> tuple[nn.Module | dict[str, Tensor], nn.Module]:
        loaded = load_checkpoint(path, trust_pickle=path.name == "last.pt")
        return loaded, build_model(config["model"], **shape)

    return Case(title, load, keep)


def run(folder: Path) -> Case:
    """A run of train_cifar10.py."""
    config = json.loads((folder / "result.json").read_text())["config"]
    title = strategy(config | {"keep": None})
    if config["keep"] is not None:
        title += f", keep {config['keep']:g}"
    if {key: config[key] for key in CONVMIXER} != CONVMIXER:
        title = f"{network(config)}, {title}"
    return checkpoint(
        title.replace(" keep", ", keep").replace(",,", ","), folder / "last.pt", config
    )


def large(name: str) -> Case:
    """A large network: RP 1e-3, keep 0.2, random masks, random values for what would be trained."""

    def load() -> tuple[nn.Module, None]:
        torch.manual_seed(0)
        model = mask_model(build_large(name), RandomPadding(ratio=1e-3), keep=0.2, seed=0)
        with torch.no_grad():
            for tensor in model.state_dict(keep_vars=True).values():
                if tensor.dim() == 1 and tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5)
        return model, None

    return Case(f"{name}, rp 0.001, keep 0.2", load, image_size=LARGE_IMAGE_SIZE)


def measure(case: Case, images: Images | None) -> Row:
    """Bytes of one network in every form; a row of the CSV."""
    source, architecture = case.load()
    state = source if isinstance(source, dict) else source.state_dict()
    read = read_masks(state, keep=case.keep)
    size = case.image_size

    def accuracy(model: nn.Module | io.BytesIO) -> float | None:
        if images is None or size != IMAGE_SIZE:
            return None
        if isinstance(model, io.BytesIO):
            model = pemncodec.decode(model)
        return round(top1(predict(model, images), images), 2)

    if not read.masks and architecture is not None:
        architecture.load_state_dict(read.effective())
        top = accuracy(architecture)
        return {"model": case.title, "top-1 %": top, **other_forms(network_of(read.effective()))}
    options: dict[str, Any] = {
        "keep": case.keep,
        "architecture": architecture,
        "example_inputs": torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0)),
        "preset": "max",
    }
    target = io.BytesIO()
    info = pemncodec.encode(source, target, **options).info
    module = architecture if architecture is not None else source
    folds = any(isinstance(child, _BatchNorm) for child in module.modules())
    shorter: Row = {}
    for mode in MODES if folds else MODES[1:]:
        short = io.BytesIO()
        report = pemncodec.encode(source, short, fold_bn=folds, dense=mode, **options)
        shorter |= {f".pemn {mode}": report.info.file_bytes, f"top-1 %, {mode}": accuracy(short)}
    effective = read.effective()
    with pemncodec.open(target) as file:
        network = network_of(effective, file)
    return {
        "model": case.title,
        "top-1 %": accuracy(target),
        **other_forms(network),
        ".pemn": info.file_bytes,
        "header": info.header_bytes,
        "manifest": info.manifest_bytes,
        "prototype": info.prototype_bytes,
        "dense": info.dense_bytes,
        "masks": info.mask_bytes,
        "order-0 entropy of the masks": round(info.order0_bytes),
        "masked weights": info.masked_weights,
        "bits per weight": round(info.bits_per_weight or 0, 4),
        "folded": folds,
        **shorter,
    }


def other_forms(network: Network) -> Row:
    """Bytes in other forms."""
    forms, failures = measure_forms(network, exact=True)
    for key, failure in failures.items():
        click.echo(f"no {FORMS[key].title}: {failure}", err=True)
    row: Row = {FORMS[key].title: made.bytes for key, made in forms.items()}
    errors = {key: made.error for key, made in forms.items() if made.error}
    row |= {f"{FORMS[key].title}: largest error": float(f"{e:.2g}") for key, e in errors.items()}
    whole = as_safetensors(network.tensors)
    if len(whole) <= XZ_BYTES:
        row["safetensors + xz -9e"] = len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME))
    return row


# ------------------------------------------------------------------------------------ tables


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows that are there already."""
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """A line for each network; those of networks that were not measured now stay."""
    by_model: dict[Any, Row] = {row["model"]: {**row} for row in read_csv(path)}
    by_model |= {row["model"]: row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = dict.fromkeys(
        key for row in sorted(by_model.values(), key=len, reverse=True) for key in row
    )
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(by_model.values())


def markdown(rows: Sequence[dict[str, str]], columns: dict[str, str]) -> str:
    """A table of some columns of the CSV, under other titles."""
    lines = [f"| {' | '.join(columns.values())} |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in rows:
        lines.append(f"| {' | '.join(_cell(row.get(column, ''), column) for column in columns)} |")
    return "\n".join(lines)


def _cell(text: str, column: str) -> str:
    if column == "model" or not text:
        return text
    number = f"{int(text):,}" if text.isdigit() else f"{float(text):.4f}"
    if column.startswith("top-1"):
        number = f"{float(text):.2f}"
    return f"**{number}**" if column.startswith(".pemn") else number


@click.command(help=__doc__.partition("\n")[0])
@click.option("--official", type=Path, default=ROOT.parent / "shared" / "checkpoints")
@click.option(
    "--trained", type=Path, multiple=True, metavar="RUN", help="A folder of train_cifar10.py."
)
@click.option(
    "--large", "sizes", is_flag=True, help="Also ResNet-50 and two ViTs; a quarter of an hour."
)
@click.option("--data", type=Path, help="CIFAR-10, as for train_cifar10.py.")
@click.option("--print", "print_only", is_flag=True, help="Measure nothing: print the tables.")
@click.option("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "storage.csv")
def main(
    official: Path,
    trained: tuple[Path, ...],
    sizes: bool,
    data: Path | None,
    print_only: bool,
    output: Path,
) -> None:
    """Measures, writes the CSV, and prints its tables."""
    if not print_only:
        packages = ["torch", "zstandard", *filter(find_spec, ("zipnn", "nncodec"))]
        measured_on = provenance(packages)  # before the output changes what git sees
        images = None if data is None else load_cifar10(data)[1]
        cases = [run(folder) for folder in trained]
        cases.append(checkpoint(*EXAMPLE, CONVMIXER))
        for title, (name, keep) in OFFICIAL.items():
            if (official / name).exists():
                cases.append(checkpoint(title, official / name, CONVMIXER, keep))
            else:
                click.echo(f"{title}: skipped, there is no {name}", err=True)
        cases += [large(name) for name in LARGE] if sizes else []
        rows = [
            measure(case, images) | {MEASURED_ON: measured_on}
            for case in track(cases, "measuring", transient=True)
        ]
        write_csv(rows, output)
    written = read_csv(output)
    click.echo("\n".join(dict.fromkeys(row[MEASURED_ON] for row in written)))
    for title, columns in TABLES.items():
        rows = written if columns is LOSSLESS else [row for row in written if row[".pemn"]]
        if columns is HEADLINE:
            rows = [row for row in rows if row["model"] in HEADLINERS]
        click.echo(f"\n**{title}**\n\n{markdown(rows, columns)}")


if __name__ == "__main__":
    main()
