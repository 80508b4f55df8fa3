"""The conformance vectors of spec/vectors, through this package and the reference decoder."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

import pemncodec
from pemncodec.errors import ErrorCode

SPEC = Path(__file__).parent.parent / "spec"
VECTORS = SPEC / "vectors"
INDEX: list[dict[str, Any]] = json.loads((VECTORS / "index.json").read_text(encoding="utf-8"))
VALID = [pytest.param(entry, id=entry["name"]) for entry in INDEX if "tensors" in entry]
INVALID = [pytest.param(entry, id=entry["name"]) for entry in INDEX if "error" in entry]


@pytest.mark.parametrize("entry", VALID)
def test_valid(entry: dict[str, Any]) -> None:
    with pemncodec.open(VECTORS / entry["file"]) as file:
        file.verify()
        tensors = {
            name: {
                "dtype": file.dtype(name),
                "shape": list(file.shape(name)),
                "crc32": f"{zlib.crc32(file.tensor(name).tobytes()):08x}",
            }
            for name in file.keys()  # noqa: SIM118
        }
    assert list(tensors.items()) == list(entry["tensors"].items())


@pytest.mark.parametrize("entry", INVALID)
def test_invalid(entry: dict[str, Any]) -> None:
    def verify() -> None:
        with pemncodec.open(VECTORS / entry["file"]) as file:
            file.verify()

    with pytest.raises(pemncodec.DecodeError) as caught:
        verify()
    assert caught.value.code == entry["error"], caught.value


@pytest.mark.parametrize("entry", VALID)
def test_reference_decoder_reads_valid(entry: dict[str, Any], reference: ModuleType) -> None:
    decoded = reference.Decoder((VECTORS / entry["file"]).read_bytes())
    with pemncodec.open(VECTORS / entry["file"]) as file:
        assert decoded.manifest == file.manifest
        assert decoded.metadata == file.metadata
    assert {
        name: {"dtype": dtype, "shape": shape, "crc32": f"{zlib.crc32(data):08x}"}
        for name, (dtype, shape, data) in decoded.tensors.items()
    } == entry["tensors"]


@pytest.mark.parametrize("entry", INVALID)
def test_reference_decoder_refuses_invalid(entry: dict[str, Any], reference: ModuleType) -> None:
    data = (VECTORS / entry["file"]).read_bytes()
    with pytest.raises(reference.PemnError) as caught:
        reference.Decoder(data)
    assert caught.value.code == entry["error"], caught.value


def test_corpus_is_whole() -> None:
    assert len(VALID) >= 60
    assert len(INVALID) >= 120
    assert {entry["file"] for entry in INDEX} == {path.name for path in VECTORS.glob("*.pemn")}
    assert len({entry["name"] for entry in INDEX}) == len(INDEX)
    codes = {entry["error"] for entry in INDEX if "error" in entry}
    assert codes == {
        code for code in get_args(ErrorCode) if not code.startswith(("manifest-", "no-"))
    }


def test_vectors_are_small() -> None:
    sizes = [path.stat().st_size for path in VECTORS.glob("*.pemn")]
    assert max(sizes) < 1 << 16
    assert sum(sizes) < 1 << 18


def test_worked_example_of_the_spec(reference: ModuleType) -> None:
    text = (SPEC / "pemn.md").read_text(encoding="utf-8").partition("## Appendix A")[2]
    rows = [line.split() for line in text.splitlines() if line.startswith("    00")]
    data = bytes.fromhex("".join("".join(row[1:]) for row in rows))
    tensors = reference.Decoder(data).tensors
    assert {name: zlib.crc32(items) for name, (_, _, items) in tensors.items()} == {
        "weight": 0x0929AC65,
        "bias": 0x5109F6FE,
    }
