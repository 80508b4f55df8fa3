"""The training benchmark: networks, data, augmentation, and a run that is interrupted."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import ROOT, random_masks
from torch import Generator, Tensor

import pemncodec
from pemncodec import masking

MODULES = ("cifar10", "convmixer", "models", "train_cifar10", "train_table")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the folder's modules importable for one test; their names are too plain to stay."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name in MODULES:
        sys.modules.pop(name, None)


# ----------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet56", 853_018),
        ("convmixer", 443_904),
        ("vit", 4_763_402),
    ],
)
def test_networks_have_the_known_number_of_parameters(name: str, parameters: int) -> None:
    from models import build_model

    model = build_model(name, dim=256, depth=6, patch=4 if name == "vit" else 2, kernel=5)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["convmixer", "vit", "resnet20"])
def test_networks_go_through_a_file(name: str, tmp_path: Path) -> None:
    from models import build_model

    model = build_model(name, dim=16, depth=1, patch=8, kernel=3, n_classes=7).eval()
    masks = {n: m for n, m in random_masks(model).items() if n.endswith("weight")}
    images = torch.randn(2, 3, 32, 32)
    pemncodec.encode(model, tmp_path / "net.pemn", masks=masks, example_inputs=images)
    with torch.no_grad():
        assert pemncodec.decode(tmp_path / "net.pemn")(images).shape == (2, 7)


# --------------------------------------------------------------------------------------- data


def write_batches(folder: Path, count: int = 64) -> Path:
    """Random images as CIFAR-10's python files, the same number in each."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {
            b"data": random.integers(0, 256, (count, 3072), dtype=np.uint8),
            b"labels": random.integers(0, 10, count).tolist(),
        }
        with (folder / name).open("wb") as stream:
            pickle.dump(batch, stream, protocol=2)
    return folder


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_python_files_are_read(tmp_path: Path, inside: str) -> None:
    from cifar10 import load_cifar10

    folder = write_batches(tmp_path / "cifar-10-batches-py")
    train, test = load_cifar10(tmp_path / inside)
    assert (len(train), len(test)) == (320, 64)
    assert train.pixels.shape == (320, 3, 32, 32)
    batch = pickle.loads((folder / "data_batch_2").read_bytes())  # noqa: S301 written above
    assert train.pixels[64:128].reshape(64, -1).numpy().tolist() == batch[b"data"].tolist()
    assert train.labels[64:128].tolist() == batch[b"labels"]
    few, _ = load_cifar10(tmp_path / inside, limit=5)
    assert torch.equal(few.pixels, train.pixels[::64])


def test_jpegs_are_read(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    from io import BytesIO

    from cifar10 import load_cifar10

    files = []
    for value in (10, 200):
        stream = BytesIO()
        image.new("RGB", (32, 32), (value,) * 3).save(stream, "JPEG")
        files.append(np.frombuffer(stream.getvalue(), np.uint8))
    parts = {
        "jpeg": np.concatenate(files),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.array([3, 1], np.uint8),
    }
    arrays = {f"{split}_{n}": array for split in ("train", "test") for n, array in parts.items()}
    np.savez(tmp_path / "jpeg.npz", **arrays)
    for images in load_cifar10(tmp_path / "jpeg.npz"):
        assert images.labels.tolist() == [3, 1]
        assert images.pixels.float().mean((1, 2, 3)).tolist() == pytest.approx([10, 200], abs=1)


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path) -> None:
    from cifar10 import load_cifar10

    folder = write_batches(tmp_path / "data", count=1)
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": print}))
    with pytest.raises(ValueError, match=r"no use for builtins\.print"):
        load_cifar10(folder)


# ------------------------------------------------------------------------------- augmentation


def pixels(count: int = 8) -> Tensor:
    generator = Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kind", ["full", "light", "none"])
def test_augmentation_comes_from_its_generator(kind: Any) -> None:
    from cifar10 import augment, normalize

    first, again, other = (augment(pixels(), Generator().manual_seed(s), kind) for s in (0, 0, 1))
    assert first.shape == (8, 3, 32, 32)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (kind == "none")
    black, white = (normalize(torch.full((1, 3, 1, 1), v)) for v in (0, 255))
    inside = (first >= black) & (first <= white)
    assert inside.all()


