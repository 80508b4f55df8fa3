"""Torch prototypes (section 5.5) in plain Python, one value at a time.

Numbers are binary64; those that stand for a binary32 were rounded to it.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from reference_errors import require

STATE = 624
TORCH_DISTRIBUTIONS = ("normal", "uniform", "normal-signs", "uniform-signs")
TORCH_DISTRIBUTIONS += ("numpy-uniform", "numpy-signs")


def check_torch(row: dict[str, Any]) -> None:
    """5.5, at the end: what a torch prototype may be; its `skip` is known already."""
    normal, count = row["distribution"].startswith("normal"), elements(row)
    require(row["drawn"] == 0 or row["drawn"] > row["length"], "header", "fewer elements drawn")
    require(count >= 16 or not normal, "header", "fewer than 16 normal values")
    taken = 2 * count if row["distribution"] == "numpy-uniform" else count
    require(0 <= row["skip"] <= (1 << 63) - 1 - taken - 16, "header", "words before a prototype")
    numpy = row["distribution"].startswith("numpy-")
    require(not numpy or row["variant"] == "vector", "header", "a variant of NumPy's values")
    digits = 16 if row["distribution"] == "numpy-uniform" else 8
    require(len(row["low"]) == len(row["high"]) == digits, "header", "digits of a range")
    low, high = unpack(row["low"]), unpack(row["high"])
    require(math.isfinite(low) and math.isfinite(high) and low < high, "header", "a range")
    if digits == 16:
        require(max(abs(low), abs(high)) < HALFWAY, "header", "a range above binary32")
        low, high = single(low), single(high)
        require(low < high, "header", "a range of one value")
    require(abs(Fraction(high) - Fraction(low)) < HALFWAY, "header", "a range that overflows")
    if digits == 16:
        return
    default = (row["low"], row["high"]) == ("bf800000", "3f800000")
    require(default or row["distribution"] == "uniform", "header", "a range of other values")


def elements(row: dict[str, Any]) -> int:
    """5.5: E, how many elements torch's tensor had."""
    return int(row["drawn"] or row["length"])


def end_of(row: dict[str, Any]) -> int:
    """5.5: where its words end."""
    normal = row["distribution"].startswith("normal")
    more = 16 if normal and elements(row) % 16 else 0
    more += elements(row) if row["distribution"] == "numpy-uniform" else 0
    return int(row["skip"] + elements(row) + more)


def torch_values(row: dict[str, Any]) -> list[int]:
    """5.5: the bits of P[0] ... P[L - 1]."""
    fractions = words(int(row["seed"], 16))
    for _ in range(row["skip"]):
        next(fractions)
    fused, count = row["variant"] == "vector", elements(row)
    if row["distribution"] == "numpy-signs":
        values = [1.0 if next(fractions) % 2 else -1.0 for _ in range(count)]
    elif row["distribution"] == "numpy-uniform":
        low, high = unpack(row["low"]), unpack(row["high"])
        values = [single(low + (high - low) * double(fractions)) for _ in range(count)]
    elif row["distribution"].startswith("uniform"):
        low = unpack(row["low"])
        width = rounded(Fraction(unpack(row["high"])) - Fraction(low))
        values = [uniform(next(fractions), width, low, fused) for _ in range(count)]
    else:
        values = []
        while len(values) <= count - 16:
            values += group([next(fractions) for _ in range(16)], fused)
        if count % 16:  # "are made of the 16 words behind those"
            for _ in range(count - len(values)):
                next(fractions)
            last = group([next(fractions) for _ in range(16)], fused)
            values[count - 16 :] = last
    values = values[: row["length"]]
    if row["distribution"].endswith("-signs"):
        values = [float((value > 0) - (value < 0)) for value in values]
    return [int.from_bytes(struct.pack("<f", value), "little") for value in values]


