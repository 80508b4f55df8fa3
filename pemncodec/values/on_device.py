"""The portable generator on a torch device: the bits of `pemncodec.generator` (spec section 5).

Runs in int64 arithmetic, which every device has; the product of two 32-bit words wraps into the
sign bit, from where the masked shift takes it back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pemncodec.contents import Distribution
from pemncodec.values.philox import DISTRIBUTIONS, check_stream, normal_quantiles

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


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
    words = philox_on(torch.device(device), seed, start, stop, stream=stream)
    if distribution == "uniform":
        odd = 2 * (words >> 8) + (1 - (1 << 24))
        return odd.to(torch.float32) * 2.0**-24
    if distribution == "signed-constant":
        return 1.0 - 2.0 * (words >> 31).to(torch.float32)
    if distribution == "normal":
        table = torch.from_numpy(normal_quantiles().copy()).to(device)
        return table[words >> 20]
    raise ValueError(f"unknown distribution {distribution!r}, have {', '.join(DISTRIBUTIONS)}")


def permutation_on(
    device: torch.device | str, seed: int, start: int, count: int, *, stream: int = 0
) -> Tensor:
    """0 … count − 1 in the order of words `start` to `start + count`, int64 [count]."""
    words = philox_on(torch.device(device), seed, start, start + count, stream=stream)
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
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(counter[0], _MULTIPLIERS[0])
        high1, low1 = _multiply(counter[2], _MULTIPLIERS[1])
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(word + weyl) & _WORD for word, weyl in zip(key, _WEYL, strict=True)]
    words = torch.stack(counter, dim=1).reshape(-1)
    first = start // 4 * 4
    return words[start - first : stop - first]


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    product = word * multiplier
    return (product >> 32) & _WORD, product & _WORD
