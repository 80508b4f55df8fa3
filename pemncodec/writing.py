"""Contents → a .pemn file, written whole or not at all (spec/pemn.md section 2)."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pemncodec import dense, masks
from pemncodec.container import encode_container
from pemncodec.contents import (
    AliasTensor,
    Contents,
    DenseTensor,
    MaskedTensor,
    SeededPrototype,
    bits_of,
    numel,
)
from pemncodec.header import (
    AliasRow,
    ConstantRow,
    DenseRow,
    Header,
    MaskedRow,
    PrototypeRow,
    SectionKind,
    StoredRow,
    TensorRow,
    encode_header,
)
from pemncodec.manifest import encode_manifest
from pemncodec.prototype import used_values


def encode_contents(
    contents: Contents, progress: Callable[[float], None] | None = None
) -> list[bytes]:
    """A whole file in pieces: its front, then each section.

    Args:
        contents: what the file holds.
        progress: called with the share of all values that is coded, 0 to 1.
    """
    total = sum(numel(t.shape) for t in contents.tensors if not isinstance(t, AliasTensor))
    coded = 0

    def count(values: int) -> None:
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
    for masked in contents.tensors:
        if isinstance(masked, MaskedTensor):
            section = add("mask", masks.encode_mask(masked.mask.reshape(-1)))
            count(numel(masked.shape))
            rows[masked.name] = MaskedRow(
                masked.name, masked.dtype, masked.shape, masked.fill, section
            )
    prototypes: list[PrototypeRow] = []
    for index, prototype in enumerate(contents.prototypes):
        if isinstance(prototype, SeededPrototype):
            prototypes.append(prototype)
            continue
        used = used_values(
            prototype.length,
            [
                (t.fill.offset, t.mask.reshape(-1))
                for t in contents.tensors
                if isinstance(t, MaskedTensor) and t.fill.prototype == index
            ],
        )
        section = add("prototype", dense.encode_dense([prototype.values[used]], prototype.dtype))
        prototypes.append(
            StoredRow(prototype.dtype, prototype.length, "all" if used.all() else "masks", section)
        )
    header = Header(
        tuple(kinds),
        tuple(prototypes),
        tuple(rows[tensor.name] for tensor in contents.tensors),
        dict(contents.metadata),
    )
    return [encode_container(encode_header(header), sections), *sections]


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
