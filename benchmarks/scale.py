"""Time and memory of encoding, decoding and verifying, by the size of the model: results/scale.csv.

    python benchmarks/scale.py [ROWS…] [--folder DIR] [-o FILE.csv]
    python benchmarks/scale.py --print     # the table of benchmarks/README.md, from the CSV

All rows in one run take a quarter of an hour and 13 GB of disk. It also draws the plot,
results/scale.svg, which `--plot` does from the CSV alone.

* *ResNet-50*: kaiming normal weights whose seed is not looked for, keep 0.5; *ResNet-18*: signed
  constants, keep 0.5. Both without a manifest.
* *ViT-B*: random-vector padding of 1e-3, keep 0.2; encoded with its architecture from a state dict
  that the caller holds.
* *10M*, *100M*, *1000M*: layers of 4 to 64 million weights, half of them masked out at random, of
  one random vector (*RP*) or with normal values of their own, which torch drew after one
  `manual_seed` that is looked for (*seeds*), or which are stored (*stored*). Weights and masks, a
  bool for each weight, are in a safetensors file; *scores*: as *RP*, but with a score for each
  weight, of which `--keep 0.5` makes the masks. Beside them what safetensors and torch need to read
  and write the dense file.

Every row is a process of its own, which takes as many threads as it does by itself: *threads*.
Memory is the most that the process has beyond `import torch`, and beyond the model that the caller
holds where it does: anonymous pages (RssAnon of /proc/PID/status, read every 2 ms). Pages of files
are left out: the system takes them back when it needs them. *bound*: 1.5 times the weights and mask
(or scores) of the largest layer, and 300 MiB.

CPU seconds are those of the row's action by all threads, imports of this package among them: the
least of two runs, of 1000M of one. *of which system*: a virtual machine may get each page that it
has not used lately from its host, which takes ten times as long as a page that it has; a file of
4 GB is a million pages. *per weight*: CPU time for each weight, times that of 100M.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from provenance import ROOT, provenance, read_table, write_table

from pemncodec.threads import available_threads

RESULTS: Final = ROOT / "benchmarks" / "results" / "scale.csv"
COLUMNS: Final = (
    "model", "values", "weights", "action", "preset", "threads", "file bytes", "CPU s",
    "of which system", "per weight", "peak MiB", "bound MiB", "peak / model", "model MiB",
)  # fmt: skip
ENCODE, DECODE, VERIFY = "encode", "decode to safetensors", "verify"
SAFETENSORS, TORCH = "safetensors: load, save", "torch: load, save"
VALUES: Final = ("RP", "seeds", "stored", "scores")
MILLION: Final = 1_000_000
LAYERS: Final = (4, 8, 16, 32, 64)  # million weights
KEEP: Final = 0.5
_BOUND: Final = "bound on memory"

_START: Final = """
import json, os, sys
sys.path.insert(0, {benchmarks!r})
import torch

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1])

def started():
    global clock
    print(json.dumps({{"before": anonymous()}}), flush=True)
    clock = os.times()

def finished():
    now = os.times()
    system = now.system - clock.system
    spent = {{"CPU s": now.user - clock.user + system, "of which system": system}}
    print(json.dumps(spent), flush=True)
