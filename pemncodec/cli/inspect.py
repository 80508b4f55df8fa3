"""`pemn inspect`: what a file holds."""

from __future__ import annotations

import click

from pemncodec.architecture.text import render_architecture
from pemncodec.cli.options import json_option, max_memory_option, threads_option
from pemncodec.cli.streams import FileName, named, opened
from pemncodec.cli.terminal import print_info, print_json
from pemncodec.errors import ManifestError
from pemncodec.remote.urls import is_url, shown


@click.command()
@click.argument("source", metavar="FILE", type=FileName())
@click.option("-v", "--verbose", is_flag=True, help="Also list every tensor.")
@click.option(
    "--decode/--front",
    default=None,
    help="Decode the masks to count their ones, or read nothing but the front of the file.  "
    "[default: --front for URLs, else --decode]",
)
@click.option("--architecture", is_flag=True, help="Show the modules, as print(model) does.")
@max_memory_option
@threads_option
@json_option
def inspect(
    source: str,
    verbose: bool,
    decode: bool | None,
    architecture: bool,
    max_memory: int,
    as_json: bool,
) -> None:
    """Show what a file holds and what every part of it costs.

    \b
    pemn inspect net.pemn -v
    pemn inspect https://host/net.pemn --architecture
    """
    with opened(source, max_memory) as file, named(source):
        if architecture:
            if file.manifest is None:
                raise ManifestError("no-manifest", "the file holds no architecture, only tensors")
            shapes = {name: file.shape(name) for name in file.keys()}  # noqa: SIM118
            if as_json:
                print_json(file.manifest)
            else:
                click.echo("\n".join(render_architecture(file.manifest, shapes)))
            return
        info = file.info(decode=not is_url(source) if decode is None else decode)
    if as_json:
        print_json(info.to_json())
    else:
        print_info(shown(source), info, verbose=verbose)
