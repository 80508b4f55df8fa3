"""The inner loops, in C where the extension was built and in NumPy otherwise.

Each C file has a twin beside it, which documents its functions and has the same results and errors;
`pemncodec.kernels.arguments` says what holds for all.

Attributes:
    IMPLEMENTATION: "native" or "numpy".
"""

from __future__ import annotations

IMPLEMENTATION: str

try:
    from pemncodec.kernels._native import (
        expand,
        expand_drawn,
        expand_normal,
        keep_largest,
        magnitude_gradient,
        mersenne_advance,
        mersenne_seed,
        mersenne_solve,
        mersenne_words,
        mixing_decode,
        mixing_encode,
        philox4x32,
        quantiles,
        rans_decode,
        rans_encode,
        runs_decode,
        runs_encode,
        top_k,
        torch_normal,
        torch_uniform,
    )
except ImportError:
    from pemncodec.kernels.twins import (
        expand,
        expand_drawn,
        expand_normal,
        keep_largest,
        magnitude_gradient,
        mersenne_advance,
        mersenne_seed,
        mersenne_solve,
        mersenne_words,
        mixing_decode,
        mixing_encode,
        philox4x32,
        quantiles,
        rans_decode,
        rans_encode,
        runs_decode,
        runs_encode,
        top_k,
        torch_normal,
        torch_uniform,
    )

    IMPLEMENTATION = "numpy"
else:
    IMPLEMENTATION = "native"

__all__ = [
    "IMPLEMENTATION",
    "expand",
    "expand_drawn",
    "expand_normal",
    "keep_largest",
    "magnitude_gradient",
    "mersenne_advance",
    "mersenne_seed",
    "mersenne_solve",
    "mersenne_words",
    "mixing_decode",
    "mixing_encode",
    "philox4x32",
    "quantiles",
    "rans_decode",
    "rans_encode",
    "runs_decode",
    "runs_encode",
    "top_k",
    "torch_normal",
    "torch_uniform",
]
