"""Words whose upper bits are in a table: the twin of word_matches.c."""

from __future__ import annotations

import numpy as np

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer

INDEX_BITS = 16


def match_words(words: Buffer, bits: int, table: Buffer, out: Buffer) -> int:
    """Looks for words that follow each other and together have one of some indices.

    An index has 16 bits, the upper ones of so many words that it is full, the first word's on top.

    Args:
        words: any number of uint32 in native byte order.
        bits: of a word in an index; 1, 2, 4, 8 or 16.
        table: 2^16 bytes, in which the lowest bit says whether an index is looked for.
        out: as many uint64 as there are words. Each match is the number of its first word, times
            2^16, and its index; what is behind the last one stays as it is.

    Returns:
        How many matches there are.

    Raises:
        ValueError: "words" is not a whole number of words; "bits" is another number; "table" of
            another length; "out" is too short.
    """
    given = view_buffer(words)
    bits = check_integer(bits, "bits", least=1, most=INDEX_BITS)
    looked_for, view = view_buffer(table), view_buffer(out, writable=True)
    if given.size % 4:
        raise ValueError("words")
    if INDEX_BITS % bits:
        raise ValueError("bits")
    if looked_for.size != 1 << INDEX_BITS:
        raise ValueError("table")
    numbers = given.view(np.uint32)
    if view.size // 8 < numbers.size:
        raise ValueError("out")
    upper = numbers >> np.uint32(32 - bits)
    together = INDEX_BITS // bits
    if upper.size < together:
        return 0
    windows = np.lib.stride_tricks.sliding_window_view(upper, together)
    places = np.arange(INDEX_BITS - bits, -1, -bits, dtype=np.uint32)
    indices = np.bitwise_or.reduce(windows << places, axis=1)
    at = np.flatnonzero(looked_for[indices] & 1)
    matches = at.astype(np.uint64) << np.uint64(INDEX_BITS) | indices[at]
    view[: 8 * at.size] = matches.view(np.uint8)
    return int(at.size)
