"""What a .pemn file holds, as frozen values of NumPy arrays. No torch, no bytes of the format.

Tensor data travels in its *carrier* dtype: the NumPy dtype of the same item size that holds the
tensor's bits. It is the tensor's own dtype where NumPy has it, else an unsigned integer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Distribution = Literal["uniform", "signed-constant", "normal"]
TorchDistribution = Literal[
    "normal", "uniform", "normal-signs", "uniform-signs", "numpy-uniform", "numpy-signs"
]
TorchVariant = Literal["vector", "scalar"]
_BLOCK = 1 << 16  # values that are made at one time: they stay in the cache

DenseMode = Literal["lossless", "fp16", "bf16", "q8"]
Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
PackedMask = npt.NDArray[np.uint8]

CARRIERS: MappingProxyType[str, np.dtype[Any]] = MappingProxyType(
    {
        name: np.dtype(carrier)
        for name, carrier in {
            "bool": "|u1",
            "uint8": "|u1",
            "int8": "|i1",
            "uint16": "<u2",
            "int16": "<i2",
            "uint32": "<u4",
            "int32": "<i4",
            "uint64": "<u8",
            "int64": "<i8",
            "float16": "<f2",
            "bfloat16": "<u2",
            "float32": "<f4",
            "float64": "<f8",
            "complex32": "<u4",
            "complex64": "<c8",
            "complex128": "<c16",
            "float8_e4m3fn": "|u1",
            "float8_e4m3fnuz": "|u1",
            "float8_e5m2": "|u1",
            "float8_e5m2fnuz": "|u1",
            "float8_e8m0fnu": "|u1",
            "float4_e2m1fn_x2": "|u1",
        }.items()
    }
)
"""dtype name (torch's own) → carrier dtype, little-endian. bool is one byte, 0 or 1."""

WEIGHT_DTYPES = ("float32", "float64", "float16", "bfloat16")
"""dtypes that a masked tensor may have."""


def numel(shape: tuple[int, ...]) -> int:
    """Number of elements of a tensor of that shape; 1 for a 0-d one."""
    return math.prod(shape)


def bits_of(values: Array) -> Array:
    """The same memory as unsigned integers, so that −0.0 and NaN payloads compare exactly.

    Items of 16 bytes become two integers in a last dimension of their own.
    """
    if values.dtype.itemsize == 16:
        return values.reshape(-1).view(np.dtype("<u8")).reshape(*values.shape, 2)
    return values.view(np.dtype(f"<u{values.dtype.itemsize}"))


@dataclass(frozen=True, slots=True)
class SeededPrototype:
    """Values that the portable generator makes (spec section 5).

    Attributes:
        distribution: which values the generator's words become.
        seed: 64-bit key of the generator.
        length: number of values.
        stream: upper half of the counter; prototypes of one seed differ in it.
        period: 0, or how many values are made, repeated to `length` and shuffled by a permutation
            from the same stream (spec section 5.2).
    """

    distribution: Distribution
    seed: int
    length: int
    stream: int = 0
    period: int = 0

    @property
    def in_words(self) -> str:
        """What it is, on one line."""
        values = f"{self.length:,} {self.distribution} values"
        return f"{values}, from seed {self.seed}, stream {self.stream}"


@dataclass(frozen=True, slots=True)
class TorchPrototype:
    """Values that torch's CPU generator, or NumPy's legacy one, makes for a tensor (spec 5.5).

    `normal_(0, std)` is the distribution "normal" with a fill's scale of std; so are all of
    `torch.nn.init` that call it. `uniform_(-b, b)` is "uniform" with a scale of b in the "vector"
    variant, and with `low` and `high` of −b and b in both. `np.random.uniform(low, high)` is
    "numpy-uniform", rounded to binary32, and `np.random.choice([-b, b])` is "numpy-signs" with a
    scale of b.

    Attributes:
        distribution: "normal", with variance 1; "uniform", from `low` to `high`; or the signs of
            either, −1, 0 and 1, those of "uniform" where the range is symmetric; "numpy-uniform",
            from `low` to `high`; "numpy-signs", −1 and 1.
        seed: what `torch.manual_seed` was given, its lower 32 bits, or `np.random.seed`.
        length: number of values.
        skip: words that the generator had drawn before.
        low: a binary32 number, of "uniform"; any of "numpy-uniform"; −1 of others.
        high: likewise; 1 of others.
        variant: the arithmetic: "vector" is that of torch on x86 with AVX2, "scalar" that of a
            torch without vector instructions (`ATEN_CPU_CAPABILITY=default`).
        drawn: how many elements the tensor had, if these are only its first ones: random vectors
            are cut from the largest layer. 0 if there are no others.
    """

    distribution: TorchDistribution
    seed: int
    length: int
    skip: int = 0
    low: float = -1.0
    high: float = 1.0
    variant: TorchVariant = "vector"
    drawn: int = 0

    @property
    def elements(self) -> int:
        """How many the tensor had; 16 or more of a normal distribution."""
        return self.drawn or self.length

    @property
    def in_words(self) -> str:
        """What it is, on one line."""
        kind: str = self.distribution.removeprefix("numpy-")
        generator = "torch" if kind == self.distribution else "NumPy"
        if kind == "uniform" and (self.low, self.high) != (-1.0, 1.0):
            kind += f" ({self.low:g} to {self.high:g})"
        values = f"{self.length:,} " + f"of {self.drawn:,} " * (self.drawn > 0)
        values += kind if kind.endswith("signs") else f"{kind} values"
        variant = "" if self.variant == "vector" else f", {self.variant} variant"
        return f"{values}, {generator} seed {self.seed}, after {self.skip:,} words{variant}"


@dataclass(frozen=True, slots=True)
class PrototypePlace:
    """Where a file takes the values of a prototype from (spec section 5.6).

    Attributes:
        file: name of a file in the same folder.
        prototype: its number among the prototypes of that file, which stores it whole.
    """

    file: str
    prototype: int


@dataclass(frozen=True, slots=True, eq=False)
class StoredPrototype:
    """Values that the file carries, or one beside it.

    Attributes:
        given: [n], carrier dtype of `dtype`; may be mapped from a file of the caller's.
        dtype: name of the dtype.
        place: which other file has the values; None for this one.
        whole: all values are stored, since other files take them from here.
        known: bool [n], where some mask uses a value; elsewhere `given` has anything. None takes
            all of `given`.
        period: how many values the prototype has, after which known ones repeat; 0 for n.
    """

    given: Array
    dtype: str
    place: PrototypePlace | None = None
    whole: bool = False
    known: Mask | None = None
    period: int = 0

    @property
    def length(self) -> int:
        return self.period or self.given.size

    @property
    def values(self) -> Array:
        """[length], +0.0 where no mask uses a value; made anew where that needs it."""
        whole = self.length == self.given.size
        if self.known is None or (whole and self.known.all()):
            return self.given
        values = np.empty(self.length, self.given.dtype)
        for start in range(0, self.length, _BLOCK):
            part = values[start : start + _BLOCK]
            part[:] = self.part(start, start + part.size)
        return values

    def part(self, start: int, stop: int) -> Array:
        """`values[start:stop]`, of which a few should be made at a time; `stop` ≤ `length`."""
        if self.known is None:
            return self.given[start:stop]
        values = np.zeros(stop - start, self.given.dtype)
        for at in range(start, self.given.size, self.length):
            known = self.known[at : at + values.size]
            np.copyto(values[: known.size], self.given[at : at + values.size], where=known)
        return values


Seeded = SeededPrototype | TorchPrototype
"""Prototypes of which a file stores no values."""

Prototype = Seeded | StoredPrototype


@dataclass(frozen=True, slots=True)
class SeededFill:
    """A layer's values before prototypes have numbers: `prototype[i % length] * scale`."""

    prototype: Seeded
    scale: float


@dataclass(frozen=True, slots=True)
class Fill:
    """How a layer takes its values: value i is `prototype[(offset + i) % length] * scale`.

    Covers One-layer (length = the layer's size), max-layer padding (length = the largest layer's
    size) and random-vector padding (length = the random vector's), all at offset 0.
    """

    prototype: int
    offset: int = 0
    scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class MaskedTensor:
    """A frozen weight and which of its values are used.

    Attributes:
        mask: bool [*shape]; False is an effective weight of +0.0.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    fill: Fill
    mask: Mask


@dataclass(frozen=True, slots=True, eq=False)
class DenseTensor:
    """A trained tensor.

    Attributes:
        data: [*shape], carrier dtype of `dtype`.
        mode: "lossless"; or how a float32 tensor is shortened (spec section 7.5).
        error: how far `data` is from what it was made of, where it was shortened before.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Array
    mode: DenseMode = "lossless"
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class AliasTensor:
    """A second name of an earlier tensor (tied weights)."""

    name: str
    target: str


Tensor = MaskedTensor | DenseTensor | AliasTensor


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """Everything in one file; `tensors` in `state_dict` order."""

    prototypes: tuple[Prototype, ...]
    tensors: tuple[Tensor, ...]
    manifest: dict[str, Any] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    inference_only: bool = False
