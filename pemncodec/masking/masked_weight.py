"""The parametrization of one frozen weight: scores that choose what of it is used.

In a state dict the weight `X.weight` of a masked model is three entries:

* `X.parametrizations.weight.original`: the frozen values;
* `X.parametrizations.weight.0.scores`: the learned scores;
* `X.parametrizations.weight.0._extra_state`: how the mask follows from the scores and the values
  from a seed, JSON in a uint8 tensor, so that every checkpoint format can hold it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from pemncodec.coders.canonical_json import decode_json, encode_json
from pemncodec.contents import SeededFill, SeededPrototype
from pemncodec.masking.keep import (
    Keep,
    KeepSchedule,
    dropped_count,
    keep_at,
    keep_from_json,
    keep_to_json,
)
from pemncodec.masking.selection import (
    Selection,
    TopK,
    selection_from_json,
    selection_to_json,
)
from pemncodec.values.generators import check_prototype
from pemncodec.values.philox import generate

# Streams of the weights count from 0, those of the scores from the middle of their range.
_SCORES_STREAM = 1 << 63


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a mask follows from its scores, and frozen values from a seed.

    Attributes:
        fill: where the frozen values come from.
        selection: the rule that makes the mask.
        keep: share of the weights that the mask uses, or its schedule.
        step: training steps done, for a schedule.
        together: how many weights are ranked together, where all layers of a model are; else 0.
    """

    fill: SeededFill
    selection: Selection
    keep: Keep
    step: int = 0
    together: int = 0

    @property
    def ratio(self) -> float:
        """The keep ratio at the present step."""
        return keep_at(self.keep, self.step)

    @property
    def is_global(self) -> bool:
        """Whether other layers' scores have a say in the mask."""
        return isinstance(self.selection, TopK) and self.selection.scope == "global"

    @property
    def rule(self) -> str:
        """How the mask is made, in words; training has moved what other selections began with."""
        keeps = isinstance(self.selection, TopK)
        return f"{self.selection}, keep={self.ratio:g}" if keeps else f"{self.selection}"

    def kept(self, count: int) -> int:
        """How many of `count` weights the present keep ratio keeps."""
        return count - dropped_count(count, self.ratio)

    def to_tensor(self) -> Tensor:
        """uint8 [bytes] of JSON."""
        value = {
            "prototype": asdict(self.fill.prototype),
            "scale": self.fill.scale,
            "selection": selection_to_json(self.selection),
            "keep": keep_to_json(self.keep),
            "step": self.step,
            "together": self.together,
        }
        return torch.frombuffer(bytearray(encode_json(value)), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, data: Tensor) -> Self:
        """The recipe of `to_tensor`.

        Raises:
            ValueError: the tensor holds something else.
        """
        try:
            value = decode_json(bytes(data.cpu().numpy().tobytes()), depth=8)
            prototype = SeededPrototype(**value["prototype"])
            scale, step, together = value["scale"], value["step"], value.get("together", 0)
            _check_prototype(prototype)
            if not (isinstance(scale, float) and math.isfinite(scale)):
                raise TypeError
            if not (isinstance(step, int) and isinstance(together, int)):
                raise TypeError
            selection = selection_from_json(value["selection"])
            fill, keep = SeededFill(prototype, scale), keep_from_json(value["keep"])
            recipe = cls(fill, selection, keep, step, together)
            if together < 0 or recipe.is_global != (together > 0):
                raise ValueError
            return recipe
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
            raise ValueError("not the recipe of a masked weight") from None


def _check_prototype(prototype: SeededPrototype) -> None:
    numbers = (prototype.seed, prototype.stream, prototype.length, prototype.period)
    if not all(type(number) is int for number in numbers):
        raise TypeError
    check_prototype(prototype)


class MaskedWeight(nn.Module):
    """Parametrization of a frozen weight by scores.

    Attributes:
        scores: float [*shape of the weight], learned.
        recipe: how the mask follows from them.
        kept: int64 0-d: how many weights a top-k mask uses. A tensor, so that compiled code need
            not be compiled anew when it changes.
    """

    scores: nn.Parameter
    kept: Tensor

    def __init__(self, weight: Tensor, recipe: Recipe, index: int) -> None:
        """Args:
        weight: [*shape]; only its shape, dtype and device matter.
        recipe: how the mask follows from the scores.
        index: of the weight in its model; the initial scores come from the recipe's seed and this.
        """
        super().__init__()
        self.recipe = recipe
        dtype = torch.promote_types(weight.dtype, torch.float32)
        stream = _SCORES_STREAM + index
        uniform = torch.from_numpy(
            generate("uniform", recipe.fill.prototype.seed, 0, weight.numel(), stream=stream)
        ).view(weight.shape)
        # As nn.init.kaiming_uniform_(scores, a=√5).
        bound = 1 / math.sqrt(max(math.prod(weight.shape[1:]), 1))
        scores = recipe.selection.initial_scores(uniform, bound, recipe.ratio)
        self.scores = nn.Parameter(torch.empty_like(weight, dtype=dtype).copy_(scores))
        kept = torch.tensor(recipe.kept(weight.numel()), device=weight.device)
        self.register_buffer("kept", kept, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Effective weight [*shape]; the gradient goes to the scores alone."""
        return self.recipe.selection.effective(
            weight, self.scores, self.kept, training=self.training
        )

    def advance(self) -> None:
        """One training step is done: keep moves along its schedule."""
        if isinstance(self.recipe.keep, KeepSchedule):
            self._set_recipe(replace(self.recipe, step=self.recipe.step + 1))

    def get_extra_state(self) -> Tensor:
        return self.recipe.to_tensor()

    def set_extra_state(self, state: Any) -> None:
        recipe = Recipe.from_tensor(state)
        if recipe.together != self.recipe.together:
            theirs, ours = (
                f"{count:,} weights together" if count else "each layer alone"
                for count in (recipe.together, self.recipe.together)
            )
            raise ValueError(
                f"the state ranks {theirs}, the model {ours} (the scope of TopK): mask the same "
                "model with the selection of the state"
            )
        self._set_recipe(recipe)

    def _set_recipe(self, recipe: Recipe) -> None:
        self.recipe = recipe
        if not recipe.is_global:
            self.kept.fill_(recipe.kept(self.scores.numel()))

    def extra_repr(self) -> str:
        prototype = self.recipe.fill.prototype
        return (
            f"keep={self.recipe.ratio:g}, {self.recipe.selection}, "
            f"{prototype.length} {prototype.distribution} values"
        )
