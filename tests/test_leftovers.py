"""What pruning and norms of torch leave in a module once they are removed changes nothing."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import pemncodec
from pemncodec import UnsupportedModelError


def pruned(*names: str) -> Callable[[nn.Module], None]:
    def change(layer: nn.Module) -> None:
        for name in names:
            prune.l1_unstructured(layer, name, 0.5)
            prune.remove(layer, name)

    return change


def with_old_norm(norm: str) -> Callable[[nn.Module], None]:
    def change(layer: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer torch has others
            getattr(nn.utils, norm)(layer)
            getattr(nn.utils, f"remove_{norm}")(layer)

    return change


def with_norm(norm: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], None]:
    def change(layer: nn.Module) -> None:
        norm(layer)
        parametrize.remove_parametrizations(layer, "weight")

    return change


def with_hooks(layer: nn.Module) -> None:
    def hook(*_: Any) -> None:
        pass

    for register in (
        layer.register_forward_hook,
        layer.register_forward_pre_hook,
        layer.register_full_backward_hook,
        layer.register_full_backward_pre_hook,
        layer.register_state_dict_post_hook,
        layer.register_state_dict_pre_hook,
        layer.register_load_state_dict_pre_hook,
        layer.register_load_state_dict_post_hook,
    ):
        register(hook).remove()


def in_another_order(layer: nn.Module) -> None:
    for tensors in (layer._parameters, layer._buffers):
        for name in sorted(tensors, reverse=True):
            tensors[name] = tensors.pop(name)


def in_attention(change: Callable[[nn.Module], None], name: str) -> Callable[[nn.Module], None]:
    return lambda layer: change(layer.get_submodule(name))


LINEAR, WIDE = (lambda: nn.Linear(4, 4)), (lambda: nn.Conv2d(4, 6, 3))
CHANGES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], None]]] = {
    "prune.remove": (LINEAR, pruned("weight")),
    "prune.remove of two": (LINEAR, pruned("bias", "weight")),
    "prune.remove in a convolution": (WIDE, pruned("weight")),
    "prune.remove in an LSTM": (
        lambda: nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True),
        pruned("weight_ih_l0", "bias_hh_l1_reverse", "weight_hh_l1"),
    ),
    "prune.remove in a batch norm": (lambda: nn.BatchNorm2d(4), pruned("weight")),
    "prune.remove in attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        in_attention(pruned("in_proj_weight"), "self_attn"),
    ),
    "prune.remove below attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        in_attention(pruned("weight"), "self_attn.out_proj"),
    ),
    "weight_norm": (LINEAR, with_old_norm("weight_norm")),
    "spectral_norm": (LINEAR, with_old_norm("spectral_norm")),
    "parametrized weight_norm": (WIDE, with_norm(parametrizations.weight_norm)),
    "parametrized spectral_norm": (WIDE, with_norm(parametrizations.spectral_norm)),
    "parametrized orthogonal": (LINEAR, with_norm(parametrizations.orthogonal)),
    "hooks": (LINEAR, with_hooks),
    "buffers": (lambda: nn.BatchNorm2d(4), in_another_order),
}
SHAPES = {nn.Conv2d: (2, 4, 5, 5), nn.BatchNorm2d: (2, 4, 5, 5), nn.Linear: (2, 4)}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_is_described_whatever_was_removed_from_it(change: str, nested: bool) -> None:
    torch.manual_seed(0)
    make, leave = CHANGES[change]
    layer, plain = make(), make()
    leave(layer)
    inputs = torch.randn(SHAPES.get(type(layer), (2, 3, 4)))
    module = nn.Sequential(nn.Identity(), layer) if nested else layer
    masks = {name: tensor != 0 for name, tensor in module.named_parameters() if tensor.dim() > 1}
    if not masks:
        masks = {name: tensor != 0 for name, tensor in module.named_parameters()}
    before = list(module.state_dict())
    stream = io.BytesIO()
    pemncodec.encode(module, stream, masks=masks, example_inputs=inputs)
    assert list(module.state_dict()) == before  # its source stays as it was
    decoded = pemncodec.decode(stream)
    names = [f"1.{name}" if nested else name for name in plain.state_dict()]
    assert list(decoded.state_dict()) == names
    assert list(pemncodec.load_state_dict(stream)) == names
    with torch.no_grad():
        expected, actual = module.eval()(inputs), decoded(inputs)
    if isinstance(layer, nn.LSTM):
        expected, actual = expected[0], actual[0]
    assert torch.equal(actual, expected)


def test_the_order_of_a_state_dict_does_not_matter_to_its_architecture() -> None:
    layer, plain = nn.Linear(4, 3), nn.Linear(4, 3)
    state = dict(reversed(layer.state_dict().items()))
    stream = io.BytesIO()
    pemncodec.encode(state, stream, masks={"weight": torch.ones(3, 4)}, architecture=plain)
    assert list(pemncodec.load_state_dict(stream)) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("norm", "words"),
    [
        ("weight_norm", r"has hooks \(forward_pre_hooks\).*torch\.nn\.utils\.remove_weight_norm"),
        ("parametrized", r"has parametrizations \(torch\.nn\.utils\.parametrize\.remove_param"),
    ],
)
def test_norms_that_are_still_there_are_refused_with_what_removes_them(
    norm: str, words: str
) -> None:
    layer = nn.Linear(4, 3)
    if norm == "parametrized":
        parametrizations.weight_norm(layer)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(nn.utils, norm)(layer)
    with pytest.raises(UnsupportedModelError, match=words):
        pemncodec.encode(layer, io.BytesIO(), masks={"bias": torch.ones(3)})


def test_hooks_of_the_user_are_still_refused() -> None:
    def hook(*_: Any) -> None:
        pass

    layer = nn.Linear(4, 3)
    handle = layer.register_load_state_dict_pre_hook(hook)
    masks: dict[str, Tensor] = {"weight": torch.ones(3, 4)}
    with pytest.raises(UnsupportedModelError, match=r"has hooks \(load_state_dict_pre_hooks\)"):
        pemncodec.encode(layer, io.BytesIO(), masks=masks)
    handle.remove()
    pemncodec.encode(layer, io.BytesIO(), masks=masks)


def test_a_mask_of_its_own_beside_a_weight_is_no_pruning() -> None:
    class OwnMask(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.register_buffer("weight_mask", (torch.rand(4, 4) < 0.5).float())

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight * self.weight_mask, self.bias)

    model = nn.Sequential(OwnMask(), nn.Linear(4, 2))
    stream = io.BytesIO()
    pemncodec.encode(
        model,
        stream,
        masks={"0.weight": model[0].weight_mask != 0},
        example_inputs=torch.rand(5, 4),
    )
    state = pemncodec.load_state_dict(stream)
    assert torch.equal(state["0.weight_mask"], model[0].weight_mask)
    assert torch.equal(state["0.weight"], (model[0].weight * model[0].weight_mask).detach() + 0.0)
