"""Masks ↔ section bytes; the smallest of the coders is chosen per mask (spec/pemn.md section 6).

A section is one byte that names the coder, then what the coder wrote. It holds one mask, or several
that a coder with context takes in one stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import Literal, get_args

from pemncodec.coders.constant import CONSTANT
from pemncodec.coders.mask_coder import MaskBlock, MaskCoder, MaskContext
from pemncodec.coders.mixing import MIXING
from pemncodec.coders.packed import PACKED, packed_size
from pemncodec.coders.rans import RANS
from pemncodec.contents import Mask, PackedMask
from pemncodec.errors import CorruptError, TruncatedError
from pemncodec.spool import Spool, Spooled

MASK_CODERS: tuple[MaskCoder, ...] = (CONSTANT, PACKED, RANS, MIXING)
"""Every mask coder, the one that decodes fastest first: it is taken where sizes are equal."""

Preset = Literal["fast", "default", "max"]
PRESETS: tuple[str, ...] = get_args(Preset)
"""fast: coders that decode at memory speed. default: also those with context, on models that they
decode within a second, where they save enough. max: also those, wherever they save a byte."""

_STREAM_WEIGHTS = 1 << 22  # of small masks in one stream; bounds what reading one of them decodes
_SECTION_BYTES = 6  # about what a section costs in the section table
_CONTEXT_BY_DEFAULT = 1 << 24  # weights of a model
_LEAST_DEFAULT_GAIN = 1 / 64

_BLOCK_WEIGHTS = 1 << 20  # of a mask that is not stored in blocks

_CODER_OF_ID = {coder.id: coder for coder in MASK_CODERS}
_STATIC_CODERS = [coder for coder in MASK_CODERS if not coder.context]
_CONTEXT_CODERS = [coder for coder in MASK_CODERS if coder.context]

MaskSection = tuple[Spooled, list[int]]
"""A section in a spool, and the numbers of its masks."""


def tries_context(preset: Preset, weights: int) -> bool:
    """Whether coders with context are tried on a model with that many masked weights."""
    return preset == "max" or (preset == "default" and weights <= _CONTEXT_BY_DEFAULT)


def total_bytes(sections: Sequence[MaskSection]) -> int:
    """Bytes of mask sections in a file."""
    return sum(section.size + _SECTION_BYTES for section, _ in sections)


class MaskEncoder:
    """Masks to sections; remembers what it has coded, for callers that try several contexts."""

    def __init__(self, masks: Sequence[Mask], preset: Preset, pool: Executor, spool: Spool) -> None:
        """Codes every mask by itself.

        Args:
            masks: bool [n] each.
            preset: which coders to try.
            pool: does the work.
            spool: keeps the sections.
        """
        self._masks = masks
        self._pool = pool
        self._spool = spool
        coded = list(pool.map(self._encode_alone, masks))
        self._alone = [section for _, section in coded]
        self._weights = sum(bits.size for bits in masks)
        constant = [coder == CONSTANT.id for coder, _ in coded]
        self._streams = _streams(masks, constant) if tries_context(preset, self._weights) else []
        self._least_gain = 0.0 if preset == "max" else _LEAST_DEFAULT_GAIN
        self._coded: dict[tuple[int, tuple[MaskContext, ...]], MaskSection | None] = {}

    def encode(
        self, contexts: Sequence[MaskContext], count: Callable[[int], None] = lambda _: None
    ) -> list[MaskSection]:
        """Sections in the order of their first masks.

        Args:
            contexts: what is known of each mask. Masks that are coded together, whose contexts were
                all given before, cost no time.
            count: called with numbers of weights as they are coded.
        """
        together: dict[int, MaskSection] = {}  # by the first mask
        for members, best in zip(self._streams, self._encode_streams(contexts), strict=True):
            if best is not None:
                together[best[1][0]] = best
            count(sum(self._masks[index].size for index in members))
        streamed = {index for _, members in together.values() for index in members}
        rest = sum(self._masks[index].size for members in self._streams for index in members)
        count(self._weights - rest)
        return [
            together.get(index, (section, [index]))
            for index, section in enumerate(self._alone)
            if index in together or index not in streamed
        ]

    def _encode_alone(self, bits: Mask) -> tuple[int, Spooled]:
        """The number of a mask's coder, and the section that it made."""
        data = encode_mask(bits)
        return data[0], self._spool.add(data)

    def _encode_together(
        self, members: list[int], contexts: Sequence[MaskContext]
    ) -> MaskSection | None:
        sizes = [section.size for section in self._alone]
        best = _encode_together(members, self._masks, contexts, sizes, self._least_gain)
        return None if best is None else (self._spool.add(best[0]), best[1])

    def _encode_streams(self, contexts: Sequence[MaskContext]) -> Iterator[MaskSection | None]:
        coding: dict[tuple[int, tuple[MaskContext, ...]], Future[MaskSection | None]] = {}
        keys = [(own[0], tuple(contexts[index] for index in own)) for own in self._streams]
        for members, key in zip(self._streams, keys, strict=True):
            if key not in self._coded:
                coding[key] = self._pool.submit(self._encode_together, members, contexts)
        for key in keys:
            if key in coding:
                self._coded[key] = coding[key].result()
            yield self._coded[key]


