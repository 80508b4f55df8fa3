"""The entry point: runs a command, and turns every error into one line and an exit status."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Final

import click

from pemncodec.cli.commands import cli
from pemncodec.cli.streams import fail
from pemncodec.errors import DecodeArgumentError, EncodeArgumentError, PemnError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM: Final = "; make room there, or name another place (-o; TMPDIR for temporary files)"


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


def in_one_line(error: Exception) -> tuple[str, int]:
    """What to say of an error, and the exit status; other errors are raised again."""
    match error:
        case click.Abort():
            return f"interrupted{_notes(error.__cause__)}", 130
        case click.ClickException():
            context = error.ctx if isinstance(error, click.UsageError) else None
            hint = f" (see {context.command_path} --help)" if context else ""
            return error.format_message().replace("\n", " ") + hint, error.exit_code
        case EncodeArgumentError() | DecodeArgumentError():
            return str(error), 2
        case PemnError():
            return str(error), 1
        case OSError():
            cause = f"{error.strerror}{_NO_ROOM if error.errno in _FULL else ''}{_notes(error)}"
            # Not the name of a temporary file beside the target.
            if isinstance(error.filename, str) and ".pemn-" in Path(error.filename).name:
                return f"cannot write in {Path(error.filename).parent}: {cause}", 1
            return f"{error.filename}: {cause}" if error.filename else f"{error}{_notes(error)}", 1
        case MemoryError():
            return f"out of memory{_notes(error)}", 1
    raise error


def _notes(error: BaseException | None) -> str:
    """What was added to an error on its way."""
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()))


def _drop_output() -> bool:
    """Whether standard output takes nothing more: what is left must not fail again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
