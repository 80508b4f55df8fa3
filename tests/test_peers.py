"""Codecs of others, by stand-ins, since they are no dependencies: what is ours around them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Run

from pemncodec.report.form import FormBytes, largest_error, network_of
from pemncodec.report.forms import measure_forms

STATE = {
    "a.weight": torch.linspace(-1, 1, 600).reshape(20, 30).t(),
    "a.steps": torch.tensor(7),
    "a.bias": torch.zeros(5),
}
ZIPNN = """
import zlib
class ZipNN:
    def __init__(self, *, input_format, bytearray_dtype):
        assert (input_format, bytearray_dtype) == ("byte", "float32")
    def compress(self, data):
        data[:] = zlib.compress(bytes(data))
        return data
    def decompress(self, data):
        return bytearray(zlib.decompress(bytes(data)))
"""
NNCODEC = """
import pathlib, pickle
print("nncodec says hello")
def encode(model, args):
    assert all(array.ndim and array.dtype.name in ("float32", "int32") for array in model.values())
    pathlib.Path(args["results"], "bitstream.nnc").write_bytes(b"")
    return bytearray(pickle.dumps({name: array.round(1) for name, array in model.items()}))
def decode(bitstream):
    return pickle.loads(bitstream)
"""
CODED, LOSSY = "safetensors_zipnn", "nncodec"


def peers() -> tuple[dict[str, FormBytes], dict[str, str]]:
    forms, failures = measure_forms(network_of(STATE))
    return {key: made for key, made in forms.items() if key in (CODED, LOSSY)}, failures


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that modules are found in, with both peers."""
    folder = tmp_path / "site"
    (folder / "nncodec").mkdir(parents=True)
    (folder / "zipnn.py").write_text(ZIPNN)
    (folder / "nncodec" / "__init__.py").write_text("")
    (folder / "nncodec" / "nn.py").write_text(NNCODEC)
    monkeypatch.syspath_prepend(folder)
    return folder


def test_forms_are_measured_and_compared(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    forms, failures = peers()
    assert list(forms) == [CODED, LOSSY]
    assert 0 < forms[CODED].bytes < 4 * 600
    assert forms[CODED].error == 0
    assert 0.04 < forms[LOSSY].error < 0.06
    assert failures == {}
    assert not list(here.iterdir())
    assert installed.exists()


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("raise ImportError('no core')", "zipnn: ImportError: no core"),
        ("import sys; sys.exit(0)", "zipnn: exit status 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "zipnn was stopped by signal"),
        ("import sys; sys.exit('\\x1b[2Jno licence')", "no licence"),
        (ZIPNN.replace("decompress(bytes(data))", "decompress(bytes(data))[1:]"), "give back"),
        (ZIPNN.replace("zlib.compress", "len"), "zipnn: TypeError"),
    ],
)
def test_a_broken_peer_costs_its_own_row(installed: Path, code: str, failure: str) -> None:
    (installed / "zipnn.py").write_text(code)
    shutil.rmtree(installed / "nncodec")
    forms, failures = peers()
    assert forms == {}
    assert list(failures) == [CODED]
    assert failure in failures[CODED]


def test_the_report_has_a_row_for_each(run: Run, installed: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.linspace(-7e4, 7e4, 99)}, tmp_path / "m.pt")
    (installed / "zipnn.py").write_text("raise ImportError('\\x1b[2Jno core')")
    result = run("report", "m.pt", "--json")
    assert result.returncode == 0
    (model,) = json.loads(result.stdout)["models"]
    assert model["forms"][LOSSY]["bytes"] > 0
    assert [key for key, form in model["forms"].items() if form["error"]] == [LOSSY]
    assert list(model["failures"]) == ["safetensors_fp16", CODED]
    assert not {CODED, "safetensors_fp16"} & set(model["forms"])
    said = result.stderr.decode()
    assert "m.pt: no safetensors + zipnn: zipnn: ImportError: \\x1b[2Jno core" in said
    assert "m.pt: no safetensors fp16: a value became infinite" in said
    table = run("report", "m.pt", "--forms", LOSSY).stdout.decode()
    assert "nncodec qp -32 (lossy): error" in table


def test_errors_are_relative_to_the_largest_of_their_tensor() -> None:
    inf, nan = torch.inf, torch.nan
    for before, after, error in (
        ([1, -4, 2], [1, -4, 2], 0),
        ([1, -4, 2], [1, -3, 2], 0.25),
        ([0, 0], [0, 1], inf),
        ([0, nan, inf, -inf], [0, nan, inf, -inf], 0),
        ([1, 2], [1, nan], inf),
        ([1, 7e4], [1, inf], inf),
        ([inf, 4], [inf, 2], 0.5),
        ([], [], 0),
    ):
        assert largest_error([(torch.tensor(before), torch.tensor(after))]) == error
