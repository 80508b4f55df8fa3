"""What a model costs on disk, as a .pemn file and in other forms: the numbers of `pemn report`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pemncodec.checkpoints.dialect import MissingRuleError
from pemncodec.checkpoints.dialects import needs_rule
from pemncodec.checkpoints.files import read_checkpoint
from pemncodec.checkpoints.reading import with_recorded
from pemncodec.checkpoints.unmasked import NoMasksError
from pemncodec.coders.masks import Preset
from pemncodec.decoding import load_state
from pemncodec.encoding import Progress, encode_with
from pemncodec.format.info import FileInfo
from pemncodec.format.reader import PemnFile, open_file
from pemncodec.limits import Limits
from pemncodec.options import EncodeOptions
from pemncodec.report.forms import FP16, dense_bytes, in_halves, masked_bytes, paper_bytes
from pemncodec.report.peers import largest_error, measure_peers


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """What one model costs.

    Attributes:
        name: of the file.
        file_bytes: of the file as it lies there.
        info: of the .pemn file, or of what the checkpoint becomes; None for a dense model.
        paper_bytes: one bit a weight + prototypes in fp32; None for a dense model.
        alternatives: bytes of the same tensors in other forms.
        errors: by form that loses something, the largest difference of an element, relative to the
            largest magnitude of its tensor.
        failures: why codecs that are installed are left out, by form.
    """

    name: str
    file_bytes: int
    info: FileInfo | None
    paper_bytes: int | None
    alternatives: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return asdict(self)


def model_costs(
    path: Path,
    *,
    keep: float | Mapping[str, float] | None = None,
    preset: Preset = "max",
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> ModelCosts:
    """What a file costs.

    Args:
        path: a .pemn file, or a checkpoint.
        keep: share of each layer's weights that scores keep, for checkpoints that do not say how
            their masks follow. A checkpoint without masks is the dense model that it is, and so is
            one with scores where this is None.
        preset: of the encoding of a checkpoint.
        limits: bounds on what a .pemn file may decode to.
        progress: called with the step that is under way and its share done, 0 to 1 or None.

    Raises:
        PemnError: the file is damaged, or cannot be encoded.
    """
    step = progress or (lambda _, __: None)
    size = path.stat().st_size
    source: Path | io.BytesIO = path
    if path.suffix != ".pemn":
        loaded = read_checkpoint(path)
        given = loaded.source
        state = given if isinstance(given, dict) else given.state_dict()
        source = io.BytesIO()
        try:
            # The share may be for other checkpoints of a report.
            needed = loaded.recorded.keep is None and needs_rule(state, {})
            choices = with_recorded(loaded, {"keep": keep if needed else None})
            options = EncodeOptions(**choices, manifest=False, preset=preset)
            encode_with(options, state, source, progress)
        except (NoMasksError, MissingRuleError):
            return _costs(path.name, size, state, step)
    with open_file(source, limits=limits) as file:
        state = load_state(file, "cpu", lambda share: step("decoding", share))
        return _costs(path.name, size, state, step, file)


def _costs(
    name: str, size: int, state: dict[str, Tensor], step: Progress, file: PemnFile | None = None
) -> ModelCosts:
    step("in other forms", None)
    forms = dense_bytes(state)
    errors = {FP16: largest_error(state, in_halves(state))}
    if file is not None:
        forms |= masked_bytes(state, file)
    failures = {}
    for form, made in measure_peers(state, lambda peer: step(f"by {peer}", None)).items():
        if made.failure is not None:
            failures[form] = made.failure
        else:
            forms[form], errors[form] = made.bytes, made.error
    for form in [form for form, error in errors.items() if math.isinf(error)]:
        failures[form] = "a value became infinite"
        del forms[form], errors[form]
    lossy = {form: error for form, error in errors.items() if error}
    info, paper = (None, None) if file is None else (file.info(), paper_bytes(file))
    return ModelCosts(name, size, info, paper, forms, lossy, failures)
