"""Networks that run from packed bits, against dense ones: time, memory, bytes of the file.

    python benchmarks/packed.py [--network GPT-2] [--batch 1] [--seconds 20] [-o FILE.csv]
    python benchmarks/packed.py --print     # the table of README, from its CSV
    python benchmarks/packed.py --plot      # the plot of README, from its CSV

All networks are masked by random padding (RP 1e-3, keep 0.5), their embeddings and heads, too. The
forms are what `decode` gives (fp32, bf16), the former with linear layers that
`torch.ao.quantization.quantize_dynamic` made (int8; it has no convolutions), and
`decode(packed=True)`.

Times are medians of calls under `torch.inference_mode`, on as many threads as torch takes by
itself. One process has all forms of a network and calls them in turn, so that their ratios hold on
a machine that is not quiet. The C library keeps what operators free (`MALLOC_TRIM_THRESHOLD_`): by
itself it gives memory back at times that depend on the order of forms, which costs more than all
that is compared here. Memory is that of a process of its own, which imports torch, loads one
form and calls it once with batch 1: its peak beyond `import torch`. *weights* is what the masked
layers' weights take while nothing runs. *largest* is the largest of them as fp32, for which a
packed network has a buffer while it runs. *pt2* is the file that `pemn decode` writes for
torch.export, dense in the rows of fp32, and packed.

Rows that the CSV has from the same commit stay in it.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from models import build_large
from packed_forms import FORMS
from provenance import ROOT, provenance, read_table, write_table
from torch import Tensor, nn
from torch.nn import functional

import pemncodec
from pemncodec.masking import RandomPadding, mask_model

sys.path.insert(0, str(ROOT / "examples"))
from convmixer import convmixer

RESULTS = ROOT / "benchmarks" / "results" / "packed.csv"
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
COLUMNS = (
    "network", "form", "batch", "ms", "of fp32", "peak MB", "weights MB", "of dense", "largest MB",
    "masked weights", "file MB", "pt2 MB",
)  # fmt: skip


class Block(nn.Module):
    """A block of GPT-2: attention and a hidden layer, each behind a norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape[0], x.shape[1], self.dim
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, dim // self.heads)
        q, k, v = (qkv[:, :, part].transpose(1, 2) for part in range(3))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, dim))
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    """The shape of the smallest GPT-2; the head shares the embedding's weight."""

    def __init__(
        self, words: int = 50257, dim: int = 768, heads: int = 12, layers: int = 12
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.words(tokens))))


def mlp(dim: int = 4096) -> nn.Module:
    """Three square layers between an image of CIFAR-10 and its classes."""
    sizes = (3072, dim, dim, dim, 10)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def images(size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, 3, size, size)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "ResNet-50": (lambda: build_large("ResNet-50"), images(224)),
    "ViT-B/16": (lambda: build_large("ViT-B/16"), images(224)),
    "GPT-2, one token": (Gpt2, lambda batch: torch.randint(50257, (batch, 1))),
    "MLP 4096": (mlp, images(32)),
    "ConvMixer-512/16": (lambda: convmixer(512, 16), images(32)),
}


def network_file(name: str, folder: Path) -> Path:
    """The file of a masked network, made once."""
    path = folder / f"{name.replace('/', '-').replace(' ', '')}.pemn"
    if not path.exists():
        build, inputs = NETWORKS[name]
        torch.manual_seed(0)
        model = mask_model(build().eval(), RandomPadding(ratio=1e-3), keep=0.5)
        pemncodec.encode(model, path, example_inputs=inputs(2), preset="fast")
    return path


def run(*arguments: object, **environment: str) -> Any:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "benchmarks" / "packed_forms.py",
         *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | environment,
    )  # fmt: skip
    return json.loads(done.stdout)


