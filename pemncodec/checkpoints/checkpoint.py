"""Checkpoint files → state dicts, and the masks that each dialect keeps beside its weights.

Dialects:

* official PEMN: `X.weight` frozen, `X.scores` learned; the mask is the top share `keep` by |score|.
* `torch.nn.utils.prune`: `X_orig` and `X_mask` in place of `X`.
* `pemncodec.masking`: `X.parametrizations.weight.…`, which says itself how its masks are made.
* explicit masks, by name of the parameter.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pemncodec.contents import WEIGHT_DTYPES
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.masking.masked_state import Mask, MaskedState, StateDict, read_masked_weights
from pemncodec.tensors import dtype_name

PARALLEL_PREFIX = "module."
_COMPILED_PREFIX = "_orig_mod."
_NESTED = ("state_dict", "model_state_dict", "model", "net")


def load_checkpoint(path: Path, *, trust_pickle: bool = False) -> nn.Module | StateDict:
    """A `.safetensors` file, or what `torch.save` wrote.

    Args:
        path: the file.
        trust_pickle: also load a pickled module, which runs code from the file.

    Raises:
        EncodeError: not a checkpoint, or one that only `trust_pickle` would load.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise EncodeError(f"{path}: not a safetensors file ({error})") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except OSError:
        raise
    except Exception as error:
        cause = "neither a checkpoint of torch.save nor a safetensors file"
        if not path.stat().st_size:
            cause = "the file is empty"
        elif _is_pickle(path):
            cause = "it holds more than tensors; --trust-pickle loads it by running code from it"
        if trust_pickle:
            cause = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise EncodeError(f"{path}: cannot load this: {cause}") from None
    if isinstance(loaded, nn.Module):
        return loaded
    for key in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    return check_state_dict(loaded, str(path))


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(1) == b"\x80" or zipfile.is_zipfile(stream)


def check_state_dict(value: Any, what: str) -> StateDict:
    """A plain dict of named tensors.

    Raises:
        EncodeError: anything else.
    """
    if not isinstance(value, Mapping):
        raise EncodeError(f"{what}: expected a state dict, found {type(value).__name__}")
    if not value:
        raise EncodeError(f"{what}: the state dict is empty")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise EncodeError(
                f"{what}: entry {name!r:.80} is {type(tensor).__name__}, expected a tensor; a "
                f"state dict may be at the top or under one of {', '.join(_NESTED)}"
            )
    return dict(value)


