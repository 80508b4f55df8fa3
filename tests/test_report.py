"""`pemn report`: the same numbers for people, papers and programs."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import safetensors.torch
import torch
from conftest import MaskedNet, Run, fails, pemn_process, pruned_net
from PIL import Image
from test_cli import ARCH, EXAMPLE
from torch import nn

import pemncodec
from pemncodec.report import forms as forms_module
from pemncodec.report.columns import COLUMNS
from pemncodec.report.form import Form, FormBytes, Network
from pemncodec.report.forms import FORMS

HOSTILE = '<script>alert("x")</script>&amp;'
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.pemn, an official-style checkpoint, a dense file, and one with a hostile name."""
    path = tmp_path_factory.mktemp("models")
    assert pemn_process("encode", EXAMPLE, *ARCH, "-o", "net.pemn", cwd=path).returncode == 0
    torch.manual_seed(0)
    weight, scores = torch.randn(2, 60, 40)
    torch.save({"fc.weight": weight, "fc.scores": scores, "fc.bias": torch.ones(60)}, path / "a.pt")
    safetensors.torch.save_file(nn.Linear(40, 60).state_dict(), path / "dense.safetensors")
    state = {HOSTILE: weight}
    pemncodec.encode(state, path / "<b>&.pemn", masks={HOSTILE: scores > 0}, manifest=False)
    return path


@pytest.fixture
def models(run: Run) -> Callable[..., list[dict[str, object]]]:
    """What `pemn report --json` says of each model."""

    def call(*arguments: object) -> list[dict[str, object]]:
        result = run("report", *arguments, "--json")
        assert result.returncode == 0, result.stderr.decode()
        return json.loads(result.stdout)["models"]

    return call


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_numbers_agree_in_every_form(folder: Path, run: Run, tmp_path: Path) -> None:
    names = ["net.pemn", "a.pt", "<b>&.pemn"]
    paths = [folder / name for name in names]
    result = run("report", *paths, "--keep", "0.3", "--json", "--csv", "r.csv")
    assert result.returncode == 0, result.stderr
    models = json.loads(result.stdout)["models"]
    assert [model["name"] for model in models] == names
    net = models[0]
    assert net["file_bytes"] == net["info"]["file_bytes"] == (folder / "net.pemn").stat().st_size
    assert net["paper_bytes"] == 85760 // 8 + 4 * 17
    assert net["forms"]["safetensors"]["bytes"] == 365_872
    assert net["forms"]["packed_masks"]["bytes"] == 29_292
    assert net["forms"]["csr"]["bytes"] == 387_714
    assert net["keep"] == 0.5
    assert models[1]["info"]["masked_weights"] == 2400
    assert models[1]["keep"] == 0.3
    assert models[1]["file_bytes"] == (folder / "a.pt").stat().st_size
    table = rows(tmp_path / "r.csv")
    assert [row["model"] for row in table] == names
    for row, model in zip(table, models, strict=True):
        assert int(row["pemn_bytes"]) == model["info"]["file_bytes"]
        parts = ("header", "manifest", "prototype", "dense", "mask")
        assert sum(int(row[f"{part}_bytes"]) for part in parts) == int(row["pemn_bytes"])
        assert int(row["safetensors_bytes"]) == model["forms"]["safetensors"]["bytes"]
        smaller = int(row["safetensors_bytes"]) / (
            int(row["pemn_bytes"]) - int(row["manifest_bytes"])
        )
        assert float(row["times_smaller"]) == smaller
    shown = run("report", *paths, "--keep", "0.3").stdout.decode()
    assert "net.pemn" in shown
    assert f"{net['info']['file_bytes']:,}" in shown


def test_csv_has_names_for_code_and_the_same_for_every_model(
    folder: Path, run: Run, tmp_path: Path
) -> None:
    for number, name in enumerate(("net.pemn", "dense.safetensors")):
        assert run("report", folder / name, "--csv", f"{number}.csv").returncode == 0
    heads = [(tmp_path / f"{n}.csv").read_text().partition("\n")[0].split(",") for n in range(2)]
    assert heads[0] == heads[1] == [*(column.key for column in COLUMNS), "estimated"]
    assert all(key.isidentifier() for key in heads[0])
    (dense,) = rows(tmp_path / "1.csv")
    assert dense["pemn_bytes"] == dense["keep"] == dense["csr_bytes"] == ""


