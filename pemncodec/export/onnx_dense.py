"""Trained tensors that a file has in fewer bits, as ONNX operators (spec/pemn.md section 7.5)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from pemncodec.coders.affine import AffinePart
from pemncodec.contents import CARRIERS, Floats, numel
from pemncodec.export.onnx_graph import DTYPES, OnnxGraph
from pemncodec.format.header import ConstantRow
from pemncodec.format.reader import PemnFile
from pemncodec.values.rounding import round_to

Maker = Callable[[OnnxGraph, str], None]
"""Adds what makes a tensor, under a name."""

_OPERATOR_BYTES: Final = 250  # names and operators of one tensor
_SHORTER = {"fp16": "float16", "bf16": "bfloat16"}


def dense_makers(file: PemnFile) -> dict[str, Maker]:
    """What makes the trained tensors that are smaller so, by their name."""
    makers: dict[str, Maker] = {}
    for row in file.header.tensors:
        if isinstance(row, ConstantRow) and row.dtype in DTYPES and _is_large(row, row.value):
            makers[row.name] = partial(_add_constant, row)
    for section, rows in file.dense.groups.items():
        coder = file.dense.coder(section)
        if coder in _SHORTER:
            for row in rows:
                if 2 * numel(row.shape) > _OPERATOR_BYTES:
                    makers[row.name] = partial(_add_cast, file.tensor(row.name), _SHORTER[coder])
        elif coder == "q8":
            for row, part in zip(rows, file.dense.affine_parts(section), strict=True):
                if _affine_bytes(part) < 4 * numel(row.shape):
                    makers[row.name] = partial(_add_affine, part)
    return makers


def _is_large(row: ConstantRow, value: bytes) -> bool:
    return len(value) * numel(row.shape) > _OPERATOR_BYTES


def _add_constant(row: ConstantRow, graph: OnnxGraph, name: str) -> None:
    value = graph.constant(np.frombuffer(row.value, CARRIERS[row.dtype])[0], row.dtype)
    graph.output(name, "Expand", value, graph.integers(*row.shape))


def _add_cast(values: Floats, dtype: str, graph: OnnxGraph, name: str) -> None:
    short = graph.constant(round_to(values, dtype), dtype)
    graph.output(name, "Cast", short, to=DTYPES["float32"])


def _affine_bytes(part: AffinePart) -> int:
    return _OPERATOR_BYTES + part.codes.size + 8 * part.scales.size + 12 * part.outliers.size


def _add_affine(part: AffinePart, graph: OnnxGraph, name: str) -> None:
    """offset + code · scale, and the values that are kept exactly in their places.

    Not DequantizeLinear: onnxruntime takes that for a part of a network that computes in integers,
    and leaves it and all that depends on it to every run.
    """
    rows = part.scales.size
    apart = (rows, *[1] * (part.codes.ndim - 1)) if rows > 1 else ()
    scales = graph.constant(part.scales.reshape(apart), "float32")
    offsets = graph.constant(part.offsets.reshape(apart), "float32")
    codes = graph.cast(graph.constant(part.codes, "uint8"), "float32")
    products = graph.node("Mul", codes, scales)
    if not part.outliers.size:
        graph.output(name, "Add", products, offsets)
        return
    values = graph.node("Add", products, offsets)
    where = np.stack(np.unravel_index(part.outliers, part.codes.shape), axis=1)
    exact = graph.constant(part.exact, "float32")
    graph.output(name, "ScatterND", values, graph.constant(where, "int64"), exact)
