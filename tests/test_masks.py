"""Masks through every coder and back; sizes; hostile sections."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pemncodec.coders.mask_coder import MaskCoder, MaskContext, order0_bits
from pemncodec.coders.masks import (
    CONSTANT,
    MASK_CODERS,
    PACKED,
    RANS,
    decode_mask,
    encode_mask,
    mask_blocks,
    mask_coder,
)
from pemncodec.coders.packed import encode_packed, unpack
from pemncodec.coders.rans import encode_rans, split_blocks
from pemncodec.errors import CorruptError, DecodeError, TruncatedError

Mask = NDArray[np.bool_]
BOTH = pytest.mark.usefixtures("kernels_implementation")
COUNTS = st.integers(0, 40) | st.integers(0, 5000)
DENSITIES = st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.2, 0.5, 0.8, 0.99, 1.0]) | st.floats(0, 1)


def random_mask(count: int, density: float, seed: int = 0) -> Mask:
    return np.random.default_rng(seed).random(count) < density


def decoded(section: bytes, count: int) -> Mask:
    packed = decode_mask(section, count)
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-count // 8),)
    assert not np.unpackbits(packed, bitorder="little")[count:].any()
    return unpack(packed, count)


masks = st.builds(random_mask, COUNTS, DENSITIES, st.integers(0, 2**32 - 1)) | st.lists(
    st.booleans(), max_size=70
).map(lambda bits: np.array(bits, np.bool_))


@BOTH
@given(mask=masks)
def test_round_trip(mask: Mask) -> None:
    section = encode_mask(mask)
    assert np.array_equal(decoded(section, mask.size), mask)
    assert len(section) <= max(2, 1 + -(-mask.size // 8))


@given(mask=masks)
def test_both_implementations_write_the_same_bytes(
    with_kernels: Callable[[str], None], mask: Mask
) -> None:
    with_kernels("native")
    section = encode_mask(mask)
    with_kernels("numpy")
    assert encode_mask(mask) == section
    assert np.array_equal(decoded(section, mask.size), mask)


@pytest.mark.parametrize(
    "density", [0.001, 0.003, 0.01, 0.05, 0.14, 0.155, 0.16, 0.2, 0.3, 0.45, 0.5, 0.8, 0.85, 0.999]
)
@pytest.mark.parametrize("count", [2_000, 100_000, 1 << 18, 1 << 19, (1 << 21) + 5])
def test_size_is_order0(density: float, count: int) -> None:
    mask = random_mask(count, density)
    section = encode_mask(mask)
    assert len(section) <= 1.001 * order0_bits(int(mask.sum()), count) / 8 + 16
    assert len(section) <= 1 + -(-count // 8)


@pytest.mark.parametrize(
    ("mask", "coder"),
    [
        (np.zeros(0, np.bool_), CONSTANT),
        (np.zeros(1000, np.bool_), CONSTANT),
        (np.ones(1001, np.bool_), CONSTANT),
        (random_mask(1000, 0.5), PACKED),
        (random_mask(1000, 0.05), RANS),
        (random_mask(1000, 0.95), RANS),
        (random_mask(7, 0.5), PACKED),
    ],
)
def test_the_smallest_coder_is_chosen(mask: Mask, coder: MaskCoder) -> None:
    assert mask_coder(encode_mask(mask)) == coder


def test_the_coders_have_the_names_and_numbers_of_the_spec() -> None:
    spec = (Path(__file__).parent.parent / "spec" / "pemn.md").read_text(encoding="utf-8")
    (row,) = (line for line in spec.splitlines() if "0 = constant" in line)
    named = {int(number): name.lower() for number, name in re.findall(r"(\d) = (\w+)", row)}
    assert {coder.id: coder.name for coder in MASK_CODERS} == named


@pytest.mark.parametrize("count", [300, 1000, 5000])
def test_what_is_chosen_is_never_larger_than_another_coder(count: int) -> None:
    """Densities around those where rANS begins to pay, on both sides of one half."""
    chosen = []
    for seed, density in enumerate(np.linspace(0.2, 0.8, 61)):
        mask = random_mask(count, density, seed)
        packed = encode_packed(mask)
        coded = encode_rans(np.frombuffer(packed, np.uint8), count)
        smaller = (
            bytes([RANS.id]) + coded if len(coded) < len(packed) else bytes([PACKED.id]) + packed
        )
        assert encode_mask(mask) == smaller
        chosen.append(smaller[0])
    assert {PACKED.id, RANS.id} == set(chosen)
    assert chosen[0] == chosen[-1] == RANS.id


@BOTH
@pytest.mark.parametrize("count", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, (1 << 21) + 12_345])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_many_blocks(count: int, density: float) -> None:
    mask = random_mask(count, density)
    section = encode_mask(mask)
    assert mask_coder(section) == RANS
    assert np.array_equal(decoded(section, count), mask)


def test_blocks_of_different_densities(with_kernels: Callable[[str], None]) -> None:
    """Even where a block is all zeros, all ones, or a handful of weights."""
    mask = np.zeros(4 << 20, np.bool_)
    mask[1 << 20 : 2 << 20] = True
    mask[2 << 20 : 3 << 20] = random_mask(1 << 20, 0.01)
    mask[-2] = True
    with_kernels("native")
    section = encode_mask(mask)
    assert len(section) < 30_000
    assert np.array_equal(decoded(section, mask.size), mask)
    with_kernels("numpy")
    assert encode_mask(mask) == section
    assert np.array_equal(decoded(section, mask.size), mask)


@BOTH
@pytest.mark.parametrize(
    ("block", "ones"),
    [
        ("CD0C030A15941A", [3, 17]),
        ("00400A5E0100EE1FDDF8", [2, 3, 5, 6, 11, 17, 20, 30, 31, 38]),
    ],
)
def test_the_examples_of_the_spec(block: str, ones: list[int]) -> None:
    mask = np.zeros(40, np.bool_)
    mask[ones] = True
    assert encode_rans(np.packbits(mask, bitorder="little"), 40) == bytes.fromhex(block)
    assert np.array_equal(decoded(bytes([RANS.id]) + bytes.fromhex(block), 40), mask)


@pytest.mark.parametrize("count", [1, 1001, 1 << 20, (1 << 20) + 1, (1 << 21) + 12_345])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 0.5, 0.93, 1.0])
def test_blocks_are_slices_of_the_mask(count: int, density: float) -> None:
    """Whatever the coder; several threads take a block each."""
    section = encode_mask(random_mask(count, density))
    blocks = mask_blocks(section, MaskContext((count,)))
    whole = decode_mask(section, count)
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks[:-1])]
    assert blocks[-1].stop == count
    most = max(block.stop - block.start for block in blocks)
    assert most <= 1 << (25 if mask_coder(section) is RANS else 20)
    for block in blocks:
        assert block.start % 8 == 0
        size = block.stop - block.start
        for first in {share * size // 64 * 8 for share in range(8)} | {min(8, size), size}:
            packed = block.decode(first)
            assert packed.size == -(-first // 8)
            assert np.array_equal(packed, whole[block.start // 8 :][: packed.size])


@pytest.mark.parametrize("rows", [4096, 4300, 4345])  # of 16.8, 18.5 and 18.9 million weights
@pytest.mark.parametrize("keep", [0.12, 0.2, 0.88])
def test_large_masks_have_blocks_that_four_processes_share(rows: int, keep: float) -> None:
    packed = np.packbits(np.random.default_rng(0).random(rows * rows, np.float32) < keep)
    packed[-1] = 0  # whatever bits are padding
    blocks = split_blocks(encode_rans(packed, rows * rows), rows * rows)
    share = -(-rows // 4)
    for process in range(4):
        start, stop = share * process * rows, min(share * (process + 1), rows) * rows
        first = max(block.start for block in blocks if block.start <= start)
        assert stop - first <= 1.26 * (stop - start)


@pytest.mark.parametrize(
    ("count", "ones"),
    [
        *((64, 9), (64, 10), (64, 54), (64, 55)),  # runs below a density of 10240 / 65536
        *((64, 32), (65, 33), (63, 31)),
        *((524_280, 262_140), (524_281, 262_140)),  # eight lanes from 65536 symbols on
        (5000, 2),  # the longest runs
    ],
)
def test_the_reference_decoder_reads_what_is_written(
    reference: ModuleType, count: int, ones: int
) -> None:
    mask = np.random.default_rng(0).permutation(np.arange(count) < ones)
    coded = encode_rans(np.packbits(mask, bitorder="little"), count)
    assert reference.read_rans(coded, count) == mask.astype(int).tolist()


@pytest.mark.parametrize(
    ("densities", "bits"),
    [
        ((0.001,) * 8, 23),
        ((0.001, 0.001, 0.02, 0.02, 0.001, 0.001, 0.02, 0.02), 21),
        ((0.001, 0.02, 0.001, 0.02, 0.001, 0.02, 0.001, 0.02), 20),
        ((0.02, 0.02, 0.02, 0.02, 0.001, 0.001, 0.001, 0.001), 22),
    ],
)
def test_blocks_are_as_large_as_the_density_allows(densities: tuple[float], bits: int) -> None:
    """The fewer blocks, the fewer bytes for each."""
    parts = [random_mask(1 << 20, density, seed) for seed, density in enumerate(densities)]
    section = encode_mask(np.concatenate(parts))
    assert section[0] == RANS.id
    assert section[1] == bits


def test_blocks_follow_a_density_that_varies() -> None:
    mask = random_mask(1 << 23, 0.01)
    mask[1 << 22 :] |= random_mask(1 << 22, 0.1)
    halves = [order0_bits(int(half.sum()), half.size) / 8 for half in np.split(mask, 2)]
    assert len(encode_mask(mask)) < sum(halves) * 1.001 + 100


# ------------------------------------------------------------------------- hostile sections


def attempt(section: bytes, count: int) -> None:
    """Either bits in their range or one of two errors."""
    with contextlib.suppress(CorruptError, TruncatedError):
        decoded(section, count)


@BOTH
@settings(max_examples=300)
@given(section=st.binary(max_size=200), count=COUNTS)
def test_random_sections(section: bytes, count: int) -> None:
    attempt(section, count)
    for coder in (CONSTANT, PACKED, RANS):
        attempt(bytes([coder.id]) + section, count)


@BOTH
@settings(max_examples=300)
@given(mask=masks, data=st.data())
def test_damaged_sections(mask: Mask, data: st.DataObject) -> None:
    section = bytearray(encode_mask(mask))
    for _ in range(data.draw(st.integers(0, 3))):
        section[data.draw(st.integers(0, len(section) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(section)) | st.just(len(section)))
    attempt(bytes(section[:cut]) + data.draw(st.binary(max_size=4)), mask.size)
    attempt(bytes(section), max(0, mask.size + data.draw(st.integers(-9, 9))))


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_every_cut_and_every_addition_is_refused(density: float) -> None:
    mask = random_mask(999, density)
    section = encode_mask(mask)
    for length in range(len(section)):
        with pytest.raises(DecodeError):
            decode_mask(section[:length], mask.size)
    for more in (b"\0", b"\0\0", section):
        with pytest.raises(DecodeError):
            decode_mask(section + more, mask.size)


@BOTH
def test_damage_to_the_index_of_blocks() -> None:
    mask = random_mask((1 << 20) + 100, 0.02)
    section = encode_mask(mask)
    for position in range(1, 1 + 5):
        for value in (0, 1, 0x7F, 0xFF):
            damaged = bytearray(section)
            damaged[position] = value
            if damaged != section:
                with pytest.raises(DecodeError):
                    decode_mask(bytes(damaged), mask.size)
    for length in range(1, 8):
        with pytest.raises(DecodeError):
            decode_mask(section[:length], mask.size)


@BOTH
@pytest.mark.parametrize(
    ("section", "count", "code"),
    [
        (b"", 5, "truncated"),
        (b"\4\0", 5, "unknown-field"),
        (b"\xff", 5, "unknown-field"),
        (b"\0", 5, "section"),
        (b"\0\2", 5, "section"),
        (b"\0\1\0", 5, "section"),
        (b"\1", 5, "truncated"),
        (b"\1\x20", 5, "section"),
        (b"\1\x1f\0", 5, "trailing"),
        (b"\2", 0, "section"),
        (b"\2", 5, "truncated"),
        (b"\2\1", 5, "truncated"),
        (b"\2\0\0\0\0\1\0", 5, "section"),
        (b"\2\1\0", 5, "truncated"),
        (b"\2\1\0\0", 5, "section"),
        (b"\2\0\x80\0\0\1", 5, "section"),
        (b"\2\0\x80\0\0\0\0", 5, "section"),
        (b"\2", 1 << 21, "truncated"),
        (b"\2\x14" + bytes(7), 1 << 21, "truncated"),
        (b"\2\x13" + bytes(20), 1 << 21, "section"),
        (b"\2\x1a" + bytes(20), 1 << 21, "section"),
    ],
)
def test_why_a_section_is_refused(section: bytes, count: int, code: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_mask(section, count)
    assert caught.value.code == code