def encode_mask(bits: Mask) -> bytes:
    """bool [n] to a section of its own, by the static coder that makes the smallest."""
    if not bits.size:
        return bytes([CONSTANT.id, 0])
    context = MaskContext(bits.shape)
    sections = [
        bytes([coder.id]) + coded[0]
        for coder in _STATIC_CODERS
        if (coded := coder.encode([bits], [context])) is not None
    ]
    return min(sections, key=len)


def _streams(masks: Sequence[Mask], constant: Sequence[bool]) -> list[list[int]]:
    """Which masks to code together: runs of small ones, every large one by itself."""
    streams: list[list[int]] = []
    room = 0
    for index, bits in enumerate(masks):
        if constant[index]:
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


def _encode_together(
    members: list[int],
    masks: Sequence[Mask],
    contexts: Sequence[MaskContext],
    alone: Sequence[int],
    least_gain: float,
) -> tuple[bytes, list[int]] | None:
    """The best section of members that are larger alone; None where it does not pay."""
    found = [_encode_by(c, members, masks, contexts, alone, least_gain) for c in _CONTEXT_CODERS]
    gains = [gain for gain in found if gain is not None]
    return max(gains, key=lambda gain: gain[0])[1] if gains else None


def _encode_by(
    coder: MaskCoder,
    members: list[int],
    masks: Sequence[Mask],
    contexts: Sequence[MaskContext],
    alone: Sequence[int],
    least_gain: float,
) -> tuple[int, tuple[bytes, list[int]]] | None:
    """What one coder gains over the bytes of each section alone, and its section and members."""
    while members:
        coded = coder.encode([masks[i] for i in members], [contexts[i] for i in members])
        if coded is None:
            return None
        body, costs = coded
        paying = [
            index
            for index, cost in zip(members, costs, strict=True)
            if cost < alone[index] + _SECTION_BYTES
        ]
        if len(paying) == len(members):
            before = sum(alone[index] + _SECTION_BYTES for index in members)
            section = bytes([coder.id]) + body
            gain = before - (len(section) + _SECTION_BYTES)
            return (gain, (section, members)) if gain > before * least_gain else None
        members = paying
    return None


def decode_masks(section: bytes, contexts: Sequence[MaskContext]) -> list[PackedMask]:
    """Packed bits, uint8 [ceil(n / 8)], of every mask of a section.

    Raises:
        TruncatedError: the section is too short.
        CorruptError: the section is not what `MaskEncoder` can have written.
    """
    return mask_coder(section).decode(body_of(section), contexts)


def decode_mask(section: bytes, count: int) -> PackedMask:
    """Packed bits, uint8 [ceil(count / 8)], of one mask of which nothing else is known."""
    (packed,) = decode_masks(section, [MaskContext((count,))])
    return packed


def mask_blocks(section: bytes, context: MaskContext) -> list[MaskBlock]:
    """A section of one mask as blocks that several threads can decode; errors as `decode_masks`."""
    coder = mask_coder(section)
    if coder.blocks is not None:
        return coder.blocks(body_of(section), context.count)
    (packed,) = coder.decode(body_of(section), [context])
    return blocks_of(packed, context.count)


def blocks_of(packed: PackedMask, count: int) -> list[MaskBlock]:
    """A decoded mask as blocks."""
    return [
        MaskBlock(start, min(start + _BLOCK_WEIGHTS, count), partial(_slice, packed, start))
        for start in range(0, count, _BLOCK_WEIGHTS)
    ]


def _slice(packed: PackedMask, start: int, count: int) -> PackedMask:
    return packed[start // 8 : start // 8 + packed_size(count)]


def mask_coder(section: bytes) -> MaskCoder:
    """The coder that a section names."""
    if not section:
        raise TruncatedError("truncated", "an empty mask section")
    if section[0] not in _CODER_OF_ID:
        raise CorruptError("unknown-field", f"unknown mask coder {section[0]}")
    return _CODER_OF_ID[section[0]]


def body_of(section: bytes) -> memoryview:
    """What the coder of a section wrote."""
    return memoryview(section)[1:]
