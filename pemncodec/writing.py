"""Contents → a .pemn file, written whole or not at all (spec/pemn.md section 2)."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pemncodec import dense, masks
from pemncodec.coders.mixing import MixingTensor, value_buckets
from pemncodec.container import encode_container
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
from pemncodec.header import (
    AliasRow,
    ConstantRow,
    DenseRow,
    Header,
    MaskedRow,
    SectionKind,
    StoredRow,
    TensorRow,
    Used,
    encode_header,
)
from pemncodec.manifest import encode_manifest
from pemncodec.prototype import prototype_values, used_values

_NEARLY_ALL_USED = 7 / 8  # below, storing every value of a prototype cannot pay


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
        section = add("dense", dense.encode_dense([t.data for t in group], group[0].dtype))
        for tensor in group:
            count(numel(tensor.shape))
            rows[tensor.name] = DenseRow(tensor.name, tensor.dtype, tensor.shape, section)
    masked = [tensor for tensor in contents.tensors if isinstance(tensor, MaskedTensor)]
    choices = _used_choices(contents, masked, preset)
    best = min(
        (
            _encode_weights(
                masked,
                contents.prototypes,
                used,
                preset,
                lambda values: count(values / len(choices)),
            )
            for used in choices
        ),
        key=lambda weights: weights.size,
    )
    for data, members in best.masks:
        section = add("mask", data)
        for tensor in (masked[index] for index in members):
            rows[tensor.name] = MaskedRow(
                tensor.name, tensor.dtype, tensor.shape, tensor.fill, section
            )
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
        dict(contents.metadata),
    )
    return [encode_container(encode_header(header), sections), *sections]


@dataclass(frozen=True, slots=True)
class _Weights:
    """Coded masks with the numbers of their tensors; a row's `used` and section a prototype."""

    masks: list[tuple[bytes, list[int]]]
    used: list[Used]
    stored: list[bytes]

    @property
    def size(self) -> int:
        return sum(len(data) for data, _ in self.masks) + sum(map(len, self.stored))


def _encode_weights(
    masked: Sequence[MaskedTensor],
    prototypes: Sequence[Prototype],
    used: Sequence[npt.NDArray[np.bool_] | None],
    preset: masks.Preset,
    count: Callable[[int], None],
) -> _Weights:
    """Masks and prototypes, of which the values in `used` are stored, all where it is None."""
    mixing = masks.tries_mixing(preset, _weights_of(masked))
    buckets = [
        value_buckets(_values(prototype)) if known is None and mixing else None
        for prototype, known in zip(prototypes, used, strict=True)
    ]
    tensors = [
        MixingTensor(tensor.shape, buckets[tensor.fill.prototype], tensor.fill.offset)
        for tensor in masked
    ]
    return _Weights(
        masks.encode_masks([tensor.mask.reshape(-1) for tensor in masked], tensors, preset, count),
        ["all" if known is None else "masks" for known in used],
        [
            dense.encode_dense(
                [prototype.values if known is None else prototype.values[known]], prototype.dtype
            )
            if isinstance(prototype, StoredPrototype)
            else b""
            for prototype, known in zip(prototypes, used, strict=True)
        ],
    )


def _used_choices(
    contents: Contents, masked: Sequence[MaskedTensor], preset: masks.Preset
) -> list[list[npt.NDArray[np.bool_] | None]]:
    """For every prototype which values to store, None for all; more choices where it is open.

    A prototype that is stored whole tells mixing the weights. That can be worth more than the few
    values that no mask uses.
    """
    users: dict[int, list[MaskedTensor]] = {}
    for tensor in masked:
        users.setdefault(tensor.fill.prototype, []).append(tensor)
    used: list[npt.NDArray[np.bool_] | None] = []
    for index, prototype in enumerate(contents.prototypes):
        known = None
        if isinstance(prototype, StoredPrototype):
            fills = [(t.fill.offset, t.mask.reshape(-1)) for t in users.get(index, ())]
            known = used_values(prototype.length, fills)
            known = None if known.all() else known
        used.append(known)
    whole = [None if known is None or known.mean() >= _NEARLY_ALL_USED else known for known in used]
    changed = any(a is not b for a, b in zip(used, whole, strict=True))
    mixing = masks.tries_mixing(preset, _weights_of(masked))
    return [used, whole] if changed and mixing else [used]


def _weights_of(masked: Sequence[MaskedTensor]) -> int:
    return sum(numel(tensor.shape) for tensor in masked)


def _values(prototype: Prototype) -> Array:
    if isinstance(prototype, StoredPrototype):
        return prototype.values
    return prototype_values(prototype)


def _constant_value(tensor: DenseTensor) -> bytes | None:
    """The bytes of the one value that all items have; None when they differ."""
    flat = np.ascontiguousarray(tensor.data).reshape(-1)
    if not flat.size:
        return b""
    bits = bits_of(flat)
    return flat[:1].tobytes() if (bits == bits[:1]).all() else None


def write_file(
    pieces: Iterable[bytes | memoryview], target: str | os.PathLike[str] | BinaryIO
) -> None:
    """Writes to a path atomically, or to a binary file object.

    A file appears under its name only when it is whole and on disk; what was there before stays
    until then.
    """
    if not isinstance(target, str | os.PathLike):
        for piece in pieces:
            target.write(piece)
        return
    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        for piece in pieces:
            stream.write(piece)


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `target` that takes its name when the block ends without error."""
    # Through symbolic links, so that a link to a file stays one.
    path = Path(target).resolve()
    if path.exists() and not path.is_file():
        yield path  # a device or a pipe: nothing to replace, and a folder refuses by itself
        return
    descriptor, name = tempfile.mkstemp(prefix=".pemn-", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    os.close(descriptor)
    try:
        yield temporary
        with contextlib.suppress(OSError):
            temporary.chmod(_mode_of(path))
        _fsync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        with contextlib.suppress(OSError):
            _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mode_of(path: Path) -> int:
    """The permissions that a plain `open(path, "w")` would leave."""
    try:
        return path.stat().st_mode & 0o7777
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask
