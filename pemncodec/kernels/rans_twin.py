"""Static range coder, rANS (spec/pemn.md section 6.3): the twin of rans.c."""

from __future__ import annotations

from array import array
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer

_SCALE_BITS = 15
_SCALE = 1 << _SCALE_BITS
_LOWEST = 1 << 16


def rans_encode(symbols: Buffer, frequencies: Buffer, lanes: int) -> bytes:
    """Codes symbols with a static interleaved rANS (spec/pemn.md section 6.3).

    Args:
        symbols: uint8, any number of them.
        frequencies: 256 uint32 in native byte order, with sum 2^15.
        lanes: 1 or 8 states; symbol i belongs to lane i % lanes.

    Returns:
        The final state of each lane (uint32, little-endian), then the words (uint16,
        little-endian) in the order in which the decoder reads them.

    Raises:
        ValueError: "lanes" or "frequencies" against the above; "symbol without frequency".
    """
    source, model = view_buffer(symbols).data, view_buffer(frequencies)
    lanes = check_integer(lanes, "lanes")
    table = _check_model(model, lanes)
    cumulative = [0, *accumulate(table)]
    limits = [frequency << 17 for frequency in table]
    states = [_LOWEST] * lanes
    words = array("H")
    lane = len(source) % lanes
    try:
        for symbol in reversed(source):
            lane = (lane or lanes) - 1
            state = states[lane]
            if state >= limits[symbol]:
                words.append(state & 0xFFFF)
                state >>= 16
            quotient, rest = divmod(state, table[symbol])
            states[lane] = (quotient << _SCALE_BITS) + rest + cumulative[symbol]
    except ZeroDivisionError:
        raise ValueError("symbol without frequency") from None
    tail = np.array(words, np.uint16)[::-1].astype("<u2")
    return np.array(states, "<u4").tobytes() + tail.tobytes()


def rans_decode(data: Buffer, frequencies: Buffer, lanes: int, out: Buffer) -> None:
    """Decodes `len(out)` symbols (spec/pemn.md section 6.3).

    Args:
        data: exactly what `rans_encode` returned.
        frequencies: 256 uint32 in native byte order, with sum 2^15.
        lanes: 1 or 8, as for encoding.
        out: uint8; its content is unspecified after an error.

    Raises:
        ValueError: "lanes" or "frequencies" against the above; "too short" if states are missing;
            "odd length" of the words; "initial state out of range" if below 2^16; "too short" if
            words are missing; "words left over"; "final state" if a lane does not end at 2^16.
    """
    states, unused = _decode(data, frequencies, lanes, out)
    if unused:
        raise ValueError("words left over")
    if any(state != _LOWEST for state in states):
        raise ValueError("final state")


def rans_decode_first(data: Buffer, frequencies: Buffer, lanes: int, out: Buffer) -> None:
    """As `rans_decode`, of data with more symbols than `out`; its end is not looked at."""
    _decode(data, frequencies, lanes, out)


def _decode(data: Buffer, frequencies: Buffer, lanes: int, out: Buffer) -> tuple[list[int], int]:
    """The states behind the symbols, and the number of words that were not needed."""
    source, model = view_buffer(data), view_buffer(frequencies)
    lanes = check_integer(lanes, "lanes")
    target = view_buffer(out, writable=True).data
    table = _check_model(model, lanes)
    if source.size < 4 * lanes:
        raise ValueError("too short")
    if source.size % 2:
        raise ValueError("odd length")
    states: list[int] = source[: 4 * lanes].view("<u4").tolist()
    if min(states) < _LOWEST:
        raise ValueError("initial state out of range")
    words = source[4 * lanes :].view("<u2").astype(np.uint16).data
    cumulative = [0, *accumulate(table)]
    symbol_of = np.repeat(np.arange(256, dtype=np.uint8), table).tobytes()
    position = 0
    try:
        for index in range(len(target)):
            lane = index % lanes
            state = states[lane]
            slot = state & (_SCALE - 1)
            symbol = symbol_of[slot]
            state = table[symbol] * (state >> _SCALE_BITS) + slot - cumulative[symbol]
            if state < _LOWEST:
                state = state << 16 | words[position]
                position += 1
            states[lane] = state
            target[index] = symbol
    except IndexError:
        raise ValueError("too short") from None
    return states, len(words) - position


def _check_model(frequencies: NDArray[np.uint8], lanes: int) -> list[int]:
    """The frequencies as numbers, if they and the lanes are as the format has them."""
    if lanes not in (1, 8):
        raise ValueError("lanes")
    if frequencies.size != 256 * 4:
        raise ValueError("frequencies")
    numbers: list[int] = frequencies.view(np.uint32).tolist()
    if sum(numbers) != _SCALE:
        raise ValueError("frequencies")
    return numbers