def words(seed: int) -> Iterator[int]:
    """5.5: u of the words of a seed."""
    x = [seed]
    for j in range(1, STATE):
        x.append((1812433253 * (x[j - 1] ^ x[j - 1] >> 30) + j) & 0xFFFFFFFF)
    for j in itertools.count():  # x[j mod 624] is x[j] of the text, until x[j + 624] replaces it
        y = (x[j % STATE] & 0x80000000) | (x[(j + 1) % STATE] & 0x7FFFFFFF)
        w = x[j % STATE] = x[(j + 397) % STATE] ^ y >> 1 ^ (0x9908B0DF if y % 2 else 0)
        w ^= w >> 11
        w ^= (w << 7) & 0x9D2C5680
        w ^= (w << 15) & 0xEFC60000
        yield w ^ w >> 18


# ------------------------------------------------------------------------- binary32, exactly

HALFWAY = Fraction((1 << 25) - 1) * (1 << 103)
"""What is rounded to infinity, and above."""


def unpack(digits: str) -> float:
    """A binary32 of 8 digits, a binary64 of 16."""
    return float(struct.unpack(">f" if len(digits) == 8 else ">d", bytes.fromhex(digits))[0])


def double(fractions: Iterator[int]) -> float:
    """5.5: what NumPy makes of two words; exact."""
    a, b = next(fractions), next(fractions)
    return ((a >> 5) * 2**26 + (b >> 6)) * 2.0**-53


def rounded(x: Fraction) -> float:
    """The binary32 that is nearest, ties to even; +0 for 0."""
    if x == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(x)))
    exponent += (abs(x) >= Fraction(2) ** (exponent + 1)) - (abs(x) < Fraction(2) ** exponent)
    step = Fraction(2) ** (max(exponent, -126) - 23)
    return float(round(x / step) * step)  # Python rounds ties to even


def single(x: float) -> float:
    """The binary32 that is nearest to a binary64."""
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def F(a: float, b: float, c: float) -> float:  # noqa: N802 the name of the text
    return rounded(Fraction(a) * Fraction(b) + Fraction(c))


def times(a: float, b: float) -> float:
    return F(a, b, 0.0)


def plus(a: float, b: float) -> float:
    return F(a, 1.0, b)


# ------------------------------------------------------------------------------------ values


def uniform(w: int, width: float, low: float, fused: bool) -> float:
    u = (w % 2**24) / 2**24
    return F(u, width, low) if fused else plus(times(u, width), low)


def group(w: list[int], fused: bool) -> list[float]:
    """Normal values of 16 words."""
    log, cos_sin = (log_vector, cos_sin_vector) if fused else (log_scalar, cos_sin_scalar)
    values = [0.0] * 16
    for j in range(8):
        u1 = 1 - (w[j] % 2**24) / 2**24
        r = single(math.sqrt(times(-2.0, log(u1))))  # rounding twice does no harm to a root
        cosine, sine = cos_sin((w[j + 8] % 2**24) / 2**24)
        values[j], values[j + 8] = times(r, cosine), times(r, sine)
    return values


LOG = [7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1]
LOG += [-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1]


def log_vector(u1: float) -> float:
    x, e = math.frexp(u1)
    if x < single(0.707106781186547524):
        e, x = e - 1, plus(plus(x, -1.0), x)
    else:
        x = plus(x, -1.0)
    z = times(x, x)
    y = single(LOG[0])
    for c in LOG[1:]:
        y = F(y, x, single(c))
    y = F(times(y, x), z, times(e, single(-2.12194440e-4)))
    y = F(z, -0.5, y)
    return F(e, 0.693359375, plus(x, y))


