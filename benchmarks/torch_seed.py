"""What a network costs whose weights torch's CPU generator made: bytes, and time to load.

    python benchmarks/torch_seed.py [--rounds 7] [-o FILE.csv]

The network has the convolutions and the classifier of a ResNet-50: 25 million weights, each drawn
by its layer's default and again by `kaiming_normal_`, all from one seed. Half of the weights are
masked out at random. Its file is given as prototypes the seed and the words before each layer;
beside it are the same masks on weights of pemncodec's portable generator, and the dense file.
Warm loads are timed as in load_time.py. Processor time, of all threads, is that of a process that
loads all files in turn, each twice, the second time: it says less about a machine that is idle, and
more about one that is not.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import click
import safetensors.torch
import torch
from load_time import BASELINE, ROOT, measure, run, show
from provenance import provenance, write_table
from torch import Tensor, nn

import pemncodec
from pemncodec import SeededPrototype, TorchPrototype
from pemncodec.contents import Seeded
from pemncodec.generator import generate

LOOP = r"""
def seconds(kind, path):
    start = time.process_time()
    touch(loaders[kind](path))
    return time.process_time() - start

rounds, files = json.loads(sys.argv[1])
times = []
for _ in range(rounds):
    for kind, path in files:
        seconds(kind, path)
        times.append(seconds(kind, path))
print(json.dumps(times))
"""

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # width and number of bottlenecks
TORCH, PORTABLE = ".pemn, torch's seed", ".pemn, portable seed"


def layers(divisor: int) -> list[nn.Conv2d | nn.Linear]:
    """Convolutions of a ResNet-50 and its classifier, with widths that are divided by a number."""

    def conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, kernel, bias=False)

    inputs = 64 // divisor
    made: list[nn.Conv2d | nn.Linear] = [conv(3, inputs, 7)]
    for full, bottlenecks in STAGES:
        width = full // divisor
        for index in range(bottlenecks):
            made += [conv(inputs, width, 1), conv(width, width, 3), conv(width, 4 * width, 1)]
            if index == 0:
                made.append(conv(inputs, 4 * width, 1))
            inputs = 4 * width
    return [*made, nn.Linear(inputs, 1000, bias=False)]


def drawn_by_torch(divisor: int) -> tuple[dict[str, Tensor], list[Seeded]]:
    """Weights by name, and the prototypes behind them."""
    torch.manual_seed(0)
    state = {f"{i}.weight": layer.weight.detach() for i, layer in enumerate(layers(divisor))}
    prototypes: list[Seeded] = []
    words = sum(weight.numel() for weight in state.values())
    for weight in state.values():
        nn.init.kaiming_normal_(weight)
        prototypes.append(TorchPrototype("normal", 0, weight.numel(), words))
        words += weight.numel() + (16 if weight.numel() % 16 else 0)
    return state, prototypes


def drawn_by_us(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Seeded]]:
    """Weights of the same shapes from the portable generator."""
    made: dict[str, Tensor] = {}
    prototypes: list[Seeded] = []
    for stream, (name, weight) in enumerate(state.items()):
        scale = math.sqrt(2 / weight[0].numel())
        values = generate("normal", 0, 0, weight.numel(), stream=stream, scale=scale)
        made[name] = torch.from_numpy(values).reshape(weight.shape)
        prototypes.append(SeededPrototype("normal", 0, weight.numel(), stream))
    return made, prototypes


def write_files(folder: Path, divisor: int) -> tuple[dict[str, tuple[str, Path]], dict[str, float]]:
    """Files of a network: name of the form → kind of load, file; and seconds to encode."""
    state, prototypes = drawn_by_torch(divisor)
    generator = torch.Generator().manual_seed(1)
    masks = {name: torch.rand(w.shape, generator=generator) < 0.5 for name, w in state.items()}
    forms: dict[str, tuple[str, Path]] = {}
    seconds: dict[str, float] = {}
    for form, (weights, seeds) in (
        (TORCH, (state, prototypes)),
        (PORTABLE, drawn_by_us(state)),
    ):
        path = folder / f"{form.split()[1][:5]}-{divisor}.pemn"
        start = perf_counter()
        pemncodec.encode(
            weights, path, masks=masks, prototypes=seeds, manifest=False, preset="fast"
        )
        seconds[form] = perf_counter() - start
        forms[form] = ("state dict", path)
    dense = folder / f"{divisor}.safetensors"
    safetensors.torch.save_file(pemncodec.load_state_dict(forms[TORCH][1]), dense)
    return {BASELINE: (BASELINE, dense)} | forms, seconds


def processor_seconds(forms: dict[str, tuple[str, Path]], rounds: int) -> dict[str, float]:
    """Medians of the processor time of a load."""
    files = [(kind, str(path)) for kind, path in forms.values()]
    times = run(LOOP, json.dumps([1 + rounds, files]))[len(files) :]
    return {form: statistics.median(times[index :: len(files)]) for index, form in enumerate(forms)}


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option(
    "-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "torch_seed.csv"
)
def main(rounds: int, output: Path) -> None:
    """Measure, print and write the table."""
    measured_on = provenance(("torch", "safetensors"))  # before the output changes what git sees
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        small, _ = write_files(Path(name), 16)
        forms, seconds = write_files(Path(name), 1)
        warm: dict[str, list[float]] = {form: [] for form in forms}
        for _ in range(rounds):
            for form, (kind, path) in forms.items():
                warm[form].append(measure(kind, small[form][1], path, cold=False)["seconds"])
        processor = processor_seconds(forms, rounds)
        for form, (kind, path) in forms.items():
            row: dict[str, object] = {"form": form, "bytes": path.stat().st_size}
            if kind == "state dict":
                with pemncodec.open(path) as file:
                    info = file.info()
                row |= {"header": info.header_bytes, "prototypes": info.prototype_bytes}
            else:
                row |= {"header": "", "prototypes": ""}
            row["encode s"] = round(seconds[form], 1) if form in seconds else ""
            fresh, base = statistics.median(warm[form]), statistics.median(warm[BASELINE])
            row |= {"warm ms": round(1e3 * fresh, 1), "warm ×": round(fresh / base, 2)}
            own, base = processor[form], processor[BASELINE]
            row |= {"CPU ms": round(1e3 * own, 1), "CPU ×": round(own / base, 2)}
            rows.append(row)
    show(rows, measured_on)
    write_table(output, measured_on, rows, rows[0])


if __name__ == "__main__":
    main()
