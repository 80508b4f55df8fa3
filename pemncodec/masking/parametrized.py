"""The state dict of a masked model → its weights and masks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pemncodec.contents import Mask
from pemncodec.errors import EncodeError
from pemncodec.mapped_masks import mapped
from pemncodec.masking.lazy_mapping import LazyMapping
from pemncodec.masking.masked_state import MaskedState, StateDict
from pemncodec.masking.masked_weight import Recipe
from pemncodec.masking.one_cut import cut_together
from pemncodec.masking.selection import TopK, dropped_together
from pemncodec.peers import Peers

_INFIX = ".parametrizations."
_ORIGINAL, _SCORES, _RECIPE = ".original", ".0.scores", ".0._extra_state"


def is_parametrized_entry(name: str) -> bool:
    """Whether a tensor of that name holds the scores or the recipe of a masked weight."""
    return _INFIX in f".{name}" and name.endswith((_SCORES, _RECIPE))


def read_parametrized(state: Mapping[str, Tensor], peers: Peers | None = None) -> MaskedState:
    """Weights and masks of the parametrizations that `mask_model` registers.

    Args:
        state: names as in `state_dict`; other entries stay what they are.
        peers: the processes that read the network's other layers; each calls this.

    Raises:
        EncodeError: entries that do not belong together, NaN scores.
    """
    recipes: dict[str, Recipe] = {}
    entries: dict[str, str] = {}
    scores_of: dict[str, Tensor] = {}
    memory: dict[str, int] = {}
    for name, tensor in state.items():
        if not is_parametrized_entry(name):
            continue
        if name.endswith(_SCORES) and (recipe := name.removesuffix(_SCORES) + _RECIPE) not in state:
            raise EncodeError(
                f"{name}: there is no {recipe}, which says how the mask is made: give all of the "
                "model's state_dict()"
            )
        if not name.endswith(_RECIPE):
            continue
        entry = name.removesuffix(_RECIPE)
        weight = _plain_name(entry)
        if weight in state:
            raise EncodeError(f"{name}: there is a {weight} beside it, which it stands for")
        for needed in (entry + _ORIGINAL, entry + _SCORES):
            if needed not in state:
                raise EncodeError(f"{name}: there is no {needed}")
        for read in (entry + _SCORES, name):
            if state[read].layout != torch.strided or state[read].is_meta:
                raise EncodeError(f"{read}: expected a dense tensor")
        if any(other.startswith(f"{entry}.1.") for other in state):
            raise EncodeError(f"{weight} is parametrized by more than its mask")
        scores, values = state[entry + _SCORES].detach().cpu(), state[entry + _ORIGINAL]
        if scores.shape != values.shape or not scores.is_floating_point():
            raise EncodeError(f"{entry}{_SCORES} does not fit {entry}{_ORIGINAL}")
        # The sum is NaN where a score is, and cheaper than a look at each.
        numbers = _with_operators(scores)
        if numbers.sum().isnan() and numbers.isnan().any():
            raise EncodeError(f"{entry}{_SCORES} holds NaN")
        try:
            recipes[weight] = Recipe.from_tensor(tensor)
        except ValueError as error:
            raise EncodeError(f"{name}: {error}") from None
        entries[weight] = name
        scores_of[weight] = scores
        memory[weight] = state[entry + _SCORES].data_ptr()
    ranked = LazyMapping(
        recipes, lambda name: recipes[name].selection.ranked(_with_operators(scores_of[name]))
    )
    tensors = _plain_state(state, recipes)
    kept, ties = _kept_together(recipes, entries, ranked, memory, peers)
    masks: dict[str, Mask] = {}
    for weight, own in recipes.items():
        ranks = ranked[weight]
        count = torch.tensor(kept.get(weight, own.kept(ranks.numel())), device="cpu")
        masks[weight] = mapped(own.selection.mask(ranks, count, training=False).numpy())
        if isinstance(own.selection, TopK) and not own.is_global:
            tied = _tied(ranks, masks[weight])
            ties |= {weight: tied} if tied else {}
    return MaskedState(
        tensors,
        {name: masks[name] for name in tensors if name in masks},
        fills={name: recipe.fill for name, recipe in recipes.items()},
        rules={name: f"pemncodec.masking: {recipe.rule}" for name, recipe in recipes.items()},
        ties=ties,
    )


def _with_operators(scores: Tensor) -> Tensor:
    """The same numbers, as floats that can be compared."""
    return scores.float() if scores.itemsize == 1 else scores


def _tied(ranked: Tensor, mask: Mask) -> int:
    """How many scores of a layer are equal where the cut goes between them."""
    scores = _as_array(ranked)
    kept = scores[np.flatnonzero(mask)]
    if not kept.size or np.count_nonzero(scores >= kept.min()) == kept.size:
        return 0
    return int(np.count_nonzero(scores == kept.min()))


def _as_array(values: Tensor) -> npt.NDArray[np.floating]:
    # NumPy has no bfloat16; float32 has all of its values.
    flat = values.reshape(-1)
    return (flat.float() if flat.dtype == torch.bfloat16 else flat).numpy()


def _kept_together(
    recipes: Mapping[str, Recipe],
    entries: Mapping[str, str],
    ranked: Mapping[str, Tensor],
    memory: Mapping[str, int],
    peers: Peers | None,
) -> tuple[dict[str, int], dict[str, int]]:
    """Of layers that are ranked together, how many weights stay, and how many scores are tied."""
    together = [name for name, recipe in recipes.items() if recipe.is_global]
    # A weight with two names counts once.
    once = {memory[name]: name for name in reversed(together)}
    layers = [name for name in together if once[memory[name]] == name]
    ratios = [recipes[name].ratio for name in layers]
    sizes = [ranked[name].numel() for name in layers]
    if peers is not None:
        said = peers.gather([ratios, sizes])
        ratios, sizes = ([value for own in said for value in own[at]] for at in (0, 1))
    count = sum(sizes)
    for name in layers:
        if recipes[name].together != count:
            whole = "give the whole model that was masked"
            if count > recipes[name].together:
                whole = "give that model alone, tied weights as one tensor, not as copies"
            raise EncodeError(
                f"{name} is ranked among {recipes[name].together:,} weights (scope='global'), "
                f"and {count:,} are here: {whole}"
            )
    if not count:
        return {}, {}
    gone = dropped_together(ratios, sizes)
    weight_of = {entries[name]: name for name in layers}
    by_entry = LazyMapping([entries[n] for n in layers], lambda entry: ranked[weight_of[entry]])
    cut = cut_together(by_entry, lambda values: values, lambda _: gone, peers)
    kept: dict[str, int] = {}
    tied: dict[str, int] = {}
    for name in together:
        first = once[memory[name]]
        mask = cut.mask(entries[first], _as_array(ranked[first]))
        kept[name] = int(np.count_nonzero(mask))
        tied |= {name: cut.tied[entries[first]]} if cut.tied[entries[first]] else {}
    return kept, tied


def _plain_name(entry: str) -> str:
    """`X.parametrizations.weight` to `X.weight`."""
    module, _, attribute = f".{entry}".rpartition(_INFIX)
    return f"{module}.{attribute}".lstrip(".")


def _plain_state(state: Mapping[str, Tensor], masked: Mapping[str, Recipe]) -> StateDict:
    """Plain names; a masked weight before its layer's other tensors, where layers register it."""
    entries = {}
    for weight in masked:
        module, _, attribute = f".{weight}".rpartition(".")
        entries[weight] = f"{module}{_INFIX}{attribute}".lstrip(".")
    parts = {entry + part for entry in entries.values() for part in (_ORIGINAL, _SCORES, _RECIPE)}
    weights_of: dict[str, list[str]] = {}
    for weight in masked:
        weights_of.setdefault(weight.rpartition(".")[0], []).append(weight)
    plain: StateDict = {}
    for name, tensor in state.items():
        module = name.partition("parametrizations.")[0].removesuffix(".")
        if "parametrizations." not in name:
            module = name.rpartition(".")[0]
        for weight in weights_of.pop(module, ()):
            plain[weight] = state[entries[weight] + _ORIGINAL]
        if name not in parts:
            plain[name] = tensor
    return plain
