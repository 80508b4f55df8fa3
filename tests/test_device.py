"""Weights made on a device: seeds, stored values and packed bits travel; the bits are the same."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pemncodec
from pemncodec.contents import (
    CARRIERS,
    Contents,
    Fill,
    MaskedTensor,
    SeededPrototype,
    StoredPrototype,
    TorchPrototype,
    bits_of,
)
from pemncodec.decoding import dense_on_device, load_tensors
from pemncodec.format.header import MaskedRow
from pemncodec.format.writer import encode_contents
from pemncodec.tensors import same_bits
from pemncodec.values import fill as fill_module
from pemncodec.values import on_device
from pemncodec.values.on_device import fill_masked_on

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = ("float32", "bfloat16", "float16", "float64")


@pytest.fixture
def stream() -> io.BytesIO:
    """Layers of every kind of fill: head, middle, wrapping, tiled, empty; in every dtype."""
    generator = np.random.default_rng(0)
    seeded = tuple(
        SeededPrototype(distribution, seed=2**63 + 5, length=1001, stream=7, period=period)
        for period in (0, 17)
        for distribution in ("normal", "uniform", "signed-constant")
    )
    drawn = tuple(
        TorchPrototype(distribution, seed=2**32 - 1, length=1001, skip=100_000)
        for distribution in (
            *("normal", "uniform", "normal-signs", "uniform-signs"),
            *("numpy-uniform", "numpy-signs"),
        )
    )
    stored = []
    for dtype in DTYPES:
        carrier = CARRIERS[dtype]
        words = generator.integers(0, 256, 1001 * carrier.itemsize, dtype=np.uint8).view(carrier)
        stored.append(StoredPrototype(words, dtype))  # with infinities and NaNs
    tensors = []
    for index, dtype in enumerate(DTYPES):
        for offset, shape in (
            (0, (30, 30)),
            (500, (400,)),
            (900, (300,)),
            (3, (50, 60)),
            (0, (0,)),
        ):
            for number in (index % 3, index % 3 + 3, 6 + index, 10 + index):
                for scale in (1.0, float(np.float32(0.1 * (index + 1)))):
                    name = f"{dtype}.{offset}.{shape[0]}.{number}.{scale}"
                    mask = generator.random(shape) < 0.5
                    fill = Fill(number, offset, scale)
                    tensors.append(MaskedTensor(name, dtype, shape, fill, mask))
    prototypes = (*seeded, *stored, *drawn)
    return io.BytesIO(b"".join(encode_contents(Contents(prototypes, tuple(tensors)))))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("default_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1 << 20, 1 << 20), (64, 100)], ids=["one chunk", "chunks"])
def test_same_bits_as_made_in_numpy(
    stream: io.BytesIO,
    device: str,
    default_dtype: torch.dtype,
    sizes: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = pemncodec.load_state_dict(stream)
    chunk, held = sizes
    monkeypatch.setattr(on_device, "_CHUNK", chunk)
    monkeypatch.setattr(fill_module, "HELD_VALUES", held)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default_dtype)
    try:
        with pemncodec.open(stream) as file:
            for row in file.header.tensors:
                assert isinstance(row, MaskedRow)
                values = file.masked_values(row.name)
                bits = torch.tensor(values.packed_mask(), device=device)
                made = fill_masked_on(values.prototype(), row.fill, row.dtype, row.shape, bits)
                assert made.device.type == device
                assert same_bits(made.cpu(), expected[row.name]), row.name
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("device", DEVICES)
def test_a_state_dict_filled_on_a_device(stream: io.BytesIO, device: str) -> None:
    expected = pemncodec.load_state_dict(stream)
    with pemncodec.open(stream) as file:
        dense = partial(dense_on_device, torch.device(device))
        made = load_tensors(file, device, dense=dense)
    assert list(made) == list(expected)
    for name, tensor in made.items():
        assert tensor.device.type == device
        assert same_bits(tensor.cpu(), expected[name])


def test_a_kind_that_a_device_cannot_make_is_made_on_the_host(
    stream: io.BytesIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_device, "SEEDED_ON", {})
    test_a_state_dict_filled_on_a_device(stream, "cpu")


class _Largest(TorchDispatchMode):
    """Records how many bytes the largest tensor has that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        return result


@pytest.mark.parametrize("length", [3000, 100_000])
@pytest.mark.parametrize("stored", [False, True])
def test_memory_is_bounded_by_the_weights(
    length: int, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is made on the way is larger than the weights: int64 would be four times so."""
    monkeypatch.setattr(on_device, "_CHUNK", 1 << 12)
    monkeypatch.setattr(fill_module, "HELD_VALUES", 1 << 12)
    count = 100_000
    prototype: Any = SeededPrototype("normal", 1, length)
    if stored:
        values = np.random.default_rng(0).standard_normal(length).astype("<f2")
        prototype = StoredPrototype(values, "float16")
    packed = np.packbits(np.random.default_rng(0).random(count) < 0.5, bitorder="little")
    bits = torch.from_numpy(packed)
    with _Largest() as largest:
        made = fill_masked_on(prototype, Fill(0), "float16", (count,), bits)
    assert largest.bytes == count * 2
    expected = np.empty(count, "<f2")
    source = fill_module.tensor_values(fill_module.held(prototype), Fill(0), "float16", count)
    source.fill_masked(0, packed, expected)
    assert np.array_equal(bits_of(made.numpy()), bits_of(expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_load_state_dict_on_cuda(stream: io.BytesIO) -> None:
    expected = pemncodec.load_state_dict(stream)
    for name, tensor in pemncodec.load_state_dict(stream, device="cuda").items():
        assert tensor.is_cuda
        assert same_bits(tensor.cpu(), expected[name])
