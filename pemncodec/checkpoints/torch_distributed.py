"""A folder of torch.distributed.checkpoint → a state dict.

`.metadata` is a pickle, of which no code is run. The values are streams of `torch.save` at places
of other files; each is loaded as tensors alone.
"""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pemncodec.checkpoints.folders import is_base_name, missing_files
from pemncodec.checkpoints.pieces import Choose, Cut, Piece, put_together
from pemncodec.checkpoints.plain_pickle import load_plain
from pemncodec.errors import EncodeError, named_line
from pemncodec.limits import Limits
from pemncodec.masking.masked_state import StateDict

_DEEPEST: Final = 64  # dictionaries in each other
_LONGEST: Final = 4096  # characters of a name, as in a file


def read_distributed(
    metadata: Path, name: str, nested: tuple[str, ...], choose: Choose | None = None
) -> StateDict:
    """The tensors of a model; objects of other kinds are passed over.

    Args:
        metadata: the file `.metadata`, beside those that hold the values.
        name: what messages call it.
        nested: keys under which a checkpoint may hold the model beside other things.
        choose: says which tensors are wanted; None for all.

    Raises:
        EncodeError: it is damaged, or files are missing.
        OSError: files cannot be read, or there is no room for a temporary one.
    """
    try:
        record = load_plain(metadata.read_bytes()).state
        sizes = {_key(key): value.state for key, value in record["state_dict_metadata"].items()}
        tensors = {key: state for key, state in sizes.items() if "chunks" in state}
        names = _names(list(tensors), record.get("planner_data"), nested)
        _check_distinct(names, name)
        places = _places(record["storage_data"], name)
        stored = _Stored(name, places, _file_sizes(metadata.parent, places, name), metadata.parent)
        cuts = {new: _cut(old, tensors[old], stored) for old, new in names.items()}
    except (EncodeError, OSError):
        raise
    except Exception as error:  # of many classes, where a pickle is damaged
        raise EncodeError(
            f"{name}: not the metadata of torch.distributed.checkpoint, or damaged "
            f"({named_line(error):.80})"
        ) from None
    if not cuts:
        raise EncodeError(f"{name}: the checkpoint has no tensors")
    stored.check_shares(names)
    if choose is not None:
        stored_bytes = stored.bytes()
        chosen = set(choose({new: stored_bytes.get(old, 0) for old, new in names.items()}, {}))
        cuts = {new: cut for new, cut in cuts.items() if new in chosen}
    return put_together(cuts)


