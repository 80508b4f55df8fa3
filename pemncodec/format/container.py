"""Signature, header, section table, sections, checksums (spec/pemn.md sections 3 and 4).

Knows nothing of what header and sections mean: bytes in, bytes out, every length checked against
what is there before anything is read.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from pemncodec.coders.canonical_json import is_object
from pemncodec.coders.varint import decode_varint, encode_varint
from pemncodec.coders.zstd import decode_zstd, encode_zstd
from pemncodec.errors import (
    CorruptError,
    LimitError,
    NotPemnError,
    TruncatedError,
    UnsupportedVersionError,
)
from pemncodec.limits import RAISED_BY, Limits
from pemncodec.spool import Spooled

SIGNATURE = b"\x89PMN\r\n\x1a\n"
MAJOR = 0
_DAMAGED = ": bytes were damaged on their way or on the disk; take the file once more"
_DAMAGED_AS_TEXT = (
    SIGNATURE.replace(b"\r\n", b"\n"),
    SIGNATURE.replace(b"\n", b"\r\n"),
    SIGNATURE.replace(b"\r\n", b"\r"),
    SIGNATURE.replace(b"\x89", b"\x09"),  # seven bits of each byte
    SIGNATURE.decode("latin-1").encode(),
    SIGNATURE.decode(errors="replace").encode(),
)


class Readable(Protocol):
    """What gives the next bytes, none only at its end."""

    def read(self, size: int, /) -> bytes: ...


_PREFIX = struct.Struct("<8sBBIII")  # signature, major, minor, header, frame and table bytes
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class SectionEntry:
    """Where a section lies in the file, and its CRC-32."""

    offset: int
    length: int
    crc: int


@dataclass(frozen=True, slots=True)
class Container:
    """The front of a file: all but the sections themselves.

    Attributes:
        version: major and minor version of the format.
        header: the header's JSON, decompressed.
        size: bytes of the front: signature, header, table and their checksum.
        crc: that checksum.
        sections: in file order.
        shards: bytes of each file by name, if these are the fronts of several.
    """

    version: tuple[int, int]
    header: bytes
    size: int
    crc: int
    sections: tuple[SectionEntry, ...]
    shards: Mapping[str, int] = field(default_factory=dict)

    @property
    def file_size(self) -> int:
        return self.sections[-1].offset + self.sections[-1].length if self.sections else self.size


def encode_container(header: bytes, sections: Iterable[Spooled], minor: int) -> bytes:
    """The front of a file of a minor version; the sections follow it in order."""
    frame = encode_zstd(header)
    table = b"".join(encode_varint(s.size) + _CRC.pack(s.crc) for s in sections)
    prefix = _PREFIX.pack(SIGNATURE, MAJOR, minor, len(header), len(frame), len(table))
    front = prefix + frame + table
    return front + _CRC.pack(zlib.crc32(front))


def decode_container(stream: Readable, limits: Limits) -> Container:
    """Reads and checks the front of a file, of which the stream is at the first byte.

    Raises:
        NotPemnError: the signature differs.
        UnsupportedVersionError: another major version.
        TruncatedError, CorruptError, LimitError: as their names say.
    """
    prefix = read_up_to(stream, _PREFIX.size)
    check_signature(prefix)
    if len(prefix) < _PREFIX.size:
        raise TruncatedError("truncated", "the file ends within its first fields", offset=0)
    _, major, minor, header_size, frame_size, table_size = _PREFIX.unpack(prefix)
    if major != MAJOR:
        raise UnsupportedVersionError(
            "version",
            f"format version {major}.{minor}, this reader knows {MAJOR}.x: update pemncodec",
            offset=8,
        )
    # No frame of a reader's limit is longer than its content by more than a few bytes.
    if max(header_size, frame_size - 1024) > limits.header_bytes:
        raise LimitError(
            "limit", f"a header of {header_size} bytes, the limit is {limits.header_bytes}"
        )
    if table_size > limits.sections * (10 + _CRC.size):
        raise LimitError("limit", f"more sections than the limit of {limits.sections}")
    rest = _read(stream, frame_size + table_size + _CRC.size, _PREFIX.size, "header")
    front = prefix + rest[: -_CRC.size]
    (crc,) = _CRC.unpack(rest[-_CRC.size :])
    if zlib.crc32(front) != crc:
        raise CorruptError(
            "checksum", f"the checksum of the header does not match{_DAMAGED}", offset=0
        )
    header = decode_zstd(rest[:frame_size], size=header_size, limit=limits.header_bytes)
    size = len(prefix) + len(rest)
    table = rest[frame_size : -_CRC.size]
    return Container((major, minor), header, size, crc, _decode_table(table, size, limits))


def read_section(stream: BinaryIO, entry: SectionEntry, index: int) -> bytes:
    """One section's bytes, its checksum verified.

    Raises:
        TruncatedError: the file ends within the section.
        CorruptError: the checksum does not match.
    """
    stream.seek(entry.offset)
    data = _read(stream, entry.length, entry.offset, f"section {index}")
    check_section(data, entry, index)
    return data


def check_section(data: bytes, entry: SectionEntry, index: int) -> None:
    """Raises CorruptError where the checksum does not match."""
    if zlib.crc32(data) != entry.crc:
        raise CorruptError("checksum", f"the checksum does not match{_DAMAGED}", section=index)


def check_file_size(actual: int, container: Container) -> None:
    """Raises TruncatedError or CorruptError unless the file ends where its last section does."""
    if actual < container.file_size:
        raise TruncatedError(
            "truncated", f"the file has {actual} bytes, its header says {container.file_size}"
        )
    if actual > container.file_size:
        raise CorruptError(
            "trailing", f"{actual - container.file_size} bytes behind the end of the file"
        )


def check_stored_size(size: int, limits: Limits) -> None:
    """Raises LimitError where a file has more bytes than all that may be decoded from it.

    Coded tensors are hardly ever larger than decoded ones.
    """
    most = limits.decoded_bytes + limits.header_bytes + limits.manifest_bytes
    if size > most:
        raise LimitError("limit", f"a file of {size:,} bytes, the limit is {most:,}: {RAISED_BY}")


def check_signature(prefix: bytes) -> None:
    """Raises NotPemnError or TruncatedError unless `prefix` begins as a file does."""
    head = prefix[: len(SIGNATURE)]
    if head == SIGNATURE:
        return
    if head and SIGNATURE.startswith(head):
        raise TruncatedError("truncated", "the file ends within its signature", offset=0)
    if is_object(head):
        raise NotPemnError(
            "not-pemn",
            "JSON, not a .pemn file: open an index by its path or URL, as shards are beside it",
            offset=0,
        )
    if any(head[:6] == damaged[:6] for damaged in _DAMAGED_AS_TEXT):
        raise NotPemnError("not-pemn", "a .pemn file damaged by a text-mode transfer", offset=0)
    if head[1:4] == SIGNATURE[1:4]:
        raise NotPemnError("not-pemn", "a .pemn file whose signature is damaged", offset=0)
    raise NotPemnError("not-pemn", "not a .pemn file", offset=0)


def _decode_table(table: bytes, front_size: int, limits: Limits) -> tuple[SectionEntry, ...]:
    entries: list[SectionEntry] = []
    position, offset = 0, front_size
    while position < len(table):
        if len(entries) == limits.sections:
            raise LimitError("limit", f"more sections than the limit of {limits.sections}")
        length, position = decode_varint(table, position)
        if position + _CRC.size > len(table):
            raise TruncatedError("truncated", "the section table is cut off")
        (crc,) = _CRC.unpack_from(table, position)
        position += _CRC.size
        entries.append(SectionEntry(offset, length, crc))
        offset += length
    return tuple(entries)


def _read(stream: Readable, size: int, offset: int, what: str) -> bytes:
    data = read_up_to(stream, size)
    if len(data) < size:
        short = size - len(data)
        raise TruncatedError(
            "truncated", f"the file ends within the {what}, {short} bytes short", offset=offset
        )
    return data


def read_up_to(stream: Readable, size: int) -> bytes:
    """Bytes of the stream, fewer than `size` only where it ends."""
    # In steps, so that a length that is a lie costs no more memory than the file has bytes.
    parts, missing = [], size
    while missing:
        part = stream.read(min(missing, 1 << 24))
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
