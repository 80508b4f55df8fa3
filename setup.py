"""Builds the C kernels; without a C compiler the package falls back to their NumPy twin."""

import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

# Free-threaded CPython has no stable ABI yet.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")
KERNELS = Path("pemncodec/kernels")
# The last three do not change results but for the first, which has every operation round by itself.
FLAGS = ["-O3", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

setup(
    ext_modules=[
        Extension(
            "pemncodec.kernels._native",
            sources=sorted(str(path) for path in KERNELS.glob("*.c")),
            depends=sorted(str(path) for path in KERNELS.glob("*.h")),
            libraries=["dl"] if sys.platform == "linux" else [],
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if STABLE_ABI else [],
            py_limited_api=STABLE_ABI,
            optional=True,
            extra_compile_args=["-O3"] if sys.platform == "win32" else FLAGS,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
)
