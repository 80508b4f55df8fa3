"""Files, URLs and standard streams that commands read and write, and how they fail."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

import click

from pemncodec.checkpoints.folders import (
    check_all_named,
    check_files,
    files_of,
    listed_shards,
)
from pemncodec.checkpoints.kinds import INDICES, advice, kind_of, may_begin_checkpoint
from pemncodec.cli.terminal import visible
from pemncodec.errors import (
    DecodeArgumentError,
    EncodeArgumentError,
    EncodeError,
    NotPemnError,
    PemnError,
)
from pemncodec.format.atomic import named_errors
from pemncodec.format.container import read_up_to
from pemncodec.format.index import SUFFIX, index_name
from pemncodec.format.parts import is_interrupted
from pemncodec.format.places import Location
from pemncodec.format.reader import PemnFile, open_file
from pemncodec.limits import limits_within
from pemncodec.remote.downloads import download
from pemncodec.remote.stores import stored_bytes
from pemncodec.remote.urls import beside, is_url, last_part, shown

_PART: Final = 1 << 20  # bytes that are copied at one time
_UNKNOWN: Final = 1 << 26  # bytes that are taken of what is no checkpoint

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM: Final = "; make room there, or name another place (-o; TMPDIR for temporary files)"
# As in "--keep 0.5 (keep=…)": what the library calls an option.
_IN_PYTHON: Final = re.compile(r"(--[a-z-]+(?: [^\s()]+)?) \([a-z_]+=(?:[^()]|\([^()]*\))*\)")

STDIO = "-"
_STANDARD = {
    f"{folder}/{name}"
    for folder, names in (("/dev", ("stdin", "stdout")), ("/dev/fd", "01"), ("/proc/self/fd", "01"))
    for name in names
}


class FileName(click.ParamType[str]):
    """The name or URL of a file; - for the names that systems have for standard input and output.

    A file behind standard output is then written where it stands, not replaced.
    """

    name = "text"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002 a method of click's
        ctx: click.Context | None,  # noqa: ARG002
    ) -> str:
        return STDIO if value in _STANDARD else str(value)


def check_output(output: str, source: str, *, force: bool, resume: bool = False) -> None:
    """Refuses an output that cannot be written, or that would be lost.

    Raises:
        click.UsageError: says why.
    """
    if output == STDIO:
        if sys.stdout.isatty():
            raise click.UsageError("will not write binary data to a terminal: give -o FILE")
        return
    if is_url(output):
        if output == source:
            raise click.UsageError(f"{shown(output)} is the input: give another name with -o")
        for url in (beside(output, file) for file in _files_of(last_part(output))):
            if not force and stored_bytes(url) is not None:
                raise click.UsageError(f"{shown(url)} exists: {_to_overwrite(output, resume)}")
        return
    path = Path(output)
    if source != STDIO and path.exists() and Path(source).exists() and path.samefile(source):
        raise click.UsageError(f"{output} is the input: give another name with -o")
    if path.is_dir():
        raise click.UsageError(f"{output} is a folder")
    for file in map(path.with_name, _files_of(path.name)):
        if file.is_file() and not force:  # nothing is lost in a pipe or device
            raise click.UsageError(f"{file} exists: {_to_overwrite(path, resume)}")
    if not path.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {path.parent}")


def _to_overwrite(output: Location, resume: bool) -> str:
    if resume and is_interrupted(output):
        return "give -f, too, if what is resumed is to replace it"
    return "nothing is left to resume; -f overwrites it" if resume else "-f overwrites it"


def _files_of(name: str) -> list[str]:
    """The names under which a file or a model may be there already."""
    return [name, index_name(name)] if name.endswith(SUFFIX) else [name]


def check_source(source: str) -> None:
    """Refuses what is no checkpoint before torch is imported, which takes longer than to see that.

    Raises:
        OSError: there is no such file or folder, or it cannot be read.
        EncodeError: it is something else, or files of it are missing.
    """
    path = Path(source)
    if source != STDIO and not is_url(source) and not path.is_fifo():  # of which reading takes
        check_files(path, source)


def check_sources(sources: Sequence[str]) -> None:
    """Refuses also some of the files of a checkpoint in several; raises as `check_source`."""
    for source in sources:
        check_source(source)
    check_all_named(sources)


@contextlib.contextmanager
def checkpoint_path(source: str) -> Iterator[Path]:
    """A checkpoint's path; what is in a pipe or at a URL becomes files, as readers need these."""
    if is_url(source):
        with tempfile.TemporaryDirectory() as folder:
            # By its own name, since suffixes say what a file is.
            downloaded = Path(folder, f"checkpoint{Path(last_part(source)).suffix}")
            with named_errors(tempfile.gettempdir()):
                download(source, downloaded)
                if kind_of(downloaded) in INDICES:
                    for shard in listed_shards(downloaded, shown(source)):
                        download(beside(source, shard.name), shard)
            yield downloaded
        return
    path = Path(source)
    if source != STDIO and not path.is_fifo():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        spooled = Path(folder) / "checkpoint"
        with contextlib.ExitStack() as stack:
            stack.enter_context(named_errors(tempfile.gettempdir()))
            piped = sys.stdin.buffer if source == STDIO else stack.enter_context(path.open("rb"))
            _take_in(piped, stack.enter_context(spooled.open("wb")), source)
        yield spooled


