"""Whatever has a path of its own on a device: weights, masks, packed networks, training.

This file and test_triton.py are what to run on a GPU (`make gpu`); on a CPU most tests ask the same
of PyTorch's operators there.
"""

from __future__ import annotations

import copy
import io
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generator import NAMES, STARTS, U64
from test_masking import (
    by_stable_sort,
    each_selection,
    each_strategy,
    images,
    network,
    train,
)
from test_packed import PROTOTYPES, TOKENS, file_of, manifest_of_everything
from test_packed_layers import installed, weights
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pemncodec
from pemncodec.contents import (
    CARRIERS,
    Contents,
    Distribution,
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
from pemncodec.masking import Strategy, mask_model, masked_state
from pemncodec.masking.selection import Selection
from pemncodec.masking.top_k import top_k_mask
from pemncodec.packed import devices, masks_on_device, product
from pemncodec.tensors import same_bits
from pemncodec.values import fill as fill_module
from pemncodec.values import on_device
from pemncodec.values.on_device import fill_masked_on, generate_on
from pemncodec.values.philox import DISTRIBUTIONS, generate

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = ("float32", "bfloat16", "float16", "float64")


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return manifest_of_everything()


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


# --------------------------------------------------------------------------- masks and networks

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two devices")


@needs_cuda
def test_load_state_dict_on_cuda(stream: io.BytesIO) -> None:
    expected = pemncodec.load_state_dict(stream)
    for name, tensor in pemncodec.load_state_dict(stream, device="cuda").items():
        assert tensor.is_cuda
        assert same_bits(tensor.cpu(), expected[name])


@needs_cuda
def test_large_masks_are_decoded_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks of the size that files have; small ones are in test_triton.py."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(masks_on_device, "_LEAST_WEIGHTS", 0)
    monkeypatch.setattr(masks_on_device, "_LEAST_WITH_IMPORT", 0)
    generator = np.random.default_rng(0)
    tensors = [
        MaskedTensor(f"w{index}", "float32", (count,), Fill(0), generator.random(count) < density)
        for index, (count, density) in enumerate(
            [(3 << 20, 0.3), ((1 << 20) + 3, 0.07), (5_000_001, 0.9), (1 << 20, 0.5), (1000, 0.1)]
        )
    ]
    prototypes = (SeededPrototype("normal", 1, 1000),)
    written = b"".join(encode_contents(Contents(prototypes, tuple(tensors)), preset="fast"))
    with pemncodec.open(io.BytesIO(written)) as file:
        masked = [file.masked_values(tensor.name) for tensor in tensors]
        made = list(masks_on_device.masks_on_device(torch.device("cuda"), masked))
        assert sum(bool(masks_on_device._read(values).blocks) for values in masked) == 3
        for values, bits in zip(masked, made, strict=True):
            assert np.array_equal(bits.cpu().numpy(), values.packed_mask())


def outputs(module: Any, device: str) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return module(TOKENS.to(device))


@pytest.mark.filterwarnings("ignore:RNN module weights:UserWarning")  # of cuDNN
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("triton", [True, False])
def test_packed_networks(
    manifest: dict[str, Any],
    device: str,
    dtype: str,
    triton: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layers that are expanded have the bits of dense ones, by Triton's kernels and without."""
    monkeypatch.setattr(product, "most_inputs", lambda: 0)
    for most in ("_MOST_INPUTS", "_MOST_INPUTS_OF_SIGNS"):
        monkeypatch.setattr(devices, most, 0)
    if not triton:
        monkeypatch.setattr(devices, "uses_triton", lambda _: False)
    kinds = ("short seed", "long torch", "long seed", "constant", "stored")
    stream = file_of(manifest, tuple(PROTOTYPES[kind] for kind in kinds), dtype)
    packed = pemncodec.decode(stream, packed=True, device=device)
    dense = pemncodec.decode(stream, device=device)
    for made, expected in zip(outputs(packed, device), outputs(dense, device), strict=True):
        assert made.device.type == device
        assert torch.equal(made, expected)
    on_cpu = {name: value.cpu() for name, value in packed.state_dict().items()}
    for name, value in pemncodec.decode(stream, packed=True).state_dict().items():
        assert same_bits(on_cpu[name], value)
    moved = pemncodec.decode(stream, packed=True).to(device)
    for made, expected in zip(outputs(moved, device), outputs(dense, device), strict=True):
        assert torch.equal(made, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["short seed", "constant", "stored"])
def test_products_of_packed_layers(device: str, dtype: str, kind: str) -> None:
    packed, dense = weights(PROTOTYPES[kind], (300, 500), dtype=dtype)
    layer = installed(nn.Linear(500, 300), packed).to(device, getattr(torch, dtype))
    inputs = torch.randn(3, 500, dtype=layer.bias.dtype, device=device)
    with torch.no_grad():
        made = layer(inputs).double()
        exact = nn.functional.linear(
            inputs.double(), dense.to(device).double(), layer.bias.double()
        )
    unit = 2.0**-6 if dtype == "bfloat16" else 2.0**-9 if dtype == "float16" else 2.0**-16
    assert ((made - exact).abs() <= unit * exact.abs().max()).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["short seed", "long seed", "constant"])
def test_compiled_packed_layers(device: str, kind: str) -> None:
    torch.compiler.reset()  # each kind is a compilation of its own
    packed, _ = weights(PROTOTYPES[kind], (400, 300))
    layer = installed(nn.Linear(300, 400), packed).to(device)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for batch in (1, 300):
        inputs = torch.randn(batch, 300, device=device)
        with torch.no_grad():
            assert torch.allclose(compiled(inputs), layer(inputs), atol=1e-4)


@needs_cuda
@pytest.mark.parametrize("kind", ["short seed", "long seed", "constant", "stored half"])
@pytest.mark.parametrize("batch", [1, 64])
def test_packed_layers_in_a_cuda_graph(kind: str, batch: int) -> None:
    """Nothing waits for the host, and other streams than the first are used."""
    pytest.importorskip("triton", reason="Triton is not installed")
    packed, _ = weights(PROTOTYPES[kind], (400, 300))
    layer = installed(nn.Linear(300, 400), packed).to("cuda")
    inputs = torch.randn(batch, 300, device="cuda")
    with torch.no_grad():
        expected = layer(inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = layer(inputs)
        made.zero_()
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(made, expected)


@pytest.mark.filterwarnings("ignore:RNN module weights:UserWarning")
@needs_two
def test_the_second_device(manifest: dict[str, Any]) -> None:
    stream = file_of(manifest, (PROTOTYPES["short seed"], PROTOTYPES["long seed"]))
    packed = pemncodec.decode(stream, packed=True, device="cuda:1")
    dense = pemncodec.decode(stream, device="cuda:1")
    for made, expected in zip(outputs(packed, "cuda:1"), outputs(dense, "cuda:1"), strict=True):
        assert made.device == torch.device("cuda:1")
        assert torch.allclose(made, expected, atol=1e-5)


@needs_cuda
def test_more_weights_than_32_bits_count() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from pemncodec.packed.triton_kernels import expand_bits, multiply_bits

    rows, columns, length = 70_000, 32_768, 1_000_003
    if torch.cuda.mem_get_info()[0] < 10 << 30:
        pytest.skip("the device has less than 10 GiB free")
    bits = torch.randint(256, (rows * columns // 8,), dtype=torch.uint8, device="cuda")
    prototype = torch.randn(length, device="cuda").half()
    out = torch.empty(rows * columns, dtype=torch.float16, device="cuda")
    expand_bits(bits, prototype, 0, 1.0, 17, out)
    last = torch.arange(rows * columns - (1 << 20), rows * columns, device="cuda")
    used = devices.bits_at(bits, last)
    expected = torch.where(used, prototype[(last + 17) % length], 0)
    assert torch.equal(out[-1 << 20 :], expected)
    inputs = torch.randn(1, columns, device="cuda").half()
    made = multiply_bits(bits, prototype, 0, 1.0, 17, inputs, rows)[0, -32:].double()
    exact = out[-(1 << 20) :].view(32, columns).double() @ inputs[0].double()
    assert torch.allclose(made, exact, rtol=2e-3, atol=0.1)


# ------------------------------------------------------------------------- values and training


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60)
@given(NAMES, U64, U64, STARTS, st.integers(0, 300))
def test_devices_make_the_same_bits(
    device: str, distribution: Distribution, seed: int, stream: int, start: int, size: int
) -> None:
    ours = generate(distribution, seed, start, start + size, stream=stream)
    theirs = generate_on(device, distribution, seed, start, start + size, stream=stream)
    assert theirs.dtype == torch.float32
    assert theirs.device.type == device
    assert theirs.cpu().numpy().tobytes() == ours.tobytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_devices_make_the_same_many(device: str, distribution: Distribution) -> None:
    ours = generate(distribution, 3, 5, 100_005)
    theirs = generate_on(device, distribution, 3, 5, 100_005)
    assert theirs.cpu().numpy().tobytes() == ours.tobytes()


@needs_cuda
@each_strategy
@each_selection
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_training_on_cuda(
    strategy: Strategy, selection: Selection, order: torch.memory_format
) -> None:
    model = mask_model(network(), strategy, selection=selection).to("cuda", memory_format=order)
    with torch.autocast("cuda", torch.bfloat16):
        train(model, x=images().cuda())
    masks = masked_state(model).masks
    on_cpu = masked_state(copy.deepcopy(model).cpu()).masks
    assert all(np.array_equal(masks[name], on_cpu[name]) for name in masks)
    model.eval()
    with torch.no_grad():
        model(images().cuda())  # which ranks all layers together, where the selection does
    weights = {name: model.get_submodule(name.rpartition(".")[0]).weight for name in masks}
    for name, mask in masks.items():
        assert np.array_equal((weights[name] != 0).cpu().numpy(), mask)


@needs_cuda
def test_ties_on_cuda_go_by_position() -> None:
    ranked = torch.randint(0, 3, (400,)).float()
    for kept in (0, 1, 100, 399, 400):
        mask = top_k_mask(ranked.cuda(), torch.tensor(kept, device="cuda"))
        assert torch.equal(mask.cpu(), by_stable_sort(ranked, kept))
