"""The rules of biprop: a mask as in edge-popup, and each weight that stays is ±α, alike in size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pemncodec.checkpoints.ranked_scores import by_layer
from pemncodec.checkpoints.score_rule import Kept, Scored, ScoreRule
from pemncodec.contents import Mask
from pemncodec.masking.keep import dropped_count
from pemncodec.masking.one_cut import cut_together


def _above_one_cut(scored: Scored, _: float) -> Iterator[Kept]:
    """All whose magnitude is above that of the last that goes; none of those equal to it."""
    # Where none would go, the published code indexes with −1, and so keeps none.
    cut = cut_together(
        scored.scores,
        torch.abs,
        lambda count: dropped_count(count, scored.share) or count,
        scored.peers,
    )
    for tensor in scored.scores.values():
        yield Kept(cut.above(tensor.abs().numpy()))


def _binary(weight: Tensor, mask: Mask, count: int) -> Tensor:
    """sign(w) · α, α = Σ |w| over the mask / count, in the published code's operations."""
    values = weight.detach().cpu()
    used = torch.from_numpy(mask).to(values.dtype)
    alpha = torch.sum(torch.abs(values) * used) / count
    return torch.sign(values) * alpha


def _binary_by_layer(weight: Tensor, mask: Mask, keep: float) -> Tensor:
    return _binary(weight, mask, int(keep * weight.numel()))


def _binary_of_network(weight: Tensor, mask: Mask, _: float) -> Tensor:
    return _binary(weight, mask, int(mask.sum()))


BIPROP = ScoreRule(
    "as in biprop: of n weights, the int((1 - keep) * n) with the least |score| go, and each other "
    "is its sign times alpha, the sum of their |weight| / int(keep * n); keep is {keep}",
    by_layer(torch.abs),
    needs_keep=True,
    weights=_binary_by_layer,
)
BIPROP_GLOBAL = ScoreRule(
    "as in biprop's GlobalSubnetConv: of the n weights of all layers together, those whose |score| "
    "is above the int((1 - keep) * n)-th least stay, and each is its sign times alpha, the mean "
    "|weight| of its layer's; keep is {keep}",
    _above_one_cut,
    needs_keep=True,
    one_cut=True,
    weights=_binary_of_network,
)
