"""Costs of models as a table for other programs: CSV, Markdown, LaTeX. Rows are models."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pemncodec.report.columns import OURS, Cell, Column

if TYPE_CHECKING:
    from pemncodec.report.costs import ModelCosts

_TITLE_WIDTH = 12  # of a line, in characters
_LATEX = {
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # behind the end of a line it would begin an option
    "*": "{*}",
    "≈": r"$\approx$",
    "≥": r"$\ge$",
    "×": r"$\times$",
    "−": "$-$",
}


def cell_text(column: Column, cell: Cell) -> str:
    """A value as people read it; nothing where there is none."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
    if column.kind == "flag":
        return "yes" if value else "no"
    if column.kind == "error":
        if not value:
            return "lossless"
        return f"{'≥' if cell.estimated else ''}{100 * value:.2g} %"
    digits = {"count": ",", "share": ".3f", "bits": ".4f", "times": ".2f"}
    return f"{'≈' if cell.estimated else ''}{value:{digits[column.kind]}}"


def texts(models: Sequence[ModelCosts], columns: Sequence[Column]) -> list[list[str]]:
    """A line of texts for each model."""
    return [[cell_text(column, column.cell(model)) for column in columns] for model in models]


def estimates(models: Sequence[ModelCosts], columns: Sequence[Column]) -> str:
    """What the marks of estimated values mean; nothing where there are none."""
    kinds = {c.kind for c in columns for model in models if c.cell(model).estimated}
    said = ["≈ estimated from a sample of the tensors"] * bool(kinds - {"error"})
    said += ["≥ the largest error in a sample of the tensors"] * ("error" in kinds)
    return "; ".join(said)


def table_csv(models: Sequence[ModelCosts], columns: Sequence[Column]) -> str:
    """A line for each model, under the keys of the columns; values as they are.

    The last column, `estimated`, has the keys of those values that follow from samples, with
    spaces between them.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(column.key for column in columns), "estimated"])
    for model in models:
        cells = [column.cell(model) for column in columns]
        estimated = [c.key for c, cell in zip(columns, cells, strict=True) if cell.estimated]
        values = ["" if cell.value is None else cell.value for cell in cells]
        writer.writerow([*values, " ".join(estimated)])
    return text.getvalue()


def table_markdown(models: Sequence[ModelCosts], columns: Sequence[Column]) -> str:
    """A table as GitHub's Markdown has it."""
    rules = ["---" if column.kind == "text" else "---:" for column in columns]
    lines = [[_markdown(column.title) for column in columns], rules]
    for row in texts(models, columns):
        cells = zip(columns, map(_markdown, row), strict=True)
        lines.append([f"**{text}**" if text and c.key == OURS else text for c, text in cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = estimates(models, columns)
    return f"{table}\n\n{note}\n" if note else f"{table}\n"


def table_latex(models: Sequence[ModelCosts], columns: Sequence[Column]) -> str:
    """A `tabular` with the rules of the package booktabs, to be put in a document.

    graphicx makes it smaller where it would be wider than the text.
    """
    places = "".join("l" if column.kind == "text" else "r" for column in columns)
    lines = [
        r"% \usepackage{booktabs, graphicx}",
        r"\noindent\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{places}}}",
        r"\toprule",
        _latex_row([_latex_title(column) for column in columns]),
        r"\midrule",
    ]
    for row in texts(models, columns):
        cells = zip(columns, map(_latex, row), strict=True)
        lines.append(
            _latex_row([rf"\textbf{{{t}}}" if t and c.key == OURS else t for c, t in cells])
        )
    lines.append(r"\bottomrule")
    if note := estimates(models, columns):
        lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\footnotesize {_latex(note)}}} \\")
    lines.append(r"\end{tabular}}")
    return "\n".join(lines) + "\n"


def title_lines(title: str) -> list[str]:
    """A title broken between words, so that its column need not be wider than its values."""
    return textwrap.wrap(title, _TITLE_WIDTH, break_long_words=False, break_on_hyphens=False)


def _latex_row(cells: Sequence[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _latex_title(column: Column) -> str:
    lines = [_latex(line) for line in title_lines(column.title)]
    side = "l" if column.kind == "text" else "r"
    stacked = r" \\ ".join(rf"\strut {line}" for line in lines)
    return lines[0] if len(lines) == 1 else rf"\shortstack[{side}]{{{stacked}}}"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|&#~])", r"\\\1", text)
