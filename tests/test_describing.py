"""Networks laid out as public libraries lay theirs out: what cannot be described by itself is
described together with what is around it, and what a library keeps beside outputs stays out."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import random_masks
from torch import Tensor, nn

import pemncodec
from pemncodec.errors import UnsupportedModelError
from pemncodec.proof import Report


def encoded(model: nn.Module, *inputs: Tensor, **options: Any) -> tuple[Report, nn.Module]:
    """What `encode` says of a model under masks, and what the file gives."""
    stream = io.BytesIO()
    report = pemncodec.encode(
        model, stream, masks=random_masks(model), example_inputs=list(inputs), **options
    )
    return report, pemncodec.decode(stream)


@torch.no_grad()
def masked_outputs(model: nn.Module, *inputs: Tensor) -> Any:
    for name, mask in random_masks(model).items():
        model.get_parameter(name).mul_(mask)
    return model.eval()(*inputs)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


class Exchange(nn.Module):
    """Takes its branches as a list, into which it writes, as HRNet's stages do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        for i, block in enumerate(self.blocks):
            branches[i] = block(branches[i])
        return [branches[0] + branches[1], branches[1]]


class Branches(nn.Module):
    """Its stem is a Sequential of modules of the user, which a graph for train mode would call."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Block(), Block())
        self.exchange = nn.Sequential(nn.Sequential(Exchange()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.exchange([x, -x])[0]


class Sizes(nn.Module):
    """Takes sizes as numbers and makes positions of them, as EdgeNeXt's encoding does."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2, 4, 1)

    def forward(self, shape: tuple[int, int, int]) -> Tensor:
        places = torch.zeros(shape).cumsum(2, dtype=torch.float64)
        places = places.to(self.mix.weight.device, torch.float32) + 1
        places = torch.stack([places, places / 2], dim=1)
        return self.mix(torch.stack([places[..., 0::2], places[..., 1::2]], dim=-1).flatten(3))


class Placed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.sizes = Block(), Sizes()

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        return self.block(x) + self.sizes((batch, height, width))


class Remembers(nn.Module):
    """Adds to the list that its caller gave, as DLA's trees do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:
        seen.append(x)
        return self.fc(x)


class Tree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Remembers(), Remembers()

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        x = self.second(self.first(x, seen).tanh(), seen)
        return x + torch.cat(seen, dim=0).sum()


class Twice(nn.Module):
    """Chooses its forward when it is made, as FasterNet's convolutions do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.forward = getattr(self, f"forward_{how}")

    def forward_once(self, x: Tensor) -> Tensor:
        return self.fc(x)

    def forward_twice(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x)) if self.fc(x).dim() == 2 else x


@pytest.mark.parametrize(
    ("make", "size", "train_graph"),
    [
        (Branches, (3, 4, 6, 6), False),
        (Branches, (3, 4, 6, 6), True),
        (Placed, (3, 4, 6, 6), False),
        (Tree, (3, 4), False),
        (lambda: Twice("once"), (3, 4), False),
        (lambda: nn.Sequential(Twice("once"), Twice("twice")), (3, 4), True),
    ],
)
def test_described_together(
    make: Callable[[], nn.Module], size: tuple[int, ...], train_graph: bool
) -> None:
    torch.manual_seed(0)
    model, other = make(), torch.randn(size)
    report, rebuilt = encoded(model, torch.randn(size), train_graph=train_graph)
    assert "outputs equal" in report.verified
    assert ("eval and train mode" in report.verified) or not train_graph
    assert torch.equal(rebuilt.eval()(other), masked_outputs(model, other))


def test_a_forward_that_is_not_of_the_class() -> None:
    model = nn.Sequential(Twice("once"))
    function = model[0].forward_once
    model[0].forward = lambda x: function(x)
    with pytest.raises(UnsupportedModelError, match=r"'0' \(Twice\): its forward was replaced"):
        encoded(model, torch.randn(2, 4))


def test_a_forward_of_another_instance() -> None:
    model = nn.Sequential(Twice("once"), Twice("once"))
    model[0].forward = model[1].forward_once
    with pytest.raises(UnsupportedModelError, match=r"'0' \(Twice\): its forward was replaced"):
        encoded(model, torch.randn(2, 4))


