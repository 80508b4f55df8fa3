"""What a file costs, part by part: the numbers behind `pemn inspect` and every report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        kind: "masked", "dense", "constant" or "alias".
        density: share of ones in the mask; None unless masked.
        coder: name of the mask's or the group's coder; None where there is no section.
        bytes: of its section; of one that is shared, in proportion to the tensor's items.
        order0_bytes: n·H(p)/8 of the mask; None unless masked.
        max_error: the largest difference of a value from what was encoded, as the file says; 0
            where nothing was lost.
        relative_error: the same relative to the tensor's largest magnitude; 1 where all of it was
            lost.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    density: float | None
    coder: str | None
    bytes: int
    order0_bytes: float | None
    max_error: float = 0.0
    relative_error: float = 0.0


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file's bytes in five parts that add up to `file_bytes`.

    Attributes:
        header_bytes: signature, header, section table and their checksum.
        order0_bytes: Σ n·H(p)/8 over masks: what coders that treat bits as independent need.
        masked_weights: number of weights under a mask.
        bits_per_weight: mask bits per masked weight; None without masks.
        dense_model_bytes: the same tensors uncompressed, as a dense file holds them.
        prototypes: one line each.
        inference_only: the tensors are good for eval mode alone (folded batch norms).
    """

    file_bytes: int
    header_bytes: int
    manifest_bytes: int
    prototype_bytes: int
    dense_bytes: int
    mask_bytes: int
    order0_bytes: float
    masked_weights: int
    bits_per_weight: float | None
    dense_model_bytes: int
    format_version: str
    prototypes: tuple[str, ...]
    metadata: dict[str, str]
    tensors: tuple[TensorInfo, ...]
    inference_only: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return asdict(self)


def share_bytes(total: int, weights: Sequence[int]) -> list[int]:
    """`total` split in proportion to `weights`, so that the parts add up to it."""
    whole = sum(weights)
    shares, given, seen = [], 0, 0
    for weight in weights:
        seen += weight
        upto = total * seen // whole if whole else total
        shares.append(upto - given)
        given = upto
    return shares
