"""Builds of the C extension apart from the package's own: for other processors, with sanitizers."""

from __future__ import annotations

import platform
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "pemncodec" / "kernels"

# What other processors than the newest x86 would run.
VERSIONS = {"any processor": "PLAIN", "avx2": "BEST(NAME)=NAME##_avx2"}
ARITHMETIC = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]  # as setup.py has them


def has_versions() -> bool:
    """Whether functions have several versions on this machine."""
    return platform.machine() == "x86_64" and sys.platform.startswith("linux")


def can_run(version: str) -> bool:
    """Whether this processor has the instructions of a version."""
    if not has_versions():
        return False
    return version in ("any processor", *Path("/proc/cpuinfo").read_text().split())


def build(path: Path, flags: Sequence[str], version: str | None = None) -> None:
    """Compiles the extension to `path`: a version of it, or that which the processor chooses."""
    chosen = [] if version is None else [f"-D{VERSIONS[version]}"]
    command = ["cc", "-shared", "-fPIC", "-fvisibility=hidden", *ARITHMETIC, *flags, *chosen]
    command += [f"-I{sysconfig.get_path('include')}", *map(str, sorted(KERNELS.glob("*.c")))]
    subprocess.run([*command, "-ldl", "-o", str(path)], check=True)


def load(path: Path) -> ModuleType:
    """The extension that was built to `path`, apart from that of the package."""
    loader = ExtensionFileLoader("_native", str(path))
    spec = spec_from_loader("_native", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
