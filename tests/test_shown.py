"""What prompts, notebooks, logs and terminals show."""

from __future__ import annotations

import io
import json
import logging
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MaskedNet, Run, fails, random_masks
from torch import nn

import pemncodec

ROOT = Path(__file__).parent.parent


@pytest.fixture
def net(small: MaskedNet, tmp_path: Path) -> Path:
    path = tmp_path / "net.pemn"
    small.encode(path, preset="fast")
    return path


# ------------------------------------------------------------------------ prompts and notebooks


def test_an_open_file_in_a_prompt(net: Path, small: MaskedNet) -> None:
    with pemncodec.open(net) as file:
        size = net.stat().st_size
        assert repr(file) == (
            f"<PemnFile {str(net)!r}: {size:,} bytes, 10 tensors, 3 of them masked, "
            "an architecture>"
        )
        html = file._repr_html_()
    assert repr(file) in repr(file)  # of a closed file, too
    assert "<td>0.weight</td><td>masked</td><td>float32</td><td>4×3×3×3</td>" in html
    assert "<td>1.num_batches_tracked</td><td>dense</td><td>int64</td><td>scalar</td>" in html
    written = io.BytesIO()
    small.encode(written, manifest=False)
    assert "3 of them masked, no architecture>" in repr(pemncodec.open(written))


def test_names_of_a_file_are_escaped_in_a_notebook(tmp_path: Path) -> None:
    state = {"<b>.weight": torch.randn(4, 4), "tied": torch.zeros(2)}
    masks = {"<b>.weight": torch.rand(4, 4) > 0.5}
    state["same"] = state["tied"]
    path = tmp_path / "<i>.pemn"
    pemncodec.encode(state, path, masks=masks, manifest=False)
    with pemncodec.open(path) as file:
        html = file._repr_html_()
    assert "<b>" not in html
    assert "<i>" not in html
    assert "&lt;b&gt;.weight" in html
    assert "<td>same as tied</td>" in html


def test_a_long_file_is_cut_in_a_notebook() -> None:
    state = {f"{n}.weight": torch.randn(4, 4) for n in range(150)}
    masks = {name: torch.rand(4, 4) > 0.5 for name in state}
    written = io.BytesIO()
    pemncodec.encode(state, written, masks=masks, manifest=False)
    html = pemncodec.open(written)._repr_html_()
    assert html.count("<tr>") == 102
    assert "<td>and 50 more</td>" in html


def test_a_report_in_a_prompt(small: MaskedNet) -> None:
    report = small.encode(io.BytesIO(), fold_bn=True, dense="q8", accuracy=lambda _: 0.5)
    lines = str(report).splitlines()
    assert lines[0].startswith(f"{report.info.file_bytes:,} bytes, ")
    assert lines[0].endswith(f"than {report.info.dense_model_bytes:,} bytes of plain tensors")
    assert any(line.startswith("verified: as shortened, every tensor") for line in lines)
    assert "accuracy: 0.5 before, 0.5 after" in lines
    assert max(len(line) for line in lines) < 200
    assert repr(report) == f"<Report: {lines[0]}; verified: {report.verified}>"
    assert repr(report.info) == f"<FileInfo: {lines[0]}>"
    html = report._repr_html_()
    assert html.startswith(report.info._repr_html_())
    assert f"<td>mask</td><td>{report.info.mask_bytes:,}</td>" in html
    assert "accuracy: 0.5 before" in html


def test_a_small_file_is_larger_than_its_tensors() -> None:
    written = io.BytesIO()
    masks = {"weight": torch.tensor([[True, False]])}
    report = pemncodec.encode({"weight": torch.ones(1, 2)}, written, masks=masks, manifest=False)
    assert "bytes, larger than 8 bytes of plain tensors" in str(report)


# ------------------------------------------------------------------------------ logs, progress


def test_what_is_logged(small: MaskedNet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="pemncodec"):
        report = small.encode(tmp_path / "net.pemn")
        pemncodec.decode(tmp_path / "net.pemn")
        pemncodec.load_state_dict(tmp_path / "net.pemn")
    told = [(r.levelname, r.getMessage()) for r in caplog.records if r.name[:9] == "pemncodec"]
    steps = [text for level, text in told if level == "DEBUG"]
    assert steps[0] == "reading masks"
    assert "verifying" in steps
    assert sum(text.startswith("decoding <PemnFile ") for text in steps) == 2
    *notes, wrote = [text for level, text in told if level == "INFO"]
    assert notes == list(report.notes)
    assert wrote.startswith(f"wrote {tmp_path / 'net.pemn'}: <Report: ")


