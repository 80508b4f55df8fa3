"""Masks, and the prototypes that are stored → sections (spec/pemn.md sections 5.4 and 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate

import numpy as np

from pemncodec.coders import dense, masks
from pemncodec.coders.lossless import Effort
from pemncodec.coders.mask_coder import MaskContext, order0_bits
from pemncodec.contents import Array, Mask, MaskedTensor, Prototype, StoredPrototype, bits_of, numel
from pemncodec.format.contexts import prototype_buckets
from pemncodec.format.prototype_rows import Used
from pemncodec.spool import Spool, Spooled
from pemncodec.threads import each, each_by_size
from pemncodec.values.fill import used_values

_SAMPLE = 1 << 12  # values
_PART = 1 << 18  # values that are taken at one time
_NOTHING = Spooled(0, 0, 0)


@dataclass(frozen=True, slots=True)
class CodedWeights:
    """Coded masks with the numbers of their tensors; `used` and section of each prototype."""

    masks: list[masks.MaskSection]
    used: list[Used]
    stored: list[Spooled]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return masks.total_bytes(self.masks) + sum(section.size for section in self.stored)


def encode_weights(
    masked: Sequence[MaskedTensor],
    prototypes: Sequence[Prototype],
    preset: masks.Preset,
    pool: Executor,
    spool: Spool,
    count: Callable[[float], None],
) -> CodedWeights:
    """Masks, and prototypes with the values that masks use, or whole where the file is smaller.

    A prototype that is stored whole tells coders with context the weights. That can be worth more
    than the values that no mask uses.
    """
    context = masks.tries_context(preset, sum(numel(tensor.shape) for tensor in masked))
    effort: Effort = "most" if preset == "max" else "usual"
    users: list[list[MaskedTensor]] = [[] for _ in prototypes]
    for tensor in masked:
        users[tensor.fill.prototype].append(tensor)
    sections: list[dict[Used, Spooled]] = []
    used: list[Used] = []
    candidates: list[int] = []
    job = partial(_stored_sections, context, effort, spool)
    sizes = [_stored_bytes(prototype) for prototype in prototypes]
    made = each_by_size(pool, job, list(zip(prototypes, users, strict=True)), sizes)
    for index, forms in enumerate(made):
        sections.append(forms)
        used.append(next(iter(forms)))
        more = forms.get("all", _NOTHING).size - forms[used[-1]].size
        if context and 0 < 8 * more < sum(_order0_bits(tensor) for tensor in users[index]):
            candidates.append(index)
    buckets = [
        cache(partial(prototype_buckets, prototype)) if context and "all" in forms else None
        for prototype, forms in zip(prototypes, sections, strict=True)
    ]
    contexts: list[dict[Used, MaskContext]] = [
        {
            "masks": MaskContext(tensor.shape, None, tensor.fill.offset),
            "all": MaskContext(tensor.shape, buckets[tensor.fill.prototype], tensor.fill.offset),
        }
        for tensor in masked
    ]
    encoder = masks.MaskEncoder([tensor.mask.reshape(-1) for tensor in masked], preset, pool, spool)

    def encode(used: list[Used]) -> CodedWeights:
        return CodedWeights(
            encoder.encode(
                [
                    own[used[tensor.fill.prototype]]
                    for tensor, own in zip(masked, contexts, strict=True)
                ],
                lambda weights: count(weights / (1 + len(candidates))),
            ),
            used,
            [forms[which] for forms, which in zip(sections, used, strict=True)],
        )

    best = encode(used)
    for index in candidates:
        whole = encode([*best.used[:index], "all", *best.used[index + 1 :]])
        best = min(best, whole, key=lambda weights: weights.size)
    return best


def _stored_bytes(prototype: Prototype) -> int:
    return prototype.given.nbytes if isinstance(prototype, StoredPrototype) else 0


def _stored_sections(
    context: bool,
    effort: Effort,
    spool: Spool,
    used_by: tuple[Prototype, Sequence[MaskedTensor]],
    pool: Executor | None,
) -> dict[Used, Spooled]:
    """Sections of a prototype by which of its values they hold, the fewest first.

    That of all values is made where masks use all, and where the others may be worth it. A
    prototype of a seed, or of another file, has no section: nothing is stored, and all is known.
    """
    prototype, users = used_by
    if not isinstance(prototype, StoredPrototype) or prototype.place is not None:
        return {"all": _NOTHING}
    encode = partial(dense.encode_dense, dtype=prototype.dtype, effort=effort, pool=pool)
    if prototype.whole:
        return {"all": spool.add(encode([prototype.values]))}
    used = used_values(prototype.length, [(t.fill.offset, t.mask.reshape(-1)) for t in users])
    which: list[Used] = ["all"] if used.all() else ["masks"]
    if which == ["masks"] and context and _may_pay(prototype, used, users):
        which.append("all")
    sections: dict[Used, Spooled] = {}
    for form in which:
        # Large ones: nothing is held that the coder does not need.
        values = [_values_where(prototype, used, pool) if form == "masks" else prototype.values]
        if form == which[-1]:
            del used
        sections[form] = spool.add(encode(values))
    return sections


def _values_where(prototype: StoredPrototype, used: Mask, pool: Executor | None = None) -> Array:
    """The values of a prototype where a mask is True, one after the other."""
    parts = [slice(start, start + _PART) for start in range(0, used.size, _PART)]
    ends = [*accumulate(int(np.count_nonzero(used[part])) for part in parts)]
    values = np.empty(ends[-1] if ends else 0, prototype.given.dtype)

    def take(part: slice, own: Array) -> None:
        mask = used[part]
        own[:] = prototype.part(part.start, part.start + mask.size)[mask]

    targets = np.split(values, ends[:-1])
    for _ in each(pool, lambda index: take(parts[index], targets[index]), range(len(parts))):
        pass
    return values


def _may_pay(prototype: StoredPrototype, used: Mask, users: Sequence[MaskedTensor]) -> bool:
    """Whether values that no mask uses may cost less than the masks, by a sample of the values."""
    unused = _values_where(prototype, ~used)
    if unused.size <= 4 * _SAMPLE:
        return True
    bits = bits_of(unused)
    if (bits == bits[0]).all():  # as in a checkpoint of zeros: where they are is what masks say
        return False
    sample = unused[:: unused.size // _SAMPLE]
    cost = (
        8
        * len(dense.encode_dense([sample], prototype.dtype, effort="guess"))
        * unused.size
        / sample.size
    )
    return cost < 2 * sum(map(_order0_bits, users))


def _order0_bits(tensor: MaskedTensor) -> float:
    return order0_bits(int(np.count_nonzero(tensor.mask)), tensor.mask.size)
