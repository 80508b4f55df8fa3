"""Encoding by four processes against one, and what is left when one is killed: two CSVs.

    python benchmarks/distributed_encode.py time
    python benchmarks/distributed_encode.py kill

*time*: a checkpoint of 480 layers with two thousand million weights, half of them zeros, whose
values repeat a random vector, at preset max; wall time of whole commands, imports included, one
after the other. Every tensor that four processes wrote is compared with that of one. It takes 17 GB
of memory, and 8 GB in TMPDIR. *kill*: 50 encodings of 6 layers with values of their own, of which
one process is killed at a random moment; `--resume` then has to give the bytes of an encoding that
nobody disturbed.
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
    """Wall time of a command."""
    begin = time.perf_counter()
    subprocess.run(
        command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return time.perf_counter() - begin


@click.group()
def main() -> None:
    """Measure several processes that encode one network."""


@main.command("time")
@click.option("--layers", default=480, show_default=True)
@click.option("--size", default=2048, show_default=True, help="Rows and columns of each layer.")
def time_(layers: int, size: int) -> None:
    """Wall time of four processes, over that of one with one thread and with two."""
    measured_on = provenance(["torch"])
    with tempfile.TemporaryDirectory() as name:
        source, one, four = (Path(name, n) for n in ("net.safetensors", "one.pemn", "four.pemn"))
        write_checkpoint(source, layers, size, repeated=size + 1)
        alone = [sys.executable, "-m", "pemncodec", "encode", source, "-o", one, "-f", *OPTIONS]
        launched = [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS),
            "-m", "pemncodec.distributed", "encode", source, "-o", four, *OPTIONS,
        ]  # fmt: skip
        by_ranks = seconds([*launched, "--threads", "1"])
        by_threads = {
            threads: seconds([*alone, "--no-manifest", "--threads", str(threads)])
            for threads in (1, 2)
        }
        with (
            pemncodec.open(one) as expected,
            pemncodec.open(four.with_suffix(".pemn.index.json")) as found,
        ):
            assert found.keys() == expected.keys()
            for key in expected.keys():  # noqa: SIM118
                assert np.array_equal(found.tensor(key), expected.tensor(key))
        bytes_of_ranks = sum(path.stat().st_size for path in Path(name).glob("four*"))
        rows = [
            {
                "weights": layers * size * size,
                "against": f"one process, {threads} thread{'s' * (threads > 1)}",
                "seconds": round(alone_seconds, 1),
                f"seconds of {RANKS} processes": round(by_ranks, 1),
                "ratio": round(by_ranks / alone_seconds, 3),
                "bytes": one.stat().st_size,
                f"bytes of {RANKS} processes": bytes_of_ranks,
            }
            for threads, alone_seconds in by_threads.items()
        ]
    write_table(RESULTS / "distributed_encode.csv", measured_on, rows, rows[0])
    for row in rows:
        click.echo(row)


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
