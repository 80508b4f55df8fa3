"""The state dict of a masked model → its weights and masks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pemncodec.contents import Mask
from pemncodec.errors import EncodeError
from pemncodec.masking.masked_state import MaskedState, StateDict
from pemncodec.masking.masked_weight import Recipe
from pemncodec.masking.selection import TopK, kept_in_each

_INFIX = ".parametrizations."
_ORIGINAL, _SCORES, _RECIPE = ".original", ".0.scores", ".0._extra_state"


def is_parametrized_entry(name: str) -> bool:
    """Whether a tensor of that name holds the scores or the recipe of a masked weight."""
    return _INFIX in f".{name}" and name.endswith((_SCORES, _RECIPE))


def read_parametrized(state: Mapping[str, Tensor]) -> MaskedState:
    """Weights and masks of the parametrizations that `mask_model` registers.

    Args:
        state: names as in `state_dict`; other entries stay what they are.

    Raises:
        EncodeError: entries that do not belong together, NaN scores.
    """
    recipes: dict[str, Recipe] = {}
    ranked: dict[str, Tensor] = {}
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
        if scores.itemsize == 1:
            scores = scores.float()  # exact; short floats have no operators of their own
        # The sum is NaN where a score is, and cheaper than a look at each.
        if scores.sum().isnan() and scores.isnan().any():
            raise EncodeError(f"{entry}{_SCORES} holds NaN")
        try:
            recipes[weight] = Recipe.from_tensor(tensor)
        except ValueError as error:
            raise EncodeError(f"{name}: {error}") from None
        ranked[weight] = recipes[weight].selection.ranked(scores)
        memory[weight] = state[entry + _SCORES].data_ptr()
    tensors = _plain_state(state, recipes)
    masks = _masks(recipes, ranked, memory)
    together = [name for name, recipe in recipes.items() if recipe.is_global]
    alone = [[name] for name in recipes if isinstance(recipes[name].selection, TopK)]
    ties: dict[str, int] = {}
    for layers in (together, *(layer for layer in alone if layer[0] not in together)):
        ties |= _ties({name: ranked[name] for name in layers}, masks)
    return MaskedState(
        tensors,
        {name: masks[name] for name in tensors if name in masks},
        fills={name: recipe.fill for name, recipe in recipes.items()},
        rules={name: f"pemncodec.masking: {recipe.rule}" for name, recipe in recipes.items()},
        ties=ties,
    )


def _ties(ranked: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> dict[str, int]:
    """How many scores of each layer are equal where the cut goes between them."""
    scores = {name: _as_array(values) for name, values in ranked.items()}
    kept = [values[np.flatnonzero(masks[name])] for name, values in scores.items()]
    if not any(values.size for values in kept):
        return {}
    cut = min(values.min() for values in kept if values.size)
    reaching = sum(np.count_nonzero(values >= cut) for values in scores.values())
    if reaching == sum(values.size for values in kept):
        return {}
    counts = {name: int(np.count_nonzero(values == cut)) for name, values in scores.items()}
    return {name: count for name, count in counts.items() if count}


def _as_array(values: Tensor) -> npt.NDArray[np.floating]:
    # NumPy has no bfloat16; float32 has all of its values.
    flat = values.reshape(-1)
    return (flat.float() if flat.dtype == torch.bfloat16 else flat).numpy()


def _masks(
    recipes: Mapping[str, Recipe], ranked: Mapping[str, Tensor], memory: Mapping[str, int]
) -> dict[str, Mask]:
    kept = {name: recipe.kept(ranked[name].numel()) for name, recipe in recipes.items()}
    together = [name for name, recipe in recipes.items() if recipe.is_global]
    # A weight with two names counts once.
    once = {memory[name]: name for name in reversed(together)}
    layers = [name for name in together if once[memory[name]] == name]
    if layers:
        count = sum(ranked[name].numel() for name in layers)
        for name in layers:
            if recipes[name].together != count:
                whole = "give the whole model that was masked"
                if count > recipes[name].together:
                    whole = "give that model alone, tied weights as one tensor, not as copies"
                raise EncodeError(
                    f"{name} is ranked among {recipes[name].together:,} weights (scope='global'), "
                    f"and {count:,} are here: {whole}"
                )
        counts = kept_in_each([ranked[n] for n in layers], [recipes[n].ratio for n in layers])
        count_of = dict(zip(layers, counts.tolist(), strict=True))
        kept |= {name: count_of[once[memory[name]]] for name in together}
    return {
        name: recipe.selection.mask(
            ranked[name], torch.tensor(kept[name], device="cpu"), training=False
        ).numpy()
        for name, recipe in recipes.items()
    }


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
