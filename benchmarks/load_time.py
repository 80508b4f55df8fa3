"""How long a .pemn file takes to load, against the dense file that it replaces.

    python benchmarks/load_time.py [--weights 1e6 --weights 25e6] [--rounds 7] [--avx2]
    python benchmarks/load_time.py --weights 25e6 --rounds 9 --avx2 --own-blocks --warm \\
        --form "safetensors + clone" --form ".pemn RP 1e-3, fast" \\
        --form ".pemn independent, fast" -o benchmarks/results/load_time_pages.csv
    python benchmarks/load_time.py --print     # the table of README, from its CSV

All .pemn files of one size have the same masks, whose rows have densities of their own as those of
trained networks do: RP and independent weights, by the presets fast and max, and a constant, by
max. The dense files have the effective weights of the independent ones. `--avx2` loads them a
second time, with an extension whose kernels are those of processors without AVX-512.

A virtual machine may report its free blocks of 2 MiB to the host and so lose them; pemncodec uses
no large pages then. `--own-blocks` shows what it does elsewhere: it sees this system without the
reports, and before each load a process fills and frees blocks enough, so that they are still there.

Warm and cold loads each run in a process of their own, as in a program that starts up, after a
small file of the same kind has been loaded, so that no import is timed. Every page of the result is
touched. Warm: the file is in the page cache. Cold: it was dropped from there. Loop: one process
loads everything in turn, each file twice, and the second load is timed, whose memory is mapped
already. Rounds are interleaved. The table shows medians, the time relative to `safetensors` +
`clone()`, the processor time of a warm load, all threads together, and by how much the process grew
beyond the tensors themselves.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
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
start, used = time.perf_counter(), time.process_time()
tensors = touch(load(path))
seconds, used = time.perf_counter() - start, time.process_time() - used
grown = memory("VmHWM") - before
size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
print(json.dumps({"seconds": seconds, "used": used, "grown": grown, "bytes": size}))
"""

OWN_BLOCKS = r"""
import pathlib
from pemncodec.format import large_pages
large_pages._ROOT = pathlib.Path(sys.argv.pop(1))
"""

