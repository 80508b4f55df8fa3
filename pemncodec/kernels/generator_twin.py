"""Words of Philox4x32-10 and their quantiles (spec/pemn.md section 5): the twin of generator.c."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_CHUNK_BLOCKS = 1 << 13


def philox_block(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox4x32-10 of Salmon et al. 2011, as in Random123 (spec/pemn.md section 5).

    Args:
        counter: shape (4, blocks), each of 32 bits, least significant word first.
        key: two numbers of 32 bits, least significant first.

    Returns:
        uint32 of shape (blocks, 4).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0)
        c2 = (p0 >> _HALF) ^ c3 ^ np.uint64(k1)
        c1 = p1 & _LOW
        c3 = p0 & _LOW
        k0 = (k0 + _WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def philox4x32(out: Buffer, seed: int, stream: int, start: int) -> None:
    """Fills `out` with the words `start`, `start` + 1, ... of a stream (spec/pemn.md section 5).

    Word i is word i % 4 of the Philox4x32-10 block with counter (i // 4, stream) and key `seed`,
    each split into 32 bits, least significant first.

    Args:
        out: uint32 in native byte order, any number of them.
        seed: 0 to 2^64 - 1.
        stream: 0 to 2^64 - 1.
        start: 0 to 2^64 - 1.

    Raises:
        ValueError: "seed", "stream" or "start" out of range; "out" is not a whole number of words;
            "start" if a word would have an index above 2^64 - 1.
    """
    view = view_buffer(out, writable=True)
    seed = check_integer(seed, "seed")
    stream = check_integer(stream, "stream")
    start = check_integer(start, "start")
    if view.size % 4:
        raise ValueError("out")
    words = view.view(np.uint32)
    if words.size and start + words.size > 2**64:
        raise ValueError("start")
    key = seed & 0xFFFFFFFF, seed >> 32
    done = 0
    while done < words.size:
        block, skip = divmod(start + done, 4)
        blocks = min(_CHUNK_BLOCKS, -(-(skip + words.size - done) // 4))
        index = np.uint64(block) + np.arange(blocks, dtype=np.uint64)
        counter = np.empty((4, blocks), np.uint64)
        counter[0] = index & _LOW
        counter[1] = index >> _HALF
        counter[2] = stream & 0xFFFFFFFF
        counter[3] = stream >> 32
        taken = min(4 * blocks - skip, words.size - done)
        words[done : done + taken] = philox_block(counter, key).reshape(-1)[skip : skip + taken]
        done += taken


def quantiles(words: Buffer, table: Buffer, out: Buffer) -> None:
    """Writes the quantile that the upper 12 bits of each word choose (spec/pemn.md section 5).

    Args:
        words: n uint32 in native byte order.
        table: 4096 float32.
        out: n float32; may be the memory of `words`.

    Raises:
        ValueError: "words" not whole; "table" or "out" of another length.
    """
    source, values, target = view_buffer(words), view_buffer(table), view_buffer(out, writable=True)
    if source.size % 4:
        raise ValueError("words")
    if values.size != 4 * 4096:
        raise ValueError("table")
    if target.size != source.size:
        raise ValueError("out")
    target.view(np.uint32)[:] = values.view(np.uint32)[source.view(np.uint32) >> 20]
