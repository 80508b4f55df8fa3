"""float32 tensors in fewer bits: a head, then a lossless section of the rest (spec section 7.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from pemncodec.contents import Array, DenseMode, Floats
from pemncodec.values.rounding import one_nan, round_to, widen

Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Shortening:
    """A way to lose bits.

    Attributes:
        id: first byte of its sections.
        mode: what callers ask for; reports call the coder so, too.
        inner_dtype: of the lossless section behind the head.
        encode: finite float32 arrays [*shape] to a head and arrays of `inner_dtype`.
        decode: a body and the shapes of its tensors to where the head ends, and to what makes
            float32 [n] of all items of the inner section; raises `DecodeError` for a head that
            `encode` cannot have written.
    """

    id: int
    mode: DenseMode
    inner_dtype: str
    encode: Callable[[Sequence[Floats]], tuple[bytes, list[Array]]]
    decode: Callable[[bytes, Shapes], tuple[int, Callable[[npt.NDArray[Any]], Floats]]]


def rounding_to(id: int, mode: DenseMode, dtype: str) -> Shortening:  # noqa: A002 as the spec has it
    """Each value rounded to a shorter float; there is no head."""

    def encode(arrays: Sequence[Floats]) -> tuple[bytes, list[Array]]:
        return b"", [round_to(array.reshape(-1), dtype) for array in arrays]

    def decode(_body: bytes, _shapes: Shapes) -> tuple[int, Callable[[Array], Floats]]:
        return 0, lambda items: one_nan(widen(items, dtype))

    return Shortening(id, mode, dtype, encode, decode)


FP16 = rounding_to(4, "fp16", "float16")
BF16 = rounding_to(5, "bf16", "bfloat16")
