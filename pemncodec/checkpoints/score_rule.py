"""What a rule is by which masks follow from scores, and scores as numbers that can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pemncodec.contents import Mask
from pemncodec.errors import EncodeError
from pemncodec.peers import Peers
from pemncodec.tensors import dtype_name


@dataclass(frozen=True, slots=True)
class Kept:
    """What a rule keeps of one weight.

    Attributes:
        mask: bool [*shape].
        tied: how many scores are equal where the cut goes between them.
    """

    mask: Mask
    tied: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Weights with scores, of which a rule makes masks.

    Attributes:
        scores: floats [*shape] by weight, in the order of the state dict.
        keeps: the share of each that stays; 1 for rules that take none.
        share: the share of all together, for rules with one cut.
        peers: the processes that have the network's other weights; None where these are all.
    """

    scores: Mapping[str, Tensor]
    keeps: Mapping[str, float]
    share: float
    peers: Peers | None = None


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """How masks follow from scores.

    Attributes:
        words: the rule in words, behind the name of the scores and a colon; `{keep}` and `{value}`
            stand for the share of a weight and for the rule's own number.
        masks: from weights with scores, and the rule's own number, to what is kept of each, one
            after the other.
        needs_keep: whether it takes shares.
        value: the rule's own number, such as a threshold.
        one_cut: whether it ranks all weights together, and so takes one share.
        weights: for networks that do not use the weights as they are: from a weight, its mask and
            its share to the weight that the network computes with.
    """

    words: str
    masks: Callable[[Scored, float], Iterator[Kept]]
    needs_keep: bool = False
    value: float = 0.0
    one_cut: bool = False
    weights: Callable[[Tensor, Mask, float], Tensor] | None = None

    def in_words(self, scores: str, keep: float) -> str:
        """The rule for one weight: what is ranked or compared, and what stays."""
        value = int(self.value) if self.value.is_integer() else self.value
        return f"{scores}: {self.words.format(keep=keep, value=value)}"


def exact_scores(scores: Tensor, name: str) -> Tensor:
    """Scores [*shape] in C order on the CPU, short floats as float32, which holds them exactly.

    Raises:
        EncodeError: no floats, no dense tensor, or NaN among them.
    """
    if not scores.is_floating_point() or scores.dtype == getattr(torch, "float4_e2m1fn_x2", None):
        raise EncodeError(f"{name}: scores of dtype {dtype_name(scores)}, expected floats")
    if scores.layout != torch.strided or scores.is_meta:
        raise EncodeError(f"{name}: expected a dense tensor")
    exact = comparable(scores)
    if exact.isnan().any():
        raise EncodeError(f"{name}: the scores hold NaN")
    return exact


def comparable(scores: Tensor) -> Tensor:
    """The same numbers in C order on the CPU; short floats, which have no operators, as float32."""
    wide = torch.float64 if scores.itemsize == 8 else torch.float32
    return scores.detach().cpu().to(wide).contiguous()
