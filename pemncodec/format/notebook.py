"""What a notebook shows of an open file and of its costs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_MOST_ROWS = 100


def html_table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML; of a long one the first rows, and how many more there are."""
    lines = [f"<table><caption>{escape(caption)}</caption>", _row("th", heads)]
    lines += [_row("td", row) for row in rows[:_MOST_ROWS]]
    if len(rows) > _MOST_ROWS:
        lines.append(_row("td", [f"and {len(rows) - _MOST_ROWS:,} more"]))
    return "\n".join([*lines, "</table>"])


def _row(kind: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"
