"""Formulas as ONNX operators, each of which is rounded as IEEE 754 says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pemncodec.contents import Array
from pemncodec.export.onnx_graph import OnnxGraph


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a graph; arithmetic with it adds operators.

    A float beside it is rounded to its dtype.

    Attributes:
        graph: to which operators are added.
        name: of the value.
        dtype: of the value.
    """

    graph: OnnxGraph
    name: str
    dtype: str

    def __add__(self, other: Value | float) -> Value:
        return self._with("Add", other)

    def __radd__(self, other: float) -> Value:
        return self._with("Add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._with("Sub", other)

    def __rsub__(self, other: float) -> Value:
        return self._constant(other)._with("Sub", self)

    def __mul__(self, other: Value | float) -> Value:
        return self._with("Mul", other)

    def __rmul__(self, other: float) -> Value:
        return self._with("Mul", other)

    def __and__(self, other: Value | int) -> Value:
        return self._with("BitwiseAnd", other)

    def __lt__(self, other: Value | float) -> Value:
        return Value(self.graph, self._with("Less", other).name, "bool")

    def root(self) -> Value:
        """Its square root, of a float32 value.

        Taken in binary64 and rounded, which gives the same: some runtimes only come close in
        binary32.
        """
        root = self.graph.node("Sqrt", self.to("float64").name)
        return Value(self.graph, root, "float64").to("float32")

    def to(self, dtype: str) -> Value:
        """The same numbers in another dtype; floats without their fractions where that is int32."""
        return Value(self.graph, self.graph.cast(self.name, dtype), dtype)

    def reshaped(self, *shape: int) -> Value:
        """The same numbers in another shape; -1 for what the others leave."""
        sizes = self.graph.integers(*shape)
        return Value(self.graph, self.graph.node("Reshape", self.name, sizes), self.dtype)

    def halves(self) -> tuple[Value, Value]:
        """The two items along the second axis."""
        sizes = self.graph.integers(1, 1)
        first, second = self.graph.outputs(2, "Split", self.name, sizes, axis=1)
        return Value(self.graph, first, self.dtype), Value(self.graph, second, self.dtype)

    def entries(self, table: Array, dtype: str) -> Value:
        """Entries of a table with these numbers, which are int32."""
        values = self.graph.constant(table, dtype)
        return Value(self.graph, self.graph.node("Gather", values, self.name), dtype)

    def where(self, first: Value, second: Value) -> Value:
        """The first where this is true, else the second."""
        name = self.graph.node("Where", self.name, first.name, second.name)
        return Value(self.graph, name, first.dtype)

    def _with(self, operator: str, other: Value | float) -> Value:
        right = other if isinstance(other, Value) else self._constant(other)
        return Value(self.graph, self.graph.node(operator, self.name, right.name), self.dtype)

    def _constant(self, number: float) -> Value:
        return Value(self.graph, self.graph.scalar(number, self.dtype), self.dtype)


def fused(a: Value, b: Value | float, c: Value | float) -> Value:
    """a · b + c of float32 values, rounded to binary64 and then to binary32.

    The product is exact, so that this is nearly always what one rounding gives.
    """
    return (a.to("float64") * _wide(b) + _wide(c)).to("float32")


def _wide(number: Value | float) -> Value | float:
    return number.to("float64") if isinstance(number, Value) else float(np.float32(number))


def fractions(words: Value) -> Value:
    """The lower 24 bits of uint32 words as numbers from 0 up to 1, float32."""
    return (words & 0xFFFFFF).to("float32") * 2.0**-24
