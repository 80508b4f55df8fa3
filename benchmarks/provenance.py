"""Where a measurement comes from: machine, versions and commit, for the first line of its CSV."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

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


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
