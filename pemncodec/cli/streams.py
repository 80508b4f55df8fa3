"""Files and standard streams that commands read and write, and how they fail."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

import click

from pemncodec.cli.terminal import visible
from pemncodec.errors import EncodeArgumentError, PemnError
from pemncodec.format.reader import PemnFile, open_file
from pemncodec.limits import Limits

STDIO = "-"


def check_output(output: str, source: str, *, force: bool) -> None:
    """Refuses an output that cannot be written, or that would be lost.

    Raises:
        click.UsageError: says why.
    """
    if output == STDIO:
        if sys.stdout.isatty():
            raise click.UsageError("will not write binary data to a terminal: give -o FILE")
        return
    path = Path(output)
    if source != STDIO and path.exists() and Path(source).exists() and path.samefile(source):
        raise click.UsageError(f"{output} is the input: give another name with -o")
    if path.is_dir():
        raise click.UsageError(f"{output} is a folder")
    if path.exists() and not force:
        raise click.UsageError(f"{output} exists: -f overwrites it")
    if not path.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {path.parent}")


@contextlib.contextmanager
def checkpoint_path(source: str) -> Iterator[Path]:
    """A checkpoint's path; standard input is spooled to a file, as its readers need one."""
    if source != STDIO:
        yield Path(source)
        return
    data = sys.stdin.buffer.read()
    # safetensors: eight bytes of length, then a JSON object; torch.save writes neither there.
    suffix = ".safetensors" if data[8:9] == b"{" else ".pt"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"stdin{suffix}"
        path.write_bytes(data)
        yield path


@contextlib.contextmanager
def output_target(output: str) -> Iterator[str | BinaryIO]:
    """A path, or standard output."""
    if output != STDIO:
        yield output
        return
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def opened(source: str, max_memory: int) -> Iterator[PemnFile]:
    """A .pemn file, or standard input; errors name it."""
    limits = Limits(decoded_bytes=max_memory)
    with named(source):
        file = open_file(sys.stdin.buffer if source == STDIO else source, limits=limits)
    with file:
        yield file


@contextlib.contextmanager
def named(source: str) -> Iterator[None]:
    """Puts the file's name in front of errors that know only its content."""
    try:
        yield
    except EncodeArgumentError:
        raise
    except PemnError as error:
        fail(f"{source}: {error}", 1)


def fail(message: str, status: int) -> NoReturn:
    """Ends the process with one line on standard error."""
    click.echo(f"pemn: {visible(message)}", err=True)
    raise SystemExit(status)