def read_masks(
    state: Mapping[str, Tensor],
    *,
    keep: float | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> MaskedState:
    """Weights and masks of a state dict in any of the dialects.

    Args:
        state: names as in `state_dict`.
        keep: share of the weights of a layer that its scores keep; needed when there are scores.
        masks: more masks, bool (or 0 and 1) [*shape], by name of the weight.

    Raises:
        EncodeArgumentError: `keep` is missing, needless or outside (0, 1].
        EncodeError: scores or masks that do not fit, NaN scores.
    """
    if keep is not None and not (isinstance(keep, int | float) and 0 < keep <= 1):
        raise EncodeArgumentError(f"keep must be above 0 and at most 1, not {keep!r}")
    state = check_state_dict(state, "state dict")
    parametrized = read_masked_weights(state)
    found: dict[str, Mask] = dict(parametrized.masks)
    tensors: StateDict = {}
    scored = False
    for name, tensor in parametrized.tensors.items():
        if is_scores(name):
            scored = True
            weight = name.removesuffix("scores") + "weight"
            if weight not in state:
                raise EncodeError(f"{name}: there is no {weight} for these scores")
            if keep is None:
                raise EncodeArgumentError(
                    "the checkpoint holds scores but not the keep ratio: give --keep (keep=…), "
                    "such as 0.5"
                )
            _check_shape(name, tensor, weight, state[weight])
            found[weight] = mask_from_scores(tensor, keep, name)
        elif name.endswith("_orig"):
            weight = name.removesuffix("_orig")
            if f"{weight}_mask" not in state:
                raise EncodeError(f"{name}: there is no {weight}_mask")
            tensors[weight] = tensor
        elif name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in state:
            weight = name.removesuffix("_mask")
            _check_shape(name, tensor, f"{weight}_orig", state[f"{weight}_orig"])
            found[weight] = _binary_mask(tensor, name)
        else:
            tensors[name] = tensor
    if keep is not None and not scored:
        raise EncodeArgumentError(
            "keep is given, but the masks follow from the checkpoint itself: leave it out"
            if found
            else "keep is given, but there are no scores to apply it to"
        )
    tied = _tied_names(tensors)
    given: dict[str, Mask] = {}
    masks = masks or {}
    for name, values in masks.items():
        mask_tensor = torch.as_tensor(values)
        if name not in tensors:
            raise EncodeError(f"masks: there is no tensor {name}")
        _check_shape(f"masks: the mask of {name}", mask_tensor, name, tensors[name])
        mask = _binary_mask(mask_tensor, f"masks: {name}")
        for other in tied[name]:
            # A state dict does not tell one parameter from two views of the same values.
            if other not in masks and tensors[other] is not tensors[name]:
                raise EncodeArgumentError(
                    f"masks: {name} shares its memory with {other}: give both a mask, or clone one"
                )
            if other in masks and other != name and tensors[other] is not tensors[name]:
                continue
            if other in found or not np.array_equal(given.setdefault(other, mask), mask):
                raise EncodeError(f"masks: {other} has another mask already")
    found |= given
    for name in found:
        if dtype_name(tensors[name]) not in WEIGHT_DTYPES:
            raise EncodeError(f"{name}: cannot mask weights of {dtype_name(tensors[name])}")
    aliases = {}
    for name, names in tied.items():
        for target in names[: names.index(name)]:
            if _same_mask(found.get(name), found.get(target)):
                aliases[name] = target
                break
    return MaskedState(tensors, found, aliases, parametrized.fills)


def is_scores(name: str) -> bool:
    """Whether a tensor of that name holds the scores of the weight beside it."""
    return name == "scores" or name.endswith(".scores")


def mask_from_scores(scores: Tensor, keep: float, name: str) -> Mask:
    """The official rule: of n weights, the `int((1 - keep) * n)` with the least |score| go.

    Ties at the cut go by position, the earlier weight first (a stable ascending sort).

    Returns:
        bool [*scores.shape].
    """
    if not scores.is_floating_point():
        raise EncodeError(f"{name}: scores of dtype {dtype_name(scores)}, expected floats")
    magnitudes = scores.detach().abs().cpu().contiguous().reshape(-1)
    if magnitudes.isnan().any():
        raise EncodeError(f"{name}: the scores hold NaN")
    order = magnitudes.sort(stable=True).indices.numpy()
    mask = np.zeros(order.size, np.bool_)
    mask[order[int((1 - keep) * order.size) :]] = True
    return mask.reshape(scores.shape)


def _binary_mask(mask: Tensor, name: str) -> Mask:
    if mask.layout != torch.strided or mask.is_meta:
        raise EncodeError(f"{name}: expected a dense tensor")
    plain = mask.detach().cpu().contiguous()
    if plain.dtype != torch.bool:
        if not ((plain == 0) | (plain == 1)).all():
            raise EncodeError(f"{name}: a mask holds only 0 and 1")
        plain = plain == 1
    return plain.numpy()


def _check_shape(name: str, tensor: Tensor, weight: str, weights: Tensor) -> None:
    if tensor.shape != weights.shape:
        raise EncodeError(
            f"{name} has shape {tuple(tensor.shape)}, {weight} itself {tuple(weights.shape)}"
        )


def _tied_names(tensors: StateDict) -> dict[str, list[str]]:
    """For every name all names of the same memory, in order."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in tensors.items():
        key: tuple[Any, ...] = (name,)
        if tensor.layout == torch.strided and not tensor.is_meta and tensor.numel():
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
            key = (*place, tensor.dtype, tensor.is_conj(), tensor.is_neg())
        groups.setdefault(key, []).append(name)
    return {name: names for names in groups.values() for name in names}


def _same_mask(first: Mask | None, second: Mask | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


def drop_prefix(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what `nn.DataParallel` and `torch.compile` put in front of every name."""
    for prefix in (PARALLEL_PREFIX, _COMPILED_PREFIX):
        if named and all(name.startswith(prefix) for name in named):
            rest = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
            return drop_prefix(rest)
    return dict(named)
