"""Masks ↔ section bytes; the smallest of the coders is chosen per mask (spec/pemn.md section 6).

A section is one byte that names the coder, then what the coder wrote. It holds one mask, or several
that are mixed in one stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from pemncodec.coders.mixing import MixingTensor, decode_mixing, encode_mixing
from pemncodec.coders.packed import decode_packed, encode_packed, packed_size
from pemncodec.coders.rans import decode_block, decode_rans, encode_rans, split_blocks
from pemncodec.contents import numel
from pemncodec.errors import CorruptError, TruncatedError

CONSTANT, PACKED, RANS, MIXING = 0, 1, 2, 3
CODER_NAMES = {CONSTANT: "constant", PACKED: "packed", RANS: "rans", MIXING: "mixing"}

Preset = Literal["fast", "default", "max"]
PRESETS: tuple[str, ...] = get_args(Preset)
"""fast: coders that decode at memory speed. default: also mixing, on models that it decodes within
a second, where it saves enough. max: also mixing, wherever it saves a byte."""

_STREAM_WEIGHTS = 1 << 22  # of small masks in one stream; bounds what reading one of them decodes
SECTION_BYTES = 6  # about what a section costs in the section table
_MIXED_BY_DEFAULT = 1 << 24  # weights of a model
_LEAST_DEFAULT_GAIN = 1 / 64

_BLOCK_WEIGHTS = 1 << 20  # of a mask that is not stored in blocks

Mask = npt.NDArray[np.bool_]
PackedMask = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class MaskBlock:
    """A slice of a mask that can be decoded by itself.

    Attributes:
        start: index of its first weight, a multiple of 8.
        stop: index behind its last weight.
        decode: returns its packed bits; raises what `decode_mask` does.
    """

    start: int
    stop: int
    decode: Callable[[], PackedMask]


def tries_mixing(preset: Preset, weights: int) -> bool:
    """Whether the masks of a model with that many masked weights may be mixed."""
    return preset == "max" or (preset == "default" and weights <= _MIXED_BY_DEFAULT)


def order0_bits(ones: int, count: int) -> float:
    """n·H(p): bits that independent coding of a mask needs at its density."""
    if ones in (0, count):
        return 0.0
    p = ones / count
    return -count * (p * math.log2(p) + (1 - p) * math.log2(1 - p))


def encode_masks(
    masks: Sequence[Mask],
    tensors: Sequence[MixingTensor],
    preset: Preset,
    count: Callable[[int], None],
) -> list[tuple[bytes, list[int]]]:
    """Masks to sections, each with the numbers of its masks, in the order of their first ones.

    Args:
        masks: bool [n] each.
        tensors: what mixing knows of each.
        preset: which coders to try.
        count: called with numbers of weights as they are coded.
    """
    alone = [encode_mask(bits) for bits in masks]
    mixed: dict[int, tuple[bytes, list[int]]] = {}  # by the first mask
    weights = sum(bits.size for bits in masks)
    streams = _streams(masks, alone) if tries_mixing(preset, weights) else []
    least_gain = 0.0 if preset == "max" else _LEAST_DEFAULT_GAIN
    for members in streams:
        best = _mix(members, masks, tensors, alone, least_gain)
        if best is not None:
            mixed[best[1][0]] = best
        count(sum(masks[index].size for index in members))
    streamed = {index for _, members in mixed.values() for index in members}
    count(weights - sum(masks[index].size for members in streams for index in members))
    return [
        mixed.get(index, (section, [index]))
        for index, section in enumerate(alone)
        if index in mixed or index not in streamed
    ]


def _streams(masks: Sequence[Mask], alone: Sequence[bytes]) -> list[list[int]]:
    """Which masks to mix together: runs of small ones, every large one by itself."""
    streams: list[list[int]] = []
    room = 0
    for index, bits in enumerate(masks):
        if alone[index][0] == CONSTANT:
            continue
        if bits.size > _STREAM_WEIGHTS:
            streams.append([index])
            room = 0
        elif bits.size <= room:
            streams[-1].append(index)
            room -= bits.size
        else:
            streams.append([index])
            room = _STREAM_WEIGHTS - bits.size
    return streams


def _mix(
    members: list[int],
    masks: Sequence[Mask],
    tensors: Sequence[MixingTensor],
    alone: Sequence[bytes],
    least_gain: float,
) -> tuple[bytes, list[int]] | None:
    """The members' section without those that are smaller alone; None where it does not pay."""
    while members:
        body, costs = encode_mixing([(masks[index], tensors[index]) for index in members])
        paying = [
            index
            for index, cost in zip(members, costs, strict=True)
            if cost < len(alone[index]) + SECTION_BYTES
        ]
        if len(paying) == len(members):
            before = sum(len(alone[index]) + SECTION_BYTES for index in members)
            gain = before - (1 + len(body) + SECTION_BYTES)
            return (bytes([MIXING]) + body, members) if gain > before * least_gain else None
        members = paying
    return None


