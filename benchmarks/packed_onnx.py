"""Packed ONNX files in onnxruntime against dense ones: results/packed_onnx.csv.

    python benchmarks/packed_onnx.py [--rounds 7] [--official FOLDER] [NAME…]
    python benchmarks/packed_onnx.py --print     # the table of README, from the CSV

Sessions are made in fresh processes, after one of a small network; dense and packed take turns. The
table has medians of CPU seconds on one thread, which other programs on the machine hardly change,
and by how much the process grew at most beyond what it was before. Runs are timed in processes that
have both sessions, in turn. *same* says whether all outputs are equal, bit for bit. The official
checkpoint is one of the PEMN authors' code, where its folder is there.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import torch
from models import LARGE_IMAGE_SIZE, build_large
from provenance import ROOT, provenance, read_table, write_table
from torch import nn

import pemncodec
from pemncodec.checkpoints.files import load_checkpoint
from pemncodec.export import NotPacked, to_onnx
from pemncodec.masking import Independent, MaxLayerPadding, RandomPadding, Strategy, mask_model

sys.path.insert(0, str(ROOT / "examples"))
from convmixer import convmixer

RESULTS: Final = ROOT / "benchmarks" / "results" / "packed_onnx.csv"
COLUMNS: Final = (
    "network",
    "form",
    "bytes",
    "session s",
    "session ratio",
    "peak MB",
    "peak ratio",
    "run ms",
    "run ratio",
    "same",
)
_PACKAGES: Final = ["torch", "onnx", "onnxscript", "onnxruntime"]

_COMMON: Final = r"""
import json, re, sys, time
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3

def session(path):
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
"""
_SESSION: Final = r"""
def memory(entry):
    with open("/proc/self/status") as stream:
        return int(re.search(entry + r":\s*(\d+) kB", stream.read())[1]) * 1024

small, path = sys.argv[1:]
session(small)
before = memory("VmRSS")
with open("/proc/self/clear_refs", "w") as stream:
    stream.write("5")  # the peak starts anew
start = time.process_time()
session(path)
seconds = time.process_time() - start
grown = max(memory("VmHWM") - before, 1 << 12)  # a page at least, to divide by
print(json.dumps([seconds, grown / 1e6]))
"""
_RUN: Final = r"""
sessions = [session(path) for path in sys.argv[2:]]
(given,) = sessions[0].get_inputs()
values = np.random.default_rng(0).standard_normal(given.shape, np.float32)
outputs, times = [], [[], []]
for _ in range(int(sys.argv[1])):
    outputs = []
    for own, one in zip(times, sessions):
        start = time.process_time()
        outputs.append(one.run(None, {given.name: values})[0])
        own.append(time.process_time() - start)
same = outputs[0].tobytes() == outputs[1].tobytes()
print(json.dumps([*(float(np.median(own[1:])) for own in times), same]))
"""


def example(path: Path, strategy: Strategy | None = None) -> None:
    """The checkpoint of the examples, or the same network with other values, 8-bit tensors."""
    model: Any = convmixer(dim=128, depth=4, patch_size=4, n_classes=10)
    images = torch.rand(2, 3, 32, 32)
    options = {"example_inputs": images, "fold_bn": True, "dense": "q8"}
    if strategy is None:
        checkpoint = load_checkpoint(ROOT / "examples" / "convmixer-rp1e-3-k50.pt")
        pemncodec.encode(checkpoint, path, architecture=model, **options)
    else:
        pemncodec.encode(randomized(model, strategy), path, **options)


def large(name: str, strategy: Strategy) -> Callable[[Path], None]:
    """A network of ImageNet's sizes, lossless, batch norms folded."""

    def encode(path: Path) -> None:
        model = randomized(build_large(name), strategy)
        images = torch.rand(2, 3, LARGE_IMAGE_SIZE, LARGE_IMAGE_SIZE)
        pemncodec.encode(
            model, path, example_inputs=images, fold_bn=name.startswith("ResNet"), preset="fast"
        )

    return encode


def of_torch_seed(model: nn.Module, path: Path, size: int, *, shared: bool) -> None:
    """A network whose values `torch.manual_seed` determines: of all layers, or of each its own."""
    weights = {name: own for name, own in model.named_parameters() if own.dim() > 1}
    vector = torch.randn(max(own.numel() for own in weights.values()))
    with torch.no_grad():
        for own in weights.values():
            values = vector[: own.numel()] if shared else torch.randn(own.numel())
            own.copy_(0.05 * values.reshape(own.shape))
    masks = {name: torch.rand(own.shape) < 0.2 for name, own in weights.items()}
    images = torch.rand(2, 3, size, size)
    pemncodec.encode(
        model.eval(), path, masks=masks, example_inputs=images, fold_bn=True, preset="fast"
    )


def official(checkpoint: Path, path: Path) -> None:
    """One prototype for each shape of a convolution, of one seed."""
    model: Any = convmixer(dim=128, depth=4, patch_size=4, n_classes=10)
    options = {"keep": 0.2, "example_inputs": torch.rand(2, 3, 32, 32), "fold_bn": True}
    pemncodec.encode(load_checkpoint(checkpoint), path, architecture=model, dense="q8", **options)


