"""The entry point: runs a command, and turns every error into one line and an exit status."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from pemncodec.cli.commands import cli
from pemncodec.cli.streams import fail
from pemncodec.errors import DecodeArgumentError, EncodeArgumentError, PemnError


def main() -> None:
    """Entry point: every error is one line on stderr; exit 1 for bad data, 2 for wrong options."""
    try:
        status = cli.main(standalone_mode=False)
        if status:  # what Exit was raised with
            raise SystemExit(status)
    except click.Abort:
        fail("interrupted", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        raise SystemExit(2) from None
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see {context.command_path} --help)" if context else ""
        fail(error.format_message().replace("\n", " ") + hint, error.exit_code)
    except (EncodeArgumentError, DecodeArgumentError) as error:
        fail(str(error), 2)
    except PemnError as error:
        fail(str(error), 1)
    except BrokenPipeError:
        _drop_output()  # the reader has gone
        raise SystemExit(1) from None
    except OSError as error:
        if _drop_output() and error.filename is None:
            error.filename = "standard output"
        # Not the name of a temporary file beside the target.
        if isinstance(error.filename, str) and ".pemn-" in Path(error.filename).name:
            fail(f"cannot write in {Path(error.filename).parent}: {error.strerror}", 1)
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except MemoryError:
        fail("out of memory", 1)


def _drop_output() -> bool:
    """Whether standard output takes nothing more: what is left must not fail again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
