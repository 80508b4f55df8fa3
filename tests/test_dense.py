"""Trained tensors of every dtype, lossless; groups; hostile sections."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pemncodec
from pemncodec.coders.dense import (
    LOSSLESS_CODERS,
    decode_dense,
    dense_coder,
    encode_dense,
    group_tensors,
)
from pemncodec.coders.palette import decode_palette, encode_palette
from pemncodec.coders.zstd import decode_zstd
from pemncodec.coders.zstd_bits import encode_two_values
from pemncodec.contents import CARRIERS, Array, DenseTensor
from pemncodec.errors import CorruptError, DecodeError, TruncatedError
from pemncodec.tensors import tensor_to_array

DTYPES = sorted(name for name in CARRIERS if hasattr(torch, name))
MASKED = {"m": torch.ones(3)}
MASKS = {"m": torch.tensor([True, False, True])}


def through_a_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    stream = io.BytesIO()
    pemncodec.encode({**MASKED, **state}, stream, masks=MASKS, manifest=False)
    decoded = pemncodec.load_state_dict(stream)
    del decoded["m"]
    return decoded


def bits(tensor: Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def random_tensor(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Any bits, so NaNs with payloads too."""
    itemsize = CARRIERS[dtype].itemsize
    count = int(np.prod(shape, dtype=np.int64)) * itemsize
    high = 2 if dtype == "bool" else 256
    raw = np.random.default_rng(seed).integers(0, high, count, dtype=np.uint8)
    if not count:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.from_numpy(raw).view(getattr(torch, dtype)).reshape(shape)


def test_the_carriers_cover_every_dtype_of_torch() -> None:
    """But for quantized ones and those that PyTorch itself cannot compute with yet."""
    known = {
        str(dtype).removeprefix("torch.")
        for dtype in vars(torch).values()
        if isinstance(dtype, torch.dtype)
    }
    partial = ("qint", "quint", "bits")
    of_bits = {f"{sign}int{size}" for sign in ("", "u") for size in range(1, 8)}
    assert {name for name in known - of_bits if not name.startswith(partial)} == set(DTYPES)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_lossless(dtype: str) -> None:
    state = {
        "vector": random_tensor(dtype, (257,)),
        "matrix": random_tensor(dtype, (3, 5, 7), 1),
        "scalar": random_tensor(dtype, (), 2),
        "one": random_tensor(dtype, (1, 1), 3),
        "empty": random_tensor(dtype, (0,)),
        "empty.rows": random_tensor(dtype, (4, 0, 2)),
        "constant": random_tensor(dtype, (1,), 4)
        .view(torch.uint8)
        .repeat(50)
        .view(getattr(torch, dtype)),
        "zeros": torch.zeros(40, dtype=torch.uint8).view(getattr(torch, dtype))
        if CARRIERS[dtype].itemsize <= 8
        else torch.zeros(5, dtype=getattr(torch, dtype)),
    }
    decoded = through_a_file(state)
    assert list(decoded) == list(state)
    for name, tensor in state.items():
        assert decoded[name].dtype == tensor.dtype, name
        assert decoded[name].shape == tensor.shape, name
        assert bits(decoded[name]) == bits(tensor), name


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64"])
def test_special_values_keep_their_bits(dtype: str) -> None:
    special = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 1.0, -1.0]
    tensor = torch.tensor(special * 3, dtype=getattr(torch, dtype))
    state = {"s": tensor, "minus": torch.full((9,), -0.0, dtype=getattr(torch, dtype))}
    for name, decoded in through_a_file(state).items():
        assert bits(decoded) == bits(state[name])
    for index in range(len(special)):
        scalar = tensor[index].clone()
        assert bits(through_a_file({"x": scalar})["x"]) == bits(scalar)


