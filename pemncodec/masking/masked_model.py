"""A plain model → a masked one in place, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from pemncodec.contents import (
    WEIGHT_DTYPES,
    Distribution,
    Fill,
    Prototype,
    Seeded,
)
from pemncodec.masking.keep import Keep, KeepSchedule, keep_by_name
from pemncodec.masking.masked_state import MaskedState
from pemncodec.masking.masked_weight import MaskedWeight, Recipe
from pemncodec.masking.parametrized import read_parametrized
from pemncodec.masking.pickled import allow_pickling
from pemncodec.masking.selection import Selection, TopK, kept_in_each
from pemncodec.masking.strategies import Initialization, Strategy
from pemncodec.values.fill import held, tensor_values

_MASKABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.Embedding,
)
_IN_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")

Patterns = str | Iterable[str]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class _Place:
    """A parameter, and its names and every layer that has it (several where weights are tied)."""

    names: list[str]
    weight: nn.Parameter
    holders: list[tuple[nn.Module, str]]

    @property
    def name(self) -> str:
        return self.names[0]


def mask_model(
    model: M,
    strategy: Strategy,
    *,
    keep: Keep | Mapping[str, Keep] = 0.5,
    seed: int = 0,
    distribution: Distribution = "normal",
    rescale: bool = False,
    selection: Selection | None = None,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
) -> M:
    """Freeze a model's weights at values from a seed, and learn which of them to use.

    The weights of convolutions, transposed convolutions, `Linear`, `Embedding` and the
    in-projection of `MultiheadAttention` are parametrized in place; biases and all other parameters
    stay trainable as they are. The result is the same on every machine. Tied weights stay tied. The
    `padding_idx` of an embedding has values from the seed like all others, so exclude such a weight
    if it has to be zero.

    Args:
        model: any module whose weights are not parametrized, pruned or lazy.
        strategy: `OneLayer()`, `MaxLayerPadding()`, `RandomPadding(…)` or `Independent()`.
        keep: share of the weights that a mask uses, in (0, 1], or a `KeepSchedule`; one for all,
            or by pattern of the weight's name, such as {"head.*": 0.8, "*": 0.5}. Of layers that
            are ranked together only the total follows from it; `Threshold` and `Stochastic` begin
            with it.
        seed: 64-bit key of the frozen values, and of the scores to begin with.
        distribution: "normal" (kaiming normal), "signed-constant" (± its standard deviation) or
            "uniform" (kaiming uniform).
        rescale: give each layer the scale of its own fan-in also where a larger layer's values are
            shared (MP, RP).
        selection: how scores become a mask; None is `TopK()`, a layer's largest |score|.
        include: patterns (`fnmatch`) of the only weights to mask, such as "blocks.*".
        exclude: patterns of weights to leave alone.

    Returns:
        `model`.

    Raises:
        ValueError: an argument out of range, a pattern that fits no weight, nothing to mask, or a
            weight that cannot be masked. The model is left as it was.
    """
    selection = TopK() if selection is None else selection
    _check_kinds(model, strategy, selection)
    initialization = Initialization(distribution, seed, rescale)
    places = _places(model, include, exclude)
    keeps = keep_by_name(keep, [place.names for place in places])
    if isinstance(selection, TopK):
        if selection.scope == "global" and any(_masked_weights(model)):
            raise ValueError("a global selection needs the whole model: some of it is masked")
    elif any(isinstance(own, KeepSchedule) for own in keeps):
        raise ValueError(f"{selection} keeps what training makes of it: it takes no KeepSchedule")
    fills = strategy.fills([tuple(place.weight.shape) for place in places], initialization)
    is_global = isinstance(selection, TopK) and selection.scope == "global"
    together = sum(place.weight.numel() for place in places) if is_global else 0
    sources: dict[Seeded, Prototype] = {}
    for index, (place, fill, own_keep) in enumerate(zip(places, fills, keeps, strict=True)):
        weight = place.weight.requires_grad_(False)
        if fill.prototype not in sources:
            sources = {fill.prototype: held(fill.prototype)}
        _fill_weight(weight, sources[fill.prototype], fill.scale)
        recipe = Recipe(fill, selection, own_keep, together=together)
        masked = MaskedWeight(weight, recipe, index)
        for module, attribute in place.holders:
            masked.train(module.training)
            parametrize.register_parametrization(module, attribute, masked, unsafe=True)
            allow_pickling(module)
    if is_global:
        model.register_forward_pre_hook(_count_globally)
        _count_globally(model, None)
    return model


def masked_state(model: nn.Module) -> MaskedState:
    """Frozen weights, masks and trained tensors of a masked model, under a plain model's names.

    Raises:
        EncodeError: NaN scores, or a part of a model whose layers are ranked together.
    """
    return read_parametrized(unwrapped(model).state_dict(keep_vars=True))


@torch.no_grad()
def bake(model: M) -> M:
    """Turn a masked model into a plain one in place: effective weights, no scores.

    The weights are +0.0 where masked out and need no gradient.

    Returns:
        `model`.

    Raises:
        ValueError: a layer has parametrizations besides its masks.
        EncodeError: NaN scores, or a part of a model whose layers are ranked together.
    """
    effective = read_parametrized(model.state_dict(keep_vars=True)).effective()

    def weight(name: str, like: Tensor) -> nn.Parameter:
        return nn.Parameter(torch.empty_like(like).copy_(effective[name]), requires_grad=False)

    return drop_masks(model, weight)


def drop_masks(model: M, weight: Callable[[str, Tensor], nn.Parameter]) -> M:
    """Turn a masked model into a plain one in place, whose weights a function gives.

    Args:
        model: of `mask_model`.
        weight: a frozen weight's plain name and its values to the parameter that takes its place.

    Returns:
        `model`.

    Raises:
        ValueError: a layer has parametrizations besides its masks.
    """
    plain: dict[nn.Module, nn.Parameter] = {}
    for module_name, module in list(_masked_modules(model)):
        weights: dict[str, nn.Parameter | None] = {}
        for attribute, parametrizations in module.parametrizations.items():  # type: ignore[operator, union-attr]
            masked, *others = parametrizations
            if others or not isinstance(masked, MaskedWeight):
                raise ValueError(f"{module_name} has parametrizations besides its masks")
            if masked not in plain:
                name = f"{module_name}.{attribute}".lstrip(".")
                plain[masked] = weight(name, parametrizations.original)
            weights[attribute] = plain[masked]
        # Not by remove_parametrizations, which changes a class that copies of the module share.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module._modules["parametrizations"]
        # Layers register their weights first.
        rest = dict(module._parameters)
        module._parameters.clear()
        module._parameters.update(weights | rest)
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is _count_globally:
                del module._forward_pre_hooks[key]
    return model


def advance_keep(model: nn.Module) -> None:
    """One training step is done: every `KeepSchedule` of the model moves on."""
    for masked in _masked_weights(model):
        masked.advance()


def parameter_groups(
    model: nn.Module, *, weight_decay: float, scores_weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups for an optimizer: the scores, and all other parameters that are trained.

    Args:
        model: a masked model.
        weight_decay: of the parameters that are not scores.
        scores_weight_decay: of the scores; the official PEMN recipe decays them like all others.
    """
    scores = [masked.scores for masked in _masked_weights(model)]
    known = {id(parameter) for parameter in scores}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    return [
        {"params": scores, "weight_decay": scores_weight_decay},
        {"params": others, "weight_decay": weight_decay},
    ]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of `DataParallel`, `DistributedDataParallel`, `AveragedModel`, `compile`."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


