"""Mixed masks: round trips, sizes, the choice per tensor, hostile sections, files."""

from __future__ import annotations

import contextlib
import io
import math
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Official, official_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import pemncodec
from pemncodec.checkpoints.files import load_checkpoint
from pemncodec.coders import mixing
from pemncodec.coders.buckets import value_buckets
from pemncodec.coders.mask_coder import Buckets, MaskContext, order0_bits
from pemncodec.coders.masks import (
    CONSTANT,
    MIXING,
    PACKED,
    PRESETS,
    RANS,
    MaskEncoder,
    Preset,
    decode_masks,
    mask_coder,
    total_bytes,
    tries_context,
)
from pemncodec.coders.mixing import BLOCK_WEIGHTS, decode_mixing
from pemncodec.coders.packed import unpack
from pemncodec.contents import (
    CARRIERS,
    Contents,
    Fill,
    MaskedTensor,
    SeededPrototype,
    StoredPrototype,
    numel,
)
from pemncodec.errors import CorruptError, DecodeError, TruncatedError
from pemncodec.format.contexts import prototype_buckets
from pemncodec.format.writer import encode_contents
from pemncodec.spool import Spool
from pemncodec.values.fill import prototype_values

Mask = NDArray[np.bool_]
BOTH = pytest.mark.usefixtures("kernels_implementation")

# The twin in NumPy takes its time for each bit.
SMALL = st.lists(st.integers(1, 7), max_size=5).map(tuple).filter(lambda shape: numel(shape) < 1000)
SHAPES = SMALL | st.sampled_from([(40, 3, 3, 3), (40, 1, 5, 5), (9, 40), (9, 40, 1, 1), (33,), ()])


def random_mask(count: int, density: float, seed: int = 0) -> Mask:
    return np.random.default_rng(seed).random(count) < density


def context(shape: tuple[int, ...], buckets: Buckets | None = None, offset: int = 0) -> MaskContext:
    return MaskContext(shape, None if buckets is None else lambda: buckets, offset)


def encode(masks: list[tuple[Mask, MaskContext]]) -> tuple[bytes, list[int]]:
    return mixing.encode_mixing([mask for mask, _ in masks], [tensor for _, tensor in masks])


@st.composite
def mixed(draw: st.DrawFn, most: int = 4) -> list[tuple[Mask, MaskContext]]:
    """Masks with their tensors, on prototypes that are known or not."""
    masks = []
    for shape in draw(st.lists(SHAPES, min_size=1, max_size=most)):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        values = rng.standard_normal(draw(st.integers(1, 50))).astype(np.float32)
        known = draw(st.booleans())
        tensor = context(
            shape,
            value_buckets(values) if known else None,
            draw(st.integers(0, values.size - 1)),
        )
        density = draw(st.floats(0, 1))
        masks.append((rng.random(numel(shape)) < density, tensor))
    return masks


def decoded(data: bytes, tensors: list[MaskContext]) -> list[Mask]:
    return [
        unpack(packed, numel(tensor.shape))
        for packed, tensor in zip(decode_mixing(data, tensors), tensors, strict=True)
    ]


def assert_round_trip(masks: list[tuple[Mask, MaskContext]], data: bytes) -> None:
    result = decoded(data, [tensor for _, tensor in masks])
    for (mask, _), found in zip(masks, result, strict=True):
        assert np.array_equal(found, mask)


@BOTH
@given(masks=mixed())
def test_round_trip(masks: list[tuple[Mask, MaskContext]]) -> None:
    data, costs = encode(masks)
    assert sum(costs) == len(data)
    assert_round_trip(masks, data)


@settings(max_examples=50)
@given(masks=mixed())
def test_both_implementations_write_the_same_bytes(
    with_kernels: Callable[[str], None], masks: list[tuple[Mask, MaskContext]]
) -> None:
    with_kernels("native")
    data = encode(masks)
    with_kernels("numpy")
    assert encode(masks) == data
    assert_round_trip(masks, data[0])


