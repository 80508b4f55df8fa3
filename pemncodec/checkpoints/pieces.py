"""Pieces of tensors, as several processes write them → whole tensors.

They are put together one after the other in a temporary file, which is then mapped. So memory holds
one tensor at a time, and later what is read of them.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final

import numpy as np
import torch
from torch import Tensor

from pemncodec.errors import EncodeError
from pemncodec.masking.masked_state import StateDict
from pemncodec.tensors import dtype_name

# From the bytes of all tensors by name, and from those that are mapped, to names of those that are
# wanted.
Choose = Callable[[Mapping[str, int], StateDict], Collection[str]]

_ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor.

    Attributes:
        offsets: where it begins in the tensor, a number for each dimension.
        sizes: of the box.
        read: gives its values, [*sizes]; raises `EncodeError` where they are damaged.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def stops(self) -> tuple[int, ...]:
        """Where it ends, in each dimension."""
        return tuple(o + s for o, s in zip(self.offsets, self.sizes, strict=True))


@dataclass(frozen=True, slots=True)
class Cut:
    """A tensor in pieces.

    Attributes:
        shape: of the whole.
        pieces: in any order.
    """

    shape: tuple[int, ...]
    pieces: Sequence[Piece]


def joined(name: str, pieces: Sequence[Piece]) -> Cut:
    """A tensor that ends where its pieces do; raises EncodeError where they cannot be of one."""
    if len({len(piece.offsets) for piece in pieces}) > 1:
        raise EncodeError(f"{name}: pieces of different numbers of dimensions")
    return Cut(tuple(map(max, zip(*(piece.stops for piece in pieces), strict=True))), pieces)


def put_together(tensors: Mapping[str, Cut]) -> StateDict:
    """Whole tensors by name, in memory that a temporary file backs.

    Raises:
        EncodeError: pieces that leave gaps, overlap, lie outside, or differ in their dtypes.
        OSError: there is no room for the temporary file.
    """
    for name, cut in tensors.items():
        _check_cover(name, cut)
    places: dict[str, tuple[slice, torch.dtype]] = {}
    with tempfile.TemporaryFile(prefix="pemn-") as stream:
        for name, cut in tensors.items():
            start = stream.seek(-stream.tell() % _ALIGNMENT, 1)
            tensor = _whole(name, cut)
            stream.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            places[name] = slice(start, start + tensor.nbytes), tensor.dtype
            del tensor  # before the next one is made
        data = _mapped(stream)
    return {
        name: data[place].view(dtype).reshape(tensors[name].shape)
        for name, (place, dtype) in places.items()
    }


def _mapped(stream: IO[bytes]) -> Tensor:
    """A file's bytes, uint8 [n], which outlive the file; what is written to them goes nowhere."""
    stream.flush()
    if not stream.seek(0, 2):
        return torch.empty(0, dtype=torch.uint8)
    memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _whole(name: str, cut: Cut) -> Tensor:
    whole: Tensor | None = None
    for piece in cut.pieces:
        values = piece.read().detach()
        if not _is_dense(values) or values.shape != piece.sizes:
            raise EncodeError(f"{name}: expected a dense {piece.sizes}, found {_kind(values)}")
        values = values.resolve_conj().resolve_neg()  # which torch.save leaves to be done
        if len(cut.pieces) == 1:
            return values.contiguous()
        if whole is None:
            whole = torch.empty(cut.shape, dtype=values.dtype)
        if values.dtype != whole.dtype:
            raise EncodeError(f"{name}: pieces of {dtype_name(whole)} and {dtype_name(values)}")
        place = tuple(slice(*ends) for ends in zip(piece.offsets, piece.stops, strict=True))
        whole[place] = values
    assert whole is not None
    return whole


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _kind(tensor: Tensor) -> str:
    where = " on the meta device" if tensor.is_meta else ""
    how = tensor.dtype if tensor.is_quantized else tensor.layout
    return f"{how} {tuple(tensor.shape)}{where}".removeprefix("torch.")


def _check_cover(name: str, cut: Cut) -> None:
    """Raises EncodeError unless each value is in one piece."""
    dimensions = len(cut.shape)
    for piece in cut.pieces:
        if len(piece.sizes) != dimensions or len(piece.offsets) != dimensions:
            raise EncodeError(f"{name}: a piece of another number of dimensions")
        if any(stop > size for stop, size in zip(piece.stops, cut.shape, strict=True)):
            raise EncodeError(f"{name}: a piece ends at {piece.stops}, behind {cut.shape}")
    count = sum(math.prod(piece.sizes) for piece in cut.pieces)
    if not cut.pieces or count < math.prod(cut.shape):
        raise EncodeError(
            f"{name}: pieces of {count:,} values in all, but it has {math.prod(cut.shape):,}: is a "
            "file missing?"
        )
    # What is in two pieces would leave a gap elsewhere.
    filled = [piece for piece in cut.pieces if math.prod(piece.sizes)]
    starts = np.array([piece.offsets for piece in filled]).reshape(len(filled), dimensions)
    stops = np.array([piece.stops for piece in filled]).reshape(len(filled), dimensions)
    for at, piece in enumerate(filled):
        others = (starts[at + 1 :] < piece.stops) & (stops[at + 1 :] > piece.offsets)
        if others.all(axis=1).any():
            raise EncodeError(f"{name}: two pieces have the values from {piece.offsets} on")
