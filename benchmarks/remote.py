"""How many bytes of a remote file, in how many requests, are fetched for what: a CSV.

    python benchmarks/remote.py
    python benchmarks/remote.py --print

A web server in this process counts what it sends of a file of 103 MB: layers of independent random
values, of which masks use half, and trained tensors; and of the same model in shards. *needed* is
the front of the file, or the index and all fronts, and the sections of what is asked for.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import torch
from provenance import ROOT, provenance, read_table, write_table

import pemncodec
from pemncodec import PemnFile

sys.path.insert(0, str(ROOT / "tests"))
from file_server import FileServer, serving  # which tests use, too

RESULTS = Path(__file__).parent / "results" / "remote.csv"
COLUMNS = ("what", "requests", "bytes", "needed", "over")
FILE, INDEX = "/net.pemn", "/net.pemn.index.json"
SHARD_SIZE = "30MB"


def large_files() -> dict[str, bytes]:
    """A model as a file, and as shards and their index, by the paths of URLs."""
    generator = torch.Generator().manual_seed(0)
    state = {f"{i}.bias": torch.randn(1_000_000, generator=generator) for i in range(4)}
    masks = {}
    for i in range(10):
        mask = torch.rand(2500, 2000, generator=generator) < 0.5
        masks[f"{i}.weight"] = mask
        state[f"{i}.weight"] = torch.randn(2500, 2000, generator=generator) * mask
    options = {"masks": masks, "manifest": False, "find_seed": "off", "preset": "fast"}
    files = {}
    for size in (SHARD_SIZE, None):
        with tempfile.TemporaryDirectory() as folder:
            pemncodec.encode(state, Path(folder, "net.pemn"), shard_size=size, **options)
            files |= {f"/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}
    return files


def measure(
    server: FileServer, path: str, what: str, use: Callable[[PemnFile], object], needed: int
) -> dict:
    server.asked.clear()
    with pemncodec.open(server.url(path)) as file:
        use(file)
    sent = server.sent
    return {
        "what": what,
        "requests": len(server.asked),
        "bytes": sent,
        "needed": needed,
        "over": sent - needed,
    }


def rows(server: FileServer, path: str, where: str) -> list[dict]:
    with pemncodec.open(server.url(path)) as file:
        info = file.info(decode=False)
        front = info.header_bytes
        sections = file.container.sections
        weight = sum(sections[i].length for i in file.masked.needed(file.masked_row("3.weight")))
        bias = next(t.bytes for t in info.tensors if t.name == "2.bias")
    return [
        measure(server, path, f"inspect{where}", lambda file: file.info(decode=False), front),
        measure(
            server,
            path,
            f"a masked weight of 5 million{where}",
            lambda file: file.tensor("3.weight"),
            front + weight,
        ),
        measure(
            server,
            path,
            f"a trained tensor of 1 million{where}",
            lambda file: file.tensor("2.bias"),
            front + bias,
        ),
        measure(server, path, f"everything{where}", PemnFile.verify, info.file_bytes),
    ]


@click.command()
@click.option("--print", "printed", is_flag=True, help="Print the table of the CSV.")
def main(printed: bool) -> None:
    """Measure, or print what was measured."""
    if not printed:
        measured_on = provenance(["torch"])
        with serving() as server:
            server.files |= large_files()
            where = f", {len(server.files) - 2} shards"
            measured = rows(server, FILE, "") + rows(server, INDEX, where)
        write_table(RESULTS, measured_on, measured, COLUMNS)
    _, table = read_table(RESULTS)
    click.echo("| what | requests | bytes fetched | beyond what is needed |\n|---|---:|---:|---:|")
    for row in table:
        click.echo(
            f"| {row['what']} | {row['requests']} | {int(row['bytes']):,} | {int(row['over']):,} |"
        )


if __name__ == "__main__":
    main()
