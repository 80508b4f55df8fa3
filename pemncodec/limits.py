"""Upper bounds that a reader checks before it allocates (spec/pemn.md section 9)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reader accepts. Raise a bound for files that you trust.

    Attributes:
        header_bytes: decompressed size of the header's JSON.
        manifest_bytes: decompressed size of the manifest's JSON.
        json_depth: nesting of objects and arrays in header and manifest.
        sections: number of sections.
        tensors: number of tensors, also of prototypes.
        dimensions: number of dimensions of one tensor.
        modules: number of modules in the manifest.
        nodes: number of graph nodes in the manifest.
        decoded_bytes: size of all tensors and prototypes of the file together, decoded.
        drawn_words: words that torch's generator draws for the file's prototypes, those included
            that it drew before them.
    """

    header_bytes: int = 64 << 20
    manifest_bytes: int = 16 << 20
    json_depth: int = 256
    sections: int = 1 << 20
    tensors: int = 1 << 20
    dimensions: int = 16
    modules: int = 1 << 16
    nodes: int = 1 << 18
    decoded_bytes: int = 16 << 30
    drawn_words: int = 1 << 33


def limits_within(decoded_bytes: int) -> Limits:
    """Bounds of a reader with so much memory; torch may have drawn each weight twice."""
    return Limits(
        decoded_bytes=decoded_bytes, drawn_words=max(Limits().drawn_words, decoded_bytes // 2)
    )


RAISED_BY = "--max-memory (limits=Limits(…)) raises it, if you trust the file"
"""What to do where a file is refused that is as large as it says."""

UNLIMITED = limits_within(1 << 62)
"""For files whose tensors are in memory already: they may be as large as these."""