# ---------------------------------------------------------------------------------- inside


def _check_kinds(model: nn.Module, strategy: Strategy, selection: Selection) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model is a module, not a {type(model).__name__}")
    if unwrapped(model) is not model:
        raise ValueError("mask the model before it is compiled or wrapped for several devices")
    if isinstance(strategy, type) or not hasattr(strategy, "fills"):
        raise ValueError(
            "the strategy is OneLayer(), MaxLayerPadding(), RandomPadding(…) or Independent(), "
            f"not {strategy!r:.60}"
        )
    if not isinstance(selection, Selection):
        raise ValueError(
            f"the selection is TopK(…), Threshold(…) or Stochastic(), not {selection!r:.60}"
        )


def _places(model: nn.Module, include: Patterns | None, exclude: Patterns | None) -> list[_Place]:
    candidates: dict[int, _Place] = {}
    for module_name, module in model.named_modules():
        for attribute in _attributes(module):
            weight = getattr(module, attribute)
            name = f"{module_name}.{attribute}".lstrip(".")
            place = candidates.setdefault(id(weight), _Place([], weight, []))
            place.names.append(name)
            place.holders.append((module, attribute))
    if not candidates:
        raise ValueError("the model has no weights to mask")
    names = [name for place in candidates.values() for name in place.names]
    wanted = set(names) if include is None else _matching(names, include, "include")
    refused = set() if exclude is None else _matching(names, exclude, "exclude")
    places = [
        place
        for place in candidates.values()
        if wanted.intersection(place.names) and not refused.intersection(place.names)
    ]
    if not places:
        raise ValueError("include and exclude leave no weights to mask")
    for place in places:
        _check_place(place)
    return places


