"""The largest scores, what they leave of a weight, and the gradient: torch operators.

On a CPU the usual case, binary32 in C order, is a kernel each; all else is plain torch with the
same results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pemncodec import kernels

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.library.custom_op("pemncodec::top_k_mask", mutates_args=())
def top_k_mask(ranked: Tensor, kept: Tensor) -> Tensor:
    """The mask of the `kept` largest values.

    Equal values at the cut go by position: the later in C order stay. The same bits on every
    device.

    Args:
        ranked: float [*shape], without NaN.
        kept: int64 0-d, 0 to the number of values.

    Returns:
        bool [*shape].
    """
    return top_k_mask_by_sort(ranked, kept)


@top_k_mask.register_kernel("cpu")
def _(ranked: Tensor, kept: Tensor) -> Tensor:
    if ranked.dtype == torch.float64:
        return top_k_mask_by_sort(ranked, kept)
    mask = torch.empty(ranked.shape, dtype=torch.bool, device=ranked.device)
    values = ranked.detach().float().contiguous()
    kernels.top_k(values.reshape(-1).numpy(), int(kept), mask.view(-1).view(torch.uint8).numpy())
    return mask


@top_k_mask.register_fake
def _(ranked: Tensor, kept: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty(ranked.shape, dtype=torch.bool, device=ranked.device)


def top_k_mask_by_sort(ranked: Tensor, kept: Tensor) -> Tensor:
    """`top_k_mask` without a value that the host must wait for."""
    values = ranked.detach().reshape(-1)
    if not values.numel():
        return torch.zeros(ranked.shape, dtype=torch.bool, device=ranked.device)
    first = (values.numel() - kept).clamp(max=values.numel() - 1)
    cut = values.sort().values[first]
    above, ties = values > cut, values == cut
    ties_from_end = ties.flip(0).cumsum(0).flip(0)
    return (above | (ties & (ties_from_end <= kept - above.sum()))).view(ranked.shape)


# ------------------------------------------------------------------------- effective weights


def masked_weight(weight: Tensor, mask: Tensor) -> Tensor:
    """`weight` where `mask` is True, else +0.0; as `weight` in memory."""
    # By bits times 0 or 1: several times as fast as torch.where on a CPU, and never −0.0.
    integer = _INTEGERS[weight.dtype.itemsize]
    masked = torch.empty_like(weight)
    torch.mul(weight.view(integer), mask.to(integer), out=masked.view(integer))
    return masked


@torch.library.custom_op("pemncodec::keep_largest", mutates_args=())
def keep_largest(weight: Tensor, scores: Tensor, kept: Tensor, magnitude: bool) -> Tensor:
    """The weights whose scores are the `kept` largest, +0.0 elsewhere; ties as in `top_k_mask`.

    The gradient goes to the scores, straight through: that of what is ranked is g · w.

    Args:
        weight: [*shape].
        scores: float [*shape], without NaN.
        kept: int64 0-d, 0 to the number of weights.
        magnitude: rank |score|, not the score itself.

    Returns:
        [*shape], as `weight` in dtype and memory.
    """
    return masked_weight(weight, top_k_mask(scores.abs() if magnitude else scores, kept))


@keep_largest.register_kernel("cpu")
def _(weight: Tensor, scores: Tensor, kept: Tensor, magnitude: bool) -> Tensor:
    if not _are_plain(weight, scores):
        return masked_weight(weight, top_k_mask(scores.abs() if magnitude else scores, kept))
    effective = torch.empty_like(weight)
    kernels.keep_largest(
        _memory(scores),
        magnitude,
        int(kept),
        _memory(weight),
        _memory(effective),
        torch.get_num_threads(),
    )
    return effective


@keep_largest.register_fake
def _(weight: Tensor, scores: Tensor, kept: Tensor, magnitude: bool) -> Tensor:  # noqa: ARG001
    return torch.empty_like(weight)


def _save_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.magnitude = inputs[3]


def _keep_largest_backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
    weight, scores = ctx.saved_tensors
    return None, score_gradient(gradient, weight, scores, ctx.magnitude), None, None


keep_largest.register_autograd(_keep_largest_backward, setup_context=_save_operands)


# ---------------------------------------------------------------------------------- gradient


def weighted_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """`gradient` times `weight`, as `weight` in dtype and memory."""
    # Copied first, since mixed strides are slow.
    return torch.empty_like(weight).copy_(gradient).mul_(weight)


@torch.library.custom_op("pemncodec::score_gradient", mutates_args=())
def score_gradient(gradient: Tensor, weight: Tensor, scores: Tensor, magnitude: bool) -> Tensor:
    """The straight-through gradient of scores: g · w, times sign(score) where |score| is ranked.

    Differentiable with respect to `gradient`, in which it is linear.

    Args:
        gradient: [*shape], of the effective weights.
        weight: [*shape].
        scores: float [*shape].
        magnitude: |score| was ranked.

    Returns:
        [*shape], as `scores` in dtype and memory.
    """
    return _score_gradient(gradient, weight, scores, magnitude)


def _score_gradient(gradient: Tensor, weight: Tensor, scores: Tensor, magnitude: bool) -> Tensor:
    product = torch.empty_like(scores).copy_(weighted_gradient(gradient, weight))
    return product.mul_(scores.sign()) if magnitude else product


@score_gradient.register_kernel("cpu")
def _(gradient: Tensor, weight: Tensor, scores: Tensor, magnitude: bool) -> Tensor:
    if not _are_plain(gradient, weight, scores):
        return _score_gradient(gradient, weight, scores, magnitude)
    result = torch.empty_like(scores)
    if magnitude:
        kernels.magnitude_gradient(
            _memory(gradient),
            _memory(weight),
            _memory(scores),
            _memory(result),
            torch.get_num_threads(),
        )
        return result
    return torch.mul(gradient, weight, out=result)


@score_gradient.register_fake
def _(gradient: Tensor, weight: Tensor, scores: Tensor, magnitude: bool) -> Tensor:  # noqa: ARG001
    return torch.empty_like(scores)


def _save_factors(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    gradient, weight, scores, ctx.magnitude = inputs
    ctx.save_for_backward(weight, scores)
    ctx.dtype = gradient.dtype


def _score_gradient_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    weight, scores = ctx.saved_tensors
    back = score_gradient(gradient, weight, scores, ctx.magnitude).to(ctx.dtype)
    return back, None, None, None


score_gradient.register_autograd(_score_gradient_backward, setup_context=_save_factors)


def _are_plain(*tensors: Tensor) -> bool:
    """Whether kernels can take them: binary32 in C order."""
    return all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors)


def _memory(tensor: Tensor) -> npt.NDArray[np.float32]:
    memory: npt.NDArray[np.float32] = tensor.detach().view(-1).numpy()
    return memory