def cos_sin_vector(u: float) -> tuple[float, float]:
    a = times(single(6.283185307179586), u)
    q = int(times(a, single(1.27323954473516)))
    q += q % 2
    x = F(q, -0.78515625, a)
    x = F(q, single(-2.4187564849853515625e-4), x)
    x = F(q, single(-3.77489497744594108e-8), x)
    z = times(x, x)
    c = F(single(2.443315711809948e-5), z, single(-1.388731625493765e-3))
    c = F(c, z, single(4.166664568298827e-2))
    c = plus(F(times(c, z), z, -times(z, 0.5)), 1.0)
    s = F(single(-1.9515295891e-4), z, single(8.3321608736e-3))
    s = F(s, z, single(-1.6666654611e-1))
    s = F(times(s, z), x, x)
    return {0: (c, s), 2: (-s, c), 4: (-c, -s), 6: (s, -c), 8: (c, s)}[q]


INVERSES = """
0x1.661ec79f8f3bep+0 -0x1.57bf7808caadep-2
0x1.571ed4aaf883dp+0 -0x1.2bef0a7c06ddbp-2
0x1.49539f0f010bp+0 -0x1.01eae7f513a67p-2
0x1.3c995b0b80385p+0 -0x1.b31d8a68224e9p-3
0x1.30d190c8864a5p+0 -0x1.6574f0ac07758p-3
0x1.25e227b0b8eap+0 -0x1.1aa2bc79c81p-3
0x1.1bb4a4a1a343fp+0 -0x1.a4e76ce8c0e5ep-4
0x1.12358f08ae5bap+0 -0x1.1973c5a611cccp-4
0x1.0953f419900a7p+0 -0x1.252f438e10c1ep-5
0x1p+0 0x0p+0
0x1.e608cfd9a47acp-1 0x1.aa5aa5df25984p-5
0x1.ca4b31f026aap-1 0x1.c5e53aa362eb4p-4
0x1.b2036576afce6p-1 0x1.526e57720db08p-3
0x1.9c2d163a1aa2dp-1 0x1.bc2860d22477p-3
0x1.886e6037841edp-1 0x1.1058bc8a07ee1p-2
0x1.767dcf5534862p-1 0x1.4043057b6ee09p-2
"""
ROWS = [tuple(map(float.fromhex, line.split())) for line in INVERSES.split("\n") if line]


def log_scalar(u1: float) -> float:
    (b,) = struct.unpack("<I", struct.pack("<f", u1))
    t = (b - 0x3F330000) % 2**32
    k = (t >> 23) - (512 if t >= 2**31 else 0)
    (m,) = struct.unpack("<f", struct.pack("<I", (b - (t & 0xFF800000)) % 2**32))
    i, l = ROWS[(t >> 19) % 16]  # noqa: E741 the name of the text
    r = m * i - 1
    f = l + k * float.fromhex("0x1.62e42fefa39efp-1")
    y = float.fromhex("0x1.5575b0be00b6ap-2") * r + float.fromhex("-0x1.ffffef20a4123p-2")
    y = float.fromhex("-0x1.00ea348b88334p-2") * (r * r) + y
    return single(y * (r * r) + (f + r))


def cos_sin_scalar(u: float) -> tuple[float, float]:
    a = single(float.fromhex("0x1.921fb54442d18p+2") * u)
    q = (math.floor(a * float.fromhex("0x1.45f306dc9c883p+23")) + 2**23) >> 24
    x = a - q * float.fromhex("0x1.921fb54442d18p+0")
    z = x * x
    g, h = -1 if q in (2, 3) else 1, -x if q in (1, 2) else x
    s = (h + (h * z) * float.fromhex("-0x1.555545995a603p-3")) + ((h * z) * z) * (
        float.fromhex("0x1.1107605230bc4p-7") + z * float.fromhex("-0x1.994eb3774cf24p-13")
    )
    c = (
        (g + z * (g * float.fromhex("-0x1.ffffffd0c621cp-2")))
        + (z * z) * (g * float.fromhex("0x1.55553e1068f19p-5"))
    ) + ((z * z) * z) * (
        g * float.fromhex("-0x1.6c087e89a359dp-10")
        + z * (g * float.fromhex("0x1.99343027bf8c3p-16"))
    )
    pair = single(c), single(s)
    return pair if q % 2 == 0 else pair[::-1]
