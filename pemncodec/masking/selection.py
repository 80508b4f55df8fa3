"""Which weights a mask uses, given their scores, and how the gradient gets to the scores.

The forward pass uses hard masks, the backward pass takes them for the identity (straight-through
estimator): the gradient of what is ranked is dL/dw_eff · w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pemncodec.masking.keep import dropped_count
from pemncodec.masking.top_k import keep_largest, masked_weight, top_k_mask, weighted_gradient

By = Literal["magnitude", "score"]


@dataclass(frozen=True, slots=True)
class TopK:
    """The share `keep` of the weights with the largest scores.

    Ties at the cut go by position: of equal scores the later weights in C order stay.

    Attributes:
        by: "magnitude" ranks |score| (PEMN, edge-popup's code), "score" the score itself.
        scope: "layer" keeps the same share of every layer; "global" ranks all layers together.
    """

    by: By = "magnitude"
    scope: Literal["layer", "global"] = "layer"

    def __post_init__(self) -> None:
        _check_choice("by", self.by, ("magnitude", "score"))
        _check_choice("scope", self.scope, ("layer", "global"))

    def ranked(self, scores: Tensor) -> Tensor:
        """What is ranked; the straight-through gradient is that of this."""
        return scores.abs() if self.by == "magnitude" else scores

    def mask(self, ranked: Tensor, kept: Tensor, *, training: bool) -> Tensor:  # noqa: ARG002
        """bool [*shape], `kept` of them True."""
        return top_k_mask(ranked, kept)

    def effective(
        self,
        weight: Tensor,
        scores: Tensor,
        kept: Tensor,
        *,
        training: bool,  # noqa: ARG002
    ) -> Tensor:
        """Effective weights, +0.0 where masked out, with the straight-through gradient."""
        return keep_largest(weight, scores, kept, self.by == "magnitude")

    def initial_scores(self, uniform: Tensor, bound: float, keep: float) -> Tensor:  # noqa: ARG002
        """Scores to begin with, of values uniform in (−1, 1) and the bound that kaiming gives."""
        return uniform * bound


@dataclass(frozen=True, slots=True)
class Threshold:
    """The weights whose score is above a threshold (Piggyback, Mallya et al., ECCV 2018).

    `keep` is the expected share at the start; training moves it.
    """

    value: float = 0.0
    by: By = "score"

    def __post_init__(self) -> None:
        _check_choice("by", self.by, ("magnitude", "score"))
        object.__setattr__(self, "value", float(self.value))
        if not math.isfinite(self.value) or (self.by == "magnitude" and self.value <= 0):
            raise ValueError(f"a threshold of {self.by}s cannot be {self.value}")

    def ranked(self, scores: Tensor) -> Tensor:
        return scores.abs() if self.by == "magnitude" else scores

    def mask(self, ranked: Tensor, kept: Tensor, *, training: bool) -> Tensor:  # noqa: ARG002
        return ranked > self.value

    def effective(self, weight: Tensor, scores: Tensor, kept: Tensor, *, training: bool) -> Tensor:
        return _straight_through(self, weight, scores, kept, training=training)

    def initial_scores(self, uniform: Tensor, bound: float, keep: float) -> Tensor:
        # Of values uniform in (−1, 1) the share `keep` lies above 1 − 2 keep, of their magnitudes
        # above 1 − keep.
        if self.by == "magnitude":
            size, cut = uniform.abs(), 1 - keep
            # Those that are dropped spread below the threshold: at 0 they would have no gradient.
            below = self.value * size / max(cut, torch.finfo(size.dtype).tiny)
            return uniform.sign() * torch.where(
                size > cut, self.value + bound * (size - cut), below
            )
        return self.value + bound * (uniform - (1 - 2 * keep))


@dataclass(frozen=True, slots=True)
class Stochastic:
    """Each weight with the probability sigmoid(score) in training (FedPM, Isik et al., ICLR 2023).

    In eval mode, and in a file, those whose probability is above one half. `keep` is the expected
    share at the start; training moves it. Every use of a tied weight draws anew, unless
    `torch.nn.utils.parametrize.cached()` surrounds them.
    """

    def ranked(self, scores: Tensor) -> Tensor:
        return scores.sigmoid()

    def mask(self, ranked: Tensor, kept: Tensor, *, training: bool) -> Tensor:  # noqa: ARG002
        return ranked.bernoulli().bool() if training else ranked > 0.5

    def effective(self, weight: Tensor, scores: Tensor, kept: Tensor, *, training: bool) -> Tensor:
        return _straight_through(self, weight, scores, kept, training=training)

    def initial_scores(self, uniform: Tensor, bound: float, keep: float) -> Tensor:  # noqa: ARG002
        # Of u uniform in (0, 1) the power u^(1/keep − 1) has the mean `keep`; u itself at 0.5.
        probability = ((uniform + 1) / 2) ** (1 / keep - 1)
        return probability.clamp(1e-3, 1 - 1e-3).logit()


Selection = TopK | Threshold | Stochastic
_NAMES: dict[str, type[Selection]] = {
    "top-k": TopK,
    "threshold": Threshold,
    "stochastic": Stochastic,
}


def selection_to_json(selection: Selection) -> dict[str, Any]:
    name = next(name for name, kind in _NAMES.items() if isinstance(selection, kind))
    return {"name": name, **asdict(selection)}


def selection_from_json(value: dict[str, Any]) -> Selection:
    options = dict(value)
    return _NAMES[options.pop("name")](**options)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}, not {value!r}")


def _straight_through(
    selection: Threshold | Stochastic,
    weight: Tensor,
    scores: Tensor,
    kept: Tensor,
    *,
    training: bool,
) -> Tensor:
    ranked = selection.ranked(scores)
    mask = selection.mask(ranked.detach(), kept, training=training)
    effective: Tensor = StraightThrough.apply(weight, ranked, mask)  # type: ignore[no-untyped-call]
    return effective


class StraightThrough(torch.autograd.Function):
    """Effective weights, +0.0 where masked out; the gradient of what was ranked is g · w."""

    @staticmethod
    def forward(weight: Tensor, ranked: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG004
        return masked_weight(weight, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(inputs[0])
        ctx.ranked_dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        (weight,) = ctx.saved_tensors
        return None, weighted_gradient(gradient, weight).to(ctx.ranked_dtype), None


def kept_in_each(ranked: Sequence[Tensor], ratios: Sequence[float]) -> Tensor:
    """How many weights of each layer a ranking of all layers together keeps.

    Args:
        ranked: float [*shape] for each layer.
        ratios: keep ratio of each layer; what all of them drop together is dropped.

    Returns:
        int64 [layers].
    """
    values = [tensor.detach().reshape(-1) for tensor in ranked]
    sizes = [value.numel() for value in values]
    kept = torch.tensor(sum(sizes) - dropped_together(ratios, sizes), device=values[0].device)
    mask = top_k_mask(torch.cat(values), kept)
    return torch.stack([part.sum() for part in torch.split(mask, sizes)])


def dropped_together(ratios: Sequence[float], sizes: Sequence[int]) -> int:
    """How many weights go of layers that are ranked together, by keep ratio and size of each."""
    total, share = sum(sizes), ratios[0]
    if len(set(ratios)) > 1:
        share = math.fsum(r * size for r, size in zip(ratios, sizes, strict=True)) / total
    return dropped_count(total, share)