def example_of_torch_seed(path: Path) -> None:
    model: Any = convmixer(dim=128, depth=4, patch_size=4, n_classes=10)
    of_torch_seed(model, path, 32, shared=False)


def large_of_torch_seed(path: Path) -> None:
    of_torch_seed(build_large("ResNet-50"), path, LARGE_IMAGE_SIZE, shared=True)


def randomized(model: nn.Module, strategy: Strategy) -> nn.Module:
    """Masked, random values in all that would be trained."""
    model = mask_model(model, strategy, keep=0.2, seed=0)
    with torch.no_grad():
        for tensor in model.state_dict(keep_vars=True).values():
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model.eval()


NETWORKS: Final[dict[str, Callable[[Path], None]]] = {
    "the example, q8": example,
    "the example with independent values, q8": lambda path: example(path, Independent()),
    "the example with independent values, torch's seed": example_of_torch_seed,
    "ResNet-50, rp 0.001": large("ResNet-50", RandomPadding(ratio=1e-3)),
    "ResNet-50, max-layer padding": large("ResNet-50", MaxLayerPadding()),
    "ResNet-50, max-layer padding, torch's seed": large_of_torch_seed,
    "ViT-Ti/16, rp 0.001": large("ViT-Ti/16", RandomPadding(ratio=1e-3)),
    "ViT-B/16, rp 0.001": large("ViT-B/16", RandomPadding(ratio=1e-3)),
}


def measure(
    name: str, encode: Callable[[Path], None], folder: Path, rounds: int
) -> list[dict[str, Any]]:
    """Two rows of the table."""
    torch.manual_seed(0)
    encode(folder / "net.pemn")
    paths = {form: folder / f"{form}.onnx" for form in ("dense", "packed")}
    for form, path in paths.items():
        kept = to_onnx(folder / "net.pemn", path, batch=1, packed=form == "packed")
        assert kept == NotPacked(), kept
    made: dict[str, list[list[float]]] = {form: [] for form in paths}
    runs = []
    for turn in range(rounds):
        for form, path in paths.items():
            made[form].append(_script(_SESSION, folder.parent / "small.onnx", path))
        if turn % 2 == 0:
            runs.append(_script(_RUN, 20, *paths.values()))
    ratios = [packed / dense for dense, packed, _ in runs]
    rows = []
    for index, (form, path) in enumerate(paths.items()):
        seconds, peak = (statistics.median(column) for column in zip(*made[form], strict=True))
        before = rows[0] if rows else {"session s": seconds, "peak MB": peak}
        rows.append(
            {
                "network": name,
                "form": form,
                "bytes": path.stat().st_size,
                "session s": seconds,
                "session ratio": seconds / before["session s"],
                "peak MB": peak,
                "peak ratio": peak / before["peak MB"],
                "run ms": 1e3 * statistics.median(run[index] for run in runs),
                "run ratio": statistics.median(ratios) if index else 1.0,
                "same": all(run[2] for run in runs),
            }
        )
    return [{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def _script(script: str, *arguments: object) -> list[Any]:
    command = [sys.executable, "-c", _COMMON + script, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    result: list[Any] = json.loads(run.stdout)
    return result


def print_table() -> None:
    """The table of README."""
    heads = ("network", "dense", "**packed**", "session, ms", "its memory, MB", "a run")
    print(f"| {' | '.join(heads)} |\n|---|{'---:|' * (len(heads) - 1)}")
    _, rows = read_table(RESULTS)
    for pair in zip(rows[::2], rows[1::2], strict=True):
        cells = [pair[1]["network"], *(f"{int(row['bytes']):,}" for row in pair)]
        for column, factor in (("session s", 1000), ("peak MB", 1)):
            numbers = [factor * float(row[column]) for row in pair]
            cells.append(" → ".join(f"{n:,.0f}" if n >= 1000 else f"{n:.3g}" for n in numbers))
        cells.append(f"{float(pair[1]['run ratio']):.2f} ×")
        print(f"| {' | '.join(cells)} |")


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(NETWORKS)))
@click.option("--rounds", default=7, show_default=True)
@click.option("--print", "printed", is_flag=True, help="Only the table, from the CSV.")
@click.option("--official", "folder_of_official", type=Path, help="Folder of the checkpoint.")
def main(
    names: tuple[str, ...], rounds: int, printed: bool, folder_of_official: Path | None
) -> None:
    """Measure and write the table."""
    if printed:
        print_table()
        return
    source, rows = provenance(_PACKAGES), []
    networks = {name: NETWORKS[name] for name in names or NETWORKS}
    if folder_of_official is not None:
        checkpoint = folder_of_official / "official-convmixer-onelayer-k20.pt"
        networks["the official one-layer checkpoint, q8"] = partial(official, checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        example(Path(folder) / "small.pemn")
        to_onnx(Path(folder) / "small.pemn", Path(folder) / "small.onnx", batch=1)
        for number, (name, encode) in enumerate(networks.items()):
            own = Path(folder) / str(number)
            own.mkdir()
            rows += measure(name, encode, own, rounds)
            for row in rows[-2:]:
                click.echo(" | ".join(map(str, row.values())))
    if not names:
        write_table(RESULTS, source, rows, COLUMNS)


if __name__ == "__main__":
    main()