KEEP_BLOCKS = r"""
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
for at in range(0, len(memory), mmap.PAGESIZE):
    memory[at] = 1
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


@dataclass(frozen=True, slots=True)
class Form:
    """A way to load a model.

    Attributes:
        kind: of `loaders`.
        path: its file.
        package: the folder of the package that loads it.
        kernels: which of its kernels run.
        root: of a system that shows what pemncodec reads, where it is not the real one.
    """

    kind: str
    path: Path
    package: Path = ROOT
    kernels: str = "own"
    root: Path | None = None


def write_models(folder: Path, weights: int) -> dict[str, Form]:
    """Files of a network of ten square linear layers, by the names of their forms; those that are
    there are taken."""

    def network() -> nn.Sequential:
        side = max(8, round((weights / 10) ** 0.5))
        return nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(10)))

    forms: dict[str, Form] = {}
    for name, strategy, presets in (
        ("constant", RandomPadding(length=1), ("max",)),
        ("RP 1e-3", RandomPadding(1e-3), ("fast", "max")),
        ("independent", Independent(), ("fast", "max")),
    ):
        paths = {preset: folder / f"{name}-{preset}-{weights}.pemn" for preset in presets}
        if not all(path.exists() for path in paths.values()):
            model = mask_model(network(), strategy, keep=0.2)
            give_scores(model)
            inputs = torch.zeros(5, model[0].in_features)
            for preset, path in paths.items():
                pemncodec.encode(model, path, preset=preset, example_inputs=inputs)
        for preset, path in paths.items():
            forms[f".pemn {name}, {preset}"] = Form("state dict", path)
            if preset == "fast":
                forms[f".pemn {name}, {preset}, module"] = Form("module", path)
    dense, pickled = folder / f"{weights}.safetensors", folder / f"{weights}.pt"
    if not (dense.exists() and pickled.exists()):
        state = pemncodec.load_state_dict(path)
        safetensors.torch.save_file(state, dense)
        torch.save(state, pickled)
    return {BASELINE: Form(BASELINE, dense), "torch.load": Form("torch.load", pickled)} | forms


def without_avx512(folder: Path) -> Path:
    """A copy of the package in which functions of several versions are those for AVX2."""
    package = folder / "avx2"
    places = ["--build-base", str(folder / "build"), "--build-lib", str(package)]
    flags = os.environ | {"CFLAGS": "-D'BEST(NAME)=NAME##_avx2'"}
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build", *places], cwd=ROOT, env=flags, check=True
    )
    return package


def without_reports(folder: Path) -> Path:
    """The root of a system that is this one but for reports of free blocks."""
    root = folder / "root"
    (root / "sys").mkdir(parents=True)
    (root / "proc").symlink_to("/proc")
    (root / "sys" / "kernel").symlink_to("/sys/kernel")
    return root


def give_scores(model: nn.Sequential) -> None:
    """The same scores whatever the strategy: random ones, in rows of densities of their own."""
    generator = torch.Generator().manual_seed(0)
    for layer in model:
        scores = layer.parametrizations["weight"][0].scores.data
        scale = torch.rand(len(scores), 1, generator=generator) + 0.1
        scores.copy_((torch.rand(scores.shape, generator=generator) * 2 - 1) * scale)


def measure(form: Form, small: Path, cold: bool, weights: int) -> dict[str, float]:
    """One load of so many weights in a process of its own."""
    with form.path.open("rb") as stream:
        if cold:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while stream.read(MEBIBYTE):
                pass
    worker, arguments = FRESH, [form.kind, str(small), str(form.path)]
    if form.root is not None:
        room = str(3 * 4 * weights)
        subprocess.run([sys.executable, "-c", KEEP_BLOCKS, room], check=True)
        worker, arguments = OWN_BLOCKS + FRESH, [str(form.root), *arguments]
    result: dict[str, float] = run(form.package, worker, *arguments)
    return result


def measure_loop(forms: list[Form], rounds: int) -> dict[Form, float]:
    """Medians of the seconds that each form takes in a process that loads all of them in turn."""
    medians: dict[Form, float] = {}
    for package in dict.fromkeys(form.package for form in forms):
        own = [form for form in forms if form.package == package]
        files = [(form.kind, str(form.path)) for form in own]
        times = run(package, LOOP, json.dumps([1 + rounds, files]))[len(files) :]
        for index, form in enumerate(own):
            medians[form] = statistics.median(times[index :: len(files)])
    return medians


def run(package: Path, worker: str, *arguments: str) -> Any:
    """What a process of its own prints, with the package of a folder."""
    done = subprocess.run(
        [sys.executable, "-c", LOADERS + worker, *arguments],
        cwd=package, env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@click.command()
@click.option("--weights", type=float, multiple=True, default=(1e6, 25e6), show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--avx2", is_flag=True, help="Load with the kernels for AVX2, too.")
@click.option("--own-blocks", is_flag=True, help="Load as where no free memory is reported, too.")
@click.option("--form", "names", multiple=True, help="Only forms of these names.")
@click.option("--warm", is_flag=True, help="No cold cache.")
@click.option("--folder", type=Path, help="Where files are kept for later runs.")
@click.option("--print", "print_only", is_flag=True, help="Measure nothing: print README's table.")
@click.option(
    "-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "load_time.csv"
)
def main(
    weights: tuple[float, ...],
    rounds: int,
    avx2: bool,
    own_blocks: bool,
    names: tuple[str, ...],
    warm: bool,
    folder: Path | None,
    print_only: bool,
    output: Path,
) -> None:
    """Measure, print and write the table."""
    if print_only:
        click.echo(markdown(QUOTED))
        return
    measured_on = provenance(("torch", "safetensors"))  # before the output changes what git sees
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        kept, package = folder or Path(name), without_avx512(Path(name)) if avx2 else None
        root = without_reports(Path(name)) if own_blocks else None
        kept.mkdir(exist_ok=True)
        small = write_models(kept, 10_000)
        for count in map(int, weights):
            forms = [
                (name, form)
                for name, form in write_models(kept, count).items()
                if not names or name in names
            ]
            if package is not None:
                forms += [
                    (name, replace(form, package=package, kernels="AVX2 by switch"))
                    for name, form in forms
                    if form.kind != "torch.load"
                ]
            if root is not None:
                forms += [(name, replace(form, root=root)) for name, form in forms]
            results: dict[tuple[Form, bool], list[dict[str, float]]] = {}
            for _ in track(range(rounds), f"{count:,} weights", transient=True):
                for name, form in forms:
                    for cold in (False,) if warm else (False, True):
                        one = measure(form, small[name].path, cold, count)
                        results.setdefault((form, cold), []).append(one)
            loop = measure_loop([form for _, form in forms if form.root is None], rounds)
            rows += summarize(count, forms, results, loop)
    show(rows, measured_on)
    write_table(output, measured_on, rows, rows[0])


def summarize(
    count: int,
    forms: list[tuple[str, Form]],
    results: dict[tuple[Form, bool], list[dict[str, float]]],
    loop: dict[Form, float],
) -> list[dict[str, object]]:
    """A row for each form: medians, relative to the baseline of the same size, package and root."""

    def median(form: Form, cold: bool, of: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(map(of, results[form, cold]))

    base = {(form.package, form.root): form for name, form in forms if name == BASELINE}
    rows: list[dict[str, object]] = []
    for name, form in forms:
        dense = base[form.package, form.root]
        row: dict[str, object] = {"weights": count, "form": name, "kernels": form.kernels}
        row["free blocks"] = "as they are" if form.root is None else "own"
        row["bytes"] = form.path.stat().st_size
        for cold in (False, True):
            if (form, cold) not in results:
                continue
            cache = "cold" if cold else "warm"
            seconds = median(form, cold, lambda r: r["seconds"])
            row[f"{cache} ms"] = round(1e3 * seconds, 2)
            row[f"{cache} ×"] = round(seconds / median(dense, cold, lambda r: r["seconds"]), 2)
        row["CPU ms"] = round(1e3 * median(form, False, lambda r: r["used"]), 2)
        if form in loop:
            row["loop ms"] = round(1e3 * loop[form], 2)
            row["loop ×"] = round(loop[form] / loop[dense], 2)
        over = median(form, False, lambda r: r["grown"] - r["bytes"])
        row["more MiB"] = round(over / MEBIBYTE, 1)
        rows.append(row)
    return rows


def markdown(path: Path) -> str:
    """The state dicts of a CSV: what README quotes."""
    _, rows = read_table(path)
    rows = [row for row in rows if not row["form"].endswith(", module")]
    avx2 = {row["form"]: row for row in rows if row["kernels"] != "own"}
    lines = [
        "| form | file | warm cache | cold cache | CPU | memory | warm, AVX2 | CPU, AVX2 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row["kernels"] == "own":
            size, memory = f"{int(row['bytes']) / 1e6:.1f} MB", f"{float(row['more MiB']):.0f} MiB"
            cells = [row["form"], size, *_milliseconds(row, "warm ms", "cold ms", "CPU ms"), memory]
            other = avx2.get(row["form"])
            cells += ["", ""] if other is None else _milliseconds(other, "warm ms", "CPU ms")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _milliseconds(row: dict[str, str], *columns: str) -> list[str]:
    return [f"{float(row[column]):.0f} ms" for column in columns]


def show(rows: list[dict[str, object]], title: str) -> None:
    """The table on the terminal."""
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "form" else "right", no_wrap=True)
    for row in rows:
        values = [row.get(column, "") for column in rows[0]]
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in values))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