def _attributes(module: nn.Module) -> list[str]:
    if isinstance(module, _MASKABLE):
        return ["weight"]
    if isinstance(module, nn.MultiheadAttention):
        return [a for a in _IN_PROJECTIONS if getattr(module, a, None) is not None]
    return []


def _matching(names: Sequence[str], patterns: Patterns, option: str) -> set[str]:
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            raise ValueError(f"{option}: no weight is called {pattern}; there are {_some(names)}")
        found |= fitting
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _check_place(place: _Place) -> None:
    for module, attribute in place.holders:
        if parametrize.is_parametrized(module, attribute):
            raise ValueError(f"{place.name} is parametrized already")
        if not isinstance(module._parameters.get(attribute), nn.Parameter):
            raise ValueError(f"{place.name} is no parameter of its layer (pruned?)")
        if isinstance(module, nn.Embedding) and (module.sparse or module.max_norm is not None):
            raise ValueError(f"{place.name}: cannot mask a sparse or norm-limited embedding")
    if nn.parameter.is_lazy(place.weight) or place.weight.is_meta:
        raise ValueError(f"{place.name} has no values yet: run the model once, or move it")
    if str(place.weight.dtype).removeprefix("torch.") not in WEIGHT_DTYPES:
        raise ValueError(f"{place.name}: cannot mask weights of {place.weight.dtype}")
    if not place.weight.numel():
        raise ValueError(f"{place.name} is empty: exclude it")


@torch.no_grad()
def _fill_weight(weight: Tensor, source: Prototype, scale: float) -> None:
    """All values of a weight, made on the CPU."""
    values = tensor_values(source, Fill(0, scale=scale), "float32", weight.numel())
    filled = np.empty(weight.numel(), np.float32)
    all_used = np.full(-(-weight.numel() // 8), 0xFF, np.uint8)
    values.fill_masked(0, all_used, filled)
    weight.copy_(torch.from_numpy(filled).view(weight.shape))


def _masked_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module) and _masked_weights(module.parametrizations):
            yield name, module


def _masked_weights(model: nn.Module) -> list[MaskedWeight]:
    return [module for module in model.modules() if isinstance(module, MaskedWeight)]


def _global_weights(model: nn.Module) -> list[MaskedWeight]:
    return [masked for masked in _masked_weights(model) if masked.recipe.is_global]


# Not compiled, since the numbers of a schedule would be in the code, anew in each step. What the
# public torch.compiler.disable does, without importing torch.compile before it is called: that
# takes a second and 70 MiB, and encoding has no need of it.
@_disable_dynamo
@torch.no_grad()
def _count_globally(model: nn.Module, _: Any) -> None:
    """Forward hook: how many weights of each layer the ranking of all layers keeps."""
    layers = _global_weights(model)
    ranked = [masked.recipe.selection.ranked(masked.scores.detach()) for masked in layers]
    counts = kept_in_each(ranked, [masked.recipe.ratio for masked in layers])
    for masked, count in zip(layers, counts, strict=True):
        masked.kept.copy_(count)
