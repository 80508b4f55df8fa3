"""The model as it was given and the rebuilt module are run, and what they return is compared.

Enters: both modules, and the inputs that they are called with. Leaves: how far their outputs are
apart, or a refusal. Every run is one of a fresh copy, since a `forward` may leave values behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from pemncodec.architecture.caches import has_caches, without_caches
from pemncodec.architecture.changes import changes
from pemncodec.architecture.example import VERIFIED_BATCH_SIZES, ExampleInputs
from pemncodec.architecture.isolation import isolated, working_copy
from pemncodec.architecture.mode import watched_mode
from pemncodec.errors import UnsupportedModelError, first_line
from pemncodec.tensors import same_bits

# Layers of torch.nn compute with fused kernels what an exported graph spells out.
_ROUNDING = 1e-5

# What a call returned that failed, or that was never made.
_NOTHING: Final = object()


@torch.no_grad()
def run(module: nn.Module, batch: tuple[Tensor, ...], training: bool) -> Any:
    """A module's output; the module and the random state stay as they are.

    Raises:
        UnsupportedModelError: it fails.
    """
    with isolated(module):
        return _call(working_copy(module).train(training), batch)


def _call(module: nn.Module, batch: tuple[Tensor, ...]) -> Any:
    torch.manual_seed(len(batch[0]))  # since dropout draws numbers
    try:
        return _kept(module(*batch))
    except Exception as error:
        raise UnsupportedModelError(
            "the module cannot be run on the example inputs (--example-shape, example_inputs=…): "
            f"{first_line(error)}"
        ) from None


def _kept(output: Any) -> Any:
    """An output of which a later call changes nothing, though it may be memory of the module."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, Mapping):
        return {key: _kept(value) for key, value in output.items()}
    return [_kept(value) for value in output] if isinstance(output, list | tuple) else output


@dataclass(frozen=True, slots=True)
class _Calls:
    """Calls of one module, in one mode.

    Attributes:
        outputs: at each of `VERIFIED_BATCH_SIZES` in turn on a fresh copy, at the first of them
            once more, at the first of them on a copy that was called with other values before, and
            at the last of them on a copy that was not called before; the last three are copies of
            the others where calls do not depend on those before.
        changed: attributes, and variables outside of the module, that the calls have set; without
            buffers of layers of `torch.nn`.
        by_mode: whether the calls may be others in another mode.
        after: the first copy.
    """

    outputs: tuple[Any, ...]
    changed: tuple[str, ...]
    by_mode: bool
    after: nn.Module


_PLACES: Final = (
    *(f"at batch size {size}" for size in VERIFIED_BATCH_SIZES),
    f"at batch size {VERIFIED_BATCH_SIZES[0]} when it is called again",
    f"at batch size {VERIFIED_BATCH_SIZES[0]} when it was called with other values before",
    f"at batch size {VERIFIED_BATCH_SIZES[-1]} when that is the first call",
)


@torch.no_grad()
def _calls(
    module: nn.Module, inputs: ExampleInputs, training: bool, traced: bool = False
) -> _Calls:
    """Call a module.

    Args:
        module: copied.
        inputs: what it is called with.
        training: the mode.
        traced: whether torch.fx has traced every `forward`. Each call of these is the same
            operators then, as long as they keep things in buffers alone; these are compared after
            the second call, which has met what the first one left.
    """
    first, *_, last = VERIFIED_BATCH_SIZES
    fresh = working_copy(module).train(training)
    with watched_mode(fresh) as watch:
        with isolated(module) as outside:
            outputs = [_call(fresh, inputs.batch(size)) for size in VERIFIED_BATCH_SIZES]
            own = [change for change in changes(module, fresh) if not change.of_layer]
            changed = (*map(str, own), *outside.changed())
            # Calls that change nothing do not depend on those before.
            hidden = len(changed) > sum(traced and change.saved for change in own)
            again = _call(fresh, inputs.batch(first)) if hidden else outputs[0]
        late, apart = outputs[0], outputs[-1]
        if hidden:
            with isolated(module):
                apart = _call(working_copy(module).train(training), inputs.batch(last))
            other = tuple(x / 2 if x.is_floating_point() else x for x in inputs.batch(last))
            called = working_copy(module).train(training)
            with isolated(module):
                try:
                    _call(called, other)
                    late = _call(called, inputs.batch(first))
                except UnsupportedModelError:  # it may demand such values as the caller gave
                    late = _NOTHING
    return _Calls((*outputs, again, late, apart), changed, watch.asked, fresh)


