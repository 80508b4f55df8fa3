"""The gradient of scores: the twin of gradient.c."""

from __future__ import annotations

import numpy as np

from pemncodec.kernels.arguments import Buffer, check_integer, view_buffer


def magnitude_gradient(
    gradient: Buffer, values: Buffer, scores: Buffer, out: Buffer, threads: int
) -> None:
    """Multiplies three: out = (gradient * value) * sign(score), in binary32; the sign of 0 is 0.

    It is the gradient of |score| where gradient is that of value * |score| (straight-through).

    Args:
        gradient: n float32.
        values: n float32.
        scores: n float32.
        out: n float32; may be the memory of `gradient`.
        threads: how many may share the work, 1 or more; the result is the same, unless some of them
            flush subnormal numbers (`torch.set_flush_denormal`) and others do not.

    Raises:
        ValueError: "threads" out of range; "gradient" not whole; "values", "scores" or "out" of
            another size.
    """
    upstream, factors, ranked = view_buffer(gradient), view_buffer(values), view_buffer(scores)
    target = view_buffer(out, writable=True)
    check_integer(threads, "threads", 1)
    if upstream.size % 4:
        raise ValueError("gradient")
    for name, view in (("values", factors), ("scores", ranked), ("out", target)):
        if view.size != upstream.size:
            raise ValueError(name)
    numbers = ranked.view(np.float32)
    signs = np.subtract(numbers > 0, numbers < 0, dtype=np.float32)
    with np.errstate(all="ignore"):
        product = upstream.view(np.float32) * factors.view(np.float32)
        np.multiply(product, signs, out=target.view(np.float32))
