"""Costs of models as one HTML file: a table, plots as SVG; no scripts, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from pemncodec.format.info import PARTS, FileInfo, TensorInfo
from pemncodec.report.table import Row, table_row, titles

if TYPE_CHECKING:
    from pemncodec.report.costs import ModelCosts

_ROW = 40  # pixels
_NAME = 28  # characters that fit beside what is said of a layer on a narrow screen
_STYLE = """
:root { color-scheme: light dark; --text: #1e293b; --soft: #64748b; --line: #e2e8f0; --page: #fff;
  --ours: #c2410c; --other: #94a3b8; --header: #64748b; --manifest: #a78bfa; --prototype: #eab308;
  --dense: #0ea5e9; --mask: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --text: #e2e8f0; --soft: #94a3b8; --line: #334155;
  --page: #0f172a; --ours: #fb923c; --other: #94a3b8; --header: #94a3b8; --mask: #fb923c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; } p { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--page); padding-left: 0; } td { white-space: nowrap; }
thead th { vertical-align: bottom; max-width: 14rem; overflow-wrap: break-word; }
tr.ours { font-weight: 600; color: var(--ours); }
@media (max-width: 40rem) { td:first-child { white-space: normal; min-width: 7rem; } }
svg.plot { width: 100%; display: block; overflow: visible; }
svg text { fill: var(--text); font-size: 12px; }
svg .soft { fill: var(--soft); } .ours-bar { fill: var(--ours); } .other-bar { fill: var(--other); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; font-size: .85rem; }
.legend svg { display: inline; width: .7em; height: .7em; margin-right: .4em; }
.bound { stroke: var(--text); stroke-width: 2; } .track { fill: var(--line); }
""" + "".join(f".{part} {{ fill: var(--{part}); }}\n" for part in PARTS)


def costs_page(models: Sequence[ModelCosts], title: str) -> str:
    """All of the page.

    Args:
        models: in order.
        title: plain text, also what and when was measured.
    """
    body = [f"<h1>{escape(title)}</h1>", _table([table_row(model) for model in models])]
    if any(model.errors for model in models):
        body.append(
            "<p>Largest error: of any element, relative to the largest magnitude of its tensor.</p>"
        )
    for model in models:
        body.append(f"<h2>{escape(model.name)}</h2>")
        if model.info is None:
            body.append(f"<p>A dense model: {model.file_bytes:,} bytes.</p>")
        else:
            body.append(f"<h3>Where its {model.info.file_bytes:,} bytes go</h3>")
            body.append(_parts_plot(model.info))
        body += ["<h3>In other forms</h3>", _forms_plot(model)]
        for form, failure in model.failures.items():
            body.append(f"<p>No {escape(form)}: {escape(failure)}</p>")
        masked = [t for t in model.info.tensors if t.kind == "masked"] if model.info else []
        if masked:
            body.append("<h3>Masks, layer by layer</h3>")
            body.append(
                "<p>Bits per weight of each mask; the mark is its order-0 entropy, where coders of "
                "independent bits end. Masks that share a section share its bytes in proportion to "
                "their weights.</p>"
            )
            body.append(_layers_plot(masked))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _table(rows: Sequence[Row]) -> str:
    _, *others = titles(rows)
    head = "".join(f"<th>{escape(row['model'])}</th>" for row in rows)
    lines = []
    for name in others:
        cells = "".join(f"<td>{_number(row.get(name))}</td>" for row in rows)
        ours = ' class="ours"' if name == ".pemn" else ""
        lines.append(f"<tr{ours}><td>{escape(name)}</td>{cells}</tr>")
    return (
        f'<div class="wide"><table><thead><tr><th>bytes</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def _parts_plot(info: FileInfo) -> str:
    x, bars, legend = 0.0, [], []
    for part, size in info.parts.items():
        share = 100 * size / info.file_bytes
        bars.append(f'<rect class="{part}" x="{x:.2f}%" y="0" width="{share:.2f}%" height="28"/>')
        x += share
        square = f'<svg viewBox="0 0 1 1"><rect class="{part}" width="1" height="1"/></svg>'
        legend.append(f"<span>{square}{part} {size:,} ({share:.1f}%)</span>")
    return _svg(28, "parts of the file", bars) + f'<p class="legend">{"".join(legend)}</p>'


def _forms_plot(model: ModelCosts) -> str:
    forms = dict(model.alternatives)
    if model.info is not None and model.paper_bytes is not None:
        forms |= {"paper's count": model.paper_bytes, ".pemn": model.info.file_bytes}
    ordered = sorted(forms.items(), key=lambda item: -item[1])
    largest = ordered[0][1] or 1
    marks = []
    for index, (name, size) in enumerate(ordered):
        kind = "ours-bar" if name == ".pemn" else "other-bar"
        marks += _row(index, name, f"{size:,}", kind, size / largest)
    return _svg(_ROW * len(ordered), "bytes in every form", marks)


def _layers_plot(tensors: Sequence[TensorInfo]) -> str:
    bits = [(_bits(t.bytes, t), _bits(t.order0_bytes or 0.0, t)) for t in tensors]
    most = max(1.0, *(max(pair) for pair in bits))
    marks = []
    for index, (tensor, (coded, bound)) in enumerate(zip(tensors, bits, strict=True)):
        name = tensor.name if len(tensor.name) <= _NAME else f"…{tensor.name[1 - _NAME :]}"
        said = f"{coded:.3f}, density {tensor.density or 0:.3f}, {tensor.coder or ''}"
        marks += _row(index, name, said, "ours-bar", coded / most)
        x, y = f"{100 * bound / most:.2f}%", index * _ROW
        marks.append(f'<line class="bound" x1="{x}" x2="{x}" y1="{y + 17}" y2="{y + 33}"/>')
    return _svg(_ROW * len(tensors), "bits per weight of each mask", marks)


def _row(index: int, name: str, said: str, kind: str, share: float) -> list[str]:
    """A name and what is said of it, above a bar."""
    y = index * _ROW
    return [
        f'<text x="0" y="{y + 13}">{escape(name)}</text>',
        f'<text class="soft" x="100%" y="{y + 13}" text-anchor="end">{escape(said)}</text>',
        f'<rect class="track" y="{y + 19}" width="100%" height="12"/>',
        f'<rect class="{kind}" y="{y + 19}" width="{max(100 * share, 0.2):.2f}%" height="12"/>',
    ]


def _bits(size: float, tensor: TensorInfo) -> float:
    count = 1
    for length in tensor.shape:
        count *= length
    return 8 * size / count if count else 0.0


def _svg(height: int, label: str, marks: Sequence[str]) -> str:
    # Widths in percent and heights in pixels: text stays as large as it is on a narrow screen.
    return (
        f'<svg class="plot" height="{height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(marks)}</svg>"
    )
