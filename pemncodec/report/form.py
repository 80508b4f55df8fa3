"""What another form of a model is, and what one costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor

from pemncodec.checkpoints.names import tied_names
from pemncodec.coders.packed import count_ones
from pemncodec.errors import EncodeError
from pemncodec.format.header import MaskedRow
from pemncodec.format.reader import PemnFile
from pemncodec.values.fill import used_values


@dataclass(frozen=True, slots=True)
class FormBytes:
    """What a model takes in one form.

    Attributes:
        bytes: of the form.
        error: the largest difference of an element, relative to the largest magnitude of its
            tensor; 0 where every bit comes back.
        estimated: both follow from a sample of the tensors; the error is then a lower bound.
    """

    bytes: int
    error: float = 0.0
    estimated: bool = False


class FormError(Exception):
    """A form that cannot hold this model; says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """The tensors that all forms of a model hold, and what is known of its masks.

    Attributes:
        tensors: by name, masks applied, C-ordered, each in memory of its own; of a tied tensor the
            first name.
        ones: by name of a masked tensor, how many weights its mask keeps; empty for a dense model.
        prototype_values: how many different values these weights have.
    """

    tensors: Mapping[str, Tensor]
    ones: Mapping[str, int] = field(default_factory=dict)
    prototype_values: int = 0

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def rest_bytes(self) -> int:
        """Of the tensors that no mask is on."""
        return sum(t.nbytes for name, t in self.tensors.items() if name not in self.ones)

    @property
    def keep(self) -> float:
        """The share of weights under masks that these keep; 1 without masks."""
        weights = sum(self.tensors[name].numel() for name in self.ones)
        return sum(self.ones.values()) / weights if weights else 1.0

    def sample(self, nbytes: int) -> Network:
        """The first items of every tensor, all by the same share, of about `nbytes` together.

        Layers that repeat a prototype begin with the same values, and so do their samples.
        """
        share = min(1.0, nbytes / max(1, self.nbytes))
        parts = {name: _beginning(tensor, share) for name, tensor in self.tensors.items()}
        return Network(parts)


@dataclass(frozen=True, slots=True)
class Form:
    """One form.

    Attributes:
        key: its name in code.
        title: its name in tables, for people.
        measure: what a model takes; None where the form is not made for such a model. Raises
            `FormError`.
        most_bytes: of a model for which this takes about ten seconds on one core; those of larger
            models are estimated from a sample of this size.
        lossy: whether it may lose something.
        package: which has to be installed for it.
    """

    key: str
    title: str
    measure: Callable[[Network], FormBytes | None]
    most_bytes: int | None = None
    lossy: bool = False
    package: str | None = None


def network_of(state: Mapping[str, Tensor], file: PemnFile | None = None) -> Network:
    """The network of a state dict.

    Args:
        state: a dense model, or what `file` gives.
        file: which knows the masks.

    Raises:
        EncodeError: a tensor that is sparse or holds no data.
    """
    first = {name: names[0] for name, names in tied_names(state).items()}
    tensors = dict(_own(name, state[name]) for name in state if first[name] == name)
    if file is None:
        return Network(tensors)
    rows = [row for row in file.header.tensors if isinstance(row, MaskedRow)]
    masks = {row.name: file.packed_mask(row.name) for row in rows}
    values = 0
    for index, prototype in enumerate(file.header.prototypes):
        users = [row for row in rows if row.fill.prototype == index]
        fills = ((row.fill.offset, file.mask(row.name).reshape(-1)) for row in users)
        values += int(np.count_nonzero(used_values(prototype.length, fills)))
    ones = {name: count_ones(mask) for name, mask in masks.items()}
    return Network(tensors, ones, values)


def _beginning(tensor: Tensor, share: float) -> Tensor:
    """About a share of a tensor's items in as many dimensions: its first rows, or a part of one."""
    places = []
    for size in tensor.shape:
        taken = min(size, max(1, round(share * size)))
        places.append(slice(taken))
        share = min(1.0, share * size / max(1, taken))
    return tensor[tuple(places)].clone(memory_format=torch.contiguous_format)


def _own(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise EncodeError(f"{name}: expected a dense tensor")
    own = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # Else files would hold all of the memory that it is a part of, or refuse two parts of one.
    return name, own if own.untyped_storage().nbytes() == own.nbytes else own.clone()


def largest_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The largest difference of any element, relative to the largest magnitude of its tensor.

    Args:
        pairs: each a tensor and what a form makes of it.

    Returns:
        0 where all are equal; infinite where something finite became infinite or NaN.
    """
    return max((_error(original, decoded) for original, decoded in pairs), default=0.0)


def _error(original: Tensor, decoded: Tensor) -> float:
    before, after = original.double(), decoded.double()
    equal = (before == after) | (before.isnan() & after.isnan())
    if equal.all():
        return 0.0
    difference = float((before - after)[~equal].abs().nan_to_num(torch.inf, torch.inf).max())
    largest = float(before.nan_to_num(0, 0, 0).abs().max())
    return difference / largest if largest else torch.inf


def rows_and_columns(tensor: Tensor) -> tuple[int, int]:
    """A weight as the matrix that sparse forms store, one row for each output."""
    rows = tensor.shape[0] if tensor.dim() > 1 else 1
    return rows, prod(tensor.shape[1:]) if tensor.dim() > 1 else tensor.numel()
