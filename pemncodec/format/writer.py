"""Contents → the bytes of a .pemn file (spec/pemn.md section 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import repeat

import numpy as np

from pemncodec.architecture.manifest import encode_manifest
from pemncodec.coders import dense, masks
from pemncodec.coders.mask_coder import MaskContext, order0_bits
from pemncodec.contents import (
    AliasTensor,
    Array,
    Contents,
    DenseTensor,
    MaskedTensor,
    Prototype,
    StoredPrototype,
    bits_of,
    numel,
)
from pemncodec.format.columns import SectionKind
from pemncodec.format.container import encode_container
from pemncodec.format.contexts import prototype_buckets
from pemncodec.format.header import (
    AliasRow,
    ConstantRow,
    DenseRow,
    Header,
    MaskedRow,
    MaskRow,
    TensorRow,
    encode_header,
    minor_version,
)
from pemncodec.format.prototype_rows import StoredRow, Used
from pemncodec.threads import available_threads
from pemncodec.values.fill import used_values


def encode_contents(
    contents: Contents,
    progress: Callable[[float], None] | None = None,
    preset: masks.Preset = "default",
) -> list[bytes]:
    """A whole file in pieces: its front, then each section.

    Args:
        contents: what the file holds.
        progress: called with the share of all values that is coded, 0 to 1.
        preset: which mask coders to try.
    """
    total = sum(numel(t.shape) for t in contents.tensors if not isinstance(t, AliasTensor))
    coded = 0.0

    def count(values: float) -> None:
        nonlocal coded
        coded += values
        if progress is not None:
            progress(coded / max(total, 1))

    sections: list[bytes] = []
    kinds: list[SectionKind] = []

    def add(kind: SectionKind, data: bytes) -> int:
        sections.append(data)
        kinds.append(kind)
        return len(sections) - 1

    if contents.manifest is not None:
        add("manifest", encode_manifest(contents.manifest))
    rows: dict[str, TensorRow] = {
        tensor.name: AliasRow(tensor.name, tensor.target)
        for tensor in contents.tensors
        if isinstance(tensor, AliasTensor)
    }
    changing: list[DenseTensor] = []
    for tensor in contents.tensors:
        if isinstance(tensor, DenseTensor):
            value = _constant_value(tensor)
            if value is None:
                changing.append(tensor)
            else:
                count(numel(tensor.shape))
                rows[tensor.name] = ConstantRow(tensor.name, tensor.dtype, tensor.shape, value)
    for group in dense.group_tensors(changing):
        arrays = [tensor.data for tensor in group]
        data = dense.encode_dense(arrays, group[0].dtype, group[0].mode)
        section = add("dense", data)
        for tensor, error in zip(group, dense.largest_errors(data, arrays), strict=True):
            count(numel(tensor.shape))
            error += tensor.error
            rows[tensor.name] = DenseRow(tensor.name, tensor.dtype, tensor.shape, section, error)
    masked = [tensor for tensor in contents.tensors if isinstance(tensor, MaskedTensor)]
    for tensor in masked:
        rows[tensor.name] = MaskedRow(tensor.name, tensor.dtype, tensor.shape, tensor.fill)
    best = _encode_weights(masked, contents.prototypes, preset, count)
    section_of: dict[int, int] = {}
    for data, members in best.masks:
        section_of |= dict.fromkeys(members, add("mask", data))
    prototypes = [
        StoredRow(prototype.dtype, prototype.length, used, add("prototype", data))
        if isinstance(prototype, StoredPrototype)
        else prototype
        for prototype, used, data in zip(contents.prototypes, best.used, best.stored, strict=True)
    ]
    header = Header(
        tuple(kinds),
        tuple(prototypes),
        tuple(rows[tensor.name] for tensor in contents.tensors),
        tuple(MaskRow(tensor.name, section_of[i]) for i, tensor in enumerate(masked)),
        dict(contents.metadata),
        contents.inference_only,
    )
    minor = minor_version(header)
    return [encode_container(encode_header(header), sections, minor), *sections]


_SAMPLE = 1 << 12  # values


@dataclass(frozen=True, slots=True)
class _Weights:
    """Coded masks with the numbers of their tensors; a row's `used` and section a prototype."""

    masks: list[masks.MaskSection]
    used: list[Used]
    stored: list[bytes]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return masks.total_bytes(self.masks) + sum(map(len, self.stored))


