"""The largest scores, what they leave of a weight, and the gradient: torch operators.

On a CPU the usual case, binary32 in C order, is a kernel each; all else is plain torch with the
same results. They are operators of a torch library, not Python alone, so that `torch.compile` takes
each as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pemncodec import kernels

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    mask: Tensor = torch.ops.pemncodec.top_k_mask.default(ranked, kept)
    return mask


def _top_k_mask_cpu(ranked: Tensor, kept: Tensor) -> Tensor:
    if ranked.dtype == torch.float64:
        return top_k_mask_by_sort(ranked, kept)
    mask = torch.empty(ranked.shape, dtype=torch.bool, device=ranked.device)
    values = ranked.detach().float().contiguous()
    kernels.top_k(values.numpy(), int(kept), mask.view(torch.uint8).numpy())
    return mask


def top_k_mask_by_sort(ranked: Tensor, kept: Tensor) -> Tensor:
    """`top_k_mask` without a value that the host must wait for."""
    values = ranked.detach().reshape(-1)
    if not values.numel():
        return torch.zeros(ranked.shape, dtype=torch.bool, device=ranked.device)
    first = (values.numel() - kept).clamp(max=values.numel() - 1)
    cut = values.sort().values.index_select(0, first.reshape(1))
    above, ties = values > cut, values == cut
    ties_from_end = ties.flip(0).cumsum(0).flip(0)
    return (above | (ties & (ties_from_end <= kept - above.sum()))).view(ranked.shape)


# ------------------------------------------------------------------------- effective weights


def masked_weight(weight: Tensor, mask: Tensor) -> Tensor:
    """`weight` where `mask` is True, else +0.0; as `weight` in memory."""
    # By bits times 0 or 1: several times as fast as torch.where on a CPU, and never −0.0.
    integer = _INTEGERS[weight.dtype.itemsize]
    factors = torch.empty_like(weight, dtype=integer).copy_(mask)
    return factors.mul_(weight.view(integer)).view(weight.dtype)


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
    effective: Tensor = _KeepLargest.apply(weight, scores, kept, magnitude)  # type: ignore[no-untyped-call]
    return effective


def _keep_largest_cpu(weight: Tensor, scores: Tensor, kept: Tensor, magnitude: bool) -> Tensor:
    if not _are_plain(weight, scores):
        return _keep_largest(weight, scores, kept, magnitude)
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


def _keep_largest(weight: Tensor, scores: Tensor, kept: Tensor, magnitude: bool) -> Tensor:
    return masked_weight(weight, top_k_mask(scores.abs() if magnitude else scores, kept))


class _KeepLargest(torch.autograd.Function):
    @staticmethod
    def forward(weight: Tensor, scores: Tensor, kept: Tensor, magnitude: bool) -> Tensor:
        effective: Tensor = torch.ops.pemncodec.keep_largest.default(
            weight, scores, kept, magnitude
        )
        return effective

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        weight, scores, _, ctx.magnitude = inputs
        ctx.save_for_backward(weight, scores)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        weight, scores = ctx.saved_tensors
        return None, score_gradient(gradient, weight, scores, ctx.magnitude), None, None


# ---------------------------------------------------------------------------------- gradient


def weighted_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """`gradient` times `weight`, as `weight` in dtype and memory."""
    # Copied first, since mixed strides are slow.
    return torch.empty_like(weight).copy_(gradient).mul_(weight)


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
    # The usual backward pass makes no graph of itself.
    function: Any = _ScoreGradient.apply if torch.is_grad_enabled() else _ScoreGradient.forward
    product: Tensor = function(gradient, weight, scores, magnitude)
    return product


def _score_gradient_cpu(
    gradient: Tensor, weight: Tensor, scores: Tensor, magnitude: bool
) -> Tensor:
    if not _are_plain(gradient, weight, scores):
        return _score_gradient(gradient, weight, scores, magnitude)
    product = torch.empty_like(scores)
    if not magnitude:
        return torch.mul(gradient, weight, out=product)
    kernels.magnitude_gradient(
        _memory(gradient),
        _memory(weight),
        _memory(scores),
        _memory(product),
        torch.get_num_threads(),
    )
    return product


def _score_gradient(gradient: Tensor, weight: Tensor, scores: Tensor, magnitude: bool) -> Tensor:
    product = torch.empty_like(scores).copy_(weighted_gradient(gradient, weight))
    return product.mul_(scores.sign()) if magnitude else product


class _ScoreGradient(torch.autograd.Function):
    @staticmethod
    def forward(gradient: Tensor, weight: Tensor, scores: Tensor, magnitude: bool) -> Tensor:
        product: Tensor = torch.ops.pemncodec.score_gradient.default(
            gradient, weight, scores, magnitude
        )
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        gradient, weight, scores, ctx.magnitude = inputs
        ctx.dtype = gradient.dtype
        ctx.save_for_backward(weight, scores)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scores = ctx.saved_tensors
        back = score_gradient(gradient, weight, scores, ctx.magnitude).to(ctx.dtype)
        return back, None, None, None


def _are_plain(*tensors: Tensor) -> bool:
    """Whether kernels can take them: binary32 in C order."""
    return all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors)


def _memory(tensor: Tensor) -> npt.NDArray[np.float32]:
    memory: npt.NDArray[np.float32] = tensor.detach().numpy()
    return memory


# ------------------------------------------------------------------------------- the operators

# By hand, since each layer calls them in each step: what torch.library.custom_op puts around a
# function takes twice as long.
_OPERATORS: dict[str, dict[str, Any]] = {
    "top_k_mask(Tensor ranked, Tensor kept) -> Tensor": {
        "CPU": _top_k_mask_cpu,
        "CompositeExplicitAutograd": top_k_mask_by_sort,
        "Meta": lambda ranked, _: torch.empty(ranked.shape, dtype=torch.bool, device=ranked.device),
    },
    "keep_largest(Tensor weight, Tensor scores, Tensor kept, bool magnitude) -> Tensor": {
        "CPU": _keep_largest_cpu,
        "CompositeExplicitAutograd": _keep_largest,
        "Meta": lambda weight, *_: torch.empty_like(weight),
    },
    "score_gradient(Tensor gradient, Tensor weight, Tensor scores, bool magnitude) -> Tensor": {
        "CPU": _score_gradient_cpu,
        "CompositeExplicitAutograd": _score_gradient,
        "Meta": lambda _, __, scores, *___: torch.empty_like(scores),
    },
}


def _register() -> Any:
    """The library, which unregisters its operators when it goes."""
    library: Any = torch.library.Library("pemncodec", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema, implementations in _OPERATORS.items():
        name = library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        for key, implementation in implementations.items():
            library.impl(name, implementation, key)
    return library


_LIBRARY = _register()
