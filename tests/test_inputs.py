"""Inputs by name, layers that have not run yet, and names that a file cannot hold."""

from __future__ import annotations

import io
from collections import UserDict
from typing import Any

import pytest
import torch
from conftest import random_masks
from torch import Tensor, nn

import pemncodec
from pemncodec import EncodeArgumentError, EncodeError, UnsupportedModelError

MASKS = {"fc.weight": torch.eye(4)}


def encoded(source: Any, **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    pemncodec.encode(source, stream, **options)
    return stream


# ------------------------------------------------------------------------------ inputs by name


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, scale: Tensor, offset: Tensor | None = None, *, bias: Tensor | None = None
    ) -> Tensor:
        y = self.fc(x) * scale
        y = y if offset is None else y + offset
        return y if bias is None else y + bias


X, SCALE, OFFSET = torch.randn(2, 4), torch.randn(2, 1), torch.randn(2, 4)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_inputs_by_name_are_those_by_position(kind: Any) -> None:
    torch.manual_seed(0)
    module = Two()
    for by_position, by_name in (
        ((X, SCALE), {"scale": SCALE, "x": X}),
        ((X, SCALE, OFFSET), {"offset": OFFSET, "x": X, "scale": SCALE}),
    ):
        expected = encoded(module, masks=MASKS, example_inputs=by_position)
        stream = encoded(module, masks=MASKS, example_inputs=kind(by_name))
        assert stream.getvalue() == expected.getvalue()


def test_axes_go_with_the_names() -> None:
    class Longer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.fc(x).sum(1) + y

    x, y = torch.randn(2, 6, 4), torch.randn(2, 4)
    given = {"y": y, "x": x}
    stream = encoded(Longer(), masks=MASKS, example_inputs=given, dynamic_axes=[[], [1]])
    expected = [{"dtype": "float32", "shape": [None, None, 4], "sizes": [2, 6, 4]},
                {"dtype": "float32", "shape": [None, 4]}]  # fmt: skip
    with pemncodec.open(stream) as file:
        assert file.manifest is not None
        assert file.manifest["inputs"] == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"x": X}, None),
        ({"x": X, "offset": OFFSET}, "are x, offset, but forward takes x, scale first, and a file"),
        ({"x": X, "scale": SCALE, "bias": X}, "forward takes x, scale, offset first"),
        ({"x": X, "wrong": SCALE}, "example_inputs are x, wrong, but forward takes x, scale"),
        ({"x": X, "scale": 5}, "must be tensors with a batch dimension"),
        ({}, "must be tensors with a batch dimension"),
        ([], "must be tensors with a batch dimension"),
        ({1: X}, "example_inputs are 1, but forward takes x first"),
    ],
)
def test_inputs_by_name_that_do_not_fit(given: Any, words: str | None) -> None:
    with pytest.raises(EncodeError, match=words) as caught:
        encoded(Two(), masks=MASKS, example_inputs=given)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------- lazy layers


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.Linear(3, 2))


def test_lazy_layers_that_never_ran_are_refused() -> None:
    masks = {"2.weight": torch.ones(2, 3)}
    for options in ({"manifest": False}, {"example_inputs": X}):
        with pytest.raises(EncodeError, match=r"^0\.weight has no values yet: run the module on"):
            encoded(lazy(), masks=masks, **options)
    module = lazy()
    module(X)
    with pytest.raises(EncodeError, match=r"^0\.weight of the architecture has no shape yet: run"):
        encoded(module.state_dict(), masks=masks, architecture=lazy(), example_inputs=X)


def test_lazy_layers_that_ran_are_layers() -> None:
    torch.manual_seed(0)
    module = lazy()
    module(X)
    stream = encoded(module, masks={"0.weight": torch.ones(3, 4)}, example_inputs=X)
    with torch.no_grad():
        assert torch.equal(pemncodec.decode(stream)(X), module.eval()(X))


# ------------------------------------------------------------------------- names of modules


class Named(nn.Module):
    def __init__(self, kind: str, name: str) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.name = name
        if kind == "child":
            self.add_module(name, nn.Identity())
        elif kind == "parameter":
            self.register_parameter(name, nn.Parameter(torch.ones(4)))
        else:
            self.register_buffer(name, torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        own = getattr(self, self.name)
        return own(self.fc(x)) if isinstance(own, nn.Module) else self.fc(x) * own


@pytest.mark.parametrize("kind", ["child", "parameter", "buffer"])
@pytest.mark.parametrize("name", ["class", "a b", "слой", "a/b", "__x", "x" * 129, "None"])
def test_names_that_a_file_cannot_hold_are_named_with_the_rule(kind: str, name: str) -> None:
    module = nn.Sequential(Named(kind, name))
    masks = {"0.fc.weight": torch.eye(4)}
    words = rf"module '0' \(Named\): its {kind} is called '{name[:50]}.* no keyword of Python"
    with pytest.raises(UnsupportedModelError, match=words):
        encoded(module, masks=masks, example_inputs=X)
    assert "0.fc.weight" in pemncodec.load_state_dict(encoded(module, masks=masks, manifest=False))


@pytest.mark.parametrize("kind", ["child", "parameter", "buffer"])
@pytest.mark.parametrize("name", ["print", "a-b", "0a", "_x", "x" * 128])
def test_odd_names_that_a_file_can_hold(kind: str, name: str) -> None:
    torch.manual_seed(0)
    module = Named(kind, name)
    stream = encoded(module, masks=MASKS, example_inputs=X)
    decoded = pemncodec.decode(stream)
    assert list(decoded.state_dict()) == list(module.state_dict())
    module.fc.weight.data *= torch.eye(4)
    with torch.no_grad():
        assert torch.equal(decoded(X), module(X))


def test_two_masks_for_one_weight_by_two_names_are_refused() -> None:
    state = {f"module.{name}": tensor for name, tensor in Two().state_dict().items()}
    masks = {"fc.weight": torch.eye(4), "module.fc.weight": torch.ones(4, 4)}
    with pytest.raises(EncodeArgumentError, match=r"two for one weight, among fc\.weight, module"):
        encoded(state, masks=masks, manifest=False)


def test_a_guess_is_said() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    report = pemncodec.encode(module, io.BytesIO(), masks=random_masks(module))
    said = "compared on inputs of a guessed shape, 3,32,32; --example-shape gives another"
    assert report.notes[0] == said
    module = nn.Embedding(7, 4)
    report = pemncodec.encode(module, io.BytesIO(), masks=random_masks(module))
    assert "a guessed shape, int64:16;" in report.notes[0]
    given = pemncodec.encode(
        module,
        io.BytesIO(),
        masks=random_masks(module),
        example_inputs=torch.zeros(2, 16, dtype=torch.int64),
    )
    assert not any("guessed" in note for note in given.notes)