# ----------------------------------------------------------------------- which masks, which keep


def test_scores_need_keep_as_in_encode(folder: Path, run: Run) -> None:
    why = "a.pt: the checkpoint holds scores but not the keep ratio: give --keep, such as "
    why += "0.5"
    result = run("report", folder / "net.pemn", folder / "a.pt")
    fails(result, 2, f"{why}, or --keep-of a.pt=0.5 for this file")
    result = run("report", folder / "a.pt")
    fails(result, 2, why)
    assert b"--keep-of" not in result.stderr


def test_what_no_file_needs_is_said(folder: Path, run: Run) -> None:
    files = folder / "net.pemn", folder / "dense.safetensors"
    said = b"--keep and --rule: there are no scores to apply it to\n"
    assert run("report", *files, "--keep", "0.5", "--rule", "score").stderr == said
    assert b"--keep" not in run("report", *files, folder / "a.pt", "--keep", "0.5").stderr


def test_masks_are_found_as_in_encode(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, scores = torch.randn(2, 8, 6)
    torch.save({"m.fc.weight": weight, "m.fc.scores": scores}, tmp_path / "scores.pt")
    torch.save({"m.fc.weight": weight, "m.fc.own": scores, "head": scores}, tmp_path / "own.pt")
    torch.save({"m.fc.weight": weight * (scores > 0)}, tmp_path / "zeros.pt")
    torch.save({"fc.weight": scores > 1}, tmp_path / "masks.pt")
    for name, options, kept in (
        ("scores.pt", ["--rule", "above=0.5", "--prefix", "m."], scores > 0.5),
        ("own.pt", ["--scores-name", "own", "--keep", "0.25", "--prefix", "m."], None),
        ("zeros.pt", ["--masks-from", "zeros"], scores > 0),
        ("zeros.pt", ["--masks", "masks.pt", "--prefix", "m."], scores > 1),
    ):
        result = run("report", name, *options, "--json")
        assert result.returncode == 0, result.stderr
        (model,) = json.loads(result.stdout)["models"]
        assert model["info"]["masked_weights"] == 48
        assert model["keep"] == (
            0.25 if kept is None else pytest.approx(float(kept.float().mean()))
        )
    said = run("report", "zeros.pt").stderr.decode()
    assert said.startswith("zeros.pt: shown as a dense model: one of its tensors holds zeros: if ")
    assert "--masks-from zeros" in said


def test_a_checkpoint_without_masks_is_the_dense_model_it_is(
    folder: Path, models: Callable[..., list[dict[str, object]]]
) -> None:
    (model,) = models(folder / "dense.safetensors", "--keep", "0.3")
    assert model["info"] is model["keep"] is model["largest_error"] is None
    size = (folder / "dense.safetensors").stat().st_size
    assert model["forms"]["safetensors"]["bytes"] == size
    assert not {"packed_masks", "csr", "bitmask", "two_of_four"} & set(model["forms"])


def test_scores_under_a_name_of_their_own_are_no_weights_without_a_word(
    run: Run, tmp_path: Path
) -> None:
    weight, scores = torch.randn(2, 6, 4)
    torch.save({"fc.weight": weight, "fc.popups": scores}, tmp_path / "own.pt")
    torch.save({"fc.weight": weight, "fc.bias": scores[0]}, tmp_path / "dense.pt")
    result = run("report", "own.pt", "dense.pt", "--json")
    note = "shown as a dense model: if fc.popups are scores of fc.weight, give --scores-name popups"
    assert [note in "".join(m["notes"]) for m in json.loads(result.stdout)["models"]] == [
        True,
        False,
    ]
    said = result.stderr.decode()
    assert said.startswith(f"own.pt: {note}")
    assert said.count("\n") == 1


def test_ties_at_the_cut_are_told(run: Run, tmp_path: Path) -> None:
    torch.save({"w.weight": torch.randn(6, 4), "w.scores": torch.ones(6, 4)}, tmp_path / "tied.pt")
    result = run("report", "tied.pt", "--keep", "0.5")
    assert "tied.pt: 24 scores are equal where the cut goes between them" in result.stderr.decode()


def test_checkpoints_that_say_their_masks_are_encoded(
    models: Callable[..., list[dict[str, object]]], tmp_path: Path
) -> None:
    torch.save(pruned_net().state_dict(), tmp_path / "pruned.pt")
    example, pruned = models(EXAMPLE, "pruned.pt")
    assert example["info"]["mask_bytes"] < example["info"]["order0_bytes"]
    assert pruned["info"]["masked_weights"] == 3 * 4 * 9 + 4 * 4 * 9 + 3 * 4


def test_keep_of_single_files(
    folder: Path, models: Callable[..., list[dict[str, object]]], tmp_path: Path
) -> None:
    for name in ("b=c.pt", "b", "d.pt"):
        shutil.copy(folder / "a.pt", tmp_path / name)
    found = models(
        "b=c.pt", "b", tmp_path / "d.pt", folder / "a.pt",
        "--keep", "0.5", "--keep-of", "b=c.pt=0.25", "--keep-of", "d.pt=f*=0.125",
    )  # fmt: skip
    assert [model["keep"] for model in found] == [0.25, 0.5, 0.125, 0.5]
    twice = models("d.pt", "d.pt", "--keep-of", "d.pt=0.25")
    assert [model["keep"] for model in twice] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep-of", "e.pt=0.5"], "e.pt=0.5 is not FILE=SHARES"),
        (["--keep-of", "a.pt"], "a.pt is not FILE=SHARES"),
        (["--keep-of", "a.pt=half"], "'half' is not a valid float"),
        (["--keep-of", "a.pt=.5", "--keep-of", "a.pt=.5"], "twice for"),
        (["--keep-of", "a.pt=1.5"], "at most 1, not 1.5"),
        (["--keep", ".5", "--keep-of", "net.pemn=.5"], "net.pemn: a .pemn file has its masks"),
        (["--keep", ".5", "--keep-of", "dense.safetensors=.5"], "dense.safetensors: keep is given"),
        (["--keep", "0.5", "--keep", "0.3"], "--keep is given 2 times"),
        (["--forms", "csr,zip"], "unknown form 'zip', have torch_save, safetensors"),
        (["--columns", "keep,size"], "unknown column 'size', have model, accuracy"),
        (["--columns", "metadata."], "unknown column 'metadata.'"),
        (["--csv", "-", "--latex", "-"], "only one table"),
        (["--csv", "-", "--json"], "only one table"),
        (["--html", "-"], "--html writes a file"),
        (["--html", "same", "--latex", "same"], "same is named twice"),
    ],
)
def test_options_that_do_not_fit(folder: Path, run: Run, options: list[str], words: str) -> None:
    paths = [folder / name for name in ("net.pemn", "a.pt", "dense.safetensors")]
    fails(run("report", *paths, *options), 2, words)


