"""Values of the portable generator as ONNX integer operators (spec/pemn.md sections 5.1 and 5.2).

Words of all prototypes with one seed are made by one chain of operators. onnxruntime multiplies
int64 and shifts uint64; casts between them keep the bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from pemncodec.contents import SeededPrototype
from pemncodec.export.onnx_graph import OnnxGraph
from pemncodec.export.packing import PackedPrototype
from pemncodec.values.on_device import MULTIPLIERS, ROUNDS, WEYL
from pemncodec.values.philox import normal_quantiles

_WORD: Final = 0xFFFFFFFF
_PER_BLOCK: Final = 4  # words


class SeededValues:
    """Makes the values of seeded prototypes."""

    def __init__(self, graph: OnnxGraph, prototypes: Mapping[int, PackedPrototype]) -> None:
        self._graph = graph
        self._counts: dict[int, dict[SeededPrototype, int]] = {}
        for packed in prototypes.values():
            source = packed.values
            if isinstance(source, SeededPrototype):
                period = source.period
                count = source.length + period if period else packed.needed
                self._counts.setdefault(source.seed, {})[source] = count
        self._words: dict[int, str] = {}

    def add(self, prototype: SeededPrototype) -> str:
        """The values of a prototype, float32; all of them or as many as tensors need."""
        graph, counts = self._graph, self._counts[prototype.seed]
        if prototype.seed not in self._words:
            self._words[prototype.seed] = self._chain(prototype.seed, counts)
        words = self._words[prototype.seed]
        first = 0
        for other, count in counts.items():
            if other == prototype:
                break
            first += _PER_BLOCK * _blocks(count)
        last = first + counts[prototype]
        values = graph.node("Reshape", self._values(words, prototype), graph.integers(-1))
        period = prototype.period
        if not period:
            return graph.sliced(values, first, last)
        words = graph.node("Reshape", words, graph.integers(-1))
        keys = graph.cast(graph.sliced(words, first + period, last), "int64")
        # In ascending order, of equal keys the one with the smaller number first.
        length = graph.integers(prototype.length)
        _, order = graph.outputs(2, "TopK", keys, length, largest=0, sorted=1)
        numbers = graph.node("Mod", order, graph.integers(period))
        return graph.node("Gather", graph.sliced(values, first, first + period), numbers)

    def _values(self, words: str, prototype: SeededPrototype) -> str:
        """Words as values, float32 of the same shape."""
        graph = self._graph
        if prototype.distribution == "normal":
            index = graph.cast(self._shifted(words, 20), "int32")
            return graph.node("Gather", self._quantiles(), index)
        # Every product and sum is exact.
        uniform = prototype.distribution == "uniform"
        bits = graph.cast(self._shifted(words, 8 if uniform else 31), "float32")
        factor, summand = (2.0**-23, 2.0**-24 - 1) if uniform else (-2.0, 1.0)
        product = graph.node("Mul", bits, graph.scalar(factor, "float32"))
        return graph.node("Add", product, graph.scalar(summand, "float32"))

    def _quantiles(self) -> str:
        """The table of quantiles, of which the file has one half."""
        graph, table = self._graph, normal_quantiles()
        half = table.size // 2
        upper = graph.constant(table[half:], "float32")
        backwards = graph.node("Slice", upper, *(graph.integers(n) for n in (-1, -half - 1, 0, -1)))
        return graph.node("Concat", graph.node("Neg", backwards), upper, axis=0)

    def _chain(self, seed: int, counts: Mapping[SeededPrototype, int]) -> str:
        """Words of the prototypes of a seed, one after the other, uint32 [blocks, 4]."""
        graph, number = self._graph, self._uint32
        counter = self._counter(counts)
        key = [seed & _WORD, seed >> 32]
        for _ in range(ROUNDS):
            high0, low0 = self._product(counter[0], MULTIPLIERS[0])
            high1, low1 = self._product(counter[2], MULTIPLIERS[1])
            first = graph.node("BitwiseXor", counter[1], number(key[0]))
            second = graph.node("BitwiseXor", counter[3], number(key[1]))
            counter = [
                graph.node("BitwiseXor", high1, first),
                low1,
                graph.node("BitwiseXor", high0, second),
                low0,
            ]
            key = [(word + weyl) & _WORD for word, weyl in zip(key, WEYL, strict=True)]
        return graph.node("Concat", *counter, axis=1)

    def _counter(self, counts: Mapping[SeededPrototype, int]) -> list[str]:
        """Four words, uint32 [blocks or 1, 1] each; one number stands for equal ones."""
        graph, blocks = self._graph, [_blocks(count) for count in counts.values()]
        limits = (graph.scalar(n, "int64") for n in (0, max(blocks), 1))
        numbers = graph.cast(graph.node("Range", *limits), "uint32")
        numbers = graph.node("Reshape", numbers, graph.integers(-1, 1))
        own = [numbers if n == max(blocks) else graph.sliced(numbers, 0, n) for n in blocks]
        streams = [prototype.stream for prototype in counts]
        low, high = (
            self._by_prototype([stream >> shift & _WORD for stream in streams], blocks)
            for shift in (0, 32)
        )
        return [self._joined(own), self._uint32(0), low, high]

    def _by_prototype(self, words: Sequence[int], blocks: Sequence[int]) -> str:
        """A word for each prototype, repeated over its blocks, unless all have the same."""
        if len(set(words)) == 1:
            return self._uint32(words[0])
        graph = self._graph
        return self._joined(
            [
                graph.node("Expand", self._uint32(word), graph.integers(count, 1))
                for word, count in zip(words, blocks, strict=True)
            ]
        )

    def _joined(self, parts: Sequence[str]) -> str:
        return parts[0] if len(parts) == 1 else self._graph.node("Concat", *parts, axis=0)

    def _product(self, words: str, multiplier: int) -> tuple[str, str]:
        """Upper and lower half of 64-bit products, uint32."""
        graph = self._graph
        product = graph.node("Mul", graph.cast(words, "int64"), graph.scalar(multiplier, "int64"))
        upper = self._shifted(graph.cast(product, "uint64"), 32, "uint64")
        return graph.cast(upper, "uint32"), graph.cast(product, "uint32")

    def _shifted(self, words: str, bits: int, dtype: str = "uint32") -> str:
        by = self._graph.scalar(bits, dtype)
        return self._graph.node("BitShift", words, by, direction="RIGHT")

    def _uint32(self, number: int) -> str:
        return self._graph.constant(np.array([[number]]), "uint32")


def _blocks(words: int) -> int:
    return -(-words // _PER_BLOCK)
