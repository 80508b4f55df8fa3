"""A folder of torch.distributed.checkpoint → a state dict.

`.metadata` is a pickle. Of what it names nothing is imported: its objects become stand-ins that
hold their attributes. The values are streams of `torch.save` at places of other files; each is
loaded as tensors alone.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pemncodec.checkpoints.folders import is_base_name, missing_files
from pemncodec.checkpoints.inert import Inert
from pemncodec.checkpoints.pieces import Choose, Cut, Piece, put_together
from pemncodec.errors import EncodeError, named_line
from pemncodec.masking.masked_state import StateDict

_PLAIN: Final[dict[tuple[str, str], Callable[..., Any]]] = {
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): dict,
}


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
        with metadata.open("rb") as stream:
            record = _Unpickler(stream).load().state
        sizes = {key: value.state for key, value in record["state_dict_metadata"].items()}
        tensors = {key: state for key, state in sizes.items() if "chunks" in state}
        names = _names(list(tensors), record.get("planner_data"), nested)
        stored = _Stored(metadata.parent, name, _places(record["storage_data"]))
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
    stored.check_files()
    if choose is not None:
        stored_bytes = stored.bytes()
        chosen = set(choose({new: stored_bytes.get(old, 0) for old, new in names.items()}, {}))
        cuts = {new: cut for new, cut in cuts.items() if new in chosen}
    return put_together(cuts)


class _Unpickler(pickle.Unpickler):
    """Makes sizes, dictionaries and stand-ins; runs and imports nothing that a file names."""

    def find_class(self, module: str, name: str) -> Any:
        return _PLAIN.get((module, name)) or type(name, (Inert,), {"__module__": module})


def _names(
    keys: list[str], paths: Mapping[str, tuple[Any, ...]] | None, nested: tuple[str, ...]
) -> dict[str, str]:
    """The names of a model's tensors by their keys in the checkpoint.

    A nested dictionary is stored flat, and `paths` says by which keys one gets to each tensor. All
    tensors are the model's unless such a key is one of `nested`.
    """
    if not isinstance(paths, Mapping):  # of a planner that does not flatten
        return {key: key for key in keys}
    ways = {key: paths.get(key, (key,)) for key in keys}
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
    model = min(models, key=lambda model: nested.index(model[-1]))
    return {
        key: ".".join(map(str, way[least:])) for key, way in ways.items() if way[:least] == model
    }


_Place = tuple[str, int, int]  # file, start, length


def _places(storage: Mapping[Any, Any]) -> dict[tuple[str, tuple[int, ...]], _Place]:
    """Where pieces are stored, by the key of their tensor and their offsets."""
    places: dict[tuple[str, tuple[int, ...]], _Place] = {}
    for index, stored in storage.items():
        key, offsets, place = index.state["fqn"], index.state.get("offset"), stored.state
        if offsets is None:
            continue  # no tensor
        if place.get("transform_descriptors"):
            raise EncodeError(
                f"{key} is stored through {place['transform_descriptors']!r:.80}: save the "
                "checkpoint once more without extensions"
            )
        places[key, offsets] = place["relative_path"], place["offset"], place["length"]
    return places


@dataclass(frozen=True, slots=True)
class _Stored:
    """The files beside the metadata."""

    folder: Path
    name: str
    places: Mapping[tuple[str, tuple[int, ...]], _Place]

    def piece(self, key: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Piece:
        if (key, offsets) not in self.places:
            raise EncodeError(f"{self.name}: no file has the values of {key} from {offsets} on")
        file, start, length = self.places[key, offsets]
        if not is_base_name(file):
            raise EncodeError(
                f"{self.name}: {key} is in {file!r:.80}, which is not the name of a file beside it"
            )
        # As much as one byte a value is in any file.
        if min((start, *sizes, *offsets)) < 0 or math.prod(sizes) > length:
            raise EncodeError(
                f"{self.name}: {key}: {length:,} bytes at {start:,} cannot hold {sizes}"
            )
        return Piece(offsets, sizes, partial(self._read, key, self.places[key, offsets]))

    def bytes(self) -> dict[str, int]:
        """What each tensor takes in all files, about."""
        total: dict[str, int] = {}
        for (key, _), (_, _, length) in self.places.items():
            total[key] = total.get(key, 0) + length
        return total

    def check_files(self) -> None:
        """Raises EncodeError where files are missing, and names them."""
        files = sorted({file for file, _, _ in self.places.values()})
        missing = [file for file in files if not (self.folder / file).is_file()]
        if missing:
            raise EncodeError(f"{self.name}: {missing_files(missing, len(files), 'files')}")

    def _read(self, key: str, place: _Place) -> Tensor:
        file, start, length = place
        with (self.folder / file).open("rb") as stream:
            whole = start + length <= stream.seek(0, 2)
            stream.seek(start)
            data = io.BytesIO(stream.read(length) if whole else b"")
        cause = "the file is cut off"
        if whole:
            try:
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
        stored.piece(key, chunk.state["offsets"], chunk.state["sizes"]) for chunk in state["chunks"]
    ]
    return Cut(state["size"], pieces)
