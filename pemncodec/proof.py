"""What a file decodes to, against what it was made of: tensors, outputs, accuracy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from html import escape

import torch
from torch import Tensor, nn

from pemncodec.architecture.example import VERIFIED_BATCH_SIZES
from pemncodec.architecture.outputs import Reference, compare_outputs
from pemncodec.architecture.rebuild import named_tensors
from pemncodec.checkpoints.plain_module import plain_module
from pemncodec.decoding import load_module
from pemncodec.describing import Network
from pemncodec.errors import (
    EncodeArgumentError,
    EncodeError,
    ManifestError,
    UnsupportedModelError,
    named_line,
)
from pemncodec.format.in_turn import differing_tensors, equal_parts, tensors_in_turn
from pemncodec.format.info import FileInfo
from pemncodec.format.masked_sections import MaskedValues
from pemncodec.format.reader import PemnFile
from pemncodec.format.sections import SectionSource, Source
from pemncodec.limits import UNLIMITED
from pemncodec.masking.masked_state import MaskedState
from pemncodec.options import EncodeOptions
from pemncodec.tensors import array_to_tensor, dtype_name, same_bits, tensor_to_array

_ROUNDING = 1e-6  # of the largest output


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """What `encode` wrote.

    Attributes:
        info: the file's bytes, part by part.
        verified: how the file was proven before it was written, in words.
        difference: largest difference of the rebuilt module's outputs, in eval mode on the example
            inputs, from the original's, relative to the original's largest magnitude; None where
            nothing was to be lost or there is no module to run.
        accuracy: what the caller's metric says of the original and of the file.
        rules: how masks were found, a sentence for each way, with the number of its weights.
        notes: what else one should know of it, each in a sentence.
    """

    info: FileInfo
    verified: str
    difference: float | None = None
    accuracy: tuple[float, float] | None = None
    rules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([str(self.info), *self.findings])

    def __repr__(self) -> str:
        return f"<Report: {self.info}; verified: {self.verified}>"

    def _repr_html_(self) -> str:
        lines = "<br>".join(map(escape, self.findings))
        return f"{self.info._repr_html_()}\n<p>{lines}</p>"

    @property
    def findings(self) -> list[str]:
        """All but the bytes, in a sentence each."""
        lines = [f"masks: {rule}" for rule in self.rules]
        lines.append(f"verified: {self.verified}")
        if self.difference is not None:
            difference = f"{self.difference:.2g} of the original's largest"
            lines.append(f"shortening changes outputs by up to {difference}")
        if self.accuracy is not None:
            before, after = self.accuracy
            lines.append(f"accuracy: {before:g} before, {after:g} after")
        return [*lines, *(f"note: {note}" for note in self.notes)]


def prove_tensors(
    source: Source | SectionSource, state: MaskedState, step: Callable[[str, float | None], None]
) -> Report:
    """Decode a file without a manifest, and compare every tensor.

    Args:
        source: the file.
        state: what it was made of, shortened where that was asked for.
        step: called with what is under way, and the share of it that is done.

    Raises:
        EncodeError: a tensor differs.
    """
    with PemnFile(source, UNLIMITED) as file:
        compare_names(file.keys(), state.tensors)
        compare_file(file, state, lambda share: step("verifying", share))
        return Report(file.info(), "every tensor bit for bit")


def compare_file(file: PemnFile, state: MaskedState, progress: Callable[[float], None]) -> None:
    """Compare the tensors of an open file, few values in memory at a time; checks all of it.

    Args:
        file: open.
        state: weights and masks, by names of the file.
        progress: called with the share of all values that is compared.

    Raises:
        EncodeError: tensors differ; says how many.
        DecodeError: the file is damaged.
    """
    values = map(state.effective_parts, state.tensors)
    different = differing_tensors(file, state.tensors, state.kind, values, progress)
    if different:
        raise EncodeError(what_differs(different, len(state.tensors)))
    file.verify_rest()


def what_differs(different: Sequence[str], count: int) -> str:
    """Says how many tensors of `count` differ."""
    if len(different) == 1:
        return f"{different[0]} differs"
    return f"{len(different):,} of {count:,} tensors differ, first {different[0]}"


def prove_network(
    source: Source | SectionSource,
    state: MaskedState,
    network: Network,
    options: EncodeOptions,
    step: Callable[[str, float | None], None],
) -> Report:
    """Rebuild a file's module once, compare its tensors, and run it beside the original.

    Args:
        source: the file.
        state: what it was made of, shortened where that was asked for.
        network: what its manifest was made of.
        options: what else to compare.
        step: called with what is under way, and the share of it that is done.

    Raises:
        EncodeError: a tensor differs, or the accuracy falls by more than is allowed.
        EncodeArgumentError: the caller's metric fails.
        UnsupportedModelError: an output differs, or readers would refuse the module.
    """
    with PemnFile(source, UNLIMITED) as file:
        rebuilt = _rebuilt(file, network, options, lambda share: step("verifying", share / 2))
        info = file.info()
    own = rebuilt.state_dict() if options.builder else named_tensors(rebuilt)
    described = replace(state, tensors={**state.tensors, **network.trace.tensors})
    compare_states(own, described.effective(), lambda share: step("verifying", 0.5 + share / 2))
    step("comparing outputs", None)
    as_written = network.original
    lossy = state is not network.state or options.fold_bn
    if lossy:
        plain = plain_module(network.module, state, state.effective())
        as_written = Reference(plain, network.inputs)
    rounding = compare_outputs(
        as_written,
        rebuilt,
        trains=network.trace.trains,
        exported=network.trace.exported,
        builder="".join(options.trust),
        progress=lambda share: step("comparing outputs", share),
    )
    difference = accuracy = None
    if lossy:
        difference = network.original.difference(rebuilt)
    if options.accuracy is not None:
        step("measuring the accuracy", None)
        accuracy = _accuracy(options.accuracy, network.original.original, rebuilt)
        _check_drop(*accuracy, options.max_drop)
    return Report(info, _in_words(network, rounding), difference, accuracy)


def prove_own_masks(network: Network, state: MaskedState) -> None:
    """Run a network that has masks itself with the weights that these mask out.

    Args:
        network: as it was described.
        state: what it was described by.

    Raises:
        EncodeError: outputs change, so that the network does not apply what is called a mask.
    """
    if not state.beside:
        return
    given = dict(state.effective())
    given |= {name: state.tensors[name].detach().cpu().contiguous() for name in state.beside}
    difference = network.original.difference(plain_module(network.module, state, given))
    if not difference <= _ROUNDING:
        weight, mask = next(iter(state.beside.items()))
        raise EncodeError(
            f"{mask} is called as a mask of {weight}, but the network's outputs change by "
            f"{difference:.1g} of the largest without what it masks out: give the mask of {weight} "
            "(masks=…, --masks)"
        )


def _rebuilt(
    file: PemnFile, network: Network, options: EncodeOptions, progress: Callable[[float], None]
) -> nn.Module:
    dense = partial(_shared_where_equal, file, network.original.original)
    try:
        return load_module(file, "cpu", options.trust, progress=progress, dense=dense)
    except ManifestError as error:
        raise UnsupportedModelError(
            f"readers would refuse the rebuilt module: {error}; "
            "--no-manifest (manifest=False) stores the tensors alone"
        ) from None


def _shared_where_equal(
    file: PemnFile,
    original: nn.Module,
    masked: Sequence[MaskedValues],
    progress: Callable[[float], None],
) -> dict[str, Tensor]:
    """Masked tensors of a file: the original's memory where they are its own bit for bit."""
    own = original.state_dict()
    names = [values.row.name for values in masked]
    tensors: dict[str, Tensor] = {}
    values = tensors_in_turn(file, names)
    for name in names:
        parts, given = next(values), own.get(name)
        if (
            given is not None
            and (file.dtype(name), file.shape(name)) == (dtype_name(given), tuple(given.shape))
            and equal_parts(parts, [tensor_to_array(given, name).reshape(-1)])
        ):
            tensors[name] = given.data
        else:
            tensors[name] = array_to_tensor(file.tensor(name), file.dtype(name))
        progress(len(tensors) / len(names))
    return tensors


