"""Which files a checkpoint consists of: what an index of shards names, or what a folder holds.

Works without torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pemncodec.checkpoints.kinds import DISTRIBUTED, INDICES, kind_of, kind_of_checkpoint
from pemncodec.errors import EncodeError
from pemncodec.format.index import whole_of_shard

_INDEX: Final = ".index.json"
_KNOWN: Final = (
    DISTRIBUTED,
    "model.safetensors",
    f"model.safetensors{_INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{_INDEX}",
)
_SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin", ".npz", ".pemn", _INDEX)
# What transformers' Trainer keeps beside a model: optimizer and scheduler, random state, options.
_BESIDE: Final = re.compile(r"(optimizer|scheduler|scaler|rng_state.*|training_args)\.(pt|pth|bin)")
_PIECES: Final = re.compile(r"shard-[0-9]{5,}-model-[0-9]{5,}-of-[0-9]{5,}\.safetensors")
_NUMBERED: Final = re.compile(r"(.+)-([0-9]{5,9})-of-([0-9]{5,9})(\.(?!pemn)[a-z]+)", re.DOTALL)
_SHOWN: Final = 6


def files_of(path: Path, name: str) -> list[Path]:
    """The files that a path stands for: itself, or those that a folder has of one checkpoint.

    Args:
        path: a file or a folder.
        name: what messages call it.

    Raises:
        EncodeError: a folder with no checkpoint, or with several.
    """
    if not path.is_dir():
        return [path]
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    found = [known for known in _KNOWN if known in names]
    names = [name for name in names if not name.startswith(".")]
    pieces = [name for name in names if _PIECES.fullmatch(name)]
    if not found:
        found = [
            name
            for name in names
            if name.endswith(_SUFFIXES)
            and not _BESIDE.fullmatch(name)
            and whole_of_shard(name) is None
        ]
        if not found and pieces:
            return [path / piece for piece in pieces]
    if len(found) == 1:
        return [path / found[0]]
    if found:
        raise EncodeError(f"{name}: a folder with several checkpoints: name {_listed(found)} in it")
    shards = [name for name in names if whole_of_shard(name) is not None]
    if shards:
        raise EncodeError(
            f"{name}: a folder with shards ({_listed(shards)}) and no index: name all of them"
        )
    raise EncodeError(f"{name}: a folder without a checkpoint: name a file, or another folder")


def shards_of(index: Path, name: str) -> dict[Path, list[str]]:
    """The shards that an index names, each with the names of its tensors.

    Args:
        index: a `….index.json` as transformers and torch.distributed write it.
        name: what messages call it.

    Raises:
        EncodeError: not an index, or shards that are missing.
        OSError: it cannot be read.
    """
    shards = listed_shards(index, name)
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise EncodeError(f"{name}: {missing_files(missing, len(shards), 'shards')}")
    return shards


def listed_shards(index: Path, name: str) -> dict[Path, list[str]]:
    """What `shards_of` gives, whether the shards are there or not."""
    shards: dict[str, list[str]] = {}
    for tensor, shard in _weight_map(index.read_bytes(), name).items():
        if not isinstance(shard, str) or not is_base_name(shard):
            raise EncodeError(
                f"{name}: {tensor} is in {shard!r:.80}, which is not the name of a file beside it"
            )
        shards.setdefault(shard, []).append(tensor)
    return {index.parent / shard: shards[shard] for shard in sorted(shards)}


def _weight_map(data: bytes, name: str) -> dict[str, Any]:
    try:
        index = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EncodeError(f"{name}: not an index of shards ({error})") from None
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names:
        raise EncodeError(f"{name}: not an index of shards: it has no weight_map")
    return names


def check_all_named(paths: Sequence[str]) -> None:
    """Refuses files whose names say that they are some of several: all of these must be named.

    Shards that are .pemn files are whole models, too.

    Raises:
        EncodeError: says which is not named.
    """
    numbers: dict[tuple[str, str, str], set[int]] = {}
    for path in paths:
        match = _NUMBERED.fullmatch(path)
        if match:
            stem, number, count, suffix = match.groups()
            numbers.setdefault((stem, count, suffix), set()).add(int(number))
    for (stem, count, suffix), named in numbers.items():
        if len(named) < int(count):
            first = next(number for number in range(1, len(named) + 2) if number not in named)
            raise EncodeError(
                f"{stem}-{first:05}-of-{count}{suffix} is not named, one of {int(count):,} files: "
                "name all of them, their folder, or their index"
            )


def missing_files(names: Sequence[str], count: int, what: str) -> str:
    """Says which of `count` files are missing; the names of many are left out."""
    verb = "is" if len(names) == 1 else "are"
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    shown = ", ".join(names[:_SHOWN])
    return f"{len(names):,} of {count:,} {what} {verb} missing: {shown}{more}"


def is_base_name(name: str) -> bool:
    """Whether a name can only be that of a file in the same folder.

    Shards of .pemn files have stricter names, as `is_file_name` of pemncodec.format.columns has it.
    """
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def transformers_class(path: Path) -> str | None:
    """The class that config.json names, of a checkpoint as transformers leaves it.

    Raises:
        EncodeError: as `files_of`.
        OSError: it cannot be read.
    """
    file = files_of(path, str(path))[0]
    if file.name not in _KNOWN:
        return None
    try:
        (name,) = json.loads((file.parent / "config.json").read_bytes())["architectures"]
    except (FileNotFoundError, KeyError, RecursionError, TypeError, ValueError):
        return None
    return name if isinstance(name, str) and name.isidentifier() else None


def stored_bytes(path: Path, name: str) -> int:
    """The size of all files that a path stands for; raises as `files_of` and `shards_of`."""
    files = files_of(path, name)
    for file in list(files):
        if file.name == DISTRIBUTED:
            files += file.parent.glob("*.distcp")
        elif kind_of(file) in INDICES:
            files += shards_of(file, name)
    return sum(file.stat().st_size for file in files)


def check_files(path: Path, name: str) -> None:
    """Refuses what is no checkpoint, and one of which files are missing.

    Raises:
        OSError: it cannot be read.
        EncodeError: says what to do.
    """
    for file in files_of(path, name):
        shown = name if file == path else str(file)
        if kind_of_checkpoint(file, shown) in INDICES:
            for shard in shards_of(file, shown):
                kind_of_checkpoint(shard, str(shard))


def _listed(names: list[str]) -> str:
    shown = names[:_SHOWN]
    return " or ".join(shown) + f" or {len(names) - len(shown)} more" * (len(names) > len(shown))
