"""What a mask coder is, what it is told, and what it gives (spec/pemn.md section 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pemncodec.contents import Mask, PackedMask, numel
from pemncodec.errors import CorruptError

Buckets = npt.NDArray[np.uint8]
Body = bytes | memoryview
"""What a coder wrote; a view where that is a part of a section, which may be large."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskContext:
    """What is known of a masked tensor before its mask.

    Attributes:
        shape: of the tensor.
        buckets: gives uint8 [L], how large each value of its prototype is (`coders.buckets`); None
            where the values are not known before the mask.
        offset: of its fill.
    """

    shape: tuple[int, ...]
    buckets: Callable[[], Buckets] | None = None
    offset: int = 0

    @property
    def count(self) -> int:
        """Number of weights."""
        return numel(self.shape)

    def weight_buckets(self, start: int, stop: int) -> Buckets:
        """Buckets of the weights from `start` to `stop`, 0 where they are not known."""
        if self.buckets is None:
            return np.zeros(stop - start, np.uint8)
        return _repeated(self.buckets(), self.offset + start, stop - start)


def _repeated(buckets: Buckets, start: int, count: int) -> Buckets:
    """`count` of `buckets`, from `start` on, again and again."""
    start %= buckets.size
    out = np.empty(count, np.uint8)
    done = 0
    for part in (buckets[start:], buckets[:start]):
        part = part[: count - done]
        out[done : done + part.size] = part
        done += part.size
    while done < count:  # whole periods: twice as many each time
        size = min(done, count - done)
        out[done : done + size] = out[:size]
        done += size
    return out


@dataclass(frozen=True, slots=True, eq=False)
class MaskBlock:
    """A slice of a mask that can be decoded by itself.

    Attributes:
        start: index of its first weight, a multiple of 8.
        stop: index behind its last weight.
        decode: from n to the packed bits of its first n weights, uint8 [ceil(n / 8)]; n is a
            multiple of 8 or all. What comes behind them may stay unchecked.
    """

    start: int
    stop: int
    decode: Callable[[int], PackedMask]


@dataclass(frozen=True, slots=True, eq=False)
class MaskCoder:
    """A way to code masks.

    Attributes:
        id: first byte of its sections.
        name: as reports and the spec call it.
        encode: masks, bool [n] each, and what is known of each, to a section's body and about how
            many of its bytes each mask costs; None where the coder does not apply or cannot pay.
        decode: a body, and what is known of each of its masks, to packed bits, uint8 [ceil(n / 8)]
            each; raises `DecodeError` for a body that `encode` cannot have written.
        blocks: a body and the number of its one mask's weights, to blocks that several threads can
            decode; None where a mask is decoded as a whole.
        context: whether it reads more of its contexts than the number of weights, and takes several
            masks in one section. Such coders are slow.
    """

    id: int
    name: str
    encode: Callable[[Sequence[Mask], Sequence[MaskContext]], tuple[bytes, list[int]] | None]
    decode: Callable[[Body, Sequence[MaskContext]], list[PackedMask]]
    blocks: Callable[[Body, int], list[MaskBlock]] | None = None
    context: bool = False


def static_coder(
    id: int,  # noqa: A002 as the spec calls it
    name: str,
    encode: Callable[[Mask], bytes | None],
    decode: Callable[[Body, int], PackedMask],
    blocks: Callable[[Body, int], list[MaskBlock]] | None = None,
) -> MaskCoder:
    """A coder of one mask by itself, of which only the number of weights is known."""

    def encode_one(
        masks: Sequence[Mask], _contexts: Sequence[MaskContext]
    ) -> tuple[bytes, list[int]] | None:
        (bits,) = masks
        body = encode(bits)
        return None if body is None else (body, [len(body)])

    def decode_one(body: Body, contexts: Sequence[MaskContext]) -> list[PackedMask]:
        if len(contexts) > 1:
            raise CorruptError("section", f"several masks in a section that is {name}")
        return [decode(body, contexts[0].count)]

    return MaskCoder(id, name, encode_one, decode_one, blocks)


def order0_bits(ones: int, count: int) -> float:
    """n·H(p): bits that independent coding of a mask needs at its density."""
    if ones in (0, count):
        return 0.0
    p = ones / count
    return -count * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
