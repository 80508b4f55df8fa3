"""One network in the forms that `packed.py` compares; imports nothing else that takes memory.

    python benchmarks/packed_forms.py FORM FILE.pemn
    python benchmarks/packed_forms.py times FILE.pemn SECONDS BATCH…
    python benchmarks/packed_forms.py pt2 FILE.pemn

The first prints what loading that form and calling it once take, beyond `import torch`; the second
how long calls of all forms take; the third the bytes of exported programs.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

FORMS = ("fp32", "bf16", "int8", "packed")


def load(form: str, path: Path) -> nn.Module:
    """A network in one of `FORMS`."""
    import pemncodec

    if form == "packed":
        return pemncodec.decode(path, packed=True)
    model = pemncodec.decode(path, dtype=torch.bfloat16 if form == "bf16" else None)
    if form == "int8":
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)
    return model


def example(path: Path, form: str, batch: int) -> Tensor:
    """A batch of inputs of the network."""
    import pemncodec

    with pemncodec.open(path) as file:
        (item,) = file.manifest["inputs"]
        words = file.shape("words.weight")[0] if item["dtype"] == "int64" else 0
    shape = [batch, *item["shape"][1:]]
    if words:
        return torch.randint(words, shape)
    return torch.randn(shape, dtype=torch.bfloat16 if form == "bf16" else torch.float32)


def masked_names(path: Path) -> set[str]:
    """Masked weights by all of their names."""
    import pemncodec

    with pemncodec.open(path) as file:
        masked = set(file.masked_keys())
        return masked | {name for name, target in file.aliases.items() if target in masked}


def weight_bytes(model: nn.Module, masked: set[str]) -> tuple[int, int]:
    """What masked weights take, each memory once; and the largest of them, if it is dense."""
    memory: dict[int, int] = {}
    largest = 0
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if name in masked:
            parts = (tensor.bits, tensor.prototype) if hasattr(tensor, "bits") else (tensor,)
            memory |= {part.data_ptr(): part.nbytes for part in parts if part is not None}
            largest = max(largest, tensor.numel() * tensor.element_size())
    for name, module in model.named_modules():
        if f"{name}.weight" in masked and isinstance(module, torch.ao.nn.quantized.dynamic.Linear):
            memory[id(module)] = module.weight().nbytes
    return sum(memory.values()), largest


def memory(entry: str) -> int:
    """An entry of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(entry))


def measure_memory(form: str, path: Path) -> dict[str, int]:
    """What loading one form and calling it once take."""
    before = memory("VmRSS")
    model, given = load(form, path), example(path, form, 1)
    with torch.inference_mode():
        model(given)
    peak = memory("VmHWM") - before
    weights, largest = weight_bytes(model, masked_names(path))
    return {"peak": peak, "weights": weights, "largest": largest}


def measure_times(path: Path, seconds: float, *batches: int) -> dict[int, dict[str, float]]:
    """Median milliseconds of a call by batch and form; all forms take turns."""
    models = {form: load(form, path) for form in FORMS}
    result: dict[int, dict[str, float]] = {}
    with torch.inference_mode():
        for batch in batches:
            given = {form: example(path, form, batch) for form in FORMS}
            times: dict[str, list[float]] = {form: [] for form in FORMS}
            start, rounds = time.perf_counter(), 0
            while rounds < 2 or time.perf_counter() - start < seconds:
                for form, model in models.items():
                    begin = time.perf_counter()
                    model(given[form])
                    times[form].append(1e3 * (time.perf_counter() - begin))
                rounds += 1
            # The first call of a size is slower: memory is mapped, kernels are chosen.
            result[batch] = {form: statistics.median(own[1:]) for form, own in times.items()}
    return result


def program_bytes(path: Path) -> dict[str, int]:
    """The size of the network's .pt2 file, dense and packed."""
    from pemncodec.export import to_pt2

    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "net.pt2"
        for form in ("fp32", "packed"):
            to_pt2(path, target, packed=form == "packed")
            sizes[form] = target.stat().st_size
    return sizes


if __name__ == "__main__":
    what, file, *numbers = sys.argv[1:]
    if what == "times":
        print(json.dumps(measure_times(Path(file), float(numbers[0]), *map(int, numbers[1:]))))
    elif what == "pt2":
        print(json.dumps(program_bytes(Path(file))))
    else:
        print(json.dumps(measure_memory(what, Path(file))))
