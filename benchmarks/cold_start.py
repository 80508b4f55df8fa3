"""What the first `decode` of a process costs beyond `import torch`: results/cold_start.csv.

    python benchmarks/cold_start.py [NAME…]

The networks are those of `zoo.py`, each with random masks. Every decode runs in a fresh process.
The table has medians of CPU seconds, which other programs on the machine hardly change, and how
many modules were imported.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from manifests import random_masks
from provenance import provenance, write_table
from zoo import ZOO

import pemncodec
from pemncodec import PemnError

RESULTS: Final = Path(__file__).parent / "results" / "cold_start.csv"
COLUMNS: Final = ("network", "import torch s", "decode s", "modules", "SymPy")
_ROUNDS: Final = 5
_SCRIPT: Final = """
import json, sys, time
import torch
imported, before = time.process_time(), set(sys.modules)
import pemncodec
pemncodec.decode(sys.argv[1])
modules = set(sys.modules) - before
print(json.dumps([imported, time.process_time() - imported, len(modules), "sympy" in modules]))
"""


def measure(name: str, folder: Path) -> dict[str, Any] | None:
    """One row of the table; None for a network that no file can describe."""
    make, inputs = ZOO[name]
    torch.manual_seed(0)
    model = make().eval()
    path = folder / "net.pemn"
    try:
        pemncodec.encode(
            model, path, masks=random_masks(model), example_inputs=inputs(5), preset="fast"
        )
    except PemnError:
        return None
    rounds = []
    for _ in range(_ROUNDS):
        run = subprocess.run(
            [sys.executable, "-c", _SCRIPT, path], capture_output=True, text=True, check=True
        )
        rounds.append(json.loads(run.stdout))
    torch_seconds, seconds, modules, sympy = map(list, zip(*rounds, strict=True))
    medians = (round(statistics.median(values), 2) for values in (torch_seconds, seconds))
    return dict(zip(COLUMNS, (name, *medians, max(modules), any(sympy)), strict=True))


def main(names: list[str]) -> None:
    """Measure and write the table."""
    source = provenance(["torch", "timm", "transformers"])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or ZOO:
            row = measure(name, Path(folder))
            if row is not None:
                rows.append(row)
                print(*row.values(), sep=" | ", flush=True)
    if not names:
        write_table(RESULTS, source, rows, COLUMNS)


if __name__ == "__main__":
    main(sys.argv[1:])
