"""Products from mask bits: every version, against exact arithmetic and each other."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_builds import ARITHMETIC, KERNELS
from numpy.typing import NDArray
from torch.nn.functional import linear

from pemncodec.kernels import twins

CONSTANT = np.float32(0.37)
NAMES = ["packed_product", "column_product", "signed_product"]
# Rows that begin within a byte, that end within what a kernel does at once, and that are long.
SHAPES = [
    (1, 1, 1), (3, 5, 2), (17, 33, 1), (5, 63, 3), (16, 64, 1), (21, 1000, 5), (40, 512, 16),
    (9, 1056, 17), (33, 2049, 1), (4, 4111, 7), (1200, 70, 5),
]  # fmt: skip
PERIODS = [1, 7, 64, 1009, 30_000, 400_000]

SOURCES_OF_PRODUCTS = [
    *(
        "product",
        "column_product",
        "signed_product",
        "parallel",
        "expand",
        "generator",
        "mersenne",
        "pages",
        "writing",
    ),
    "torch_values",
]

Case = dict[str, Any]


def case(rows: int, columns: int, batch: int, period: int, offset: int, seed: int = 0) -> Case:
    """Arguments that both kernels are made of."""
    rng = np.random.default_rng(seed)
    positive = rng.random(period) < 0.5
    return {
        "mask": rng.random(rows * columns) < 0.5,
        "values": rng.standard_normal(period, np.float32),
        "positive": positive,
        "offset": offset,
        "inputs": rng.standard_normal((batch, columns), np.float32),
        "rows": rows,
    }


def arguments_of(name: str, case: Case) -> Case:
    batch, columns = case["inputs"].shape
    arguments = {key: case[key] for key in ("offset", "inputs")} | {
        "bits": np.packbits(case["mask"], bitorder="little"),
        "columns": columns,
        "out": np.full((batch, case["rows"]), 7, np.float32),
        "threads": 1,
    }
    if name == "packed_product":
        return arguments | {"values": case["values"]}
    if name == "column_product":
        return arguments | {"values": case["values"], "rows": arguments.pop("columns")}
    signs = np.packbits(case["positive"], bitorder="little")
    constant = CONSTANT.reshape(1)
    return arguments | {"signs": signs, "period": case["positive"].size, "constant": constant}


def product(kernel: ModuleType, name: str, case: Case, threads: int = 1) -> NDArray[np.float32]:
    arguments = arguments_of(name, case) | {"threads": threads}
    getattr(kernel, name)(**arguments)
    out: NDArray[np.float32] = arguments["out"]
    return out


def weights_of(name: str, case: Case) -> NDArray[np.float32]:
    """The matrix that a dense layer would have."""
    values = case["values"]
    if name == "signed_product":
        values = np.where(case["positive"], CONSTANT, -CONSTANT)
    repeated = values[(case["offset"] + np.arange(case["mask"].size)) % values.size]
    weights = np.where(case["mask"], repeated, np.float32(0))
    if name == "column_product":
        return weights.reshape(case["inputs"].shape[1], case["rows"]).T
    return weights.reshape(case["rows"], case["inputs"].shape[1])


def is_a_sum_of_products(
    out: NDArray[np.float32], inputs: NDArray[np.float32], weights: NDArray[np.float32]
) -> bool:
    """Whether a result is as near to the exact one as every order of summation is."""
    error = inputs.shape[1] * 2.0**-24
    exact = inputs.astype(np.float64) @ weights.astype(np.float64).T
    sizes = np.abs(inputs.astype(np.float64)) @ np.abs(weights.astype(np.float64)).T
    return bool((np.abs(out - exact) <= error / (1 - error) * sizes).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("period", PERIODS)
def test_products_of_many_shapes(
    kernel: ModuleType, name: str, shape: tuple[int, int, int], period: int
) -> None:
    given = case(*shape, period, offset=period * 2 // 3)
    out = product(kernel, name, given)
    assert is_a_sum_of_products(out, given["inputs"], weights_of(name, given))
    assert out.tobytes() == product(twins, name, given).tobytes()


@settings(max_examples=40)
@given(
    st.sampled_from(NAMES),
    st.tuples(st.integers(0, 40), st.integers(1, 200), st.integers(1, 20)),
    st.integers(1, 9000),
    st.data(),
)
def test_products_at_random(
    kernel: ModuleType, name: str, shape: tuple[int, int, int], period: int, data: st.DataObject
) -> None:
    offset = data.draw(st.integers(0, period - 1))
    given = case(*shape, period, offset, seed=data.draw(st.integers(0, 2**32 - 1)))
    out = product(kernel, name, given)
    assert is_a_sum_of_products(out, given["inputs"], weights_of(name, given))
    assert out.tobytes() == product(twins, name, given).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_a_dense_layer(kernel: ModuleType, name: str) -> None:
    """Two sums within the bound are at most twice as far from each other."""
    given = case(64, 512, 4, 513, offset=0)
    weights = weights_of(name, given)
    dense = linear(torch.from_numpy(given["inputs"]), torch.from_numpy(weights)).numpy()
    assert is_a_sum_of_products(dense, given["inputs"], weights)
    assert np.abs(product(kernel, name, given) - dense).max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", [2, 3, 1 << 40])
def test_products_are_the_same_for_any_number_of_threads(
    kernel: ModuleType, name: str, threads: int
) -> None:
    given = case(150, 300, 3, 301, offset=5)
    expected = product(kernel, name, given)
    assert product(kernel, name, given, threads).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_products_of_unaligned_memory(kernel: ModuleType, name: str) -> None:
    given = case(20, 100, 2, 333, offset=300)
    expected = product(kernel, name, given)
    for key in ("inputs", "values"):
        memory = np.zeros(given[key].nbytes + 1, np.uint8)
        memory[1:] = given[key].reshape(-1).view(np.uint8)
        given[key] = memory[1:].view(np.float32).reshape(given[key].shape)
    assert product(kernel, name, given).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_products_of_masks_of_one_kind(kernel: ModuleType, name: str, keep: float) -> None:
    given = case(35, 77, 2, 78, offset=77)
    given["mask"][:] = keep
    out = product(kernel, name, given)
    assert is_a_sum_of_products(out, given["inputs"], weights_of(name, given))
    assert np.signbit(out).any() == (keep == 1)  # no zero is negative


def test_bits_behind_the_last_weight_are_ignored(kernel: ModuleType) -> None:
    out = np.empty((1, 3), np.float32)
    ones = np.ones((1, 3), np.float32)
    kernel.packed_product(b"\xff\xff", ones, 0, 3, ones, out, 1)
    assert out.tolist() == [[3, 3, 3]]
    kernel.column_product(b"\xff\xff", ones, 0, 3, ones, out, 1)
    assert out.tolist() == [[3, 3, 3]]
    kernel.signed_product(b"\xff\xff", b"\xff", 3, 1, ones[:, :1], 3, ones, out, 1)
    assert out.tolist() == [[3, 3, 3]]


def test_inputs_that_are_not_finite(kernel: ModuleType) -> None:
    """A masked weight is a zero, whose product with them is NaN; signs only add what is kept."""
    inputs, out = np.array([[np.inf, 1]], np.float32), np.empty((1, 2), np.float32)
    kernel.packed_product(b"\x0e", np.ones(1, np.float32), 0, 2, inputs, out, 1)
    assert np.array_equal(out, [[np.nan, np.inf]], equal_nan=True)
    kernel.column_product(b"\x0e", np.ones(1, np.float32), 0, 2, inputs, out, 1)
    assert np.array_equal(out, [[np.nan, np.inf]], equal_nan=True)
    kernel.signed_product(b"\x0e", b"\0", 1, 0, np.ones(1, np.float32), 2, inputs, out, 1)
    assert out.tolist() == [[-1, -np.inf]]


GOOD = {
    "bits": bytes(2), "values": bytes(20), "signs": bytes(1), "period": 5, "offset": 4,
    "constant": bytes(4), "columns": 3, "inputs": bytes(24), "out": bytearray(32), "threads": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bits": b""}, "bits"),
        ({"bits": bytes(1)}, "bits"),
        ({"bits": bytes(3)}, "bits"),
        ({"values": b""}, "values"),
        ({"values": bytes(19)}, "values"),
        ({"period": 0}, "period"),
        ({"period": 2**64}, "period"),
        ({"signs": b""}, "signs"),
        ({"signs": bytes(2)}, "signs"),
        ({"period": 2**64 - 1}, "signs"),
        ({"offset": 5}, "offset"),
        ({"offset": -1}, "offset"),
        ({"constant": bytes(3)}, "constant"),
        ({"columns": 0}, "columns"),
        ({"columns": 4}, "inputs"),
        ({"columns": 2**62}, "inputs"),
        ({"columns": 2**64 - 1}, "inputs"),
        ({"inputs": b""}, "inputs"),
        ({"inputs": bytes(25)}, "inputs"),
        ({"out": bytearray(28)}, "out"),
        ({"out": bytearray(33)}, "out"),
        ({"out": b""}, "buffer"),
        ({"out": bytearray(0)}, "bits"),
        ({"threads": 0}, "threads"),
    ],
)
def test_products_refuse(kernel: ModuleType, name: str, wrong: Case, message: str) -> None:
    left_out = {"values"} if name == "signed_product" else {"signs", "period", "constant"}
    good = {key: value for key, value in GOOD.items() if key not in left_out}
    if name == "column_product":
        good, wrong = (
            {"rows" if k == "columns" else k: v for k, v in d.items()} for d in (good, wrong)
        )
        message = message.replace("columns", "rows")
    getattr(kernel, name)(**good)
    if left_out & wrong.keys():
        return
    with pytest.raises(ValueError, match=f"^{message}$"):
        getattr(kernel, name)(**good | wrong)


@pytest.mark.parametrize("machine", ["aarch64"])
def test_products_of_an_emulated_processor(machine: str, tmp_path: Path) -> None:
    compiler, emulator = f"{machine}-linux-gnu-gcc", f"qemu-{machine}"
    if shutil.which(compiler) is None or shutil.which(emulator) is None:
        pytest.skip(f"there is no {compiler}, or no {emulator}")
    driver = Path(__file__).with_name("product_driver.c")
    sources = [KERNELS / f"{name}.c" for name in SOURCES_OF_PRODUCTS]
    command = [compiler, "-static", "-O2", *ARITHMETIC, f"-I{KERNELS}", driver, *sources]
    subprocess.run([*command, "-o", tmp_path / "driver"], check=True)
    calls, expected = b"", b""
    for name in NAMES:
        for shape in SHAPES:
            given = case(*shape, 1009, offset=700)
            arguments = arguments_of(name, given)
            values = arguments.get("values", arguments.get("signs"))
            constant = arguments.get("constant", b"")
            parts = [arguments["bits"], values, constant, arguments["inputs"]]
            sizes = [memoryview(part).nbytes for part in [*parts, arguments["out"]]]
            size = arguments["rows" if name == "column_product" else "columns"]
            numbers = [NAMES.index(name), 1009, 700, size, *sizes]
            calls += np.array(numbers, np.uint64).tobytes() + b"".join(map(bytes, parts))
            expected += product(twins, name, given).tobytes()
    result = subprocess.run(
        [emulator, tmp_path / "driver"], input=calls, capture_output=True, check=True
    )
    assert result.stdout == expected
