"""Runs the C kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

These end a process that accesses memory outside of what was allocated, or whose behaviour the C
standard does not define. Copies of the package, with an extension that was built with them, are put
into build/sanitized: one copy for every version of the kernels that this processor can run. On each
of them run the vectors and the fuzzer (fuzz_kernels.py); on the version that the processor chooses,
also the tests of the kernels.

    python tests/sanitize.py --rounds 500
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from kernel_builds import ROOT, VERSIONS, build, can_run

BUILDS = ROOT / "build" / "sanitized"
FLAGS = ["-O2", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
FLAGS += ["-fno-sanitize-recover=all"]

TESTS = [f"tests/test_{name}.py" for name in ("kernels", "mixing_kernels", "mersenne_solve")]
TESTS += ["tests/test_product_kernels.py", "tests/test_new_pages.py"]
# What runs no sanitized code (twins, other builds, other processes), what the twin is slow for, and
# what needs an allocator that gives memory back at once, or leaves none for that of the sanitizers.
LEFT_OUT = "not numpy and not avx2 and not processor and not training_uses and not coded_alike"
LEFT_OUT += " and not given_back and not mappings"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=500, help="of the fuzzer, for each version")
    rounds = parser.parse_args().rounds
    own = _copy_package(None)
    _run(own, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, "-k", LEFT_OUT)
    versions = [_copy_package(version) for version in VERSIONS if can_run(version)]
    for folder in (own, *versions):
        _run(folder, "tests/fuzz_kernels.py", "--rounds", str(rounds))


def _copy_package(version: str | None) -> Path:
    """A folder with a copy of the package, whose extension has sanitizers."""
    folder = BUILDS / (version or "own").replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    built = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(ROOT / "pemncodec", folder / "pemncodec", ignore=built)
    build(folder / "pemncodec" / "kernels" / "_native.so", FLAGS, version)
    return folder


def _run(folder: Path, *arguments: str) -> None:
    """Runs Python with the package of a folder, and ends if it fails."""
    print(f"{folder.name}: {arguments[0] if arguments[0] != '-m' else arguments[1]}", flush=True)
    environment = os.environ | {
        "LD_PRELOAD": _library(),
        # Python itself leaves memory to the system at its end.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # else Python's small objects lie next to each other, unguarded
        "PYTHONPATH": str(folder),
        "PYTHONSAFEPATH": "1",  # the package is the copy's, not that of the current folder
    }
    code = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment).returncode
    if code:
        raise SystemExit(f"{folder.name}: {' '.join(arguments)} ended with {code}")


def _library() -> str:
    """AddressSanitizer's library, which has to be loaded before all others."""
    found = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        raise SystemExit("The C compiler has no libasan: install gcc (Debian: build-essential).")
    return found


if __name__ == "__main__":
    main()
