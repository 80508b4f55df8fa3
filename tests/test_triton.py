"""Triton's kernels against PyTorch's operators and the CPU's coders: on a CUDA device, or run by
Triton's interpreter where there is none."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_packed_layers import KINDS, weights
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import pemncodec
from pemncodec import kernels
from pemncodec.coders import rans
from pemncodec.coders.masks import decode_mask
from pemncodec.coders.rans import RANS, CodedBlock, encode_rans
from pemncodec.coders.varint import encode_varint
from pemncodec.contents import (
    Contents,
    Distribution,
    Fill,
    MaskedTensor,
    PackedMask,
    SeededPrototype,
    StoredPrototype,
)
from pemncodec.decoding import dense_on_device, load_tensors
from pemncodec.errors import CorruptError, DecodeError
from pemncodec.format.sections import Place, in_section
from pemncodec.format.writer import encode_contents
from pemncodec.packed import devices, masks_on_device, packing
from pemncodec.packed.packing import pack_weights
from pemncodec.packed.weight import PackedWeight
from pemncodec.tensors import same_bits

pytest.importorskip("triton", reason="Triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KINDS = {
    **KINDS,
    "other streams": SeededPrototype("normal", 2**64 - 1, 1 << 20, 2**63 + 5),
    "uniform": SeededPrototype("uniform", 2**63 + 1, 99_999, 2**32),
    "far constant": SeededPrototype("signed-constant", 3, 1 << 24),
}


class Bounded:
    """The interpreter's memory: a kernel reads and writes nothing but its own tensors."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.bounds: list[tuple[int, int]] = []

    def check(self, places: NDArray[np.uint64], mask: NDArray[np.bool_]) -> None:
        chosen = places[mask].astype(np.int64)
        inside = [(start <= chosen) & (chosen < stop) for start, stop in self.bounds]
        assert np.any(inside, axis=0).all(), "outside of all tensors"

    def load(self, places: Any, mask: Any, *rest: Any) -> Any:
        self.check(places, mask)
        return self.memory.load(places, mask, *rest)

    def store(self, places: Any, values: Any, mask: Any) -> None:
        self.check(places, mask)
        self.memory.store(places, values, mask)

    def atomic_rmw(self, which: Any, places: Any, values: Any, mask: Any, *rest: Any) -> Any:
        self.check(places, mask)
        return self.memory.atomic_rmw(which, places, values, mask, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks every access of every kernel."""
    from triton.runtime import interpreter

    memory, run = Bounded(interpreter._interpreter), interpreter.GridExecutor.__call__

    def checked(self: Any, *arguments: Any, **more: Any) -> None:
        tensors = [given for given in arguments if isinstance(given, Tensor)]
        memory.bounds = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors]
        run(self, *arguments, **more)

    monkeypatch.setattr(interpreter, "_interpreter", memory)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", checked)


@pytest.fixture(autouse=True)
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that run, by name."""
    if DEVICE.type == "cpu":
        # Read when the kernels are first imported; they use no functions that were imported before.
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(devices, "uses_triton", lambda _: True)
        monkeypatch.setattr(masks_on_device, "uses_triton", lambda _: True)
    from pemncodec.packed import triton_kernels, triton_rans

    called: list[str] = []
    for module, name in (
        (triton_kernels, "expand_bits"),
        (triton_kernels, "expand_seeded"),
        (triton_kernels, "multiply_bits"),
        (triton_rans, "decode_blocks"),
    ):
        function = getattr(module, name)

        def record(*arguments: Any, name: str = name, of: Any = function) -> Any:
            called.append(name)
            return of(*arguments)

        monkeypatch.setattr(module, name, record)
    return called


@pytest.mark.parametrize("which", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_have_the_bits_of_dense_ones(which: str, dtype: str, called: list[str]) -> None:
    packed, dense = weights(KINDS[which], (17, 90), offset=50, dtype=dtype)
    if dtype == "bfloat16" and DEVICE.type == "cpu" and packed.recipe.seeded is not None:
        pytest.skip("Triton's interpreter truncates to bfloat16, where devices round")
    packed = packed.to(DEVICE)
    made = devices.expand_on_device(packed.recipe, packed.bits, packed.prototype, packed.dtype)
    assert torch.equal(made.view(dense.shape).cpu(), dense)
    seeded = packed.recipe.seeded
    if seeded is None:
        assert called == ["expand_bits"]
    else:
        assert called == ["expand_seeded"] * isinstance(seeded, SeededPrototype)


@pytest.mark.parametrize("length", [1, 2, 1023, 1024, 1025, 1100])
@pytest.mark.parametrize("kind", ["stored", "signs", "seed"])
@pytest.mark.parametrize("narrow", [0, 1 << 31])
def test_weights_of_prototypes_about_as_long_as_what_a_program_makes(
    length: int, kind: str, narrow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pemncodec.packed import triton_kernels

    monkeypatch.setattr(triton_kernels, "_NARROW", narrow)
    seeded = SeededPrototype("signed-constant" if kind == "signs" else "normal", 3, length)
    # Whether values are held, or made from the seed by the kernel.
    monkeypatch.setattr(packing, "_HELD_SHARE", 1 << 20 if kind == "seed" else 0)
    packed, dense = weights(seeded, (3, 1100), offset=length - 1)
    packed = packed.to(DEVICE)
    assert (packed.recipe.seeded is not None, packed.recipe.signs > 0) == (
        kind == "seed",
        kind == "signs" and length > 1,  # one value is no sign
    )
    made = devices.expand_on_device(packed.recipe, packed.bits, packed.prototype, packed.dtype)
    assert torch.equal(made.view(dense.shape).cpu(), dense)


@pytest.mark.parametrize("which", ["stored", "long stored half", "constant"])
@pytest.mark.parametrize("shape", [(20, 111), (3, 700)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_products(which: str, shape: tuple[int, int], dtype: str) -> None:
    check_product(KINDS[which], shape, dtype)


@pytest.mark.parametrize("kind", ["normal", "signed-constant"])
@pytest.mark.parametrize("length", [1, 127, 128, 129])
@pytest.mark.parametrize("narrow", [0, 1 << 31])
def test_products_of_prototypes_about_as_long_as_what_is_multiplied_at_one_time(
    kind: Distribution, length: int, narrow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pemncodec.packed import triton_kernels

    monkeypatch.setattr(triton_kernels, "_NARROW", narrow)
    monkeypatch.setattr(packing, "_HELD_SHARE", 0)
    check_product(SeededPrototype(kind, 3, length), (3, 300), "float32")


def check_product(prototype: Any, shape: tuple[int, int], dtype: str) -> None:
    packed, dense = weights(prototype, shape, dtype=dtype)
    packed, dense = packed.to(DEVICE), dense.to(DEVICE)
    inputs = torch.randn(2, 2 * shape[1], device=DEVICE).to(dense.dtype)[:, : shape[1]]
    assert devices.multiplies_on_device(packed.recipe, packed.prototype, inputs)
    made = devices.multiply_on_device(packed.recipe, packed.bits, packed.prototype, inputs)
    exact = inputs.double() @ dense.double().t()
    unit = (shape[1] + 3) * 2.0**-24
    bound = unit * (inputs.double().abs() @ dense.double().abs().t())
    if dtype == "float16":
        bound = bound + exact.abs() * 2.0**-11 + 2.0**-24  # the result's own rounding
    assert ((made.double() - exact).abs() <= bound).all()


def test_what_no_kernel_takes() -> None:
    packed, dense = weights(KINDS["stored"], (40, 64), dtype="float64")
    packed = packed.to(DEVICE)
    made = devices.expand_on_device(packed.recipe, packed.bits, packed.prototype, packed.dtype)
    assert torch.equal(made.view(dense.shape).cpu(), dense)
    inputs = torch.randn(1, 64, device=DEVICE)
    for other in (inputs.double(), inputs.half(), inputs.repeat(9, 1)):
        assert not devices.multiplies_on_device(packed.recipe, packed.prototype, other)


def test_kernels_are_asked_for_once_whether_they_run(
    monkeypatch: pytest.MonkeyPatch, called: list[str]
) -> None:
    from pemncodec.packed import triton_kernels

    devices._runs_kernels.cache_clear()
    with FakeTensorMode():  # as in torch.compile
        assert devices._runs_kernels(DEVICE)
    assert devices._runs_kernels(DEVICE)
    assert called == ["expand_bits"]

    def without_compiler(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify CC.")

    devices._runs_kernels.cache_clear()
    monkeypatch.setattr(triton_kernels, "expand_bits", without_compiler)
    with pytest.warns(RuntimeWarning, match=r"\(RuntimeError: Failed to find C compiler\.\): Py"):
        assert not devices._runs_kernels(DEVICE)
    assert not devices._runs_kernels(DEVICE)

    devices._runs_kernels.cache_clear()
    monkeypatch.setattr(triton_kernels, "expand_bits", lambda *given: given[-1].fill_(1))
    with pytest.warns(RuntimeWarning, match=r"\(a wrong result\)"):
        assert not devices._runs_kernels(DEVICE)
    devices._runs_kernels.cache_clear()


# ---------------------------------------------------------------------------- rANS blocks

DENSITIES = st.sampled_from([0.01, 0.06, 0.15, 0.16, 0.5, 0.84, 0.86, 0.95, 0.99])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and masks that an interpreter can decode, in place of 2^20 weights and more."""
    monkeypatch.setattr(rans, "BLOCK_BITS", range(8, 14))
    monkeypatch.setattr(rans, "_MANY_LANES_SYMBOLS", 9)
    monkeypatch.setattr(masks_on_device, "_LEAST_WEIGHTS", 0)
    monkeypatch.setattr(masks_on_device, "_LEAST_WITH_IMPORT", 0)


@dataclass
class OneMask:
    """What `masks_on_device` asks of masked values, with bytes of a test."""

    count: int
    body: bytes
    section: int = 3

    @property
    def place(self) -> Place:
        return Place(self.section)

    @property
    def row(self) -> Any:
        return SimpleNamespace(shape=(self.count,))

    def own_section(self) -> tuple[Place, bytes]:
        return self.place, bytes([RANS.id]) + self.body

    def packed_mask(self) -> PackedMask:
        with in_section(self.place):
            return decode_mask(bytes([RANS.id]) + self.body, self.count)


def coded_mask(count: int, density: float, seed: int) -> OneMask:
    packed = np.packbits(np.random.default_rng(seed).random(count) < density, bitorder="little")
    return OneMask(count, encode_rans(packed, count))


def on_device(masks: Sequence[Any]) -> list[NDArray[np.uint8]]:
    return [bits.cpu().numpy() for bits in masks_on_device.masks_on_device(DEVICE, masks)]


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=25)
@given(
    masks=st.lists(
        st.builds(
            coded_mask,
            st.integers(65, 600) | st.sampled_from([255, 256, 257, 511, 512, 513]),
            DENSITIES,
            st.integers(0, 2**32 - 1),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_rans_blocks_have_the_bits_that_the_processor_decodes(masks: list[OneMask]) -> None:
    for mask, bits in zip(masks, on_device(masks), strict=True):
        assert np.array_equal(bits, mask.packed_mask())


def damaged(mask: OneMask, kind: str, place: int, value: int) -> OneMask:
    body = bytearray(mask.body)
    at = place % len(body)
    if kind == "byte":
        body[at] ^= value
    elif kind == "cut":
        del body[at:]
    elif kind == "removed":
        del body[at : at + 2]
    else:
        body[at:at] = bytes([value, value])
    return OneMask(mask.count, bytes(body))


def outcome(decode: Callable[[], NDArray[np.uint8]]) -> object:
    """Bytes, or the error."""
    try:
        return decode().tobytes()
    except DecodeError as error:
        return type(error), error.code, str(error)


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=100)
@given(
    mask=st.builds(coded_mask, st.integers(140, 256), st.floats(0.07, 0.9), st.integers(0, 99)),
    kind=st.sampled_from(["byte", "byte", "cut", "removed", "added"]),
    place=st.integers(0, 40) | st.integers(34, 9999),
    value=st.integers(1, 255),
)
def test_damaged_blocks_are_refused_as_the_processor_does(
    mask: OneMask, kind: str, place: int, value: int
) -> None:
    wrong = damaged(mask, kind, place, value)
    assert outcome(lambda: on_device([wrong])[0]) == outcome(wrong.packed_mask)


def stream_of(symbols: Sequence[int], density: int, count: int) -> OneMask:
    """A block of any symbols, also of those that no mask gives."""
    block = CodedBlock(count, density, len(symbols), memoryview(b""))
    coded = kernels.rans_encode(bytes(symbols), block.frequencies, block.lanes)
    head = struct.pack("<H", density) + (encode_varint(len(symbols)) if block.is_runs else b"")
    return OneMask(count, head + coded)


RARE = 3000
LONGEST = CodedBlock(1, RARE, 1, memoryview(b"")).longest
RUNS = [3] * 20  # 80 weights


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("symbols", "density", "count", "message"),
    [
        (RUNS, RARE, 80, None),
        (RUNS, 65536 - RARE, 80, None),
        ([*RUNS, LONGEST], RARE, 81, None),
        ([*RUNS, LONGEST], RARE, 80 + LONGEST, None),
        ([*RUNS, LONGEST, 0], RARE, 81 + LONGEST, None),
        (RUNS, RARE, 79, "one behind the end"),
        ([*RUNS, 0], RARE, 80, "runs left over"),
        ([*RUNS, LONGEST, LONGEST], RARE, 81, "runs left over"),
        (RUNS, RARE, 81, "runs missing"),
        ([*RUNS, LONGEST], RARE, 81 + LONGEST, "runs missing"),
        ([1] * 9 + [3], 20000, 74, None),
        ([1] * 9 + [7], 20000, 74, "a padding bit of the mask is set"),
        ([1] * 8 + [128, 0], 20000, 73, None),
        ([1] * 9 + [128], 20000, 73, "a padding bit of the mask is set"),
        ([1] * 9 + [128], 20000, 80, None),
    ],
)
def test_symbols_that_do_not_fit_the_mask(
    symbols: list[int], density: int, count: int, message: str | None
) -> None:
    mask = stream_of(symbols, density, count)
    if message is None:
        assert np.array_equal(on_device([mask])[0], mask.packed_mask())
        return
    with pytest.raises(CorruptError, match=f"section 3: .*{message}"):
        mask.packed_mask()
    with pytest.raises(CorruptError, match=f"section 3: .*{message}"):
        on_device([coded_mask(100, 0.3, 0), mask, coded_mask(100, 0.3, 1)])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("later", [b"", bytes(2)])
def test_of_several_damaged_masks_the_first_is_named(later: bytes) -> None:
    wrong = stream_of([*RUNS, 0], RARE, 80)
    with pytest.raises(CorruptError, match="section 3: damaged rANS block: runs left over"):
        on_device([wrong, OneMask(90, later, section=4)])
    # Two blocks, of which the first has a word too many, and the second a density of 0.
    first = coded_mask(152, 0.4, 0).body + bytes(2)
    both = OneMask(300, struct.pack("<B2I", 8, len(first), 2) + first + bytes(2))
    with pytest.raises(CorruptError, match="words left over"):
        on_device([both])


@pytest.fixture
def mixed_file() -> bytes:
    """Masks of every coder, also such that share a section or are needed for a prototype."""
    generator = np.random.default_rng(0)
    shapes = [(2500, 0.1), (700, 0.5), (700, 0.0), (90, 0.95), (20, 0.3), (2500, 0.9), (1500, 0.92)]
    masked = [
        MaskedTensor(
            f"w{index}",
            "float32",
            (count,),
            Fill(int(index == 5), 3, 1.0),
            generator.random(count) < density,
        )
        for index, (count, density) in enumerate(shapes)
    ]
    stored = StoredPrototype(generator.standard_normal(2600).astype("<f4"), "float32")
    contents = Contents((SeededPrototype("normal", 1, 50), stored), tuple(masked))
    return b"".join(encode_contents(contents, preset="fast"))


@pytest.mark.usefixtures("small_blocks")
def test_masks_of_a_file(
    mixed_file: bytes, monkeypatch: pytest.MonkeyPatch, called: list[str]
) -> None:
    with pemncodec.open(io.BytesIO(mixed_file)) as file:
        masked = [file.masked_values(name) for name in file.masked_keys()]
        for batch, calls in ((1 << 30, 1), (4000, 2), (1, 2)):
            monkeypatch.setattr(masks_on_device, "_BATCH_WEIGHTS", batch)
            called.clear()
            for values, bits in zip(masked, on_device(masked), strict=True):
                assert np.array_equal(bits, values.packed_mask()), values.row.name
            assert called == ["decode_blocks"] * calls


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("form", ["dense", "packed"])
def test_weights_of_masks_that_were_decoded_there(
    mixed_file: bytes, form: str, called: list[str]
) -> None:
    with pemncodec.open(io.BytesIO(mixed_file)) as file:
        expected = load_tensors(file, "cpu")
        masked = [file.masked_values(name) for name in file.masked_keys()]
        if form == "dense":
            made = dense_on_device(DEVICE, masked, lambda _: None)
        else:
            made = pack_weights(masked, DEVICE)
            assert list(made) == [f"w{index}" for index in range(7) if index != 5]
        assert called == ["decode_blocks"]
        for name, tensor in made.items():
            assert tensor.device.type == DEVICE.type
            values = tensor.dense() if isinstance(tensor, PackedWeight) else tensor
            assert same_bits(values, expected[name])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("least", "imported", "calls"), [(101, 0, 0), (100, 101, 1)])
def test_few_weights_are_decoded_by_the_processor(
    least: int, imported: int, calls: int, monkeypatch: pytest.MonkeyPatch, called: list[str]
) -> None:
    monkeypatch.setattr(masks_on_device, "_LEAST_WEIGHTS", least)
    monkeypatch.setattr(masks_on_device, "_LEAST_WITH_IMPORT", imported)
    mask = coded_mask(100, 0.3, 0)
    assert np.array_equal(on_device([mask])[0], mask.packed_mask())
    assert called == ["decode_blocks"] * calls


def test_without_triton_the_processor_decodes(
    monkeypatch: pytest.MonkeyPatch, called: list[str]
) -> None:
    monkeypatch.setattr(masks_on_device, "_LEAST_WEIGHTS", 0)
    monkeypatch.setattr(masks_on_device, "uses_triton", lambda _: False)
    mask = coded_mask(600, 0.3, 0)
    assert np.array_equal(on_device([mask])[0], mask.packed_mask())
    assert not called


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from pemncodec.packed import triton_kernels as kernels
from pemncodec.packed import triton_rans

def compiled(kernel, constants, options=None, **types):
    names = [name for name in types if name not in constants]
    signature = {name: types[name] for name in names} | dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = dict(enable_fp_fusion=False) | (options or {})
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ptx"]

number, packed, real = "i32", "*u8", "fp32"
for kind in ("*fp32", "*bf16"):
    for signed in (False, True):
        values = packed if signed else kind
        both = dict(bits=packed, prototype=values, out=kind, scale=real)
        both |= dict(offset=number, length=number)
        flags = dict(signed=signed, short=signed, wide=not signed)
        compiled(kernels._expand, dict(size=1024, **flags), count=number, **both)
        compiled(
            kernels._multiply, dict(row_block=16, column_block=128, **flags),
            inputs=kind, rows=number, columns=number, **both,
        )
for kind in (0, 1, 2):
    compiled(
        kernels._expand_seeded, dict(kind=kind, size=1024, short=kind == 1), bits=packed,
        table="*fp32", out="*fp32", count=number, offset=number, length="i64", seed_low="i64",
        seed_high=number, stream_low=number, stream_high="i64", scale=real,
    )
fields, integers = dict(fields=8), dict(blocks="*i64", bits=packed)
compiled(triton_rans._fill, dict(size=4096, **fields), **integers)
compiled(
    triton_rans._decode, fields, dict(num_warps=1), states="*i32", words="*i16", symbol_of=packed,
    ranges="*i32", bits_by_32="*i32", wrong="*i8", **integers,
)
print("compiled")
"""


def test_kernels_are_compiled_for_a_device_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPILE], capture_output=True, text=True, check=False
    )
    assert done.stdout == "compiled\n", done.stderr[-2000:]
