"""Masked models that are saved whole, and the same model encoded from Python and by `pemn`."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Run, small_net
from torch import nn

import pemncodec
from pemncodec.masking import (
    Independent,
    KeepSchedule,
    MaxLayerPadding,
    OneLayer,
    RandomPadding,
    Stochastic,
    Threshold,
    TopK,
    advance_keep,
    bake,
    mask_model,
)
from pemncodec.masking.selection import Selection
from pemncodec.masking.strategies import Strategy

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def shared() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (small_net, (4, 3, 8, 8)),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (4, 3, 8)),
    "one layer twice": (shared, (4, 4)),
}


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # noqa: S301


def saved(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("way", [pickled, saved, copy.copy])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_masked_model_is_saved_whole(
    kind: str, scope: str, way: Callable[[nn.Module], nn.Module]
) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[kind]
    schedule = KeepSchedule(0.9, 0.3, 5)
    model = mask_model(make(), OneLayer(), keep=schedule, selection=TopK(scope=scope))  # type: ignore[arg-type]
    advance_keep(model)
    other, inputs = way(model), torch.randn(shape)
    state = other.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    for each in (model, other):
        advance_keep(each)
    if way is not copy.copy:  # which shares what is in it
        assert torch.equal(other.eval()(inputs), model.eval()(inputs))
    assert type(bake(other)) is type(make())


@pytest.mark.parametrize(
    ("strategy", "selection"),
    [
        (OneLayer(), TopK()),
        (Independent(), Threshold(0.1)),
        (MaxLayerPadding(), Stochastic()),
        (RandomPadding(length=7), TopK("score")),
    ],
)
def test_a_loaded_model_trains_and_is_encoded_as_the_first(
    strategy: Strategy, selection: Selection
) -> None:
    files = []
    model = mask_model(small_net(), strategy, keep=0.5, selection=selection)
    for each in (model, saved(model)):
        torch.manual_seed(3)
        optimizer = torch.optim.SGD(each.parameters(), lr=0.5)
        each.train()(IMAGES).square().sum().backward()
        optimizer.step()
        files.append(io.BytesIO())
        pemncodec.encode(each, files[-1], example_inputs=IMAGES)
    assert files[0].getvalue() == files[1].getvalue()


def test_a_copy_of_a_loaded_model_can_be_saved() -> None:
    model = copy.deepcopy(saved(copy.deepcopy(mask_model(small_net(), OneLayer(), keep=0.5))))
    assert torch.equal(saved(model).eval()(IMAGES), model.eval()(IMAGES))


# ------------------------------------------------------------------- from Python and by pemn


@pytest.mark.parametrize("suffix", ["state.pt", "whole.pt"])
@pytest.mark.parametrize("options", [{}, {"preset": "max", "dense": "fp16", "fold_bn": True}])
def test_the_same_bytes_from_python_and_by_pemn(
    run: Run, tmp_path: Path, suffix: str, options: dict[str, object]
) -> None:
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 3)
    (tmp_path / "arch.py").write_text(
        "from torch.nn import *\n"
        "layers = Conv2d(3, 4, 3, padding=1), BatchNorm2d(4), Flatten(), Linear(256, 3)\n"
        "make = lambda: Sequential(*layers)\n"
    )
    # In train mode, as what the factory makes; a file says which mode the model was in.
    model = mask_model(nn.Sequential(*layers), OneLayer(), keep=0.5)
    pemncodec.encode(model, tmp_path / "python.pemn", example_inputs=IMAGES, **options)
    torch.save(model.state_dict() if suffix == "state.pt" else model, tmp_path / suffix)
    given = ["--arch", "arch.py:make"] if suffix == "state.pt" else ["--trust-pickle"]
    flags = ["--preset", "max", "--dense", "fp16", "--fold-bn"] if options else []
    shape = ["--example-shape", "3,8,8"]
    result = run("encode", suffix, "-o", "pemn.pemn", *given, *shape, *flags)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "pemn.pemn").read_bytes() == (tmp_path / "python.pemn").read_bytes()