@pytest.mark.parametrize("command", [["encode"], ["verify", "--against", "b.pt"]])
def test_keep_twice_is_an_error_everywhere(run: Run, command: list[str]) -> None:
    fails(run(*command, "a", "--keep", ".5", "--keep", ".5"), 2, "--keep is given 2 times")


# ------------------------------------------------------------------------------------- columns


def test_what_kind_of_file_it_is(small: MaskedNet, run: Run, tmp_path: Path) -> None:
    """Lossy, and by how much; inference only; with or without architecture; of which accuracy."""
    small.encode(tmp_path / "plain.pemn", metadata={"accuracy": "61.25", "seed": "7"})
    small.encode(tmp_path / "bare.pemn", manifest=False, metadata={"accuracy": "good"})
    short = small.encode(tmp_path / "short.pemn", dense="q8", fold_bn=True)
    keys = "architecture,inference_only,largest_error,accuracy,metadata.seed"
    names = ["plain.pemn", "bare.pemn", "short.pemn"]
    assert run("report", *names, "--columns", keys, "--csv", "r.csv").returncode == 0
    table = rows(tmp_path / "r.csv")
    assert list(table[0]) == ["model", *keys.split(","), "estimated"]
    error = max(tensor.relative_error for tensor in short.info.tensors)
    assert error > 0
    assert [list(row.values())[1:4] for row in table] == [
        ["True", "False", "0.0"],
        ["False", "False", "0.0"],
        ["True", "True", f"{error}"],
    ]
    assert [row["accuracy"] for row in table] == ["61.25", "good", ""]
    assert [row["metadata.seed"] for row in table] == ["7", "", ""]
    shown = run("report", *names).stdout.decode()
    assert f"{100 * error:.2g} %" in shown
    assert "lossless" in shown
    assert "61.25" in shown
    assert run("report", *names, "--html", "r.html").returncode == 0
    page = (tmp_path / "r.html").read_text()
    said = f"A .pemn file with its architecture, lossy, by up to {100 * error:.2g} % of"
    assert said in page
    assert "without architecture, lossless." in page
    assert "for inference only" in page


