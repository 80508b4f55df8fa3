"""Prototypes behind given weights: found, as short as they can be, and bit for bit."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import pemncodec
from pemncodec.contents import (
    CARRIERS,
    Array,
    Distribution,
    Fill,
    SeededPrototype,
    StoredPrototype,
    bits_of,
)
from pemncodec.values import fill as fill_module
from pemncodec.values.fill import (
    RepeatedValues,
    SeededValues,
    UsedValues,
    places_of,
    prototype_values,
    scale_values,
    tensor_values,
    used_values,
)
from pemncodec.values.philox import DISTRIBUTIONS, generate
from pemncodec.values.recovery import Layer, recover_prototypes
from pemncodec.values.scale import ScaleBounds

RNG = np.random.default_rng
BOTH = pytest.mark.usefixtures("kernels_implementation")
DTYPES = ("float32", "float64", "float16", "bfloat16")


def as_dtype(values: Array, dtype: str) -> Array:
    """Float values in the carrier dtype, rounded by torch."""
    if not values.size:
        return np.empty(0, CARRIERS[dtype])
    tensor = torch.from_numpy(np.array(values, np.float32)).to(getattr(torch, dtype))
    return tensor.view(torch.uint8).numpy().view(CARRIERS[dtype])


def layers_of(
    vectors: Sequence[Array], density: float = 0.5, dtype: str = "float32", seed: int = 1
) -> list[Layer]:
    rng = RNG(seed)
    return [Layer(dtype, values, rng.random(values.size) < density) for values in vectors]


def recover(
    layers: Sequence[Layer], seeded: Sequence[SeededPrototype] = ()
) -> tuple[list[Any], list[Fill]]:
    """Recovery, proven: filling gives back every used value's bits."""
    prototypes, fills = recover_prototypes(layers, seeded)
    assert len(fills) == len(layers)
    for layer, fill in zip(layers, fills, strict=True):
        source = prototypes[fill.prototype]
        dtype = getattr(source, "dtype", "float32")
        values = scale_values(prototype_values(source), dtype, fill.scale, layer.dtype)
        packed = np.packbits(layer.mask, bitorder="little")
        made = np.empty_like(layer.values)
        RepeatedValues(values, fill.offset).fill_masked(0, packed, made)
        expected = np.where(layer.mask, bits_of(layer.values), 0)
        assert np.array_equal(bits_of(made), expected)
    return list(prototypes), list(fills)


def lengths(layers: Sequence[Layer]) -> list[int]:
    return [prototype.length for prototype in recover(layers)[0]]


def normal(count: int, seed: int = 0) -> Array:
    return RNG(seed).standard_normal(count).astype("<f4")


# ------------------------------------------------------------------------- ways of sharing


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_layer(dtype: str) -> None:
    """One prototype for each shape, in the order in which layers need them."""
    a, b, c = (as_dtype(normal(size, size), dtype) for size in (600, 400, 500))
    layers = layers_of([a, b, a, c, b, a], dtype=dtype)
    prototypes, fills = recover(layers)
    assert [prototype.length for prototype in prototypes] == [600, 400, 500]
    assert [fill.prototype for fill in fills] == [0, 1, 0, 2, 1, 0]


def test_max_layer() -> None:
    largest = normal(1000)
    prototypes, fills = recover(layers_of([largest[:300], largest, largest[:999], largest[:1]]))
    assert [prototype.length for prototype in prototypes] == [1000]
    assert {fill.prototype for fill in fills} == {0}


@pytest.mark.parametrize("period", [1, 2, 17, 256, 999, 1000])
@pytest.mark.parametrize("sizes", [(2048, 500, 3001), (1001,), (1024, 1024)])
def test_random_vector_copied(period: int, sizes: tuple[int, ...]) -> None:
    """Also where the largest layer is not a multiple of the vector."""
    layers = layers_of([np.resize(normal(period), size) for size in sizes], density=1.0)
    assert lengths(layers) == [period]
    if period < 0.9 * max(sizes):
        assert lengths(layers_of([layer.values for layer in layers])) == [period]


