"""The inner loops, in C where the extension was built and in NumPy otherwise.

Each C file has a twin beside it, which documents its functions and has the same results and errors;
`pemncodec.kernels.arguments` says what holds for all.

Attributes:
    IMPLEMENTATION: "native" or "numpy".
"""

from __future__ import annotations

import warnings

IMPLEMENTATION: str

try:
    from pemncodec.kernels._native import (
        allow_large_pages,
        column_product,
        expand,
        expand_drawn,
        expand_normal,
        keep_largest,
        magnitude_gradient,
        match_words,
        mersenne_advance,
        mersenne_pull_back,
        mersenne_rewind,
        mersenne_seed,
        mersenne_seeds,
        mersenne_solve,
        mersenne_words,
        mixing_decode,
        mixing_encode,
        packed_product,
        philox4x32,
        quantiles,
        rans_decode,
        rans_decode_first,
        rans_encode,
        runs_decode,
        runs_encode,
        signed_product,
        top_k,
        torch_normal,
        torch_uniform,
    )
except ImportError as error:
    if not isinstance(error, ModuleNotFoundError):  # such as one that is older than its Python code
        warnings.warn(
            f"the compiled kernels cannot be used ({error}), and NumPy is many times slower: build "
            "or install pemncodec again",
            RuntimeWarning,
            stacklevel=2,
        )
    from pemncodec.kernels.twins import (
        allow_large_pages,
        column_product,
        expand,
        expand_drawn,
        expand_normal,
        keep_largest,
        magnitude_gradient,
        match_words,
        mersenne_advance,
        mersenne_pull_back,
        mersenne_rewind,
        mersenne_seed,
        mersenne_seeds,
        mersenne_solve,
        mersenne_words,
        mixing_decode,
        mixing_encode,
        packed_product,
        philox4x32,
        quantiles,
        rans_decode,
        rans_decode_first,
        rans_encode,
        runs_decode,
        runs_encode,
        signed_product,
        top_k,
        torch_normal,
        torch_uniform,
    )

    IMPLEMENTATION = "numpy"
else:
    IMPLEMENTATION = "native"

__all__ = [
    "IMPLEMENTATION",
    "allow_large_pages",
    "column_product",
    "expand",
    "expand_drawn",
    "expand_normal",
    "keep_largest",
    "magnitude_gradient",
    "match_words",
    "mersenne_advance",
    "mersenne_pull_back",
    "mersenne_rewind",
    "mersenne_seed",
    "mersenne_seeds",
    "mersenne_solve",
    "mersenne_words",
    "mixing_decode",
    "mixing_encode",
    "packed_product",
    "philox4x32",
    "quantiles",
    "rans_decode",
    "rans_decode_first",
    "rans_encode",
    "runs_decode",
    "runs_encode",
    "signed_product",
    "top_k",
    "torch_normal",
    "torch_uniform",
]