def _encode_weights(
    masked: Sequence[MaskedTensor],
    prototypes: Sequence[Prototype],
    preset: masks.Preset,
    count: Callable[[float], None],
) -> _Weights:
    """Masks, and prototypes with the values that masks use, or whole where the file is smaller.

    A prototype that is stored whole tells coders with context the weights. That can be worth more
    than the values that no mask uses.
    """
    context = masks.tries_context(preset, sum(numel(tensor.shape) for tensor in masked))
    users: list[list[MaskedTensor]] = [[] for _ in prototypes]
    for tensor in masked:
        users[tensor.fill.prototype].append(tensor)
    sections: list[dict[Used, bytes]] = []
    used: list[Used] = []
    candidates: list[int] = []
    with ThreadPoolExecutor(available_threads()) as pool:
        made = pool.map(_stored_sections, prototypes, users, repeat(context))
    for index, forms in enumerate(made):
        sections.append(forms)
        used.append(next(iter(sections[-1])))
        more = len(sections[-1].get("all", b"")) - len(sections[-1][used[-1]])
        if context and 0 < 8 * more < sum(_order0_bits(tensor) for tensor in users[index]):
            candidates.append(index)
    buckets = [
        cache(partial(prototype_buckets, prototype)) if context and "all" in forms else None
        for prototype, forms in zip(prototypes, sections, strict=True)
    ]

    def encode(used: list[Used]) -> _Weights:
        contexts = [
            MaskContext(
                tensor.shape,
                buckets[tensor.fill.prototype] if used[tensor.fill.prototype] == "all" else None,
                tensor.fill.offset,
            )
            for tensor in masked
        ]
        return _Weights(
            masks.encode_masks(
                [tensor.mask.reshape(-1) for tensor in masked],
                contexts,
                preset,
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


def _stored_sections(
    prototype: Prototype, users: Sequence[MaskedTensor], context: bool
) -> dict[Used, bytes]:
    """Sections of a prototype by which of its values they hold, the fewest first.

    That of all values is made where masks use all, and where the others may be worth it. A seeded
    prototype has no section: nothing is stored, and all is known.
    """
    if not isinstance(prototype, StoredPrototype):
        return {"all": b""}
    used = used_values(prototype.length, [(t.fill.offset, t.mask.reshape(-1)) for t in users])
    sections: dict[Used, bytes] = {}
    if not used.all():
        sections["masks"] = dense.encode_dense([prototype.values[used]], prototype.dtype)
    if used.all() or (context and _may_pay(prototype, used, users)):
        sections["all"] = dense.encode_dense([prototype.values], prototype.dtype)
    return sections


def _may_pay(prototype: StoredPrototype, used: Array, users: Sequence[MaskedTensor]) -> bool:
    """Whether values that no mask uses may cost less than the masks, by a sample of the values."""
    unused = prototype.values[~used]
    if unused.size <= 4 * _SAMPLE:
        return True
    bits = bits_of(unused)
    if (bits == bits[0]).all():  # as in a checkpoint of zeros: where they are is what masks say
        return False
    sample = unused[:: unused.size // _SAMPLE]
    cost = 8 * len(dense.encode_dense([sample], prototype.dtype)) * unused.size / sample.size
    return cost < 2 * sum(map(_order0_bits, users))


def _order0_bits(tensor: MaskedTensor) -> float:
    return order0_bits(int(np.count_nonzero(tensor.mask)), tensor.mask.size)


def _constant_value(tensor: DenseTensor) -> bytes | None:
    """The bytes of the one value that all items have; None when they differ."""
    flat = np.ascontiguousarray(tensor.data).reshape(-1)
    if not flat.size:
        return b""
    bits = bits_of(flat)
    return flat[:1].tobytes() if (bits == bits[:1]).all() else None