def encode_mask(bits: Mask) -> bytes:
    """bool [n] to a section of its own, by a static coder."""
    ones = int(np.count_nonzero(bits))
    if ones in (0, bits.size):
        return bytes([CONSTANT, int(ones > 0)])
    packed = encode_packed(bits)
    if order0_bits(ones, bits.size) < 8 * len(packed):
        coded = encode_rans(np.frombuffer(packed, np.uint8), bits.size)
        if len(coded) < len(packed):
            return bytes([RANS]) + coded
    return bytes([PACKED]) + packed


def decode_masks(section: bytes, tensors: Sequence[MixingTensor]) -> list[PackedMask]:
    """Packed bits, uint8 [ceil(n / 8)], of every mask of a section.

    Raises:
        TruncatedError: the section is too short.
        CorruptError: the section is not what `encode_masks` can have written.
    """
    if mask_coder(section) == MIXING:
        return decode_mixing(section[1:], tensors)
    if len(tensors) > 1:
        raise CorruptError("section", "several masks in a section that is not mixed")
    return [decode_mask(section, numel(tensors[0].shape))]


def mask_blocks(section: bytes, count: int) -> list[MaskBlock]:
    """A section of one mask by a static coder as blocks that several threads can decode.

    Raises:
        TruncatedError: the section is too short.
        CorruptError: the section is not what `encode_mask` can have written.
    """
    if mask_coder(section) == RANS and count:
        blocks = split_blocks(section[1:], count)
        return [MaskBlock(b.start, b.stop, partial(decode_block, b)) for b in blocks]
    return blocks_of(decode_mask(section, count), count)


def blocks_of(packed: PackedMask, count: int) -> list[MaskBlock]:
    """A decoded mask as blocks."""
    return [
        MaskBlock(start, min(start + _BLOCK_WEIGHTS, count), partial(_slice, packed, start))
        for start in range(0, count, _BLOCK_WEIGHTS)
    ]


def _slice(packed: PackedMask, start: int) -> PackedMask:
    return packed[start // 8 : (start + _BLOCK_WEIGHTS) // 8]


def decode_mask(section: bytes, count: int) -> PackedMask:
    """Packed bits, uint8 [ceil(count / 8)], of a section of one mask by a static coder.

    Raises:
        TruncatedError: the section is too short.
        CorruptError: the section is not what `encode_mask` can have written.
    """
    coder = mask_coder(section)
    body = section[1:]
    if coder == PACKED:
        return decode_packed(body, count)
    if coder == RANS:
        if not count:
            raise CorruptError("section", "a rANS-coded mask of no weights")
        return decode_rans(body, count)
    if body not in (b"\0", b"\1"):
        raise CorruptError("section", "a constant mask is one byte, 0 or 1")
    packed = np.full(packed_size(count), 0xFF * body[0], np.uint8)
    if count % 8:
        packed[-1] &= (1 << count % 8) - 1
    return packed


def mask_coder(section: bytes) -> int:
    """The coder that a section names."""
    if not section:
        raise TruncatedError("truncated", "an empty mask section")
    if section[0] not in CODER_NAMES:
        raise CorruptError("unknown-field", f"unknown mask coder {section[0]}")
    return section[0]
