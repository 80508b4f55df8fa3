"""Costs of models as a table of plain values: the same on the terminal, as CSV and on the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pemncodec.format.info import PARTS

if TYPE_CHECKING:
    from pemncodec.report.costs import ModelCosts

Row = dict[str, Any]


def table_row(model: ModelCosts) -> Row:
    """Values by title, None where a dense model has nothing to say."""
    info, dense = model.info, model.alternatives["safetensors"]
    bits = info.bits_per_weight if info else None
    return {
        "model": model.name,
        "paper's count": model.paper_bytes,
        "order-0 floor of the masks": round(info.order0_bytes) if info else None,
        **(info.parts if info else dict.fromkeys(PARTS)),
        ".pemn": info.file_bytes if info else None,
        "bits per weight": None if bits is None else round(bits, 4),
        "times smaller than safetensors": round(dense / info.file_bytes, 2) if info else None,
        **model.alternatives,
        **{f"{form}: largest error": float(f"{e:.2g}") for form, e in model.errors.items()},
    }


def titles(rows: Sequence[Row]) -> list[str]:
    """The titles of all rows, each once, in order."""
    return list(dict.fromkeys(title for row in rows for title in row))


def table_csv(rows: Sequence[Row]) -> str:
    """A line for each row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, titles(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
