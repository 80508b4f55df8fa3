"""Rules that rank scores and keep a share: of each layer, or of the whole network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pemncodec.checkpoints.score_rule import Kept, Scored, ScoreRule
from pemncodec.masking.keep import dropped_count
from pemncodec.masking.one_cut import Rank, cut_together


def keep_largest(
    values: npt.NDArray[np.floating], dropped: int
) -> tuple[npt.NDArray[np.bool_], int]:
    """All but the `dropped` least of some values, and how many are equal where the cut goes.

    Of equal values at the cut the earlier go, as in a stable ascending sort.

    Args:
        values: float [count], without NaN.
        dropped: 0 to count.

    Returns:
        bool [count], and a number of values; 0 where the cut is between different ones.
    """
    if not dropped:
        return np.ones(values.size, np.bool_), 0
    cut = np.partition(values, dropped - 1)[dropped - 1]
    mask = values > cut
    equal = np.flatnonzero(values == cut)
    gone = equal.size - (values.size - dropped - np.count_nonzero(mask))
    mask[equal[gone:]] = True
    return mask, equal.size if gone < equal.size else 0


def by_layer(rank: Rank) -> Callable[[Scored, float], Iterator[Kept]]:
    """Of each weight the share with the largest ranks."""

    def masks(scored: Scored, _: float) -> Iterator[Kept]:
        for name, tensor in scored.scores.items():
            ranks = rank(tensor).reshape(-1).numpy()
            mask, tied = keep_largest(ranks, dropped_count(ranks.size, scored.keeps[name]))
            yield Kept(mask.reshape(tensor.shape), tied)

    return masks


def _of_network(rank: Rank) -> Callable[[Scored, float], Iterator[Kept]]:
    """The share of all weights together with the largest ranks."""

    def masks(scored: Scored, _: float) -> Iterator[Kept]:
        cut = cut_together(
            scored.scores, rank, lambda count: dropped_count(count, scored.share), scored.peers
        )
        for name, tensor in scored.scores.items():
            yield Kept(cut.mask(name, rank(tensor).numpy()), cut.tied[name])

    return masks


def _first_of_descending(scored: Scored, _: float) -> Iterator[Kept]:
    for name, tensor in scored.scores.items():
        # Backwards, so that of equal scores the earlier stay.
        ranks = tensor.reshape(-1).flip(0).numpy()
        mask, tied = keep_largest(ranks, ranks.size - int(scored.keeps[name] * ranks.size))
        yield Kept(mask[::-1].reshape(tensor.shape).copy(), tied)


def _as_it_is(scores: Tensor) -> Tensor:
    return scores


MAGNITUDE = ScoreRule(
    "of n weights, the int((1 - keep) * n) with the least |score| go; keep is {keep}",
    by_layer(torch.abs),
    needs_keep=True,
)
SCORE = ScoreRule(
    "of n weights, the int((1 - keep) * n) with the least score go; keep is {keep}",
    by_layer(_as_it_is),
    needs_keep=True,
)
GLOBAL_MAGNITUDE = ScoreRule(
    "of the n weights of all layers together, the int((1 - keep) * n) with the least |score| go; "
    "keep is {keep}",
    _of_network(torch.abs),
    needs_keep=True,
    one_cut=True,
)
GLOBAL_SCORE = ScoreRule(
    "of the n weights of all layers together, the int((1 - keep) * n) with the least score go; "
    "keep is {keep}",
    _of_network(_as_it_is),
    needs_keep=True,
    one_cut=True,
)
MOVEMENT = ScoreRule(
    "of n weights, the int(keep * n) with the largest score stay, of equal ones the earlier; "
    "keep is {keep}",
    _first_of_descending,
    needs_keep=True,
)
