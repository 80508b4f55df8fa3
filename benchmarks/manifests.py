"""Which networks a file can describe: results/manifests.csv, and the table that README quotes.

Every network is masked at random, encoded, and decoded in this process without its code; then it
is compared with the original at two batch sizes, trained a step, moved, and exported again.

With --wide: networks as timm and transformers make them, results/zoo.csv. Each is encoded as its
users would, with as many threads as torch takes by itself, and what the file gives is compared with
the original on other inputs. The seconds are those of an idle machine.
"""

from __future__ import annotations

import argparse
import copy
import gc
import io
import statistics
import time
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from provenance import provenance, read_table, write_table
from torch import Tensor, nn
from wide_zoo import WIDE_ZOO
from zoo import ZOO, Inputs

import pemncodec
from pemncodec import ExportError, PemnError
from pemncodec.architecture.rebuild import build_module
from pemncodec.export import to_onnx, to_program
from pemncodec.format.reader import open_file

RESULTS: Final = Path(__file__).parent / "results" / "manifests.csv"
COLUMNS: Final = (
    "network",
    "kind",
    "manifest bytes",
    "with train mode",
    "difference at 2",
    "difference at 5",
    "gradients",
    "moves",
    "ONNX",
    "torch.export",
    "rebuild ms",
)
WIDE_RESULTS: Final = RESULTS.with_name("zoo.csv")
WIDE_COLUMNS: Final = (
    "network",
    "parameters",
    "input",
    "kind",
    "manifest bytes",
    "difference",
    "CPU seconds",
    "seconds",
)
_BATCHES: Final = (2, 5)
_ROUNDS: Final = 7


def random_masks(module: nn.Module, keep: float = 0.5) -> dict[str, Tensor]:
    """A mask for every parameter with two dimensions or more."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(parameter.shape, generator=generator) < keep
        for name, parameter in module.named_parameters()
        if parameter.dim() > 1
    }


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors in an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    return (
        [t for part in output for t in tensors_of(part)] if isinstance(output, list | tuple) else []
    )


def difference(expected: Any, actual: Any) -> float:
    """Largest absolute difference of two outputs."""
    pairs = zip(tensors_of(expected), tensors_of(actual), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def measure(name: str) -> dict[str, Any]:
    """One row of the table."""
    make, inputs = ZOO[name]
    torch.manual_seed(0)
    model = make().eval()
    masks = random_masks(model)
    stream = io.BytesIO()
    row: dict[str, Any] = {"network": name}
    options: dict[str, Any] = {"masks": masks, "example_inputs": inputs(5), "preset": "fast"}
    try:
        report = pemncodec.encode(model, stream, **options)
    except PemnError as error:
        cause = str(error).partition(";")[0].removeprefix("cannot describe ")
        return row | {"kind": f"refused: {cause}"}
    row["manifest bytes"] = report.info.manifest_bytes
    if "train mode" not in report.verified:
        stream = io.BytesIO()
        report = pemncodec.encode(model, stream, train_graph=True, **options)
    row["with train mode"] = report.info.manifest_bytes
    with torch.no_grad():
        for key, mask in masks.items():
            model.get_parameter(key).mul_(mask)
    with open_file(stream) as file:
        manifest = file.manifest
    assert manifest is not None
    row["kind"] = kind_of(manifest)
    rebuilt = pemncodec.decode(stream)
    for batch in _BATCHES:
        given = inputs(batch)
        with torch.no_grad():
            row[f"difference at {batch}"] = difference(model(*given), rebuilt(*given))
    row["moves"] = moves(rebuilt, inputs)
    row["ONNX"] = onnx(stream, rebuilt, inputs)
    row["torch.export"] = exported(stream, rebuilt, inputs)
    row["gradients"] = gradients(model, rebuilt, inputs)
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        build_module(manifest)
        seconds.append(time.perf_counter() - start)
    row["rebuild ms"] = round(1e3 * statistics.median(seconds), 1)
    return row


def kind_of(manifest: Mapping[str, Any]) -> str:
    """How `forward` functions are described."""
    nodes = [node for graph in manifest.get("graphs", {}).values() for node in graph]
    return "exported" if any(n.get("fn", "").startswith("aten.") for n in nodes) else "traced"


def gradients(model: nn.Module, rebuilt: nn.Module, inputs: Inputs) -> str:
    """Largest difference of gradients in train mode, relative to each tensor's largest."""
    given = inputs(4)
    try:
        for each in (model, rebuilt):
            for parameter in each.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
                parameter.grad = None
            torch.manual_seed(1)
            outputs = tensors_of(each.train()(*given))
            sum(o.double().square().sum() for o in outputs if o.is_floating_point()).backward()
            each.eval()
    except NotImplementedError as error:
        return f"no: {error}"
    largest = 0.0
    for mine, other in zip(model.parameters(), rebuilt.parameters(), strict=True):
        if mine.grad is None or other.grad is None:
            if mine.grad is not other.grad:
                return "no: other parameters have gradients"
            continue
        scale = float(mine.grad.abs().max()) or 1.0
        largest = max(largest, float((mine.grad - other.grad).abs().max()) / scale)
    return f"{largest:.1g}"


