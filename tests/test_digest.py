"""Digests: the same however contents are stored, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pemncodec
from pemncodec.coders.masks import Preset
from pemncodec.contents import (
    AliasTensor,
    Contents,
    DenseTensor,
    Fill,
    MaskedTensor,
    PrototypePlace,
    SeededPrototype,
    StoredPrototype,
)
from pemncodec.errors import DecodeError
from pemncodec.format import digests as hashes
from pemncodec.format import file_digest as digests
from pemncodec.format.writer import encode_contents
from pemncodec.values.fill import prototype_values

MANIFEST = {
    "format": "tree/1",
    "inputs": [],
    "tree": {"cls": "Linear", "in_features": 3, "out_features": 2},
}


def data_of(contents: Contents, preset: Preset = "default") -> bytes:
    return b"".join(encode_contents(contents, preset=preset))


def masked(
    name: str, shape: tuple[int, ...], seed: int, *, prototype: int = 0, offset: int = 0
) -> MaskedTensor:
    mask = np.random.default_rng(seed).random(shape) < 0.4
    return MaskedTensor(name, "float32", shape, Fill(prototype, offset, 0.5), mask)


def dense(name: str, values: Any, dtype: str = "float32") -> DenseTensor:
    array = np.asarray(values)
    return DenseTensor(name, dtype, array.shape, array)


SEEDED = SeededPrototype("normal", 7, 40)


def some_contents(**changed: Any) -> Contents:
    tensors = (
        masked("a.weight", (4, 9), 1),
        dense("a.bias", np.arange(4, dtype="<f4")),
        dense("a.count", np.zeros((), "<i8"), "int64"),
        masked("b.weight", (50,), 2, offset=3),
        AliasTensor("c.weight", "a.weight"),
        dense("none", np.zeros((0, 3), "<f4")),
    )
    return replace(Contents((SEEDED,), tensors), **changed)


DIGEST = pemncodec.digest(data_of(some_contents()))


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4),
    length=st.integers(1, 60),
    seed=st.integers(0, 3),
)
@settings(max_examples=25)
def test_how_contents_are_stored_does_not_count(
    shapes: list[list[int]], length: int, seed: int
) -> None:
    tensors = tuple(masked(f"w{i}", tuple(shape), seed + i) for i, shape in enumerate(shapes))
    tensors = tuple(replace(t, fill=Fill(0, seed % length)) for t in tensors)
    seeded = SeededPrototype("normal", seed, length)
    values = prototype_values(seeded)
    stored = StoredPrototype(values, "float32")
    forms = [
        data_of(Contents((prototype,), tensors, metadata=metadata), preset)
        for prototype, metadata in ((seeded, {}), (stored, {"run": "7"}))
        for preset in ("fast", "max")
    ]
    forms.append(data_of(Contents((replace(stored, whole=True),), tensors)))
    assert (
        len({pemncodec.digest(form, threads=threads) for form in forms for threads in (1, 3)}) == 1
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda c: replace(c, tensors=c.tensors[:-1]),
        lambda c: replace(c, tensors=(c.tensors[1], c.tensors[0], *c.tensors[2:])),
        lambda c: replace(c, tensors=(replace(c.tensors[0], name="x"), *c.tensors[1:4])),
        lambda c: replace(c, tensors=(masked("a.weight", (4, 9), 3), *c.tensors[1:])),
        lambda c: replace(c, tensors=(masked("a.weight", (9, 4), 1), *c.tensors[1:])),
        lambda c: replace(c, prototypes=(SeededPrototype("normal", 8, 40),)),
        lambda c: replace(c, inference_only=True),
        lambda c: replace(c, tensors=(*c.tensors[:4], AliasTensor("c.weight", "b.weight"))),
        lambda c: replace(c, tensors=(*c.tensors[:5], dense("none", np.zeros((3, 0), "<f4")))),
        lambda c: replace(
            c, tensors=(*c.tensors[:5], dense("none", np.zeros((0, 3), "<i4"), "int32"))
        ),
    ],
)
def test_everything_else_counts(change: Callable[[Contents], Contents]) -> None:
    assert pemncodec.digest(data_of(change(some_contents()))) != DIGEST


def test_one_value_and_one_bit_count() -> None:
    contents = some_contents()
    weight = contents.tensors[0]
    assert isinstance(weight, MaskedTensor)
    mask = weight.mask.copy()
    mask[0, 0] ^= True
    other = replace(contents, tensors=(replace(weight, mask=mask), *contents.tensors[1:]))
    assert pemncodec.digest(data_of(other)) != DIGEST
    zeros = dense("a.bias", np.array([-0.0, 1, 2, 3], "<f4"))
    other = replace(contents, tensors=(weight, zeros, *contents.tensors[2:]))
    assert pemncodec.digest(data_of(other)) != DIGEST


def test_masks_count_where_values_are_the_same() -> None:
    zeros = StoredPrototype(np.array([0, 1], "<f4"), "float32")
    found = {
        pemncodec.digest(
            data_of(
                Contents(
                    (zeros,),
                    (MaskedTensor("w", "float32", (2,), Fill(0), np.array([first, True])),),
                )
            )
        )
        for first in (False, True)
    } | {pemncodec.digest(data_of(Contents((), (dense("w", np.array([0, 1], "<f4")),))))}
    assert len(found) == 3


def test_the_architecture_counts() -> None:
    tensors = (masked("weight", (2, 3), 1), dense("bias", np.arange(2, dtype="<f4")))
    found = {
        pemncodec.digest(data_of(Contents((SEEDED,), tensors, manifest)))
        for manifest in (None, MANIFEST, MANIFEST | {"training": True})
    }
    assert len(found) == 3


def test_values_in_another_file(tmp_path: Path) -> None:
    values = prototype_values(SEEDED)
    contents = some_contents()
    stored = StoredPrototype(values, "float32", whole=True)
    (tmp_path / "own.pemn").write_bytes(data_of(replace(contents, prototypes=(stored,))))
    shared = replace(stored, place=PrototypePlace("own.pemn", 0))
    path = tmp_path / "other.pemn"
    path.write_bytes(data_of(replace(contents, prototypes=(shared,))))
    assert pemncodec.digest(path) == pemncodec.digest(tmp_path / "own.pemn") == DIGEST


@pytest.mark.parametrize("pieces", [8, 64, 1 << 22])
def test_large_tensors_by_pieces(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With short pieces, threads finish in any order, and wait for each other."""
    monkeypatch.setattr(hashes, "PIECE_BYTES", pieces)
    monkeypatch.setattr(digests, "PIECE_BYTES", pieces)
    if pieces < 64:  # a slice of a mask is whole bytes
        contents = Contents((), (dense("a", np.arange(999, dtype="<i4"), "int32"),))
    else:
        constant = dense("c", np.full(333, 2.5, "<f8"), "float64")
        tied = AliasTensor("v", "w")
        contents = Contents((SEEDED,), (masked("w", (10, 401), 1), constant, tied))
    data = data_of(contents)
    found = {pemncodec.digest(data, threads=threads) for threads in (1, 2, 5)}
    assert len(found) == 1

    def of(data: bytes) -> str:
        parts = [data[start : start + pieces] for start in range(0, len(data), pieces)]
        return hashlib.sha256(b"".join(hashlib.sha256(p).digest() for p in parts)).hexdigest()

    def of_json(value: Any) -> str:
        return hashlib.sha256(canonical(value)).hexdigest()

    with pemncodec.open(data) as file:
        tensors = []
        for name in file.keys():  # noqa: SIM118
            if name in file.aliases:
                tensors.append(of_json({"kind": "alias", "name": "v", "target": "w"}))
                continue
            fields = {"dtype": file.dtype(name), "kind": "dense", "name": name}
            fields |= {"shape": list(file.shape(name)), "values": of(file.tensor(name).tobytes())}
            if name in file.masked_keys():
                fields |= {"kind": "masked", "mask": of(file.packed_mask(name).tobytes())}
            tensors.append(of_json(fields))
    model = {"inference_only": False, "manifest": None, "tensors": tensors}
    assert found == {of_json(model)}


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("used", [False, True])
def test_damage_is_found(used: bool) -> None:
    stored = StoredPrototype(np.arange(40, dtype="<f4"), "float32", whole=True)
    prototypes = (stored,) if used else (SEEDED, stored)  # whose section is the last one
    data = bytearray(data_of(some_contents(prototypes=prototypes)))
    pemncodec.digest(bytes(data))
    data[-3] ^= 1
    with pytest.raises(DecodeError) as caught:
        pemncodec.digest(bytes(data))
    assert caught.value.code == "checksum"


def test_the_digest_of_a_prototype_is_that_of_the_spec() -> None:
    values = np.array([1.5, -2.0, 0.25], "<f4")
    piece = hashlib.sha256(hashlib.sha256(values.tobytes()).digest()).hexdigest()
    text = f'{{"dtype":"float32","kind":"prototype","length":3,"values":"{piece}"}}'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert hashes.prototype_digest("float32", values) == expected


def test_an_open_file_and_progress() -> None:
    shares: list[float] = []
    with pemncodec.open(data_of(some_contents())) as file:
        assert pemncodec.digest(file) == DIGEST
        assert digests.file_digest(file, shares.append) == DIGEST
    assert shares == sorted(shares)
    assert shares[-1] == 1
    with pemncodec.open(data_of(Contents((), (dense("none", np.zeros((0, 3), "<f4")),)))) as file:
        digests.file_digest(file, shares.append)
    assert shares[-1] == 0


@pytest.mark.parametrize("threads", [0, -1, True])
def test_threads_are_checked(threads: Any) -> None:
    with pytest.raises(ValueError, match="threads"):
        pemncodec.digest(data_of(some_contents()), threads=threads)
