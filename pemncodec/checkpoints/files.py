"""One checkpoint file → a state dict."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pemncodec.checkpoints.inert import Inert, full_name, load_inert
from pemncodec.checkpoints.kinds import (
    WHAT_TO_DO,
    is_cut_safetensors,
    is_seek_of_damaged,
    kind_of,
    kind_of_checkpoint,
)
from pemncodec.checkpoints.recorded import Recorded, dictionary_of_masks, recorded_in
from pemncodec.errors import EncodeError, first_line, named_line
from pemncodec.format.opening import open_while_read
from pemncodec.format.reader import PemnFile
from pemncodec.limits import Limits
from pemncodec.masking.masked_state import StateDict

NESTED = ("state_dict", "model_state_dict", "model", "net")


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What a file holds.

    Attributes:
        source: the module, the state dict, or the open file.
        recorded: what it says of masks beside that.
    """

    source: nn.Module | StateDict | PemnFile
    recorded: Recorded = field(default_factory=Recorded)


def load_checkpoint(
    path: Path, *, trust_pickle: bool = False, name: str | None = None
) -> nn.Module | StateDict | PemnFile:
    """The content of a file, see `read_file`."""
    return read_file(path, trust_pickle=trust_pickle, name=name).source


def read_file(path: Path, *, trust_pickle: bool = False, name: str | None = None) -> Checkpoint:
    """A `.safetensors`, `.npz` or `.pemn` file, or what `torch.save` wrote; known by its content.

    Objects beside the state dict are passed over, and no code of theirs is run.

    Args:
        path: the file.
        trust_pickle: also load a pickled module, which runs code from the file.
        name: what messages call the file, in place of its path.

    Raises:
        EncodeError: not a checkpoint, or one that only `trust_pickle` would load.
        DecodeError: a damaged `.pemn` file.
    """
    name = str(path) if name is None else name
    kind = kind_of_checkpoint(path, name)
    if kind in ("pemn", "pemn-index"):
        return Checkpoint(PemnFile(open_while_read(path, Limits())))
    if kind == "index":
        raise EncodeError(f"{name}: cannot load this: JSON where tensors are expected")
    if kind == "safetensors" or (kind == "unknown" and path.suffix == ".safetensors"):
        return Checkpoint(_load_safetensors(path, name))
    if kind == "npz":
        return Checkpoint(_load_arrays(path, name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protocols that it then refuses, or reads well
        loaded = _load_pickle(path, name, trust_pickle=trust_pickle)
    place, recorded = "", Recorded()
    for key in NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict | nn.Module | Inert):
            recorded = recorded_in(loaded, key)
            loaded, place = loaded[key], f" under {key!r}"
            break
    if isinstance(loaded, nn.Module):
        return Checkpoint(loaded, recorded)
    if isinstance(loaded, Inert):
        raise EncodeError(
            f"{name}: cannot load this: it holds more than tensors, "
            f"{full_name(type(loaded))}{place}; --trust-pickle loads it by running code from it"
        )
    return Checkpoint(check_state_dict(loaded, name), recorded)


def load_masks_file(path: Path) -> StateDict:
    """Masks by name: a file as `read_file` takes it, or a dictionary in such a file.

    Raises:
        EncodeError: anything else.
    """
    if kind_of(path) in ("pemn", "pemn-index"):
        file = PemnFile(open_while_read(path, Limits()))
        return {name: torch.from_numpy(file.mask(name)) for name in file.masked_keys()}
    if kind_of(path) != "pickle":
        return check_state_dict(load_checkpoint(path), str(path))
    loaded = _load_pickle(path, str(path), trust_pickle=False)
    return check_state_dict(dictionary_of_masks(loaded), str(path))


def _load_safetensors(path: Path, name: str) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        if is_cut_safetensors(path):
            cause = "cannot load this: a safetensors file that is cut off, get it once more"
            raise EncodeError(f"{name}: {cause}") from None
        raise EncodeError(f"{name}: not a safetensors file ({error})") from None


def _load_arrays(path: Path, name: str) -> StateDict:
    state = {}
    try:
        opened = np.load(path, allow_pickle=False)
    except ValueError:  # its first bytes are others
        raise EncodeError(f"{name}: cannot load this: {WHAT_TO_DO['zip']}") from None
    with opened as arrays:
        for key in arrays.files:
            try:
                state[key] = torch.from_numpy(arrays[key])
            except Exception as error:  # of many classes, where it is damaged
                if isinstance(error, OSError | MemoryError) and not is_seek_of_damaged(error):
                    raise
                raise EncodeError(f"{name}: entry {key!r:.80}: {first_line(error):.120}") from None
    return check_state_dict(state, name)


def _load_pickle(path: Path, name: str, *, trust_pickle: bool) -> Any:
    try:
        with path.open("rb") as stream:
            # Mapped, so that values are read where they are needed. Torch maps only archives, and
            # takes the suffix of a path for its content.
            mapped = zipfile.is_zipfile(stream) and path.suffix != ".safetensors"
            stream.seek(0)
            load = partial(
                torch.load, str(path) if mapped else stream, map_location="cpu", mmap=mapped
            )
            if trust_pickle:
                return load(weights_only=False)
            try:
                return load(weights_only=True)
            except pickle.UnpicklingError:
                return load_inert(path)
    except OSError as error:
        cause = "it is damaged or cut off" if is_seek_of_damaged(error) else named_line(error)
        raise EncodeError(f"{name}: cannot load this: {cause}") from None
    except Exception as error:
        cause = named_line(error)[:200]
        if not trust_pickle:
            cause = _cause(path)
        raise EncodeError(f"{name}: cannot load this: {cause}") from None


def _cause(path: Path) -> str:
    """Why a file cannot be loaded without running code from it."""
    if kind_of(path) != "pickle":
        return "neither a checkpoint of torch.save nor a safetensors file"
    try:
        load_inert(path)
    except Exception as error:
        return (
            f"it holds more than tensors ({_said(error):.200}); --trust-pickle loads it by running "
            "code from it"
        )
    raise AssertionError("it was refused before")


def _said(error: Exception) -> str:
    """What torch.load says between a paragraph on its options and a link."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    marks = [at for at, line in enumerate(lines) if "WeightsUnpickler error:" in line]
    if marks:
        behind = " ".join(lines[marks[0] : marks[0] + 2])
        return behind.partition("WeightsUnpickler error:")[2].strip()
    return next((line for line in lines if not line.startswith("Weights only")), str(error))


def check_state_dict(value: Any, what: str) -> StateDict:
    """A plain dict of named tensors.

    Raises:
        EncodeError: anything else.
    """
    if not isinstance(value, Mapping):
        raise EncodeError(f"{what}: expected a state dict, found {full_name(type(value))}")
    if not value:
        raise EncodeError(f"{what}: the state dict is empty")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise EncodeError(
                f"{what}: entry {name!r:.80} is {full_name(type(tensor))}, expected a tensor; a "
                f"state dict may be at the top or under one of {', '.join(NESTED)}"
            )
    return dict(value)