def test_columns_are_chosen_in_their_order(folder: Path, run: Run) -> None:
    columns = ["--columns", "times_smaller, pemn_bytes,model,pemn_bytes"]
    result = run("report", folder / "net.pemn", *columns, "--markdown", "-")
    head, _, row = result.stdout.decode().splitlines()
    assert head == "| model | times smaller | .pemn |"
    size = (folder / "net.pemn").stat().st_size
    assert row.startswith("| net.pemn | 14.")
    assert row.endswith(f" | **{size:,}** |")


def test_files_of_the_same_name_keep_their_folders(
    folder: Path, models: Callable[..., list[dict[str, object]]], tmp_path: Path
) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        shutil.copy(folder / "dense.safetensors", tmp_path / place / "x.safetensors")
    found = models("a/x.safetensors", "b/x.safetensors", folder / "net.pemn")
    assert [model["name"] for model in found] == ["a/x.safetensors", "b/x.safetensors", "net.pemn"]


def test_files_are_known_by_what_they_hold(folder: Path, run: Run, tmp_path: Path) -> None:
    shutil.copy(folder / "net.pemn", tmp_path / "net")
    data = (folder / "net.pemn").read_bytes()
    result = run("report", "net", "-", "--columns", "pemn_bytes", "--csv", "-", stdin=data)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode().splitlines() == [
        "model,pemn_bytes,estimated", f"net,{len(data)},", f"standard input,{len(data)},",
    ]  # fmt: skip


def test_pickled_modules_on_request(
    run: Run, models: Callable[..., list[dict[str, object]]], tmp_path: Path
) -> None:
    torch.save(nn.Linear(3, 2), tmp_path / "module.pt")
    fails(run("report", "module.pt"), 1, "module.pt: cannot load this", "--trust-pickle")
    (model,) = models("module.pt", "--trust-pickle")
    assert model["forms"]["safetensors"]["bytes"] > 4 * (3 * 2 + 2)


# --------------------------------------------------------------------------------------- forms


def test_pruned_networks_of_the_same_masks(
    models: Callable[..., list[dict[str, object]]], tmp_path: Path
) -> None:
    """Counted by hand: 5 × 6 float32 weights, 15 of them kept, and 3 biases in float16."""
    mask = torch.arange(30).reshape(5, 6) % 2 == 0
    state = {"w": torch.arange(1.0, 31).reshape(5, 6), "b": torch.ones(3, dtype=torch.float16)}
    pemncodec.encode(state, tmp_path / "half.pemn", masks={"w": mask}, manifest=False)
    mask[0] = False
    pemncodec.encode(state, tmp_path / "less.pemn", masks={"w": mask}, manifest=False)
    half, less = models("half.pemn", "less.pemn")
    assert half["forms"]["bitmask"]["bytes"] == 4 + 15 * 4 + 6
    # Five rows of two groups, each of two values and half a byte.
    assert half["forms"]["two_of_four"]["bytes"] == 10 * 2 * 4 + 5 + 6
    assert half["forms"]["packed_masks"]["bytes"] == 4 + 15 * 4 + 6
    assert less["forms"]["bitmask"]["bytes"] == 4 + 12 * 4 + 6
    assert "two_of_four" not in less["forms"]


def test_tied_tensors_count_once(
    models: Callable[..., list[dict[str, object]]], tmp_path: Path
) -> None:
    weight = torch.randn(50, 40)
    torch.save({"a": weight, "b": weight, "c": weight[:10]}, tmp_path / "tied.pt")
    torch.save({"a": weight.clone(), "c": weight[:10].clone()}, tmp_path / "plain.pt")
    tied, plain = models("tied.pt", "plain.pt")
    for form in ("torch_save", "safetensors", "safetensors_fp16", "safetensors_zstd19"):
        assert tied["forms"][form] == plain["forms"][form]


