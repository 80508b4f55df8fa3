"""Tables of measurements as CSV; the first line says on which machine, versions and commit."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pemncodec

ROOT = Path(__file__).parent.parent


def provenance(packages: Sequence[str]) -> str:
    """One line. Ask for it before the output changes what git sees.

    Args:
        packages: distributions whose versions matter.
    """
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"pemncodec {pemncodec.__version__} ({commit or 'no commit'}), {versions}, "
        f"Python {platform.python_version()}, {platform.system()}, {_processor()}, "
        f"{os.cpu_count()} cores"
    )


def write_table(
    path: Path,
    measured_on: str,
    rows: Iterable[Mapping[str, Any]],
    columns: Collection[str],
) -> None:
    """Writes a table. A row without a column leaves it empty; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        stream.write(f"# {measured_on}\n")
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> tuple[str, list[dict[str, str]]]:
    """Where a table was measured, and its rows; no rows if there is no such file."""
    if not path.exists():
        return "", []
    with path.open(newline="") as stream:
        return stream.readline().removeprefix("# ").strip(), list(csv.DictReader(stream))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