"""
_COMMAND: Final = """
started()
from pemncodec.cli.main import cli
cli({arguments!r}, standalone_mode=False)
finished()
"""
_VIT: Final = """
from models import build_large
architecture = build_large("ViT-B/16")
state = torch.load({checkpoint!r})
started()
import pemncodec
pemncodec.encode(state, {output!r}, architecture=architecture, preset="fast")
finished()
"""
_SAFETENSORS: Final = """
from safetensors.torch import load_file, save_file
started()
save_file({{name: tensor.clone() for name, tensor in load_file({dense!r}).items()}}, {output!r})
finished()
"""
_TORCH: Final = """
started()
torch.save(torch.load({dense!r}), {output!r})
finished()
"""


def measure(script: str, runs: int = 2) -> dict[str, float]:
    """The least CPU time of some runs of a script, and their largest memory."""
    found = [_run(script) for _ in range(runs)]
    peak = max(run["peak MiB"] for run in found)
    return min(found, key=lambda run: run["CPU s"]) | {"peak MiB": peak}


def _run(script: str) -> dict[str, float]:
    """Runs a script that says when it starts and ends: its CPU time, and its largest memory."""
    code = _START.format(benchmarks=str(ROOT / "benchmarks")) + script
    set_by_caller = ("OMP_NUM_THREADS", "PEMN_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in set_by_caller}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    before = json.loads(process.stdout.readline())["before"]
    status, peak = Path(f"/proc/{process.pid}/status"), before
    while process.poll() is None:
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon"):
                peak = max(peak, int(line.split()[1]))
        time.sleep(0.002)
    if process.returncode:
        raise SystemExit(f"a row failed:\n{script}")
    last = process.stdout.read().splitlines()[-1]
    return {**json.loads(last), "peak MiB": (peak - before) / 1024}


# ------------------------------------------------------------------------------- checkpoints


def write_masked(path: Path, sizes: list[int], values: str) -> None:
    """A safetensors file of masked weights, a layer in memory at a time."""
    import torch

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    vector = rng.standard_normal(64_000).astype(np.float32)
    entries, start = {}, 0
    for index, size in enumerate(sizes):
        shape = [size // 1000, 1000]
        for name, dtype, width in (
            ((f"{index}.weight", "F32", 4), (f"{index}.scores", "F32", 4))
            if values == "scores"
            else ((f"{index}.weight_orig", "F32", 4), (f"{index}.weight_mask", "BOOL", 1))
        ):
            entries[name] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [start, start + width * size],
            }
            start += width * size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for size in sizes:
            if values in ("RP", "scores"):
                own = np.resize(vector, size)
            elif values == "seeds":
                own = torch.empty(size).normal_().numpy()
            else:
                own = rng.standard_normal(size, np.float32)
            own.tofile(stream)
            if values == "scores":
                rng.standard_normal(size, np.float32).tofile(stream)
            else:
                (rng.random(size, np.float32) < KEEP).tofile(stream)


def sizes_of(million: int) -> list[int]:
    """Weights of each layer."""
    sizes: list[int] = []
    while sum(sizes) < million * MILLION:
        size = LAYERS[len(sizes) % len(LAYERS)] * MILLION
        sizes.append(min(size, million * MILLION - sum(sizes)))
    return sizes


def write_networks(folder: Path, name: str) -> Path:
    """The checkpoint of a named network."""
    import torch
    from models import build_large, resnet50
    from torch import nn
    from torch_seed import STAGES

    from pemncodec.masking import RandomPadding, mask_model

    path = folder / f"{name}.pt"
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(90_210_777_123)
    if name == "ViT-B":
        model = mask_model(build_large("ViT-B/16"), RandomPadding(ratio=1e-3), keep=0.2, seed=0)
        torch.save(model.state_dict(), path)
        return path
    if name == "ResNet-50":
        model = resnet50()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        state = model.state_dict()
    else:
        shapes, inputs = [(64, 3, 7, 7)], 64
        for width, _ in STAGES:
            shapes += [(width, inputs, 3, 3), *[(width, width, 3, 3)] * 3]
            shapes += [(width, inputs, 1, 1)] if width != inputs else []
            inputs = width
        state = {
            f"{i}.weight": torch.empty(shape) for i, shape in enumerate([*shapes, (1000, 512)])
        }
        for weight in state.values():
            scale = (2 / weight[0].numel()) ** 0.5
            weight.copy_(torch.where(torch.rand(weight.shape) < 0.5, scale, -scale))
    masked = {}
    for key, tensor in state.items():
        if tensor.dim() > 1:
            masked[f"{key}_orig"] = tensor
            masked[f"{key}_mask"] = torch.rand(tensor.shape, generator=generator) < KEEP
        else:
            masked[key] = tensor
    torch.save(masked, path)
    return path


# ------------------------------------------------------------------------------------ rows


def command(*arguments: object) -> str:
    return _COMMAND.format(arguments=[str(argument) for argument in arguments])


def encoding(source: Path, output: Path, preset: str, values: str) -> str:
    effort = "auto" if values == "seeds" else "off"
    keep = ("--keep", KEEP) if values == "scores" else ()
    return command(
        "encode", source, "-o", output, "-f", "-q", "--no-manifest", "--find-seed", effort,
        "--preset", preset, *keep,
    )  # fmt: skip


def network_rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Rows of a ResNet: encoding it without a manifest."""
    source, output = write_networks(folder, name), folder / "net.pemn"
    values = "stored" if name == "ResNet-50" else "signs"
    for preset in ("fast", "max"):
        row = measure(encoding(source, output, preset, values))
        yield {"model": name, "values": values, "action": "encode", "preset": preset,
               "file bytes": output.stat().st_size, **row}  # fmt: skip