def test_random_vector_of_the_official_ratio() -> None:
    largest = 128 * 128
    vector = normal(int(largest * 1e-3) + 1)
    assert vector.size == 17
    layers = layers_of([np.resize(vector, size) for size in (6144, 3200, largest, 1280)])
    assert lengths(layers) == [17]


def test_random_vector_shuffled() -> None:
    """Few distinct values: the file takes little more than their order."""
    count = 20_000
    shuffled = RNG(5).permutation(np.resize(normal(16), count))
    state = {"large": shuffled, "small": shuffled[:5000]}
    masks = {name: torch.from_numpy(RNG(3).random(v.size) < 0.5) for name, v in state.items()}
    stream = io.BytesIO()
    tensors = {name: torch.from_numpy(values) for name, values in state.items()}
    pemncodec.encode(tensors, stream, masks=masks, manifest=False, preset="fast")
    with pemncodec.open(stream) as file:
        info = file.info()
        assert len(file.header.prototypes) == 1
    used = int((masks["large"] | torch.nn.functional.pad(masks["small"], (0, 15_000))).sum())
    assert used * 4 / 8 < info.prototype_bytes < used * 5 / 8 + 200  # 4 bits each, not 32
    for name, tensor in pemncodec.load_state_dict(stream).items():
        assert torch.equal(tensor, torch.where(masks[name], tensors[name], torch.zeros(())))


def test_independent_layers_keep_their_own() -> None:
    layers = layers_of([normal(size, size) for size in (500, 300, 400)])
    assert lengths(layers) == [500, 300, 400]


def test_only_used_values_are_stored() -> None:
    count, density = 10_000, 0.1
    mask = torch.from_numpy(RNG(0).random(count) < density)
    stream = io.BytesIO()
    pemncodec.encode(
        {"w": torch.from_numpy(normal(count))}, stream, masks={"w": mask}, manifest=False
    )
    with pemncodec.open(stream) as file:
        assert file.info().prototype_bytes < int(mask.sum()) * 4 + 50


@pytest.mark.parametrize("kind", ["one-layer", "max-layer", "random-vector"])
def test_weights_that_are_multiplied_by_their_masks(kind: str) -> None:
    """Masked-out weights are unknown then, whatever they hold."""
    sizes = (700, 700, 1500)
    vectors = {
        "one-layer": [normal(700), normal(700), normal(1500, 1)],
        "max-layer": [normal(1500)[:size] for size in sizes],
        "random-vector": [np.resize(normal(13), size) for size in sizes],
    }[kind]
    expected = {"one-layer": [700, 1500], "max-layer": [1500], "random-vector": [13]}[kind]
    layers = layers_of(vectors)
    assert lengths(layers) == expected
    for baked in (0.0, -0.0, float("nan")):
        masked_out = [
            Layer(x.dtype, np.where(x.mask, x.values, np.float32(baked)), x.mask) for x in layers
        ]
        assert lengths(masked_out) == expected
    torch_product = [Layer(x.dtype, x.values * x.mask, x.mask) for x in layers]  # −0.0
    assert lengths(torch_product) == expected


def test_layers_of_different_dtypes_share_nothing() -> None:
    values = normal(300)
    half = Layer("float16", as_dtype(values, "float16"), np.ones(300, np.bool_))
    brain = Layer("bfloat16", as_dtype(values, "bfloat16"), np.ones(300, np.bool_))
    assert len(recover([half, brain, half])[0]) == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [1.0, 0.0721, 3e-5])
def test_signed_constants(dtype: str, magnitude: float) -> None:
    signs = generate("signed-constant", 1, 0, 3000) * np.float32(magnitude)
    values = as_dtype(signs, dtype)
    prototypes, _ = recover(layers_of([values, values[:800]], dtype=dtype))
    # Few distinct values: the last ones may repeat the first by chance.
    assert [2900 < prototype.length <= 3000 for prototype in prototypes] == [True]
    constant = as_dtype(np.full(999, magnitude), dtype)
    assert lengths(layers_of([constant, constant[:5]], dtype=dtype)) == [1]


