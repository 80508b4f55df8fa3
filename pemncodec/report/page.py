"""Costs of models as one HTML file: tables, plots as SVG; no scripts, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from pemncodec.report.columns import OURS, Column, grouped
from pemncodec.report.forms import FORMS
from pemncodec.report.plots import comparison_plot, forms_plot, layers_plot, parts_plot
from pemncodec.report.series import PART_COLORS, comparisons
from pemncodec.report.table import estimates, texts

if TYPE_CHECKING:
    from pemncodec.report.costs import ModelCosts

_STYLE = """
:root { color-scheme: light dark; --text: #1e293b; --soft: #64748b; --line: #e2e8f0; --page: #fff;
  --ours: #c2410c; --other: #94a3b8; }
@media (prefers-color-scheme: dark) { :root { --text: #e2e8f0; --soft: #94a3b8; --line: #334155;
  --page: #0f172a; --ours: #fb923c; --other: #94a3b8; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; } p { color: var(--soft); max-width: 60rem; }
.wide { overflow-x: auto; margin-bottom: 1.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93em; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--page); padding-left: 0; overflow-wrap: anywhere; min-width: 7rem; }
td { white-space: nowrap; } td.text, td:first-child { white-space: normal; }
thead th { vertical-align: bottom; font-weight: 600; }
.ours { font-weight: 600; color: var(--ours); }
svg.plot { width: 100%; display: block; overflow: visible; }
svg text { fill: var(--text); font-size: 12px; }
svg .soft { fill: var(--soft); } .ours-bar { fill: var(--ours); } .other-bar { fill: var(--other); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; font-size: .85rem; }
.legend svg { display: inline; width: .7em; height: .7em; margin-right: .4em; }
.bound { stroke: var(--text); stroke-width: 2; } .track { fill: var(--line); }
.grid { stroke: var(--line); }
""" + "".join(f".{part} {{ fill: {color}; }}\n" for part, color in PART_COLORS.items())
_NOTES = """Other forms hold the tensors that the .pemn file gives, and no architecture; times
smaller compares safetensors with the .pemn file without its architecture. Largest error: of any
value of the .pemn file, relative to the largest of its tensor. Floor of independent bits: the least
that coders of the masks can reach if they treat bits as independent; others may take less. Values +
bitmask, CSR and 2:4 are what a pruned network takes that keeps as many weights, with values of
their own."""


def costs_page(models: Sequence[ModelCosts], columns: Sequence[Column], title: str) -> str:
    """All of the page.

    Args:
        models: in order.
        columns: of the tables.
        title: plain text, also what and when was measured.
    """
    body = [f"<h1>{escape(title)}</h1>"]
    for heading, group in grouped(columns).items():
        body += [f"<h3>{heading}</h3>", _table(models, group)]
    body += [f"<p>{note}</p>" for note in (estimates(models, columns), _NOTES) if note]
    if len(models) > 1:
        for figure in comparisons(models):
            body += [f"<h2>{figure.title}</h2>", comparison_plot(figure)]
    for model in models:
        body += _model(model)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _model(model: ModelCosts) -> list[str]:
    body = [f"<h2>{escape(model.name)}</h2>"]
    if model.info is None:
        body.append(f"<p>A dense model: {model.file_bytes:,} bytes.</p>")
    else:
        body.append(f"<p>{escape(_what_it_is(model))}</p>")
        body.append(f"<h3>Where its {model.info.file_bytes:,} bytes go</h3>")
        body.append(parts_plot(model.info))
    body += ["<h3>In other forms</h3>", forms_plot(model)]
    for form, failure in model.failures.items():
        body.append(f"<p>No {escape(FORMS[form].title)}: {escape(failure)}</p>")
    masked = [t for t in model.info.tensors if t.kind == "masked"] if model.info else []
    if masked:
        body.append("<h3>Masks, layer by layer</h3>")
        body.append(
            "<p>Bits per weight of each mask; the mark is its order-0 entropy, where coders of "
            "independent bits end. Masks that share a section share its bytes in proportion to "
            "their weights.</p>"
        )
        body.append(layers_plot(masked))
    return body


def _what_it_is(model: ModelCosts) -> str:
    """Whether a file is lossy, for inference only, and has its architecture."""
    assert model.info is not None
    error = model.largest_error
    said = ["with its architecture" if model.info.manifest_bytes else "without architecture"]
    if error:
        said.append(f"lossy, by up to {100 * error:.2g} % of the largest value of a tensor")
    else:
        said.append("lossless")
    if model.info.inference_only:
        said.append("for inference only")
    return f"A .pemn file {', '.join(said)}."


def _table(models: Sequence[ModelCosts], columns: Sequence[Column]) -> str:
    kinds = [_class(column) for column in columns]
    head = "".join(
        f"<th{kind}>{escape(column.title)}</th>"
        for kind, column in zip(kinds, columns, strict=True)
    )
    lines = []
    for row in texts(models, columns):
        cells = zip(kinds, row, strict=True)
        lines.append(
            f"<tr>{''.join(f'<td{kind}>{escape(text)}</td>' for kind, text in cells)}</tr>"
        )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _class(column: Column) -> str:
    if column.key == OURS:
        return ' class="ours"'
    return ' class="text"' if column.kind == "text" else ""
