"""A .pemn file as what another is made of: all that it says beside the values of its tensors.

`decode` leaves the bytes of the file with the module, so that the module can be encoded again with
its masks, its seeds, and the modes of its trained tensors.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pemncodec.coders.dense import SHORTENING_OF_MODE, shortened
from pemncodec.contents import CARRIERS, DenseMode, Mask, Seeded, SeededFill, bits_of
from pemncodec.errors import EncodeError
from pemncodec.format.header import DenseRow, MaskedRow
from pemncodec.format.reader import PemnFile, open_file
from pemncodec.limits import UNLIMITED
from pemncodec.mapped_masks import mapped
from pemncodec.tensors import array_to_tensor, same_bits, tensor_to_array

if TYPE_CHECKING:  # pemncodec.masking imports torch.compile, which decoding has no need of
    from pemncodec.masking.masked_state import StateDict

RULE: Final = "as in the .pemn file that it was decoded from"

Value = TypeVar("Value")

_ATTRIBUTE: Final = "pemn_file"


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """What a file says of a state dict, by name.

    Attributes:
        state: its tensors, masks applied.
        masks: bool [*shape].
        fills: where frozen weights come from, for those with a seed.
        shortened: as `MaskedState` has it.
        metadata: the file's.
        inputs: dtype and shape of each input, as the manifest has them; empty where unknown.
        training: whether the model was in train mode when it was encoded.
        inference_only: whether the tensors are good for eval mode alone.
    """

    state: StateDict
    masks: Mapping[str, Mask]
    fills: Mapping[str, SeededFill]
    shortened: Mapping[str, tuple[DenseMode, float]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[Mapping[str, Any], ...] = ()
    training: bool = False
    inference_only: bool = False

    def masks_of(self, named: Mapping[str, Tensor]) -> dict[str, Mask]:
        """Masks of the weights among named tensors that still fit them.

        Raises:
            EncodeError: a weight that is no longer 0 where its mask is.
        """
        masks = {}
        for name, mask in self.masks.items():
            tensor = named.get(name)
            if tensor is None or tensor.is_meta or tuple(tensor.shape) != mask.shape:
                continue
            unused = torch.from_numpy(~mask).to(tensor.device)
            if bool((tensor.detach()[unused] != 0).any()):
                raise EncodeError(
                    f"{name} is not 0 everywhere where the mask of its .pemn file is, as if it had "
                    "been trained: give it a mask (masks=…, --masks)"
                )
            masks[name] = mask
        return masks

    def fills_of(self, named: Mapping[str, Tensor]) -> dict[str, SeededFill]:
        """`fills` of named tensors that have their values, or these in another dtype."""
        return {
            name: fill
            for name, fill in self.fills.items()
            if name in named
            and (
                named[name].dtype != self.state[name].dtype
                or same_bits(named[name], self.state[name])
            )
        }

    def still_shortened(self, named: Mapping[str, Tensor]) -> dict[str, tuple[DenseMode, float]]:
        """`shortened` of those among named tensors that lose nothing more by it."""
        return {
            name: (mode, error)
            for name, (mode, error) in self.shortened.items()
            if name in named
            and same_bits(self.state[name], named[name])
            and _is_kept(named[name], mode, name)
        }

    def inputs_of(self, named: Mapping[str, Tensor]) -> tuple[Mapping[str, Any], ...]:
        """`inputs`; nothing where named tensors have other dtypes, since inputs then may, too."""
        same = all(
            tensor.dtype == named[name].dtype
            for name, tensor in self.state.items()
            if name in named
        )
        return self.inputs if same else ()

    def is_unchanged(self, named: Mapping[str, Tensor]) -> bool:
        """Whether named tensors are all that the file has, bit for bit."""
        return named.keys() == self.state.keys() and all(
            same_bits(self.state[name], tensor) for name, tensor in named.items()
        )

    def below(self, prefix: str) -> Origin:
        """Of a module whose tensors have names that begin with `prefix`."""
        return Origin(
            _under(prefix, self.state),
            _under(prefix, self.masks),
            _under(prefix, self.fills),
            _under(prefix, self.shortened),
            inference_only=self.inference_only,
        )


def _under(prefix: str, named: Mapping[str, Value]) -> dict[str, Value]:
    return {prefix + name: value for name, value in named.items()}


def _is_kept(tensor: Tensor, mode: DenseMode, name: str) -> bool:
    values = tensor_to_array(tensor, name)
    return np.array_equal(bits_of(shortened(values, mode, name)), bits_of(values))


def remember_file(module: nn.Module, file: PemnFile) -> None:
    """Leave with a module the file that it was decoded from."""
    data = file.data()
    if data is not None:
        setattr(module, _ATTRIBUTE, data)


def origin_of(source: nn.Module | PemnFile | Mapping[str, Tensor]) -> Origin | None:
    """What is known from a file: that which is given, or those which modules remember.

    Raises:
        DecodeError: the file is damaged.
    """
    if isinstance(source, PemnFile):
        return read_origin(source)
    if not isinstance(source, nn.Module):
        return None
    found = []
    for path, module in source.named_modules():
        data = vars(module).get(_ATTRIBUTE)
        if isinstance(data, bytes):
            with open_file(data, limits=UNLIMITED) as file:
                origin = read_origin(file)
            found.append(origin.below(f"{path}.") if path else origin)
    return _joined(found[::-1])  # what is below counts more


def _joined(found: Sequence[Origin]) -> Origin | None:
    if len(found) < 2:
        return found[0] if found else None
    return Origin(
        dict(ChainMap(*(dict(origin.state) for origin in found))),
        ChainMap(*(dict(origin.masks) for origin in found)),
        ChainMap(*(dict(origin.fills) for origin in found)),
        ChainMap(*(dict(origin.shortened) for origin in found)),
        inference_only=any(origin.inference_only for origin in found),
    )


def read_origin(file: PemnFile) -> Origin:
    """What an open file says of its state dict.

    Raises:
        DecodeError: the file is damaged.
    """
    manifest = file.manifest or {}
    passing = manifest.get("nonpersistent", ())
    names = [name for name in file.keys() if name not in passing]  # noqa: SIM118
    state: StateDict = {}
    masks, fills, shortened = {}, {}, {}
    masked = {
        name: np.empty(file.shape(name), CARRIERS[file.dtype(name)]) for name in file.masked_keys()
    }
    file.read_masked(masked)
    for name in names:
        row = file.placed_row(name)
        if name in file.aliases:
            state[name] = state[row.name]
            continue
        array = masked[name] if name in masked else file.tensor(name)
        state[name] = array_to_tensor(array, row.dtype)
        if isinstance(row, MaskedRow):
            masks[name] = mapped(file.mask(name))
            prototype = file.header.prototypes[row.fill.prototype]
            if isinstance(prototype, Seeded) and row.fill.offset == 0:
                fills[name] = SeededFill(prototype, row.fill.scale)
        elif isinstance(row, DenseRow):
            coder = file.dense.coder(row.section)
            if coder in SHORTENING_OF_MODE:
                shortened[name] = coder, row.error
    return Origin(
        state,
        masks,
        fills,
        shortened,
        file.metadata,
        tuple(manifest.get("inputs", ())),
        bool(manifest.get("training", False)),
        file.header.inference_only,
    )
