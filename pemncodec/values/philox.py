"""Seed to values, the same bits on every machine (spec/pemn.md section 5).

A word of Philox4x32-10 depends on seed, stream and its own index alone, so any slice can be made
without what is before it. Words become values without libm: by integer arithmetic or by a table.
"""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.resources import files
from typing import get_args

import numpy as np
import numpy.typing as npt

from pemncodec import kernels
from pemncodec.contents import Distribution, Floats, PackedMask

DISTRIBUTIONS: tuple[str, ...] = get_args(Distribution)


def generate(
    distribution: Distribution,
    seed: int,
    start: int,
    stop: int,
    *,
    stream: int = 0,
    scale: float = 1.0,
) -> Floats:
    """Values `start` to `stop` of a stream.

    Args:
        distribution: "uniform" in (−1, 1), "signed-constant" ±1, "normal" with variance about 1.
        seed: 64-bit key.
        start: index of the first value.
        stop: index behind the last value, at most 2^64.
        stream: 64-bit upper half of the counter.
        scale: a binary32 number that each value is multiplied by, in binary32.

    Returns:
        float32 [stop - start].

    Raises:
        ValueError: an argument out of range.
    """
    if not 0 <= start <= stop <= 1 << 64:
        raise ValueError(f"not a slice of a stream: {start}:{stop}")
    check_stream(seed, stream)
    words = np.empty(stop - start, np.uint32)
    kernels.philox4x32(words, seed, stream, start)
    if distribution == "normal":
        normal = words.view(np.float32)
        kernels.quantiles(words, _scaled_quantiles(scale), normal)
        return normal
    if distribution == "uniform":
        return _scaled(_uniform(words), scale)
    if distribution == "signed-constant":
        return _scaled(((words & 0x80000000) | 0x3F800000).view(np.float32), scale)
    raise ValueError(f"unknown distribution {distribution!r}, have {', '.join(DISTRIBUTIONS)}")


def masked_normal(
    seed: int,
    start: int,
    packed_mask: PackedMask,
    out: Floats,
    *,
    stream: int = 0,
    scale: float = 1.0,
) -> None:
    """What `generate` makes for "normal" where a mask has ones, +0.0 elsewhere, at once.

    Args:
        seed: 64-bit key.
        start: index of the first value.
        packed_mask: uint8 [ceil(n / 8)].
        out: [n].
        stream: 64-bit upper half of the counter.
        scale: as for `generate`.
    """
    kernels.expand_normal(seed, stream, start, _scaled_quantiles(scale), packed_mask, out)


def permutation(seed: int, start: int, count: int, *, stream: int = 0) -> npt.NDArray[np.int64]:
    """0 … count − 1 in the order of words `start` to `start + count`, equal ones by position.

    Returns:
        int64 [count].
    """
    words = np.empty(count, np.uint32)
    kernels.philox4x32(words, seed, stream, start)
    return np.argsort(words, kind="stable")


def check_stream(seed: int, stream: int) -> None:
    """Raises ValueError unless both are 64-bit unsigned integers."""
    for name, value in (("seed", seed), ("stream", stream)):
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{name} must be a 64-bit unsigned integer, not {value}")


def _uniform(words: npt.NDArray[np.uint32]) -> Floats:
    # 24 bits u become the odd number 2u + 1 − 2^24, exact in binary32: symmetric and never zero.
    odd = ((words >> 8) << 1).view(np.int32) + np.int32(1 - (1 << 24))
    return odd.astype(np.float32) * np.float32(2.0**-24)


def _scaled(values: Floats, scale: float) -> Floats:
    # Overflow to infinity is what the format asks for.
    with np.errstate(over="ignore"):
        return values if scale == 1.0 else np.multiply(values, np.float32(scale), out=values)


@lru_cache(maxsize=64)
def _scaled_quantiles(scale: float) -> Floats:
    return _scaled(normal_quantiles().copy(), scale)


@cache
def normal_quantiles() -> Floats:
    """float32 [4096]: entry i is the binary32 number nearest to Φ⁻¹((i + ½) / 4096)."""
    upper = np.frombuffer((files("pemncodec.values") / "normal_quantiles.bin").read_bytes(), "<f4")
    table = np.concatenate([-upper[::-1], upper]).astype(np.float32)
    table.flags.writeable = False
    return table
