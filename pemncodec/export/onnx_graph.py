"""A graph of ONNX operators under construction: nodes and initializers, each only once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import numpy as np
from onnx import NodeProto, TensorProto, helper

from pemncodec.contents import CARRIERS, Array

DTYPES: Final[dict[str, int]] = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
"""Names of dtypes as torch has them → ONNX's."""


class OnnxGraph:
    """Nodes in the order of their inputs, and the constants that they take.

    A node or constant that is asked for again is the one that is there, so that layers share what
    they have in common.

    Attributes:
        nodes: so far.
        initializers: so far.
    """

    def __init__(self, taken: Collection[str]) -> None:
        """Names in `taken` are given to nothing."""
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._taken = set(taken)
        self._constants: dict[Any, str] = {}
        self._operators: dict[Any, list[str]] = {}

    def constant(self, values: Array, dtype: str) -> str:
        """The name of an initializer.

        Args:
            values: [*shape], in the carrier dtype of `dtype`.
            dtype: name of the dtype.
        """
        data = values.astype(CARRIERS[dtype], copy=False).tobytes()
        key = (dtype, values.shape, data)
        if key not in self._constants:
            self._constants[key] = name = self._new_name()
            self.initializers.append(
                helper.make_tensor(name, DTYPES[dtype], values.shape, data, raw=True)
            )
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """The name of an initializer int64 [number of values], as shapes and positions are."""
        return self.constant(np.array(values, np.int64), "int64")

    def scalar(self, number: float, dtype: str) -> str:
        """The name of an initializer of one number, of shape []."""
        return self.constant(np.array(number, CARRIERS[dtype]), dtype)

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """The name of an operator's output."""
        return self.outputs(1, operator, *inputs, **attributes)[0]

    def outputs(self, count: int, operator: str, *inputs: str, **attributes: Any) -> list[str]:
        """The names of an operator's first outputs."""
        key = (operator, inputs, tuple(sorted(attributes.items())))
        if key not in self._operators:
            names = [self._new_name() for _ in range(count)]
            self._operators[key] = names
            self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return self._operators[key]

    def cast(self, value: str, dtype: str) -> str:
        """The name of a value in another dtype."""
        return self.node("Cast", value, to=DTYPES[dtype])

    def sliced(self, value: str, start: int, stop: int) -> str:
        """The name of items `start` to `stop` of a value, along its first axis."""
        return self.node("Slice", value, self.integers(start), self.integers(stop))

    def output(self, name: str, operator: str, *inputs: str, **attributes: Any) -> None:
        """Adds an operator whose output the rest of the model knows by `name`."""
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))

    def _new_name(self) -> str:
        name = f"w{len(self._taken)}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name
