"""What a model costs on disk, as a .pemn file and in other forms: the numbers of `pemn report`."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from pemncodec.checkpoints.dialects import needs_rule
from pemncodec.checkpoints.files import check_state_dict
from pemncodec.checkpoints.folders import files_of, stored_bytes
from pemncodec.checkpoints.kinds import kind_of
from pemncodec.checkpoints.reading import with_recorded
from pemncodec.checkpoints.sources import read_checkpoint
from pemncodec.checkpoints.unmasked import NoMasksError, masks_from_zeros, name_of_scores
from pemncodec.coders.masks import Preset
from pemncodec.decoding import load_state
from pemncodec.encoding import Progress, encode_with
from pemncodec.errors import EncodeArgumentError
from pemncodec.format.info import FileInfo
from pemncodec.format.reader import PemnFile, open_file
from pemncodec.limits import Limits
from pemncodec.options import EncodeOptions, MaskChoices
from pemncodec.report.form import FormBytes, Network, network_of
from pemncodec.report.forms import measure_forms

Keep = float | Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOptions:
    """How models are measured.

    Attributes:
        masks: how masks are found; .pemn files are read without, and a share and a rule are for
            checkpoints with scores that do not say how masks follow.
        prefix: what the names of the network's tensors begin with in checkpoints.
        forms: keys of `FORMS`; None for all whose packages are installed.
        exact: measure all of a large model even in forms that take long, where else a sample is.
        preset: of the encoding of a checkpoint.
        trust_pickle: also load pickled modules, which runs code from their files.
        limits: bounds on what a .pemn file may decode to.
    """

    masks: MaskChoices = field(default_factory=MaskChoices)
    prefix: str | None = None
    forms: Collection[str] | None = None
    exact: bool = False
    preset: Preset = "max"
    trust_pickle: bool = False
    limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """What one model costs.

    Attributes:
        name: of the model, for people.
        file_bytes: of the file as it lies there.
        info: of the .pemn file, or of what the checkpoint becomes; None for a dense model.
        keep: share of the weights under masks that these keep; None for a dense model.
        paper_bytes: one bit a weight + prototypes in fp32; None for a dense model.
        forms: the same tensors in other forms, by key of `FORMS`.
        failures: why a form is left out, by its key.
        notes: what one should know of how a checkpoint was read, each in a sentence.
        ranked: whether its masks follow from scores by what the options say for all files.
    """

    name: str
    file_bytes: int
    info: FileInfo | None = None
    keep: float | None = None
    paper_bytes: int | None = None
    forms: dict[str, FormBytes] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ranked: bool = False

    @property
    def largest_error(self) -> float | None:
        """Of any value of the .pemn file, relative to the largest of its tensor; 0 if lossless."""
        return None if self.info is None else self.info.largest_error

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return {**asdict(self), "largest_error": self.largest_error}


def model_costs(
    path: Path,
    options: CostOptions,
    *,
    keep: Keep | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> ModelCosts:
    """What a file costs.

    Args:
        path: a .pemn file, or a checkpoint, in one file or in several: one with masks is encoded
            first, without an architecture; one without is the dense model that it is.
        options: how it is measured.
        keep: of this file, in place of that of `options`; an error where it is needless.
        name: of the model, and of the file in messages; None takes the file's.
        progress: called with the step that is under way and its share done, 0 to 1 or None.

    Raises:
        EncodeArgumentError: a checkpoint with scores and no `keep`, or one without and `keep`.
        PemnError: the file is damaged, or cannot be encoded.
    """
    step = progress or (lambda _, __: None)
    name = path.name if name is None else name
    size = stored_bytes(path, name)
    (file, *others) = files_of(path, name)
    if not others and (kind_of(file) in ("pemn", "pemn-index") or file.suffix == ".pemn"):
        if keep is not None:
            raise EncodeArgumentError("a .pemn file has its masks, and no use for a keep ratio")
        with open_file(file, limits=options.limits) as opened:
            return _file_costs(name, size, opened, options, step)
    loaded = read_checkpoint(path, trust_pickle=options.trust_pickle, name=name)
    source = loaded.source
    plain = source.state_dict() if isinstance(source, nn.Module) else source
    state = check_state_dict(plain, name)
    given = options.masks.copy()
    ranked = loaded.recorded.keep is None and needs_rule(state, given)
    if not ranked:
        given["keep"] = given["rule"] = None
    if keep is not None:
        given["keep"] = keep
    stream = io.BytesIO()
    try:
        choices = with_recorded(loaded, given)
        how = EncodeOptions(
            **choices,
            prefix=options.prefix,
            manifest=False,
            preset=options.preset,
            find_seed="quick",
        )
        notes = encode_with(how, state, stream, progress).notes
    except NoMasksError:
        hint = name_of_scores(state) or masks_from_zeros(state)
        notes = (f"shown as a dense model: {hint}",) if hint else ()
        costs = ModelCosts(name, size, notes=notes)
        return _with_forms(costs, network_of(state), options, step)
    with open_file(stream, limits=options.limits) as opened:
        costs = _file_costs(name, size, opened, options, step)
    return replace(costs, notes=notes, ranked=ranked and keep is None)


def _file_costs(
    name: str, size: int, file: PemnFile, options: CostOptions, step: Progress
) -> ModelCosts:
    state = load_state(file, "cpu", lambda share: step("decoding", share))
    network, info = network_of(state, file), file.info()
    paper = -(-info.masked_weights // 8) + 4 * sum(row.length for row in file.header.prototypes)
    costs = ModelCosts(name, size, info, network.keep, paper)
    return _with_forms(costs, network, options, step)


def _with_forms(
    costs: ModelCosts, network: Network, options: CostOptions, step: Progress
) -> ModelCosts:
    forms, failures = measure_forms(
        network,
        options.forms,
        exact=options.exact,
        progress=lambda form, share: step(f"as {form}", share),
    )
    return replace(costs, forms=forms, failures=failures)
