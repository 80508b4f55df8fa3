"""A file → torch.export, ONNX, ExecuTorch: what is exported computes what the file decodes to."""

from __future__ import annotations

import io
import runpy
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import random_masks, small_net
from test_architectures import TOKENS, Grown

import pemncodec
from pemncodec import ExportError
from pemncodec.cli import cli
from pemncodec.export import to_executorch, to_onnx, to_program, to_pt2

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROOT = Path(__file__).parent.parent


@pytest.fixture
def net(tmp_path: Path) -> Path:
    model = small_net()
    path = tmp_path / "net.pemn"
    pemncodec.encode(model, path, masks=random_masks(model), example_inputs=IMAGES)
    return path


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    model = Grown().eval()
    path = tmp_path / "tagger.pemn"
    pemncodec.encode(
        model, path, masks=random_masks(model), example_inputs=TOKENS, dynamic_axes=[[1]]
    )
    return path


def test_program(net: Path, tagger: Path) -> None:
    for path, inputs in ((net, IMAGES), (tagger, TOKENS[:, :4])):
        module, program = pemncodec.decode(path), to_program(path)
        for batch in (2, 5):
            assert torch.equal(program.module()(inputs[:batch]), module(inputs[:batch]))


def test_pt2(net: Path, tmp_path: Path) -> None:
    to_pt2(net, tmp_path / "net.pt2", batch=1)
    program = torch.export.load(tmp_path / "net.pt2")
    assert torch.equal(program.module()(IMAGES[:1]), pemncodec.decode(net)(IMAGES[:1]))


def test_onnx(net: Path, tagger: Path) -> None:
    pytest.importorskip("onnxscript", reason="ONNX export needs onnx and onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="runs what was exported")
    for path, inputs in ((net, IMAGES), (tagger, TOKENS[:, :4])):
        stream = io.BytesIO()
        to_onnx(path, stream)
        session = runtime.InferenceSession(stream.getvalue())
        (name,) = (given.name for given in session.get_inputs())
        module = pemncodec.decode(path)
        for batch in (2, 5):
            (actual,) = session.run(None, {name: inputs[:batch].numpy()})
            expected = module(inputs[:batch]).detach().numpy()
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_exports_name_no_files_of_this_machine(net: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript", reason="ONNX export needs onnx and onnxscript")
    path = tmp_path / f"net{suffix}"
    (to_pt2 if suffix == ".pt2" else to_onnx)(net, path)
    parts = [path.read_bytes()]
    if suffix == ".pt2":
        with zipfile.ZipFile(path) as archive:
            parts += [archive.read(name) for name in archive.namelist()]
    assert not any(b".py" in part for part in parts)


def test_executorch(net: Path) -> None:
    pytest.importorskip("executorch", reason="ExecuTorch is not installed")
    runtime = pytest.importorskip("executorch.runtime", reason="ExecuTorch has no runtime here")
    images, expected = IMAGES[:1], pemncodec.decode(net)(IMAGES[:1])
    for packed in (False, True):
        stream = io.BytesIO()
        to_executorch(net, stream, batch=1, packed=packed)
        assert stream.getvalue()[4:8] == b"ET12"
        method = runtime.Runtime.get().load_program(stream.getvalue()).load_method("forward")
        torch.testing.assert_close(method.execute([images])[0], expected)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".safetensors", ".pt"])
def test_command(net: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == ".onnx" and find_spec("onnxscript") is None:
        pytest.skip("ONNX export needs onnx and onnxscript")
    target = tmp_path / f"out{suffix}"
    result = CliRunner().invoke(cli, ["decode", str(net), "-o", str(target)])
    assert result.exit_code == 0, result.output
    assert target.stat().st_size > 1000
    again = CliRunner().invoke(cli, ["decode", str(net), "-o", str(target)])
    assert again.exit_code != 0
    assert "-f overwrites it" in again.output


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["-o", "net.tflite"], "must end in .safetensors, .pt, .pth, .pt2, .onnx, .pte"),
        (["-o", "net.pt2", "--device", "cuda"], "--device is for state dicts"),
        (
            ["-o", "net.pt", "--batch", "1"],
            "net.pt becomes a state dict: --batch is for networks (.pt2, .onnx, .pte)",
        ),
        (
            ["-o", "net.safetensors", "--packed", "--trust", "a:b"],
            "net.safetensors becomes a state dict: --packed and --trust are for networks",
        ),
        (["-o", "net.pt2", "--batch", "0"], "--batch"),
    ],
)
def test_options_that_do_not_fit(
    net: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], cause: str
) -> None:
    monkeypatch.chdir(net.parent)
    result = CliRunner().invoke(cli, ["decode", "net.pemn", *options])
    assert result.exit_code == 2
    assert cause in result.output
    assert [path.name for path in net.parent.iterdir()] == ["net.pemn"]


@pytest.mark.parametrize(
    ("write", "package", "packages"),
    [(to_onnx, "onnxscript", "onnx onnxscript"), (to_executorch, "executorch", "executorch")],
)
def test_what_is_not_installed_is_named(
    net: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[..., None],
    package: str,
    packages: str,
) -> None:
    monkeypatch.setattr(
        "pemncodec.export.program.find_spec",
        lambda name: None if name == package else find_spec("json"),
    )
    with pytest.raises(ExportError, match=f"needs {package}: pip install {packages}$"):
        write(net, net.with_suffix(".out"))
    assert not net.with_suffix(".out").exists()


def test_files_that_cannot_be_exported(net: Path, tmp_path: Path) -> None:
    path = tmp_path / "tensors.pemn"
    model = small_net()
    pemncodec.encode(model, path, masks=random_masks(model), manifest=False)
    with pytest.raises(pemncodec.ManifestError, match="no architecture"):
        to_program(path)
    with pytest.raises(ExportError, match="at least one"):
        to_program(net, batch=0)


def test_mobile_export(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason="ONNX export needs onnx and onnxscript")
    script = str(ROOT / "examples" / "mobile_export.py")

    def export(source: Path, folder: str) -> str | None:
        monkeypatch.setattr("sys.argv", [script, str(source), str(tmp_path / folder)])
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            return str(end.code)
        return None

    assert export(net, "out") is None
    printed = capsys.readouterr().out
    tensors = tmp_path / "tensors.pemn"
    with pemncodec.open(net) as file:
        pemncodec.encode(file, tensors, manifest=False)
    for bad, cause in ((tensors, "no architecture"), (tmp_path / "none.pemn", "No such file")):
        refused = export(bad, "no")
        assert refused is not None
        assert cause in refused
        assert "\n" not in refused
        assert not (tmp_path / "no").exists()
    assert (tmp_path / "out" / "net.onnx").stat().st_size > 1000
    assert (tmp_path / "out" / "net.packed.onnx").stat().st_size > 1000
    if find_spec("executorch") is None:
        assert "pip install executorch" in printed
