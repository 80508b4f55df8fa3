"""Contents → the contents of several files, none larger than is asked for.

Where to cut follows from contents and size alone, before anything is coded: a tensor counts for
what it takes at most, a bit for each masked weight and all other values as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from pemncodec.architecture.manifest import encode_manifest
from pemncodec.coders.canonical_json import encode_json
from pemncodec.contents import (
    CARRIERS,
    AliasTensor,
    Contents,
    DenseTensor,
    MaskedTensor,
    Prototype,
    PrototypePlace,
    StoredPrototype,
    Tensor,
    numel,
)

# More than a front has for its fixed fields and the names of columns, for the row and section of a
# tensor and of a prototype, and for a size of a shape.
_FRONT: Final = 1024
_ROW: Final = 256
_PROTOTYPE_ROW: Final = 768
_DIMENSION: Final = 21


def partition(contents: Contents, size: int, *, shared: bool = False) -> list[Contents]:
    """The contents of files of at most `size` bytes, cut in the order of the tensors.

    Tensors that share memory are in one file. A tensor that takes more than `size` has a file of
    its own, which may be larger.

    Args:
        contents: of the whole model.
        size: in bytes.
        shared: whether `with_shared_prototypes` follows, so that values which several tensors use
            are counted once.

    Returns:
        `contents` itself where one file has all of it; else for each file its tensors, the
        prototypes that they use, the metadata, and no manifest.
    """
    aliases: dict[str, list[AliasTensor]] = {}
    for tensor in contents.tensors:
        if isinstance(tensor, AliasTensor):
            aliases.setdefault(tensor.target, []).append(tensor)
    files = [_File(contents, shared=shared)]
    if contents.manifest is not None:  # which is there if this is the only file
        files[0].size += len(encode_manifest(contents.manifest))
    for tensor in contents.tensors:
        if isinstance(tensor, AliasTensor):
            continue
        unit = [tensor, *aliases.get(tensor.name, ())]
        if files[-1].names and files[-1].size + files[-1].more(unit) > size:
            files.append(_File(contents, files[-1].stored, shared=shared))
        files[-1].add(unit)
    if len(files) == 1:
        return [contents]
    return [_part(contents, file.names) for file in files]


def with_shared_prototypes(parts: Sequence[Contents], names: Sequence[str]) -> list[Contents]:
    """The same files with each stored prototype in the first that uses it, for the others, too.

    Args:
        parts: as `partition` has made them.
        names: of the files.
    """
    users = Counter(
        id(prototype)
        for part in parts
        for prototype in part.prototypes
        if isinstance(prototype, StoredPrototype)
    )
    places: dict[int, PrototypePlace] = {}

    def shared(prototype: Prototype, name: str, number: int) -> Prototype:
        if not isinstance(prototype, StoredPrototype) or users[id(prototype)] == 1:
            return prototype
        if (place := places.get(id(prototype))) is not None:
            return replace(prototype, place=place)
        places[id(prototype)] = PrototypePlace(name, number)
        return replace(prototype, whole=True)

    return [
        replace(
            part,
            prototypes=tuple(
                shared(prototype, name, number) for number, prototype in enumerate(part.prototypes)
            ),
        )
        for part, name in zip(parts, names, strict=True)
    ]


class _File:
    """Which tensors go into a file, and what it takes at most."""

    def __init__(
        self, contents: Contents, stored: Collection[int] = (), *, shared: bool = False
    ) -> None:
        self._prototypes = contents.prototypes
        self._shared = shared
        self.stored = set(stored)  # prototypes whose values are in this or an earlier file
        self._used: dict[int, int] = {}  # of each prototype, how many values masks use at most
        self.names: set[str] = set()
        self.size = _FRONT + 2 * len(encode_json(contents.metadata))

    def more(self, unit: Sequence[Tensor]) -> int:
        """By how much a tensor and its other names make the file larger."""
        size = sum(map(_row_bytes, unit))
        own = unit[0]
        if isinstance(own, DenseTensor):
            return size + _dense_bytes(own)
        if isinstance(own, MaskedTensor):
            size += (own.mask.size + 7) // 8
            size += self._prototype_bytes(own.fill.prototype, _uses(own, self._prototypes))
        return size

    def add(self, unit: Sequence[Tensor]) -> None:
        self.size += self.more(unit)
        self.names.update(tensor.name for tensor in unit)
        if isinstance(own := unit[0], MaskedTensor):
            index = own.fill.prototype
            self._used[index] = self._used.get(index, 0) + _uses(own, self._prototypes)
            self.stored.add(index)

    def _prototype_bytes(self, index: int, uses: int) -> int:
        """What a prototype takes more where a tensor uses as many of its values."""
        before = self._used.get(index)
        size = _PROTOTYPE_ROW if before is None else 0
        prototype = self._prototypes[index]
        if isinstance(prototype, StoredPrototype):
            width = prototype.given.itemsize
            if self._shared:
                return size + (0 if index in self.stored else prototype.length * width)
            upto = min((before or 0) + uses, prototype.length)
            size += (upto - min(before or 0, upto)) * width
        return size


def _row_bytes(tensor: Tensor) -> int:
    names = len(tensor.name.encode())
    if isinstance(tensor, AliasTensor):
        return _ROW + 2 * (names + len(tensor.target.encode()))
    return _ROW + 2 * names + _DIMENSION * len(tensor.shape) + 2 * CARRIERS[tensor.dtype].itemsize


def _dense_bytes(tensor: DenseTensor) -> int:
    count = numel(tensor.shape)
    if tensor.mode == "lossless":
        return tensor.data.nbytes
    # Scales and offsets of rows, and values that are kept exactly, are few beside codes.
    return 2 * count if tensor.mode != "q8" else count + count // 8 + min(14 * count, 1024)


def _uses(tensor: MaskedTensor, prototypes: Sequence[object]) -> int:
    """How many stored values a mask uses."""
    if not isinstance(prototypes[tensor.fill.prototype], StoredPrototype):
        return 0
    return int(np.count_nonzero(tensor.mask))


def _part(contents: Contents, names: set[str]) -> Contents:
    tensors = [tensor for tensor in contents.tensors if tensor.name in names]
    used = sorted({t.fill.prototype for t in tensors if isinstance(t, MaskedTensor)})
    numbers = {index: number for number, index in enumerate(used)}
    return replace(
        contents,
        prototypes=tuple(contents.prototypes[index] for index in used),
        tensors=tuple(
            replace(t, fill=replace(t.fill, prototype=numbers[t.fill.prototype]))
            if isinstance(t, MaskedTensor)
            else t
            for t in tensors
        ),
        manifest=None,
    )
