"""Normal values of torch as ONNX operators (spec/pemn.md section 5.5), in the order of the spec."""

from __future__ import annotations

from typing import Final

import numpy as np

from pemncodec.contents import Array, TorchVariant
from pemncodec.export.onnx_arithmetic import Value, fractions, fused
from pemncodec.export.onnx_graph import OnnxGraph
from pemncodec.kernels import torch_values_twin as twin

_EXPONENTS: Final = 12  # that are looked up, in a table of 2^12 equal parts of [0, 1)
_PARTS: Final = 128  # of [½, 1), in each of which the scalar logarithm is one formula


def normal(words: Value, variant: TorchVariant) -> Value:
    """Normal values, float32 [groups, 2, 8], of uint32 words, whole groups of 16.

    Not all are right: −0 stays −0, since runtimes leave out what adds 0, and a radius is wrong
    where u1 is below 2^-13.
    """
    one, u2 = fractions(words.reshaped(-1, 2, twin.GROUP // 2)).halves()
    u1 = 1 - one
    if variant == "vector":
        logarithm, (cosine, sine) = _vector_log(u1), _vector_cosine_sine(u2)
    else:
        logarithm, (cosine, sine) = _scalar_log(u1), _scalar_cosine_sine(u2)
    radius = (-2.0 * logarithm).root()
    parts = (radius * cosine).name, (radius * sine).name
    return Value(words.graph, words.graph.node("Concat", *parts, axis=1), "float32")


def _parts(u1: Value) -> tuple[Value, Value]:
    """u1 = x · 2^e with ½ ≤ x < 1: x, and e as float32."""
    places = (u1 * 2.0**_EXPONENTS).to("int32").name
    known = _exponents(u1.graph).name
    exponent = Value(u1.graph, u1.graph.node("Gather", known, places), "int32")
    scale = exponent.entries(2.0 ** np.arange(_EXPONENTS, -2, -1), "float32")
    return u1 * scale, exponent.to("float32") - _EXPONENTS


def _exponents(graph: OnnxGraph) -> Value:
    """Of the numbers in each part of [0, 1], plus 12, int32."""
    limits = (graph.scalar(n, "int32") for n in (0, (1 << _EXPONENTS) + 1, 1))
    parts = Value(graph, graph.node("Range", *limits), "int32").reshaped(-1, 1)
    powers = Value(graph, graph.constant(2 ** np.arange(_EXPONENTS + 1) - 1, "int32"), "int32")
    above = (powers < parts).to("int32").name
    count = graph.node("ReduceSum", above, graph.integers(1), keepdims=0)
    return Value(graph, count, "int32")


def _vector_log(u1: Value) -> Value:
    x, e = _parts(u1)
    low = (x < 0.707106781186547524).to("float32")
    e = e - low
    x = (x - 1) + x * low
    z = x * x
    y = _polynomial(x, twin.LOG) * x
    y = fused(y, z, e * -2.12194440e-4)
    # Products with so few bits are exact: these two are fused, too.
    y = z * -0.5 + y
    return e * 0.693359375 + (x + y)


def _vector_cosine_sine(u2: Value) -> tuple[Value, Value]:
    angle = u2 * 6.283185307179586
    eighths = (angle * 1.27323954473516).to("int32")  # 0 to 8
    quarters = (np.arange(9) + 1) // 2
    q = eighths.entries(2 * quarters, "float32")
    x = q * -0.78515625 + angle  # exact products again
    x = q * -2.4187564849853515625e-4 + x
    x = fused(q, -3.77489497744594108e-8, x)
    z = x * x
    c = fused(_polynomial(z, twin.COSINE) * z, z, z * -0.5) + 1
    s = fused(_polynomial(z, twin.SINE) * z, x, x)
    return _turned(eighths, quarters, c, s)


def _polynomial(x: Value, coefficients: list[float]) -> Value:
    y = fused(x, coefficients[0], coefficients[1])
    for coefficient in coefficients[2:]:
        y = fused(y, x, coefficient)
    return y


def _scalar_log(u1: Value) -> Value:
    x, e = _parts(u1)
    part = (x * (2 * _PARTS) - _PARTS).to("int32")
    lowest = np.linspace(0.5, 1, _PARTS, endpoint=False, dtype=np.float32)
    above = lowest.view(np.uint32).astype(np.int64) - 0x3F330000
    inverse, logarithm = twin.inverses()[above >> 19 & 15].T
    step = above >> 23  # k − e
    r = x.to("float64") * part.entries(inverse * 2.0**-step, "float64") - 1
    k = e.to("float64") + part.entries(step, "float64")
    f = part.entries(logarithm, "float64") + k * twin.LOG_2
    a, b, c = twin.SCALAR_LOG
    square = r * r
    y = a * square + (b * r + c)
    return (y * square + (f + r)).to("float32")


def _scalar_cosine_sine(u2: Value) -> tuple[Value, Value]:
    angle = (u2.to("float64") * (4 * twin.HALF_PI)).to("float32").to("float64")
    number = (angle * twin.PER_QUARTER).to("int32").to("float64") + 2.0**23
    quarters = (number * 2.0**-24).to("int32")  # 0 to 4
    x = angle - quarters.to("float64") * twin.HALF_PI
    square = x * x
    return _turned(quarters, np.arange(5), _scalar_cosine(square), _scalar_sine(x, square))


def _scalar_cosine(square: Value) -> Value:
    a, b, c, d = twin.SCALAR_COSINE
    fourth = square * square
    last = fourth * square * (c + square * d)
    return ((1 + square * a) + fourth * b + last).to("float32")


def _scalar_sine(x: Value, square: Value) -> Value:
    a, b, c = twin.SCALAR_SINE
    cube = x * square
    return ((x + cube * a) + cube * square * (b + square * c)).to("float32")


def _turned(number: Value, quarters: Array, c: Value, s: Value) -> tuple[Value, Value]:
    """Cosine and sine by those of an angle near 0, and by quarter turns from it.

    Args:
        number: of an entry of `quarters`, int32.
        quarters: [entries].
        c: cosine of the angle.
        s: sine.
    """
    is_odd = number.entries(quarters % 2, "bool")
    of_cosine, of_sine = (
        number.entries(np.where(q & 2, -1, 1), "float32") for q in (quarters + 1, quarters)
    )
    return is_odd.where(s, c) * of_cosine, is_odd.where(c, s) * of_sine