def test_zeros_and_nans_keep_their_bits() -> None:
    bits = np.array(
        [0, 1 << 31, 0x7FC00000, 0xFFC00001, 0x7F800001, 0x7F800000, 0xFF800000, 1, 0x3F800000],
        "<u4",
    )
    values = np.resize(bits, 500).view("<f4")
    layers = [Layer("float32", values, np.ones(500, np.bool_))]
    assert lengths(layers) == [9]
    # +0.0 and −0.0 are two values: a vector that repeats but for them does not.
    nearly = np.zeros(100, "<f4")
    nearly[50] = -0.0
    assert lengths([Layer("float32", nearly, np.ones(100, np.bool_))]) == [51]


def test_masks_that_use_nothing() -> None:
    none = np.zeros(50, np.bool_)
    layers = [Layer("float32", normal(50), none), Layer("float32", normal(0), none[:0])]
    assert [prototype.length for prototype in recover(layers)[0]] == [1]
    mixed = [*layers, Layer("float32", normal(20, 1), np.ones(20, np.bool_))]
    assert len(recover(mixed)[0]) == 1
    assert recover([]) == ([], [])


layer_lists = st.lists(
    st.tuples(
        st.integers(0, 30), st.integers(1, 12), st.integers(0, 1), st.floats(0, 1), st.booleans()
    ),
    max_size=6,
)


@given(layer_lists, st.integers(0, 2**32 - 1))
def test_any_layers_are_reproduced(
    shapes: list[tuple[int, int, int, float, bool]], seed: int
) -> None:
    rng = RNG(seed)
    layers = []
    for size, period, source, density, brain in shapes:
        values = np.resize(normal(period, source), size)
        dtype = "bfloat16" if brain else "float32"
        layers.append(Layer(dtype, as_dtype(values, dtype), rng.random(size) < density))
    prototypes, _ = recover(layers)
    assert all(isinstance(prototype, StoredPrototype) for prototype in prototypes)
    for prototype in prototypes:
        assert prototype.length <= max(1, *(layer.values.size for layer in layers))


# --------------------------------------------------------------------------------- seeded


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("length", [3000, 113])
def test_seeded_layers_with_scales_of_their_own(dtype: str, distribution: Any, length: int) -> None:
    prototype = SeededPrototype(distribution, 2026, length, stream=3)
    made = generate(distribution, 2026, 0, length, stream=3)
    layers = []
    for index, scale in enumerate([1.0, 0.0831, 0.5, -0.3, 2e-3, 17.7]):
        values = np.resize(made, 3000 - 400 * index) * np.float32(scale)
        layers += layers_of([as_dtype(values, dtype)], dtype=dtype, seed=index)
    prototypes, fills = recover(layers, [prototype])
    assert prototypes == [prototype]
    assert all(fill.offset == 0 for fill in fills)


@settings(max_examples=60)
@given(
    st.sampled_from(DTYPES),
    st.sampled_from(DISTRIBUTIONS),
    st.floats(2.0**-10, 2.0**6, width=32),
    st.integers(1, 400),
    st.integers(0, 2**32),
)
@example("bfloat16", "uniform", float(np.float32(1e-3)), 88, 129382)  # one weight is 2^-13
def test_any_scale_is_found(
    dtype: str, distribution: Any, scale: float, size: int, seed: int
) -> None:
    made = generate(distribution, seed, 0, 400)
    values = as_dtype(np.resize(made, size) * np.float32(scale), dtype)
    layer = Layer(dtype, values, np.ones(size, np.bool_))
    prototype = SeededPrototype(distribution, seed, 400)
    prototypes, _ = recover([layer], [prototype])
    assert prototypes == [prototype]


