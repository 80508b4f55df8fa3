"""What a dialect of masked checkpoints is: how it is recognised, and how its masks are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pemncodec.checkpoints.score_rules import rule_named
from pemncodec.contents import WEIGHT_DTYPES, Mask
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.mapped_masks import mapped
from pemncodec.masking.masked_state import MaskedState, StateDict
from pemncodec.options import check_shares
from pemncodec.peers import Peers
from pemncodec.tensors import dtype_name

_MASK_DTYPES = (*WEIGHT_DTYPES, "bool", "uint8", "int8", "int16", "int32", "int64")


class MissingRuleError(EncodeArgumentError):
    """Scores are there, but nobody has said how masks follow from them."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskOptions:
    """What a caller says of the masks of a checkpoint.

    Attributes:
        keep: share of each layer's weights that its scores keep, in (0, 1], one for all or by
            pattern of the weight's name; None where no dialect needs it.
        masks: bool (or 0 and 1) [*shape] by name of the weight, for weights whose masks the
            checkpoint lacks.
        own: names that the network itself has for its tensors, where it is known.
        rule: how masks follow from scores, by a name of `score_rules`; None for the dialect's own.
        scores_name: what the checkpoint calls its scores, where no dialect knows them.
        task: which of several sets of scores.
        masks_from: "zeros" for masks that are 0 where the weights are.
        masks_are: where `masks` come from, in words.
        peers: the processes that read the network's other layers: an option that fits nothing here
            may be for these.
        ranked: the kinds of scores of which masks were made before.

    Raises:
        EncodeArgumentError: an option that is out of range.
    """

    keep: float | Mapping[str, float] | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    own: Collection[str] = ()
    rule: str | None = None
    scores_name: str | None = None
    task: int | None = None
    masks_from: Literal["zeros"] | None = None
    masks_are: str = "given by the caller"
    peers: Peers | None = None
    ranked: Sequence[str] = ()

    @property
    def share(self) -> float:
        """The share of all weights together; 1 where the caller gives none."""
        return 1.0 if self.keep is None or isinstance(self.keep, Mapping) else float(self.keep)

    def __post_init__(self) -> None:
        if self.rule is not None:
            rule_named(self.rule)
        check_shares(self.keep)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to keep masks beside weights in a state dict.

    Attributes:
        name: what a state dict of it holds, such as "scores (X.scores)".
        matches: whether a state dict, as it was loaded, has entries of the dialect.
        read: from what the dialects before it left of a state dict to the weights and masks of its
            entries, each mask with its rule in words; all other entries stay what they are, in
            their order.
        by_scores: whether the masks follow from scores, by what `MaskOptions` says of them; a
            module of the dialect does that in code of its own, which no manifest describes, so that
            the plain module has to be given.
        together: whether masks may follow from all layers of the network: where several processes
            have them, all read, also those that have no entries of the dialect.
    """

    name: str
    matches: Callable[[StateDict], bool]
    read: Callable[[StateDict, MaskOptions], MaskedState]
    by_scores: bool = False
    together: bool = False


def binary_mask(mask: Tensor, name: str) -> Mask:
    """bool [*shape] of a mask of any dtype.

    Raises:
        EncodeError: values besides 0 and 1, or a tensor that is not dense.
    """
    if mask.layout != torch.strided or mask.is_meta:
        raise EncodeError(f"{name}: expected a dense tensor")
    plain = mask.detach().cpu().contiguous()
    if plain.dtype != torch.bool:
        if not ((plain == 0) | (plain == 1)).all():
            raise EncodeError(f"{name}: a mask holds only 0 and 1")
        return mapped((plain == 1).numpy())
    mask_itself: Mask = plain.numpy()
    return mask_itself


def is_binary(tensor: Tensor) -> bool:
    """Whether a tensor can be a mask: dense, of a usual dtype, with 0 and 1 alone."""
    if tensor.layout != torch.strided or tensor.is_meta or dtype_name(tensor) not in _MASK_DTYPES:
        return False
    return bool(((tensor == 0) | (tensor == 1)).all())


def check_shape(name: str, tensor: Tensor, weight: str, weights: Tensor) -> None:
    """Raises EncodeError unless what belongs to a weight has the weight's shape."""
    if tensor.shape != weights.shape:
        raise EncodeError(
            f"{name} has shape {tuple(tensor.shape)}, {weight} itself {tuple(weights.shape)}"
        )
