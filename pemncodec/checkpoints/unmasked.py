"""What to say of a checkpoint in which no masks are found: what it has that could be masks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pemncodec.checkpoints.zero_masks import has_zeros
from pemncodec.errors import EncodeError

_TABLE = "the README's section 'Masks of your code' lists the dialects that are known"


class NoMasksError(EncodeError):
    """A checkpoint without masks in any dialect."""


def what_to_give(state: Mapping[str, Tensor]) -> str:
    """What the caller could give that masks are found, most likely first, in one line."""
    hints = [hint] if (hint := name_of_scores(state)) else []
    hints += [hint] if (hint := masks_from_zeros(state)) else []
    hints.append("masks of your own go into --masks FILE (masks=…)")
    hints.append("a model of pemncodec.masking is encoded before bake, which drops its masks")
    return "; ".join([*hints, _TABLE])


def masks_from_zeros(state: Mapping[str, Tensor]) -> str:
    """What to give if weights were pruned and saved without masks; nothing where none are 0."""
    zeros = sum(map(has_zeros, state.values()))
    if not zeros:
        return ""
    tensors = f"{zeros:,} of its tensors hold" if zeros > 1 else "one of its tensors holds"
    return f"{tensors} zeros: if these are pruned weights, give --masks-from zeros (masks_from=…)"


def name_of_scores(state: Mapping[str, Tensor]) -> str:
    """What to give if some entry is scores under a name of its own; nothing where none can be."""
    scores = next((name for name in state if _could_be_scores(name, state)), None)
    if scores is None:
        return ""
    module, _, called = scores.rpartition(".")
    weight = f"{module}.weight".removeprefix(".")
    option = f"--scores-name {called} (scores_name=…)"
    return f"if {scores} are scores of {weight}, give {option} and --keep"


def _could_be_scores(name: str, state: Mapping[str, Tensor]) -> bool:
    module, dot, called = name.rpartition(".")
    weight: Tensor | None = state.get(f"{module}{dot}weight")
    if called == "weight" or weight is None or weight.dim() < 2:
        return False
    return weight.shape == state[name].shape and state[name].is_floating_point()
