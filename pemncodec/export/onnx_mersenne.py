"""Words of MT19937 as ONNX integer operators (spec/pemn.md section 5.5).

A file has some of the words before they are tempered, 624 at a time: a row of states. Steps of the
recurrence make the words behind each row, of all rows at once. Rows may be of any seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from pemncodec.contents import Array
from pemncodec.export.onnx_graph import OnnxGraph

STATE: Final = 624
"""Words of a state."""

STEP_BYTES: Final = 820
"""What the operators of one step take in a file."""

_NEW: Final = STATE - 1  # words of a step: the first of the next state is known
_BACK: Final = 227  # a word is made of that so far before it, so that as many are made together
_GROUP: Final = 16  # words of a row are so many, or a multiple
_MATRIX: Final = 0x9908B0DF
_STEPS: Final = range(4, 65)  # fewer would leave states half as large as their words, or larger


def row_words(steps: int) -> int:
    """How many words a row makes, a multiple of 16."""
    return (STATE + _NEW * steps) // _GROUP * _GROUP


def fewest_bytes(counts: Sequence[int]) -> tuple[int, int]:
    """How many steps take the fewest bytes together with the states, and how many these are.

    Args:
        counts: of words, each from a place of its own on.
    """

    def needed(steps: int) -> int:
        rows = sum(-(-count // row_words(steps)) for count in counts)
        return 4 * STATE * rows + STEP_BYTES * steps

    steps = min(_STEPS, key=needed)
    return steps, needed(steps)


def add_words(graph: OnnxGraph, states: Sequence[Array], steps: int) -> str:
    """The name of the tempered words of each row, uint32 [rows, `row_words(steps)`].

    Args:
        graph: to which operators are added.
        states: uint32 [some of the rows, 624] each.
        steps: of the recurrence.
    """
    given = [graph.constant(some, "uint32") for some in states]
    state = given[0] if len(given) == 1 else graph.node("Concat", *given, axis=0)
    parts = []
    for _ in range(steps):
        parts.append(_columns(graph, state, 0, _NEW))
        state = _next_state(graph, state, parts[-1])
    last = row_words(steps) - _NEW * steps
    parts.append(state if last == STATE else _columns(graph, state, 0, last))
    return _tempered(graph, graph.node("Concat", *parts, axis=1))


def _next_state(graph: OnnxGraph, state: str, upper: str) -> str:
    """The last word of a state [rows, 624] and the 623 words behind it."""
    lower = _columns(graph, state, 1, STATE)
    # The top bit of one word, and the others of the next.
    differs = graph.node(
        "BitwiseAnd", graph.node("BitwiseXor", upper, lower), _word(graph, 2**31 - 1)
    )
    mixed = graph.node("BitwiseXor", upper, differs)
    odd = graph.cast(graph.node("BitwiseAnd", lower, _word(graph, 1)), "int32")
    added = graph.node("Gather", graph.constant(np.array([0, _MATRIX]), "uint32"), odd)
    summands = graph.node("BitwiseXor", _shifted(graph, mixed, "RIGHT", 1), added)
    sizes = graph.integers(_BACK, _BACK, _NEW - 2 * _BACK)
    parts = graph.outputs(3, "Split", summands, sizes, axis=1)
    before = _columns(graph, state, STATE - _BACK, STATE)
    first = graph.node("BitwiseXor", before, parts[0])
    second = graph.node("BitwiseXor", first, parts[1])
    known = _columns(graph, second, 0, _NEW - 2 * _BACK)
    third = graph.node("BitwiseXor", known, parts[2])
    return graph.node("Concat", _columns(graph, state, _NEW, STATE), first, second, third, axis=1)


def _tempered(graph: OnnxGraph, words: str) -> str:
    for direction, by, bits in (
        ("RIGHT", 11, None),
        ("LEFT", 7, 0x9D2C5680),
        ("LEFT", 15, 0xEFC60000),
        ("RIGHT", 18, None),
    ):
        shifted = _shifted(graph, words, direction, by)
        if bits is not None:
            shifted = graph.node("BitwiseAnd", shifted, _word(graph, bits))
        words = graph.node("BitwiseXor", words, shifted)
    return words


def _columns(graph: OnnxGraph, value: str, start: int, stop: int) -> str:
    return graph.node("Slice", value, *(graph.integers(n) for n in (start, stop, 1)))


def _shifted(graph: OnnxGraph, words: str, direction: str, by: int) -> str:
    return graph.node("BitShift", words, _word(graph, by), direction=direction)


def _word(graph: OnnxGraph, number: int) -> str:
    return graph.scalar(number, "uint32")
