"""How long a .pemn file takes to load, against the dense file that it replaces.

    python benchmarks/load_time.py [--weights 1e6 --weights 25e6] [--rounds 7] [-o FILE.csv]
    python benchmarks/load_time.py --print     # the table of README, from its CSV

All .pemn files of one size have the same masks, whose rows have densities of their own as those of
trained networks do: RP and independent weights, by the presets fast and max. The dense files have
the effective weights of the independent ones.

Warm and cold loads each run in a process of their own, as in a program that starts up, after a
small file of the same kind has been loaded, so that no import is timed. Every page of the result is
touched. Warm: the file is in the page cache. Cold: it was dropped from there. Loop: one process
loads everything in turn, each file twice, and the second load is timed, whose memory is mapped
already. Rounds are interleaved. The table shows medians, the time relative to `safetensors` +
`clone()`, and by how much the process grew beyond the tensors themselves.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import safetensors.torch
import torch
from provenance import provenance, read_table, write_table
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import pemncodec
from pemncodec.masking import Independent, RandomPadding, mask_model

ROOT = Path(__file__).parent.parent
MEBIBYTE = 1 << 20
BASELINE = "safetensors + clone"
QUOTED = ROOT / "benchmarks" / "results" / "load_time_25M.csv"

LOADERS = r"""
import json, re, sys, time
import torch
import safetensors.torch
import pemncodec

def memory(entry):
    with open("/proc/self/status") as stream:
        return int(re.search(entry + r":\s*(\d+) kB", stream.read())[1]) * 1024

def touch(result):
    tensors = result if isinstance(result, dict) else result.state_dict()
    for tensor in tensors.values():
        tensor.view(-1)[:: 1024].sum()
    return tensors

loaders = {
    "safetensors + clone": lambda path: {
        name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()
    },
    "torch.load": lambda path: torch.load(path, weights_only=True),
    "state dict": pemncodec.load_state_dict,
    "module": pemncodec.decode,
}
"""

FRESH = r"""
kind, small, path = sys.argv[1:]
load = loaders[kind]
touch(load(small))
before = memory("VmRSS")
with open("/proc/self/clear_refs", "w") as stream:
    stream.write("5")  # the peak starts anew
start = time.perf_counter()
tensors = touch(load(path))
seconds = time.perf_counter() - start
grown = memory("VmHWM") - before
size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
print(json.dumps({"seconds": seconds, "grown": grown, "bytes": size}))
"""

LOOP = r"""
def seconds(kind, path):
    start = time.perf_counter()
    touch(loaders[kind](path))
    return time.perf_counter() - start

rounds, files = json.loads(sys.argv[1])
times = []
for _ in range(rounds):
    for kind, path in files:
        seconds(kind, path)
        times.append(seconds(kind, path))
