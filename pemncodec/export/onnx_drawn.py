"""Values that torch's CPU generator or NumPy's draws, as ONNX operators (spec/pemn.md section 5.5).

Words of all prototypes are made together. What operators make of them is computed here, too, and
the few values that are others than the format's are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import numpy as np
import numpy.typing as npt
from onnx import helper
from onnx.reference import ReferenceEvaluator

from pemncodec.contents import Floats, TorchPrototype, bits_of
from pemncodec.export.onnx_arithmetic import Value, fractions, fused
from pemncodec.export.onnx_graph import DTYPES, OnnxGraph
from pemncodec.export.onnx_mersenne import STATE, add_words, fewest_bytes, row_words
from pemncodec.export.onnx_torch_normal import normal
from pemncodec.export.packing import Candidates, PackedPrototype
from pemncodec.values.generators import seeded_slice
from pemncodec.values.mersenne import stream_of
from pemncodec.values.numpy_legacy import words_each

MOST_BYTES: Final = 1 << 31
"""That a session may need for what operators leave behind until all values are made."""

_LEFT_BEHIND: Final = {"normal": 550, "uniform": 170, "numpy-uniform": 330}
"""Distributions that operators make, and how many bytes they leave behind for each value."""

_OPERATOR_BYTES: Final = 6000  # of what makes values of words
_FEWEST: Final = 2 * STATE + 1  # values: a state has half as many bytes, or fewer
_GROUP: Final = 16  # normal values are made in groups
_PART: Final = 1 << 16  # values looked at together
_OPSET: Final = 18  # the first that has operators on bits

_Kind = tuple[str, str, float, float]


def drawn_by_operators(candidates: Candidates) -> dict[int, int]:
    """Which prototypes are smaller as operators, and how many bytes the states of each take."""
    counts: dict[int, int] = {}
    left = 0
    for index, (prototype, needed) in sorted(candidates.items(), key=lambda item: item[1][1]):
        if isinstance(prototype, TorchPrototype) and prototype.distribution in _LEFT_BEHIND:
            left += needed * _LEFT_BEHIND[prototype.distribution]
            if needed >= _FEWEST and left <= MOST_BYTES:
                counts[index] = _words(prototype, needed)
    if not counts:
        return {}
    steps, size = fewest_bytes([*counts.values()])
    if size + _OPERATOR_BYTES >= sum(4 * candidates[index][1] for index in counts):
        return {}
    return {index: 4 * STATE * _rows(count, steps) for index, count in counts.items()}


class DrawnValues:
    """Makes the values of torch prototypes."""

    def __init__(self, graph: OnnxGraph, prototypes: Mapping[int, PackedPrototype]) -> None:
        self._graph = graph
        needed: dict[TorchPrototype, int] = {}
        for packed in prototypes.values():
            if isinstance(packed.values, TorchPrototype):
                needed[packed.values] = max(packed.needed, needed.get(packed.values, 0))
        # Of one kind together: what makes values of words does it for all of them.
        self._needed = dict(sorted(needed.items(), key=lambda item: _kind(item[0])))
        counts = {prototype: _words(prototype, n) for prototype, n in self._needed.items()}
        self._steps = fewest_bytes([*counts.values()])[0] if counts else 0
        self._rows: dict[TorchPrototype, range] = {}
        first = 0
        for prototype, count in counts.items():
            self._rows[prototype] = range(first, first + _rows(count, self._steps))
            first = self._rows[prototype].stop
        self._words = ""
        self._made: dict[TorchPrototype, str] = {}

    def add(self, prototype: TorchPrototype) -> str:
        """The values of a prototype that tensors need, float32 [needed]."""
        if prototype not in self._made:
            self._made[prototype] = self._add(prototype)
        return self._made[prototype]

    def _add(self, prototype: TorchPrototype) -> str:
        graph, rows = self._graph, self._rows[prototype]
        alike = [own for other, own in self._rows.items() if _kind(other) == _kind(prototype)]
        words = self._words = self._words or self._made_words()
        if len(alike) < len(self._rows):
            words = graph.sliced(words, alike[0].start, alike[-1].stop)
        values = _values(Value(graph, words, "uint32"), prototype).reshaped(-1).name
        first = (rows.start - alike[0].start) * row_words(self._steps) // words_each(prototype)
        values = graph.sliced(values, first, first + self._needed[prototype])
        where, exact = _other_values(prototype, self._needed[prototype])
        if not where.size:
            return values
        places = graph.constant(where, "int32")
        return graph.node("ScatterElements", values, places, graph.constant(exact, "float32"))

    def _made_words(self) -> str:
        step = row_words(self._steps)
        states = []
        for prototype, rows in self._rows.items():
            stream = stream_of(prototype.seed)
            starts = range(prototype.skip, prototype.skip + step * len(rows), step)
            states.append(np.stack([stream.untempered(start) for start in starts]))
        return add_words(self._graph, states, self._steps)


def _kind(prototype: TorchPrototype) -> _Kind:
    return prototype.distribution, prototype.variant, prototype.low, prototype.high


def _words(prototype: TorchPrototype, needed: int) -> int:
    return -(-needed * words_each(prototype) // _GROUP) * _GROUP


def _rows(words: int, steps: int) -> int:
    return -(-words // row_words(steps))


def _values(words: Value, prototype: TorchPrototype) -> Value:
    """What operators make of uint32 words, float32, in the order of the words."""
    if prototype.distribution == "normal":
        return normal(words, prototype.variant)
    if prototype.distribution == "uniform":
        return _uniform(words, prototype)
    return _numpy_uniform(words, prototype.low, prototype.high)


def _uniform(words: Value, prototype: TorchPrototype) -> Value:
    low = np.float32(prototype.low)
    span = float(np.float32(prototype.high) - low)
    is_exact = np.frexp(span)[0] == 0.5  # the product with a power of two
    if prototype.variant == "vector" and not is_exact:
        return fused(fractions(words), span, float(low))
    return fractions(words) * span + float(low)


def _numpy_uniform(words: Value, low: float, high: float) -> Value:
    graph = words.graph
    by = graph.constant(np.array([5, 6]), "uint32")
    shifted = graph.node("BitShift", words.reshaped(-1, 2).name, by, direction="RIGHT")
    upper, lower = Value(graph, shifted, "uint32").to("float64").halves()
    return (low + (high - low) * ((upper * 2.0**26 + lower) * 2.0**-53)).to("float32")


def _other_values(prototype: TorchPrototype, needed: int) -> tuple[npt.NDArray[np.intp], Floats]:
    """Numbers of the values that operators do not make, and these values."""
    graph = OnnxGraph(["words"])
    name = _values(Value(graph, "words", "uint32"), prototype).name
    given = helper.make_tensor_value_info("words", DTYPES["uint32"], [None])
    made = helper.make_tensor_value_info(name, DTYPES["float32"], None)
    model = helper.make_model(
        helper.make_graph(graph.nodes, "values", [given], [made], graph.initializers),
        opset_imports=[helper.make_opsetid("", _OPSET)],
    )
    evaluator, stream = ReferenceEvaluator(model), stream_of(prototype.seed)
    each = words_each(prototype)
    where, exact = [], []
    for start in range(0, needed, _PART):
        stop = min(start + _PART, needed)
        words = stream.words(prototype.skip + each * start, _words(prototype, stop - start))
        with np.errstate(all="ignore"):  # of values that are stored
            (made_here,) = cast(list[Floats], evaluator.run(None, {"words": words}))
        values, expected = made_here.reshape(-1), seeded_slice(prototype, start, stop)
        differ = np.flatnonzero(bits_of(values[: stop - start]) != bits_of(expected))
        where.append(start + differ)
        exact.append(expected[differ])
    return np.concatenate(where), np.concatenate(exact)
