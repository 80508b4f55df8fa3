"""Masked tensors as ONNX operators that make them (spec/pemn.md section 5.3).

Bits of a mask are looked up, eight at a time, in a table of bools; a prototype is repeated, and
both meet in one Where. A runtime computes this once, when it makes a session. It keeps what each
operator makes until it is done, so bytes count: bits become bools, a quarter of the weights, and
layers of one shape share their values.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pemncodec.coders.packed import unpack
from pemncodec.contents import Array, SeededPrototype, TorchPrototype, numel
from pemncodec.export.onnx_drawn import DrawnValues, drawn_by_operators
from pemncodec.export.onnx_graph import DTYPES, OnnxGraph
from pemncodec.export.onnx_philox import SeededValues
from pemncodec.export.packing import (
    Candidates,
    PackedPrototype,
    Packing,
    last_value,
    plan_packing,
    portable_by_operators,
)
from pemncodec.format.header import MaskedRow
from pemncodec.format.reader import PemnFile
from pemncodec.packed.two_values import TwoValues
from pemncodec.values.rounding import widen

_BITS_OF_BYTE: Final[Array] = np.unpackbits(
    np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"
)  # [256, 8]


FOLDED_BYTES: Final = 1 << 30
"""The largest value that onnxruntime computes when a session is made; larger ones in every run."""


def plan_onnx(file: PemnFile) -> Packing:
    """What is worth packing of an open file in ONNX."""
    return plan_packing(file, _made_by_operators, draws=True, most_values=FOLDED_BYTES // 4)


def _made_by_operators(candidates: Candidates) -> dict[int, int]:
    portable = portable_by_operators(candidates)
    # Words of all its prototypes are one value of the graph.
    if 4 * sum(candidates[index][1] for index in portable) > FOLDED_BYTES:
        portable = {}
    return portable | drawn_by_operators(candidates)


class MaskedTensors:
    """Makes the packed tensors of a file in a graph."""

    def __init__(self, graph: OnnxGraph, packing: Packing) -> None:
        self._graph = graph
        self._packing = packing
        self._seeded = SeededValues(graph, packing.prototypes)
        self._drawn = DrawnValues(graph, packing.prototypes)
        self._most: dict[tuple[Any, ...], int] = {}
        for masked in packing.packed.values():
            key, last = self._key(masked.row), last_value(masked.row)
            self._most[key] = max(last, self._most.get(key, 0))

    def add(self, name: str, under: str, axes: tuple[int, ...]) -> None:
        """Adds what makes the tensor `name`, under a name, with its axes in another order."""
        graph, masked = self._graph, self._packing.packed[name]
        row, dtype = masked.row, self._dtype(masked.row)
        bits, values = masked.packed_mask(), self._values(row)
        if axes != tuple(range(len(row.shape))):
            # Before they meet: layers of one shape share the values in this order, too.
            mask = unpack(bits, numel(row.shape)).reshape(row.shape).transpose(axes)
            bits = np.packbits(mask, bitorder="little")
            values = graph.node("Transpose", values, perm=axes)
        used = _mask(graph, bits, tuple(row.shape[axis] for axis in axes))
        inputs = used, values, graph.scalar(0, dtype)
        if dtype == row.dtype:
            graph.output(under, "Where", *inputs)
        else:
            graph.output(under, "Cast", graph.node("Where", *inputs), to=DTYPES[row.dtype])

    def _dtype(self, row: MaskedRow) -> str:
        """In which dtype a tensor's values are computed: its own is rounded to at the end."""
        same = self._packing.prototypes[row.fill.prototype].dtype == row.dtype
        return "float64" if row.dtype == "float64" and same and row.fill.scale == 1 else "float32"

    def _values(self, row: MaskedRow) -> str:
        """A tensor's values [*shape], before the mask."""
        graph, prototype = self._graph, self._packing.prototypes[row.fill.prototype]
        values, available = self._scaled(row, prototype), prototype.needed
        if last_value(row) > available:
            available *= -(-self._most[self._key(row)] // available)
            values = graph.node("Tile", values, graph.integers(available // prototype.length))
        if (row.fill.offset, last_value(row)) != (0, available):
            values = graph.sliced(values, row.fill.offset, last_value(row))
        return graph.node("Reshape", values, graph.integers(*row.shape))

    def _scaled(self, row: MaskedRow, prototype: PackedPrototype) -> str:
        graph, dtype = self._graph, self._dtype(row)
        own = prototype.values
        if isinstance(own, SeededPrototype):
            values = self._seeded.add(own)
        elif isinstance(own, TorchPrototype):
            values = self._drawn.add(own)
        elif isinstance(own, TwoValues):
            values = self._two_values(own, dtype, prototype.dtype)
        else:
            values = graph.constant(own, prototype.dtype)
            values = values if prototype.dtype == dtype else graph.cast(values, dtype)
        if row.fill.scale == 1:
            return values
        return graph.node("Mul", values, graph.scalar(row.fill.scale, dtype))

    def _two_values(self, own: TwoValues, dtype: str, stored: str) -> str:
        graph = self._graph
        (first, second), others = (
            numbers if dtype == "float64" else widen(numbers, stored)
            for numbers in (own.pair, own.others)
        )
        which = _mask(graph, own.bits, (own.count,))
        values = graph.node("Where", which, graph.scalar(second, dtype), graph.scalar(first, dtype))
        if not own.places.size:
            return values
        places, exact = graph.constant(own.places, "int32"), graph.constant(others, dtype)
        return graph.node("ScatterElements", values, places, exact)

    def _key(self, row: MaskedRow) -> tuple[Any, ...]:
        return row.fill.prototype, row.fill.scale, self._dtype(row)


def _mask(graph: OnnxGraph, packed: Array, shape: tuple[int, ...]) -> str:
    """A mask as bool [*shape]."""
    index = graph.cast(graph.constant(packed, "uint8"), "int32")
    bits = graph.node("Gather", graph.constant(_BITS_OF_BYTE, "bool"), index)
    count = numel(shape)
    if count % 8:
        bits = graph.sliced(graph.node("Reshape", bits, graph.integers(-1)), 0, count)
    return graph.node("Reshape", bits, graph.integers(*shape))
