"""A plain model's tensors with the masks of its frozen weights: what every checkpoint becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pemncodec.contents import Array, DenseMode, Mask, SeededFill, bits_of
from pemncodec.masking.lazy_mapping import LazyMapping
from pemncodec.tensors import dtype_name, tensor_to_array

StateDict = dict[str, Tensor]

_PART = 1 << 18  # weights that are compared at one time


@dataclass(frozen=True, slots=True, eq=False)
class MaskedState:
    """A plain model's state dict with the masks of its frozen weights.

    Attributes:
        tensors: by name in `state_dict` order; weights not multiplied by their masks.
        masks: bool [*shape] by name of the weight.
        aliases: later names of a tensor to its first name.
        fills: where frozen weights come from, for those whose checkpoint says so.
        rules: how each mask was found, in words.
        shortened: of trained tensors that a file has shortened before, how, and how far their
            values are from those that it was made of.
        ties: of masks that follow from scores, how many scores are equal where the cut goes between
            them, by name of the weight.
        beside: of masks that the network has itself, the name of the tensor, by name of the weight;
            whether the network applies them is for who runs it to see.
    """

    tensors: StateDict
    masks: Mapping[str, Mask]
    aliases: dict[str, str] = field(default_factory=dict)
    fills: dict[str, SeededFill] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    ties: dict[str, int] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    shortened: dict[str, tuple[DenseMode, float]] = field(default_factory=dict)

    def kind(self, name: str) -> tuple[str, tuple[int, ...]]:
        """dtype and shape of a tensor."""
        return dtype_name(self.tensors[name]), tuple(self.tensors[name].shape)

    def effective(self) -> Mapping[str, Tensor]:
        """The plain model's state dict: masks applied, masked-out weights +0.0, in C order.

        Tensors are made each time they are asked for. Every name by itself, ties not considered, so
        that comparing with it proves them too.
        """
        return LazyMapping(self.tensors, self._effective)

    def _effective(self, name: str) -> Tensor:
        shape = self.tensors[name].shape
        # Flat first: a dimension of size 1 may keep a stride that makes kernels round anew.
        tensor = self.tensors[name].detach().cpu().contiguous().reshape(-1)
        mask = self.masks[name].reshape(-1) if name in self.masks else None
        return _used(tensor, mask).reshape(shape)

    def effective_parts(self, name: str) -> Iterator[Array]:
        """The bits of an effective tensor, flat, in its carrier's size; made part by part."""
        flat = bits_of(tensor_to_array(self.tensors[name], name).reshape(-1))
        mask = self.masks[name].reshape(-1) if name in self.masks else None
        for start in range(0, len(flat), _PART):
            part = flat[start : start + _PART]
            # Not by torch, whose threads would keep those busy that make the file's values.
            yield part if mask is None else np.where(mask[start : start + _PART], part, 0)

    def keeps_zeros_alone(self, name: str) -> bool:
        """Whether a mask keeps nothing but weights that are 0, and drops others."""
        kept = torch.from_numpy(self.masks[name].reshape(-1))
        flat = self.tensors[name].detach().cpu().contiguous().reshape(-1)
        drops = False
        for part in (slice(start, start + _PART) for start in range(0, flat.numel(), _PART)):
            used = flat[part] != 0
            if (used & kept[part]).any():
                return False
            drops = drops or bool(used.any())
        return drops and bool(kept.any())

    def mode_before(self, name: str) -> DenseMode:
        """How a file has shortened a tensor before."""
        return self.shortened[name][0] if name in self.shortened else "lossless"

    def replaced(self, tensors: Mapping[str, Tensor]) -> MaskedState:
        """With other values for unmasked tensors, also under their later names."""
        new = {
            name: tensors.get(self.aliases.get(name, name), tensor)
            for name, tensor in self.tensors.items()
        }
        kept = {name: how for name, how in self.shortened.items() if name not in tensors}
        return replace(self, tensors=new, shortened=kept)


def _used(tensor: Tensor, mask: Mask | None) -> Tensor:
    """Values [n], +0.0 where they are masked out; the tensor itself without a mask."""
    if mask is None:
        return tensor
    zero = torch.zeros((), dtype=tensor.dtype, device="cpu")
    return torch.where(torch.from_numpy(mask), tensor, zero)