def measure(
    name: str, path: Path, batches: tuple[int, ...], seconds: float
) -> Iterator[dict[str, object]]:
    """Rows of one network."""
    memory = {form: run(form, path) for form in FORMS}
    programs = run("pt2", path)
    times = run("times", path, seconds, *batches, **KEPT_MEMORY)
    with pemncodec.open(path) as file:
        masked = sum(math.prod(file.shape(key)) for key in file.masked_keys())
    for batch, own in times.items():
        for form in FORMS:
            used = memory[form]
            yield {
                "network": name,
                "form": form,
                "batch": int(batch),
                "ms": round(own[form], 2),
                "of fp32": round(own[form] / own["fp32"], 3),
                "peak MB": round(used["peak"] / 1e6, 1),
                "weights MB": round(used["weights"] / 1e6, 2),
                "of dense": round(used["weights"] / memory["fp32"]["weights"], 4),
                "largest MB": round(memory["fp32"]["largest"] / 1e6, 2),
                "masked weights": masked,
                "file MB": round(path.stat().st_size / 1e6, 2),
                "pt2 MB": round(programs[form] / 1e6, 2) if form in programs else "",
            }


def markdown(rows: list[dict[str, str]]) -> str:
    """What README quotes."""
    lines = [
        "| network | form | batch 1 | batch 8 | batch 64 | masked weights | peak memory |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    cells = {(r["network"], r["form"], r["batch"]): r for r in rows}
    for name in NETWORKS:
        for form in FORMS:
            own = [cells.get((name, form, batch)) for batch in ("1", "8", "64")]
            first = next((row for row in own if row), None)
            if first:
                times = (f"{float(row['ms']):,.1f} ms" if row else "" for row in own)
                lines.append(
                    f"| {name} | {form} | {' | '.join(times)} "
                    f"| {float(first['weights MB']):.1f} MB "
                    f"| {float(first['peak MB']):.0f} MB |"
                )
    return "\n".join(lines)


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """Time and memory of each form, against those of fp32, batch 1."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = [name for name in NETWORKS if any(row["network"] == name for row in rows)]
    for axis, column, title in zip(
        axes, ("of fp32", "of dense"), ("time, batch 1", "memory of masked weights"), strict=True
    ):
        for index, form in enumerate(FORMS):
            values = {
                r["network"]: r[column] for r in rows if (r["form"], r["batch"]) == (form, "1")
            }
            places = [place + 0.2 * index for place in range(len(names))]
            axis.barh(places, [float(values[name]) for name in names], 0.2, label=form)
        axis.axvline(1, color="0.6", linewidth=0.8)
        axis.set_title(f"{title}, times that of fp32", fontsize=10)
    axes[0].set_yticks([place + 0.3 for place in range(len(names))], names)
    axes[0].invert_yaxis()
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    with rc_context({"svg.hashsalt": "pemncodec"}):  # the same bytes for the same numbers
        figure.savefig(path, metadata={"Date": None})


@click.command()
@click.option("--network", "names", multiple=True, type=click.Choice(list(NETWORKS)))
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8, 64), show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="For each batch of a network.")
@click.option("--folder", type=Path, default=None, help="Where files are kept for the next run.")
@click.option("--print", "print_only", is_flag=True, help="Measure nothing: print README's table.")
@click.option("--plot", "plot_only", is_flag=True, help="Measure nothing: draw README's plot.")
@click.option("-o", "--output", type=Path, default=RESULTS)
def main(
    names: tuple[str, ...],
    batches: tuple[int, ...],
    seconds: float,
    folder: Path | None,
    print_only: bool,
    plot_only: bool,
    output: Path,
) -> None:
    """Measure, print and write the table."""
    if print_only or plot_only:
        _, rows = read_table(output)
        if print_only:
            click.echo(markdown(rows))
        else:
            plot(rows, output.with_suffix(".svg"))
        return
    measured_on = provenance(("torch",))  # before the output changes what git sees
    with tempfile.TemporaryDirectory() as temporary:
        for name in names or NETWORKS:
            path = network_file(name, folder or Path(temporary))
            before, rows = read_table(output)
            kept: list[Mapping[str, object]] = [
                row for row in rows
                if before == measured_on
                and not (row["network"] == name and int(row["batch"]) in batches)
            ]  # fmt: skip
            for row in measure(name, path, batches, seconds):
                click.echo(json.dumps(row))
                kept.append(row)
            write_table(output, measured_on, kept, COLUMNS)


if __name__ == "__main__":
    main()
