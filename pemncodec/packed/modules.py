"""Modules whose weights are packed: their state dict, what they print, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pemncodec.packed.recipe import parse_recipe
from pemncodec.packed.weight import PackedWeight

_BITS, _PROTOTYPE, _RECIPE = ".bits", ".prototype", ".recipe"

Module = TypeVar("Module", bound=nn.Module)


def unpack(module: Module) -> Module:
    """Make every packed weight of a module dense, in place; the module that `decode` gives.

    Args:
        module: from `decode` with `packed=True`, or one that has such modules in it.

    Returns:
        The module itself.

    Raises:
        TypeError: it is no module, such as the name of a file.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"unpack takes a module that decode made, not {module!r:.60}")
    dense: dict[int, nn.Parameter] = {}
    for owner, name, weight in list(packed_weights(module)):
        if id(weight) not in dense:
            dense[id(weight)] = _dense(weight)
        # By assignment, since recurrent layers keep a list of their weights.
        setattr(owner, name, dense[id(weight)])
    for owner in module.modules():
        _forget(owner)
    return module


def unpacked_copy(module: Module) -> Module:
    """A copy with dense weights; the module itself if it has no others."""
    memo: dict[int, Any] = {id(weight): _dense(weight) for _, _, weight in packed_weights(module)}
    return unpack(copy.deepcopy(module, memo)) if memo else module


def packed_weights(module: nn.Module) -> Iterator[tuple[nn.Module, str, PackedWeight]]:
    """Every packed parameter: the module that has it, its name there, and itself."""
    for owner in module.modules():
        for name, weight in _own_weights(owner).items():
            yield owner, name, weight


def _own_weights(owner: nn.Module) -> dict[str, PackedWeight]:
    own: Mapping[str, Any] = owner._parameters
    return {name: tensor for name, tensor in own.items() if isinstance(tensor, PackedWeight)}


def install_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], masked: Collection[str]
) -> None:
    """Give a module its packed weights, and let it save, load and print them.

    Args:
        module: has parameters under all names.
        tensors: by name; those that are no packed weights are not touched.
        masked: names of tensors that were masked, packed or not.
    """
    made: dict[int, nn.Parameter] = {}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if isinstance(tensor, PackedWeight):
            if leaf not in _own_weights(owner):
                made.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=False))
                setattr(owner, leaf, made[id(tensor)])
        elif name in masked:
            why = (
                "hardly smaller packed"
                if leaf in owner._parameters
                else "only parameters are packed"
            )
            _add_note(owner, f"{leaf}: {why}")
    for owner in {id(owner): owner for owner, _, _ in packed_weights(module)}.values():
        owner._register_state_dict_hook(_flatten_entries)  # type: ignore[no-untyped-call]
        owner._register_load_state_dict_pre_hook(_join_entries, with_module=True)  # type: ignore[no-untyped-call]
        _add_note(owner)


def _dense(weight: PackedWeight) -> nn.Parameter:
    return nn.Parameter(weight.dense().clone(), requires_grad=False)


def _forget(owner: nn.Module) -> None:
    """Take away what `install_weights` gave a module."""
    for key, hook in list(owner._state_dict_hooks.items()):
        if hook is _flatten_entries:
            del owner._state_dict_hooks[key]
    for key, wrapped in list(owner._load_state_dict_pre_hooks.items()):
        if getattr(wrapped, "hook", None) is _join_entries:
            del owner._load_state_dict_pre_hooks[key]
    if isinstance(owner.__dict__.get("extra_repr"), partial):
        del owner.__dict__["extra_repr"]


# ------------------------------------------------------------------------------ state dict


def _flatten_entries(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Plain tensors in place of packed weights, unless it is these that were asked for."""
    for name, parameter in _own_weights(module).items():
        weight = state.get(prefix + name)
        if isinstance(weight, PackedWeight) and weight is not parameter:
            del state[prefix + name]
            state[prefix + name + _BITS] = weight.bits
            if weight.prototype is not None:
                state[prefix + name + _PROTOTYPE] = weight.prototype
            text = bytearray(weight.recipe.text.encode())
            state[prefix + name + _RECIPE] = torch.frombuffer(text, dtype=torch.uint8)


def _join_entries(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    _metadata: Any,
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    """Packed weights in place of what `_flatten_entries` made of them."""
    for name, parameter in _own_weights(module).items():
        entry = prefix + name
        given = state.get(entry)
        if given is not None and not isinstance(given, PackedWeight):
            errors.append(
                f"{entry} is dense in the state and packed in the module: unpack the module first "
                "(pemncodec.unpack)"
            )
            del state[entry]
        if entry + _BITS not in state or entry + _RECIPE not in state:
            continue  # PyTorch then says what is missing, and which parts it did not expect
        bits, text = state.pop(entry + _BITS), state.pop(entry + _RECIPE)
        prototype = state.pop(entry + _PROTOTYPE, None)
        try:
            recipe = parse_recipe(bytes(text.tolist()).decode("utf-8", "replace"))
            if recipe != parameter.recipe or any(
                (own is None) != (other is None)
                or (own is not None and (own.shape, own.dtype) != (other.shape, other.dtype))
                for own, other in (
                    (parameter.bits, bits),
                    (parameter.prototype, prototype),
                )
            ):
                raise ValueError("has another seed, scale, offset or shape")
        except ValueError as error:
            errors.append(f"{entry}: {error}: decode the file that the state is of")
            continue
        state[entry] = PackedWeight(bits, prototype, recipe, parameter.dtype, parameter.shared)


# ---------------------------------------------------------------------------------- shown


def _add_note(owner: nn.Module, *dense: str) -> None:
    shown = owner.__dict__.get("extra_repr")
    dense = (*(shown.args[1:] if isinstance(shown, partial) else ()), *dense)
    # As an attribute, since the class is PyTorch's.
    owner.extra_repr = partial(_extra_repr, owner, *dense)  # type: ignore[method-assign]


def _extra_repr(owner: nn.Module, *dense: str) -> str:
    parts = [type(owner).extra_repr(owner)]
    for name, weight in _own_weights(owner).items():
        parts.append(f"packed {name}: {weight.source_in_words}")
    parts += [f"dense {reason}" for reason in dense]
    return ", ".join(filter(None, parts))
