"""`pemn verify`: a file against the rules of the format, and against a checkpoint."""

from __future__ import annotations

import click

from pemncodec.architecture.manifest import FORMAT
from pemncodec.cli.comparing import compare_files
from pemncodec.cli.options import (
    keep_option,
    max_memory_option,
    prefix_option,
    quiet_option,
    trust_pickle_option,
)
from pemncodec.cli.streams import FileName, named, opened
from pemncodec.cli.terminal import steps


@click.command()
@click.argument("source", metavar="FILE", type=FileName())
@click.option("--against", metavar="CHECKPOINT", help="Also compare every tensor bit for bit.")
@keep_option
@prefix_option
@trust_pickle_option
@max_memory_option
@quiet_option
def verify(
    source: str,
    against: str | None,
    keep: float | None,
    prefix: str | None,
    trust_pickle: bool,
    max_memory: int,
    quiet: bool,
) -> None:
    """Decode all of a file and check every rule of the format."""
    if (keep is not None or prefix is not None) and against is None:
        raise click.UsageError("--keep and --prefix belong to --against")
    with steps(quiet=quiet) as step, opened(source, max_memory) as file, named(source):
        step("verifying", None)
        if against is None:
            file.verify()
        else:
            compare_files(file, against, keep, prefix, trust_pickle=trust_pickle)
        if file.manifest is not None and file.manifest["format"] == FORMAT:
            from pemncodec.decoding import build_empty_module

            build_empty_module(file)
        count = len(file.keys())
    if not quiet:
        compared = f", every one bit for bit as in {against}" if against else ""
        click.echo(f"{source}: valid, {count} tensors{compared}")