def test_a_replaced_forward_of_a_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].forward = model[0].forward
    with pytest.raises(UnsupportedModelError, match=r"'0' \(Linear\): its forward was replaced"):
        encoded(model, torch.randn(2, 4))


def _doubled(self: nn.Module, x: Tensor) -> Tensor:
    return 2 * self.fc(x)


def test_a_method_that_only_the_instance_has() -> None:
    model = nn.Sequential(Twice("once"))
    model[0].forward = _doubled.__get__(model[0])
    x = torch.randn(3, 4)
    _, rebuilt = encoded(model, x)
    assert torch.equal(rebuilt.eval()(x), masked_outputs(model, x))


class Recurrent(nn.Module):
    """What is around its first layer cannot be exported: an LSTM over a batch as its sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm = Remembers(), nn.LSTM(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        return self.lstm(self.first(x, seen))[0] + torch.stack(seen).sum()


def test_both_reasons_are_told() -> None:
    both = (
        r"'0\.first' \(Remembers\): .*'seen' of forward is a list; together with what is around "
        r"it: torch\.export cannot trace forward: .*; to store"
    )
    with pytest.raises(UnsupportedModelError, match=both):
        encoded(nn.Sequential(Recurrent()), torch.randn(3, 4))


class ByValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = ByValue()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_one_reason_is_told_once() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        encoded(Around(), torch.randn(3, 4))
    assert str(caught.value).startswith("cannot describe module 'inner' (ByValue): forward has")
    assert str(caught.value).count("Could not guard") == 1


# ---------------------------------------------------------------------------------- caches


class DynamicCache:
    """As transformers', whose module's name it has."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


class StaticCache(DynamicCache):
    pass


DynamicCache.__module__ = "transformers.cache_utils"


class Config:
    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


class Decoder(nn.Module):
    """Returns a cache where its configuration says so."""

    def __init__(self, config: Config, cache: type = DynamicCache) -> None:
        super().__init__()
        self.config = config
        self.cache = cache
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.fc(x)
        cached = self.config.use_cache or getattr(self.config, "text", self.config).use_cache
        return {"hidden": x, "past_key_values": self.cache(x)} if cached else {"hidden": x}


class Answer(nn.Module):
    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        return tuple(self.decoder(x).values())


@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_caches_stay_out(cache: type) -> None:
    inner = Config(use_cache=True)
    config = Config(use_cache=True, text=inner)
    model, x = Decoder(config, cache), torch.randn(3, 4)
    report, rebuilt = encoded(model, x)
    assert (
        "the model returns caches of earlier calls, the file's network does not: it was described "
        "with use_cache=False"
    ) in report.notes
    assert config.use_cache
    assert inner.use_cache
    assert list(rebuilt(x)) == ["hidden"]
    assert torch.equal(rebuilt.eval()(x)["hidden"], masked_outputs(model, x)["hidden"])


def test_caches_in_a_tuple() -> None:
    model, x = Answer(Decoder(Config(use_cache=True))), torch.randn(3, 4)
    _, rebuilt = encoded(model, x)
    (hidden,) = rebuilt.eval()(x)
    assert torch.equal(hidden, masked_outputs(model, x)[0])


def test_without_a_cache_there_is_no_note() -> None:
    report, _ = encoded(Decoder(Config(use_cache=False)), torch.randn(3, 4))
    assert not any("cache" in note for note in report.notes)


class Otherwise(Decoder):
    def forward(self, x: Tensor) -> dict[str, Any]:
        output = super().forward(x)
        return {**output, "hidden": output["hidden"] * (2 if len(output) > 1 else 1)}


def test_other_outputs_without_a_cache_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="output differs in eval mode"):
        encoded(Otherwise(Config(use_cache=True)), torch.randn(3, 4))


# ---------------------------------------------------------------------- hooks of transformers


def _records(*_: Any) -> None:
    """As transformers' hooks do, which stay once a model was asked for hidden states."""


@pytest.mark.parametrize("where", ["transformers.utils.output_capturing", "elsewhere"])
def test_hooks_that_record(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_records, "__module__", where)
    model = nn.Sequential(Block())
    model[0].register_forward_hook(_records)
    if where == "elsewhere":
        with pytest.raises(UnsupportedModelError, match="it has hooks"):
            encoded(model, torch.randn(3, 4, 6, 6))
    else:
        encoded(model, torch.randn(3, 4, 6, 6))
