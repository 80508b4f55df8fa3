"""What `pemn` shows a person: steps under way, tables, text from files made harmless."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from pemncodec.format.info import FileInfo, TensorInfo

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pemncodec.proof import Report

Step = Callable[[str, float | None], None]


@contextlib.contextmanager
def steps(*, quiet: bool) -> Iterator[Step]:
    """Shows on a terminal the step that is under way, and its share done where that is known."""
    if quiet or not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    times = TimeElapsedColumn(), TimeRemainingColumn()
    columns = TextColumn("{task.description}"), BarColumn(), *times
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def show(step: str, share: float | None) -> None:
            nonlocal task
            if share is None:
                # A task cannot go back to a bar without an end.
                progress.remove_task(task)
                task = progress.add_task(step, total=None)
            else:
                progress.update(task, description=step, completed=share, total=1.0)

        yield show


def print_json(value: dict[str, Any], *, to_stderr: bool = False) -> None:
    """One JSON object."""
    click.echo(json.dumps(value, indent=1), err=to_stderr)


def print_info(name: str, info: FileInfo, *, verbose: bool, to_stderr: bool = False) -> None:
    """A file's parts as a table; with `verbose` every tensor too."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    width = None if (sys.stderr if to_stderr else sys.stdout).isatty() else _asked_width()
    console = Console(stderr=to_stderr, width=width, highlight=False)
    console.print(f"[bold]{escape(name)}[/]  {escape(str(info))}")
    parts = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, justify in (("part", "left"), ("bytes", "right"), ("share", "right"), ("", "left")):
        parts.add_column(title, justify=justify)  # type: ignore[arg-type]
    notes = {
        "manifest": "" if info.manifest_bytes else "none: the file holds no architecture",
        "prototype": _describe_prototypes(info.prototypes),
        "mask": _describe_masks(info),
    }
    for part, size in info.parts.items():
        parts.add_row(
            part, f"{size:,}", f"{size / info.file_bytes:.1%}", escape(notes.get(part, ""))
        )
    print_table(console, parts)
    for shard, size in info.shards.items():
        console.print(escape(f"{visible(shard)}  {size:,} bytes"))
    if info.inference_only:
        console.print(
            "inference only: batch norms were folded, so that training the decoded module is not "
            "training the original"
        )
    for key, value in info.metadata.items():
        console.print(escape(f"{visible(key)}: {visible(value)}"))
    if not verbose:
        return
    # On a narrow terminal whole columns go, the least needed first; a name is never cut.
    for left_out in range(len(_OPTIONAL_COLUMNS) + 1):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        rows = [_tensor_row(tensor) for tensor in info.tensors]
        empty = {title for title in (rows[0] if rows else ()) if not any(r[title] for r in rows)}
        rows = [{k: v for k, v in row.items() if k not in empty} for row in rows]
        for title in rows[0] if rows else ():
            if title not in _OPTIONAL_COLUMNS[:left_out]:
                right = title in ("density", "bytes", "order-0", "max error (relative)")
                table.add_column(title, justify="right" if right else "left", no_wrap=True)
        for row in rows:
            shown = (row[title] for title in row if title not in _OPTIONAL_COLUMNS[:left_out])
            table.add_row(*map(escape, shown))
        natural = console.measure(table, options=console.options.update(width=1000))
        if natural.maximum <= console.width:
            break
    print_table(console, table)


def print_table(console: Console, table: Table) -> None:
    """Without the blanks that fill up its lines, which wrap where a terminal is narrower."""
    with console.capture() as captured:
        console.print(table)
    lines = map(str.rstrip, captured.get().split("\n"))
    click.echo("\n".join(lines), nl=False, file=console.file, color=True)


def _asked_width() -> int:
    """Of lines in a file or pipe, where nothing is cut or left out unless the caller says so."""
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) else _ENDLESS


def report_json(report: Report) -> dict[str, Any]:
    """What `encode` wrote, as JSON."""
    return {
        **report.info.to_json(),
        "verified": report.verified,
        "difference": report.difference,
        "accuracy": report.accuracy,
        "rules": report.rules,
        "notes": report.notes,
    }


def print_report(name: str, report: Report, *, verbose: bool, to_stderr: bool) -> None:
    """What `encode` wrote: the file's parts, and what was proven of it."""
    print_info(name, report.info, verbose=verbose, to_stderr=to_stderr)
    click.echo("\n".join(map(visible, report.findings)), err=to_stderr)


_ENDLESS = 1000
_PROTOTYPES_SHOWN = 4
_OPTIONAL_COLUMNS = ("order-0", "dtype", "coder", "kind", "shape", "density")


def _tensor_row(tensor: TensorInfo) -> dict[str, str]:
    return {
        "tensor": tensor.name,
        "shape": "×".join(map(str, tensor.shape)) or "scalar",
        "dtype": tensor.dtype,
        "kind": tensor.kind,
        "density": "" if tensor.density is None else f"{tensor.density:.4f}",
        "coder": tensor.coder or "",
        "bytes": f"{tensor.bytes:,}",
        "order-0": "" if tensor.order0_bytes is None else f"{tensor.order0_bytes:,.1f}",
        "max error (relative)": _describe_error(tensor),
    }


def _describe_error(tensor: TensorInfo) -> str:
    if not tensor.max_error:
        return ""
    relative = "" if tensor.relative_error is None else f" ({tensor.relative_error:.1e})"
    return f"{tensor.max_error:.1e}{relative}"


def _describe_prototypes(prototypes: Sequence[str]) -> str:
    shown = list(prototypes[:_PROTOTYPES_SHOWN])
    if len(prototypes) > len(shown):
        shown.append(f"and {len(prototypes) - len(shown):,} more prototypes")
    return "\n".join(shown)


def _describe_masks(info: FileInfo) -> str:
    if info.bits_per_weight is None:
        return "none"
    coded = f"{info.masked_weights:,} weights, {info.bits_per_weight:.4f} bits each"
    if info.order0_bytes is None:
        return coded
    return f"{coded}; order-0 entropy is {info.order0_bytes:,.0f} bytes"


def visible(text: str) -> str:
    """Text from a file with control characters escaped, so that it cannot steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