def _key(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise TypeError("a name that is no text, or too long")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not -1 << 63 <= value < 1 << 63:
        raise TypeError("no number where one is expected")
    return value


def _numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > Limits().dimensions:
        raise TypeError(f"no sizes of at most {Limits().dimensions} dimensions")
    return tuple(map(_number, value))


def _way(value: Any) -> tuple[str | int, ...]:
    """The keys by which one gets to a tensor."""
    if not isinstance(value, tuple) or len(value) > _DEEPEST:
        raise TypeError("no keys of nested dictionaries")
    return tuple(_key(key) if isinstance(key, str) else _number(key) for key in value)


def _names(
    keys: list[str], paths: Mapping[str, tuple[Any, ...]] | None, nested: tuple[str, ...]
) -> dict[str, str]:
    """The names of a model's tensors by their keys in the checkpoint.

    A nested dictionary is stored flat, and `paths` says by which keys one gets to each tensor. All
    tensors are the model's unless such a key is one of `nested`.
    """
    if not isinstance(paths, Mapping):  # of a planner that does not flatten
        return {key: key for key in keys}
    ways = {key: _way(paths.get(key, (key,))) for key in keys}
    models = {
        way[: depth + 1]
        for way in ways.values()
        for depth, key in enumerate(way[:-1])
        if key in nested
    }
    least = min(map(len, models), default=0)
    models = {model for model in models if len(model) == least}
    if len({model[:-1] for model in models}) != 1:
        return {key: key for key in keys}
    model = min(models, key=lambda model: nested.index(str(model[-1])))
    return {
        key: ".".join(map(str, way[least:])) for key, way in ways.items() if way[:least] == model
    }


def _check_distinct(names: Mapping[str, str], checkpoint: str) -> None:
    key_of: dict[str, str] = {}
    for key, name in names.items():
        if name in key_of:
            raise EncodeError(
                f"{checkpoint}: {key_of[name]} and {key} are both the tensor {name} of the model"
            )
        key_of[name] = key


_Place = tuple[str, int, int]  # file, start, length
_Places = Mapping[tuple[str, tuple[int, ...]], _Place]


def _places(storage: Mapping[Any, Any], name: str) -> _Places:
    """Where pieces are stored, by the key of their tensor and their offsets."""
    places: dict[tuple[str, tuple[int, ...]], _Place] = {}
    for index, stored in storage.items():
        key, offsets, place = _key(index.state["fqn"]), index.state.get("offset"), stored.state
        if offsets is None:
            continue  # no tensor
        if place.get("transform_descriptors"):
            through = ", ".join(map(_key, place["transform_descriptors"][:4]))
            raise EncodeError(
                f"{name}: {key} is stored through {through!r:.80}: save the checkpoint once more "
                "without extensions"
            )
        file = _key(place["relative_path"])
        if not is_base_name(file):
            raise EncodeError(
                f"{name}: {key} is in {file!r:.80}, which is not the name of a file beside it"
            )
        start, length = _number(place["offset"]), _number(place["length"])
        places[key, _numbers(offsets)] = file, start, length
    return places


def _file_sizes(folder: Path, places: _Places, name: str) -> dict[str, int]:
    """The sizes of all files beside the metadata; raises EncodeError where some are missing."""
    files = sorted({file for file, _, _ in places.values()})
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise EncodeError(f"{name}: {missing_files(missing, len(files), 'files')}")
    return {file: (folder / file).stat().st_size for file in files}


@dataclass(frozen=True, slots=True)
class _Stored:
    """The files beside the metadata, and what is where in them."""

    name: str
    places: _Places
    file_sizes: Mapping[str, int]
    folder: Path

    def piece(self, key: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Piece:
        if (key, offsets) not in self.places:
            raise EncodeError(f"{self.name}: no file has the values of {key} from {offsets} on")
        file, start, length = self.places[key, offsets]
        # As much as one byte a value is in any file.
        if min((start, *sizes, *offsets)) < 0 or math.prod(sizes) > length:
            raise EncodeError(
                f"{self.name}: {key}: {length:,} bytes at {start:,} cannot hold {sizes}"
            )
        if start + length > self.file_sizes[file]:
            raise EncodeError(f"{self.name}: {key} in {file} is damaged (the file is cut off)")
        return Piece(offsets, sizes, partial(self._read, key, self.places[key, offsets]))

    def bytes(self) -> dict[str, int]:
        """What each tensor takes in all files, about."""
        total: dict[str, int] = {}
        for (key, _), (_, _, length) in self.places.items():
            total[key] = total.get(key, 0) + length
        return total

    def check_shares(self, keys: Collection[str]) -> None:
        """Raises EncodeError where tensors share bytes, and might be larger than all files."""
        taken: Counter[str] = Counter()
        for (key, _), (file, _, length) in self.places.items():
            taken[file] += length if key in keys else 0
        for file, length in taken.items():
            if length > self.file_sizes[file]:
                raise EncodeError(
                    f"{self.name}: tensors take {length:,} bytes of {file}, which has "
                    f"{self.file_sizes[file]:,}"
                )

    def _read(self, key: str, place: _Place) -> Tensor:
        file, start, length = place
        with (self.folder / file).open("rb") as stream:
            stream.seek(start)
            data = io.BytesIO(stream.read(length))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is refused, or read well
                value = torch.load(data, map_location="cpu", weights_only=True)
        except Exception as error:
            cause = named_line(error)[:120]
        else:
            if isinstance(value, Tensor):
                return value
            cause = f"a {type(value).__name__}"
        raise EncodeError(f"{self.name}: {key} in {file} is damaged ({cause})")


def _cut(key: str, state: Mapping[str, Any], stored: _Stored) -> Cut:
    pieces = [
        stored.piece(key, _numbers(chunk.state["offsets"]), _numbers(chunk.state["sizes"]))
        for chunk in state["chunks"]
    ]
    return Cut(_numbers(state["size"]), pieces)
