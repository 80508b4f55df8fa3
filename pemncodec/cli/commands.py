"""The commands of `pemn`. torch is imported only by those that need it, when they run."""

from __future__ import annotations

import click

from pemncodec import __version__
from pemncodec.cli.decode import decode
from pemncodec.cli.digest import digest
from pemncodec.cli.encode import encode
from pemncodec.cli.inspect import inspect
from pemncodec.cli.report import report
from pemncodec.cli.seed import seed
from pemncodec.cli.verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="pemn")
def cli() -> None:
    """Store masked networks as seed or prototype + coded masks + architecture.

    In place of a file name, - is standard input or output.
    """


for command in (encode, decode, digest, inspect, report, seed, verify):
    cli.add_command(command)
