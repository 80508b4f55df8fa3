"""Packed weights on devices: by Triton where that is installed, else by PyTorch's operators."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pemncodec.contents import Fill, SeededPrototype
from pemncodec.errors import named_line
from pemncodec.packed.recipe import Recipe
from pemncodec.values.on_device import Values, fill_where, quantiles_on, repeated, values_on

# With more of them, expanding and a dense product are as fast: measured on an H200, 4096 × 4096.
_MOST_INPUTS, _MOST_INPUTS_OF_SIGNS = 4, 2


def uses_triton(device: torch.device) -> bool:
    """Whether there are kernels for a device."""
    return device.type == "cuda" and find_spec("triton") is not None and _runs_kernels(device)


@cache
def _runs_kernels(device: torch.device) -> bool:
    """Whether a small kernel gives what it should. To compile one takes more than Triton, such as a
    C compiler."""
    with _disable_current_modes():  # torch.compile asks with tensors that have no values
        try:
            from pemncodec.packed.triton_kernels import expand_bits

            bits = torch.full((1,), 0b101, dtype=torch.uint8, device=device)
            out = torch.empty(3, device=device)
            expand_bits(bits, torch.ones(1, device=device), 0, 1.0, 0, out)
            if out.tolist() == [1, 0, 1]:
                return True
            reason = "a wrong result"
        except Exception as error:  # of Triton, of the compilers that it calls, of the device
            reason = named_line(error)
    warnings.warn(
        f"Triton's kernels cannot be used on {device} ({reason:.200}): PyTorch's operators do the "
        "work, which take longer",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def expand_on_device(
    recipe: Recipe, bits: Tensor, prototype: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Effective weights [n], on the device of the bits; arguments as of `expand`."""
    out = torch.empty(recipe.count, dtype=getattr(torch, recipe.dtype), device=bits.device)
    if not (uses_triton(bits.device) and _expand_by_kernel(recipe, bits, prototype, out)):
        fill_where(bits, _values_on(bits.device, recipe, prototype), out)
    return out.to(dtype)


def multiplies_on_device(recipe: Recipe, prototype: Tensor | None, inputs: Tensor) -> bool:
    """As `pemncodec.packed.product.multiplies`."""
    most = _MOST_INPUTS_OF_SIGNS if recipe.signs else _MOST_INPUTS
    return (
        uses_triton(inputs.device)
        and inputs.dtype == getattr(torch, recipe.dtype)
        and inputs.dtype != torch.float64
        and 0 < inputs.shape[0] <= most
        and recipe.count > 0
        and prototype is not None
    )


def multiply_on_device(recipe: Recipe, bits: Tensor, prototype: Tensor, inputs: Tensor) -> Tensor:
    """As `pemncodec.packed.product.multiply`, of the dtype of the recipe; sums are of float32."""
    from pemncodec.packed.triton_kernels import multiply_bits

    scale = magnitude(recipe) if recipe.signs else recipe.scale
    return multiply_bits(
        bits, prototype, recipe.signs, scale, recipe.offset, inputs.contiguous(), recipe.shape[0]
    )


def _expand_by_kernel(recipe: Recipe, bits: Tensor, prototype: Tensor | None, out: Tensor) -> bool:
    """Expands into `out`, and returns False where no kernel does."""
    from pemncodec.packed import triton_kernels

    if recipe.dtype == "float64" or not recipe.count:
        return False
    if prototype is not None:
        values = prototype if recipe.signs else scale_on(_needed(recipe, prototype), recipe)
        offset = recipe.offset if recipe.signs or values.numel() == prototype.numel() else 0
        triton_kernels.expand_bits(bits, values, recipe.signs, magnitude(recipe), offset, out)
        return True
    seeded = recipe.seeded
    if not isinstance(seeded, SeededPrototype) or seeded.period:
        return False
    table = quantiles_on(bits.device)
    triton_kernels.expand_seeded(bits, seeded, table, recipe.scale, recipe.offset, out)
    return True


def _values_on(device: torch.device, recipe: Recipe, prototype: Tensor | None) -> Values:
    if recipe.seeded is not None:
        fill = Fill(0, recipe.offset, recipe.scale)
        return values_on(device, recipe.seeded, fill, recipe.dtype, recipe.count)
    assert prototype is not None
    if recipe.signs:
        return _signed_on(recipe, prototype)
    values = _needed(recipe, prototype)
    offset = recipe.offset if values.numel() == prototype.numel() else 0
    return repeated(scale_on(values, recipe), offset)


def _needed(recipe: Recipe, prototype: Tensor) -> Tensor:
    """What a weight takes of a prototype, if that is one part of it, else all."""
    stop = recipe.offset + recipe.count
    return prototype[recipe.offset : stop] if stop < prototype.numel() else prototype


def _signed_on(recipe: Recipe, signs: Tensor) -> Values:
    dtype = getattr(torch, recipe.dtype)
    positive = torch.full((), magnitude(recipe), dtype=dtype, device=signs.device)

    def taken(start: int, size: int) -> Tensor:
        places = torch.arange(size, device=signs.device) + (recipe.offset + start)
        return torch.where(bits_at(signs, places % recipe.signs), positive, -positive)

    return taken


def bits_at(packed: Tensor, places: Tensor) -> Tensor:
    """Some of packed bits, bool of the shape of their places."""
    return ((packed[places // 8] >> (places % 8).to(torch.uint8)) & 1).bool()


def scale_on(values: Tensor, recipe: Recipe) -> Tensor:
    """Values of a prototype, scaled, in the dtype of the recipe: the bits of `scale_values`."""
    dtype = getattr(torch, recipe.dtype)
    if recipe.scale == 1.0 and values.dtype == dtype:
        return values
    # A number, not a tensor: to send one to a device waits for it, and no CUDA graph can do that.
    scaled = values.to(torch.float32) * recipe.scale
    return torch.where(scaled.isnan(), torch.nan, scaled).to(dtype)


def magnitude(recipe: Recipe) -> float:
    """The constant of weights that are signs, as their dtype has it."""
    return float(torch.tensor(recipe.scale).to(getattr(torch, recipe.dtype)))