def _take_in(pipe: BinaryIO, file: BinaryIO, source: str) -> None:
    """Copies what a pipe gives, which may be without end.

    Of what is no checkpoint only the beginning is taken, by which readers tell what it is.

    Raises:
        BadDataError: it is so much that the disk would soon be full.
    """
    head = read_up_to(pipe, _PART)
    file.write(head)
    free = shutil.disk_usage(Path(file.name).parent).free
    most = free // 2 if may_begin_checkpoint(head) else _UNKNOWN
    missing = most - len(head)
    while missing > 0 and (part := pipe.read(min(missing, _PART))):
        file.write(part)
        missing -= len(part)
    if missing <= 0 and may_begin_checkpoint(head) and pipe.read(1):
        raise BadDataError(
            f"{source}: more than {most:,} bytes come, half of what is free in "
            f"{tempfile.gettempdir()}: give a file, or a folder with more room (TMPDIR)"
        )


@contextlib.contextmanager
def checkpoint_paths(sources: Sequence[str]) -> Iterator[dict[str, Path]]:
    """The paths of several checkpoints, by what messages call them."""
    with contextlib.ExitStack() as stack:
        yield {shown(source): stack.enter_context(checkpoint_path(source)) for source in sources}


@contextlib.contextmanager
def output_target(output: str) -> Iterator[str | BinaryIO]:
    """A path, or standard output."""
    if output != STDIO:
        yield output
        return
    with named_errors("standard output"):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def opened(source: str, max_memory: int) -> Iterator[PemnFile]:
    """A .pemn file, or standard input; errors name it."""
    limits = limits_within(max_memory)
    local = source != STDIO and not is_url(source)
    with named(source):
        try:
            file = open_file(sys.stdin.buffer if source == STDIO else source, limits=limits)
        except NotPemnError as error:
            what = advice(Path(source)) if local and Path(source).is_file() else ""
            said = f"{error}{f'; {what}' if what else ''}{_notes(error)}"
            raise BadDataError(f"{shown(source)}: {said}") from None
        except FileNotFoundError as error:
            if local and _has_checkpoint(Path(source)):
                error.strerror = f"{error.strerror}; its checkpoint is for pemn encode"
            raise
    with file:
        yield file


def _has_checkpoint(folder: Path) -> bool:
    try:
        return folder.is_dir() and bool(files_of(folder, str(folder)))
    except EncodeError:
        return False


@contextlib.contextmanager
def named(source: str) -> Iterator[None]:
    """Puts the file's name in front of errors that know only its content."""
    try:
        yield
    except (DecodeArgumentError, EncodeArgumentError):
        raise
    except PemnError as error:
        name = shown(source)
        named_already = str(error).startswith(f"{name}: ")
        raise BadDataError(str(error) if named_already else f"{name}: {error}") from None


class BadDataError(click.ClickException):
    """A file that cannot be used. Printed by `main`, when progress is no longer shown."""

    exit_code = 1


def in_one_line(error: Exception) -> tuple[str, int]:
    """What to say of an error, and the exit status; other errors are raised again."""
    match error:
        case click.Abort():
            return f"interrupted{_notes(error.__cause__)}", 130
        case click.ClickException():
            context = error.ctx if isinstance(error, click.UsageError) else None
            hint = f" (see {context.command_path} --help)" if context else ""
            return _for_shells(error.format_message()).replace("\n", " ") + hint, error.exit_code
        case EncodeArgumentError() | DecodeArgumentError():
            return _for_shells(str(error)), 2
        case PemnError():
            return _for_shells(str(error)), 1
        case OSError():
            cause = f"{error.strerror}{_NO_ROOM if error.errno in _FULL else ''}{_notes(error)}"
            # Not the name of a temporary file beside the target.
            if isinstance(error.filename, str) and ".pemn-" in Path(error.filename).name:
                return f"cannot write in {Path(error.filename).parent}: {cause}", 1
            return f"{error.filename}: {cause}" if error.filename else f"{error}{_notes(error)}", 1
        case MemoryError():
            return f"out of memory{_notes(error)}", 1
    raise error


def _for_shells(text: str) -> str:
    return _IN_PYTHON.sub(r"\1", text)


def _notes(error: BaseException | None) -> str:
    """What was added to an error on its way."""
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()))


def fail(message: str, status: int) -> NoReturn:
    """Ends the process with one line on standard error."""
    tell(message)
    raise SystemExit(status)


def tell(message: str) -> None:
    """One line on standard error."""
    click.echo(f"pemn: {visible(message)}", err=True)
