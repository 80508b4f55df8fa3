"""Inputs on which a rebuilt module is compared with the original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pemncodec.errors import EncodeArgumentError
from pemncodec.torch.convert import dtype_name

VERIFIED_BATCH_SIZES = (2, 5)


@dataclass(frozen=True, slots=True, eq=False)
class ExampleInputs:
    """What a module's `forward` takes.

    Attributes:
        tensors: batch first.
        specs: dtype and shape of each, as the manifest has them; None for a size that may vary.
    """

    tensors: tuple[Tensor, ...]
    specs: tuple[dict[str, Any], ...]

    def batch(self, size: int) -> tuple[Tensor, ...]:
        """`size` rows of every input, repeated where there are fewer."""
        return tuple(x[torch.arange(size, device="cpu") % x.shape[0]] for x in self.tensors)


def given_inputs(example_inputs: Tensor | Sequence[Tensor]) -> ExampleInputs:
    """The caller's own.

    Raises:
        EncodeArgumentError: something other than tensors with a batch dimension.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not all(isinstance(x, Tensor) and x.dim() and x.shape[0] for x in inputs):
        raise EncodeArgumentError("example_inputs must be tensors with a batch dimension")
    specs = ({"dtype": dtype_name(x), "shape": [None, *x.shape[1:]]} for x in inputs)
    return ExampleInputs(tuple(x.detach().cpu() for x in inputs), tuple(specs))


def random_input(dtype: torch.dtype, sizes: Sequence[int]) -> Tensor:
    """A batch of `sizes`, the same at every call: normal floats, or indices 0 and 1."""
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (max(VERIFIED_BATCH_SIZES), *sizes)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator, device="cpu").to(dtype)
    return torch.randint(0, 2, shape, generator=generator, device="cpu").to(dtype)


def guessed_inputs(module: nn.Module) -> ExampleInputs:
    """One input that the module's first layer suggests and that the module runs on.

    Raises:
        EncodeArgumentError: no guess fits.
    """
    modes = [(below, below.training) for below in module.modules()]
    module.eval()
    try:
        for dtype, sizes, fixed in _candidates(module):
            example = random_input(dtype, sizes)
            try:
                with torch.no_grad():
                    module(example)
            except Exception:  # a guess that does not fit fails in ways of its own
                continue
            shape: list[int | None] = [None] * (1 + len(sizes))
            for axis in fixed:
                shape[axis] = example.shape[axis]
            return ExampleInputs((example,), ({"dtype": dtype_name(example), "shape": shape},))
    finally:
        for below, training in modes:
            below.training = training
    raise EncodeArgumentError(
        "cannot guess what the model takes, and the rebuilt module must be compared with the "
        "original: give --example-shape, such as 3,32,32 (example_inputs=…)"
    )


def _candidates(module: nn.Module) -> Iterator[tuple[torch.dtype, tuple[int, ...], list[int]]]:
    """dtype, sizes without the batch, and which axes the layer fixes."""
    for layer in module.modules():
        parameter = next(layer.parameters(recurse=False), None)
        if parameter is None:
            continue
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            dimensions = len(layer.kernel_size)
            for size in (32, 224, 64, 28, 16):
                yield parameter.dtype, (layer.in_channels, *[size] * dimensions), [1]
        elif isinstance(layer, nn.Linear):
            yield parameter.dtype, (layer.in_features,), [1]
            yield parameter.dtype, (16, layer.in_features), [2]
        elif isinstance(layer, nn.Embedding):
            yield torch.int64, (16,), []
        else:
            continue  # a user's module with parameters of its own: its first layer tells more
        return
