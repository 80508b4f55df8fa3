"""Triton's kernels, run by its interpreter on the CPU, against PyTorch's operators."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from test_packed_layers import KINDS, weights

from pemncodec.contents import SeededPrototype
from pemncodec.packed import devices

pytest.importorskip("triton", reason="Triton is not installed")
if torch.cuda.is_available():
    pytest.skip("Triton is compiled where there is a device", allow_module_level=True)

KINDS = {
    **KINDS,
    "other streams": SeededPrototype("normal", 2**64 - 1, 1 << 20, 2**63 + 5),
    "uniform": SeededPrototype("uniform", 2**63 + 1, 99_999, 2**32),
    "far constant": SeededPrototype("signed-constant", 3, 1 << 24),
}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    # Read when the kernels are first imported; they use no functions that were imported before.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(devices, "uses_triton", lambda _: True)
    from pemncodec.packed import triton_kernels

    called: list[str] = []
    for name in ("expand_bits", "expand_seeded", "multiply_bits"):
        function = getattr(triton_kernels, name)

        def record(*arguments: Any, name: str = name, of: Any = function) -> Any:
            called.append(name)
            return of(*arguments)

        monkeypatch.setattr(triton_kernels, name, record)
    return called


@pytest.mark.parametrize("which", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_have_the_bits_of_dense_ones(
    which: str, dtype: str, interpreted: list[str]
) -> None:
    packed, dense = weights(KINDS[which], (17, 90), offset=50, dtype=dtype)
    made = devices.expand_on_device(packed.recipe, packed.bits, packed.prototype, packed.dtype)
    assert torch.equal(made.view(dense.shape), dense)
    seeded = packed.recipe.seeded
    if seeded is None:
        assert interpreted == ["expand_bits"]
    else:
        assert interpreted == ["expand_seeded"] * isinstance(seeded, SeededPrototype)


@pytest.mark.parametrize("which", ["stored", "long stored half", "constant"])
@pytest.mark.parametrize("shape", [(20, 111), (3, 700)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_products(which: str, shape: tuple[int, int], dtype: str) -> None:
    packed, dense = weights(KINDS[which], shape, dtype=dtype)
    inputs = torch.randn(2, shape[1]).to(dense.dtype)
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
    made = devices.expand_on_device(packed.recipe, packed.bits, packed.prototype, packed.dtype)
    assert torch.equal(made.view(dense.shape), dense)
    inputs = torch.randn(1, 64)
    for other in (inputs.double(), inputs.half(), torch.randn(9, 64)):
        assert not devices.multiplies_on_device(packed.recipe, packed.prototype, other)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from pemncodec.packed import triton_kernels as kernels

def compiled(kernel, constants, **types):
    names = [name for name in types if name not in constants]
    signature = {name: types[name] for name in names} | dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]

number, packed, real = "i32", "*u8", "fp32"
for kind in ("*fp32", "*bf16"):
    for signed in (False, True):
        values = packed if signed else kind
        both = dict(bits=packed, prototype=values, out=kind, scale=real)
        both |= dict(offset=number, length=number)
        compiled(kernels._expand, dict(signed=signed, size=1024, wide=signed), count=number, **both)
        compiled(
            kernels._multiply,
            dict(signed=signed, row_block=16, column_block=128, wide=not signed),
            inputs=kind, rows=number, columns=number, **both,
        )
for kind, constants in ((0, {}), (1, {"seed_low": 1, "stream_high": 1}), (2, {"stream_low": 1})):
    compiled(
        kernels._expand_seeded, dict(kind=kind, size=1024, **constants), bits=packed,
        table="*fp32", out="*fp32", count=number, offset=number, length="i64", seed_low="i64",
        seed_high=number, stream_low=number, stream_high="i64", scale=real,
    )
print("compiled")
"""


def test_kernels_are_compiled_for_a_device_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False
    )
    assert done.stdout == "compiled\n", done.stderr[-2000:]
