"""The inner loops, in C where the extension was built and in NumPy otherwise.

Both have the same results and errors; `pemncodec.kernels.numpy_twin` and `mixing_twin` document the
functions.

Attributes:
    IMPLEMENTATION: "native" or "numpy".
"""

from __future__ import annotations

IMPLEMENTATION: str

try:
    from pemncodec.kernels._native import (
        expand,
        expand_normal,
        keep_largest,
        magnitude_gradient,
        mixing_decode,
        mixing_encode,
        philox4x32,
        quantiles,
        rans_decode,
        rans_encode,
        runs_decode,
        runs_encode,
        top_k,
    )
except ImportError:
    from pemncodec.kernels.mixing_twin import mixing_decode, mixing_encode
    from pemncodec.kernels.numpy_twin import (
        expand,
        expand_normal,
        keep_largest,
        magnitude_gradient,
        philox4x32,
        quantiles,
        rans_decode,
        rans_encode,
        runs_decode,
        runs_encode,
        top_k,
    )

    IMPLEMENTATION = "numpy"
else:
    IMPLEMENTATION = "native"

__all__ = [
    "IMPLEMENTATION",
    "expand",
    "expand_normal",
    "keep_largest",
    "magnitude_gradient",
    "mixing_decode",
    "mixing_encode",
    "philox4x32",
    "quantiles",
    "rans_decode",
    "rans_encode",
    "runs_decode",
    "runs_encode",
    "top_k",
]
