"""Prototypes of two values: what is a bit each, and what is not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pemncodec
from pemncodec.contents import Contents, Fill, MaskedTensor, StoredPrototype
from pemncodec.format.writer import encode_contents
from pemncodec.packed import two_values as module
from pemncodec.packed.two_values import two_values


@given(
    st.integers(1, 700), st.sampled_from([0, 0.001, 0.02, 0.5]), st.floats(0.05, 1), st.integers(0)
)
def test_used_values_come_back(size: int, odd: float, keep: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice(np.array([-0.5, 0.25], np.float32), size)
    values[rng.random(size) < odd] = rng.choice([0.0, 1.0, 2.0])
    mask = rng.random(size) < keep
    stored = StoredPrototype(values, "float32")
    tensor = MaskedTensor("w", "float32", (size,), Fill(0, 0, 1.0), mask)
    written = io.BytesIO(b"".join(encode_contents(Contents((stored,), (tensor,), None))))
    with pytest.MonkeyPatch.context() as patch, pemncodec.open(written) as file:
        patch.setattr(module, "_SLICE", 64)
        masked = file.masked_values("w")
        two = two_values(masked.prototype(), [masked], size)
    odd_ones = int((mask & (values != -0.5) & (values != 0.25)).sum())
    if two is None:
        seen = {*values[:64][mask[:64]].tolist()}
        assert odd_ones or seen != {-0.5, 0.25}
        return
    assert two.places.size <= size // 256
    made = np.where(np.unpackbits(two.bits, count=size, bitorder="little"), *two.pair[::-1])
    made[two.places] = two.others
    assert np.array_equal(made[mask], values[mask])
