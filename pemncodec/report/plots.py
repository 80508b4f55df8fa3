"""Plots of a page as SVG: widths in percent and heights in pixels, so that text is never scaled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from math import prod
from typing import TYPE_CHECKING

from pemncodec.format.info import FileInfo, TensorInfo
from pemncodec.report.forms import FORMS
from pemncodec.report.series import Comparison, bytes_text

if TYPE_CHECKING:
    from pemncodec.report.costs import ModelCosts

_ROW = 40  # pixels
_NAME = 28  # characters that fit beside what is said of a layer on a narrow screen


def parts_plot(info: FileInfo) -> str:
    """A file's bytes as one bar."""
    x, bars, legend = 0.0, [], []
    for part, size in info.parts.items():
        share = 100 * size / info.file_bytes
        bars.append(f'<rect class="{part}" x="{x:.2f}%" y="0" width="{share:.2f}%" height="28"/>')
        x += share
        legend.append((f'class="{part}"', f"{part} {size:,} ({share:.1f}%)"))
    return _svg(28, "parts of the file", bars) + _legend(legend)


def forms_plot(model: ModelCosts) -> str:
    """A bar for each form; those that lose something last."""
    bars = [
        (form.error > 0, form.bytes, FORMS[key].title, "≈" * form.estimated)
        for key, form in model.forms.items()
    ]
    if model.info is not None and model.paper_bytes is not None:
        bars.append((False, model.paper_bytes, "paper's count", ""))
        bars.append(((model.largest_error or 0) > 0, model.info.file_bytes, ".pemn", ""))
    bars.sort(key=lambda bar: (bar[0], -bar[1]))
    largest = max((size for _, size, _, _ in bars), default=0) or 1
    marks = []
    for index, (lossy, size, name, mark) in enumerate(bars):
        kind = "ours-bar" if name == ".pemn" else "other-bar"
        title = f"{name}, lossy" if lossy and "lossy" not in name else name
        marks += _bar(index, title, f"{mark}{size:,}", kind, size / largest)
    return _svg(_ROW * len(bars), "bytes in every form", marks)


def layers_plot(tensors: Sequence[TensorInfo]) -> str:
    """Bits per weight of each mask, and where coders of independent bits end."""
    bits = [(bits_of(t.bytes, t), bits_of(t.order0_bytes or 0.0, t)) for t in tensors]
    most = max(1.0, *(max(pair) for pair in bits))
    marks = []
    for index, (tensor, (coded, bound)) in enumerate(zip(tensors, bits, strict=True)):
        name = tensor.name if len(tensor.name) <= _NAME else f"…{tensor.name[1 - _NAME :]}"
        said = f"{coded:.3f}, density {tensor.density or 0:.3f}, {tensor.coder or ''}"
        marks += _bar(index, name, said, "ours-bar", coded / most)
        x, y = f"{100 * bound / most:.2f}%", index * _ROW
        marks.append(f'<line class="bound" x1="{x}" x2="{x}" y1="{y + 17}" y2="{y + 33}"/>')
    return _svg(_ROW * len(tensors), "bits per weight of each mask", marks)


def bits_of(size: float, tensor: TensorInfo) -> float:
    """Bits for each weight of a tensor that takes `size` bytes."""
    count = prod(tensor.shape)
    return 8 * size / count if count else 0.0


def comparison_plot(figure: Comparison) -> str:
    """A line for each model with a dot for each kind of bytes, on a logarithmic scale."""
    low, high = figure.decades
    height = _ROW * len(figure.models)
    marks = []
    for exponent in range(low, high + 1):
        x = f"{100 * (exponent - low) / (high - low):.2f}%"
        anchor = {low: "start", high: "end"}.get(exponent, "middle")
        marks.append(f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{height}"/>')
        marks.append(
            f'<text class="soft" x="{x}" y="{height + 16}" text-anchor="{anchor}">'
            f"{bytes_text(10.0**exponent)}</text>"
        )
    for row, name in enumerate(figure.models):
        y = row * _ROW
        marks.append(f'<text x="0" y="{y + 13}">{escape(name)}</text>')
        marks.append(f'<rect class="track" y="{y + 24}" width="100%" height="2"/>')
        # The first above the others.
        for series in reversed(figure.series):
            value = series.values[row]
            if value:
                x = f"{100 * (math.log10(value) - low) / (high - low):.2f}%"
                title = f"<title>{escape(series.title)}: {value:,}</title>"
                marks.append(
                    f'<circle cx="{x}" cy="{y + 25}" r="6" fill="{series.color}">{title}</circle>'
                )
    legend = [(f'fill="{series.color}"', series.title) for series in figure.series]
    return _svg(height + 20, figure.title, marks) + _legend(legend)


def _bar(index: int, name: str, said: str, kind: str, share: float) -> list[str]:
    y = index * _ROW
    return [
        f'<text x="0" y="{y + 13}">{escape(name)}</text>',
        f'<text class="soft" x="100%" y="{y + 13}" text-anchor="end">{escape(said)}</text>',
        f'<rect class="track" y="{y + 19}" width="100%" height="12"/>',
        f'<rect class="{kind}" y="{y + 19}" width="{max(100 * share, 0.2):.2f}%" height="12"/>',
    ]


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    spans = (
        f'<span><svg viewBox="0 0 1 1"><rect {fill} width="1" height="1"/></svg>'
        f"{escape(text)}</span>"
        for fill, text in entries
    )
    return f'<p class="legend">{"".join(spans)}</p>'


def _svg(height: int, label: str, marks: Sequence[str]) -> str:
    return (
        f'<svg class="plot" height="{height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(marks)}</svg>"
    )
