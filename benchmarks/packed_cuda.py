"""Packed weights on a CUDA device against dense ones, as results/packed_cuda.csv.

    python benchmarks/packed_cuda.py [--folder FOLDER] [-o FILE.csv]

*layer*: linear layers of 4096 × 4096, RP 1e-3 and signed constants. *network*: those of packed.py.
Both keep half of their weights. `ms` is the median time of a call from Python, `graph ms` that of a
CUDA graph of it, without Python; `MB` is what the module takes on the device. *masks*: the bits of
one rANS mask, made by the processor and sent to the device, or made there from the coded bytes.
Before anything is timed, results are compared with those of the dense module.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from packed import NETWORKS, network_file
from provenance import ROOT, provenance, write_table
from torch import Tensor, nn

import pemncodec
from pemncodec.masking import RandomPadding, mask_model
from pemncodec.packed import masks_on_device

RESULTS = ROOT / "benchmarks" / "results" / "packed_cuda.csv"
COLUMNS = ("what", "name", "form", "batch", "ms", "graph ms", "MB")
FORMS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"dtype": torch.bfloat16},
    "packed": {"packed": True},
    "packed bf16": {"packed": True, "dtype": torch.bfloat16},
}
SIDE = 4096
LAYER_BATCHES, NETWORK_BATCHES = (1, 2, 4, 8, 16, 64), (1, 8, 64)
MASK_SIDES = (1 << 12, 1 << 13, 1 << 14)
CALLS = 30
Row = dict[str, Any]


def milliseconds(call: Callable[[], object]) -> float:
    """Median time on the device."""
    for _ in range(3):
        call()
    times = []
    for _ in range(CALLS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return round(statistics.median(times), 4)


def graph_milliseconds(call: Callable[[], object]) -> float:
    """The same for a graph of the call."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return milliseconds(graph.replay)


@torch.no_grad()
def measure(
    what: str, name: str, path: Path, inputs: Callable[[int], Tensor], batches: tuple[int, ...]
) -> Iterator[Row]:
    """Rows of the network of a file."""
    modules, sizes = {}, {}
    for form, options in FORMS.items():
        before = torch.cuda.memory_allocated()
        modules[form] = pemncodec.decode(path, device="cuda", **options)
        sizes[form] = round((torch.cuda.memory_allocated() - before) / 1e6, 2)
    for batch in batches:
        dense = inputs(batch).cuda()
        expected = modules["fp32"](dense)
        for form, module in modules.items():
            given = dense.bfloat16() if "bf16" in form and dense.is_floating_point() else dense
            off = (module(given).float() - expected).abs().max() / expected.abs().max()
            if off > (0.1 if "bf16" in form else 1e-2):  # products in TF32 are off by 1e-3
                raise RuntimeError(f"{name}, {form}: results are off by {off:.3g}")
            yield {
                "what": what,
                "name": name,
                "form": form,
                "batch": batch,
                "ms": milliseconds(lambda m=module, x=given: m(x)),
                "graph ms": graph_milliseconds(lambda m=module, x=given: m(x)),
                "MB": sizes[form],
            }


def layer_file(folder: Path, distribution: Any) -> Path:
    """The file of a linear layer."""
    path = folder / f"{distribution}.pemn"
    layer = nn.Sequential(nn.Linear(SIDE, SIDE, bias=False))
    model = mask_model(layer, RandomPadding(ratio=1e-3), keep=0.5, distribution=distribution)
    pemncodec.encode(model, path, example_inputs=torch.zeros(2, SIDE), preset="fast")
    return path


def measure_masks(folder: Path) -> Iterator[Row]:
    """Rows of masks of squares, of which a fifth is kept."""
    for side in MASK_SIDES:
        path = folder / f"mask-{side}.pemn"
        mask = torch.rand(side, side) < 0.2
        weight = torch.full((side, side), 0.5) * mask
        pemncodec.encode({"weight": weight}, path, masks={"weight": mask}, manifest=False)
        made = {}
        for form, least in (("processor", side * side + 1), ("device", 0)):
            masks_on_device._LEAST_WEIGHTS = least
            times = []
            for _ in range(5):
                with pemncodec.open(path) as file:
                    values = [file.masked_values("weight")]
                    begin = time.perf_counter()
                    (made[form],) = masks_on_device.masks_on_device(torch.device("cuda"), values)
                    torch.cuda.synchronize()
                    times.append(1e3 * (time.perf_counter() - begin))
            yield {
                "what": "masks",
                "name": f"{side} × {side}",
                "form": form,
                "ms": round(statistics.median(times[1:]), 3),
            }
        if not torch.equal(made["processor"], made["device"]):
            raise RuntimeError("the device makes other bits")


@click.command()
@click.option("--folder", type=Path, default=None, help="Where files are kept for the next run.")
@click.option("-o", "--output", type=Path, default=RESULTS)
def main(folder: Path | None, output: Path) -> None:
    """Measure and write the table."""
    measured_on = f"{provenance(('torch', 'triton'))}, {torch.cuda.get_device_name()}"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = folder or Path(temporary)

        def measured() -> Iterator[Row]:
            for distribution in ("normal", "signed-constant"):
                path = layer_file(folder, distribution)
                yield from measure(
                    "layer", distribution, path, lambda n: torch.randn(n, SIDE), LAYER_BATCHES
                )
            yield from measure_masks(folder)
            for name, (_, inputs) in NETWORKS.items():
                yield from measure(
                    "network", name, network_file(name, folder), inputs, NETWORK_BATCHES
                )

        for row in measured():
            click.echo(row)
            rows.append(row)
            write_table(output, measured_on, rows, COLUMNS)


if __name__ == "__main__":
    main()