def test_operations_keep_shape_and_range_and_differ_by_image() -> None:
    from cifar10 import OPERATIONS

    images = pixels(4).float()
    for operation in OPERATIONS:
        level = torch.tensor([0.4, -0.4, 0.0, 1.0])
        result = operation(images, level)
        assert result.shape == images.shape
        assert result.min() >= 0
        assert result.max() <= 255
        # What happens to an image does not depend on the others.
        alone = torch.cat([operation(images[i : i + 1], level[i : i + 1]) for i in range(4)])
        assert torch.allclose(result, alone, atol=1e-3)


def test_operations_at_level_zero_change_nothing() -> None:
    from cifar10 import OPERATIONS

    images = pixels(2).float().clamp(max=254)
    for operation in OPERATIONS[:-2]:
        assert torch.allclose(operation(images, torch.zeros(2)), images, atol=1e-3)


def test_operations_are_those_of_pillow() -> None:
    image = pytest.importorskip("PIL.Image")
    from cifar10 import (
        autocontrast,
        brightness,
        color,
        contrast,
        equalize,
        posterize,
        rotate,
        sharpness,
        solarize,
        translate_x,
        translate_y,
    )  # fmt: skip
    from PIL import ImageEnhance, ImageOps

    # Low contrast, so that there is something to stretch.
    batch = pixels(3) // 2 + 40

    def pillow(operation: Callable[[Any], Any]) -> Tensor:
        arrays = (image.fromarray(p.permute(1, 2, 0).numpy()) for p in batch)
        return torch.stack([torch.from_numpy(np.array(operation(a))) for a in arrays])

    def moved(x: float, y: float) -> Callable[[Any], Any]:
        return lambda i: i.transform(i.size, image.Transform.AFFINE, (1, 0, x, 0, 1, y))

    images, factor = batch.float(), torch.full((3,), 1.36)
    compared: list[tuple[Tensor, Callable[[Any], Any]]] = [
        (equalize(images), ImageOps.equalize),
        (autocontrast(images), ImageOps.autocontrast),
        (posterize(images, torch.full((3,), 6.0)), lambda i: ImageOps.posterize(i, 6)),
        (solarize(images, torch.full((3,), 153.0)), lambda i: ImageOps.solarize(i, 153)),
        (brightness(images, factor), lambda i: ImageEnhance.Brightness(i).enhance(1.36)),
        (color(images, factor), lambda i: ImageEnhance.Color(i).enhance(1.36)),
        (contrast(images, factor), lambda i: ImageEnhance.Contrast(i).enhance(1.36)),
        (sharpness(images, factor), lambda i: ImageEnhance.Sharpness(i).enhance(1.36)),
        (translate_x(images, torch.full((3,), 5.8)), moved(5, 0)),
        (translate_y(images, torch.full((3,), -5.8)), moved(0, -5)),
        (rotate(images, torch.full((3,), 90.0)), lambda i: i.rotate(90)),
    ]
    for mine, operation in compared:
        expected = pillow(operation).permute(0, 3, 1, 2).float()
        assert (mine - expected).abs().max() < 1.5


def test_shears_leave_the_first_row_or_column() -> None:
    from cifar10 import shear_x, shear_y

    images, factor = pixels(1).float(), torch.tensor([0.3])
    sheared = shear_x(images, factor)
    assert torch.equal(sheared[:, :, 0], images[:, :, 0])
    assert torch.equal(sheared[:, :, 10, :20], images[:, :, 10, 3:23])
    assert torch.equal(shear_y(images.mT, factor).mT, sheared)


def test_erasing_clears_a_fifth_of_the_images() -> None:
    from cifar10 import erase

    erased = erase(torch.ones(2000, 3, 32, 32), Generator().manual_seed(0)) == 0
    share = erased.float().mean((1, 2, 3))
    touched = share > 0
    assert 0.17 < touched.float().mean() < 0.23
    assert share[touched].min() > 0.01
    assert share[touched].max() < 0.36
    # A box, the same in all channels.
    assert torch.equal(erased, erased.any(2, keepdim=True) & erased.any(3, keepdim=True))


