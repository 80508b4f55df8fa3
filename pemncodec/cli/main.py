"""The entry point: runs a command, and turns every error into one line and an exit status."""

from __future__ import annotations

import os
import signal
import sys

import click

from pemncodec.cli.commands import cli
from pemncodec.cli.streams import fail, in_one_line
from pemncodec.errors import PemnError


def main() -> None:
    """Entry point: every error is one line on stderr; exit 1 for bad data, 2 for wrong options."""
    # Else the process would end at once, and leave temporary files.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = cli.main(standalone_mode=False)
        if status:  # what Exit was raised with
            raise SystemExit(status)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        raise SystemExit(2) from None
    except BrokenPipeError:
        _drop_output()  # the reader has gone
        raise SystemExit(1) from None
    except OSError as error:
        if _drop_output() and error.filename is None:
            error.filename = "standard output"
        fail(*in_one_line(error))
    except (click.Abort, click.ClickException, PemnError, MemoryError) as error:
        fail(*in_one_line(error))


def _drop_output() -> bool:
    """Whether standard output takes nothing more: what is left must not fail again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
