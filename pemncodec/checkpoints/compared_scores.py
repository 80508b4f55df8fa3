"""Rules that need no ranking: scores above a threshold, or drawn by their probability."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pemncodec.checkpoints.score_rule import Kept, Scored, ScoreRule


def _each(
    stays: Callable[[Tensor, float], Tensor],
) -> Callable[[Scored, float], Iterator[Kept]]:
    def masks(scored: Scored, value: float) -> Iterator[Kept]:
        for tensor in scored.scores.values():
            yield Kept(stays(tensor, value).numpy())

    return masks


def _drawn(scored: Scored, seed: float) -> Iterator[Kept]:
    generator = torch.Generator().manual_seed(int(seed))
    for tensor in scored.scores.values():
        yield Kept(torch.bernoulli(tensor.sigmoid(), generator=generator).bool().numpy())


ABOVE = ScoreRule("weights whose score is above {value} stay", _each(lambda s, t: s > t))
AT_LEAST = ScoreRule("weights whose score is at least {value} stay", _each(lambda s, t: s >= t))
SIGMOID_ABOVE = ScoreRule(
    "weights stay where sigmoid(score) is above {value}", _each(lambda s, t: s.sigmoid() > t)
)
BERNOULLI = ScoreRule(
    "each weight stays with the probability sigmoid(score), drawn once by torch.bernoulli after "
    "torch.manual_seed({value}), in the order of the state dict",
    _drawn,
)