# --------------------------------------------------------------------------------------- runs

SMALL = (
    "--dim", "8", "--depth", "1", "--patch", "8", "--epochs", "2", "--batch", "32",
    "--limit", "40", "--threads", "1", "--device", "cpu",
)  # fmt: skip


def train(folder: Path, *arguments: str) -> Result:
    from train_cifar10 import main

    data = folder.parent / "data"
    if not data.exists():
        write_batches(data, count=16)
    return CliRunner().invoke(main, ["--data", str(data), "-o", str(folder), *SMALL, *arguments])


@pytest.mark.parametrize("strategy", ["mask", "one-layer", "mp", "rp"])
def test_masked_runs_are_stored_and_proven(tmp_path: Path, strategy: str) -> None:
    outcome = train(tmp_path / "run", "--strategy", strategy, "--augment", "light")
    assert outcome.exit_code == 0, outcome.output
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["same_predictions"] is True
    assert result["max_abs_logit_difference"] == 0
    # A seed instead of a prototype.
    assert result["prototype_bytes"] == 0
    assert result["file_bytes"] == (tmp_path / "run" / "model.pemn").stat().st_size
    shapes = {"embed": (8, 3, 8, 8), "spatial": (8, 1, 5, 5), "point": (8, 8), "head": (10, 8)}
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    values = {"mp": sizes["embed"], "rp": 2}.get(strategy, sum(sizes.values()))
    assert result["prototype_values"] == values
    assert result["masked_weights"] == sum(sizes.values())
    assert result["paper_formula_bytes"] == round(sum(sizes.values()) / 8 + 4 * values)
    log = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in log] == ["epoch", "1", "2"]


def test_a_dense_run_is_stored(tmp_path: Path) -> None:
    outcome = train(tmp_path / "run", "--strategy", "dense", "--augment", "none")
    assert outcome.exit_code == 0, outcome.output
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["file_bytes"] == (tmp_path / "run" / "model.safetensors").stat().st_size
    assert result["config"]["keep"] is None


def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    options = ("--model", "resnet20", "--strategy", "rp", "--ratio", "0.01", "--augment", "full")
    assert train(tmp_path / "whole", *options).exit_code == 0
    stopped = train(tmp_path / "parts", *options, "--stop-after", "1")
    assert stopped.exit_code == 0, stopped.output
    assert not (tmp_path / "parts" / "result.json").exists()
    assert train(tmp_path / "parts", *options).exit_code == 0
    whole, parts = (
        torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("whole", "parts")
    )
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, parts["model"][name]), name
    assert len(parts["log"]) == 2
    files = [(tmp_path / run / "model.pemn").read_bytes() for run in ("whole", "parts")]
    assert files[0] == files[1]


def test_a_run_with_other_options_is_not_resumed(tmp_path: Path) -> None:
    options = ("--strategy", "mp", "--augment", "none")
    assert train(tmp_path / "run", *options, "--stop-after", "1").exit_code == 0
    refused = train(tmp_path / "run", *options, "--lr", "0.01")
    assert refused.exit_code == 1
    assert "is of a run with lr 0.05, not 0.01" in refused.output


def test_a_row_is_one_command(tmp_path: Path) -> None:
    options = ("--augment", "none", "--row")
    assert train(tmp_path / "row", *options, "--stop-after", "1").exit_code == 0
    outcome = train(tmp_path / "row", *options)
    assert outcome.exit_code == 0, outcome.output
    columns = {"dense", "mask", "one-layer", "mp", "rp-0.1", "rp-0.01", "rp-0.001"}
    assert {folder.name for folder in (tmp_path / "row").iterdir()} == columns
    for name in columns:
        result = json.loads((tmp_path / "row" / name / "result.json").read_text())
        assert result["config"]["strategy"] == name.partition("-0")[0]
        assert result["environment"]["data"] == "data"
        assert len(json.loads((tmp_path / "row" / name / "log.json").read_text())) == 2
    refused = train(tmp_path / "row", *options, "--ratio", "0.1")
    assert refused.exit_code == 2
    assert "leave out --ratio" in refused.output


