"""Checkpoint files → state dicts."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pemncodec.errors import EncodeError, named_line
from pemncodec.masking.masked_state import StateDict

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
            cause = named_line(error)[:200]
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
