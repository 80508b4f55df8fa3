"""One cut through the values of several layers together, of which processes may hold some each.

The cut is found digit by digit of the values' bits, by counting: values stay where they are, and of
processes that each hold some, all get the same cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pemncodec.contents import Mask
from pemncodec.peers import Peers

Rank = Callable[[Tensor], Tensor]
Values = npt.NDArray[np.floating]

_PART: Final = 1 << 20  # values at one time
_DIGIT: Final = 16  # bits
# By bytes of a float, whole numbers of the same size, and that with the highest bit alone.
_OF_SIZE: Final = {4: (np.uint32, 1 << 31), 8: (np.uint64, 1 << 63)}


@dataclass(frozen=True, slots=True)
class Cut:
    """Where values that are ranked together are cut; those above it stay.

    Attributes:
        value: the largest that goes; None where none goes.
        going: by layer of this process, how many of the values equal to it go: the first.
        tied: likewise, how many there are, where others of all stay; else 0.
    """

    value: np.floating | None
    going: Mapping[str, int]
    tied: Mapping[str, int]

    def above(self, ranks: Values) -> Mask:
        """Where ranks are above the cut, bool [*shape]."""
        return np.ones(ranks.shape, np.bool_) if self.value is None else ranks > self.value

    def mask(self, name: str, ranks: Values) -> Mask:
        """What stays of a layer, bool [*shape] from its ranks, float [*shape] in C order."""
        mask = self.above(ranks)
        if self.tied[name]:
            equal = np.flatnonzero(ranks == self.value)
            mask.reshape(-1)[equal[self.going[name] :]] = True
        return mask


def cut_together(
    layers: Mapping[str, Tensor],
    rank: Rank,
    dropped: Callable[[int], int],
    peers: Peers | None = None,
) -> Cut:
    """The cut that lets a number of values go, the least of all layers.

    Of equal values the first go, in the order of the layers, and in C order.

    Args:
        layers: float [*shape], without NaN, in order; with peers by names of `Peers.names`, and
            none where others have them all.
        rank: what of them is ranked, value by value.
        dropped: from the number of all values to that of those that go, 0 to as many.
        peers: the processes that hold the other layers; each calls this.
    """

    def said(value: Any) -> list[Any]:
        return [value] if peers is None else peers.gather(value)

    own = [(tensor.numel(), tensor.dtype == torch.float64) for tensor in layers.values()]
    sizes_and_wide = [pair for each in said(own) for pair in each]
    count = sum(size for size, _ in sizes_and_wide)
    wide = any(is_wide for _, is_wide in sizes_and_wide)
    gone = dropped(count) if count else 0
    if not gone:
        return Cut(None, dict.fromkeys(layers, 0), dict.fromkeys(layers, 0))
    dtype = torch.float64 if wide else torch.float32
    place, prefix, shift = gone - 1, 0, 8 * dtype.itemsize
    while shift:
        shift -= _DIGIT
        counts = np.zeros(1 << _DIGIT, np.int64)
        for tensor in layers.values():
            for keys in map(_keys, _parts(tensor, rank, dtype)):
                # A shift by all bits is not defined.
                alike = keys[keys >> shift >> _DIGIT == prefix]
                digits = (alike >> shift).astype(np.uint16)
                counts += np.bincount(digits, minlength=counts.size)
        until = np.cumsum(np.sum(said(counts), axis=0))
        digit = int(np.searchsorted(until, place, side="right"))
        place -= int(until[digit - 1]) if digit else 0
        prefix = prefix << _DIGIT | digit
    value = _value(prefix, dtype)
    equal = {
        name: sum(int(np.count_nonzero(part == value)) for part in _parts(tensor, rank, dtype))
        for name, tensor in layers.items()
    }
    of_all: dict[str, int] = {}
    for each in said(equal):
        of_all |= each
    if peers is not None:
        places = {name: place for place, name in enumerate(peers.names)}
        of_all = {name: of_all[name] for name in sorted(of_all, key=places.__getitem__)}
    going, left = {}, place + 1
    for name, number in of_all.items():
        going[name] = min(number, left)
        left -= going[name]
    tied = sum(of_all.values()) > place + 1
    return Cut(
        value,
        {name: going[name] for name in layers},
        {name: equal[name] * tied for name in layers},
    )


def _parts(tensor: Tensor, rank: Rank, dtype: torch.dtype) -> Iterator[Values]:
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _PART):
        yield rank(flat[start : start + _PART]).to(dtype).numpy()


def _keys(values: Values) -> npt.NDArray[np.unsignedinteger]:
    """Whole numbers from 0 in the order of floats; both zeros are one."""
    unsigned, highest = _OF_SIZE[values.itemsize]
    bits: npt.NDArray[np.unsignedinteger] = (values + 0.0).view(unsigned)
    return np.where(bits < highest, bits | highest, ~bits)


def _value(key: int, dtype: torch.dtype) -> np.floating:
    """The float that has a key."""
    unsigned, highest = _OF_SIZE[dtype.itemsize]
    bits = np.array([key ^ highest if key >= highest else ~key & (2 * highest - 1)], unsigned)
    value: np.floating = bits.view(f"f{dtype.itemsize}")[0]
    return value
