"""Inputs on which a rebuilt module is compared with the original."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pemncodec.architecture.isolation import isolated, working_copy
from pemncodec.errors import EncodeArgumentError
from pemncodec.tensors import dtype_name

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
        """`size` rows of every input, repeated where there are fewer.

        In the largest batch, other sizes that may vary are half of what they are.
        """
        rows = [x[torch.arange(size, device="cpu") % x.shape[0]] for x in self.tensors]
        if size != max(VERIFIED_BATCH_SIZES):
            return tuple(rows)
        return tuple(
            _halved(x, [axis for axis, given in enumerate(spec["shape"]) if axis and given is None])
            for x, spec in zip(rows, self.specs, strict=True)
        )


def _halved(x: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in axes:
        x = x.narrow(axis, 0, (x.shape[axis] + 1) // 2)
    return x.contiguous()


def in_order(
    module: nn.Module,
    named: Mapping[str, Tensor],
    dynamic_axes: Sequence[Collection[int]] = (),
) -> tuple[list[Tensor], list[Collection[int]]]:
    """Inputs that are given by name in the order of `forward`, with their axes.

    Args:
        module: that takes them.
        named: what a file has by position, so that none of `forward` may be left out in front.
        dynamic_axes: of each, in the order of `named`.

    Raises:
        EncodeArgumentError: they are not the first that `forward` takes.
    """
    axes = dict(zip(named, [*dynamic_axes, *[()] * len(named)], strict=False))
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    order = [parameter.name for parameter in parameters if parameter.kind in by_position]
    first = order[: len(named)]
    if set(first) != set(named):
        raise EncodeArgumentError(
            f"example_inputs are {', '.join(map(str, named))}, but forward takes "
            f"{', '.join(first) or 'nothing'} first, and a file's inputs go by position"
        )
    return [named[name] for name in first], [axes[name] for name in first]


def given_inputs(
    example_inputs: Tensor | Sequence[Tensor], dynamic_axes: Sequence[Collection[int]] = ()
) -> ExampleInputs:
    """The caller's own.

    Args:
        example_inputs: batch first.
        dynamic_axes: for each input, the axes beside the batch whose sizes may vary.

    Raises:
        EncodeArgumentError: something other than tensors with a batch dimension, or with such
            axes.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not inputs or not all(isinstance(x, Tensor) and x.dim() and x.shape[0] for x in inputs):
        raise EncodeArgumentError("example_inputs must be tensors with a batch dimension")
    axes = [*dynamic_axes, *[()] * (len(inputs) - len(dynamic_axes))]
    if len(axes) != len(inputs):
        raise EncodeArgumentError("dynamic_axes are given for more inputs than there are")
    specs = [_spec(x, varying) for x, varying in zip(inputs, axes, strict=True)]
    return ExampleInputs(tuple(x.detach().cpu() for x in inputs), tuple(specs))


def _spec(x: Tensor, varying: Collection[int]) -> dict[str, Any]:
    shape: list[int | None] = [None, *x.shape[1:]]
    for axis in varying:
        if not 0 < axis < x.dim() or x.shape[axis] < 2:
            raise EncodeArgumentError(
                f"dynamic_axes: no axis {axis} behind the batch with a size of 2 or more"
            )
        shape[axis] = None
    spec: dict[str, Any] = {"dtype": dtype_name(x), "shape": shape}
    return spec | {"sizes": [VERIFIED_BATCH_SIZES[0], *x.shape[1:]]} if varying else spec


def random_input(dtype: torch.dtype, sizes: Sequence[int]) -> Tensor:
    """A batch of `sizes`, the same at every call: normal floats, or indices 0 and 1."""
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (max(VERIFIED_BATCH_SIZES), *sizes)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator, device="cpu").to(dtype)
    return torch.randint(0, 2, shape, generator=generator, device="cpu").to(dtype)


def specified_inputs(specs: Sequence[Mapping[str, Any]]) -> ExampleInputs:
    """Inputs as a manifest has them."""
    tensors = [
        random_input(getattr(torch, spec["dtype"]), spec.get("sizes", spec["shape"])[1:])
        for spec in specs
    ]
    return ExampleInputs(tuple(tensors), tuple(dict(spec) for spec in specs))


def guessed_inputs(module: nn.Module) -> ExampleInputs:
    """One input that the module's first layer suggests and that the module runs on.

    Raises:
        EncodeArgumentError: no guess fits.
    """
    for dtype, sizes in _candidates(module):
        example = random_input(dtype, sizes)
        try:
            with isolated(module), torch.no_grad():
                working_copy(module).eval()(example)
        except Exception:  # a guess that does not fit fails in ways of its own
            continue
        return given_inputs(example)
    raise EncodeArgumentError(
        "cannot guess what the model takes, and the rebuilt module must be compared with the "
        "original: give --example-shape, such as 3,32,32 (example_inputs=…)"
    )


def _candidates(module: nn.Module) -> Iterator[tuple[torch.dtype, tuple[int, ...]]]:
    """dtype, and sizes without the batch."""
    for layer in module.modules():
        parameter = next(layer.parameters(recurse=False), None)
        if parameter is None:
            continue
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            dimensions = len(layer.kernel_size)
            for size in (32, 224, 64, 28, 16):
                yield parameter.dtype, (layer.in_channels, *[size] * dimensions)
        elif isinstance(layer, nn.Linear):
            yield parameter.dtype, (layer.in_features,)
            yield parameter.dtype, (16, layer.in_features)
        elif isinstance(layer, nn.Embedding):
            yield torch.int64, (16,)
        else:
            continue  # a user's module with parameters of its own: its first layer tells more
        return
