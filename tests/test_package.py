"""The package as one meets it in a Python prompt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pemncodec

ROOT = Path(__file__).parent.parent


def test_dir_shows_the_public_names_and_each_is_there() -> None:
    names = dir(pemncodec)
    assert {"decode", "encode", "open", "load_state_dict", "Report", "generator"} <= {*names}
    assert not [name for name in names if name.startswith("_") and name != "__version__"]
    assert all(hasattr(pemncodec, name) for name in names)


def test_the_package_runs_as_a_program() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pemncodec", "--version"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout == f"pemn, version {pemncodec.__version__}\n"


def test_kernels_of_another_version_are_not_passed_over_in_silence() -> None:
    code = """
import sys, types, warnings
sys.modules["pemncodec.kernels._native"] = types.ModuleType("_native")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from pemncodec import kernels
print(kernels.IMPLEMENTATION, *(warning.message for warning in caught))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("numpy the compiled kernels cannot be used (cannot import name")