def vit_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of a ViT-B: encoding with its architecture, decoding."""
    source, output, dense = (
        write_networks(folder, "ViT-B"),
        folder / "vit.pemn",
        folder / "vit.safetensors",
    )
    row = {"model": "ViT-B", "values": "RP"}
    encoded = measure(_VIT.format(checkpoint=str(source), output=str(output)))
    decoded = measure(command("decode", output, "-f", "-q", "-o", dense))
    model = dense.stat().st_size / 2**20
    yield {**row, "action": "encode with manifest", "preset": "fast", "model MiB": model,
           "file bytes": output.stat().st_size, **encoded}  # fmt: skip
    yield {**row, "action": "decode to safetensors", "model MiB": model, **decoded}
    pt = folder / "vit-dense.pt"
    yield {**row, "action": "decode to .pt", "model MiB": model,
           **measure(command("decode", output, "-f", "-q", "-o", pt))}  # fmt: skip
    yield {
        **row,
        "action": "verify",
        "model MiB": model,
        **measure(command("verify", output, "-q")),
    }


def synthetic_rows(folder: Path, million: int) -> Iterator[dict[str, Any]]:
    """Rows of a model of many weights."""
    source, output = folder / "source.safetensors", folder / "net.pemn"
    dense, again = folder / "dense.safetensors", folder / "again"
    sizes = sizes_of(million)
    row = {"model": f"{million}M", "weights": sum(sizes), "model MiB": 4 * sum(sizes) / 2**20}
    runs = 1 if million >= 1000 else 2
    for values in VALUES:
        write_masked(source, sizes, values)
        encoded = measure(encoding(source, output, "fast", values), runs)
        size = output.stat().st_size
        inputs = max(sizes) * (8 if values == "scores" else 5)  # bytes
        own = {**row, "bound MiB": round(1.5 * inputs / 2**20 + 300), "values": values}
        yield {**own, "action": ENCODE, "preset": "fast", "file bytes": size, **encoded}
        source.unlink()
        if values == "scores":  # the file is like that of RP
            continue
        decoded = measure(command("decode", output, "-f", "-q", "-o", dense), runs)
        yield {**own, "action": DECODE, **decoded}
        yield {**own, "action": VERIFY, **measure(command("verify", output, "-q"), runs)}
        if values != "stored":
            dense.unlink()
    paths = {"dense": str(dense), "output": str(again)}
    yield {**row, "action": SAFETENSORS, **measure(_SAFETENSORS.format(**paths), runs)}
    dense.unlink()
    paths["dense"] = str(folder / "dense.pt")
    _run(command("decode", output, "-f", "-q", "-o", paths["dense"]))
    yield {**row, "action": TORCH, **measure(_TORCH.format(**paths), runs)}
    Path(paths["dense"]).unlink()
    again.unlink()


ROWS: Final[dict[str, Callable[[Path], Iterator[dict[str, Any]]]]] = {
    "ResNet-50": lambda folder: network_rows(folder, "ResNet-50"),
    "ResNet-18": lambda folder: network_rows(folder, "ResNet-18"),
    "ViT-B": vit_rows,
    "10M": lambda folder: synthetic_rows(folder, 10),
    "100M": lambda folder: synthetic_rows(folder, 100),
    "1000M": lambda folder: synthetic_rows(folder, 1000),
}


def shown(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rounded; memory relative to the model's, and time to that of another row."""
    if row.get("model MiB"):
        row["peak / model"] = f"{row['peak MiB'] / row['model MiB']:.2f}"
        row["model MiB"] = round(row["model MiB"])
    for other in rows:
        same = all(row.get(key) == other.get(key) for key in ("values", "action"))
        if same and "weights" in row and row["model"] != "100M" == other["model"]:
            ratio = row["CPU s"] / row["weights"] / (float(other["CPU s"]) / other["weights"])
            row["per weight"] = f"{ratio:.2f}"
    seconds = {key: f"{row[key]:.2f}" for key in ("CPU s", "of which system")}
    peak = round(row["peak MiB"])
    return {**row, **seconds, "peak MiB": peak, "threads": available_threads()}


# ------------------------------------------------------------------------------------ README