@pytest.mark.parametrize(
    ("dtype", "distribution", "size", "seed", "scale"),
    [
        # The middle of the bounds is an end of them, where a product is halfway between weights.
        ("float16", "uniform", 1000, 359, "0x1.77d18ep-7"),
        ("float16", "uniform", 10_000, 813, "0x1.d5a404p-16"),
        ("bfloat16", "uniform", 100_000, 780, "0x1.020392p-31"),
        # Weights without leading bits, whose products are rounded to binary32 much more finely.
        ("float16", "uniform", 10_000, 799, "0x1.e763bap-16"),
        ("float16", "normal", 10_000, 45, "0x1.64e7b2p-17"),
        ("float16", "uniform", 100_000, 95, "0x1.c1f4dap-20"),
        ("float16", "normal", 1000, 640, "0x1.dba40ap-24"),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_scales_that_are_hard_to_find(
    dtype: str, distribution: Any, size: int, seed: int, scale: str, sign: int
) -> None:
    """Many weights leave one or two scales, and rounding twice hides which."""
    values = generate(distribution, seed, 0, size) * np.float32(sign * float.fromhex(scale))
    layer = Layer(dtype, as_dtype(values, dtype), np.ones(size, np.bool_))
    prototype = SeededPrototype(distribution, seed, size)
    assert recover([layer], [prototype])[0] == [prototype]


@pytest.mark.parametrize(
    ("dtype", "mantissa", "limit"),
    [("float16", 10, 0x7C00), ("bfloat16", 7, 0x7F80), ("float32", 23, 0x7F800000)],
)
@np.errstate(over="ignore")
def test_bounds_of_a_scale_are_exact(dtype: str, mantissa: int, limit: int) -> None:
    """Every scale inside makes the weight, and none outside does; whatever the weight."""
    carrier, values = CARRIERS[dtype], np.array([1.0, *RNG(1).random(7)], np.float32)
    rng = RNG(0)
    edges = [1, 2, 3]
    for power in range(0, limit, 1 << mantissa):
        edges += [power, power + 1, power + (1 << mantissa) - 1]
    for word in [*edges, *rng.integers(0, limit, 50).tolist()]:
        weight = np.array([word], f"<u{carrier.itemsize}").view(carrier)
        for value in values:
            bounds = ScaleBounds(dtype)
            bounds.narrow(value[None], weight)
            low, high = bounds.low, bounds.high
            with np.errstate(all="ignore"):
                ends = np.array([low, high], np.float64).astype(np.float32)
            for end in ends[np.isfinite(ends)]:
                scale = end
                for _ in range(3):
                    scale = np.nextafter(scale, np.float32(0))
                for _ in range(6):
                    made = scale_values(value[None], "float32", float(scale), dtype)
                    is_made = bool((bits_of(made) == bits_of(weight)).all())
                    if low < float(scale) < high:
                        assert is_made, (dtype, word, value, scale)
                    elif not low <= float(scale) <= high:
                        assert not is_made, (dtype, word, value, scale)
                    scale = np.nextafter(scale, np.float32(np.inf))


@pytest.mark.parametrize("word", [0, 1, 2, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF])
def test_bounds_around_a_single_scale(word: int) -> None:
    """Between two numbers of binary32, on one, and around one and two of them."""
    numbers = np.arange(max(0, word - 2), word + 3, dtype=np.uint32).view(np.float32)
    ends = [np.float64(number) for number in numbers if np.isfinite(number)]
    ends += [(low + high) / 2 for low, high in itertools.pairwise(ends)]
    for low, high in itertools.combinations_with_replacement(sorted(ends), 2):
        bounds = ScaleBounds("float32")
        bounds.low, bounds.high = float(low), float(high)
        inside = sum(low <= float(number) <= high for number in numbers)
        assert bounds.is_single == (inside <= 1), (low, high)


def test_a_scale_is_refuted_by_the_last_weight() -> None:
    prototype = SeededPrototype("normal", 1, 1 << 18)
    values = generate("normal", 1, 0, 1 << 18) * np.float32(0.3)
    values[-1] = np.nextafter(values[-1], np.float32(9))
    for mask, is_found in ((np.ones(1 << 18, np.bool_), False), (values != values[-1], True)):
        prototypes, _ = recover([Layer("float32", values, mask)], [prototype])
        assert (prototypes[0] == prototype) == is_found


def test_layers_that_are_not_seeded_are_stored() -> None:
    prototype = SeededPrototype("normal", 1, 500)
    seeded = generate("normal", 1, 0, 500)
    other = seeded.copy()
    other[250] = np.nextafter(other[250], np.float32(9))
    layers = [Layer("float32", x, np.ones(500, np.bool_)) for x in (other, seeded)]
    prototypes, fills = recover(layers, [prototype, SeededPrototype("normal", 2, 500)])
    assert prototypes[0] == prototype
    assert isinstance(prototypes[1], StoredPrototype)
    assert [fill.prototype for fill in fills] == [1, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_weights_come_from_no_seed_and_raise_no_warning(dtype: str) -> None:
    odd = torch.tensor(
        [float("nan"), float("inf"), 0.0, -0.0, 1e-45, 3.4e38, -1.0], dtype=getattr(torch, dtype)
    )
    values = odd.view(torch.uint8).numpy().view(CARRIERS[dtype])
    signaling = {"float32": 0x7F800001, "float64": 0x7FF0 << 48 | 1}.get(dtype, 0x7F81)
    bits = bits_of(values.copy())
    bits[0] = signaling if dtype != "float16" else 0x7C01
    for chosen in (values, bits.view(CARRIERS[dtype])):
        layer = Layer(dtype, chosen, np.ones(7, np.bool_))
        prototypes, _ = recover([layer], [SeededPrototype("normal", 1, 7)])
        assert isinstance(prototypes[0], StoredPrototype)
        alone = [Layer(dtype, chosen, np.arange(7) == item) for item in range(7)]
        for layer, distribution in itertools.product(alone, DISTRIBUTIONS):
            recover([layer], [SeededPrototype(distribution, 1, 7)])


# ------------------------------------------------------------------- parts, by brute force


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 39), st.lists(st.booleans(), max_size=100)), max_size=4),
)
def test_used_values(length: int, users: list[tuple[int, list[bool]]]) -> None:
    fills = [(offset % length, np.array(mask, np.bool_)) for offset, mask in users]
    expected = np.zeros(length, np.bool_)
    for offset, mask in fills:
        for i in np.flatnonzero(mask):
            expected[(offset + i) % length] = True
    assert np.array_equal(used_values(length, fills), expected)


