"""The inner loops, in C where the extension was built and in NumPy otherwise.

Both have the same results and errors; `pemncodec.kernels.numpy_twin` documents the functions.

Attributes:
    IMPLEMENTATION: "native" or "numpy".
"""

from __future__ import annotations

IMPLEMENTATION: str

try:
    from pemncodec.kernels._native import expand, philox4x32, rans_decode, rans_encode, top_k
except ImportError:
    from pemncodec.kernels.numpy_twin import expand, philox4x32, rans_decode, rans_encode, top_k

    IMPLEMENTATION = "numpy"
else:
    IMPLEMENTATION = "native"

__all__ = ["IMPLEMENTATION", "expand", "philox4x32", "rans_decode", "rans_encode", "top_k"]