def markdown(rows: list[dict[str, str]]) -> str:
    """README's table: memory, and CPU time, of each action by the size of the model."""
    models = [name for name in ("10M", "100M", "1000M") if any(r["model"] == name for r in rows)]
    lines = ["| | " + " | ".join(models) + " |", "|---|" + "---:|" * len(models)]
    found = {(row["model"], row["values"], row["action"]): row for row in rows}
    kinds = [(values, action) for values in VALUES for action in (ENCODE, DECODE, VERIFY)]
    kinds = [kind for kind in kinds if any((name, *kind) in found for name in models)]
    for values, action in [*kinds, ("", SAFETENSORS), ("", TORCH)]:
        own = [found.get((model, values, action)) for model in models]
        cells = [
            f"{float(row['CPU s']):.1f} s, {int(row['peak MiB']):,} MiB" if row else ""
            for row in own
        ]
        lines.append(f"| {f'{values}: ' * bool(values)}{action} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """Memory and CPU time of each action by the number of weights, and the bound on memory."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    rows = [row for row in rows if row["weights"]]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots(1, 2)
    colors = dict(zip(VALUES, ("#c2410c", "#0f766e", "#4338ca", "#a16207"), strict=True))
    lines: list[tuple[str, str, str]] = [
        (values, action, style)
        for values in VALUES
        for action, style in ((ENCODE, "o-"), (DECODE, "s--"), (VERIFY, "^:"))
    ]
    lines += [("", SAFETENSORS, "D-."), ("", TORCH, "x:")]
    columns = (("peak MiB", "peak memory beyond import torch, MiB"), ("CPU s", "CPU time, s"))
    for axis, (column, title) in zip(axes, columns, strict=True):
        for values, action, style in lines:
            own = [row for row in rows if (row["values"], row["action"]) == (values, action)]
            if not own:
                continue
            x, y = [int(row["weights"]) for row in own], [float(row[column]) for row in own]
            what = action.removesuffix(" to safetensors")
            name = f"{values}: {what}" if values else f"dense, {what}"
            color = colors.get(values, "0.35" if action == TORCH else "0.6")
            axis.plot(x, y, style, color=color, markersize=5, linewidth=1.5, label=name)
        axis.set(xscale="log", yscale="log")
        axis.set_xlabel("masked weights", fontsize=10)
        axis.set_title(title, fontsize=11)
        axis.set_xticks([10**7, 10**8, 10**9], ["10 million", "100 million", "1,000 million"])
        lowest, highest = axis.get_ylim()
        ticks = [digit * 10.0**power for power in range(-2, 5) for digit in (1, 3)]
        axis.set_yticks([tick for tick in ticks if lowest <= tick <= highest])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.grid(color="0.9")
    bounds = sorted(
        {
            (int(row["weights"]), int(row["bound MiB"]))
            for row in rows
            if row["bound MiB"] and row["values"] != "scores"  # whose inputs are larger
        }
    )
    axes[0].plot(*zip(*bounds, strict=True), color="black", linewidth=2.5, alpha=0.5, label=_BOUND)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    with rc_context({"svg.hashsalt": "pemncodec"}):  # the same bytes for the same numbers
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*ROWS]))
@click.option("--folder", type=Path, help="For large files: 13 GB for 1000M.")
@click.option("--print", "print_only", is_flag=True, help="Measure nothing: print README's table.")
@click.option("--plot", "plot_only", is_flag=True, help="Measure nothing: draw README's plot.")
@click.option("-o", "--output", type=Path, default=RESULTS)
def main(
    names: tuple[str, ...], folder: Path | None, print_only: bool, plot_only: bool, output: Path
) -> None:
    """Measure, print and write the table."""
    if print_only or plot_only:
        _, measured = read_table(output)
        if print_only:
            click.echo(markdown(measured))
        else:
            plot(measured, output.with_suffix(".svg"))
        return
    import matplotlib  # noqa: F401 which is missed before anything is measured

    measured_on = provenance(("torch", "numpy", "safetensors", "zstandard"))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for name in names or ROWS:
            for row in ROWS[name](Path(temporary)):
                rows.append(shown(row, rows))
                print(" | ".join(str(rows[-1].get(column, "")) for column in COLUMNS), flush=True)
                write_table(output, measured_on, rows, COLUMNS)
    if any(row.get("bound MiB") for row in rows):
        plot(read_table(output)[1], output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
