"""What a user names as a checkpoint: a file, a folder, an index of shards, or several of these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pemncodec.checkpoints.files import (
    NESTED,
    Checkpoint,
    check_state_dict,
    load_masks_file,
    read_file,
)
from pemncodec.checkpoints.folders import files_of, shards_of
from pemncodec.checkpoints.kinds import kind_of, kind_of_checkpoint
from pemncodec.checkpoints.pieces import Choose, Piece, joined, put_together
from pemncodec.checkpoints.recorded import Recorded
from pemncodec.checkpoints.torch_distributed import read_distributed
from pemncodec.errors import EncodeError
from pemncodec.masking.masked_state import StateDict

_OFFSETS = "DCP_SHARDING_INFO"  # in files of torch.distributed's HuggingFaceStorageWriter


def read_checkpoint(
    path: Path, *, trust_pickle: bool = False, name: str | None = None
) -> Checkpoint:
    """What a path stands for; tensors are in mapped files, and read where they are needed.

    Objects beside the state dict are passed over, and no code of theirs is run.

    Args:
        path: a file as `read_file` takes it; an index of such files; the `.metadata` of
            torch.distributed.checkpoint; a folder with one of these.
        trust_pickle: also load a pickled module, which runs code from the file.
        name: what messages call it, in place of the path.

    Raises:
        EncodeError: not a checkpoint, or one that only `trust_pickle` would load.
        DecodeError: a damaged `.pemn` file.
        OSError: a file cannot be read.
    """
    return join_checkpoints({str(path) if name is None else name: path}, trust_pickle=trust_pickle)


def join_checkpoints(
    paths: Mapping[str, Path], *, trust_pickle: bool = False, choose: Choose | None = None
) -> Checkpoint:
    """Parts of one checkpoint, each as `read_checkpoint` reads it; by what messages call them.

    Args:
        paths: the parts.
        trust_pickle: as there.
        choose: says which tensors of a state dict are wanted; None for all.

    Raises:
        EncodeError: as there; or parts that have tensors of the same name, or are no state dicts.
        OSError: a file cannot be read.
    """
    parts = {
        name if file == path else f"{name.rstrip('/')}/{file.name}": file
        for name, path in paths.items()
        for file in files_of(path, name)
    }
    if choose is not None and len(parts) == 1:
        ((name, file),) = parts.items()
        if kind_of_checkpoint(file, name) == "distributed":
            return Checkpoint(read_distributed(file, name, NESTED, choose))
    joined = _joined(
        {name: _read(file, name, trust_pickle=trust_pickle) for name, file in parts.items()}, parts
    )
    if choose is None or not isinstance(joined.source, dict):
        return joined
    chosen = set(choose({name: each.nbytes for name, each in joined.source.items()}, joined.source))
    tensors = {name: tensor for name, tensor in joined.source.items() if name in chosen}
    return replace(joined, source=tensors)


def load_masks(path: Path) -> StateDict:
    """Masks by name: a checkpoint as `read_checkpoint` takes it, or a dictionary in one file.

    Raises:
        EncodeError: anything else.
        OSError: a file cannot be read.
    """
    files = files_of(path, str(path))
    if len(files) == 1 and kind_of(files[0]) not in ("index", "distributed"):
        return load_masks_file(files[0])
    return check_state_dict(read_checkpoint(path).source, str(path))


def _read(path: Path, name: str, *, trust_pickle: bool) -> Checkpoint:
    kind = kind_of_checkpoint(path, name)
    if kind == "distributed":
        return Checkpoint(read_distributed(path, name, NESTED))
    if kind == "index":
        return _read_index(path, name)
    return read_file(path, trust_pickle=trust_pickle, name=name)


def _read_index(index: Path, name: str) -> Checkpoint:
    folder = name.removesuffix(index.name)
    parts: dict[str, Checkpoint] = {}
    paths: dict[str, Path] = {}
    listed: set[str] = set()
    for shard, tensors in shards_of(index, name).items():
        shown = folder + shard.name
        parts[shown], paths[shown] = read_file(shard, name=shown), shard
        lacking = set(tensors).difference(_state_of(parts[shown], shown))
        if lacking:
            raise EncodeError(
                f"{shown}: it lacks {_first(lacking)}, which {index.name} says are in it: is it a "
                "file of another checkpoint?"
            )
        listed.update(tensors)
    joined = _joined(parts, paths)
    extra = set(_state_of(joined, name)) - listed
    if extra:
        raise EncodeError(
            f"{name}: the shards also have {_first(extra)}, of which it says nothing: name the "
            "shards themselves to take all"
        )
    return joined


def _state_of(checkpoint: Checkpoint, name: str) -> StateDict:
    if not isinstance(checkpoint.source, dict):
        kind = type(checkpoint.source).__name__
        raise EncodeError(f"{name}: only state dicts can be parts of a checkpoint, not a {kind}")
    return checkpoint.source


def _first(names: set[str]) -> str:
    return min(names) + f" and {len(names) - 1:,} more tensors" * (len(names) > 1)


def _joined(parts: Mapping[str, Checkpoint], paths: Mapping[str, Path]) -> Checkpoint:
    if len(parts) == 1 and not isinstance(next(iter(parts.values())).source, dict):
        return next(iter(parts.values()))
    tensors: StateDict = {}
    part_of: dict[str, str] = {}
    pieces: dict[str, list[Piece]] = {}
    for part, checkpoint in parts.items():
        state = _state_of(checkpoint, part)
        offsets = _offsets(paths[part], part, state)
        for name, tensor in state.items():
            if name in part_of and not (name in offsets and name in pieces):
                raise EncodeError(f"{name} is in both {part_of[name]} and {part}")
            part_of[name] = part
            tensors[name] = tensor
            if name in offsets:
                piece = Piece(offsets[name], tuple(tensor.shape), tensor.detach)
                pieces.setdefault(name, []).append(piece)
    cuts = {
        name: joined(name, cut)
        for name, cut in pieces.items()
        if len(cut) > 1 or any(cut[0].offsets)
    }
    return Checkpoint({**tensors, **put_together(cuts)} if cuts else tensors, _recorded(parts))


def _offsets(path: Path, name: str, state: StateDict) -> dict[str, tuple[int, ...]]:
    """Where the tensors of a file begin in those that they are pieces of, if it says so."""
    if kind_of(path) != "safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        said = (file.metadata() or {}).get(_OFFSETS)
    if said is None:
        return {}
    try:
        offsets = {
            tensor: tuple(saved["saved_offsets"]) for tensor, saved in json.loads(said).items()
        }
        if not all(_begin(offsets[tensor], state[tensor]) for tensor in offsets if tensor in state):
            raise ValueError
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise EncodeError(f"{name}: its {_OFFSETS} is not what torch writes") from None
    return offsets


def _begin(offsets: tuple[Any, ...], tensor: Tensor) -> bool:
    """Whether a tensor can begin there in another one."""
    within = all(type(offset) is int and 0 <= offset < 1 << 48 for offset in offsets)
    return within and len(offsets) == tensor.dim()


def _recorded(parts: Mapping[str, Checkpoint]) -> Recorded:
    """What the parts of a checkpoint say of its masks."""
    recorded = [checkpoint.recorded for checkpoint in parts.values()]
    said = [one for one in recorded if (one.conv_type, one.prune_rate) != (None, None)]
    if len({(one.conv_type, one.rule, one.keep, one.prune_rate) for one in said}) > 1:
        raise EncodeError(f"{' and '.join(parts)} record different rules for their masks")
    masks: dict[str, Tensor] = {}
    for one in recorded:
        masks |= one.masks
    are = next((one.masks_are for one in recorded if one.masks), "")
    return replace(said[0] if said else Recorded(), masks=masks, masks_are=are)
