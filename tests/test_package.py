"""The package as one meets it in a Python prompt."""

from __future__ import annotations

import os
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


def test_an_interrupt_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    run = subprocess.run(
        [sys.executable, "-m", "pemncodec", "inspect", "x.pemn"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (130, "pemn: interrupted\n")


def test_what_cannot_be_used_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "text.md").write_text('{"a": 1}')
    commands = (
        "encode none.pt", "encode . --keep 0.5", "encode text.md --keep 50", "seed none.pt",
        "encode text.md", "encode text.md --dense q9", "encode text.md --seed 99999999999999999999",
        "report none.pt", "verify x --against none.pt", "inspect none.pemn", "decode x -o x.pt",
    )  # fmt: skip
    code = """
import sys
from pemncodec.__main__ import main
for command in sys.argv[1:]:
    sys.argv = ["pemn", *command.split()]
    try:
        main()
    except SystemExit as error:
        assert error.code in (1, 2)
print("torch" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, *commands],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout == "False\n"
    assert [line[:6] for line in run.stderr.splitlines()] == ["pemn: "] * len(commands)


def test_summaries_of_commands_are_whole_in_a_usual_terminal() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pemncodec", "--help"],
        cwd=ROOT, env={**os.environ, "COLUMNS": "80"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "verify   Decode all of a file" in run.stdout
    assert "..." not in run.stdout.partition("Commands:")[2]


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