class Reference:
    """The model as it was given; what it returns is recorded once, on copies of its own.

    Args:
        original: holds the effective weights; nothing else may have run, traced or exported it.
        inputs: what it is called with.
    """

    def __init__(self, original: nn.Module, inputs: ExampleInputs) -> None:
        self.original = original
        self.inputs = inputs
        self._evaluated: _Calls | None = None

    def evaluated(self) -> _Calls:
        """Calls in eval mode.

        Raises:
            UnsupportedModelError: it cannot be run on the inputs.
        """
        if self._evaluated is None:
            self._evaluated = _calls(self.original, self.inputs, training=False)
        return self._evaluated

    def has_caches(self) -> bool:
        """Whether it returns caches of earlier calls."""
        return has_caches(self.evaluated().outputs)

    def trained(self, traced: bool) -> _Calls:
        """Calls in train mode; raises as `evaluated` does."""
        return _calls(self.original, self.inputs, True, traced)

    def difference(self, rebuilt: nn.Module) -> float:
        """How far a module's outputs are off in eval mode, as `relative_difference` has it."""
        last = VERIFIED_BATCH_SIZES[-1]
        expected = self.evaluated().outputs[VERIFIED_BATCH_SIZES.index(last)]
        return relative_difference(expected, run(rebuilt, self.inputs.batch(last), False))


def compare_outputs(
    original: Reference,
    rebuilt: nn.Module,
    *,
    trains: bool,
    exported: bool,
    builder: str = "",
    progress: Callable[[float], None] = lambda _: None,
) -> float:
    """Compare what the model as it was given and the rebuilt module return.

    Both are called at all `VERIFIED_BATCH_SIZES`, in eval and in train mode; again where that can
    make a difference, since calls have changed something. Where neither module asks for its mode,
    its calls in eval mode are those of train mode, too.

    Args:
        original: the model.
        rebuilt: has the same tensors, bit for bit.
        trains: whether to compare train mode.
        exported: whether outputs may differ by rounding.
        builder: names the code that made `rebuilt`, if code did.
        progress: called with the share that is done.

    Returns:
        The largest difference by rounding, as `relative_difference` has it; 0.0 where all is equal
        bit for bit.

    Raises:
        UnsupportedModelError: outputs differ, or a module cannot be run.
    """
    # Parameters that are equal may be the same memory.
    written = {
        f"{which} {name}": tensor._version
        for which, module in (("original", original.original), ("rebuilt", rebuilt))
        for name, tensor in module.named_parameters()
    }
    traced = not (exported or builder)
    evaluated = _calls(rebuilt, original.inputs, training=False)
    comparison = _Comparison(exported, builder)
    try:
        comparison.compare(original.evaluated(), evaluated, "eval")
        if trains and (original.evaluated().by_mode or evaluated.by_mode):
            progress(1 / 3)
            trained = _calls(rebuilt, original.inputs, True, traced)
            progress(2 / 3)
            comparison.compare(original.trained(traced), trained, "train")
    finally:
        # Copies share parameters, so one that was written to also explains a difference.
        _check_parameters(original.original, rebuilt, written)
    progress(1.0)
    return comparison.rounding


