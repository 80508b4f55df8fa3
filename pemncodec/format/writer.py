"""Contents → the bytes of a .pemn file (spec/pemn.md section 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

import numpy as np

from pemncodec.architecture.manifest import encode_manifest
from pemncodec.coders import dense, masks
from pemncodec.coders.lossless import Effort
from pemncodec.contents import (
    AliasTensor,
    Contents,
    DenseTensor,
    MaskedTensor,
    PrototypePlace,
    StoredPrototype,
    bits_of,
    numel,
)
from pemncodec.errors import EncodeError
from pemncodec.format.columns import SectionKind, is_file_name
from pemncodec.format.container import encode_container
from pemncodec.format.digests import prototype_digest
from pemncodec.format.encoded import EncodedFile
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
from pemncodec.format.prototype_rows import PrototypeRow, SharedRow, StoredRow
from pemncodec.format.weights import encode_weights
from pemncodec.spool import Spool, Spooled
from pemncodec.threads import available_threads, each_by_size


def encode_contents(
    contents: Contents,
    progress: Callable[[float], None] | None = None,
    preset: masks.Preset = "default",
    spool: Spool | None = None,
) -> EncodedFile:
    """A whole file: its front, and each section. Any number of threads makes the same.

    Args:
        contents: what the file holds.
        progress: called with the share of all values that is coded, 0 to 1.
        preset: which mask coders to try, and how hard all coders do.
        spool: where each section goes as soon as it is made; None opens one.
    """
    total = sum(numel(t.shape) for t in contents.tensors if not isinstance(t, AliasTensor))
    coded = 0.0

    def count(values: float) -> None:
        nonlocal coded
        coded += values
        if progress is not None:
            progress(coded / max(total, 1))

    count(0)
    with ThreadPoolExecutor(available_threads()) as pool:
        return _encode(contents, count, preset, pool, spool or Spool())


def _encode(
    contents: Contents,
    count: Callable[[float], None],
    preset: masks.Preset,
    pool: Executor,
    spool: Spool,
) -> EncodedFile:
    sections: list[Spooled] = []
    kinds: list[SectionKind] = []

    def add(kind: SectionKind, section: Spooled) -> int:
        sections.append(section)
        kinds.append(kind)
        return len(sections) - 1

    if contents.manifest is not None:
        add("manifest", spool.add(encode_manifest(contents.manifest)))
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
    groups = dense.group_tensors(changing)
    sizes = [sum(tensor.data.nbytes for tensor in group) for group in groups]
    coded = each_by_size(pool, partial(_encode_group, preset, spool), groups, sizes)
    for group, (dense_section, errors) in zip(groups, coded, strict=True):
        section = add("dense", dense_section)
        for tensor, error in zip(group, errors, strict=True):
            count(numel(tensor.shape))
            error += tensor.error
            rows[tensor.name] = DenseRow(tensor.name, tensor.dtype, tensor.shape, section, error)
    masked = [tensor for tensor in contents.tensors if isinstance(tensor, MaskedTensor)]
    for tensor in masked:
        rows[tensor.name] = MaskedRow(tensor.name, tensor.dtype, tensor.shape, tensor.fill)
    best = encode_weights(masked, contents.prototypes, preset, pool, spool, count)
    section_of: dict[int, int] = {}
    for mask_section, members in best.masks:
        section_of |= dict.fromkeys(members, add("mask", mask_section))
    prototypes: list[PrototypeRow] = []
    for prototype, used, stored in zip(contents.prototypes, best.used, best.stored, strict=True):
        if not isinstance(prototype, StoredPrototype):
            prototypes.append(prototype)
        elif prototype.place is None:
            section = add("prototype", stored)
            prototypes.append(StoredRow(prototype.dtype, prototype.length, used, section))
        else:
            prototypes.append(_shared_row(prototype, prototype.place))
    header = Header(
        tuple(kinds),
        tuple(prototypes),
        tuple(rows[tensor.name] for tensor in contents.tensors),
        tuple(MaskRow(tensor.name, section_of[i]) for i, tensor in enumerate(masked)),
        dict(contents.metadata),
        contents.inference_only,
    )
    minor = minor_version(header)
    front = encode_container(encode_header(header), sections, minor)
    return EncodedFile(front, sections, spool)


def _shared_row(prototype: StoredPrototype, place: PrototypePlace) -> SharedRow:
    if not is_file_name(place.file):
        raise EncodeError(f"{place.file!r:.80} cannot name a shard: use letters, digits, - and _")
    dtype, values = prototype.dtype, prototype.values
    digest = prototype_digest(dtype, values)
    return SharedRow(dtype, prototype.length, place.file, place.prototype, digest)


def _encode_group(
    preset: masks.Preset, spool: Spool, group: Sequence[DenseTensor], pool: Executor | None
) -> tuple[Spooled, list[float]]:
    """A section of trained tensors, and how far each of them is off."""
    effort: Effort = "most" if preset == "max" else "usual"
    arrays = [tensor.data for tensor in group]
    data = dense.encode_dense(arrays, group[0].dtype, group[0].mode, effort, pool)
    return spool.add(data), dense.largest_errors(data, arrays)


def _constant_value(tensor: DenseTensor) -> bytes | None:
    """The bytes of the one value that all items have; None when they differ."""
    flat = np.ascontiguousarray(tensor.data).reshape(-1)
    if not flat.size:
        return b""
    bits = bits_of(flat)
    return flat[:1].tobytes() if (bits == bits[:1]).all() else None
