"""Masks of a file → packed bits on a device.

Bits of few weights are decoded on the processor and travel. In large models the coded bytes of rANS
blocks travel, and are decoded there by Triton: all blocks of a batch at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pemncodec.coders.masks import body_of, mask_coder
from pemncodec.coders.packed import packed_size
from pemncodec.coders.rans import RANS, CodedBlock, Frequencies, coded_blocks
from pemncodec.contents import PackedMask, numel
from pemncodec.errors import DecodeError
from pemncodec.format.masked_sections import MaskedValues
from pemncodec.format.sections import Place, in_section
from pemncodec.packed.devices import uses_triton

# From here on the device is faster: on an H200 as fast for 2^24 weights, three times for 2^26 (see
# benchmarks/packed_cuda.py). Where Triton is not imported yet, that takes 0.13 s.
_LEAST_WEIGHTS = 1 << 26
_LEAST_WITH_IMPORT = 1 << 30
_BATCH_WEIGHTS = 1 << 30  # decoded together; bounds what is in memory besides the bits
_LANES = 8
_LOWEST_STATE = 1 << 16
_SLOTS = 1 << 15
_ALIGNMENT = 4  # bytes: of states, and of the bits of a mask

Places = npt.NDArray[Any]


def masks_on_device(device: torch.device, masked: Sequence[MaskedValues]) -> Iterator[Tensor]:
    """The mask of each tensor as packed bits, uint8 [ceil(n / 8)], in memory of its own.

    Args:
        device: where they are made, if that pays, and stay.
        masked: tensors of one file.

    Raises:
        DecodeError: of a mask that is damaged, as the processor would say.
    """
    if not _pays(device, masked):
        for values in masked:
            yield _moved(values.packed_mask(), device)
        return
    batch: list[_Mask] = []
    weights = 0
    for values in masked:
        try:
            batch.append(_read(values))
        except DecodeError:
            yield from _decoded(device, batch)  # a mask before it may be damaged, too
            raise
        weights += batch[-1].weights
        if weights >= _BATCH_WEIGHTS:
            yield from _decoded(device, batch)
            batch, weights = [], 0
    yield from _decoded(device, batch)


def _pays(device: torch.device, masked: Sequence[MaskedValues]) -> bool:
    least = _LEAST_WEIGHTS if "triton" in sys.modules else _LEAST_WITH_IMPORT
    return sum(numel(values.row.shape) for values in masked) >= least and uses_triton(device)


def _moved(mask: PackedMask, device: torch.device) -> Tensor:
    return torch.from_numpy(mask if mask.flags.writeable else mask.copy()).to(device)


@dataclass(frozen=True, slots=True, eq=False)
class _Mask:
    """A mask that is decoded, or blocks of a section that the device can decode."""

    weights: int
    packed: PackedMask | None = None
    place: Place | None = None
    blocks: tuple[CodedBlock, ...] = ()


def _read(values: MaskedValues) -> _Mask:
    weights = numel(values.row.shape)
    own = values.own_section()
    if own is not None:
        place, data = own
        with suppress(DecodeError):  # which the processor raises, if no block before is damaged
            if mask_coder(data) is RANS:
                blocks = tuple(coded_blocks(body_of(data), weights))
                if all(map(_can_be_decoded_there, blocks)):
                    return _Mask(weights, None, place, blocks)
    return _Mask(weights, values.packed_mask())


def _can_be_decoded_there(block: CodedBlock) -> bool:
    """Not blocks of one lane, which are small and take as many steps as symbols; nor those that
    break a rule which the kernel does not check, and the processor then names."""
    size = len(block.coded)
    if block.lanes != _LANES or size % 2 or size < 4 * _LANES:
        return False
    return bool(np.frombuffer(block.coded, "<u4", _LANES).min() >= _LOWEST_STATE)


def _decoded(device: torch.device, batch: Sequence[_Mask]) -> Iterator[Tensor]:
    made = iter(_decoded_there(device, [mask for mask in batch if mask.packed is None]))
    for mask in batch:
        yield next(made) if mask.packed is None else _moved(mask.packed, device)


def _decoded_there(device: torch.device, masks: Sequence[_Mask]) -> list[Tensor]:
    from pemncodec.packed.triton_rans import decode_blocks

    blocks = [block for mask in masks for block in mask.blocks]
    if not blocks:
        return []
    of_density = {block.density: block for block in blocks}
    ranges, ends = _tables([block.frequencies for block in of_density.values()])
    starts = _starts([len(block.coded) for block in blocks])
    coded = np.empty(starts[-1], np.uint8)
    for start, block in zip(starts, blocks, strict=False):
        coded[start : start + len(block.coded)] = np.frombuffer(block.coded, np.uint8)
    mask_starts = _starts([packed_size(mask.weights) for mask in masks])
    rows = _rows(masks, starts, mask_starts, list(of_density))
    bits = torch.empty(int(mask_starts[-1]), dtype=torch.uint8, device=device)
    wrong = torch.empty(len(blocks), dtype=torch.int8, device=device)
    decode_blocks(
        torch.from_numpy(coded).to(device),
        _symbols_of_slots(torch.from_numpy(ends).to(device)),
        torch.from_numpy(ranges).to(device),
        torch.from_numpy(rows).to(device),
        bits,
        wrong,
    )
    _check(masks, wrong.tolist())
    return [
        bits[start : start + packed_size(mask.weights)].clone()
        for start, mask in zip(mask_starts.tolist(), masks, strict=False)
    ]


def _check(masks: Sequence[_Mask], wrong: Sequence[int]) -> None:
    """Lets the processor decode what the device found damaged, and say what is wrong."""
    found = iter(wrong)
    for mask in masks:
        for block, is_wrong in zip(mask.blocks, found, strict=False):
            if is_wrong:
                assert mask.place is not None
                with in_section(mask.place):
                    block.decode(block.weights)
                raise RuntimeError(
                    "the device cannot decode a mask that the processor decodes; please report this"
                )


def _starts(sizes: Sequence[int]) -> Places:
    """Where parts of these sizes begin, each from a multiple of 4 on, and where the last ends."""
    aligned = -(-np.array(sizes, np.int64) // _ALIGNMENT) * _ALIGNMENT
    return np.append(np.int64(0), np.cumsum(aligned))


def _tables(frequencies: Sequence[Frequencies]) -> tuple[Places, Places]:
    """Of each model, int32 [256]: where a symbol's slots begin, << 16, and how many they are; and
    where they end."""
    counts = np.array(frequencies, np.int64)
    ends = np.cumsum(counts, axis=1)
    ranges = (ends - counts) << 16 | counts
    # A symbol without slots may begin behind the last, which is as much as 32 bits do not hold.
    return np.where(counts > 0, ranges, 0).astype(np.int32), ends.astype(np.int32)


def _symbols_of_slots(ends: Tensor) -> Tensor:
    """uint8 [models, 2^15]; symbols without slots are behind all others."""
    slots = torch.arange(_SLOTS, dtype=torch.int32, device=ends.device).repeat(ends.shape[0], 1)
    return torch.searchsorted(ends, slots, right=True, out_int32=True).to(torch.uint8)


def _rows(
    masks: Sequence[_Mask], starts: Places, mask_starts: Places, densities: Sequence[int]
) -> Places:
    """The fields of each block that `decode_blocks` wants."""
    tables = {density: index for index, density in enumerate(densities)}
    rows: list[tuple[int, ...]] = []
    for mask, mask_start in zip(masks, mask_starts.tolist(), strict=False):
        bit = 8 * mask_start
        for block in mask.blocks:
            rows.append((
                int(starts[len(rows)]) // _ALIGNMENT,
                (len(block.coded) - 4 * _LANES) // 2,
                block.symbols,
                tables[block.density],
                bit,
                block.weights,
                block.longest,
                int(block.density > 32768),
            ))  # fmt: skip
            bit += block.weights
    return np.array(rows, np.int64)