def test_storing_a_finished_run_again_changes_nothing(tmp_path: Path) -> None:
    options = ("--strategy", "rp", "--augment", "none")
    assert train(tmp_path / "run", *options).exit_code == 0
    files = [tmp_path / "run" / name for name in ("model.pemn", "log.json")]
    before = [path.read_bytes() for path in files]
    assert train(tmp_path / "run", *options).exit_code == 0
    assert [path.read_bytes() for path in files] == before


def test_mistakes_of_the_command_line(tmp_path: Path) -> None:
    refused = train(tmp_path / "run", "--strategy", "mp", "--ratio", "0.1")
    assert refused.exit_code == 2
    assert "--ratio is for --strategy rp" in refused.output
    refused = train(tmp_path / "run", "--patch", "64")
    assert refused.exit_code == 2
    assert "--patch" in refused.output
    from train_cifar10 import main

    (tmp_path / "nothing").mkdir()
    outcome = CliRunner().invoke(main, ["--data", str(tmp_path / "nothing"), "-o", "run"])
    assert outcome.exit_code == 1
    assert "Error: " in outcome.output
    assert "nothing" in outcome.output


def test_the_learning_rate_is_the_papers() -> None:
    from train_cifar10 import learning_rate, make_config

    options = dict.fromkeys(("dim", "depth", "patch", "kernel", "ratio", "padding", "keep"))
    options |= dict.fromkeys(("distribution", "rescale", "decay_scores", "limit", "bf16"))
    options |= {"epochs": 100, "batch": 512, "weight_decay": 0.005, "augment": "full", "seed": 0}
    options |= {"model": "vit", "strategy": "dense", "lr": 0.05, "compile": False}
    config = make_config(options, torch.device("cpu"))
    rates = [learning_rate(config, step, 100) for step in (20, 40, 60, 80, 90, 100)]
    assert rates == pytest.approx([0.025, 0.05, 0.02625, 0.0025, 0.00125, 0])


def test_scores_decay_unless_told_otherwise(tmp_path: Path, monkeypatch: Any) -> None:
    import train_cifar10

    given: list[float] = []

    def groups(model: Any, *, weight_decay: float, scores_weight_decay: float) -> Any:
        given.append(scores_weight_decay)
        return masking.parameter_groups(
            model, weight_decay=weight_decay, scores_weight_decay=scores_weight_decay
        )

    monkeypatch.setattr(train_cifar10, "parameter_groups", groups)
    for number, option in enumerate([(), ("--no-decay-scores",)]):
        assert train(tmp_path / f"run{number}", "--augment", "none", *option).exit_code == 0
    assert given == [0.005, 0.0]


# -------------------------------------------------------------------------------------- table


def test_the_table_sets_runs_beside_the_paper(tmp_path: Path) -> None:
    from train_table import PAPER, main

    train(tmp_path / "rp", "--strategy", "rp", "--augment", "light")
    train(tmp_path / "dense", "--strategy", "dense", "--augment", "light")
    # A run of the network in the paper, in all but its training.
    result = json.loads((tmp_path / "rp" / "result.json").read_text())
    result["config"] |= {"dim": 256, "depth": 6, "patch": 2}
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "result.json").write_text(json.dumps(result))
    (tmp_path / "unfinished").mkdir()

    (tmp_path / "row").mkdir()  # as of --row
    (tmp_path / "dense").rename(tmp_path / "row" / "dense")
    folders = [str(tmp_path / name) for name in ("rp", "row", "paper", "unfinished")]
    outcome = CliRunner().invoke(main, [*folders, "-o", str(tmp_path / "out" / "table.csv")])
    assert outcome.exit_code == 0, outcome.output
    assert "skipped" in outcome.output
    lines = (tmp_path / "out" / "table.csv").read_text().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("convmixer d1-8 patch 8,rp 0.001,2,")
    assert f",{PAPER['convmixer d6-256', 'rp 0.001']}," in lines[3]
    assert PAPER["convmixer d6-256", "rp 0.001"] == 88.51
    assert len(PAPER) == 80