def moves(rebuilt: nn.Module, inputs: Inputs) -> str:
    """Whether every tensor made inside follows the module: to a GPU, or to "meta" without one."""
    device = "cuda" if torch.cuda.is_available() else "meta"
    moved = copy.deepcopy(rebuilt).to(device)
    outputs = tensors_of(moved(*(x.to(device) for x in inputs(2))))
    return f"yes ({device})" if all(o.device.type == device for o in outputs) else "no"


def onnx(stream: io.BytesIO, rebuilt: nn.Module, inputs: Inputs) -> str:
    """Largest difference of onnxruntime's outputs, or why there are none."""
    import onnxruntime

    target = io.BytesIO()
    try:
        to_onnx(stream, target)
    except ExportError as error:
        return f"no: {error}"
    session = onnxruntime.InferenceSession(target.getvalue())
    largest = 0.0
    for batch in _BATCHES:
        given = inputs(batch)
        feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), given, strict=True)}
        actual = [torch.from_numpy(array) for array in session.run(None, feed)]
        with torch.no_grad():
            largest = max(largest, difference(rebuilt(*given), actual))
    return f"{largest:.1g}"


def exported(stream: io.BytesIO, rebuilt: nn.Module, inputs: Inputs) -> str:
    """Largest difference of the exported program's outputs, or why there are none."""
    try:
        program = to_program(stream)
    except ExportError as error:
        return f"no: {error}"
    run = program.module()
    with torch.no_grad():
        largest = max(difference(rebuilt(*x), run(*x)) for x in map(inputs, _BATCHES))
    return f"{largest:.1g}"


def print_table() -> None:
    """The CSV as a Markdown table, and the networks that were refused."""
    _, rows = read_table(RESULTS)
    heads = ("network", "forward", "bytes", "outputs", "gradients", "ONNX", "torch.export")
    print(f"| {' | '.join(heads)} |\n|---|---|{'---:|' * 5}")
    for row in rows:
        if row["kind"].startswith("refused"):
            continue
        differs = max(float(row[f"difference at {batch}"]) for batch in _BATCHES)
        size = row["manifest bytes"]
        if row["with train mode"] != size:
            size += f" / {row['with train mode']}"
        cells = (row["network"], row["kind"], size, f"{differs:g}")
        cells += (row["gradients"], row["ONNX"], row["torch.export"])
        print(f"| {' | '.join(cells)} |")
    for row in rows:
        if row["kind"].startswith("refused"):
            cause = row["kind"].removeprefix("refused: ")
            print(f'\nOne more network, *{row["network"]}*, is refused: "{cause}".')


