"""Prototypes of torch's CPU generator against torch itself, in both of its variants."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch_draws import draw

from pemncodec.contents import TorchPrototype, TorchVariant
from pemncodec.limits import Limits
from pemncodec.values import mersenne
from pemncodec.values.fill import scale_values
from pemncodec.values.generators import check_prototype, seeded_slice
from pemncodec.values.mersenne import WordStream, stream_of
from pemncodec.values.torch_cpu import words_of

pytestmark = pytest.mark.usefixtures("kernels_implementation")

VECTORS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
VARIANT: TorchVariant = "vector" if VECTORS else "scalar"
SEEDS = st.integers(0, 2**32 - 1) | st.integers(0, 5)
SKIPS = st.integers(0, 40) | st.integers(600, 650) | st.integers(0, 200_000)
NORMAL_LENGTHS = st.integers(16, 50) | st.integers(900, 1100)
LENGTHS = st.integers(1, 40) | st.integers(900, 1100)


def same(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> bool:
    assert ours.dtype == theirs.dtype == np.float32
    return ours.tobytes() == theirs.reshape(-1).tobytes()


def values(prototype: TorchPrototype, scale: float = 1.0) -> NDArray[np.float32]:
    check_prototype(prototype)
    return seeded_slice(prototype, 0, prototype.length, float(np.float32(scale)))


@settings(max_examples=60)
@given(SEEDS, SKIPS, NORMAL_LENGTHS, st.floats(2.0**-20, 4.0, width=32))
def test_normal_values(seed: int, skip: int, length: int, std: float) -> None:
    prototype = TorchPrototype("normal", seed, length, skip, variant=VARIANT)
    assert same(values(prototype), draw("normal_", [0, 1], seed, skip, [length]))
    assert same(values(prototype, std), draw("normal_", [0, std], seed, skip, [length]))


@settings(max_examples=60)
@given(SEEDS, SKIPS, LENGTHS, st.floats(-4, 4, width=32), st.floats(2.0**-9, 4, width=32))
def test_uniform_values(seed: int, skip: int, length: int, low: float, width: float) -> None:
    high = float(np.float32(low) + np.float32(width))
    prototype = TorchPrototype("uniform", seed, length, skip, low, high, VARIANT)
    assert same(values(prototype), draw("uniform_", [low, high], seed, skip, [length]))


@settings(max_examples=40)
@given(SEEDS, SKIPS, LENGTHS, st.floats(2.0**-20, 4.0, width=32))
def test_uniform_values_of_a_symmetric_range_are_a_scale(
    seed: int, skip: int, length: int, bound: float
) -> None:
    drawn = draw("uniform_", [-bound, bound], seed, skip, [length])
    if VECTORS:
        scaled = TorchPrototype("uniform", seed, length, skip)
        assert same(values(scaled, bound), drawn)
    assert same(
        values(TorchPrototype("uniform", seed, length, skip, -bound, bound, VARIANT)), drawn
    )


@pytest.mark.parametrize("kind", ["normal", "uniform", "normal-signs", "uniform-signs"])
@pytest.mark.parametrize("elements", [37, 48])
def test_the_first_values_of_a_tensor(kind: Any, elements: int) -> None:
    """Also of one whose last 16 values are drawn again: by its words, not by those of fewer."""
    whole = values(TorchPrototype(kind, 3, elements, 5))
    for length in (1, 15, 16, 20, 22, 36):
        first = TorchPrototype(kind, 3, length, 5, drawn=elements)
        assert same(values(first), whole[:length])
        assert words_of(first) == words_of(TorchPrototype(kind, 3, elements, 5))
    assert f" 36 of {elements} {kind}" in f" {first.in_words}"
    for length, drawn in ((elements, elements), (elements + 1, elements), (1, -1)):
        with pytest.raises(ValueError, match=f"{length} values is not the beginning of {drawn}"):
            check_prototype(TorchPrototype(kind, 3, length, 5, drawn=drawn))


def test_the_first_values_of_few_normal_ones() -> None:
    check_prototype(TorchPrototype("normal", 3, 5, drawn=16))
    with pytest.raises(ValueError, match="16 or more at once, not 15"):
        check_prototype(TorchPrototype("normal", 3, 5, drawn=15))


@pytest.mark.parametrize("shape", [[64, 3, 3, 3], [10, 17], [129, 33]])
@pytest.mark.parametrize(
    ("call", "fan", "distribution", "gain"),
    [
        ("kaiming_normal_", 0, "normal", math.sqrt(2)),
        ("xavier_normal_", 1, "normal", 1.0),
        ("kaiming_uniform_", 0, "uniform", math.sqrt(2) * math.sqrt(3)),
        ("xavier_uniform_", 1, "uniform", math.sqrt(3)),
    ],
)
def test_initializations(
    shape: list[int], call: str, fan: int, distribution: Any, gain: float
) -> None:
    field = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * field, shape[0] * field
    divisor = (fan_in + fan_out) / 2 if fan else fan_in
    scale = gain / math.sqrt(divisor)
    drawn = draw(call, [], 2**31, 77, shape)
    prototype = TorchPrototype(distribution, 2**31, math.prod(shape), 77, variant=VARIANT)
    if distribution == "uniform" and not VECTORS:
        bound = float(np.float32(scale))
        assert same(values(replace(prototype, low=-bound, high=bound)), drawn)
    else:
        assert same(values(prototype, scale), drawn)


def test_a_truncated_normal_that_cuts_nothing_is_normal() -> None:
    drawn = draw("trunc_normal_", [0, 0.02], 3, 50, [64, 48])
    assert same(values(TorchPrototype("normal", 3, 64 * 48, 50, variant=VARIANT), 0.02), drawn)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_normal_values_of_short_floats_are_rounded_ones(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    drawn = torch.empty(1024, dtype=dtype).normal_(0, 0.05)
    name = str(dtype).removeprefix("torch.")
    prototype = TorchPrototype("normal", 3, 1024, variant=VARIANT)
    made = scale_values(values(prototype), "float32", float(np.float32(0.05)), name)
    assert made.tobytes() == drawn.view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize(
    ("call", "kind"), [("normal_", "normal-signs"), ("uniform_", "uniform-signs")]
)
def test_signs(call: str, kind: Any) -> None:
    arguments = [0, 0.25] if call == "normal_" else [-0.25, 0.25]
    prototype = TorchPrototype(kind, 7, 1001, 5, variant=VARIANT)
    drawn = draw(f"{call} sign", arguments, 7, 5, [1001])
    assert set(drawn.tolist()) == {-1.0, 1.0}
    assert same(values(prototype), drawn)
    assert same(values(prototype, 0.03), drawn * np.float32(0.03))


@pytest.mark.parametrize(
    ("kind", "call", "seed", "skip", "zeros"),
    [
        # The first word makes a radius of 0; it is the middle of the range.
        ("normal-signs", "normal_", 34, 298_484, [0, 8]),
        ("uniform-signs", "uniform_", 7, 972_421, [0]),
    ],
)
def test_the_sign_of_zero_is_zero(
    kind: Any, call: str, seed: int, skip: int, zeros: list[int]
) -> None:
    prototype = TorchPrototype(kind, seed, 16, skip, variant=VARIANT)
    assert np.nonzero(values(prototype) == 0)[0].tolist() == zeros
    arguments = [0, 1] if call == "normal_" else [-1, 1]
    assert same(values(prototype), draw(f"{call} sign", arguments, seed, skip, [16]))


@given(st.data())
def test_a_slice_is_a_slice_of_the_whole(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["normal", "uniform", "normal-signs", "uniform-signs"]))
    length, skip = data.draw(NORMAL_LENGTHS), data.draw(SKIPS)
    variant = data.draw(st.sampled_from(["vector", "scalar"]))
    prototype = TorchPrototype(kind, 3, length, skip, variant=variant)
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length) | st.integers(max(start, length - 20), length))
    part = seeded_slice(prototype, start, stop, 0.5)
    assert same(part, values(prototype, 0.5)[start:stop])


def test_words_are_those_of_numpys_legacy_seeding() -> None:
    theirs = np.random.MT19937()
    theirs._legacy_seeding(2**32 - 1)  # type: ignore[attr-defined]
    drawn = theirs.random_raw(3_000).astype(np.uint32)
    assert WordStream(2**32 - 1).words(0, 3_000).tobytes() == drawn.tobytes()


def test_states_on_the_way_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = WordStream(5).words(0, 40_000)
    monkeypatch.setattr("pemncodec.values.mersenne._BLOCKS_APART", 2)
    monkeypatch.setattr("pemncodec.values.mersenne._MOST_KEPT", 4)
    ours = WordStream(5)
    for start in (0, 1, 623, 624, 1248, 39_000, 5_000, 17_472, 30_000, 0):
        assert ours.words(start, 1_000).tobytes() == theirs[start : start + 1_000].tobytes()


def test_words_anywhere_are_near_a_state_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[int] = []
    monkeypatch.setattr(mersenne, "_advanced", lambda state, n: blocks.append(n) or state)
    stream, last = WordStream(1), Limits().drawn_words - 1
    stream.state(last)
    blocks.clear()
    for start in (last, last // 2, last // 3, last - 100_000):
        stream.state(start)
    assert sum(blocks) < 4 * 256


def test_prototypes_of_one_seed_share_their_words_while_they_are_held() -> None:
    held = stream_of(9)
    assert stream_of(9) is held
    assert stream_of(10) is not held


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distribution": "gaussian"}, "gaussian"),
        ({"variant": "avx"}, "unknown variant 'avx'"),
        ({"seed": -1}, "32 bits, not -1"),
        ({"seed": 1 << 32}, "32 bits"),
        ({"length": 15}, "16 or more at once, not 15"),
        ({"distribution": "uniform", "length": 0}, "positive, not 0"),
        ({"skip": -1}, "cannot be -1 words"),
        ({"skip": (1 << 63) - 33}, "cannot be"),
        ({"low": 0.0}, "for uniform values alone"),
        ({"distribution": "uniform", "low": 1.0}, "cannot lie from 1.0 to 1.0"),
        ({"distribution": "uniform", "low": 0.1}, "in binary32"),
        ({"distribution": "uniform", "low": -3e38, "high": 3e38}, "in binary32"),
        ({"distribution": "uniform", "high": math.inf}, "in binary32"),
        ({"distribution": "uniform", "high": math.nan}, "in binary32"),
        ({"distribution": "uniform", "low": math.inf, "high": math.inf}, "in binary32"),
        ({"distribution": "uniform", "high": 1e300}, "in binary32"),
    ],
)
def test_fields_of_a_prototype_out_of_range(change: dict[str, Any], message: str) -> None:
    most = (1 << 63) - 1 - 17 - 16
    check_prototype(TorchPrototype("normal", (1 << 32) - 1, 17, most, variant="scalar"))
    check_prototype(TorchPrototype("uniform", 0, 1, 0, -0.5, 2.0))
    with pytest.raises(ValueError, match=message):
        check_prototype(replace(TorchPrototype("normal", 0, 17), **change))


@pytest.mark.parametrize(
    ("kind", "length", "words"),
    [("normal", 32, 32), ("normal", 33, 49), ("normal-signs", 17, 33), ("uniform", 33, 33)],
)
def test_words_that_torch_draws(kind: Any, length: int, words: int) -> None:
    assert words_of(TorchPrototype(kind, 0, length)) == words
    torch.manual_seed(0)
    tensor = torch.empty(length)
    tensor.normal_() if kind.startswith("normal") else tensor.uniform_()
    after = torch.empty(1).uniform_().numpy()
    assert same(after.copy(), draw("uniform_", [0, 1], 0, words, [1]))


@pytest.mark.parametrize(
    ("prototype", "words"),
    [
        (TorchPrototype("normal", 0, 16384, 60800), "16,384 normal values, torch seed 0, "),
        (TorchPrototype("uniform-signs", 3, 9, 1), "9 uniform-signs, torch seed 3, "),
        (TorchPrototype("uniform", 3, 9, 1, -0.5, 0.25), "9 uniform (-0.5 to 0.25) values, "),
    ],
)
def test_in_words(prototype: TorchPrototype, words: str) -> None:
    assert prototype.in_words.startswith(words)
    assert prototype.in_words.endswith(f", after {prototype.skip:,} words")
    assert replace(prototype, variant="scalar").in_words == prototype.in_words + ", scalar variant"


LOW, HIGH = float(np.float32(-0.3)), float(np.float32(0.8))


@pytest.mark.parametrize(
    ("prototype", "bits", "crc"),
    [
        (TorchPrototype("normal", 0, 17), "bf901b85 bfd91446 3eefaa55 3f6e8c30", "a09a670f"),
        (
            TorchPrototype("normal", 0, 17, variant="scalar"),
            "bf901b85 bfd91447 3eefaa55 3f6e8c31",
            "bab97e7c",
        ),
        (
            TorchPrototype("uniform", 0, 17, 0, LOW, HIGH),
            "3e7bc88e 3f0b8801 3e4e04f4 3eef538f",
            "2d844187",
        ),
        (
            TorchPrototype("uniform", 0, 17, 0, LOW, HIGH, "scalar"),
            "3e7bc890 3f0b8801 3e4e04f4 3eef538e",
            "dbf92575",
        ),
    ],
)
def test_values_of_the_spec(prototype: TorchPrototype, bits: str, crc: str) -> None:
    made = values(prototype).astype("<f4")
    assert [f"{word:08x}" for word in made.view("<u4")[[0, 1, 8, 16]]] == bits.split()
    assert f"{zlib.crc32(made.tobytes()):08x}" == crc


@pytest.mark.parametrize(("variant", "crc"), [("vector", "e691c6f0"), ("scalar", "6d94dfd4")])
def test_many_values_of_the_spec(variant: TorchVariant, crc: str) -> None:
    made = values(TorchPrototype("normal", 0, 100_000, variant=variant)).astype("<f4")
    assert f"{zlib.crc32(made.tobytes()):08x}" == crc


def test_words_of_the_spec() -> None:
    for seed, start, words in (
        (0, 0, "8c7f0aac 97c4aa2f b716a675 d821ccc0 9a4eb343 dba252fb"),
        (0x89ABCDEF, 0, "822bf9de d30d70b3 733dc048 ad589937 25941d4a 97f9450a"),
        (0, 1_000_000, "7d055ded 56a55749"),
    ):
        expected = words.split()
        made = WordStream(seed).words(start, len(expected))
        assert [f"{word:08x}" for word in made] == expected


CASES = [
    {"call": call, "arguments": arguments, "seed": seed, "skip": skip, "shape": [length]}
    for call, arguments in (
        ("normal_", [0, 1]),
        ("normal_", [0, 0.03125]),
        ("uniform_", [-0.3, 0.8]),
    )
    for seed in (0, 2**32 - 1)
    for skip in (0, 60_800)
    for length in (16, 17, 31, 1000, 50_000)
]


@pytest.fixture(scope="module")
def without_vectors(tmp_path_factory: pytest.TempPathFactory) -> list[NDArray[np.float32]]:
    """What a process draws whose torch uses no vector instructions."""
    path = tmp_path_factory.mktemp("drawn") / "drawn.npz"
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("torch_draws.py")), str(path)],
        input=json.dumps(CASES),
        text=True,
        check=True,
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default"},
    )
    return list(np.load(path).values())


def test_a_torch_without_vectors(without_vectors: list[NDArray[np.float32]]) -> None:
    assert len(without_vectors) == len(CASES)
    for case, drawn in zip(CASES, without_vectors, strict=True):
        (length,), (low, high) = case["shape"], case["arguments"]
        prototype = TorchPrototype("normal", case["seed"], length, case["skip"], variant="scalar")
        if case["call"] == "normal_":
            assert same(values(prototype, high), drawn), case
        else:
            low, high = float(np.float32(low)), float(np.float32(high))
            prototype = replace(prototype, distribution="uniform", low=low, high=high)
            assert same(values(prototype), drawn), case
        if length >= 1000:
            assert not same(values(replace(prototype, variant="vector")), drawn), case


def test_scaling_a_prototype_is_what_a_fill_does() -> None:
    prototype = TorchPrototype("normal", 1, 1000)
    scaled = scale_values(values(prototype), "float32", 0.0625, "float32")
    assert same(values(prototype, 0.0625), scaled)
