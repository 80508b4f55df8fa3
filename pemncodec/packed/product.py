"""Inputs times a packed matrix, from its bits: for few inputs, for which expanding does not pay.

Each result is a sum of n products of an input, the scale and a value of the prototype: within
(n + 2) * 2^-24 / (1 - (n + 2) * 2^-24) of the exact one, times the sum of their magnitudes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from pemncodec import kernels
from pemncodec.packed.devices import multiplies_on_device, multiply_on_device
from pemncodec.packed.recipe import Recipe

_MOST_INPUTS = {"AVX512": 256, "AVX2": 16}
_MOST_ELSEWHERE = 4
_MOST_SIGNS = 1 << 16  # that are made floats for each product


@cache
def most_inputs() -> int:
    """With more of them a dense product is as fast as the kernel, with the time to expand."""
    return _MOST_INPUTS.get(torch.backends.cpu.get_cpu_capability(), _MOST_ELSEWHERE)


def multiplies(recipe: Recipe, prototype: Tensor | None, inputs: Tensor) -> bool:
    """Whether `multiply` takes these inputs and weights, and is faster than to expand them."""
    if inputs.device.type != "cpu":
        return multiplies_on_device(recipe, prototype, inputs)
    return (
        inputs.dtype == torch.float32
        and recipe.dtype == "float32"
        and 0 < inputs.shape[0] <= most_inputs()
        and recipe.count > 0
        and prototype is not None
        and (recipe.signs > 0 or prototype.dtype == torch.float32)
    )


def multiply(recipe: Recipe, bits: Tensor, prototype: Tensor, inputs: Tensor) -> Tensor:
    """Inputs times the transposed weight, float32 [batch, rows].

    Args:
        recipe: of a weight [rows, columns] that `multiplies` agrees to.
        bits: of the weight.
        prototype: of the weight.
        inputs: float32 [batch, columns].
    """
    if inputs.device.type != "cpu":
        return multiply_on_device(recipe, bits, prototype, inputs)
    inputs = inputs.detach()  # NumPy takes nothing that requires gradients
    rows, columns = recipe.shape
    out = torch.empty(inputs.shape[0], rows)
    threads = torch.get_num_threads()
    packed, values = bits.numpy(), prototype.numpy()
    if recipe.signs:
        kernels.signed_product(
            packed,
            values,
            recipe.signs,
            recipe.offset,
            np.array([recipe.scale], np.float32),
            columns,
            inputs.contiguous().numpy(),
            out.numpy(),
            threads,
        )
    else:
        scaled = (inputs * recipe.scale).contiguous()
        kernels.packed_product(
            packed, values, recipe.offset, columns, scaled.numpy(), out.numpy(), threads
        )
    return out


def multiplies_columns(recipe: Recipe, prototype: Tensor | None, inputs: Tensor) -> bool:
    """Whether `multiply_columns` takes these inputs and weights, and is faster than to expand."""
    return (
        inputs.device.type == "cpu"
        and multiplies(recipe, prototype, inputs)
        and recipe.signs <= _MOST_SIGNS
    )


def multiply_columns(recipe: Recipe, bits: Tensor, prototype: Tensor, inputs: Tensor) -> Tensor:
    """Inputs times the weight as it is, float32 [batch, columns].

    Args:
        recipe: of a weight [rows, columns] that `multiplies_columns` agrees to.
        bits: of the weight.
        prototype: of the weight.
        inputs: float32 [batch, rows], on the CPU.
    """
    values = prototype.numpy()
    if recipe.signs:
        positive = np.unpackbits(values, count=recipe.signs, bitorder="little")
        values = np.where(positive, np.float32(1), np.float32(-1))
    rows, columns = recipe.shape
    out = torch.empty(inputs.shape[0], columns)
    kernels.column_product(
        bits.numpy(),
        values,
        recipe.offset,
        rows,
        (inputs.detach() * recipe.scale).contiguous().numpy(),
        out.numpy(),
        torch.get_num_threads(),
    )
    return out
