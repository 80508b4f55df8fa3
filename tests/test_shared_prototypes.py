"""Prototypes whose values another file of the folder stores: written, read, hostile."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pemncodec
from pemncodec.coders.masks import Preset
from pemncodec.contents import (
    Contents,
    DenseTensor,
    Fill,
    MaskedTensor,
    PrototypePlace,
    SeededPrototype,
    StoredPrototype,
)
from pemncodec.errors import DecodeError, EncodeError
from pemncodec.format.writer import encode_contents

RANDOM = np.random.default_rng(5)
VALUES = RANDOM.standard_normal(3000).astype("<f4")
MASKS = [RANDOM.random((30, 100)) < share for share in (0.5, 0.2)]
BIAS = RANDOM.standard_normal(7).astype("<f4")
OWNER, USER = "n-00001-of-00002.pemn", "n-00002-of-00002.pemn"
PLACE = PrototypePlace(OWNER, 1)


def tensor(name: str, mask: np.ndarray, prototype: int = 0) -> MaskedTensor:
    return MaskedTensor(name, "float32", mask.shape, Fill(prototype), mask)


def owner(
    values: np.ndarray = VALUES, *, whole: bool = True, preset: Preset = "max"
) -> Sequence[bytes]:
    prototypes = (SeededPrototype("normal", 3, 9), StoredPrototype(values, "float32", whole=whole))
    return encode_contents(
        Contents(prototypes, (tensor("first.weight", MASKS[0], 1),)), preset=preset
    )


def user(place: PrototypePlace = PLACE, *, preset: Preset = "max") -> Sequence[bytes]:
    shared = StoredPrototype(VALUES, "float32", place)
    bias = DenseTensor("second.bias", "float32", BIAS.shape, BIAS)
    contents = Contents((shared,), (tensor("second.weight", MASKS[1]), bias))
    return encode_contents(contents, preset=preset)


def written(folder: Path, **files: Sequence[bytes]) -> Path:
    """The path of the shard that refers to another."""
    names = {"owner": OWNER, "user": USER}
    for key, pieces in files.items():
        (folder / names[key]).write_bytes(b"".join(pieces))
    return folder / USER


@pytest.mark.parametrize("preset", ["fast", "max"])
def test_a_file_takes_values_from_the_one_beside(tmp_path: Path, preset: Preset) -> None:
    path = written(tmp_path, owner=owner(preset=preset), user=user(preset=preset))
    with pemncodec.open(path) as file:
        file.verify()
        assert file.container.version == (0, 4)
        expected = np.where(MASKS[1], VALUES.reshape(30, 100), 0)
        assert np.array_equal(file.tensor("second.weight"), expected)
        assert np.array_equal(file.mask("second.weight"), MASKS[1])
        assert file.info().prototype_bytes == 0
        assert file.info().prototypes == (f"3,000 float32 values, stored in {OWNER}",)
    with pemncodec.open(tmp_path / OWNER) as file:
        assert file.container.version == (0, 1)
        assert np.array_equal(file.prototype(1), VALUES)  # those too that its mask does not use


def test_the_front_needs_no_other_file(tmp_path: Path) -> None:
    with pemncodec.open(written(tmp_path, user=user())) as file:
        assert file.shape("second.weight") == (30, 100)
        assert np.array_equal(file.tensor("second.bias"), BIAS)
        assert file.info(decode=False).masked_weights == 3000


def check_refused(path: Path | bytes | io.BytesIO, code: str, *words: str) -> None:
    with pemncodec.open(path) as file, pytest.raises(DecodeError) as caught:
        file.tensor("second.weight")
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_what_is_not_the_file_that_is_meant(tmp_path: Path) -> None:
    path = written(tmp_path, user=user())
    check_refused(path, "shard", OWNER, "is missing", "beside")
    (tmp_path / OWNER).mkdir()
    check_refused(path, "shard", OWNER, "is missing")
    (tmp_path / OWNER).rmdir()
    check_refused(path.read_bytes(), "shard", OWNER, "by its path")
    check_refused(io.BytesIO(path.read_bytes()), "shard", OWNER, "by its path")

    other = VALUES.copy()
    other[17] = 1
    written(tmp_path, owner=owner(other))
    check_refused(path, "shard", f"{OWNER}: ", "other values")
    written(tmp_path, owner=owner(VALUES[:-1]))
    check_refused(path, "shard", f"{OWNER}: ", "prototype 1")
    written(tmp_path, owner=owner(whole=False, preset="fast"))  # what its own mask uses alone
    check_refused(path, "shard", f"{OWNER}: ", "prototype 1")
    written(tmp_path, owner=user())  # fewer prototypes, and none that is stored
    check_refused(path, "shard", f"{OWNER}: ", "prototype 1")
    (tmp_path / OWNER).write_bytes(b"".join(owner())[:-1])
    check_refused(path, "truncated", f"{OWNER}: ")
    damaged = b"".join(owner())
    (tmp_path / OWNER).write_bytes(damaged[:-9] + bytes([damaged[-9] ^ 1]) + damaged[-8:])
    check_refused(path, "checksum", f"{OWNER}: section")


@pytest.mark.parametrize("prototype", [0, 1, 2**63 - 1])
def test_files_that_refer_to_each_other_or_to_themselves(tmp_path: Path, prototype: int) -> None:
    there, back = PrototypePlace(OWNER, prototype), PrototypePlace(USER, prototype)
    path = written(tmp_path, owner=user(back), user=user(there))
    check_refused(path, "shard", OWNER)
    written(tmp_path, user=user(back))
    check_refused(path, "shard", USER)


def test_a_file_that_takes_two_prototypes_of_which_no_tensor_needs_one(tmp_path: Path) -> None:
    shared = StoredPrototype(VALUES, "float32", PLACE)
    missing = StoredPrototype(VALUES, "float32", PrototypePlace("missing.pemn", 0))
    contents = Contents((shared, missing), (tensor("second.weight", MASKS[1]),))
    path = written(tmp_path, owner=owner(), user=encode_contents(contents))
    with pemncodec.open(path) as file:
        assert file.tensor("second.weight").any()
        with pytest.raises(DecodeError, match=r"missing\.pemn"):
            file.verify()


@pytest.mark.parametrize("name", ["../n.pemn", "/n.pemn", "a\\b.pemn", "C:n.pemn", ".pemn", "n"])
def test_names_that_no_file_of_the_folder_has(name: str) -> None:
    with pytest.raises(EncodeError, match="cannot name a shard"):
        user(PrototypePlace(name, 0))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(tmp_path: Path, dtype: str) -> None:
    carrier = {"float16": "<f2", "bfloat16": "<u2", "float64": "<f8"}[dtype]
    values = RANDOM.integers(0, 1 << 14, 50).astype(carrier)
    mask = RANDOM.random(50) < 0.5
    weight = MaskedTensor("w", dtype, (50,), Fill(0), mask)
    first, second = (
        Contents((StoredPrototype(values, dtype, place, place is None),), (weight,))
        for place in (None, PrototypePlace(OWNER, 0))
    )
    path = written(tmp_path, owner=encode_contents(first), user=encode_contents(second))
    with pemncodec.open(path) as file:
        assert np.array_equal(file.tensor("w"), np.where(mask, values, 0).astype(carrier))
    wrong = [StoredPrototype(values.view("<u2")[:50], "float16", whole=True)]
    if dtype == "bfloat16":  # the same bytes
        same = Contents((wrong[0],), (MaskedTensor("w", "float16", (50,), Fill(0), mask),))
        written(tmp_path, owner=encode_contents(same))
        with pemncodec.open(path) as file, pytest.raises(DecodeError, match="bfloat16"):
            file.tensor("w")


def test_the_bytes_of_a_file_need_no_other(tmp_path: Path) -> None:
    path = written(tmp_path, owner=owner(), user=user())
    with pemncodec.open(path) as file:
        data = file.data()
        digest = pemncodec.digest(file)
    assert data is not None
    assert pemncodec.digest(data) == digest
    with pemncodec.open(data) as file:
        assert file.container.version == (0, 1)
    (tmp_path / OWNER).unlink()
    with pemncodec.open(path) as file, pytest.raises(DecodeError, match="is missing"):
        file.data()


def test_a_module_that_is_filled_can_be_encoded_again(tmp_path: Path) -> None:
    path = written(tmp_path, owner=owner(), user=user())
    module = nn.Module()
    module.second = nn.Linear(100, 30)
    module.second.bias = nn.Parameter(torch.empty(7))
    pemncodec.decode(path, into=module)
    stream = io.BytesIO()
    pemncodec.encode(module, stream, manifest=False, find_seed="off")
    with pemncodec.open(stream.getvalue()) as file:
        assert np.array_equal(file.mask("second.weight"), MASKS[1])
