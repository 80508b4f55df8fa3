"""Figures for papers, as SVG and PDF, by matplotlib: models compared, masks layer by layer."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pemncodec.report.plots import bits_of
from pemncodec.report.series import OUR_COLOR, Comparison, bytes_text, comparisons

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pemncodec.report.costs import ModelCosts

FIGURES: Final = ("parts", "forms", "layers")
SUFFIXES: Final = (".svg", ".pdf")
_NAMED_LAYERS = 60  # more names than these would cover each other
_MARKERS = "Dos^v<>pPX*"  # told apart without colours, too
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "svg.hashsalt": "pemncodec",  # the same bytes for the same numbers
    "text.parse_math": False,  # names may have dollars
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
}


def draw_figures(models: Sequence[ModelCosts]) -> dict[str, bytes]:
    """Files by name: each of `FIGURES` that has something to show, with each of `SUFFIXES`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    files = {}
    with rc_context(_STYLE):
        for key, draw in _drawn(models).items():
            figure = Figure(layout="constrained")
            draw(figure)
            for suffix in SUFFIXES:
                files[key + suffix] = _saved(figure, suffix)
    return files


def _drawn(models: Sequence[ModelCosts]) -> dict[str, Callable[[Figure], None]]:
    drawn: dict[str, Callable[[Figure], None]] = {}
    for comparison in comparisons(models):
        drawn[comparison.key] = partial(_compare, comparison)
    masked = [model for model in models if model.info is not None and model.info.masked_weights]
    if masked:
        drawn["layers"] = partial(_layers, masked)
    return drawn


def _saved(figure: Figure, suffix: str) -> bytes:
    stream = io.BytesIO()
    date = {".svg": "Date", ".pdf": "CreationDate"}[suffix]
    figure.savefig(stream, format=suffix[1:], metadata={date: None})
    return stream.getvalue()


def _compare(comparison: Comparison, figure: Figure) -> None:
    """A line for each model, a dot for each kind of bytes."""
    rows = len(comparison.models)
    figure.set_size_inches(6.5, 1.1 + 0.3 * rows)
    axes = figure.subplots()
    for number, series in enumerate(comparison.series):
        points = [(value, row) for row, value in enumerate(series.values) if value]
        axes.scatter(
            [value for value, _ in points],
            [row for _, row in points],
            s=36 if number == 0 else 22,
            marker=_MARKERS[number % len(_MARKERS)],
            color=series.color,
            label=series.title,
            zorder=4 if number == 0 else 3,
        )
    axes.set_xscale("log")
    low, high = comparison.decades
    axes.set_xlim(10**low, 10**high)
    axes.xaxis.set_major_formatter(lambda value, _: bytes_text(value))
    axes.set_xlabel("bytes")
    axes.set_yticks(range(rows), comparison.models)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.grid(axis="both", color="#e2e8f0", zorder=0)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)


def _layers(models: Sequence[ModelCosts], figure: Figure) -> None:
    """A panel for each model: bits per weight of each mask, and of independent bits."""
    figure.set_size_inches(6.5, 2.4 * len(models) + 0.4)
    panels = figure.subplots(len(models), squeeze=False)[:, 0]
    for axes, model in zip(panels, models, strict=True):
        _layer_bars(axes, model)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)


def _layer_bars(axes: Axes, model: ModelCosts) -> None:
    assert model.info is not None
    masked = [tensor for tensor in model.info.tensors if tensor.kind == "masked"]
    places = range(len(masked))
    bits = [bits_of(tensor.bytes, tensor) for tensor in masked]
    floor = [bits_of(tensor.order0_bytes or 0.0, tensor) for tensor in masked]
    axes.bar(places, bits, color=OUR_COLOR, label="mask")
    marks: dict[str, Any] = {"marker": "_", "s": 60, "color": "#1e293b", "zorder": 3}
    axes.scatter(places, floor, label="floor of independent bits", **marks)
    axes.set_title(model.name, loc="left", fontsize=8)
    axes.set_ylabel("bits per weight")
    axes.set_xlim(-0.7, len(masked) - 0.3)
    if len(masked) <= _NAMED_LAYERS:
        names = [tensor.name for tensor in masked]
        axes.set_xticks(places, names, rotation=90, fontsize=6)
    else:
        axes.set_xlabel("layer")