class _Comparison:
    """Compares calls of two modules.

    Attributes:
        rounding: the largest difference by rounding so far.
    """

    def __init__(self, exported: bool, builder: str) -> None:
        self.exported = exported
        self.builder = builder
        self.rounding = 0.0

    def compare(self, original: _Calls, rebuilt: _Calls, mode: str) -> None:
        pairs = zip(_PLACES, original.outputs, rebuilt.outputs, strict=True)
        for place, expected, actual in pairs:
            if expected is not _NOTHING and not self._fits(expected, actual):
                raise UnsupportedModelError(
                    f"the rebuilt module's output differs in {mode} mode {place}"
                    f"{self._cause(original)}; --no-manifest (manifest=False) stores the tensors "
                    "alone"
                )
        mine, other = (_saved_buffers(calls.after) for calls in (original, rebuilt))
        for name in mine.keys() & other.keys():
            if not self._fits(mine[name], other[name]):
                raise UnsupportedModelError(
                    f"the rebuilt module's forward changes {name} otherwise in {mode} mode; "
                    "--no-manifest (manifest=False) stores the tensors alone"
                )

    def _fits(self, expected: Any, actual: Any) -> bool:
        expected, actual = without_caches(expected), without_caches(actual)
        if self.exported and same_outputs(expected, actual, rounded=True):
            self.rounding = max(self.rounding, relative_difference(expected, actual))
            return True
        return same_outputs(expected, actual)

    def _cause(self, original: _Calls) -> str:
        if self.builder:
            return f": {self.builder} must make the same each time, also what is in no state dict"
        return f": forward changes {original.changed[0]}" if original.changed else ""


def _saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    saved = module.state_dict()
    return {name: buffer for name, buffer in module.named_buffers() if name in saved}


def _check_parameters(original: nn.Module, rebuilt: nn.Module, versions: Mapping[str, int]) -> None:
    """Refuse a forward that has written into parameters, which were equal and at `versions`."""
    others = dict(rebuilt.named_parameters())
    for name, parameter in original.named_parameters():
        other = others.get(name, parameter)
        written = any(
            tensor._version != versions.get(f"{which} {name}", tensor._version)
            for which, tensor in (("original", parameter), ("rebuilt", other))
        )
        if written or not same_bits(parameter, other):
            raise UnsupportedModelError(
                f"forward changes the parameter {name}; --no-manifest (manifest=False) stores the "
                "tensors alone"
            )


def same_outputs(expected: Any, actual: Any, *, rounded: bool = False) -> bool:
    """Whether outputs are equal, bit for bit or, when `rounded`, as far as rounding goes."""
    if isinstance(expected, Tensor):
        if not isinstance(actual, Tensor):
            return False
        if rounded and expected.is_floating_point() and expected.shape == actual.shape:
            tolerance = _ROUNDING * _largest(expected)
            return expected.dtype == actual.dtype and torch.allclose(
                expected, actual, rtol=0.0, atol=tolerance, equal_nan=True
            )
        return same_bits(expected, actual)
    if isinstance(expected, Mapping):
        return (
            isinstance(actual, Mapping)
            and list(expected) == list(actual)
            and all(same_outputs(expected[k], actual[k], rounded=rounded) for k in expected)
        )
    if isinstance(expected, list | tuple):
        return (
            isinstance(actual, list | tuple)
            and len(expected) == len(actual)
            and all(
                same_outputs(a, b, rounded=rounded) for a, b in zip(expected, actual, strict=True)
            )
        )
    return bool(expected == actual)


def relative_difference(expected: Any, actual: Any) -> float:
    """Largest difference of two outputs of floats, relative to the largest magnitude expected.

    Infinities and NaN that both have are no difference, those of one alone are an infinite one.
    """
    pairs = list(zip(_tensors_of(expected), _tensors_of(actual), strict=True))
    largest = max((_largest(a) for a, _ in pairs), default=0.0)
    difference = max((_difference(a, b) for a, b in pairs), default=0.0)
    return difference / largest if largest else difference


def _largest(values: Tensor) -> float:
    """The largest finite magnitude; 0.0 where there is none."""
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _difference(expected: Tensor, actual: Tensor) -> float:
    differ = (expected != actual) & ~(expected.isnan() & actual.isnan())
    if not differ.any():
        return 0.0
    return float((expected - actual)[differ].abs().nan_to_num(math.inf, math.inf).max())


def _tensors_of(output: Any) -> list[Tensor]:
    """The tensors of floats in an output."""
    if isinstance(output, Tensor):
        return [output.double()] if output.is_floating_point() and output.numel() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in _tensors_of(part)]
    return []