def measure_wide(name: str) -> dict[str, Any]:
    """One row of the wide table."""
    torch.manual_seed(0)
    model, inputs = WIDE_ZOO[name]()
    model.eval()
    given, stream = inputs(2), io.BytesIO()
    masks = random_masks(model)
    row: dict[str, Any] = {
        "network": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "input": "x".join(map(str, given[0].shape[1:])),
    }
    start = time.process_time(), time.perf_counter()
    try:
        report = pemncodec.encode(model, stream, masks=masks, example_inputs=given)
    except PemnError as error:
        row["kind"] = f"refused: {str(error).partition('; to store')[0]}"
    row["CPU seconds"] = round(time.process_time() - start[0], 1)
    row["seconds"] = round(time.perf_counter() - start[1], 1)
    if "kind" in row:
        return row
    row["manifest bytes"] = report.info.manifest_bytes
    with open_file(stream) as file:
        row["kind"] = kind_of(file.manifest or {})
    rebuilt, largest = pemncodec.decode(stream), 0.0
    with torch.no_grad():
        for key, mask in masks.items():
            model.get_parameter(key).mul_(mask)
        for batch in (1, 3):
            other = inputs(batch)
            expected = model(*other)
            scale = max(float(t.double().abs().max()) for t in tensors_of(expected)) or 1.0
            largest = max(largest, difference(expected, rebuilt(*other)) / scale)
    return row | {"difference": f"{largest:.1g}"}


def print_wide() -> None:
    """The wide table in a few sentences."""
    _, rows = read_table(WIDE_RESULTS)
    refused = [row for row in rows if row["kind"].startswith("refused")]
    seconds = sorted((float(row["seconds"]), row["network"]) for row in rows)
    equal = sum(float(row["difference"]) == 0 for row in rows if row not in refused)
    count = len(rows) - len(refused)
    print(f"{count} of {len(rows)} networks ({count / len(rows):.1%}) are described.")
    most = max(float(row["difference"]) for row in rows if row not in refused)
    print(f"On other inputs, outputs of {equal} are equal; of the others they differ by {most:g}.")
    longest = ", ".join(f"{time} ({name})" for time, name in seconds[:-4:-1])
    print(f"Seconds to encode: {seconds[len(seconds) // 2][0]} in the middle, at most {longest}.")
    for row in refused:
        print(f"{row['network']}: {row['kind']}")


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks; all without any")
    parser.add_argument("--wide", action="store_true", help="the wide table, results/zoo.csv")
    parser.add_argument("--again", action="store_true", help="with --wide: all of its rows")
    parser.add_argument("--print", action="store_true", help="README's words, from the CSV")
    options = parser.parse_args(arguments)
    if options.print:
        print_wide() if options.wide else print_table()
        return
    zoo = WIDE_ZOO if options.wide else ZOO
    for name in options.names:
        if name not in zoo:
            parser.error(f"no network is called {name!r}; one is {next(iter(zoo))!r}")
    for library in ("timm", "transformers"):
        if find_spec(library) is None:
            parser.error(f"{library} is not installed: pip install -c constraints.txt '.[zoo]'")
    source = provenance(["torch", "timm", "transformers", "onnxruntime"])
    if not options.wide:  # which also has the seconds that users wait
        torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the libraries
    # Those of the wide table that were measured before stay, unless they are named.
    measured = read_table(WIDE_RESULTS)[1] if options.wide and not options.again else []
    done = [row for row in measured if row["network"] not in options.names]
    rows: list[dict[str, Any]] = list(done)
    for name in options.names or [n for n in zoo if n not in {row["network"] for row in done}]:
        rows.append(measure_wide(name) if options.wide else measure(name))
        columns = WIDE_COLUMNS if options.wide else COLUMNS
        print(*(rows[-1].get(column, "") for column in columns), sep=" | ", flush=True)
        if options.wide:
            order = list(zoo)
            rows.sort(key=lambda row: order.index(row["network"]))
            write_table(WIDE_RESULTS, source, rows, WIDE_COLUMNS)
        gc.collect()
    if not (options.wide or options.names):
        write_table(RESULTS, source, rows, COLUMNS)


if __name__ == "__main__":
    main()
