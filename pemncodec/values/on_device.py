"""Effective weights made on a torch device, with the bits that the CPU makes (spec section 5).

Packed masks travel, seeds, and values that a file stores. Everything is made a chunk at a time, in
int64 arithmetic, which every device has; the product of two 32-bit words wraps into the sign bit,
from where the masked shift takes it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pemncodec.contents import (
    Distribution,
    Fill,
    Prototype,
    Seeded,
    SeededPrototype,
    StoredPrototype,
    numel,
)
from pemncodec.tensors import array_to_tensor
from pemncodec.values.fill import RepeatedValues, is_made_in_slices, tensor_values
from pemncodec.values.generators import seeded_slice
from pemncodec.values.philox import DISTRIBUTIONS, check_stream, normal_quantiles

Values = Callable[[int, int], Tensor]
"""Values of a tensor, in its dtype, from an index on, so many of them."""

_CHUNK = 1 << 20  # values made at one time; a multiple of 8
_WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def fill_masked_on(
    prototype: Prototype, fill: Fill, dtype: str, shape: tuple[int, ...], bits: Tensor
) -> Tensor:
    """Effective weights [*shape]: +0.0 where the mask has zeros.

    Args:
        prototype: where their values come from.
        fill: how they take them.
        dtype: of the weights.
        shape: of the weights, n in all.
        bits: the mask, uint8 [ceil(n / 8)], on the device where weights are made and stay.
    """
    count = numel(shape)
    out = torch.empty(count, dtype=getattr(torch, dtype), device=bits.device)
    fill_where(bits, values_on(bits.device, prototype, fill, dtype, count), out)
    return out.reshape(shape)


def fill_where(packed: Tensor, values: Values, out: Tensor) -> None:
    """Values where a packed mask has ones, +0.0 elsewhere, into `out` [n] on the mask's device."""
    zero = torch.zeros((), dtype=out.dtype, device=out.device)
    for start in range(0, out.numel(), _CHUNK):
        part = out[start : start + _CHUNK]
        used = unpack_on(packed[start // 8 : (start + _CHUNK) // 8], part.numel())
        part.copy_(torch.where(used, values(start, part.numel()), zero))


def values_on(
    device: torch.device, prototype: Prototype, fill: Fill, dtype: str, count: int
) -> Values:
    """What makes a tensor's values on a device."""
    if isinstance(prototype, StoredPrototype):
        stored = tensor_values(prototype, fill, dtype, count)
        assert isinstance(stored, RepeatedValues)
        return repeated(array_to_tensor(stored.values, dtype, device), stored.offset)
    make = SEEDED_ON.get(type(prototype), _made_on_the_host)

    def scaled(start: int, stop: int) -> Tensor:
        return (make(device, prototype, start, stop) * fill.scale).to(getattr(torch, dtype))

    length, offset = prototype.length, fill.offset
    if not is_made_in_slices(prototype):
        if offset + count <= length:
            return repeated(scaled(offset, offset + count), 0)
        return repeated(scaled(0, length), offset)

    def sliced(start: int, size: int) -> Tensor:
        first = (offset + start) % length
        parts = []
        while size:
            parts.append(scaled(first, min(first + size, length)))
            size -= parts[-1].numel()
            first = 0
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    return sliced


def repeated(values: Tensor, offset: int) -> Values:
    """What takes values from a prototype [length], again and again, from an offset on."""
    length = values.numel()

    def taken(start: int, size: int) -> Tensor:
        first = (offset + start) % length
        if first + size <= length:
            return values[first : first + size]
        return values[(torch.arange(size, device=values.device) + first) % length]

    return taken


def unpack_on(packed: Tensor, count: int) -> Tensor:
    """Packed bits uint8 [ceil(n / 8)] as bool [n]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & 1).reshape(-1)[:count].bool()


# ---------------------------------------------------------------- prototypes of each kind


def _portable_on(device: torch.device, prototype: SeededPrototype, start: int, stop: int) -> Tensor:
    kind, seed, stream = prototype.distribution, prototype.seed, prototype.stream
    if not prototype.period:
        return generate_on(device, kind, seed, start, stop, stream=stream)
    period = prototype.period
    values = generate_on(device, kind, seed, 0, period, stream=stream)
    order = permutation_on(device, seed, period, prototype.length, stream=stream)
    return values[order[start:stop] % period]


def _made_on_the_host(device: torch.device, prototype: Seeded, start: int, stop: int) -> Tensor:
    return torch.from_numpy(seeded_slice(prototype, start, stop)).to(device)


SEEDED_ON: Mapping[type, Callable[[torch.device, Any, int, int], Tensor]] = MappingProxyType(
    {SeededPrototype: _portable_on}
)
"""What makes values [stop - start] before scaling, by the class of the prototype; the CPU does for
a kind that is not here."""


# --------------------------------------------------------------------- portable generator


def generate_on(
    device: torch.device | str,
    distribution: Distribution,
    seed: int,
    start: int,
    stop: int,
    *,
    stream: int = 0,
) -> Tensor:
    """Values `start` to `stop` of a stream, float32 [stop - start], made on `device`.

    Raises:
        ValueError: an argument out of range.
    """
    if not 0 <= start <= stop < 1 << 63:
        raise ValueError(f"not a slice of a stream: {start}:{stop}")
    check_stream(seed, stream)
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"unknown distribution {distribution!r}, have {', '.join(DISTRIBUTIONS)}")
    device = torch.device(device)
    table = quantiles_on(device)
    out = torch.empty(stop - start, dtype=torch.float32, device=device)
    for at in range(start, stop, _CHUNK):
        words = philox_on(device, seed, at, min(at + _CHUNK, stop), stream=stream)
        out[at - start : at - start + _CHUNK] = values_of_words(distribution, words, table)
    return out


@cache
def quantiles_on(device: torch.device) -> Tensor:
    """`normal_quantiles` on a device, where it stays; nobody writes to it."""
    with _disable_current_modes(), torch.inference_mode(False):
        return torch.from_numpy(normal_quantiles().copy()).to(device)


def values_of_words(distribution: Distribution, words: Tensor, table: Tensor) -> Tensor:
    """Values of the words of a stream, float32 [n].

    Args:
        distribution: which values they become.
        words: int64 [n] of 32-bit values.
        table: `normal_quantiles`, on the device of the words.
    """
    if distribution == "uniform":
        return (2 * (words >> 8) + (1 - (1 << 24))).to(torch.float32) * 2.0**-24
    if distribution == "signed-constant":
        return 1 - 2 * (words >> 31).to(torch.float32)
    return table[words >> 20]


def permutation_on(
    device: torch.device | str, seed: int, start: int, count: int, *, stream: int = 0
) -> Tensor:
    """0 … count − 1 in the order of words `start` to `start + count`, int64 [count]."""
    device = torch.device(device)
    words = torch.empty(count, dtype=torch.int32, device=device)
    for at in range(0, count, _CHUNK):
        size = min(_CHUNK, count - at)
        part = philox_on(device, seed, start + at, start + at + size, stream=stream)
        words[at : at + size] = part - (1 << 31)  # in the order of unsigned words
    return torch.argsort(words, stable=True)


def philox_on(device: torch.device, seed: int, start: int, stop: int, *, stream: int = 0) -> Tensor:
    """Words `start` to `stop` of Philox4x32-10, int64 [stop - start] of 32-bit values."""
    blocks = torch.arange(start // 4, (stop + 3) // 4, dtype=torch.int64, device=device)
    counter = [
        blocks & _WORD,
        blocks >> 32,
        torch.full_like(blocks, stream & _WORD),
        torch.full_like(blocks, stream >> 32),
    ]
    key = [seed & _WORD, seed >> 32]
    for _ in range(ROUNDS):
        high0, low0 = _multiply(counter[0], MULTIPLIERS[0])
        high1, low1 = _multiply(counter[2], MULTIPLIERS[1])
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(word + weyl) & _WORD for word, weyl in zip(key, WEYL, strict=True)]
    words = torch.stack(counter, dim=1).reshape(-1)
    first = start // 4 * 4
    return words[start - first : stop - first]


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    product = word * multiplier
    return (product >> 32) & _WORD, product & _WORD
