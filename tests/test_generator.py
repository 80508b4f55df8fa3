"""Seed to values: by mathematics, by slices, on other devices, and as they were pinned."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pemncodec.contents import Distribution, SeededPrototype
from pemncodec.values.generators import check_prototype
from pemncodec.values.on_device import generate_on
from pemncodec.values.philox import DISTRIBUTIONS, generate, normal_quantiles, permutation

U64 = st.integers(0, 2**64 - 1) | st.integers(0, 5)
STARTS = st.integers(0, 50) | st.integers(2**34 - 40, 2**34 + 40) | st.integers(0, 2**63 - 2000)
NAMES = st.sampled_from(DISTRIBUTIONS)

pytestmark = pytest.mark.usefixtures("kernels_implementation")


@pytest.fixture(scope="module")
def quantiles() -> list[float]:
    """Φ⁻¹((i + ½) / 4096) for the upper half, rounded once, to binary32."""
    with mpmath.workdps(30):
        values = []
        for i in range(2048, 4096):
            p = (mpmath.mpf(2 * i + 1)) / 8192
            x = mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1)
            values.append(nearest_binary32(x))
    return values


def nearest_binary32(x: mpmath.mpf) -> float:
    mantissa, exponent = mpmath.frexp(x)
    return float(mpmath.nint(mantissa * 2**24)) * 2.0 ** (exponent - 24)


def test_the_normal_table_is_what_mathematics_says(quantiles: list[float]) -> None:
    table = normal_quantiles()
    assert table.dtype == np.float32
    assert table.shape == (4096,)
    assert table[2048:].tolist() == quantiles
    assert table[:2048].tolist() == [-value for value in reversed(quantiles)]
    assert zlib.crc32(table[2048:].astype("<f4").tobytes()) == 0xE6C06AFF


@pytest.mark.parametrize(
    ("distribution", "bits"),
    [
        ("uniform", [0xBE4EC0BC, 0x3F42D38B, 0x3EF15EB2, 0x3E5806DC]),
        ("signed-constant", [0x3F800000, 0xBF800000, 0xBF800000, 0xBF800000]),
        ("normal", [0xBE82F9D8, 0x3F96B6DE, 0x3F2154B7, 0x3E892307]),
    ],
)
def test_first_values_of_the_spec(distribution: Distribution, bits: list[int]) -> None:
    assert generate(distribution, 0, 0, 4).view(np.uint32).tolist() == bits


@pytest.mark.parametrize(
    ("distribution", "crc", "far"),
    [
        ("uniform", 170030071, 520210899),
        ("signed-constant", 4015553869, 2785355447),
        ("normal", 248929193, 1074373265),
    ],
)
def test_pinned_values(distribution: Distribution, crc: int, far: int) -> None:
    values = generate(distribution, 2026, 0, 1000)
    assert zlib.crc32(values.astype("<f4").tobytes()) == crc
    values = generate(distribution, 2**64 - 2026, 2**40 + 3, 2**40 + 1003, stream=2**63 + 1)
    assert zlib.crc32(values.astype("<f4").tobytes()) == far


@given(NAMES, U64, U64, STARTS, st.integers(0, 300), st.data())
def test_a_slice_is_a_slice_of_the_whole(
    distribution: Distribution, seed: int, stream: int, start: int, size: int, data: st.DataObject
) -> None:
    whole = generate(distribution, seed, start, start + size, stream=stream)
    assert whole.dtype == np.float32
    assert whole.shape == (size,)
    low = data.draw(st.integers(0, size))
    high = data.draw(st.integers(low, size))
    part = generate(distribution, seed, start + low, start + high, stream=stream)
    assert part.tobytes() == whole[low:high].tobytes()


def test_values_are_distributed_as_they_should() -> None:
    count = 200_000
    uniform = generate("uniform", 1, 0, count)
    assert -1 < uniform.min() < -0.9999 < 0.9999 < uniform.max() < 1
    assert abs(uniform.mean()) < 0.01
    assert abs(uniform.var() - 1 / 3) < 0.01
    assert (uniform != 0).all()
    assert (uniform * 2**24 % 2 == 1).all()
    signs = generate("signed-constant", 1, 0, count)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.01
    normal = generate("normal", 1, 0, count)
    assert abs(normal.mean()) < 0.01
    assert abs(normal.var() - 1) < 0.01
    assert abs(np.corrcoef(normal[1:], normal[:-1])[0, 1]) < 0.01
    others = [generate("normal", 2, 0, count), generate("normal", 1, 0, count, stream=1)]
    for other in others:
        assert abs(np.corrcoef(normal, other)[0, 1]) < 0.01


def test_the_stream_ends_at_two_to_the_64() -> None:
    last = generate("uniform", 1, 2**64 - 5, 2**64)
    assert last.tobytes() == generate("uniform", 1, 2**64 - 9, 2**64)[4:].tobytes()
    assert generate("normal", 1, 2**64 - 1, 2**64 - 1).size == 0


@pytest.mark.parametrize(
    "make",
    [
        generate,
        lambda *arguments, **more: generate_on("cpu", *arguments, **more),
    ],
    ids=["numpy", "torch"],
)
@pytest.mark.parametrize(
    ("arguments", "stream"),
    [
        (("uniform", -1, 0, 4), 0),
        (("uniform", 2**64, 0, 4), 0),
        (("uniform", 0, -1, 4), 0),
        (("uniform", 0, 5, 4), 0),
        (("uniform", 0, 2**64, 2**64 + 4), 0),
        (("uniform", 0, 0, 4), -1),
        (("uniform", 0, 0, 4), 2**64),
        (("gaussian", 0, 0, 4), 0),
    ],
)
def test_arguments_out_of_range(
    make: Callable[..., object], arguments: tuple[str, int, int, int], stream: int
) -> None:
    with pytest.raises(ValueError, match=r".+"):
        make(*arguments, stream=stream)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distribution": "gaussian"}, "gaussian"),
        ({"length": 0}, "length must be positive, not 0"),
        ({"period": -1}, "not -1"),
        ({"period": 6}, "not 6"),
        ({"seed": -1}, "64"),
        ({"seed": 1 << 64}, "64"),
        ({"stream": 1 << 64}, "64"),
    ],
)
def test_fields_of_a_prototype_out_of_range(change: dict[str, Any], message: str) -> None:
    for length, period in ((5, 0), (5, 5), (1, 1)):
        check_prototype(SeededPrototype("normal", (1 << 64) - 1, length, (1 << 64) - 1, period))
    with pytest.raises(ValueError, match=message):
        check_prototype(replace(SeededPrototype("normal", 0, 5), **change))


@given(U64, STARTS, st.integers(0, 300), U64)
def test_permutations_are_permutations(seed: int, start: int, count: int, stream: int) -> None:
    order = permutation(seed, start, count, stream=stream)
    assert sorted(order.tolist()) == list(range(count))


def test_a_permutation_sorts_words() -> None:
    assert permutation(0, 2, 4).tolist() == [3, 1, 0, 2]  # the example of section 5.2
