"""What a file decodes to, against what it was made of: tensors, outputs, accuracy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import BinaryIO

import torch
from torch import Tensor, nn

from pemncodec.architecture.example import VERIFIED_BATCH_SIZES, ExampleInputs
from pemncodec.architecture.outputs import Reference, compare_outputs, relative_difference, run
from pemncodec.architecture.rebuild import named_tensors
from pemncodec.architecture.trace import Trace
from pemncodec.decoding import load_module, load_tensors
from pemncodec.errors import (
    EncodeArgumentError,
    EncodeError,
    ManifestError,
    UnsupportedModelError,
)
from pemncodec.format.reader import open_file
from pemncodec.limits import Limits
from pemncodec.tensors import same_bits

# What the encoder has in memory already it may also decode.
UNLIMITED = Limits(decoded_bytes=1 << 62)


def verify_tensors(stream: BinaryIO, expected: Mapping[str, Tensor]) -> str:
    """Decode a file without a manifest; what was proven, in words.

    Raises:
        EncodeError: a tensor differs.
    """
    with open_file(stream, limits=UNLIMITED) as file:
        compare_states(load_tensors(file, "cpu"), expected)
    return "every tensor bit for bit"


def verify_module(
    stream: BinaryIO,
    tensors: Mapping[str, Tensor],
    plain: nn.Module,
    trace: Trace,
    inputs: ExampleInputs,
    trust: Sequence[str],
) -> str:
    """Rebuild a file's module and run it beside the original; what was proven, in words.

    Args:
        stream: the file.
        tensors: every one of the state dict, as they must come back.
        plain: the original module, which holds them.
        trace: its manifest.
        inputs: what both are called with.
        trust: code that the file may name.

    Raises:
        EncodeError: a tensor differs.
        UnsupportedModelError: an output differs, or readers would refuse the module.
    """
    with open_file(stream, limits=UNLIMITED) as file:
        try:
            rebuilt = load_module(file, "cpu", trust)
        except ManifestError as error:
            raise UnsupportedModelError(
                f"readers would refuse the rebuilt module: {error}; "
                "--no-manifest (manifest=False) stores the tensors alone"
            ) from None
    own = rebuilt.state_dict() if trust else named_tensors(rebuilt)
    compare_states(own, {**tensors, **trace.tensors})
    trains, exported = trace.trains, trace.exported
    builder = trust[0] if trust else ""
    original = Reference(plain, inputs)
    rounding = compare_outputs(original, rebuilt, trains=trains, exported=exported, builder=builder)
    sizes = " and ".join(map(str, VERIFIED_BATCH_SIZES))
    modes = ("eval", "train") if trace.trains else ("eval",)
    outputs = f"outputs within {rounding:.1g} of the largest" if rounding else "outputs equal"
    in_modes = f"{' and '.join(modes)} mode"
    return f"every tensor bit for bit, {outputs} at batch sizes {sizes} in {in_modes}"


def compare_states(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare two state dicts: names, their order, and every bit.

    Raises:
        EncodeError: they differ; names the first difference.
    """
    if list(actual) != list(expected):
        missing = [name for name in expected if name not in actual]
        extra = [name for name in actual if name not in expected]
        cause = f"missing {missing[0]}" if missing else f"unexpected {extra[0]}" if extra else ""
        raise EncodeError(f"tensor names differ: {cause or 'other order'}")
    for name in expected:
        if not same_bits(actual[name], expected[name]):
            raise EncodeError(f"{name} differs")


def output_difference(
    original: nn.Module, stream: BinaryIO, inputs: ExampleInputs, trust: Collection[str]
) -> float:
    """Of a file's module from the original, as `relative_difference` has it."""
    with open_file(stream, limits=UNLIMITED) as file:
        rebuilt = load_module(file, "cpu", trust)
    batch = inputs.batch(VERIFIED_BATCH_SIZES[-1])
    return relative_difference(run(original, batch, False), run(rebuilt, batch, False))


def accuracy_of(
    metric: Callable[[nn.Module], float],
    original: nn.Module,
    stream: BinaryIO,
    max_drop: float | None,
    trust: Sequence[str],
) -> tuple[float, float]:
    """What a metric says of the original and of a file's module.

    Raises:
        EncodeArgumentError: the metric fails.
        EncodeError: it falls by more than `max_drop`.
    """
    with open_file(stream, limits=UNLIMITED) as file:
        rebuilt = load_module(file, "cpu", trust)
    try:
        with torch.no_grad():
            before = float(metric(copy.deepcopy(original).eval()))
            after = float(metric(rebuilt))
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise EncodeArgumentError(f"the accuracy function failed: {cause}") from error
    if max_drop is not None and not before - after <= max_drop:
        raise EncodeError(
            f"the accuracy falls from {before:g} to {after:g}, by more than {max_drop:g}: "
            "use a dense mode that loses less"
        )
    return before, after