@BOTH
@given(
    dtype=st.sampled_from(DTYPES),
    length=st.integers(1, 50),
    offset=st.integers(0, 49),
    shape=st.lists(st.integers(0, 7), max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_filling(dtype: str, length: int, offset: int, shape: list[int], seed: int) -> None:
    assume(offset < length)
    rng = RNG(seed)
    width = CARRIERS[dtype].itemsize
    values = rng.integers(0, 256, length * width, dtype=np.uint8).view(CARRIERS[dtype])
    mask = rng.random(shape) < 0.5
    packed = np.packbits(mask.reshape(-1), bitorder="little")
    made = np.empty(mask.size, values.dtype)
    RepeatedValues(values, offset).fill_masked(0, packed, made)
    flat = bits_of(made)
    for i, used in enumerate(mask.reshape(-1)):
        assert flat[i] == (bits_of(values)[(offset + i) % length] if used else 0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("offset", range(5))
@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 9, 10, 11, 23])
def test_a_prototype_repeats_from_its_offset(dtype: str, offset: int, count: int) -> None:
    prototype = StoredPrototype(np.arange(1, 6, dtype=np.float32), "float32")
    made = np.empty(count, dtype)
    ones = np.packbits(np.ones(count, np.bool_), bitorder="little")
    tensor_values(prototype, Fill(0, offset, 0.5), dtype, count).fill_masked(0, ones, made)
    assert made.tolist() == [((offset + i) % 5 + 1) / 2 for i in range(count)]


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("length", "offset", "start", "count"),
    [
        (100_000, 0, 0, 100_000),
        (100_000, 7, 8, 99_999),
        (40_000, 39_999, 80, 123_457),
        (9, 4, 0, 50),
    ],
)
def test_values_made_in_slices_are_those_of_the_prototype(
    dtype: str, distribution: Distribution, length: int, offset: int, start: int, count: int
) -> None:
    prototype = SeededPrototype(distribution, 3, length, 5)
    scaled = scale_values(prototype_values(prototype), "float32", 0.3, dtype)
    packed = np.packbits(RNG(0).random(count) < 0.5, bitorder="little")
    expected, made = np.empty((2, count), scaled.dtype)
    RepeatedValues(scaled, offset).fill_masked(start, packed, expected)
    SeededValues(prototype, Fill(0, offset, 0.3), dtype).fill_masked(start, packed, made)
    assert np.array_equal(bits_of(made), bits_of(expected))