def test_forms_are_chosen(run: Run, models: Callable[..., list[dict[str, object]]]) -> None:
    (model,) = models(EXAMPLE, "--forms", "csr, safetensors")
    assert list(model["forms"]) == ["safetensors", "csr"]
    (model,) = models(EXAMPLE, "--forms", "")
    assert model["forms"] == {}
    result = run("report", EXAMPLE, "--forms", "csr")
    assert "CSR" in result.stdout.decode()
    assert "safetensors" not in result.stdout.decode()


def test_tables_for_papers_have_the_forms_that_are_chosen(run: Run) -> None:
    chosen = ["report", EXAMPLE, "--forms", "fp16,csr,zstd19"]
    table = run(*chosen, "--markdown", "-").stdout.decode()
    head, _, row = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[:3]
    )
    forms = ["safetensors fp16", "safetensors fp16: error", "CSR", "safetensors + zstd-19"]
    assert head == ["model", "keep", *forms, ".pemn", "bits per weight", "largest error"]
    assert all(row)
    assert row[4] == "387,714"
    assert "CSR" in run(*chosen, "--latex", "-").stdout.decode()
    usual = run("report", EXAMPLE, "--markdown", "-").stdout.decode()
    assert "CSR" not in usual
    assert "2:4" in usual


def test_the_help_names_every_form(run: Run) -> None:
    said = " ".join(run("report", "--help").stdout.decode().split())
    names = said.partition("Only these other forms: ")[2].partition("  [")[0].partition(" [")[0]
    assert forms_module.check_forms(names.split(", ")) == list(FORMS)