def test_nothing_is_printed_that_nobody_asked_for(tmp_path: Path) -> None:
    script = (
        "import pemncodec, torch; scores = torch.zeros(8, 8);"
        "state = {'a.weight': torch.ones(8, 8), 'a.scores': scores};"
        "report = pemncodec.encode(state, 'a.pemn', keep=0.5, manifest=False);"
        "assert report.notes"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=True,
        env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.stdout == run.stderr == b""


@pytest.mark.parametrize("manifest", [True, False])
def test_steps_tell_their_share(small: MaskedNet, manifest: bool) -> None:
    told: list[tuple[str, float | None]] = []
    small.encode(
        io.BytesIO(), manifest=manifest, progress=lambda name, share: told.append((name, share))
    )
    steps = ["looking for prototypes", "coding", "verifying"]
    if manifest:
        steps += ["describing the architecture", "comparing outputs"]
    for step in steps:
        shares = [share for name, share in told if name == step and share is not None]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert all(0 <= share <= 1 for share in shares)
    assert len([share for name, share in told if name == "verifying"]) > 5
    assert len([share for name, share in told if name[:10] == "describing"]) >= 8 * manifest
    assert len([share for name, share in told if name[:9] == "comparing"]) == 4 * manifest
    names = [name for name, _ in told]
    assert names.index("verifying") > names.index("coding") > names.index("looking for prototypes")


def test_verify_tells_its_share(net: Path) -> None:
    shares: list[float] = []
    with pemncodec.open(net) as file:
        file.verify(shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


# ------------------------------------------------------------------------------- command line


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    torch.save({"fc.weight": torch.randn(64, 64), "fc.scores": torch.randn(64, 64)}, path)
    return path


ENCODE = ("encode", "model.pt", "--keep", 0.5, "--no-manifest")


@pytest.mark.usefixtures("checkpoint")
def test_metadata_of_the_command_line(run: Run, tmp_path: Path) -> None:
    given = ("--metadata", "author=A. B.", "--metadata", "run=lr=0.1 ü", "--metadata", "empty=")
    result = run(*ENCODE, *given, "-o", "net.pemn")
    assert result.returncode == 0, result.stderr
    assert "author: A. B." in result.stdout.decode()
    with pemncodec.open(tmp_path / "net.pemn") as file:
        assert file.metadata == {"author": "A. B.", "run": "lr=0.1 ü", "empty": ""}


@pytest.mark.usefixtures("checkpoint")
@pytest.mark.parametrize(
    ("given", "cause"),
    [
        (["author"], "'author' is not KEY=VALUE"),
        (["=x"], "'=x' is not KEY=VALUE"),
        (["a=1", "a=2"], "two values for a"),
        (["a=\udcff"], "must be text"),
    ],
)
def test_metadata_that_is_none(run: Run, given: list[str], cause: str) -> None:
    options = [word for value in given for word in ("--metadata", value)]
    fails(run(*ENCODE, *options), 2, "metadata", cause)


@pytest.mark.usefixtures("checkpoint", "net")
def test_every_command_that_prints_can_print_json(run: Run) -> None:
    def told(*arguments: Any) -> dict[str, Any]:
        result = run(*arguments, "--json", "-q")
        assert result.returncode == 0, result.stderr
        assert result.stderr == b""
        return json.loads(result.stdout)

    assert told("decode", "net.pemn", "-o", "net.pt") == {"output": "net.pt", "tensors": 10}
    assert told("verify", "net.pemn") == {
        "file": "net.pemn", "valid": True, "tensors": 10, "against": None, "shortened": {},
    }  # fmt: skip
    assert told(*ENCODE, "-o", "two.pemn")["file_bytes"] > 0
    against = told("verify", "two.pemn", "--against", "model.pt", "--keep", 0.5)
    assert against["against"] == "model.pt"


@pytest.mark.usefixtures("net")
def test_json_stays_out_of_what_is_written_to_standard_output(run: Run) -> None:
    result = run("decode", "net.pemn", "-o", "-", "--json")
    assert json.loads(result.stderr) == {"output": "-", "tensors": 10}
    assert b'"output"' not in result.stdout


# -------------------------------------------------------------------------------- full disks


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


# Code that is compiled under the limit would be cut on its way to the disk.
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def limited_pemn(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "pemncodec", *map(str, arguments)],
        cwd=cwd, capture_output=True, check=False, preexec_fn=limited, env=ENVIRONMENT,
    )  # fmt: skip


@pytest.mark.usefixtures("checkpoint", "net")
def test_a_file_that_has_no_room_is_named(tmp_path: Path) -> None:
    cases = [
        ((*ENCODE, "-o", "out.pemn"), "out.pemn"),
        (("decode", "net.pemn", "-o", "out.pt"), "out.pt"),
    ]
    for arguments, name in cases:
        fails(limited_pemn(*arguments, cwd=tmp_path), 1, f"{name}: File too large")
        assert not (tmp_path / name).exists()
    assert not list(tmp_path.glob(".pemn-*"))


@pytest.mark.usefixtures("checkpoint", "net")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_device_is_named(run: Run, tmp_path: Path) -> None:
    fails(run(*ENCODE, "-o", "/dev/full", "-f"), 1, "/dev/full: No space left on device")
    for arguments in (("decode", "net.pemn", "-o", "-"), ("inspect", "net.pemn")):
        with Path("/dev/full").open("wb") as full:
            result = subprocess.run(
                [sys.executable, "-m", "pemncodec", *map(str, arguments)],
                cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, check=False,
                env=ENVIRONMENT,
            )  # fmt: skip
        fails(result, 1, "standard output: No space left on device")


def test_python_names_a_file_that_has_no_room() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    model = nn.Linear(64, 64)
    with pytest.raises(OSError, match="No space left") as caught:
        pemncodec.encode(model, "/dev/full", masks=random_masks(model))
    assert caught.value.filename == "/dev/full"
