"""A masked model or its architecture → a plain module that holds the effective weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune

from pemncodec.architecture.isolation import copied_values
from pemncodec.architecture.layer_modules import restore_order
from pemncodec.errors import EncodeError, UnsupportedModelError, first_line
from pemncodec.masking.masked_model import drop_masks
from pemncodec.masking.masked_state import MaskedState
from pemncodec.tensors import same_bits


def plain_module(source: Any, state: MaskedState, effective: Mapping[str, Tensor]) -> nn.Module:
    """A copy on the CPU, masks and pruning removed, that holds the effective weights.

    Args:
        source: a masked model, or its architecture.
        state: its weights and masks.
        effective: `state.effective()`; no memory of `state` becomes the copy's.

    Raises:
        EncodeError: tensors of `state` do not fit `source`.
        UnsupportedModelError: `source` cannot be copied, or ties tensors that differ.
    """
    for name, tensor in source.state_dict(keep_vars=True).items():
        if is_lazy(tensor):
            raise EncodeError(
                f"{name} of the architecture has no shape yet: run it on an input once"
            )
    try:
        # Pruning keeps its result as an attribute, which is no leaf once the module has run.
        memo = {**copied_values(source), **_without_values(source)}
        module: nn.Module = copy.deepcopy(source, memo).cpu()
    except Exception as error:
        raise UnsupportedModelError(f"the module cannot be copied: {first_line(error)}") from None
    drop_masks(module, lambda _, like: nn.Parameter(like.data, requires_grad=False))
    for child in list(module.modules()):
        _remove_pruning(child)
        restore_order(child)
    own = module.state_dict(keep_vars=True)
    for name in effective:
        if name not in own:
            raise EncodeError(f"the checkpoint has {name}, the architecture has not")
        shape = state.tensors[name].shape
        if own[name].shape != shape:
            raise EncodeError(
                f"{name} has shape {tuple(shape)} in the checkpoint, "
                f"{tuple(own[name].shape)} in the architecture"
            )
    for name in own:
        if name not in effective:
            raise EncodeError(f"the architecture has {name}, the checkpoint has not")
    first: dict[int, str] = {}
    for name, target in own.items():
        other = first.setdefault(id(target), name)
        if other != name and not same_bits(effective[name], effective[other]):
            raise UnsupportedModelError(
                f"{other} and {name} are one tensor in the architecture, but differ once masked; "
                "--no-manifest (manifest=False) stores them both"
            )
        # In C order, and frozen where masked, as a decoded module has it: kernels of other strides,
        # or for weights that want a gradient, may round differently.
        values = effective[name]
        is_given = values.data_ptr() == state.tensors[name].data_ptr()
        target.data = values.clone() if is_given else values
        if name in state.masks:
            target.requires_grad_(False)
    return module


def _without_values(source: Any) -> dict[int, nn.Parameter]:
    """A memo for `copy.deepcopy`: parameters of the state dict, which get other values anyway."""
    return {
        id(tensor): nn.Parameter(
            tensor.data.new_zeros(()).expand(tensor.shape), requires_grad=tensor.requires_grad
        )
        for tensor in source.state_dict(keep_vars=True).values()
        if type(tensor) is nn.Parameter
    }


def _remove_pruning(module: nn.Module) -> None:
    pruned = [
        name.removesuffix("_orig")
        for name, _ in module.named_parameters(recurse=False)
        if name.endswith("_orig") and f"{name.removesuffix('_orig')}_mask" in module._buffers
    ]
    for name in pruned:
        try:
            prune.remove(module, name)  # type: ignore[no-untyped-call]
        except ValueError:
            raise UnsupportedModelError(
                f"{name}_orig and {name}_mask are called as if torch.nn.utils.prune had made them: "
                "rename them"
            ) from None
    # Pruning has moved weights behind the bias; layers register them first.
    parameters = module._parameters
    first = [name for name in pruned if name in ("weight", "in_proj_weight")]
    if first:
        others = {name: parameters.pop(name) for name in list(parameters) if name not in first}
        parameters.update(others)


def in_module_order(state: MaskedState, module: nn.Module) -> MaskedState:
    """Names in the plain module's order, which pruning had changed; ties as the module has them."""
    first: dict[int, str] = {}
    aliases = {}
    names = list(module.state_dict())
    for name, tensor in module.state_dict(keep_vars=True).items():
        target = first.setdefault(id(tensor), name)
        if target != name:
            aliases[name] = target
    tensors = {name: state.tensors[name] for name in names}
    return replace(state, tensors=tensors, aliases=aliases)
