"""Encodings that are killed at random moments: what they leave, and what continues them; a CSV.

    python benchmarks/interruptions.py
    python benchmarks/interruptions.py --moments 5 -o interruptions.csv

A network with its architecture is encoded into shards, over nothing, or over the shards of another
network. After each kill, all files under final names are decoded whole, an index that is there with
its shards, and `resume=True` has to make the files of an encoding that nobody killed. A single file
is killed, too, a fifth as often, and encoded again. Each encoding is a process of its own, forked,
so that moments are of its work and not of its imports; one that ends before its moment is begun
again. The exit status is 1 where a file is damaged or has other bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from provenance import ROOT, provenance, write_table
from torch import nn

import pemncodec

RESULTS = ROOT / "benchmarks" / "results" / "interruptions.csv"
COLUMNS = ("form", "before", "seconds", "finished shards", "under its name", "damaged", "continued")
WIDTH, LAYERS, SHARD_SIZE = 256, 12, 400_000


def network(seed: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Layers of values that are stored, and masks."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    for layer in layers:
        values = torch.rand(WIDTH, WIDTH, generator=generator, dtype=torch.float64) ** 2 - 0.3
        layer.weight = nn.Parameter(values.to(torch.float32), requires_grad=False)
    masks = {
        f"{number}.weight": torch.rand(WIDTH, WIDTH, generator=generator) < 0.5
        for number in range(LAYERS)
    }
    return nn.Sequential(*layers).eval(), masks


def encode(folder: Path, seed: int, form: str, **options: Any) -> None:
    module, masks = network(seed)
    size = SHARD_SIZE if form == "shards" else None
    pemncodec.encode(
        module,
        folder / "net.pemn",
        masks=masks,
        find_seed="off",
        preset="fast",
        threads=1,
        shard_size=size,
        **options,
    )


def forked(work: Callable[[], None]) -> int:
    """The number of a process that does it and ends."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return process


def done(process: int) -> bool:
    """Whether a process has ended without error."""
    return os.waitpid(process, 0)[1] == 0


def files(folder: Path) -> dict[str, str]:
    """A digest of each file that is not hidden."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if not path.name.startswith(".")
    }


def check_all(folder: Path) -> None:
    """Decodes every file, and the index with its shards; raises where one is damaged."""
    for path in sorted(folder.glob("[!.]*.pemn")):
        with pemncodec.open(path) as file:
            file.verify()
    index = folder / "net.pemn.index.json"
    if index.exists():
        with pemncodec.open(index) as file:
            file.verify()


def finished_shards(folder: Path) -> int | str:
    journal = folder / ".net.pemn.partial" / "journal.json"
    return len(json.loads(journal.read_bytes())["shards"]) if journal.exists() else ""


def kill(folder: Path, form: str, seconds: float) -> bool:
    """Whether an encoding was under way when it was killed."""
    process = forked(lambda: encode(folder, 0, form))
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def measure(
    folder: Path, reference: dict[str, str], seconds: float, form: str, before: str
) -> dict[str, Any] | None:
    """A row of the table; None where the encoding had ended."""
    earlier = files(folder)
    if not kill(folder, form, seconds):
        return None
    now = files(folder)
    named = "the new" if now == reference else "the old" if now == earlier else "shards, no index"
    row: dict[str, Any] = {
        "form": form,
        "before": before,
        "seconds": f"{seconds:.3f}",
        "finished shards": finished_shards(folder),
        "under its name": named if now else "nothing",
        "damaged": "no" if done(forked(lambda: check_all(folder))) else "yes",
    }
    if named == "shards, no index" and "net.pemn.index.json" in now:
        row["damaged"] = "yes"
    continued = {"resume": True} if form == "shards" else {}
    again = done(forked(lambda: encode(folder, 0, form, **continued)))
    row["continued"] = "same bytes" if again and files(folder) == reference else "other bytes"
    return row


def measure_form(form: str, moments: int, moment: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        places = {"nothing": root / "nothing", "another network": root / "another"}
        (root / "reference").mkdir()
        for path in places.values():
            path.mkdir()
        assert done(forked(partial(encode, places["another network"], 1, form)))
        start = time.perf_counter()
        assert done(forked(partial(encode, root / "reference", 0, form)))
        longest = time.perf_counter() - start
        reference = files(root / "reference")
        while len(rows) < moments:
            before = list(places)[len(rows) % 2]
            shutil.copytree(places[before], root / "trial")
            row = measure(root / "trial", reference, moment.uniform(0, longest), form, before)
            if row is not None:
                rows.append(row)
            shutil.rmtree(root / "trial")
    return rows


@click.command()
@click.option("--moments", default=50, show_default=True, help="Kills, of shards.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS)
def main(moments: int, seed: int, output: Path) -> None:
    """Kill encodings at random moments."""
    measured_on = provenance(("torch", "numpy"))
    torch.set_num_threads(1)  # threads do not survive a fork
    moment = random.Random(seed)
    rows = measure_form("shards", moments, moment)
    rows += measure_form("file", -(-moments // 5), moment)
    write_table(output, measured_on, rows, COLUMNS)
    wrong = [row for row in rows if row["damaged"] != "no" or row["continued"] != "same bytes"]
    click.echo(f"{len(rows)} kills, {len(wrong)} of them with damage or other bytes")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
