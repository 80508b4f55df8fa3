"""Single layers from mask bits against dense ones: time and bytes, as results/packed_layers.csv.

    python benchmarks/packed_layers.py [--i2s LIB.so] [--threads N] [--rounds N] [-o FILE.csv]
    python benchmarks/packed_layers.py --print

Linear layers of three sizes, half of their weights masked: RP (values repeat after a thousandth of
the layer), MP (as many values as weights) and signed constants. Each is multiplied by 1, 8 and 64
inputs, by the kernels for processors with AVX-512, with AVX2 and with neither; a build of its own
for each, on this one processor. Against them: torch's linear layer in float32, in bfloat16 and
dynamically quantized to int8, a weight that is expanded before every float32 product, and
bitnet.cpp's I2_S kernel, if --i2s names a library that was built of i2_s.cpp.

Every form takes its turn in each round, so that all see the same machine, and none finds its
weights in the cache that the one before it filled. Times are medians: CPU time of one thread, or
the time that passes of several. `of_dense` is the median over rounds of how often the dense float32
layer's time contains that of the form; `error` is the largest difference from the exact product in
units of the largest result.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from provenance import ROOT, provenance, read_table, write_table
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import linear

from pemncodec import kernels

sys.path.insert(0, str(ROOT / "tests"))
from kernel_builds import build, can_run, load

RESULTS = ROOT / "benchmarks" / "results" / "packed_layers.csv"
SIZES = [(1024, 1024), (4096, 4096), (4096, 11008)]
BATCHES = [1, 8, 64]
CONSTANT = np.float32(0.02)
BUILDS = {"AVX-512": None, "AVX2": "avx2", "neither": "any processor"}
COLUMNS = (
    "rows", "columns", "inputs", "threads", "weights", "form", "ms", "of_dense", "bytes", "error"
)  # fmt: skip
Row = dict[str, Any]
Product = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Form:
    """A way to multiply by a layer.

    Attributes:
        weights: of which kind, or "" where that makes no difference.
        product: writes or returns float32 [inputs, rows].
        bytes: of the weights.
        expected: the exact product, and None where its error is not asked.
    """

    weights: str
    name: str
    product: Product
    bytes: int
    expected: NDArray[np.float64] | None = None


class Layer:
    """Masked weights [rows, columns] of three kinds."""

    def __init__(self, rows: int, columns: int) -> None:
        rng = np.random.default_rng(rows + columns)
        self.rows, self.columns, self.count = rows, columns, rows * columns
        self.bits = rng.integers(0, 256, self.count // 8, np.uint8)
        self.mask = np.unpackbits(self.bits, bitorder="little").reshape(rows, columns)
        self.prototypes = {
            "RP": rng.standard_normal(self.count // 1000 + 1, np.float32),
            "MP": rng.standard_normal(self.count, np.float32),
        }
        self.positive = rng.integers(0, 2, self.count // 1000 + 1, np.uint8)
        self.signs = np.packbits(self.positive, bitorder="little")
        signed = np.where(self.positive, CONSTANT, -CONSTANT)
        self.weights = {
            kind: self.mask * np.resize(values, (rows, columns))
            for kind, values in {**self.prototypes, "signed constant": signed}.items()
        }

    def forms(
        self, inputs: NDArray[np.float32], threads: int, builds: dict[str, ModuleType], i2s: Any
    ) -> list[Form]:
        """Every way to multiply the layer by inputs [n, columns]."""
        x, dense = torch.from_numpy(inputs), torch.from_numpy(self.weights["RP"])
        exact = {
            kind: inputs.astype(np.float64) @ weights.T.astype(np.float64)
            for kind, weights in self.weights.items()
        }
        forms = [
            Form("", "dense float32", partial(linear, x, dense), 4 * self.count, exact["RP"]),
            self._bfloat16(x, dense, exact["RP"]),
            self._int8(x, dense, exact["RP"]),
            self._expanded(x, exact["RP"]),
        ]
        for name, kernel in builds.items():
            if name == "neither" and len(inputs) > 8:
                continue  # which would only take long
            forms += [
                self._packed(kernel, name, kind, inputs, threads, exact[kind]) for kind in exact
            ]
        if i2s is not None and threads == 1:
            forms.append(self._i2s(i2s, inputs, exact["signed constant"]))
        return forms

    def _bfloat16(self, x: Tensor, dense: Tensor, exact: NDArray[np.float64]) -> Form:
        product = partial(linear, x.bfloat16(), dense.bfloat16())
        return Form("", "dense bfloat16", product, 2 * self.count, exact)

    def _int8(self, x: Tensor, dense: Tensor, exact: NDArray[np.float64]) -> Form:
        module = nn.Sequential(nn.Linear(self.columns, self.rows, bias=False))
        module[0].weight = nn.Parameter(dense)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it moves to another package
            quantized = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, torch.qint8)
        return Form("", "dynamic int8", partial(quantized, x), self.count, exact)

    def _expanded(self, x: Tensor, exact: NDArray[np.float64]) -> Form:
        prototype = self.prototypes["RP"]
        buffer = torch.empty(self.rows, self.columns)

        def product() -> Tensor:
            kernels.expand(prototype, 4, 0, self.bits, buffer.numpy(), 0, 1)
            return linear(x, buffer)

        return Form("RP", "expanded, dense float32", product, self._packed_bytes("RP"), exact)

    def _packed_bytes(self, kind: str) -> int:
        shared = self.signs if kind == "signed constant" else self.prototypes[kind]
        return int(self.bits.nbytes + shared.nbytes)

    def _packed(
        self, kernel: ModuleType, build_name: str, kind: str,
        inputs: NDArray[np.float32], threads: int, exact: NDArray[np.float64],
    ) -> Form:  # fmt: skip
        out = np.empty((len(inputs), self.rows), np.float32)
        common = (self.columns, inputs, out, threads)
        if kind == "signed constant":
            constant = CONSTANT.reshape(1)
            call = partial(
                kernel.signed_product, self.bits, self.signs, self.positive.size, 0, constant
            )
        else:
            call = partial(kernel.packed_product, self.bits, self.prototypes[kind], 0)

        def product() -> NDArray[np.float32]:
            call(*common)
            return out

        return Form(kind, f"packed, {build_name}", product, self._packed_bytes(kind), exact)

    def _i2s(self, library: Any, inputs: NDArray[np.float32], exact: NDArray[np.float64]) -> Form:
        packed = np.zeros(self.count // 4 + 64, np.uint8)
        out = np.empty((len(inputs), self.rows), np.float32)
        weights = np.ascontiguousarray(self.weights["signed constant"], np.float32)
        shape = (ctypes.c_int64(self.rows), ctypes.c_int64(self.columns))
        library.i2s_pack(_address(weights), _address(packed), *shape)
        batch = ctypes.c_int64(len(inputs))

        def product() -> NDArray[np.float32]:
            library.i2s_product(_address(packed), *shape, _address(inputs), batch, _address(out))
            return out

        bytes_of_weights = self.count // 4 + 4
        return Form("signed constant", "bitnet.cpp I2_S", product, bytes_of_weights, exact)


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def measure(forms: list[Form], rounds: int, threads: int) -> list[Row]:
    """The rows of all forms, which take turns."""
    clock = time.process_time if threads == 1 else time.perf_counter
    errors = []
    for form in forms:  # which also warms up
        result = np.asarray(torch.as_tensor(form.product()).float())
        errors.append(np.abs(result - form.expected).max() / np.abs(form.expected).max())
    taken: list[list[float]] = [[] for _ in forms]
    for _ in range(rounds):
        for form, seconds in zip(forms, taken, strict=True):
            began = clock()
            form.product()
            seconds.append(clock() - began)
    return [
        {
            "weights": form.weights,
            "form": form.name,
            "ms": f"{1000 * statistics.median(seconds):.3f}",
            "of_dense": f"{statistics.median(map(_ratio, taken[0], seconds)):.2f}",
            "bytes": form.bytes,
            "error": f"{error:.1e}",
        }
        for form, seconds, error in zip(forms, taken, errors, strict=True)
    ]


def _ratio(dense: float, form: float) -> float:
    return dense / form


def builds_of(folder: Path) -> dict[str, ModuleType]:
    """The kernels for each kind of processor that this one can be."""
    modules = {}
    for name, version in BUILDS.items():
        if version is None or can_run(version):
            path = folder / f"{name}.so"
            build(path, ["-O3"], version)
            modules[name] = load(path)
    if not can_run("avx512bw"):
        del modules["AVX-512"]
    return modules


def print_table(path: Path) -> None:
    """README's table, of the layer in the middle, without the values that take as much as it."""
    measured_on, rows = read_table(path)
    size = SIZES[1]
    found = {
        (row["form"], row["weights"], int(row["inputs"])): row
        for row in rows
        if (int(row["rows"]), int(row["columns"])) == size and row["weights"] != "MP"
    }
    print(f"({measured_on})\n")
    print(f"| {size[0]} × {size[1]} | weights | MB | error | 1 input | 8 inputs | 64 inputs |")
    print("|---|---|---|---|---|---|---|")
    for form, weights in dict.fromkeys(key[:2] for key in found):
        cells = [found.get((form, weights, batch)) for batch in BATCHES]
        times = [f"{cell['ms']} ms ({cell['of_dense']} ×)" if cell else "" for cell in cells]
        first = found[form, weights, BATCHES[0]]
        megabytes = f"{int(first['bytes']) / 1e6:.1f}"
        print("| " + " | ".join([form, weights, megabytes, first["error"], *times]) + " |")


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--i2s", type=click.Path(exists=True), help="A library that was built of i2_s.cpp.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True)
@click.option("--print", "printed", is_flag=True, help="The table of the CSV.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS)
def main(i2s: str | None, threads: int, rounds: int, printed: bool, output: Path) -> None:
    if printed:
        print_table(output)
        return
    measured_on = provenance(["torch", "numpy"])
    torch.set_num_threads(threads)
    library = ctypes.CDLL(str(Path(i2s).resolve())) if i2s else None
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        builds = builds_of(Path(folder))
        for size in SIZES:
            layer = Layer(*size)
            for batch in track(BATCHES, f"{size[0]} × {size[1]}"):
                inputs = np.random.default_rng(batch).standard_normal((batch, size[1]), np.float32)
                shape = {"rows": size[0], "columns": size[1], "inputs": batch, "threads": threads}
                forms = layer.forms(inputs, threads, builds, library)
                few = rounds if batch * layer.count < 1 << 29 else max(3, rounds // 3)
                rows += [shape | row for row in measure(forms, few, threads)]
            write_table(output, measured_on, rows, COLUMNS)
    print_table(output)


if __name__ == "__main__":
    main()