@BOTH
@given(
    dtype=st.sampled_from(DTYPES),
    length=st.integers(1, 200),
    offset=st.integers(0, 199),
    start=st.integers(0, 12),
    count=st.integers(0, 300),
    slice_size=st.sampled_from([8, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_values_that_masks_use_are_put_in_their_places(
    dtype: str,
    length: int,
    offset: int,
    start: int,
    count: int,
    slice_size: int,
    seed: int,
) -> None:
    assume(offset < length)
    rng, carrier = RNG(seed), CARRIERS[dtype]
    values = rng.integers(1, 256, length * carrier.itemsize, dtype=np.uint8).view(carrier)
    used = rng.random(length) < 0.7
    mask = (rng.random(count) < 0.7) & np.resize(np.roll(used, -offset - 8 * start), count)
    packed = np.packbits(mask, bitorder="little")
    expected, made = np.empty((2, count), carrier)
    RepeatedValues(values, offset).fill_masked(8 * start, packed, expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill_module, "_SLICE", slice_size)
        places = places_of(used)
        UsedValues(values[used], places, offset).fill_masked(8 * start, packed, made)
    assert places.count == np.count_nonzero(used)
    assert np.array_equal(bits_of(made), bits_of(expected))


@pytest.mark.parametrize("to_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_rounds_as_torch_does(dtype: str, to_dtype: str) -> None:
    rng = RNG(0)
    exponents = rng.integers(-30, 12, 20_000)
    values = as_dtype(np.ldexp(rng.standard_normal(20_000), exponents), dtype)
    tensor: Tensor = torch.from_numpy(values.copy()).view(getattr(torch, dtype))
    for scale in (1.0, 0.1, -3.7, 2.0**-12):
        expected = tensor
        if scale != 1.0 or dtype != to_dtype:
            product = tensor.to(torch.float32) * torch.tensor(scale, dtype=torch.float32)
            expected = product.to(getattr(torch, to_dtype))
        ours = scale_values(values, dtype, float(np.float32(scale)), to_dtype)
        assert ours.tobytes() == expected.view(torch.uint8).numpy().tobytes()


def test_offsets_are_honoured_when_read(with_kernels: Callable[[str], None]) -> None:
    """The encoder writes none yet; the format has them."""
    from pemncodec.contents import Contents, MaskedTensor
    from pemncodec.format.writer import encode_contents

    values = normal(10)
    mask = RNG(0).random((4, 9)) < 0.5
    tensor = MaskedTensor("w", "float32", (4, 9), Fill(0, offset=7), mask)
    stored = encode_contents(Contents((StoredPrototype(values, "float32"),), (tensor,)))
    seeded = encode_contents(Contents((SeededPrototype("normal", 9, 10),), (tensor,)))
    for which in ("native", "numpy"):
        with_kernels(which)
        for pieces, source in ((stored, values), (seeded, generate("normal", 9, 0, 10))):
            expected = np.where(mask, source[(7 + np.arange(36)) % 10].reshape(4, 9), 0)
            state = pemncodec.load_state_dict(io.BytesIO(b"".join(pieces)))
            assert state["w"].numpy().tobytes() == expected.tobytes()
