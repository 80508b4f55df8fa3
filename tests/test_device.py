"""Weights made on a device: only seeds and packed bits travel, and the bits are the same."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

import pemncodec
from pemncodec.contents import Contents, Fill, MaskedTensor, SeededPrototype
from pemncodec.decoding import masked_on_device
from pemncodec.format.header import MaskedRow
from pemncodec.format.writer import encode_contents
from pemncodec.tensors import same_bits

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture
def stream() -> io.BytesIO:
    """Layers of every kind of fill: head, middle, wrapping, tiled, empty; in every dtype."""
    prototypes = tuple(
        SeededPrototype(distribution, seed=2**63 + 5, length=1001, stream=7, period=period)
        for period in (0, 17)
        for distribution in ("normal", "uniform", "signed-constant")
    )
    generator = np.random.default_rng(0)
    tensors = []
    for index, dtype in enumerate(("float32", "bfloat16", "float16", "float64")):
        for offset, shape in (
            (0, (30, 30)),
            (500, (400,)),
            (900, (300,)),
            (3, (50, 60)),
            (0, (0,)),
        ):
            for number in (index % 3, index % 3 + 3):
                name = f"{dtype}.{offset}.{shape[0]}.{number}"
                fill = Fill(number, offset, float(np.float32(0.1 * (index + 1))))
                mask = generator.random(shape) < 0.5
                tensors.append(MaskedTensor(name, dtype, shape, fill, mask))
    return io.BytesIO(b"".join(encode_contents(Contents(prototypes, tuple(tensors)))))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("default_dtype", [torch.float32, torch.bfloat16])
def test_same_bits_as_made_in_numpy(
    stream: io.BytesIO, device: str, default_dtype: torch.dtype
) -> None:
    expected = pemncodec.load_state_dict(stream)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default_dtype)
    try:
        with pemncodec.open(stream) as file:
            for row in file.header.tensors:
                assert isinstance(row, MaskedRow)
                made = masked_on_device(file.masked_values(row.name), torch.device(device))
                assert made.device.type == device
                assert same_bits(made.cpu(), expected[row.name]), row.name
    finally:
        torch.set_default_dtype(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_load_state_dict_on_cuda(stream: io.BytesIO) -> None:
    expected = pemncodec.load_state_dict(stream)
    for name, tensor in pemncodec.load_state_dict(stream, device="cuda").items():
        assert tensor.is_cuda
        assert same_bits(tensor.cpu(), expected[name])
