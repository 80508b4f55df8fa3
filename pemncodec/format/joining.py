"""What is in several files → the bytes of one that needs no other."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from dataclasses import replace

from pemncodec.format.columns import SectionKind
from pemncodec.format.container import encode_container
from pemncodec.format.header import Header, encode_header, minor_version
from pemncodec.format.prototype_rows import PrototypeRow, SharedRow, StoredRow, referred_row
from pemncodec.format.sections import SectionSource, in_file
from pemncodec.spool import Spooled


def join_sections(header: Header, sections: Sequence[bytes]) -> bytes:
    """A file of a header and its sections."""
    entries = [Spooled(0, len(section), zlib.crc32(section)) for section in sections]
    front = encode_container(encode_header(header), entries, minor_version(header))
    return b"".join([front, *sections])


def join_prototypes(source: SectionSource) -> bytes:
    """A file with the contents of one that takes prototypes from files beside it.

    Raises:
        ShardError: these are not there, or are not what is said of them.
    """
    count = len(source.container.sections)
    source.expect(range(count))
    sections = [source.read(index) for index in range(count)]
    kinds: list[SectionKind] = list(source.header.sections)
    prototypes: list[PrototypeRow] = []
    for row in source.header.prototypes:
        if not isinstance(row, SharedRow):
            prototypes.append(row)
            continue
        with contextlib.closing(source.beside(row.file)) as other, in_file(row.file):
            stored = referred_row(row, other.header.prototypes)
            prototypes.append(StoredRow(row.dtype, row.length, "all", len(sections)))
            sections.append(other.read(stored.section))
            kinds.append("prototype")
    header = replace(source.header, sections=tuple(kinds), prototypes=tuple(prototypes))
    return join_sections(header, sections)
