"""All kernels in NumPy: what the C extension has, where it was not built."""

from pemncodec.kernels.column_product_twin import column_product
from pemncodec.kernels.expand_twin import expand, expand_drawn, expand_normal
from pemncodec.kernels.generator_twin import philox4x32, quantiles
from pemncodec.kernels.gradient_twin import magnitude_gradient
from pemncodec.kernels.mersenne_seeds_twin import mersenne_pull_back, mersenne_seeds
from pemncodec.kernels.mersenne_solve_twin import mersenne_solve
from pemncodec.kernels.mersenne_twin import (
    mersenne_advance,
    mersenne_rewind,
    mersenne_seed,
    mersenne_words,
)
from pemncodec.kernels.mixing_twin import mixing_decode, mixing_encode
from pemncodec.kernels.pages_twin import allow_large_pages
from pemncodec.kernels.product_twin import packed_product
from pemncodec.kernels.rans_twin import rans_decode, rans_decode_first, rans_encode
from pemncodec.kernels.runs_twin import runs_decode, runs_encode
from pemncodec.kernels.selection_twin import keep_largest, top_k
from pemncodec.kernels.signed_product_twin import signed_product
from pemncodec.kernels.torch_values_twin import torch_normal, torch_uniform
from pemncodec.kernels.word_matches_twin import match_words

__all__ = [
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
