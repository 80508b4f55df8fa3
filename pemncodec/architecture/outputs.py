"""Networks are run on example inputs and what they return is compared.

Enters: two modules, the original and the rebuilt one, and the inputs that both are called with.
Leaves: whether their outputs are equal, and how far apart they are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pemncodec.errors import UnsupportedModelError
from pemncodec.tensors import same_bits

# Layers of torch.nn compute with fused kernels what an exported graph spells out.
_ROUNDING = 1e-5


def run(module: nn.Module, batch: tuple[Tensor, ...], training: bool) -> Any:
    """A module's output; the module and the random state stay as they are.

    Raises:
        UnsupportedModelError: it fails.
    """
    # A copy, since train mode changes running statistics; a seed, since dropout draws numbers.
    module = copy.deepcopy(module).train(training)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            return module(*batch)
        except Exception as error:
            cause = str(error).partition("\n")[0]
            raise UnsupportedModelError(
                f"the module cannot be run on the example inputs: {cause}"
            ) from None


def same_outputs(expected: Any, actual: Any, *, rounded: bool = False) -> bool:
    """Whether outputs are equal, bit for bit or, when `rounded`, as far as rounding goes."""
    if isinstance(expected, Tensor):
        if not isinstance(actual, Tensor):
            return False
        if rounded and expected.is_floating_point() and expected.shape == actual.shape:
            scale = float(expected.abs().max()) if expected.numel() else 0.0
            return expected.dtype == actual.dtype and torch.allclose(
                expected, actual, rtol=0.0, atol=_ROUNDING * scale, equal_nan=True
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
    """Largest difference of two outputs of floats, relative to the largest magnitude expected."""
    pairs = zip(_tensors_of(expected), _tensors_of(actual), strict=True)
    differences = [(float((a - b).abs().max()), float(a.abs().max())) for a, b in pairs]
    largest = max((scale for _, scale in differences), default=0.0)
    difference = max((difference for difference, _ in differences), default=0.0)
    return difference / largest if largest else difference


def _tensors_of(output: Any) -> list[Tensor]:
    """The tensors of floats in an output."""
    if isinstance(output, Tensor):
        return [output.double()] if output.is_floating_point() and output.numel() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in _tensors_of(part)]
    return []
