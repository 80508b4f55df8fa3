"""How many bytes of a remote file, in how many requests, are fetched for what: a CSV.

    python benchmarks/remote.py
    python benchmarks/remote.py --print

A web server in this process counts what it sends of a file of 103 MB: layers of independent random
values, of which masks use half, and trained tensors. *needed* is the front of the file and the
sections of what is asked for.
"""

from __future__ import annotations

import io
import sys
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


def large_file() -> bytes:
    generator = torch.Generator().manual_seed(0)
    state = {f"{i}.bias": torch.randn(1_000_000, generator=generator) for i in range(4)}
    masks = {}
    for i in range(10):
        mask = torch.rand(2500, 2000, generator=generator) < 0.5
        masks[f"{i}.weight"] = mask
        state[f"{i}.weight"] = torch.randn(2500, 2000, generator=generator) * mask
    stream = io.BytesIO()
    pemncodec.encode(state, stream, masks=masks, manifest=False, find_seed="off", preset="fast")
    return stream.getvalue()


def measure(server: FileServer, what: str, use: Callable[[PemnFile], object], needed: int) -> dict:
    server.asked.clear()
    with pemncodec.open(server.url("/net.pemn")) as file:
        use(file)
    sent = server.sent
    return {
        "what": what,
        "requests": len(server.asked),
        "bytes": sent,
        "needed": needed,
        "over": sent - needed,
    }


def rows(data: bytes) -> list[dict]:
    with pemncodec.open(data) as file:
        info = file.info()
        front = info.header_bytes
        sections = file.container.sections
        weight = file.masked.needed(file.masked_row("3.weight"))
        needed = {
            "3.weight": sum(sections[index].length for index in weight),
            "2.bias": next(t.bytes for t in info.tensors if t.name == "2.bias"),
        }
    with serving() as server:
        server.files["/net.pemn"] = data
        return [
            measure(server, "inspect", lambda file: file.info(decode=False), front),
            measure(
                server,
                "a masked weight of 5 million",
                lambda file: file.tensor("3.weight"),
                front + needed["3.weight"],
            ),
            measure(
                server,
                "a trained tensor of 1 million",
                lambda file: file.tensor("2.bias"),
                front + needed["2.bias"],
            ),
            measure(server, "everything", lambda file: file.verify(), len(data)),
        ]


@click.command()
@click.option("--print", "printed", is_flag=True, help="Print the table of the CSV.")
def main(printed: bool) -> None:
    """Measure, or print what was measured."""
    if not printed:
        measured_on = provenance(["torch"])
        write_table(RESULTS, measured_on, rows(large_file()), COLUMNS)
    _, table = read_table(RESULTS)
    click.echo("| what | requests | bytes fetched | beyond what is needed |\n|---|---:|---:|---:|")
    for row in table:
        click.echo(
            f"| {row['what']} | {row['requests']} | {int(row['bytes']):,} | {int(row['over']):,} |"
        )


if __name__ == "__main__":
    main()