def test_views_are_stored_as_they_look() -> None:
    base = torch.randn(6, 8)
    grown = base.to(torch.complex64) * (1 + 2j)
    state = {
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "flipped": base.flip(0),
        "expanded": base[:1].expand(5, 8),
        "conjugated": grown.conj(),
        "negated": grown.conj().imag,
        "learned": torch.nn.Parameter(base * 2),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    for name, decoded in through_a_file(state).items():
        assert torch.equal(decoded, state[name]), name
        assert decoded.is_contiguous()
        assert not decoded.requires_grad
        assert not decoded.is_conj()


def test_decoded_tensors_are_the_callers_own() -> None:
    """Writable, and none shares memory with another."""
    state = {f"{i}.bias": torch.randn(5) for i in range(3)}
    decoded = through_a_file(state | {"c": torch.ones(4)})
    for tensor in decoded.values():
        tensor.add_(1)
    for name, tensor in state.items():
        assert torch.equal(decoded[name], tensor + 1)


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(CARRIERS)),
    st.lists(st.integers(0, 300), min_size=1, max_size=4),
    st.integers(1, 300),
    st.integers(0, 2**32 - 1),
)
def test_sections_round_trip(dtype: str, sizes: list[int], distinct: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = section_arrays(rng, dtype, sizes, distinct)
    section = encode_dense(arrays, dtype)
    whole = np.concatenate(arrays)
    decoded = decode_dense(section, [(whole.size,)], dtype)
    assert decoded.dtype == CARRIERS[dtype]
    assert decoded.tobytes() == whole.tobytes()
    assert len(section) <= 1 + whole.nbytes


def section_arrays(
    rng: np.random.Generator, dtype: str, sizes: list[int], distinct: int
) -> list[Array]:
    """Arrays of few or many distinct values."""
    width = CARRIERS[dtype].itemsize
    high = 2 if dtype == "bool" else 256
    pool = rng.integers(0, high, (distinct, width), dtype=np.uint8)
    return [
        pool[rng.integers(0, distinct, size)].reshape(-1).view(CARRIERS[dtype]) for size in sizes
    ]


def test_what_compresses_is_compressed() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(20_000).astype("<f4") * np.float32(0.02)
    assert len(encode_dense([weights], "float32")) < 0.9 * weights.nbytes
    steps = np.arange(20_000, dtype="<i8")
    assert len(encode_dense([steps], "int64")) < 0.2 * steps.nbytes
    few = rng.choice(weights[:16], 20_000)
    assert len(encode_dense([few], "float32")) < few.nbytes / 7
    flags = np.zeros(20_000, np.uint8)
    flags[5] = 1
    assert len(encode_dense([flags], "bool")) < 100


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
def test_floats_of_both_signs_are_rotated(dtype: str) -> None:
    """So that the sign leaves the byte of the exponent, of which there are few."""
    torch.manual_seed(0)
    values = torch.randn(20_000, dtype=torch.float64) * 2.0 ** torch.randint(0, 9, (20_000,))
    array = tensor_to_array(values.to(getattr(torch, dtype)), "w")
    section = encode_dense([array], dtype)
    assert dense_coder(section) == "rotated planes"
    assert decode_dense(section, [array.shape], dtype).tobytes() == array.tobytes()


def test_integers_are_never_rotated() -> None:
    torch.manual_seed(0)
    values = torch.randn(20_000) * 2.0 ** torch.randint(0, 9, (20_000,))
    section = encode_dense([values.numpy().view(np.int32)], "int32")
    assert dense_coder(section) == "planes"


def test_small_tensors_of_a_kind_share_a_section() -> None:
    torch.manual_seed(0)
    state = {}
    for index in range(30):
        state[f"{index}.running_mean"] = torch.randn(8)
        state[f"{index}.running_var"] = torch.rand(8)
        state[f"{index}.num_batches_tracked"] = torch.tensor(100)
    stream = io.BytesIO()
    pemncodec.encode(MASKED | state, stream, masks=MASKS, manifest=False)
    with pemncodec.open(stream) as file:
        info = file.info()
        assert file.header.sections.count("dense") == 2
        kinds = {t.name.rpartition(".")[2]: t.kind for t in info.tensors}
        assert kinds["num_batches_tracked"] == "constant"
        assert sum(t.bytes for t in info.tensors if t.kind == "dense") == info.dense_bytes
        for name, tensor in state.items():
            assert file.tensor(name).tobytes() == bits(tensor)


def test_groups_keep_order_and_bounds() -> None:
    def tensor(name: str, dtype: str, count: int) -> DenseTensor:
        return DenseTensor(name, dtype, (count,), np.zeros(count, CARRIERS[dtype]))

    many = [tensor(f"{i}.bias", "float32", 10_000) for i in range(100)]
    large = tensor("large.bias", "float32", 1_000_000)
    half = tensor("half.bias", "float16", 10)
    groups = group_tensors([*many[:50], large, half, *many[50:]])
    assert sorted(t.name for group in groups for t in group) == sorted(
        t.name for t in [*many, large, half]
    )
    for group in groups:
        assert len({(t.dtype, t.name.rpartition(".")[2]) for t in group}) == 1
        assert len(group) == 1 or sum(t.data.nbytes for t in group) <= 1 << 20
        names = [t.name for t in group]
        assert names == [t.name for t in [*many, large, half] if t.name in names]
    assert [large] in groups
    assert len(groups) == 2 + 4


def test_the_largest_tensor_of_a_group_and_the_largest_group() -> None:
    def tensors(*sizes: int) -> list[DenseTensor]:
        return [
            DenseTensor(f"{i}.bias", "uint8", (size,), np.zeros(size, np.uint8))
            for i, size in enumerate(sizes)
        ]

    def sizes(*given: int) -> list[list[int]]:
        return [[t.data.nbytes for t in group] for group in group_tensors(tensors(*given))]

    limit = 1 << 16
    assert sizes(1, limit, 1, limit + 1, 1) == [[1, limit, 1, 1], [limit + 1]]
    assert sizes(*[limit] * 16, 1, 2) == [[limit] * 16, [1, 2]]
    assert sizes(*[limit] * 15, limit - 1, 1, 2) == [[limit] * 15 + [limit - 1, 1], [2]]


# ------------------------------------------------------------------------- hostile sections


def attempt(section: bytes, count: int, dtype: str) -> None:
    """Either items or one of two errors."""
    with contextlib.suppress(CorruptError, TruncatedError):
        items = decode_dense(section, [(count,)], dtype)
        assert items.shape == (count,)
        assert items.dtype == CARRIERS[dtype]
        if dtype == "bool":
            assert not (items > 1).any()


COUNTS = st.integers(0, 30) | st.integers(0, 2000)


@settings(max_examples=300)
@given(st.binary(max_size=100), COUNTS, st.sampled_from(sorted(CARRIERS)))
def test_random_sections(section: bytes, count: int, dtype: str) -> None:
    attempt(section, count, dtype)
    for coder in range(4):
        attempt(bytes([coder]) + section, count, dtype)


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(CARRIERS)),
    st.integers(0, 200),
    st.sampled_from([1, 2, 5, 300]),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_damaged_sections(
    dtype: str, size: int, distinct: int, seed: int, data: st.DataObject
) -> None:
    arrays = section_arrays(np.random.default_rng(seed), dtype, [size], distinct)
    section = bytearray(encode_dense(arrays, dtype))
    for _ in range(data.draw(st.integers(0, 3))):
        section[data.draw(st.integers(0, len(section) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(section)) | st.just(len(section)))
    attempt(bytes(section[:cut]) + data.draw(st.binary(max_size=4)), size, dtype)
    attempt(bytes(section), max(0, size + data.draw(st.integers(-3, 3))), dtype)


@pytest.mark.parametrize("distinct", [3, 5000])
@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8", "complex128"])
def test_every_cut_and_every_addition_is_refused(dtype: str, distinct: int) -> None:
    (array,) = section_arrays(np.random.default_rng(0), dtype, [300], distinct)
    section = encode_dense([array], dtype)
    for length in range(len(section)):
        with pytest.raises(DecodeError):
            decode_dense(section[:length], [(array.size,)], dtype)
    for more in (b"\0", b"\1\0", section):
        with pytest.raises(DecodeError):
            decode_dense(section + more, [(array.size,)], dtype)


def frame(content: bytes) -> bytes:
    from pemncodec.coders.zstd import encode_zstd

    data = encode_zstd(content)
    assert len(data) < 128
    return bytes([len(data)]) + data


@pytest.mark.parametrize(
    ("section", "count", "dtype", "code"),
    [
        (b"", 1, "uint8", "truncated"),
        (b"\7\0", 1, "uint8", "unknown-field"),
        (b"\4\0\0", 1, "uint8", "section"),
        (b"\0", 1, "uint8", "section"),
        (b"\0\1\2", 1, "uint8", "section"),
        (b"\0\2", 1, "bool", "section"),
        (b"\1", 1, "uint8", "truncated"),
        (b"\1\0", 1, "uint8", "truncated"),
        (b"\1\3\0", 1, "uint8", "unknown-field"),
        (b"\1\1\0", 1, "uint16", "truncated"),
        (b"\1\1", 1, "uint8", "truncated"),
        (b"\1\1\0\0", 1, "uint8", "trailing"),
        (b"\1\1\2", 1, "bool", "section"),
        (b"\1\2", 9, "uint8", "truncated"),
        (b"\1\2\x80", 9, "uint8", "truncated"),
        (b"\1\2\x80\0", 9, "uint8", "section"),
        (b"\1\2\5abc", 9, "uint8", "truncated"),
        (b"\1\2\5abcde", 9, "uint8", "zstd"),
        (b"\1\2" + frame(bytes(9)), 8, "uint8", "zstd"),
        (b"\1\2" + frame(bytes(9)), 10, "uint8", "zstd"),
        (b"\1\2" + frame(bytes(1 << 20)), 10, "uint8", "zstd"),
        (b"\1\2\0", 0, "uint8", "zstd"),
        (b"\1\2" + bytes([len(frame(b""))]) + frame(b"")[1:] + b"x", 0, "uint8", "zstd"),
        (b"\1\2" + bytes([frame(b"")[0] - 1]) + frame(b"")[1:-1], 0, "uint8", "zstd"),
        (b"\3", 1, "uint8", "truncated"),
        (b"\3\1\0", 1, "uint8", "truncated"),
        (b"\3\1\2\1\0\0", 1, "uint8", "section"),
        (b"\3\1\1\1\0\0", 1, "uint8", "section"),
        (b"\3\0\1\0\1", 1, "uint8", "section"),
        (b"\3\0\1", 1, "uint8", "truncated"),
        (b"\3\0\1\0\0\0", 1, "uint8", "trailing"),
        (b"\3\0\2\0\0", 1, "bool", "section"),
    ],
)
def test_why_a_section_is_refused(section: bytes, count: int, dtype: str, code: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_dense(section, [(count,)], dtype)
    assert caught.value.code == code


def test_the_coder_is_named() -> None:
    spec = (Path(__file__).parent.parent / "spec" / "pemn.md").read_text(encoding="utf-8")
    (row,) = (line for line in spec.splitlines() if "0 = raw" in line)
    named = {int(number): name for number, name in re.findall(r"(\d) = ([\w ]+)", row)}
    named |= {4: "fp16", 5: "bf16", 6: "q8"}  # as callers ask for them
    assert {number: dense_coder(bytes([number]) + b"anything") for number in named} == named
    for section in (b"", b"\x80"):
        with pytest.raises(DecodeError):
            dense_coder(section)


_DRAWN = np.random.default_rng(0)
_LARGE = {
    "normal": _DRAWN.standard_normal(100_000).astype(np.float32),
    "uniform": _DRAWN.uniform(-0.1, 0.1, 100_000).astype(np.float32),
    "few values": _DRAWN.integers(-100, 100, 100_000).astype(np.float32),
    "half": _DRAWN.standard_normal(100_000).astype(np.float16).astype(np.float32),
}


@pytest.mark.parametrize("values", _LARGE.values(), ids=_LARGE)
def test_a_sample_finds_the_best_coder_of_many_items(values: np.ndarray) -> None:
    bodies = {
        c.id: c.encode(values.view(np.uint32), "float32", "usual", None) for c in LOSSLESS_CODERS
    }
    best = min(len(body) for body in bodies.values() if body is not None)
    section = encode_dense([values], "float32")
    assert len(section) == 1 + best
    assert decode_dense(section, [values.shape], "float32").tobytes() == values.tobytes()


def test_noise_that_repeats_far_apart_is_compressed() -> None:
    noise = _DRAWN.integers(0, 256, 1 << 21, dtype=np.uint8)
    twice = np.concatenate([noise, noise])
    section = encode_dense([twice], "uint8")
    assert len(section) < 0.51 * twice.size
    assert len(encode_dense([noise], "uint8")) <= noise.size + 2


@pytest.mark.parametrize("kind", ["normal", "uniform", "three", "few", "runs"])
def test_large_planes_are_nearly_as_small_as_with_most_effort(kind: str) -> None:
    rng = np.random.default_rng(1)
    values = {
        "normal": rng.standard_normal(150_000).astype(np.float32),
        "uniform": rng.uniform(-0.1, 0.1, 150_000).astype(np.float32),
        "three": rng.choice(np.array([-1, 0, 1], np.float32), 150_000),
        "few": rng.choice(np.float32([-1, 1]), 150_000, p=[0.02, 0.98]),
        "runs": np.repeat(rng.standard_normal(500).astype(np.float32), 300),
    }[kind]
    usual = encode_dense([values], "float32")
    most = encode_dense([values], "float32", effort="most")
    assert len(most) <= len(usual) <= 1.005 * len(most) + 32
    for section in (usual, most):
        assert decode_dense(section, [values.shape], "float32").tobytes() == values.tobytes()


@pytest.mark.parametrize("count", [5_000, 70_000, 300_000])
def test_values_of_two_kinds_take_a_bit_each(count: int) -> None:
    signs = np.random.default_rng(count).choice(np.float32([-0.03, 0.03]), count)
    section = encode_dense([signs], "float32")
    assert len(section) < count / 8 * 1.003 + 64
    assert decode_dense(section, [signs.shape], "float32").tobytes() == signs.tobytes()


def test_a_value_that_comes_late_is_in_the_palette() -> None:
    items = np.full(100_000, 7, np.uint32)
    items[40_000], items[70_000:70_300] = 9, 3
    body = encode_palette(items)
    assert body is not None
    assert body[:13] == bytes([2, 3, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0])
    assert np.array_equal(decode_palette(body, items.size, 4), items)
    items[60_000:60_300] = np.arange(300)
    assert encode_palette(items) is None
    assert encode_palette(items[:0]) is None


@settings(max_examples=60)
@given(
    st.integers(1000, 1100) | st.integers(1 << 17, (1 << 17) + 9) | st.integers(300_000, 300_009),
    st.integers(0, 127),
    st.integers(1, 128),
    st.sampled_from([0.001, 0.5, 0.9]),
)
def test_frames_of_two_values(count: int, low: int, high: int, share: float) -> None:
    """Zstandard reads what is written here by hand, and readers that know the size beforehand."""
    low, high = sorted((low, high)) if low != high else (low, low + 1)
    upper = np.random.default_rng(count).random(count) < share
    data = np.where(upper, high, low).astype(np.uint8)
    data[:2] = low, high
    frame = encode_two_values(data)
    if count < 1024:
        assert frame is None
        return
    assert frame is not None
    assert decode_zstd(frame, size=count, limit=count) == data.tobytes()
    assert len(frame) <= count / 8 + (21 + high // 2) * -(-count // (1 << 17)) + 16


def test_frames_of_two_values_alone() -> None:
    two = np.resize(np.uint8([3, 5]), 2000)
    assert encode_two_values(two) is not None
    for value in (0, 4, 6, 255):
        three = two.copy()
        three[999] = value
        assert encode_two_values(three) is None
    assert encode_two_values(np.full(2000, 3, np.uint8)) is None
    assert encode_two_values(np.resize(np.uint8([3, 129]), 2000)) is None