def test_a_form_that_is_not_installed_is_missed_only_where_it_is_asked_for(
    run: Run, models: Callable[..., list[dict[str, object]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms_module, "is_installed", lambda _: False)
    assert run("report", EXAMPLE).stderr == b""
    (model,) = models(EXAMPLE, "--forms", "nncodec")
    assert model["failures"] == {"nncodec": "nncodec is not installed"}


@pytest.fixture
def quick_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that is above 64 KiB, a sample is taken."""
    quick = {"safetensors_zstd19": replace(FORMS["safetensors_zstd19"], most_bytes=1 << 16)}
    monkeypatch.setattr(forms_module, "FORMS", {**FORMS, **quick})


@pytest.mark.usefixtures("quick_zstd")
def test_what_takes_long_is_estimated_and_marked(
    run: Run, models: Callable[..., list[dict[str, object]]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    values = torch.randint(100, (64, 1000)).float()  # so that zstd has something to find
    state = {"a": values, "b": values[:, 0].clone(), "c": torch.tensor(1)}
    state |= {f"w{n}": torch.randint(100, (100, 30, 3)).float() for n in range(20)}
    torch.save(state, tmp_path / "large.pt")
    torch.save({"a": values[:8].clone()}, tmp_path / "small.pt")
    large, small = models("large.pt", "small.pt")
    (exact,) = models("large.pt", "--exact")
    assert not any(form["estimated"] for form in {**small["forms"], **exact["forms"]}.values())
    estimated = [key for key, form in large["forms"].items() if form["estimated"]]
    assert estimated == ["safetensors_zstd19"]
    sizes = [model["forms"]["safetensors_zstd19"]["bytes"] for model in (large, exact)]
    assert sizes[0] != sizes[1]
    assert abs(sizes[0] / sizes[1] - 1) < 0.1
    shown = run("report", "large.pt", "--csv", "r.csv", "--latex", "r.tex", "--html", "r.html",
                "--columns", "safetensors_zstd19_bytes", "--markdown", "r.md")  # fmt: skip
    note = "≈ estimated from a sample"
    for text in (
        shown.stdout.decode(),
        *((tmp_path / f"r.{s}").read_text() for s in ("md", "html")),
    ):
        assert f"≈{sizes[0]:,}" in text
        assert note in text
    assert rf"$\approx${sizes[0]:,}" in (tmp_path / "r.tex").read_text()
    (row,) = rows(tmp_path / "r.csv")
    assert row["safetensors_zstd19_bytes"] == str(sizes[0])
    assert row["estimated"] == "safetensors_zstd19_bytes"
    assert note not in run("report", "small.pt").stdout.decode()


def test_progress_goes_over_the_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, each waits until it is told that those before it are done."""
    shown = {share: threading.Event() for share in (0, 0.5)}
    waits = [
        Form(key, title, lambda _, share=share: FormBytes(int(shown[share].wait(30))))
        for key, title, share in (("one", "One", 0), ("two", "Two", 0.5))
    ]
    monkeypatch.setattr(forms_module, "FORMS", {form.key: form for form in waits})
    monkeypatch.setattr(forms_module, "available_threads", lambda: 1)
    seen: list[tuple[str, float]] = []

    def progress(title: str, share: float) -> None:
        seen.append((title, share))
        shown[share].set()

    forms, _ = forms_module.measure_forms(Network({"a": torch.zeros(9)}), progress=progress)
    assert forms == {"one": FormBytes(1), "two": FormBytes(1)}
    assert seen == [("One", 0), ("Two", 0.5)]


# -------------------------------------------------------------------------------------- tables


@pytest.fixture
def seven(folder: Path, tmp_path: Path) -> list[str]:
    """Names of seven models, one of them longer than a line may be."""
    names = [f"convmixer-mask-keep-{n}0-of-all.pemn" for n in range(6)] + ["n" * 120 + ".pemn"]
    for name in names:
        shutil.copy(folder / "net.pemn", tmp_path / name)
    return names


def test_many_models_are_lines_that_fit(
    seven: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    *names, long = seven
    few = "torch_save,safetensors,safetensors_fp16,csr,bitmask,packed_masks"  # those that are quick
    for width in (None, 60, 200):
        if width is not None:
            monkeypatch.setenv("COLUMNS", str(width))
        text = run("report", *names, "--forms", few).stdout.decode()
        assert max(map(len, text.splitlines())) <= (width or 100)
        starts = [line.split()[0] for line in text.splitlines() if line.strip()]
        assert all(starts.count(name) >= 4 for name in names)
        for value in ("365,872", "29,292", "0.8701", "lossless", "mixing", "10,720"):
            assert value in text
    assert f" {long}" in run("report", *seven, "--forms", few).stdout.decode()


def test_few_models_are_columns(folder: Path, run: Run) -> None:
    text = run("report", folder / "net.pemn", folder / "dense.safetensors").stdout.decode()
    size = (folder / "dense.safetensors").stat().st_size
    head = next(line.split() for line in text.splitlines() if line.strip())
    assert head == ["net.pemn", "dense.safetensors"]
    (line,) = [line for line in text.splitlines() if " safetensors  " in line]
    assert line.split()[1:] == ["365,872", f"{size:,}"]


@pytest.mark.parametrize(("width", "shares"), [(80, [2, 2]), (140, [4])])
def test_few_models_are_columns_of_several_tables(
    folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int,
    shares: list[int],
) -> None:  # fmt: skip
    names = [f"mixer-mask-keep-{n}.pemn" for n in range(4)]
    for name in names:
        shutil.copy(folder / "net.pemn", tmp_path / name)
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run("report", *names, "--forms", "csr,safetensors").stdout.decode().splitlines()
    assert max(map(len, lines)) <= width
    heads = [line.split() for line in lines if "keep-" in line]
    assert [name for head in heads for name in head] == names
    assert list(map(len, heads)) == shares
    found = [line.split()[1:] for line in lines if line.split()[:1] == ["CSR"]]
    assert found == [["387,714"] * share for share in shares]


def test_many_narrow_models_stay_lines(
    folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcdef":
        shutil.copy(folder / "net.pemn", tmp_path / f"{name}.pemn")
    monkeypatch.setenv("COLUMNS", "60")
    text = run("report", *(f"{n}.pemn" for n in "abcdef"), "--forms", "csr").stdout.decode()
    assert all(text.count(f"{name}.pemn") > 2 for name in "abcdef")


def test_markdown_and_latex_are_for_papers(folder: Path, run: Run, tmp_path: Path) -> None:
    paths = [folder / "net.pemn", folder / "<b>&.pemn"]
    assert run("report", *paths, "--markdown", "r.md", "--latex", "r.tex").returncode == 0
    lines = (tmp_path / "r.md").read_text().splitlines()
    assert [line.count(" | ") for line in lines] == [lines[0].count(" | ")] * 4
    assert lines[1].startswith("| --- | ---: |")
    assert lines[3].startswith(r"| \<b\>\&.pemn |")
    latex = (tmp_path / "r.tex").read_text()
    for part in (
        r"\begin{tabular}{lrr",
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\end{tabular}}",
    ):
        assert part in latex
    row = r"\textless{}b\textgreater{}\&.pemn & "
    (line,) = [line for line in latex.splitlines() if line.startswith(row)]
    assert line.endswith(r" \\")
    assert line.count(" & ") == lines[0].count(" | ")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_compiles_whatever_the_names(folder: Path, run: Run, tmp_path: Path) -> None:
    long = f"{'a-long-name-' * 8}.pemn"
    names = ["[a]*.pemn", "\\b{c}$d^e_f%g#h~.pemn", "n|o\"p'q`.pemn", "≈ é.pemn", long]
    for name in names:
        shutil.copy(folder / "net.pemn", tmp_path / name)
    assert run("report", *names, "--latex", "r.tex").returncode == 0
    document = r"\documentclass{article}\usepackage{booktabs, graphicx}"
    document += r"\begin{document}\input{r}\end{document}"
    (tmp_path / "page.tex").write_text(document)
    subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
        cwd=tmp_path, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert "Overfull" not in (tmp_path / "page.log").read_text(errors="replace")


# ------------------------------------------------------------------------------ page and figures


def page(folder: Path, run: Run, tmp_path: Path) -> Path:
    paths = [folder / name for name in ("net.pemn", "<b>&.pemn", "dense.safetensors")]
    result = run("report", *paths, "--html", "r.html")
    assert result.returncode == 0, result.stderr
    return tmp_path / "r.html"


def test_the_page_needs_nothing_and_runs_nothing(folder: Path, run: Run, tmp_path: Path) -> None:
    text = page(folder, run, tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|<img|<iframe|url\(|https?:|\son\w+=", text)
    assert html.escape("<b>&.pemn") in text
    assert html.escape(f"…{HOSTILE[-27:]}") in text
    assert text.count("<svg") >= 6


def test_the_page_compares_models_by_part_and_form(folder: Path, run: Run, tmp_path: Path) -> None:
    text = page(folder, run, tmp_path).read_text(encoding="utf-8")
    plots = re.findall(r'<svg class="plot"[^>]*aria-label="Bytes [^"]*">.*?</svg>', text)
    assert len(plots) == 2
    for plot, titles in zip(
        plots, (["mask: 9,328"], ["safetensors: 365,872", "CSR: 387,714"]), strict=True
    ):
        drawn = ElementTree.fromstring(plot.replace("\x00", ""))
        marks = [title.text for title in drawn.iter("title")]
        assert set(titles) <= set(marks)
        assert any(str(mark).startswith(".pemn: ") for mark in marks)
        dots = [
            (int(str(dot[0].text).rpartition(": ")[2].replace(",", "")), float(dot.get("cx")[:-1]))
            for dot in drawn.iter("circle")
        ]
        places = [place for _, place in sorted(dots)]
        assert 0 <= places[0] < places[-1] <= 100
        assert places == sorted(places)
        units = [text.text for text in drawn.iter("text") if text.get("class") == "soft"]
        assert units[-1] in ("100 kB", "1 MB")
    alone = run("report", folder / "net.pemn", "--html", "one.html")
    assert alone.returncode == 0
    assert 'aria-label="Bytes by part"' not in (tmp_path / "one.html").read_text()


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_the_page(folder: Path, run: Run, tmp_path: Path, dark: bool) -> None:
    picture = tmp_path / "page.png"
    mode = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    options = [*mode, "--hide-scrollbars", "--window-size=1000,2000", f"--screenshot={picture}"]
    browse(page(folder, run, tmp_path), tmp_path, options)
    with Image.open(picture) as image:
        pixels = image.convert("L")
        background, histogram = pixels.getpixel((2, 2)), pixels.histogram()
    assert isinstance(background, int | float)
    assert (background < 60) == dark
    assert sum(histogram[60:200]) > 20_000  # bars
    assert sum(histogram[:60] if not dark else histogram[200:]) > 2_000  # text


@needs_chromium
def test_no_table_is_cut_with_seven_models(seven: list[str], run: Run, tmp_path: Path) -> None:
    assert run("report", *seven, "--html", "r.html").returncode == 0
    measure = """<script>document.title = JSON.stringify(Array.from(
      document.querySelectorAll(".wide, html"), box => [box.scrollWidth, box.clientWidth]
    ))</script>"""
    text = (tmp_path / "r.html").read_text()
    (tmp_path / "r.html").write_text(text.replace("</body>", f"{measure}</body>"))
    shown = browse(tmp_path / "r.html", tmp_path, ["--window-size=1280,900", "--dump-dom"])
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title is not None
    widths = json.loads(title[1])
    assert len(widths) == 5
    assert all(content <= box <= 1280 for content, box in widths)


def browse(path: Path, tmp_path: Path, options: Sequence[str]) -> str:
    result = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *options,
         f"--user-data-dir={tmp_path / 'u'}", path.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return result.stdout.decode()


FIGURES = [
    f"{name}{suffix}" for name in ("forms", "layers", "parts") for suffix in (".pdf", ".svg")
]


def test_figures_are_drawn_as_svg_and_pdf(folder: Path, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shutil.copy(folder / "net.pemn", tmp_path / "$x_$.pemn")
    paths = [folder / "net.pemn", "$x_$.pemn", folder / "dense.safetensors"]
    for name in ("figures", "again"):
        result = run("report", *paths, "--figures", name)
        assert result.returncode == 0, result.stderr
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == FIGURES
    for name in FIGURES:
        data = (tmp_path / "figures" / name).read_bytes()
        assert data == (tmp_path / "again" / name).read_bytes()
        if name.endswith(".pdf"):
            assert data.startswith(b"%PDF-")
        else:
            assert ElementTree.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"
    fails(run("report", *paths, "--figures", "again"), 2, "again is not empty")
    assert run("report", folder / "dense.safetensors", "--figures", "again", "-f").returncode == 0


def test_figures_need_matplotlib(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("report", folder / "net.pemn", "--figures", "figures")
    fails(result, 2, "--figures needs matplotlib: pip install matplotlib")


# -------------------------------------------------------------------------------------- errors


def test_of_several_files_one_that_cannot_be_used_is_left_out(
    folder: Path, run: Run, tmp_path: Path
) -> None:
    shutil.copy(folder / "net.pemn", tmp_path / "net.pemn")
    (tmp_path / "cut.pemn").write_bytes((folder / "net.pemn").read_bytes()[:-9])
    (tmp_path / "empty.pt").write_bytes(b"")
    result = run("report", "cut.pemn", "net.pemn", "empty.pt", "--forms", "csr", "--json",
                 "--csv", "r.csv")  # fmt: skip
    assert result.returncode == 1
    cut, empty = result.stderr.decode().splitlines()
    assert cut.startswith("pemn: cut.pemn: the file has ")
    assert empty == "pemn: empty.pt: cannot load this: the file is empty; left out"
    assert [model["name"] for model in json.loads(result.stdout)["models"]] == ["net.pemn"]
    assert [row["model"] for row in rows(tmp_path / "r.csv")] == ["net.pemn"]
    none = run("report", "cut.pemn", "empty.pt", "--csv", "none.csv")
    assert (none.returncode, none.stdout) == (1, b"")
    assert len(none.stderr.splitlines()) == 2
    fails(run("report", "net.pemn", "nobody.pemn", "empty.pt"), 1, "nobody.pemn: No such file")
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["nobody.pemn"], 1, "nobody.pemn"),
        (["broken.pemn"], 1, "broken.pemn"),
        (["broken.pt"], 1, "pemn: broken.pt: cannot load this"),
        (["scored.pt", "--keep", "2"], 2, "keep"),
        (["plain.safetensors", "--csv", "there.csv"], 2, "there.csv"),
        (["plain.safetensors", "--markdown", "there.csv"], 2, "there.csv"),
        (["plain.safetensors", "--html", "nowhere/r.html"], 2, "nowhere"),
        (["plain.safetensors", "--html", "plain.safetensors", "-f"], 2, "input"),
        (["sparse.pt"], 1, "sparse.pt: w: expected a dense tensor"),
    ],
)
def test_bad_input(
    folder: Path, run: Run, tmp_path: Path, arguments: list[str], status: int, word: str
) -> None:
    shutil.copy(folder / "dense.safetensors", tmp_path / "plain.safetensors")
    shutil.copy(folder / "a.pt", tmp_path / "scored.pt")
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    (tmp_path / "broken.pemn").write_bytes((folder / "net.pemn").read_bytes()[:-9])
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    (tmp_path / "there.csv").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    fails(run("report", *arguments), status, word)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "there.csv").read_text() == "mine"
