"""Words to what torch's CPU kernels make of them (spec/pemn.md section 5.5): of torch_values.c.

NumPy has no fused multiply-add, so it is made of double precision.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer

GROUP = 16
"""Values that are made together: 8 of a radius times a cosine, 8 of it times a sine."""

_CHUNK_BYTES = 1 << 16  # of words that are made at one time: they stay in the cache

_Floats = NDArray[np.float32]
_Doubles = NDArray[np.float64]
_Number = float | _Floats


def torch_normal(words: Buffer, fused: int, out: Buffer) -> None:
    """Writes normal values, each group of 16 from 16 words.

    Args:
        words: n uint32 in native byte order, n a multiple of 16.
        fused: 1 for the "vector" variant, 0 for the "scalar" one.
        out: n float32; may be the memory of `words`.

    Raises:
        ValueError: "fused" out of range; "words" not whole groups; "out" of another length.
    """
    source = view_buffer(words)
    fused = check_integer(fused, "fused", most=1)
    target = view_buffer(out, writable=True)
    if source.size % (4 * GROUP):
        raise ValueError("words")
    if target.size != source.size:
        raise ValueError("out")
    make = _vector_normal if fused else _scalar_normal
    for start in range(0, source.size, _CHUNK_BYTES):
        pairs = _fractions(source[start : start + _CHUNK_BYTES]).reshape(-1, 2, 8)
        radius, cosine, sine = make(1 - pairs[:, 0], pairs[:, 1])
        # Adding zero makes +0 of −0.
        values = np.stack([radius * cosine, radius * sine], axis=1) + np.float32(0)
        target[start : start + _CHUNK_BYTES].view(np.float32)[:] = values.reshape(-1)


def torch_uniform(words: Buffer, fused: int, bounds: Buffer, out: Buffer) -> None:
    """Writes uniform values, one a word.

    Args:
        words: n uint32 in native byte order.
        fused: 1 for the "vector" variant, 0 for the "scalar" one.
        bounds: two float32, the lowest value and the highest; their difference is finite, too.
        out: n float32; may be the memory of `words`.

    Raises:
        ValueError: "fused" out of range; "words" not whole; "bounds" of another length, or not
            finite; "out" of another length.
    """
    source = view_buffer(words)
    fused = check_integer(fused, "fused", most=1)
    limits, target = view_buffer(bounds), view_buffer(out, writable=True)
    if source.size % 4:
        raise ValueError("words")
    if limits.size != 8:
        raise ValueError("bounds")
    low, high = limits.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        span = high - low
    if not np.isfinite(low) or not np.isfinite(span):
        raise ValueError("bounds")
    if target.size != source.size:
        raise ValueError("out")
    fractions = _fractions(source)
    target.view(np.float32)[:] = _fused(fractions, span, low) if fused else fractions * span + low


def _vector_normal(u1: _Floats, u2: _Floats) -> tuple[_Floats, _Floats, _Floats]:
    return np.sqrt(np.float32(-2) * _vector_log(u1)), *_vector_cosine_sine(u2)


def _scalar_normal(u1: _Floats, u2: _Floats) -> tuple[_Floats, _Floats, _Floats]:
    return np.sqrt(np.float32(-2) * _scalar_log(u1)), *_scalar_cosine_sine(u2)


def _fractions(words: NDArray[np.uint8]) -> _Floats:
    return (words.view(np.uint32) & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)


def _fused(a: _Floats, b: _Number, c: _Number) -> _Floats:
    """a * b + c, rounded once: the product is exact in double, the sum is rounded to odd first."""
    product = a.astype(np.float64) * np.float32(b)
    addend = np.asarray(c, np.float32).astype(np.float64)
    total = np.asarray(product + addend)
    part = total - product
    error = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    inexact = (error != 0) & (bits % 2 == 0)
    bits += np.where(inexact, np.where((error > 0) == (total > 0), 1, -1), 0)
    return total.astype(np.float32)


def _polynomial(x: _Floats, coefficients: list[float]) -> _Floats:
    y = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        y = _fused(y, x, coefficient)
    return y


LOG = [7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1]
LOG += [-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1]
COSINE = [2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2]
SINE = [-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1]


def _vector_log(u1: _Floats) -> _Floats:
    x, exponent = np.frexp(u1)
    low = x < np.float32(0.707106781186547524)
    e = (exponent - low).astype(np.float32)
    x = (x - 1) + np.where(low, x, np.float32(0))
    z = x * x
    y = _polynomial(x, LOG) * x
    y = _fused(y, z, e * np.float32(-2.12194440e-4))
    y = _fused(z, -0.5, y)
    return _fused(e, 0.693359375, x + y)


def _vector_cosine_sine(u2: _Floats) -> tuple[_Floats, _Floats]:
    angle = np.float32(6.283185307179586) * u2
    q = ((angle * np.float32(1.27323954473516)).astype(np.int32) + 1) & ~1
    turned = q.astype(np.float32)
    x = _fused(turned, -0.78515625, angle)
    x = _fused(turned, -2.4187564849853515625e-4, x)
    x = _fused(turned, -3.77489497744594108e-8, x)
    z = x * x
    cosine = _fused(_polynomial(z, COSINE) * z, z, -(z * np.float32(0.5))) + 1
    sine = _fused(_polynomial(z, SINE) * z, x, x)
    swapped = (q & 2) != 0
    return (
        np.where(((q + 2) & 4) != 0, -1, 1) * np.where(swapped, sine, cosine),
        np.where((q & 4) != 0, -1, 1) * np.where(swapped, cosine, sine),
    )


# 1 / c and log c, for a c near the middle of each of 16 parts of [0.7, 1.4).
_INVERSES = """
0x1.661ec79f8f3bep+0 -0x1.57bf7808caadep-2  0x1.571ed4aaf883dp+0 -0x1.2bef0a7c06ddbp-2
0x1.49539f0f010bp+0 -0x1.01eae7f513a67p-2   0x1.3c995b0b80385p+0 -0x1.b31d8a68224e9p-3
0x1.30d190c8864a5p+0 -0x1.6574f0ac07758p-3  0x1.25e227b0b8eap+0 -0x1.1aa2bc79c81p-3
0x1.1bb4a4a1a343fp+0 -0x1.a4e76ce8c0e5ep-4  0x1.12358f08ae5bap+0 -0x1.1973c5a611cccp-4
0x1.0953f419900a7p+0 -0x1.252f438e10c1ep-5  0x1p+0 0x0p+0
0x1.e608cfd9a47acp-1 0x1.aa5aa5df25984p-5   0x1.ca4b31f026aap-1 0x1.c5e53aa362eb4p-4
0x1.b2036576afce6p-1 0x1.526e57720db08p-3   0x1.9c2d163a1aa2dp-1 0x1.bc2860d22477p-3
0x1.886e6037841edp-1 0x1.1058bc8a07ee1p-2   0x1.767dcf5534862p-1 0x1.4043057b6ee09p-2
"""
LOG_2 = float.fromhex("0x1.62e42fefa39efp-1")
SCALAR_LOG = [float.fromhex(x) for x in ("-0x1.00ea348b88334p-2", "0x1.5575b0be00b6ap-2")]
SCALAR_LOG += [float.fromhex("-0x1.ffffef20a4123p-2")]
HALF_PI = float.fromhex("0x1.921fb54442d18p+0")
PER_QUARTER = float.fromhex("0x1.45f306dc9c883p+23")
SCALAR_SINE = [float.fromhex(x) for x in ("-0x1.555545995a603p-3", "0x1.1107605230bc4p-7")]
SCALAR_SINE += [float.fromhex("-0x1.994eb3774cf24p-13")]
SCALAR_COSINE = [float.fromhex(x) for x in ("-0x1.ffffffd0c621cp-2", "0x1.55553e1068f19p-5")]
SCALAR_COSINE += [float.fromhex(x) for x in ("-0x1.6c087e89a359dp-10", "0x1.99343027bf8c3p-16")]


def inverses() -> _Doubles:
    """1 / c and log c of the parts of [0.7, 1.4), [16, 2]."""
    return np.array([float.fromhex(number) for number in _INVERSES.split()]).reshape(16, 2)


def _scalar_log(u1: _Floats) -> _Floats:
    bits = u1.view(np.uint32)
    above = bits - np.uint32(0x3F330000)
    exponent = (above & 0xFF800000).view(np.int32) >> 23
    inverse, logarithm = inverses()[(above >> 19) & 15].transpose(2, 0, 1)
    r = (bits - (above & 0xFF800000)).view(np.float32).astype(np.float64) * inverse - 1
    first, square = logarithm + exponent * LOG_2, r * r
    y = SCALAR_LOG[0] * square + (SCALAR_LOG[1] * r + SCALAR_LOG[2])
    result: _Floats = (y * square + (first + r)).astype(np.float32)
    return result


def _scalar_cosine_sine(u2: _Floats) -> tuple[_Floats, _Floats]:
    angle = (4 * HALF_PI * u2.astype(np.float64)).astype(np.float32).astype(np.float64)
    q = ((angle * PER_QUARTER).astype(np.int32) + 0x800000) >> 24
    x = angle - q * HALF_PI
    square = x * x
    sine = _scalar_sine(np.where((q + 1) & 2, -x, x), square)
    cosine = _scalar_cosine(square, np.where(q & 2, -1.0, 1.0))
    odd = (q & 1) != 0
    return np.where(odd, sine, cosine), np.where(odd, cosine, sine)


def _scalar_sine(x: _Doubles, square: _Doubles) -> _Floats:
    a, b, c = SCALAR_SINE
    cube = x * square
    return ((x + cube * a) + cube * square * (b + square * c)).astype(np.float32)


def _scalar_cosine(square: _Doubles, sign: _Doubles) -> _Floats:
    a, b, c, d = SCALAR_COSINE
    fourth = square * square
    first = sign + square * (sign * a)
    last = sign * c + square * (sign * d)
    return ((first + fourth * (sign * b)) + fourth * square * last).astype(np.float32)
