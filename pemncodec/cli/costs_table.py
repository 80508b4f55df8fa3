"""The table of `pemn report` on a terminal: never wider than that, and nothing of it left out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pemncodec.cli.terminal import print_table
from pemncodec.report.columns import OURS, Column, grouped
from pemncodec.report.table import estimates, texts, title_lines

if TYPE_CHECKING:
    from pemncodec.report.costs import ModelCosts

_WIDTH = 100  # characters, where nothing says how many there are
_ENDLESS = 10_000
_FEW = 5  # models, which are compared best side by side


def print_costs(models: Sequence[ModelCosts], columns: Sequence[Column]) -> None:
    """Prints a column for each of few models, a line for each of many, in tables that fit."""
    width = shutil.get_terminal_size((_WIDTH, 0)).columns
    tables = _beside(models, columns, width) or _blocks(models, columns, width)
    for table in tables:
        # A name that is longer than a line is not cut.
        print_table(Console(width=max(width, _width(table)), highlight=False), table)
    if note := estimates(models, columns):
        Console(highlight=False, soft_wrap=True).print(note)


def _beside(models: Sequence[ModelCosts], columns: Sequence[Column], width: int) -> list[Table]:
    """Tables of a column for each model, several only for few; none where they do not fit."""
    most = (len(models) + 1) // 2 if len(models) <= _FEW else 1  # one alone compares nothing
    for count in range(1, most + 1):
        ends = [len(models) * number // count for number in range(count + 1)]
        tables = [_upright(models[start:end], columns) for start, end in pairwise(ends)]
        if all(_width(table) <= width for table in tables):
            return tables
    return []


def _upright(models: Sequence[ModelCosts], columns: Sequence[Column]) -> Table:
    table = _empty()
    head, *lines = zip(*texts(models, columns), strict=True)
    table.add_column("", no_wrap=True)
    for name in head:
        table.add_column(escape(name), justify="right", no_wrap=True)
    for column, line in zip(columns[1:], lines, strict=True):
        style = "bold" if column.key == OURS else ""
        table.add_row(column.title, *map(escape, line), style=style)
    return table


def _blocks(models: Sequence[ModelCosts], columns: Sequence[Column], width: int) -> Iterator[Table]:
    for group in grouped(columns).values():
        name, *rest = group
        while rest:
            count = len(rest)
            while count > 1 and _width(_flat(models, [name, *rest[:count]])) > width:
                count -= 1
            yield _flat(models, [name, *rest[:count]])
            rest = rest[count:]


def _flat(models: Sequence[ModelCosts], columns: Sequence[Column]) -> Table:
    table = _empty()
    for column in columns:
        title = escape("\n".join(title_lines(column.title)))
        table.add_column(
            title,
            justify="left" if column.kind == "text" else "right",
            style="bold" if column.key == OURS else "",
            no_wrap=True,
            vertical="bottom",
        )
    for line in texts(models, columns):
        table.add_row(*map(escape, line))
    return table


def _empty() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _width(table: Table) -> int:
    console = Console(width=_ENDLESS)
    return console.measure(table, options=console.options.update(width=_ENDLESS)).maximum