@settings(max_examples=30)
@given(masks=mixed())
def test_the_reference_decoder_reads_what_is_written(
    reference: ModuleType, masks: list[tuple[Mask, MaskContext]]
) -> None:
    data, _ = encode(masks)
    known = [
        (list(tensor.shape), tensor.weight_buckets(0, mask.size).tolist()) for mask, tensor in masks
    ]
    assert reference.read_mixed(data, known) == [mask.astype(int).tolist() for mask, _ in masks]


@pytest.mark.parametrize("density", [0.0, 0.0001, 0.5, 0.9999, 1.0])
def test_extreme_densities(density: float) -> None:
    masks = [(random_mask(200_000, density), context((200, 1000)))]
    data, _ = encode(masks)
    assert_round_trip(masks, data)
    bound = order0_bits(int(masks[0][0].sum()), 200_000) / 8
    assert len(data) <= bound * 1.02 + 60


def test_blocks_are_independent() -> None:
    shape = (3, (BLOCK_WEIGHTS + 1000) // 3 + 1)
    mask = random_mask(math.prod(shape), 0.01)
    buckets = value_buckets(np.random.default_rng(1).random(999).astype(np.float32))
    tensor = context(shape, buckets, 5)
    data, _ = encode([(mask, tensor)])
    assert_round_trip([(mask, tensor)], data)
    for cut, code in (
        *((0, "truncated"), (7, "truncated"), (8, "section"), (12, "section")),
        (len(data) - 1, "section"),
    ):
        with pytest.raises(DecodeError) as caught:
            decode_mixing(data[:cut], [tensor])
        assert caught.value.code == code
    sizes = np.frombuffer(data[:8], "<u4")
    second = data[8 + sizes[0] :]
    first_gone = np.array([5, len(second)], "<u4").tobytes() + bytes(5) + second
    with pytest.raises(CorruptError):
        decode_mixing(first_gone, [tensor])


def test_rows_and_columns_are_learned() -> None:
    """A mask of independent bits whose densities are those of a row and column model."""
    rng = np.random.default_rng(7)
    rows, columns = rng.standard_normal(512), rng.standard_normal(512)
    odds = 1 / (1 + np.exp(-(rows[:, None] + columns - 1.96)))
    mask = rng.random(odds.shape) < odds
    true = -(np.log2(np.where(mask, odds, 1 - odds))).mean()
    data, _ = encode([(mask.reshape(-1), context(mask.shape))])
    bits = 8 * len(data) / mask.size
    assert bits < 1.05 * true
    assert bits < 0.85 * order0_bits(int(mask.sum()), mask.size) / mask.size


def test_values_are_learned() -> None:
    values = np.random.default_rng(2).standard_normal(5000).astype(np.float32)
    shape = (50, 1000)
    weights = np.resize(values, math.prod(shape))
    mask = random_mask(weights.size, 1.0) & (np.abs(weights) > 0.7)
    known, _ = encode([(mask, context(shape, value_buckets(values)))])
    unknown, _ = encode([(mask, context(shape))])
    assert len(known) < 0.2 * len(unknown)


def wanted(rows: int, columns: int, seed: int) -> tuple[Mask, MaskContext]:
    """Weights are kept that pull the way which their row, or else their column, wants."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(rows * columns).astype(np.float32)
    direction = rng.choice([-1, 1], (rows, 1)) + rng.choice([-1, 1], columns)
    pull = direction * values.reshape(rows, columns)
    mask = rng.random(pull.shape) < 1 / (1 + np.exp(-pull))
    return mask.reshape(-1), context((rows, columns), value_buckets(values))


def test_signs_of_rows_and_columns_are_learned() -> None:
    mask, tensor = wanted(400, 500, 6)
    known, _ = encode([(mask, tensor)])
    unknown, _ = encode([(mask, context(tensor.shape))])
    assert len(known) < 0.9 * len(unknown)


@pytest.mark.parametrize("shape", [(600, 1, 5, 5), (60, 60, 3, 3), (500, 4, 11)])
def test_neighbours_of_a_kernel_are_learned(shape: tuple[int, ...]) -> None:
    """Every kernel wants one direction of all its weights."""
    rng = np.random.default_rng(9)
    values = rng.standard_normal(math.prod(shape)).astype(np.float32)
    direction = rng.choice([-2, 2], (*shape[:2], *[1] * (len(shape) - 2)))
    odds = 1 / (1 + np.exp(-direction * values.reshape(shape)))
    mask = (rng.random(shape) < odds).reshape(-1)
    known, _ = encode([(mask, context(shape, value_buckets(values)))])
    unknown, _ = encode([(mask, context(shape))])
    assert len(known) < 0.93 * len(unknown)


def test_short_prototypes_tie_rows_that_are_equal() -> None:
    """Row r + 17 has the weights of row r: what columns do with a value is learned."""
    rng = np.random.default_rng(10)
    values = rng.standard_normal(17).astype(np.float32)
    wants = rng.random((17, 128)) < 0.5
    mask = np.tile(wants, (20, 1))[:300] ^ (rng.random((300, 128)) < 0.1)
    known, _ = encode([(mask.reshape(-1), context(mask.shape, value_buckets(values)))])
    assert len(known) < 0.75 * mask.size / 8


@given(mixed(), st.integers(0, 10**6), st.integers(0, 300))
def test_buckets_of_any_stretch(
    masks: list[tuple[Mask, MaskContext]], start: int, count: int
) -> None:
    for _, tensor in masks:
        found = tensor.weight_buckets(start, start + count)
        if tensor.buckets is None:
            assert found.tolist() == [0] * count
        else:
            places = (tensor.offset + start + np.arange(count)) % tensor.buckets().size
            assert np.array_equal(found, tensor.buckets()[places])


def test_buckets_of_a_constant_take_a_byte_a_weight() -> None:
    constant = context((1 << 20,), np.zeros(1, np.uint8))
    tracemalloc.start()
    try:
        constant.weight_buckets(0, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * (1 << 20)
    finally:
        tracemalloc.stop()


def test_layers_learn_from_each_other() -> None:
    """A channel that one layer keeps is a column that the next one keeps."""
    rng = np.random.default_rng(3)
    kept = rng.random(256)
    one = rng.random((256, 64)) < kept[:, None]
    two = rng.random((64, 256)) < kept
    masks = [(m.reshape(-1), context(m.shape)) for m in (one, two)]
    _, (_, second) = encode(masks)
    alone, _ = encode(masks[1:])
    assert second < 0.98 * len(alone)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_buckets_follow_the_order_of_values(dtype: str) -> None:
    values = np.array([-np.inf, -2, -1e-3, -0.0, 0.0, 1e-3, 2, np.inf], dtype)
    assert value_buckets(values).tolist() == list(range(0, 32, 4))
    assert value_buckets(values[::-1]).tolist() == list(range(28, -1, -4))
    assert value_buckets(np.ones(7, dtype)).tolist() == [0] * 7
    many = np.random.default_rng(0).standard_normal(6400).astype(dtype)
    assert np.bincount(value_buckets(many), minlength=32).min() > 100


def test_buckets_of_numbers_that_are_not_finite() -> None:
    """They are placed by their bits: NaN at both ends, −0 below +0."""
    bits = np.array([0xFFC0, 0xFF80, 0x8000, 0x0000, 0x7F80, 0x7FC0, 0x7FFF, 0xFFFF], np.uint16)
    assert np.argsort(value_buckets(bits)).tolist() == [7, 0, 1, 2, 3, 4, 5, 6]
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(value_buckets(wide), value_buckets(bits))


# --------------------------------------------------------------------------- choice of a coder


def sections_of(
    masks: list[Mask], preset: Preset, shapes: list[tuple[int, ...]] | None = None
) -> list[tuple[bytes, list[int]]]:
    shapes = shapes or [mask.shape for mask in masks]
    tensors = [context(shape) for shape in shapes]
    flat = [mask.reshape(-1) for mask in masks]
    with ThreadPoolExecutor(2) as pool:
        spool = Spool()
        coded = MaskEncoder(flat, preset, pool, spool).encode(tensors)
    sections = [(spool.read(section), members) for section, members in coded]
    assert sorted(i for _, members in sections for i in members) == list(range(len(masks)))
    for section, members in sections:
        packed = decode_masks(section, [tensors[i] for i in members])
        for i, found in zip(members, packed, strict=True):
            assert np.array_equal(unpack(found, flat[i].size), flat[i])
    return sections


def structured(shape: tuple[int, int], seed: int = 0) -> Mask:
    rng = np.random.default_rng(seed)
    return rng.random(shape) < rng.random((shape[0], 1))


def test_what_presets_try() -> None:
    assert PRESETS == ("fast", "default", "max")
    assert [tries_context(preset, 0) for preset in ("fast", "default", "max")] == [
        False,
        True,
        True,
    ]
    assert tries_context("default", 1 << 24)
    assert not tries_context("default", (1 << 24) + 1)
    assert tries_context("max", 1 << 40)


def test_costs_are_those_of_the_body() -> None:
    masks = [structured((40, 50), seed).reshape(-1) for seed in range(3)]
    body, costs = mixing.encode_mixing(masks, [MaskContext((40, 50))] * 3)
    assert sum(costs) == len(body)
    assert all(100 < cost < 250 for cost in costs)
    body, costs = mixing.encode_mixing(masks[:1], [MaskContext((40, 50))])
    assert costs == [len(body)]


def test_a_section_costs_six_bytes_more_than_it_holds() -> None:
    """Its row in the section table; what mixing saves is counted with it."""
    assert total_bytes([]) == 0
    assert total_bytes([(Spool().add(b"12345"), [0]), (Spool().add(b""), [1, 2])]) == 5 + 2 * 6


def test_each_preset_uses_its_coders() -> None:
    masks = [structured((100, 90)), np.zeros((9, 9), np.bool_), structured((90, 100), 1)]
    fast = sections_of(masks, "fast")
    assert all(mask_coder(section) in (CONSTANT, PACKED, RANS) for section, _ in fast)
    for preset in ("default", "max"):
        best = sections_of(masks, preset)
        assert [(mask_coder(section), members) for section, members in best] == [
            (MIXING, [0, 2]),
            (CONSTANT, [1]),
        ]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("density", [0.003, 0.05, 0.2, 0.5, 0.8])
def test_masks_without_structure_are_not_mixed(preset: Preset, density: float) -> None:
    shapes = [(32, 3, 3, 3), (32, 1, 5, 5), (64, 32), (10, 64), (300, 1000)]
    masks = [random_mask(math.prod(s), density, i) for i, s in enumerate(shapes)]
    sections = sections_of(masks, preset, shapes)
    static = sections_of(masks, "fast", shapes)
    entry = 5  # bytes of a section in the table, at least
    assert sum(len(s) + entry for s, _ in sections) <= sum(len(s) + entry for s, _ in static)


@pytest.mark.parametrize(
    ("strength", "gain", "mixes"),
    [
        (0.02, -0.001, {"fast": False, "default": False, "max": False}),
        (0.08, 0.010, {"fast": False, "default": False, "max": True}),
        (0.12, 0.033, {"fast": False, "default": True, "max": True}),
    ],
)
def test_the_default_mixes_where_it_saves_enough_and_max_wherever_it_saves(
    strength: float, gain: float, mixes: dict[Preset, bool]
) -> None:
    """Half of the rows keep a little more than half of their weights, the others a little less."""
    rng = np.random.default_rng(0)
    densities = 0.5 + strength * np.where(rng.permutation(200) < 100, 1, -1)
    mask = rng.random((200, 200)) < densities[:, None]
    ((alone, _),) = sections_of([mask], "fast")
    body, _ = encode([(mask.reshape(-1), context(mask.shape))])
    assert 1 - (1 + len(body)) / len(alone) == pytest.approx(gain, abs=0.002)
    for preset, mixed in mixes.items():
        ((section, _),) = sections_of([mask], preset)
        assert section == (bytes([MIXING.id]) + body if mixed else alone)


def test_what_does_not_pay_leaves_the_stream() -> None:
    noise = random_mask(300_000, 0.2).reshape(1000, 300)
    masks = [structured((200, 150)), noise, structured((200, 150), 2)]
    sections = sections_of(masks, "max")
    assert [members for _, members in sections] == [[0, 2], [1]]
    assert mask_coder(sections[1][0]) in (PACKED, RANS)


def test_large_models_are_mixed_on_request_only() -> None:
    masks = [np.repeat(random_mask(1 << 12, 0.3, i), 1 << 10) for i in range(5)]
    shapes = [(1 << 12, 1 << 10)] * 5
    assert all(mask_coder(s) != MIXING for s, _ in sections_of(masks, "default", shapes))
    best = sections_of(masks, "max", shapes)
    assert [(mask_coder(s), members) for s, members in best] == [(MIXING, [i]) for i in range(5)]


def test_all_blocks_of_a_mask_share_one_look_at_the_prototype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mixing, "BLOCK_WEIGHTS", 1 << 10)
    shape = (80, 60)
    fill = MaskedTensor("w", "float32", shape, Fill(0), structured(shape))
    prototype = SeededPrototype("normal", 1, numel(shape))
    data = b"".join(encode_contents(Contents((prototype,), (fill,)), preset="max"))
    looks: list[int] = []

    def counted(prototype: Any) -> Buckets:
        looks.append(prototype.length)
        return prototype_buckets(prototype)

    monkeypatch.setattr("pemncodec.format.masked_sections.prototype_buckets", counted)
    with pemncodec.open(io.BytesIO(data)) as file:
        assert file.info().tensors[0].coder == "mixing"
        looks.clear()
        assert np.array_equal(file.mask("w"), fill.mask)
        assert looks == [4800]
        assert np.array_equal(file.tensor("w") != 0, fill.mask)
        assert looks == [4800, 4800]


def test_streams_hold_four_million_weights() -> None:
    """So that reading one small mask never decodes more."""

    def mask(rows: int, seed: int) -> Mask:
        return np.repeat(random_mask(rows, 0.3, seed), 1 << 10).reshape(rows, -1)

    small = [structured((100, 90), seed) for seed in range(2)]
    best = sections_of([mask(2048, 1), mask(2048, 2), *small], "max")
    assert [members for _, members in best] == [[0, 1], [2, 3]]
    best = sections_of([mask(2048, 1), mask(2049, 2)], "max")
    assert [members for _, members in best] == [[0], [1]]


# ------------------------------------------------------------------------- hostile sections


def attempt(section: bytes, tensors: list[MaskContext]) -> None:
    with contextlib.suppress(CorruptError, TruncatedError):
        for packed, tensor in zip(decode_masks(section, tensors), tensors, strict=True):
            count = numel(tensor.shape)
            assert packed.shape == (-(-count // 8),)
            assert not np.unpackbits(packed, bitorder="little")[count:].any()


@BOTH
@settings(max_examples=150)
@given(data=st.binary(max_size=300), masks=mixed())
def test_random_sections(data: bytes, masks: list[tuple[Mask, MaskContext]]) -> None:
    tensors = [tensor for _, tensor in masks]
    attempt(bytes([MIXING.id]) + data, tensors)
    attempt(data, tensors)


@BOTH
@settings(max_examples=100)
@given(masks=mixed(), data=st.data())
def test_damaged_sections(masks: list[tuple[Mask, MaskContext]], data: st.DataObject) -> None:
    section = bytearray([MIXING.id, *encode(masks)[0]])
    for _ in range(data.draw(st.integers(0, 3))):
        section[data.draw(st.integers(0, len(section) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(section)) | st.just(len(section)))
    tensors = [tensor for _, tensor in masks]
    attempt(bytes(section[:cut]) + data.draw(st.binary(max_size=4)), tensors)
    attempt(bytes(section), [*tensors[1:], context((3, 5))])


@settings(max_examples=100)
@given(masks=mixed(), damage=st.data())
def test_both_implementations_refuse_alike(
    with_kernels: Callable[[str], None],
    masks: list[tuple[Mask, MaskContext]],
    damage: st.DataObject,
) -> None:
    data = bytearray(encode(masks)[0])
    data[damage.draw(st.integers(0, len(data) - 1))] ^= damage.draw(st.integers(1, 255))
    del data[damage.draw(st.integers(0, len(data)) | st.just(len(data))) :]
    outcomes = []
    for which in ("native", "numpy"):
        with_kernels(which)
        try:
            found = decode_mixing(bytes(data), [tensor for _, tensor in masks])
            outcomes.append(b"".join(part.tobytes() for part in found))
        except DecodeError as error:
            outcomes.append((error.code, str(error)))
    assert outcomes[0] == outcomes[1]


@BOTH
def test_every_cut_and_every_addition_is_refused() -> None:
    masks = [(structured((20, 30)).reshape(-1), context((20, 30)))]
    data, _ = encode(masks)
    tensors = [tensor for _, tensor in masks]
    for length in range(len(data)):
        with pytest.raises(DecodeError):
            decode_mixing(data[:length], tensors)
    for more in (b"\0", b"\0\0", data):
        with pytest.raises(DecodeError):
            decode_mixing(data + more, tensors)


@BOTH
@pytest.mark.parametrize(
    ("data", "shapes", "code"),
    [
        (b"", [(5,)], "truncated"),
        (b"\x80", [(5,), (5,)], "truncated"),
        (b"\x80\0\0\0", [(5,)], "section"),
        (b"\x80" + bytes(4), [(0,)], "section"),
        (b"\x80\x80" + bytes(4), [(5,), (0, 4)], "section"),
        (b"\x80\x80" + bytes(4), [(BLOCK_WEIGHTS,), (1,)], "section"),
        (bytes(7), [(BLOCK_WEIGHTS + 1,)], "truncated"),
        (bytes(9), [(BLOCK_WEIGHTS + 1,)], "section"),
    ],
)
def test_why_a_section_is_refused(data: bytes, shapes: list[tuple[int, ...]], code: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_mixing(data, [context(shape) for shape in shapes])
    assert caught.value.code == code


def test_few_bytes_do_not_cost_the_time_of_many_weights() -> None:
    """A block that ends at once stops decoding, however many weights it should have."""
    tensor = context((1 << 30,), np.zeros(1, np.uint8))
    blocks = (1 << 30) // BLOCK_WEIGHTS
    data = np.full(blocks, 5, "<u4").tobytes() + (b"\x80" + b"\x55" * 4) * blocks
    with pytest.raises(CorruptError, match="too short") as caught:
        decode_mixing(data, [tensor])
    assert caught.value.code == "section"


# ---------------------------------------------------------------------------------- in files


def contents_of(masks: list[Mask], **prototype: Any) -> Contents:
    tensors = tuple(
        MaskedTensor(f"w{i}", "float32", mask.shape, Fill(0, offset=3), mask)
        for i, mask in enumerate(masks)
    )
    return Contents((prototype["prototype"],), tensors)


def test_one_tensor_of_a_shared_section() -> None:
    masks = [structured((60, 50), 4), structured((50, 60), 5), structured((30, 100), 6)]
    contents = contents_of(masks, prototype=SeededPrototype("normal", 5, 777))
    data = b"".join(encode_contents(contents, preset="max"))
    for name in ("w2", "w0", "w1"):
        with pemncodec.open(io.BytesIO(data)) as file:
            assert np.array_equal(file.mask(name), masks[int(name[1])])
    with pemncodec.open(io.BytesIO(data)) as file:
        file.verify()
        info = file.info()
        assert [tensor.coder for tensor in info.tensors] == ["mixing"] * 3
        assert sum(tensor.bytes for tensor in info.tensors) == info.mask_bytes
        assert len({mask.section for mask in file.header.masks}) == 1
        assert file.mask_bits("w1").tolist() == masks[1].reshape(-1).astype(int).tolist()
    assert len(data) < len(b"".join(encode_contents(contents, preset="fast")))


ODD_SHAPES = [(), (1,), (7,), (0, 3), (4, 0, 3, 3), (1, 1), (90, 40), (40, 3, 3, 3), (60, 1, 5, 5)]


@given(data=st.data())
@settings(max_examples=25)
def test_odd_tensors_in_files(data: st.DataObject) -> None:
    """Shapes, scales, dtypes and values of any kind: every preset decodes to the same tensors."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    dtype = data.draw(st.sampled_from(["float16", "bfloat16", "float32", "float64"]))
    carrier = CARRIERS[dtype]
    values = np.frombuffer(rng.bytes(61 * carrier.itemsize), carrier).copy()  # NaN among them
    values[:4] = np.frombuffer(bytes(carrier.itemsize * 4), carrier)
    values.view(np.uint8)[carrier.itemsize - 1] = 0x80  # -0.0
    prototypes = (StoredPrototype(values, dtype), SeededPrototype("normal", 3, 500))
    shapes = data.draw(st.permutations(ODD_SHAPES))
    tensors = []
    for number, shape in enumerate(shapes):
        which = data.draw(st.sampled_from([0, 1]))
        scale = 1.0 if which == 0 else data.draw(st.sampled_from([1.0, -0.5, 0.0]))
        fill = Fill(which, data.draw(st.integers(0, 60)), scale)
        mask = np.asarray(rng.random(shape) < data.draw(st.sampled_from([0.02, 0.5, 1.0])))
        of = dtype if which == 0 else "float32"
        tensors.append(MaskedTensor(f"w{number}", of, shape, fill, mask))
    found = []
    for preset in ("fast", "default", "max"):
        stream = io.BytesIO(
            b"".join(encode_contents(Contents(prototypes, tuple(tensors)), None, preset))
        )
        with pemncodec.open(stream) as file:
            file.verify()
            for tensor in tensors:
                assert np.array_equal(file.mask(tensor.name), tensor.mask)
            found.append([file.tensor(tensor.name).tobytes() for tensor in tensors])
    assert found[0] == found[1] == found[2]


def values_decide(shape: tuple[int, int], values: NDArray[np.float32]) -> Mask:
    return np.resize(np.roll(values, -3), shape) > 0.4


@pytest.mark.parametrize(("missing", "used"), [(10, "all"), (1900, "masks")])
def test_unused_values_are_stored_where_knowing_the_rest_pays(missing: int, used: str) -> None:
    """Both choices decode to the same tensors; the smaller file wins."""
    rng = np.random.default_rng(8)
    values = prototype_values(SeededPrototype("normal", 1, 2000)).copy()
    masks = [rng.random((40, 500)) < np.resize(np.roll(np.abs(values) / 3, -3), (40, 500))]
    masks += [rng.random((300, 100)) < np.resize(np.roll(np.abs(values) / 3, -3), (300, 100))]
    gone = rng.permutation(2000)[:missing]
    for mask in masks:
        mask &= ~np.isin((np.arange(mask.size) + 3) % 2000, gone).reshape(mask.shape)
    values[gone] = 0
    contents = contents_of(masks, prototype=StoredPrototype(values, "float32"))
    with pemncodec.open(io.BytesIO(b"".join(encode_contents(contents, preset="max")))) as file:
        (row,) = file.header.prototypes
        assert getattr(row, "used", None) == used
        for i, mask in enumerate(masks):
            expected = np.where(mask, np.resize(np.roll(values, -3), mask.shape), 0)
            assert file.tensor(f"w{i}").tobytes() == expected.astype(np.float32).tobytes()


# ------------------------------------------------------------------------- real checkpoints


@pytest.mark.parametrize("preset", ["default", "max"])
@pytest.mark.parametrize(("which", "most"), [("onelayer", 0.960), ("rp", 0.880)])
def test_official_masks_take_less_than_their_order0(which: str, most: float, preset: str) -> None:
    official = official_checkpoint(which)
    assert isinstance(official, Official)
    state = load_checkpoint(official.path)
    assert_share_of_order0(state, official.keep, most, preset)


def test_example_masks_take_less_than_their_order0() -> None:
    state = load_checkpoint(ROOT / "examples" / "convmixer-rp1e-3-k50.pt")
    assert_share_of_order0(state, None, 0.880, "max")


def assert_share_of_order0(state: Any, keep: float | None, most: float, preset: str) -> None:
    target = io.BytesIO()
    report = pemncodec.encode(state, target, keep=keep, manifest=False, preset=preset)
    assert report.info.mask_bytes <= most * report.info.order0_bytes
    fast = pemncodec.encode(state, io.BytesIO(), keep=keep, manifest=False, preset="fast")
    assert report.info.file_bytes < fast.info.file_bytes
    with pemncodec.open(target) as file:
        file.verify()


def test_unknown_preset() -> None:
    with pytest.raises(pemncodec.EncodeArgumentError, match="preset"):
        pemncodec.encode({}, io.BytesIO(), manifest=False, preset="best")
