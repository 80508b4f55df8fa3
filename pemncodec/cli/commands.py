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


class _InOrder(click.Group):
    """Lists its commands as they were added: in the order in which one meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 what click calls it with
        return [*self.commands]


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="pemn")
def cli() -> None:
    """Masked networks as small .pemn files: seed or prototype, masks, architecture.

    \b
    pemn encode model.pt --keep 0.5 --arch models.py:convmixer -o model.pemn
    pemn decode model.pemn -o model.safetensors

    A file may be a URL, and - is standard input or output. pemn COMMAND --help has the options
    of a command.
    """


for command in (encode, decode, inspect, verify, digest, seed, report):
    cli.add_command(command)