def _in_words(network: Network, rounding: float) -> str:
    sizes = " and ".join(map(str, VERIFIED_BATCH_SIZES))
    modes = "eval and train mode" if network.trace.trains else "eval mode"
    outputs = f"outputs within {rounding:.1g} of the largest" if rounding else "outputs equal"
    return f"every tensor bit for bit, {outputs} at batch sizes {sizes} in {modes}"


def compare_states(
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    progress: Callable[[float], None] | None = None,
) -> None:
    """Compare two state dicts: names, their order, and every bit.

    Args:
        actual: by name.
        expected: by name.
        progress: called with the share of all values that is compared.

    Raises:
        EncodeError: they differ; names the first difference.
    """
    compare_names(actual, expected)
    count, done = sum(tensor.numel() for tensor in actual.values()), 0
    for name in expected:
        if not same_bits(actual[name], expected[name]):
            raise EncodeError(f"{name} differs")
        done += actual[name].numel()
        if progress is not None and count:
            progress(done / count)


def compare_names(actual: Collection[str], expected: Collection[str]) -> None:
    """Raises EncodeError where names of tensors, or their order, differ."""
    if list(actual) != list(expected):
        missing = [name for name in expected if name not in actual]
        extra = [name for name in actual if name not in expected]
        word, names = ("missing", missing) if missing else ("unexpected", extra)
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        cause = f"{word} {names[0]}{more}" if names else "other order"
        raise EncodeError(f"tensor names differ: {cause}")


def _accuracy(
    metric: Callable[[nn.Module], float], original: nn.Module, rebuilt: nn.Module
) -> tuple[float, float]:
    """What a metric says of the original and of a file's module."""
    try:
        with torch.no_grad():
            before = float(metric(copy.deepcopy(original).eval()))
            after = float(metric(rebuilt))
    except Exception as error:
        raise EncodeArgumentError(f"the accuracy function failed: {named_line(error)}") from error
    if math.isnan(before) or math.isnan(after):
        raise EncodeArgumentError(f"the accuracy function gives {before:g}, then {after:g}")
    return before, after


def _check_drop(before: float, after: float, max_drop: float | None) -> None:
    if max_drop is not None and not before - after <= max_drop:
        raise EncodeError(
            f"the accuracy falls from {before:g} to {after:g}, by more than {max_drop:g}: "
            "give --dense (dense=…) a mode that loses less"
        )
