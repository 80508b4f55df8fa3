"""Every number that a report shows of a model, named once for people and once for code."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from pemncodec.errors import EncodeArgumentError
from pemncodec.format.info import PARTS, FileInfo
from pemncodec.report.form import Form
from pemncodec.report.forms import FORMS
from pemncodec.report.sparse_forms import SPARSE_FORMS

if TYPE_CHECKING:
    from pemncodec.report.costs import ModelCosts

Value = str | float | bool | None
Kind = Literal["text", "number", "count", "share", "bits", "times", "error", "flag"]
Group = Literal["model", "parts", "dense", "masked"]

GROUPS: Final[dict[Group, str]] = {
    "model": "Models",
    "parts": "Bytes by part",
    "dense": "Bytes as dense files",
    "masked": "Bytes as masks, and as pruned networks with values of their own",
}

OURS: Final = "pemn_bytes"  # the column that tables show in bold
_METADATA = "metadata."


@dataclass(frozen=True, slots=True)
class Cell:
    """A value in a table.

    Attributes:
        value: None where a model has nothing to say.
        estimated: it follows from a sample.
    """

    value: Value = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """What a table shows of each model.

    Attributes:
        key: its name in code.
        title: its name for people.
        kind: how its values are written.
        group: the table that it belongs to, where one table would be too wide.
        cell: of a model.
    """

    key: str
    title: str
    kind: Kind
    group: Group
    cell: Callable[[ModelCosts], Cell]


def _of_model(
    key: str, title: str, kind: Kind, value: Callable[[ModelCosts], Value], group: Group = "model"
) -> Column:
    return Column(key, title, kind, group, lambda model: Cell(value(model)))


def _of_file(
    key: str, title: str, kind: Kind, value: Callable[[FileInfo], Value], group: Group = "model"
) -> Column:
    return _of_model(
        key, title, kind, lambda model: None if model.info is None else value(model.info), group
    )


def _of_metadata(key: str, title: str, name: str) -> Column:
    return _of_file(key, title, "number", lambda info: info.metadata.get(name))


def _part_bytes(part: str) -> Callable[[FileInfo], int]:
    return lambda info: info.parts[part]


def _form_bytes(key: str) -> Callable[[ModelCosts], Cell]:
    def cell(model: ModelCosts) -> Cell:
        form = model.forms.get(key)
        return Cell() if form is None else Cell(form.bytes, form.estimated)

    return cell


def _form_error(key: str) -> Callable[[ModelCosts], Cell]:
    def cell(model: ModelCosts) -> Cell:
        form = model.forms.get(key)
        return Cell() if form is None else Cell(form.error, form.estimated)

    return cell


def _form_columns(form: Form) -> list[Column]:
    group: Group = "masked" if form in SPARSE_FORMS else "dense"
    size = Column(f"{form.key}_bytes", form.title, "count", group, _form_bytes(form.key))
    title = f"{form.title}: error"
    error = Column(f"{form.key}_error", title, "error", group, _form_error(form.key))
    return [size, error] if form.lossy else [size]


def times_smaller(model: ModelCosts) -> float | None:
    """safetensors over .pemn, both without an architecture, which only .pemn can hold."""
    dense = model.forms.get("safetensors")
    if model.info is None or dense is None:
        return None
    return dense.bytes / (model.info.file_bytes - model.info.manifest_bytes)


def _coders(info: FileInfo) -> str:
    coders = (tensor.coder for tensor in info.tensors if tensor.kind == "masked" and tensor.coder)
    return ", ".join(dict.fromkeys(coders))


NAME: Final = _of_model("model", "model", "text", lambda model: model.name)
COLUMNS: Final[tuple[Column, ...]] = (
    NAME,
    _of_metadata("accuracy", "accuracy", "accuracy"),
    _of_file("masked_weights", "masked weights", "count", lambda info: info.masked_weights),
    _of_model("keep", "keep", "share", lambda model: model.keep),
    _of_model("file_bytes", "this file", "count", lambda model: model.file_bytes),
    _of_file("pemn_bytes", ".pemn", "count", lambda info: info.file_bytes),
    _of_file("bits_per_weight", "bits per weight", "bits", lambda info: info.bits_per_weight),
    _of_model("times_smaller", "times smaller", "times", times_smaller),
    _of_model("largest_error", "largest error", "error", lambda model: model.largest_error),
    _of_file("architecture", "architecture", "flag", lambda info: info.manifest_bytes > 0),
    _of_file("inference_only", "inference only", "flag", lambda info: info.inference_only),
    _of_file("mask_coder", "mask coder", "text", _coders),
    _of_model("paper_bytes", "paper's count", "count", lambda model: model.paper_bytes, "parts"),
    _of_file(
        "order0_bytes",
        "floor of independent bits",
        "count",
        lambda info: None if info.order0_bytes is None else round(info.order0_bytes),
        "parts",
    ),
    *(_of_file(f"{part}_bytes", part, "count", _part_bytes(part), "parts") for part in PARTS),
    *(column for form in FORMS.values() for column in _form_columns(form)),
)
# What fits a page: before and behind what other forms take, and these forms.
_BEFORE = ("model", "accuracy", "keep")
_FORMS_FOR_PAPERS = ("safetensors", "bitmask", "two_of_four", "packed_masks")
_BEHIND = ("pemn_bytes", "bits_per_weight", "times_smaller", "largest_error")


def chosen_columns(keys: Sequence[str]) -> list[Column]:
    """The columns of keys, each `metadata.NAME` too; the model's name first.

    Raises:
        EncodeArgumentError: there is no such column.
    """
    return list({column.key: column for column in (NAME, *map(_column, keys))}.values())


def columns_of(models: Sequence[ModelCosts]) -> list[Column]:
    """All columns of which at least one model has a value."""
    return [
        column
        for column in COLUMNS
        if any(column.cell(model).value is not None for model in models)
    ]


def paper_columns(
    models: Sequence[ModelCosts], forms: Collection[str] | None = None
) -> list[Column]:
    """Those of `columns_of` that are for a table in a paper.

    Args:
        models: of the table.
        forms: keys of the forms that were asked for; None takes a few that fit a page.
    """
    shown = {column.key: column for column in columns_of(models)}
    chosen = _FORMS_FOR_PAPERS if forms is None else dict.fromkeys(forms)
    of_forms = (f"{form}_{what}" for form in chosen for what in ("bytes", "error"))
    return [shown[key] for key in (*_BEFORE, *of_forms, *_BEHIND) if key in shown]


def grouped(columns: Sequence[Column]) -> dict[str, list[Column]]:
    """By title, columns for tables of one group each, all with the model's name, none empty.

    What other forms take is beside what .pemn takes.
    """
    groups = {}
    ours = [column for column in columns if column.key == OURS]
    for group, title in GROUPS.items():
        own = [column for column in columns if column.group == group and column is not NAME]
        if own:
            beside = ours if group in ("dense", "masked") else []
            groups[title] = [NAME, *beside, *own]
    return groups or {GROUPS["model"]: [NAME]}


def _column(key: str) -> Column:
    for known in COLUMNS:
        if known.key == key:
            return known
    if key.startswith(_METADATA) and key != _METADATA:
        return _of_metadata(key, key.removeprefix(_METADATA), key.removeprefix(_METADATA))
    known_keys = ", ".join(known.key for known in COLUMNS)
    raise EncodeArgumentError(f"unknown column {key!r:.60}, have {known_keys}, metadata.NAME")
