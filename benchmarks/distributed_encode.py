"""Encoding by four processes against one, and what is left when one is killed: two CSVs.

    python benchmarks/distributed_encode.py time
    python benchmarks/distributed_encode.py kill

*time*: two checkpoints at preset max, of layers whose weights are half zeros: the values of one
repeat a random vector (RP), the other's are all its own, and stored. Wall time of whole commands,
imports included, one after the other; each was run on a small model before. Every tensor that four
processes wrote is compared with that of one. RP takes 17 GB of memory, and 8 GB in TMPDIR.
*kill*: 50 encodings of 6 layers with values of their own, of which one process is killed at a
random moment; `--resume` then has to give the bytes of an encoding that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from provenance import ROOT, provenance, write_table
from safetensors.torch import save_file

import pemncodec

sys.path.insert(0, str(ROOT / "tests"))

RESULTS = Path(__file__).parent / "results"
RANKS = 4
OPTIONS = (
    "--masks-from", "zeros", "--find-seed", "off", "--preset", "max",
)  # fmt: skip
KILLS = 50


def write_checkpoint(path: Path, layers: int, size: int, repeated: int | None = None) -> None:
    """Layers of values of their own, or of so many that are repeated; half are zeros."""
    generator = torch.Generator().manual_seed(0)
    count = size * size
    state = {}
    for number in range(layers):
        if number == 0 or repeated is None:
            values = torch.randn(repeated or count, generator=generator)
        weight = values.repeat(-(-count // len(values)))[:count].view(size, size).clone()
        weight[torch.rand(size, size, generator=generator) < 0.5] = 0
        state[f"layer{number}.weight"] = weight
    save_file(state, path)


def seconds(command: Sequence[str | Path]) -> float:
    """Wall time of a command, which may keep compiled modules, as where packages are installed."""
    env = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=env | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - begin


@click.group()
def main() -> None:
    """Measure several processes that encode one network."""


@main.command("time")
@click.option("--layers", default=480, show_default=True, help="Of RP.")
@click.option("--stored-layers", default=64, show_default=True, help="Of stored values.")
@click.option("--size", default=2048, show_default=True, help="Rows and columns of each layer.")
def time_(layers: int, stored_layers: int, size: int) -> None:
    """Wall time of four processes, over that of one with one thread and with two."""
    measured_on = provenance(["torch"])
    rows = [
        *timed("RP", layers, size, repeated=size + 1),
        *timed("stored values", stored_layers, size),
    ]
    write_table(RESULTS / "distributed_encode.csv", measured_on, rows, rows[0])


def timed(model: str, layers: int, size: int, repeated: int | None = None) -> list[dict[str, Any]]:
    """The rows of one model, against one process with one thread and with two."""

    def tell(text: str) -> None:
        click.echo(f"{model}: {text}", err=True)

    with tempfile.TemporaryDirectory() as name:
        small, source, one, four = (
            Path(name, n) for n in ("small.safetensors", "net.safetensors", "one.pemn", "four.pemn")
        )

        def alone(of: Path, threads: int) -> float:
            return seconds([
                sys.executable, "-m", "pemncodec", "encode", of, "-o", one, "-f", *OPTIONS,
                "--no-manifest", "--threads", str(threads),
            ])  # fmt: skip

        def by_ranks(of: Path) -> float:
            return seconds([
                sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS),
                "-m", "pemncodec.distributed", "encode", of, "-o", four, "-f", *OPTIONS,
                "--threads", "1",
            ])  # fmt: skip

        write_checkpoint(small, RANKS, 64, repeated)
        alone(small, 1)
        by_ranks(small)
        write_checkpoint(source, layers, size, repeated)
        os.sync()  # else the system writes it while the first command is timed
        tell(f"{layers * size * size:,} weights are written")
        together = by_ranks(source)
        tell(f"{RANKS} processes: {together:.1f} s")
        by_threads: dict[int, float] = {}
        for threads in (1, 2):
            by_threads[threads] = alone(source, threads)
            tell(f"one process, {threads} threads: {by_threads[threads]:.1f} s")
        with (
            pemncodec.open(one) as expected,
            pemncodec.open(four.with_suffix(".pemn.index.json")) as found,
        ):
            assert found.keys() == expected.keys()
            for key in expected.keys():  # noqa: SIM118
                assert np.array_equal(found.tensor(key), expected.tensor(key))
        tell("the same tensors")
        bytes_of_ranks = sum(path.stat().st_size for path in Path(name).glob("four*"))
        rows = [
            {
                "model": model,
                "weights": layers * size * size,
                "against": f"one process, {threads} thread{'s' * (threads > 1)}",
                "seconds": round(alone_seconds, 1),
                f"seconds of {RANKS} processes": round(together, 1),
                "ratio": round(together / alone_seconds, 3),
                "bytes": one.stat().st_size,
                f"bytes of {RANKS} processes": bytes_of_ranks,
            }
            for threads, alone_seconds in by_threads.items()
        ]
    for row in rows:
        click.echo(row)
    return rows


@main.command()
@click.option("--count", default=KILLS, show_default=True)
def kill(count: int) -> None:
    """What is left when a process is killed, and whether the rest is the same."""
    from encoding_ranks import run_ranks

    measured_on = provenance(["torch"])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "net.safetensors")
        write_checkpoint(source, 6, 600)

        def encode(output: str, *more: str, **killed: Any) -> list[int]:
            arguments = ["encode", str(source), "-o", str(Path(name, output)), *OPTIONS, *more]
            return [end for end, _ in run_ranks(RANKS, [*arguments, "-q"], **killed)]

        begin = time.perf_counter()
        assert not any(encode("net.pemn"))
        duration = time.perf_counter() - begin
        whole = files(Path(name))
        moments = random.Random(0)
        for number in range(count):
            for path in Path(name).glob("net*.pemn*"):
                path.unlink()
            rank, moment = moments.randrange(RANKS), moments.uniform(0, duration)
            ends = encode("net.pemn", killed=(rank, moment))
            left = files(Path(name))
            finished = Path(name).glob(".net*/*.pemn")
            row = {
                "number": number,
                "rank": rank,
                "second": round(moment, 3),
                "statuses": " ".join(map(str, ends)),
                "shards kept": len(list(finished)),
                "files under final names": len(left),
                "damaged": sum(data != whole[file] for file, data in left.items()),
            }
            complete = len(left) == len(whole)
            row["resumed"] = "complete" if complete else str(max(encode("net.pemn", "--resume")))
            row["same bytes"] = files(Path(name)) == whole
            rows.append(row)
            leftovers = [path for path in Path(name).iterdir() if path.name.startswith(".")]
            assert not leftovers or complete, leftovers
    write_table(RESULTS / "distributed_kill.csv", measured_on, rows, rows[0])
    click.echo(json.dumps({
        "killings": len(rows),
        "damaged": sum(row["damaged"] for row in rows),
        "same bytes": sum(row["same bytes"] for row in rows),
        "shards kept": sum(row["shards kept"] for row in rows),
    }))  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    """All that is there of the model under final names."""
    return {path.name: path.read_bytes() for path in folder.glob("net*.pemn*")}


if __name__ == "__main__":
    main()
