"""What figures compare: the same kind of bytes of every model, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Final

from pemncodec.format.info import PARTS
from pemncodec.report.forms import FORMS

if TYPE_CHECKING:
    from pemncodec.report.costs import ModelCosts

# Of things that every model may have, so that a colour always means the same.
OUR_COLOR: Final = "#c2410c"
_COLORS = (
    "#64748b", "#a78bfa", "#eab308", "#0ea5e9", "#10b981",
    "#ec4899", "#6d28d9", "#0d9488", "#f43f5e", "#84cc16",
)  # fmt: skip
PART_COLORS: Final = dict(zip(PARTS, cycle(_COLORS), strict=False))
_FORM_COLORS = dict(zip(FORMS, cycle(_COLORS), strict=False))
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True)
class Series:
    """Bytes of one kind.

    Attributes:
        title: of the kind.
        color: of its marks.
        values: one for each model; None where it has none, or no byte.
    """

    title: str
    color: str
    values: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A figure that compares models.

    Attributes:
        key: its name in code.
        title: for people.
        models: names.
        series: .pemn files as a whole first.
    """

    key: str
    title: str
    models: tuple[str, ...]
    series: tuple[Series, ...]

    @property
    def decades(self) -> tuple[int, int]:
        """Exponents of ten below and above all values."""
        values = [value for series in self.series for value in series.values if value]
        low, high = (math.log10(value) for value in (min(values), max(values)))
        return math.floor(low), max(math.floor(low) + 1, math.ceil(high))


def comparisons(models: Sequence[ModelCosts]) -> list[Comparison]:
    """Figures of which there is something to show."""
    names = tuple(model.name for model in models)
    ours = Series(
        ".pemn", OUR_COLOR, tuple(model.info.file_bytes if model.info else None for model in models)
    )
    parts = [
        Series(
            part,
            PART_COLORS[part],
            tuple(model.info.parts[part] if model.info else None for model in models),
        )
        for part in PARTS
    ]
    forms = [
        Series(
            form.title,
            _FORM_COLORS[key],
            tuple(model.forms[key].bytes if key in model.forms else None for model in models),
        )
        for key, form in FORMS.items()
    ]
    figures = (
        Comparison("parts", "Bytes by part", names, _shown([ours, *parts])),
        Comparison("forms", "Bytes in all forms", names, _shown([ours, *forms])),
    )
    return [figure for figure in figures if figure.series]


def bytes_text(size: float) -> str:
    """Such as "25.5 kB"; a kB has 1000 bytes."""
    unit = 0
    while size >= 999.5 and unit + 1 < len(_UNITS):
        size /= 1000
        unit += 1
    return f"{size:.3g} {_UNITS[unit]}"


def _shown(series: Sequence[Series]) -> tuple[Series, ...]:
    return tuple(one for one in series if any(one.values))
