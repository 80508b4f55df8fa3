"""`pemn report`: the same numbers on the terminal, as JSON, as CSV and on a page."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from test_cli import ARCH, EXAMPLE, fails, pemn
from torch import nn

import pemncodec

HOSTILE = '<script>alert("x")</script>&amp;'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.pemn, an official-style checkpoint, a dense file, and one with a hostile name."""
    path = tmp_path_factory.mktemp("models")
    assert pemn("encode", EXAMPLE, *ARCH, "-o", "net.pemn", cwd=path).returncode == 0
    torch.manual_seed(0)
    weight, scores = torch.randn(2, 60, 40)
    torch.save({"fc.weight": weight, "fc.scores": scores, "fc.bias": torch.ones(60)}, path / "a.pt")
    safetensors.torch.save_file(nn.Linear(40, 60).state_dict(), path / "dense.safetensors")
    state = {HOSTILE: weight}
    pemncodec.encode(state, path / "<b>&.pemn", masks={HOSTILE: scores > 0}, manifest=False)
    return path


def test_numbers_agree_in_every_form(folder: Path, tmp_path: Path) -> None:
    names = ["net.pemn", "a.pt", "<b>&.pemn"]
    paths = [folder / name for name in names]
    result = pemn("report", *paths, "--keep", "0.3", "--json", "--csv", "r.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    models = json.loads(result.stdout)["models"]
    assert [model["name"] for model in models] == names
    net = models[0]
    assert net["file_bytes"] == net["info"]["file_bytes"] == (folder / "net.pemn").stat().st_size
    assert net["paper_bytes"] == 85760 // 8 + 4 * 17
    assert net["alternatives"]["safetensors"] == 365_872
    assert net["alternatives"]["packed masks + fp32"] == 29_292
    assert models[1]["info"]["masked_weights"] == 2400
    assert models[1]["file_bytes"] == (folder / "a.pt").stat().st_size
    with (tmp_path / "r.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["model"] for row in rows] == names
    for row, model in zip(rows, models, strict=True):
        assert int(row[".pemn"]) == model["info"]["file_bytes"]
        parts = ("header", "manifest", "prototype", "dense", "mask")
        assert sum(int(row[part]) for part in parts) == int(row[".pemn"])
    table = pemn("report", *paths, "--keep", "0.3", cwd=tmp_path).stdout.decode()
    assert "net.pemn" in table
    assert f"{net['info']['file_bytes']:,}" in table


def test_without_keep_a_checkpoint_is_the_dense_model_it_is(folder: Path, tmp_path: Path) -> None:
    result = pemn("report", folder / "dense.safetensors", "--json", cwd=tmp_path)
    (model,) = json.loads(result.stdout)["models"]
    assert model["info"] is None
    assert model["alternatives"]["safetensors"] == (folder / "dense.safetensors").stat().st_size
    assert "packed masks + fp32" not in model["alternatives"]


def test_checkpoints_that_say_their_masks_are_encoded(folder: Path, tmp_path: Path) -> None:
    paths = [EXAMPLE, folder / "a.pt", folder / "dense.safetensors"]
    for options, encoded in (([], [True, False, False]), (["--keep", "0.3"], [True, True, False])):
        result = pemn("report", *paths, *options, "--json", cwd=tmp_path)
        models = json.loads(result.stdout)["models"]
        assert [model["info"] is not None for model in models] == encoded
    assert models[0]["info"]["mask_bytes"] < models[0]["info"]["order0_bytes"]


def page(folder: Path, tmp_path: Path) -> Path:
    paths = [folder / name for name in ("net.pemn", "<b>&.pemn", "dense.safetensors")]
    result = pemn("report", *paths, "--html", "r.html", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    return tmp_path / "r.html"


def test_the_page_needs_nothing_and_runs_nothing(folder: Path, tmp_path: Path) -> None:
    text = page(folder, tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|<img|<iframe|url\(|https?:|\son\w+=", text)
    assert html.escape("<b>&.pemn") in text
    assert html.escape(f"…{HOSTILE[-27:]}") in text
    assert text.count("<svg") >= 6


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_the_page(folder: Path, tmp_path: Path, dark: bool) -> None:
    picture = tmp_path / "page.png"
    mode = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *mode,
         "--window-size=1000,2000", f"--screenshot={picture}", f"--user-data-dir={tmp_path / 'u'}",
         page(folder, tmp_path).as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(picture) as image:
        pixels = image.convert("L")
        background, histogram = pixels.getpixel((2, 2)), pixels.histogram()
    assert isinstance(background, int | float)
    assert (background < 60) == dark
    assert sum(histogram[60:200]) > 20_000  # bars
    assert sum(histogram[:60] if not dark else histogram[200:]) > 2_000  # text


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["nobody.pemn"], 1, "nobody.pemn"),
        (["broken.pemn"], 1, "broken.pemn"),
        (["broken.pt"], 1, "broken.pt"),
        (["scored.pt", "--keep", "2"], 2, "keep"),
        (["plain.safetensors", "--csv", "there.csv"], 2, "there.csv"),
        (["plain.safetensors", "--html", "nowhere/r.html"], 2, "nowhere"),
        (["plain.safetensors", "--html", "plain.safetensors", "-f"], 2, "input"),
        (["plain.safetensors", "--csv", "-"], 2, "--csv"),
    ],
)
def test_bad_input(
    folder: Path, tmp_path: Path, arguments: list[str], status: int, word: str
) -> None:
    shutil.copy(folder / "dense.safetensors", tmp_path / "plain.safetensors")
    shutil.copy(folder / "a.pt", tmp_path / "scored.pt")
    (tmp_path / "broken.pemn").write_bytes((folder / "net.pemn").read_bytes()[:-9])
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    (tmp_path / "there.csv").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    fails(pemn("report", *arguments, cwd=tmp_path), status, word)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "there.csv").read_text() == "mine"