print(json.dumps(times))
"""


def write_models(folder: Path, weights: int) -> dict[str, tuple[str, Path]]:
    """Files of a network of ten square linear layers: name of the form → kind of load, file."""

    def network() -> nn.Sequential:
        side = max(8, round((weights / 10) ** 0.5))
        return nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(10)))

    forms: dict[str, tuple[str, Path]] = {}
    for name, strategy in (("RP 1e-3", RandomPadding(1e-3)), ("independent", Independent())):
        model = mask_model(network(), strategy, keep=0.2)
        give_scores(model)
        for preset in ("fast", "max"):
            path = folder / f"{name}-{preset}-{weights}.pemn"
            inputs = torch.zeros(5, model[0].in_features)
            pemncodec.encode(model, path, preset=preset, example_inputs=inputs)
            forms[f".pemn {name}, {preset}"] = ("state dict", path)
            if preset == "fast":
                forms[f".pemn {name}, {preset}, module"] = ("module", path)
    state = pemncodec.load_state_dict(path)
    dense, pickled = folder / f"{weights}.safetensors", folder / f"{weights}.pt"
    safetensors.torch.save_file(state, dense)
    torch.save(state, pickled)
    return {BASELINE: (BASELINE, dense), "torch.load": ("torch.load", pickled)} | forms


def give_scores(model: nn.Sequential) -> None:
    """The same scores whatever the strategy: random ones, in rows of densities of their own."""
    generator = torch.Generator().manual_seed(0)
    for layer in model:
        scores = layer.parametrizations["weight"][0].scores.data
        scale = torch.rand(len(scores), 1, generator=generator) + 0.1
        scores.copy_((torch.rand(scores.shape, generator=generator) * 2 - 1) * scale)


def measure(kind: str, small: Path, path: Path, cold: bool) -> dict[str, float]:
    """One load in a process of its own."""
    with path.open("rb") as stream:
        if cold:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while stream.read(MEBIBYTE):
                pass
    result: dict[str, float] = run(FRESH, kind, str(small), str(path))
    return result


def measure_loop(forms: dict[str, tuple[str, Path]], rounds: int) -> dict[str, float]:
    """Medians of the seconds that each form takes in a process that loads all of them in turn."""
    files = [(kind, str(path)) for kind, path in forms.values()]
    times = run(LOOP, json.dumps([1 + rounds, files]))[len(files) :]
    return {form: statistics.median(times[index :: len(files)]) for index, form in enumerate(forms)}


def run(worker: str, *arguments: str) -> Any:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", LOADERS + worker, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@click.command()
@click.option("--weights", type=float, multiple=True, default=(1e6, 25e6), show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--print", "print_only", is_flag=True, help="Measure nothing: print README's table.")
@click.option(
    "-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "load_time.csv"
)
def main(weights: tuple[float, ...], rounds: int, print_only: bool, output: Path) -> None:
    """Measure, print and write the table."""
    if print_only:
        click.echo(markdown(QUOTED))
        return
    measured_on = provenance(("torch", "safetensors"))  # before the output changes what git sees
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = write_models(folder, 10_000)
        for count in map(int, weights):
            forms = write_models(folder, count)
            results: dict[tuple[str, bool], list[dict[str, float]]] = {}
            for _ in track(range(rounds), f"{count:,} weights", transient=True):
                for form, (kind, path) in forms.items():
                    for cold in (False, True):
                        one = measure(kind, small[form][1], path, cold)
                        results.setdefault((form, cold), []).append(one)
            rows += summarize(count, forms, results, measure_loop(forms, rounds))
            for _, path in forms.values():
                path.unlink(missing_ok=True)
    show(rows, measured_on)
    write_table(output, measured_on, rows, rows[0])


def summarize(
    count: int,
    forms: dict[str, tuple[str, Path]],
    results: dict[tuple[str, bool], list[dict[str, float]]],
    loop: dict[str, float],
) -> list[dict[str, object]]:
    """A row for each form: medians, relative to the baseline of the same size and cache."""

    def median(form: str, cold: bool, of: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(map(of, results[form, cold]))

    rows: list[dict[str, object]] = []
    for form, (_, path) in forms.items():
        row: dict[str, object] = {"weights": count, "form": form, "bytes": path.stat().st_size}
        for cold in (False, True):
            cache = "cold" if cold else "warm"
            seconds = median(form, cold, lambda r: r["seconds"])
            base = median(BASELINE, cold, lambda r: r["seconds"])
            row[f"{cache} ms"] = round(1e3 * seconds, 2)
            row[f"{cache} ×"] = round(seconds / base, 2)
        row["loop ms"] = round(1e3 * loop[form], 2)
        row["loop ×"] = round(loop[form] / loop[BASELINE], 2)
        over = median(form, False, lambda r: r["grown"] - r["bytes"])
        row["more MiB"] = round(over / MEBIBYTE, 1)
        rows.append(row)
    return rows


def markdown(path: Path) -> str:
    """The state dicts of a CSV: what README quotes."""
    _, rows = read_table(path)
    lines = ["| form | file | warm cache | cold cache | memory |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        if not row["form"].endswith(", module"):
            warm, cold, memory = (float(row[key]) for key in ("warm ms", "cold ms", "more MiB"))
            size = f"{int(row['bytes']) / 1e6:.1f} MB"
            lines.append(
                f"| {row['form']} | {size} | {warm:.0f} ms | {cold:.0f} ms | {memory:.0f} MiB |"
            )
    return "\n".join(lines)


def show(rows: list[dict[str, object]], title: str) -> None:
    """The table on the terminal."""
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "form" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
