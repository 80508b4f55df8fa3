"""`pemn digest`: one number for all that a file decodes to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import click

from pemncodec.cli.options import json_option, max_memory_option, quiet_option, threads_option
from pemncodec.cli.streams import FileName, in_one_line, named, opened, tell
from pemncodec.cli.terminal import print_json, steps, visible
from pemncodec.errors import PemnError
from pemncodec.format.file_digest import file_digest
from pemncodec.remote.urls import shown


@click.command(short_help="Print a digest of what a file decodes to.")
@click.argument("sources", metavar="FILE…", type=FileName(), nargs=-1, required=True)
@max_memory_option
@threads_option
@quiet_option
@json_option
def digest(sources: Sequence[str], max_memory: int, quiet: bool, as_json: bool) -> None:
    """Print a SHA-256 digest of names, values, masks and architecture of each file.

    It is the same for every preset, for seeds and stored values, in one file or in shards; text of
    --metadata does not count.

    \b
    pemn digest net.pemn other.pemn.index.json
    """
    found: list[dict[str, str]] = []
    failed = 0
    for source in sources:
        what = f"hashing {visible(shown(source))}"
        try:
            with steps(quiet=quiet) as step, opened(source, max_memory) as file, named(source):
                own = file_digest(file, partial(step, what))
        except (click.ClickException, PemnError, OSError) as error:
            message, status = in_one_line(error)
            tell(message)
            failed = max(failed, status)
            continue
        found.append({"file": shown(source), "digest": own})
        if not as_json:
            click.echo(f"{own}  {visible(shown(source))}")
    if as_json and found:
        print_json({"files": found})
    if failed:
        raise SystemExit(failed)
