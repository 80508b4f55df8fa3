"""Masked models: frozen values, masks, gradients, and what they encode to."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode

import pemncodec
from pemncodec import SeededPrototype
from pemncodec.masking import (
    Independent,
    KeepSchedule,
    MaskedWeight,
    MaxLayerPadding,
    OneLayer,
    RandomPadding,
    Stochastic,
    Strategy,
    Threshold,
    TopK,
    advance_keep,
    bake,
    mask_model,
    masked_state,
    parameter_groups,
)
from pemncodec.masking.selection import Selection
from pemncodec.masking.top_k import (
    keep_largest,
    score_gradient,
    top_k_mask,
    top_k_mask_by_sort,
)
from pemncodec.values.philox import generate

STRATEGIES: list[Strategy] = [
    OneLayer(),
    MaxLayerPadding(),
    RandomPadding(ratio=0.01),
    RandomPadding(length=5),
    RandomPadding(length=5, mode="shuffle"),
    Independent(),
]
SELECTIONS: list[Selection] = [
    TopK(),
    TopK("score"),
    TopK(scope="global"),
    Threshold(),
    Threshold(0.01, "magnitude"),
    Stochastic(),
]
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
each_selection = pytest.mark.parametrize("selection", SELECTIONS, ids=repr)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def train(model: nn.Module, steps: int = 3, x: Tensor | None = None) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=0.01)
    x = images() if x is None else x
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def frozen(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if name.endswith(".original")}


def scores_of(model: nn.Module, name: str = "5") -> Tensor:
    return model.get_parameter(f"{name}.parametrizations.weight.0.scores")


def by_stable_sort(ranked: Tensor, kept: int) -> Tensor:
    order = ranked.reshape(-1).sort(stable=True).indices
    mask = torch.zeros(ranked.numel(), dtype=torch.bool)
    mask[order[ranked.numel() - kept :]] = True
    return mask.view(ranked.shape)


# ----------------------------------------------------------------------------- frozen values


def test_one_layer_shares_values_within_a_shape_and_only_there() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 8))
    mask_model(model, OneLayer(), seed=3)
    first, second, third = frozen(model).values()
    assert torch.equal(first, second)
    assert not torch.equal(first, third[:4])
    expected = generate("normal", 3, 0, 16) * np.float32(math.sqrt(2 / 4))
    assert torch.equal(first.reshape(-1), torch.from_numpy(expected))


def test_max_layer_padding_gives_every_layer_the_head_of_the_largest() -> None:
    model = mask_model(network(), MaxLayerPadding(), seed=1)
    flat = [weight.reshape(-1) for weight in frozen(model).values()]
    largest = max(flat, key=Tensor.numel)
    for weight in flat:
        assert torch.equal(weight, largest[: weight.numel()])
    assert largest.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.1)


def test_random_padding_repeats_the_official_number_of_values() -> None:
    model = mask_model(network(), RandomPadding(ratio=0.01))
    for weight in frozen(model).values():
        flat = weight.reshape(-1)
        assert torch.equal(flat, flat[torch.arange(flat.numel()) % 13])  # int(1280 · 0.01) + 1


def test_a_shuffle_has_every_value_equally_often_in_another_order() -> None:
    copied = mask_model(network(), RandomPadding(length=5))
    shuffled = mask_model(network(), RandomPadding(length=5, mode="shuffle"))
    plain, mixed = frozen(copied)[LINEAR], frozen(shuffled)[LINEAR]
    assert torch.equal(plain.reshape(-1).sort().values, mixed.reshape(-1).sort().values)
    assert not torch.equal(plain, mixed)


LINEAR = "5.parametrizations.weight.original"


def test_independent_layers_of_one_shape_differ() -> None:
    model = mask_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), Independent())
    first, second = frozen(model).values()
    assert not torch.equal(first, second)


@pytest.mark.parametrize("distribution", ["normal", "signed-constant", "uniform"])
def test_initializations_have_kaiming_standard_deviation(distribution: str) -> None:
    layer = nn.Linear(200, 300)
    mask_model(layer, Independent(), distribution=distribution)  # type: ignore[arg-type]
    weight = layer.get_parameter("parametrizations.weight.original")
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.01)
    if distribution == "signed-constant":
        assert weight.abs().unique().numel() == 1


def test_rescale_gives_each_layer_its_own_fan_in() -> None:
    model = mask_model(network(), MaxLayerPadding(), distribution="signed-constant", rescale=True)
    expected = [math.sqrt(2 / fan_in) for fan_in in (27, 9, 128)]
    actual = [weight.abs().max().item() for weight in frozen(model).values()]
    assert actual == pytest.approx(expected)


@each_strategy
def test_the_result_depends_on_the_seed_alone(strategy: Strategy) -> None:
    states = [mask_model(network(), strategy, seed=seed).state_dict()[LINEAR] for seed in (7, 7, 8)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_keep_their_dtype(dtype: torch.dtype) -> None:
    layer = mask_model(nn.Linear(8, 8).to(dtype), MaxLayerPadding())
    layer(torch.randn(2, 8, dtype=dtype)).sum().backward()
    assert layer.weight.dtype == dtype
    stream = io.BytesIO()
    pemncodec.encode(layer, stream, manifest=False)
    assert torch.equal(pemncodec.load_state_dict(stream)["weight"], bake(layer).weight)


# ------------------------------------------------------------------------------------ masks


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0]), max_size=60)
    | st.lists(st.floats(-1e9, 1e9, width=32), max_size=60),
    st.data(),
)
def test_every_top_k_agrees_with_a_stable_sort(values: list[float], data: st.DataObject) -> None:
    ranked = torch.tensor(values, dtype=torch.float32)
    kept = data.draw(st.integers(0, len(values)))
    expected = by_stable_sort(ranked, kept)
    assert torch.equal(top_k_mask(ranked, torch.tensor(kept)), expected)
    assert torch.equal(top_k_mask_by_sort(ranked, torch.tensor(kept)), expected)


@pytest.mark.parametrize("size", [1, 100, 4097, 300_000])
@pytest.mark.parametrize("distinct", [2, 1000, 1 << 24])
def test_top_k_of_large_tensors(size: int, distinct: int) -> None:
    generator = torch.Generator().manual_seed(size)
    ranked = torch.randint(distinct, (size,), generator=generator) / distinct - 0.5
    for kept in (0, 1, size // 3, size - 1, size):
        expected = by_stable_sort(ranked, kept)
        assert torch.equal(top_k_mask(ranked, torch.tensor(kept)), expected)
        assert torch.equal(top_k_mask_by_sort(ranked, torch.tensor(kept)), expected)


def test_masks_of_channels_last_scores_go_by_logical_order() -> None:
    model = mask_model(network(), MaxLayerPadding()).to(memory_format=torch.channels_last)
    scores = scores_of(model, "0")
    scores.data = torch.ones_like(scores)
    kept = scores.numel() - int(0.5 * scores.numel())
    mask = masked_state(model).masks["0.weight"].reshape(-1)
    assert mask[-kept:].all()
    assert mask.sum() == kept
    assert np.array_equal((model[0].weight != 0).numpy().reshape(-1), mask)


def test_keep_by_pattern() -> None:
    model = mask_model(network(), OneLayer(), keep={"5.*": 0.9, "*": 0.2})
    share = {name: mask.mean() for name, mask in masked_state(model).masks.items()}
    assert share == pytest.approx({"0.weight": 0.2, "3.weight": 0.2, "5.weight": 0.9}, abs=0.02)
    mask_model(network(), OneLayer(), keep={"?.*": 0.9, "*": 0.2})  # for others, if there are any
    with pytest.raises(ValueError, match=r"keep: 5\.\* never applies behind \*: put it first"):
        mask_model(network(), OneLayer(), keep={"*": 0.2, "5.*": 0.9})


def test_a_global_selection_keeps_the_largest_of_all_layers() -> None:
    model = mask_model(network(), OneLayer(), keep=0.25, selection=TopK(scope="global"))
    scores_of(model).data.mul_(0.01)
    masks = masked_state(model).masks
    total = sum(mask.size for mask in masks.values())
    assert sum(mask.sum() for mask in masks.values()) == total - int(0.75 * total)
    assert masks["0.weight"].mean() > 0.8
    ranked = torch.cat([scores_of(model, n).abs().flatten() for n in ("0", "3", "5")])
    together = np.concatenate([mask.reshape(-1) for mask in masks.values()])
    assert np.array_equal(by_stable_sort(ranked, int(together.sum())).numpy(), together)
    model(images())
    for name, mask in masks.items():
        weight = model.get_submodule(name[0]).weight
        assert isinstance(weight, Tensor)
        assert np.array_equal((weight != 0).numpy(), mask)


def test_thresholds() -> None:
    layer = mask_model(nn.Linear(8, 8), OneLayer(), selection=Threshold(0.25))
    with torch.no_grad():
        scores_of(nn.Sequential(layer), "0").copy_(torch.linspace(-1, 1, 64).view(8, 8))
    assert np.array_equal(
        masked_state(layer).masks["weight"], np.linspace(-1, 1, 64).reshape(8, 8) > 0.25
    )


@pytest.mark.parametrize("selection", [Threshold(), Threshold(0.1, "magnitude"), Stochastic()])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_keep_is_the_share_at_the_start(selection: Selection, keep: float) -> None:
    layer = mask_model(nn.Linear(100, 200), OneLayer(), keep=keep, selection=selection)
    share = (layer.weight != 0).float().mean().item()
    assert share == pytest.approx(keep, abs=0.02)


def test_stochastic_masks_are_drawn_in_training_and_fixed_in_eval() -> None:
    layer = mask_model(nn.Linear(50, 50), OneLayer(), selection=Stochastic())
    assert not torch.equal(layer.weight, layer.weight)
    layer.eval()
    assert torch.equal(layer.weight, layer.weight)
    assert np.array_equal((layer.weight != 0).numpy(), masked_state(layer).masks["weight"])


def test_a_schedule_moves_keep() -> None:
    schedule = KeepSchedule(1.0, 0.2, steps=4, begin=1, power=1)
    layer = mask_model(nn.Linear(10, 10), OneLayer(), keep=schedule)
    counts = []
    for _ in range(7):
        counts.append(int(masked_state(layer).masks["weight"].sum()))
        assert int((layer.weight != 0).sum()) == counts[-1]
        advance_keep(layer)
    assert counts == pytest.approx([100, 100, 80, 60, 40, 20, 20], abs=1)


# ---------------------------------------------------------------------------------- gradients


def surrogate_gradient(selection: Selection, scores: Tensor) -> Tensor:
    if isinstance(selection, Stochastic):
        return scores.sigmoid() * (1 - scores.sigmoid())
    return scores.sign() if selection.by == "magnitude" else torch.ones_like(scores)


@each_selection
def test_the_gradient_is_the_straight_through_formula(selection: Selection) -> None:
    layer = nn.Linear(5, 3, bias=False)
    mask_model(layer, Independent(), seed=1, selection=selection).eval()
    weight = layer.get_parameter("parametrizations.weight.original")
    scores = layer.get_parameter("parametrizations.weight.0.scores")
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    target = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    ((layer(x) - target) ** 2).sum().backward()
    mask = torch.from_numpy(masked_state(layer).masks["weight"])
    effective = weight * mask
    by_effective_weight = 2 * (x @ effective.T - target).T @ x
    expected = by_effective_weight * weight * surrogate_gradient(selection, scores)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, expected.detach())
    assert weight.grad is None


@each_selection
def test_every_score_learns_from_the_start(selection: Selection) -> None:
    layer = mask_model(nn.Linear(64, 64), Independent(), selection=selection)
    layer(torch.randn(5, 64)).square().sum().backward()
    gradient = layer.get_parameter("parametrizations.weight.0.scores").grad
    assert gradient is not None
    assert gradient.count_nonzero() == gradient.numel()


class NoWait(TorchDispatchMode):
    """Refuses to hand a value to the host, for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_ranking_on_a_device_does_not_wait_for_the_host() -> None:
    ranked, kept = torch.randn(5, 7), torch.tensor(9)
    with NoWait():
        mask = top_k_mask_by_sort(ranked, kept)
    assert torch.equal(mask, by_stable_sort(ranked, 9))


@each_strategy
@each_selection
def test_training_changes_scores_and_never_frozen_weights(
    strategy: Strategy, selection: Selection
) -> None:
    model = mask_model(network(), strategy, selection=selection)
    before = copy.deepcopy(model.state_dict())
    train(model)
    after = model.state_dict()
    frozen_names = [n for n in after if n.endswith((".original", "_extra_state"))]
    scores = [n for n in after if n.endswith(".scores")]
    assert len(scores) == 3
    assert len(frozen_names) == 6  # three weights and their recipes
    assert all(torch.equal(after[name], before[name]) for name in frozen_names)
    assert not any(torch.equal(after[name], before[name]) for name in scores)


def test_scores_decay_only_where_asked() -> None:
    model = mask_model(network(), OneLayer())
    groups = parameter_groups(model, weight_decay=0.1)
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1]
    assert [len(group["params"]) for group in groups] == [3, 4]
    assert parameter_groups(model, weight_decay=0.1, scores_weight_decay=0.1)[0]["weight_decay"]


def plain_layer(dtype: torch.dtype, magnitude: bool, order: torch.memory_format) -> nn.Conv2d:
    layer = nn.Conv2d(6, 5, 3)
    mask_model(layer, Independent(), selection=TopK("magnitude" if magnitude else "score"))
    layer.get_parameter("parametrizations.weight.0.scores").data[0, 0] = 0  # of no sign
    return layer.to(dtype, memory_format=order)  # type: ignore[call-overload, no-any-return]


@pytest.mark.usefixtures("kernels_implementation")
@pytest.mark.parametrize("magnitude", [True, False])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_kernels_and_plain_torch_agree(magnitude: bool, order: torch.memory_format) -> None:
    results = []
    for dtype, form in ((torch.float32, torch.contiguous_format), (torch.float64, order)):
        layer = plain_layer(torch.float32, magnitude, form).to(dtype)
        scores = layer.get_parameter("parametrizations.weight.0.scores")
        weight = layer.weight
        upstream = torch.linspace(-1, 1, weight.numel(), dtype=dtype).view_as(weight)
        upstream.requires_grad_()
        (first,) = torch.autograd.grad(weight, scores, upstream, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), upstream)
        assert weight.stride() == layer.parametrizations.weight.original.stride()
        results.append([t.detach().float().contiguous() for t in (weight, first, second)])
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("magnitude", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_operators_keep_what_torch_asks_of_them(
    magnitude: bool, dtype: torch.dtype, order: torch.memory_format
) -> None:
    shape = (4, 3, 2, 2)
    operators = torch.ops.pemncodec
    weight = torch.randn(shape).to(dtype, memory_format=order)
    scores = torch.randn(shape).to(memory_format=order)
    torch.library.opcheck(operators.top_k_mask.default, (scores, torch.tensor(20)))
    torch.library.opcheck(
        operators.keep_largest.default, (weight, scores, torch.tensor(20), magnitude)
    )
    gradient = torch.randn(shape).to(dtype)
    torch.library.opcheck(operators.score_gradient.default, (gradient, weight, scores, magnitude))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
@pytest.mark.parametrize("magnitude", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_gradients_compile_as_one_graph(
    magnitude: bool, dtype: torch.dtype, order: torch.memory_format
) -> None:
    shape = (4, 3, 2, 2)
    weight = torch.randn(shape).to(dtype, memory_format=order)
    scores = torch.randn(shape).to(memory_format=order).requires_grad_()
    gradient = torch.randn(shape).to(dtype).requires_grad_()
    kept = torch.tensor(20)

    def largest() -> Tensor:
        return keep_largest(weight, scores, kept, magnitude)

    def product() -> Tensor:
        return score_gradient(gradient, weight, scores.detach(), magnitude)

    for function, source in ((largest, scores), (product, gradient)):
        torch._dynamo.reset()
        results = []
        for run in (
            function,
            torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True),
        ):
            result = run()
            assert result.stride() == (weight if source is scores else scores).stride()
            (back,) = torch.autograd.grad(result, source, torch.ones_like(result))
            results.append((result.detach(), back))
        torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func's own
@pytest.mark.parametrize("selection", [TopK(), TopK("score"), Threshold(), Stochastic()])
def test_functional_derivatives_by_the_input(selection: Selection) -> None:
    layer = mask_model(nn.Linear(4, 3), Independent(), selection=selection).eval()
    weight = layer.weight.detach()
    x, tangent = torch.randn(2, 2, 4)
    _, along = torch.func.jvp(layer, (x,), (tangent,))
    torch.testing.assert_close(along, tangent @ weight.T)
    by_input = torch.func.grad(lambda given: layer(given).sum())(x)
    torch.testing.assert_close(by_input, weight.sum(0).expand(2, 4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func's own
@pytest.mark.parametrize("selection", [TopK(), TopK("score"), Threshold(), Stochastic()])
def test_functional_derivatives_by_the_scores(selection: Selection) -> None:
    layer = mask_model(nn.Linear(4, 3), Independent(), selection=selection).eval()
    name = "parametrizations.weight.0.scores"
    x, scores = torch.randn(2, 4), layer.get_parameter(name)

    def loss(given: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(layer, {name: given}, (x,))
        return result.square().sum()

    (expected,) = torch.autograd.grad(loss(scores), scores)
    assert expected.count_nonzero() > 0
    assert torch.equal(torch.func.grad(loss)(scores.detach()), expected)
    # The straight-through gradient is no derivative along a direction.
    with pytest.raises(NotImplementedError):
        torch.func.jvp(loss, (scores.detach(),), (torch.ones_like(scores),))


# ------------------------------------------------------------------------------ which weights

LAYERS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Conv1d(2, 3, 3), (1, 2, 8)),
    (lambda: nn.Conv2d(2, 3, 3), (1, 2, 8, 8)),
    (lambda: nn.Conv3d(2, 3, 3), (1, 2, 4, 4, 4)),
    (lambda: nn.ConvTranspose1d(2, 3, 3), (1, 2, 8)),
    (lambda: nn.ConvTranspose2d(2, 3, 3), (1, 2, 8, 8)),
    (lambda: nn.ConvTranspose3d(2, 3, 3), (1, 2, 4, 4, 4)),
    (lambda: nn.Linear(4, 3), (2, 4)),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_every_kind_of_layer(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    layer = mask_model(make(), Independent()).eval()
    x = torch.randn(shape)
    expected = layer(x)
    stream = io.BytesIO()
    pemncodec.encode(layer, stream, example_inputs=x)
    assert torch.equal(pemncodec.decode(stream)(x), expected)
    assert torch.equal(bake(layer)(x), expected)
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_embeddings() -> None:
    layer = mask_model(nn.Embedding(10, 4), Independent())
    expected = layer(torch.arange(10))
    stream = io.BytesIO()
    pemncodec.encode(layer, stream, example_inputs=torch.arange(10))
    assert torch.equal(pemncodec.decode(stream)(torch.arange(10)), expected)


@pytest.mark.parametrize("own_sizes", [False, True])
def test_attention(own_sizes: bool) -> None:
    kwargs = {"kdim": 4, "vdim": 6} if own_sizes else {}
    layer = nn.MultiheadAttention(8, 2, batch_first=True, **kwargs)
    names = list(layer.state_dict())
    masked = (
        ["q_proj_weight", "k_proj_weight", "v_proj_weight"] if own_sizes else ["in_proj_weight"]
    )
    mask_model(layer, Independent())
    assert list(masked_state(layer).masks) == [*masked, "out_proj.weight"]
    inputs = [torch.randn(2, 5, size) for size in ((8, 4, 6) if own_sizes else (8, 8, 8))]
    layer(*inputs)[0].sum().backward()
    layer.eval()
    with torch.no_grad():
        expected = layer(*inputs)[0]
        stream = io.BytesIO()
        pemncodec.encode(layer, stream, manifest=False)
        plain = nn.MultiheadAttention(8, 2, batch_first=True, **kwargs).eval()
        plain.load_state_dict(pemncodec.load_state_dict(stream))
        plain.requires_grad_(False)  # on which torch chooses its kernels
        assert torch.equal(plain(*inputs)[0], expected)
        assert sorted(bake(layer).state_dict()) == sorted(names)
        assert torch.equal(layer(*inputs)[0], expected)


def test_attention_from_a_state_dict() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y

    x = torch.randn(2, 5, 16)
    model = mask_model(Encoder(), RandomPadding(ratio=0.01)).eval()
    masks = {name: torch.from_numpy(mask) for name, mask in masked_state(model).masks.items()}
    baked = bake(copy.deepcopy(model))
    pruned = Encoder()
    prune.random_unstructured(pruned.layer.self_attn, "in_proj_weight", 0.5)
    sources: list[tuple[nn.Module, Any, dict[str, Any]]] = [
        (model, model, {}),
        (model, model.state_dict(), {"architecture": Encoder()}),
        (model, baked.state_dict(), {"architecture": Encoder(), "masks": masks}),
        (model, baked.requires_grad_(True), {"masks": masks}),
        (pruned, pruned.state_dict(), {"architecture": Encoder()}),
        (pruned, pruned, {}),
    ]
    for original, source, options in sources:
        stream = io.BytesIO()
        pemncodec.encode(source, stream, example_inputs=x, **options)
        with torch.no_grad():
            torch.testing.assert_close(pemncodec.decode(stream)(x), original.eval()(x))


def test_a_transformer_in_eval_mode_takes_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    mask_model(layer, RandomPadding(length=7)).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = layer(x)
        torch.testing.assert_close(bake(layer)(x), expected)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.head = nn.Linear(6, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(x))
        return logits


@pytest.mark.parametrize("selection", [TopK(), TopK(scope="global")], ids=repr)
def test_tied_weights_stay_tied(selection: Selection) -> None:
    model = mask_model(Tied(), Independent(), keep=0.3, selection=selection)
    x = torch.arange(12)
    train(model, x=x)
    assert len([p for p in model.parameters() if p.requires_grad]) == 1
    expected = model(x)
    stream = io.BytesIO()
    report = pemncodec.encode(model, stream, example_inputs=x)
    assert [t.kind for t in report.info.tensors] == ["masked", "alias"]
    assert torch.equal(pemncodec.decode(stream)(x), expected)
    bake(model)
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model(x), expected)


def test_include_and_exclude() -> None:
    assert list(masked_state(mask_model(network(), OneLayer(), include="0.*")).masks) == [
        "0.weight"
    ]
    model = mask_model(network(), OneLayer(), exclude=["5.weight", "3.*"])
    assert list(masked_state(model).masks) == ["0.weight"]
    mask_model(model, Independent(), seed=9, exclude="0.*")
    assert list(masked_state(model).masks) == ["0.weight", "3.weight", "5.weight"]


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.LazyLinear(3)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (network, {"keep": 0.0}, "keep ratio"),
        (network, {"keep": 1.5}, "keep ratio"),
        (network, {"keep": {"0.*": 0.5}}, "nothing for 3.weight"),
        (network, {"keep": {"*": 0.5, "x": 0.5}}, "called x"),
        (network, {"include": "conv*"}, "called conv"),
        (network, {"exclude": "*"}, "leave no weights"),
        (network, {"distribution": "cauchy"}, "unknown distribution"),
        (network, {"seed": -1}, "64-bit"),
        (nn.ReLU, {}, "no weights"),
        (lazy, {}, "no values yet"),
        (lambda: nn.Linear(2, 2, device="meta"), {}, "no values yet"),
        (lambda: nn.Linear(2, 2, dtype=torch.complex64), {}, "complex64"),
        (lambda: nn.Embedding(2, 2, sparse=True), {}, "sparse"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), {}, "parametrized"),
        (lambda: nn.utils.prune.l1_unstructured(nn.Linear(2, 2), "weight", 1), {}, "pruned"),
        (lambda: mask_model(nn.Linear(2, 2), OneLayer()), {}, "parametrized already"),
        (
            lambda: mask_model(network(), OneLayer(), include="0.*"),
            {"include": "5.*", "selection": TopK(scope="global")},
            "whole model",
        ),
    ],
)
def test_what_cannot_be_masked_is_refused_and_left_alone(
    model: Callable[[], nn.Module], options: dict[str, object], message: str
) -> None:
    plain = model()
    before = [(name, id(p)) for name, p in plain.named_parameters()]
    with pytest.raises(ValueError, match=message):
        mask_model(plain, OneLayer(), **options)  # type: ignore[arg-type]
    assert [(name, id(p)) for name, p in plain.named_parameters()] == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomPadding(), "either a ratio or a length"),
        (lambda: RandomPadding(ratio=0.1, length=3), "either a ratio or a length"),
        (lambda: RandomPadding(ratio=-1), "from 0 to 1, not -1"),
        (lambda: RandomPadding(ratio=1.01), "from 0 to 1, not 1.01"),
        (lambda: RandomPadding(length=0), "positive, not 0"),
        (lambda: RandomPadding(length=3, mode="rand"), "not 'rand'"),  # type: ignore[arg-type]
        (lambda: TopK("random"), "not 'random'"),  # type: ignore[arg-type]
        (lambda: Threshold(math.nan), "cannot be nan"),
        (lambda: Threshold(-1.0, "magnitude"), "magnitudes cannot be -1"),
        (lambda: Threshold(0.0, "magnitude"), "magnitudes cannot be 0"),
        (lambda: KeepSchedule(1.0, 0.0, 10), "above 0 and at most 1, not 0"),
        (lambda: KeepSchedule(1.0, 0.5, 0), "steps ≥ 1"),
    ],
)
def test_options_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("rp", {}, "strategy is OneLayer"),
        (OneLayer, {}, "strategy is OneLayer"),
        (OneLayer(), {"selection": "topk"}, "selection is TopK"),
        (OneLayer(), {"selection": Threshold(), "keep": KeepSchedule(1, 0.5, 9)}, "KeepSchedule"),
    ],
)
def test_what_is_no_strategy_or_selection_is_refused(
    strategy: object, options: dict[str, object], message: str
) -> None:
    plain = network()
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(ValueError, match=message):
        mask_model(plain, strategy, **options)  # type: ignore[arg-type]
    assert all(torch.equal(plain.state_dict()[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in plain.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapped_model_is_refused(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(ValueError, match="before it is compiled or wrapped"):
        mask_model(wrap(network()), OneLayer())


def test_a_schedule_of_numpy_numbers_is_saved() -> None:
    numbers: tuple[Any, ...] = (np.float32(1), 0.25, np.int64(5), np.int32(1), np.float32(2))
    schedule = KeepSchedule(*numbers)
    model = mask_model(nn.Linear(9, 9), OneLayer(), keep=schedule)
    twin = mask_model(nn.Linear(9, 9), OneLayer(), keep=KeepSchedule(1.0, 0.25, 5, 1, 2.0))
    first, second = model.state_dict(), twin.state_dict()
    recipe = "parametrizations.weight.0._extra_state"
    assert torch.equal(first[recipe], second[recipe])
    twin.load_state_dict(first)


def test_numbers_of_numpy() -> None:
    made = [
        mask_model(
            nn.Linear(9, 9, bias=False),
            RandomPadding(length=length),
            seed=seed,
            keep=keep,
            selection=selection,
        )
        for length, seed, keep, selection in (
            (5, 7, 0.25, Threshold(0.5)),
            (np.int64(5), np.int64(7), np.float32(0.25), Threshold(np.float32(0.5))),  # type: ignore[arg-type]
        )
    ]
    first, second = (model.state_dict() for model in made)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_tied_weight_goes_by_each_of_its_names() -> None:
    def tied() -> nn.ModuleDict:
        model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5)})
        model["head"].weight = model["embedding"].weight
        return model

    for pattern in ("head.*", "embedding.*"):
        assert masked_state(mask_model(tied(), OneLayer(), include=pattern)).masks
        with pytest.raises(ValueError, match="leave no weights"):
            mask_model(tied(), OneLayer(), exclude=pattern)
        kept = mask_model(tied(), OneLayer(), keep={pattern: 0.25})
        assert next(iter(masked_state(kept).masks.values())).sum() == 5


# ----------------------------------------------------------------------- life with a model


@each_selection
def test_save_and_resume(tmp_path: Path, selection: Selection) -> None:
    keep = KeepSchedule(0.9, 0.3, 5) if isinstance(selection, TopK) else 0.4
    model = mask_model(network(), RandomPadding(length=7), keep=keep, selection=selection)
    train(model)
    advance_keep(model)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    scope = selection.scope if isinstance(selection, TopK) else "layer"
    other = mask_model(network(), OneLayer(), seed=99, selection=TopK(scope=scope))
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    model.eval()
    other.eval()
    assert torch.equal(other(images()), model(images()))
    advance_keep(model)
    advance_keep(other)
    assert torch.equal(other(images()), model(images()))


@pytest.mark.parametrize("scopes", [("layer", "global"), ("global", "layer")])
def test_a_state_that_ranks_otherwise_is_refused(scopes: tuple[str, str]) -> None:
    model, other = (
        mask_model(network(), OneLayer(), selection=TopK(scope=scope))  # type: ignore[arg-type]
        for scope in scopes
    )
    with pytest.raises(ValueError, match="with the selection of the state"):
        other.load_state_dict(model.state_dict())


def test_layers_ranked_together_in_a_part_of_a_model() -> None:
    backbone = mask_model(network(), MaxLayerPadding(), selection=TopK(scope="global"))
    shares = [m.kept / m.scores.numel() for m in backbone.modules() if isinstance(m, MaskedWeight)]
    assert len({round(float(share), 3) for share in shares}) > 1  # before the first forward, too
    outer = nn.Sequential(backbone, nn.ReLU()).eval()
    expected = outer(images())
    stream = io.BytesIO()
    pemncodec.encode(outer, stream, example_inputs=images())
    assert torch.equal(pemncodec.decode(stream)(images()), expected)
    assert torch.equal(bake(outer)(images()), expected)


def test_layers_ranked_together_are_all_needed() -> None:
    selection = TopK(scope="global")
    model = mask_model(network(), OneLayer(), selection=selection)
    two = nn.Sequential(
        *(mask_model(nn.Linear(6, 6), OneLayer(), selection=selection) for _ in range(2))
    )
    for part, advice in ((model[5], "give the whole model"), (two, "give that model alone")):
        for use in (masked_state, bake, lambda part: pemncodec.encode(part, io.BytesIO())):
            with pytest.raises(pemncodec.EncodeError, match=advice):
                use(part)
        with pytest.raises(pemncodec.EncodeError, match=advice):
            pemncodec.encode(part.state_dict(), io.BytesIO(), manifest=False)


def test_copies_of_a_tied_weight_are_not_ranked_together() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5)})
    model["head"].weight = model["embedding"].weight
    state = mask_model(model, OneLayer(), selection=TopK(scope="global")).state_dict()
    pemncodec.encode(state, io.BytesIO(), manifest=False)
    copies = {name: tensor.clone() for name, tensor in state.items()}
    with pytest.raises(pemncodec.EncodeError, match="tied weights as one tensor"):
        pemncodec.encode(copies, io.BytesIO(), manifest=False)


@pytest.mark.parametrize("together", [0, -1, 9])
def test_a_recipe_whose_ranking_is_of_no_model_is_refused(together: int) -> None:
    scope: Literal["layer", "global"] = "layer" if together > 0 else "global"
    model = mask_model(nn.Linear(3, 3), OneLayer(), selection=TopK(scope=scope))
    masked = model.parametrizations.weight[0]
    masked.recipe = dataclasses.replace(masked.recipe, together=together)
    state = model.state_dict()
    with pytest.raises(pemncodec.EncodeError, match="not the recipe"):
        pemncodec.encode(state, io.BytesIO(), manifest=False)
    with pytest.raises(ValueError, match="not the recipe"):
        model.load_state_dict(state)


def test_a_state_without_its_recipes_is_refused() -> None:
    layer = mask_model(nn.Linear(3, 3), OneLayer())
    for part in (layer, nn.Sequential(layer)):
        state = {name: tensor.detach() for name, tensor in part.named_parameters()}
        with pytest.raises(pemncodec.EncodeError, match=r"there is no \S*weight.0._extra_state"):
            pemncodec.encode(state, io.BytesIO(), manifest=False)


def test_a_copy_is_independent() -> None:
    model = mask_model(network(), OneLayer())
    twin = copy.deepcopy(model)
    expected = model(images())
    bake(twin)
    assert not any(isinstance(m, MaskedWeight) for m in twin.modules())
    assert torch.equal(model(images()), expected)
    train(model)
    assert not torch.equal(twin[5].weight, model[5].weight)


def test_baking_keeps_other_layers_and_refuses_what_it_cannot_undo() -> None:
    model = mask_model(network(), OneLayer(), include="0.*")
    with torch.no_grad():
        expected = model.eval()(images())
    assert torch.equal(bake(model)(images()), expected)
    with pytest.raises(pemncodec.EncodeError, match="encoded before bake"):
        pemncodec.encode(model, io.BytesIO(), example_inputs=images())
    assert type(model[0]) is nn.Conv2d
    assert not model[0].weight.requires_grad
    assert model[5].weight.requires_grad

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    layer = mask_model(nn.Linear(2, 2), OneLayer())
    parametrize.register_parametrization(layer, "bias", Twice())
    with pytest.raises(ValueError, match="besides its masks"):
        bake(layer)


def test_autocast() -> None:
    model = mask_model(network(), MaxLayerPadding())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images()).float().square().mean()
    loss.backward()
    gradient = scores_of(model).grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert gradient.abs().sum() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_compiled_model_has_the_same_outputs_and_gradients(scope: str) -> None:
    torch._dynamo.reset()
    model = mask_model(network(), MaxLayerPadding(), selection=TopK(scope=scope))  # type: ignore[arg-type]
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="aot_eager")
    for kept in (0.5, 0.3):
        for m in (model, twin):
            for masked in m.modules():
                if isinstance(masked, MaskedWeight):
                    masked.kept.fill_(int(kept * masked.scores.numel()))
        first, second = model(images()), compiled(images())
        torch.testing.assert_close(second, first)
    first.sum().backward()
    second.sum().backward()
    torch.testing.assert_close(scores_of(twin).grad, scores_of(model).grad)
    stream = io.BytesIO()
    pemncodec.encode(compiled, stream, example_inputs=images())
    assert torch.equal(pemncodec.decode(stream)(images()), bake(twin).eval()(images()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_schedule_compiles_once(scope: str) -> None:
    torch._dynamo.reset()
    schedule = KeepSchedule(1.0, 0.1, 4)
    model = mask_model(network(), OneLayer(), keep=schedule, selection=TopK(scope=scope))  # type: ignore[arg-type]
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    compiled(images())
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(4):
            advance_keep(model)
            advance_keep(compiled)
            torch.testing.assert_close(compiled(images()), model(images()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
@each_selection
def test_other_memory_orders_compile_as_one_graph(selection: Selection) -> None:
    torch._dynamo.reset()
    layer = mask_model(nn.Conv2d(3, 8, 3), OneLayer(), selection=selection).eval()
    layer.to(memory_format=torch.channels_last)
    fullgraph = not (isinstance(selection, TopK) and selection.scope == "global")
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=fullgraph)
    torch.testing.assert_close(compiled(images()), layer(images()))


def _train_in_parallel(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    model = mask_model(network(), RandomPadding(length=9), selection=TopK(scope="global"))
    parallel = nn.parallel.DistributedDataParallel(model)
    train(parallel, x=images(8)[4 * rank : 4 * rank + 4])
    torch.save(parallel.state_dict(), f"{folder}/rank{rank}.pt")
    if rank == 0:
        pemncodec.encode(parallel, f"{folder}/net.pemn", example_inputs=images())
    torch.distributed.barrier()
    # Without destructors: that of the process group joins a thread which may wait for the GIL.
    os._exit(0)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_data_parallel_training(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train_in_parallel, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert torch.equal(first[f"module.{LINEAR}"], second[f"module.{LINEAR}"])
    name = "module.5.parametrizations.weight.0.scores"
    assert torch.equal(first[name], second[name])
    state = pemncodec.load_state_dict(tmp_path / "net.pemn")
    expected = mask_model(network(), OneLayer(), selection=TopK(scope="global"))
    expected.load_state_dict({k.removeprefix("module."): v for k, v in first.items()})
    for name, tensor in bake(expected).state_dict().items():
        assert torch.equal(state[name], tensor)


# ------------------------------------------------------------------------------------ files


@each_strategy
@each_selection
def test_a_file_holds_seeds_and_classifies_as_the_trained_model(
    strategy: Strategy, selection: Selection, tmp_path: Path
) -> None:
    model = mask_model(network(), strategy, seed=2**63 + 5, keep=0.4, selection=selection)
    train(model)
    report = pemncodec.encode(model, tmp_path / "net.pemn", example_inputs=images())
    assert report.info.prototype_bytes == 0
    model.eval()
    with torch.no_grad():
        expected = model(images(9))
        assert torch.equal(pemncodec.decode(tmp_path / "net.pemn")(images(9)), expected)
    with pemncodec.open(tmp_path / "net.pemn") as file:
        for prototype in file.header.prototypes:
            assert isinstance(prototype, SeededPrototype)
            assert prototype.seed == 2**63 + 5
        for name, mask in masked_state(model).masks.items():
            assert np.array_equal(file.mask(name), mask)
    pemncodec.encode(
        model.state_dict(), tmp_path / "state.pemn", architecture=network(), example_inputs=images()
    )
    assert (tmp_path / "state.pemn").read_bytes() == (tmp_path / "net.pemn").read_bytes()


def test_changed_weights_are_encoded_as_they_are() -> None:
    model = mask_model(network(), RandomPadding(length=5))
    with torch.no_grad():
        frozen(model)[LINEAR].add_(0.5)
    stream = io.BytesIO()
    report = pemncodec.encode(model, stream, example_inputs=images())
    assert report.info.prototype_bytes > 0
    assert torch.equal(pemncodec.load_state_dict(stream)["5.weight"], bake(model)[5].weight)


def test_state_dicts_keep_a_plain_models_order_without_an_architecture() -> None:
    model = mask_model(network(), OneLayer())
    stream = io.BytesIO()
    pemncodec.encode(model.state_dict(), stream, manifest=False)
    assert list(pemncodec.load_state_dict(stream)) == list(network().state_dict())


def test_keep_is_refused_where_the_checkpoint_has_it() -> None:
    model = mask_model(network(), OneLayer())
    with pytest.raises(pemncodec.EncodeArgumentError, match="leave it out"):
        pemncodec.encode(model.state_dict(), io.BytesIO(), keep=0.5, manifest=False)


def broken(key: str, value: Tensor | None) -> dict[str, Tensor]:
    state = dict(mask_model(nn.Linear(4, 4), OneLayer()).state_dict())
    name = f"parametrizations.weight.{key}"
    if value is None:
        del state[name]
    else:
        state[name] = value
    return state


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("original", None, "there is no parametrizations.weight.original"),
        ("0.scores", None, "there is no parametrizations.weight.0.scores"),
        ("0.scores", torch.zeros(3), "does not fit"),
        ("0.scores", torch.zeros(4, 4, dtype=torch.int64), "does not fit"),
        ("0.scores", torch.full((4, 4), math.nan), "NaN"),
        ("0._extra_state", torch.zeros(3, dtype=torch.uint8), "recipe"),
        ("0._extra_state", torch.zeros(3), "recipe"),
        ("1.scores", torch.zeros(4, 4), "more than its mask"),
    ],
)
def test_broken_state_dicts(key: str, value: Tensor | None, message: str) -> None:
    with pytest.raises(pemncodec.EncodeError, match=message):
        pemncodec.encode(broken(key, value), io.BytesIO(), manifest=False)


@pytest.mark.parametrize("period", [0, 7, 1 << 40])
def test_a_prototype_longer_than_the_model_is_not_made(period: int) -> None:
    model = mask_model(nn.Linear(4, 4), OneLayer())
    state = dict(model.state_dict())
    name = "parametrizations.weight.0._extra_state"
    recipe = json.loads(bytes(state[name].tolist()))
    recipe["prototype"] |= {"length": 1 << 40, "period": period}
    state[name] = torch.tensor(list(json.dumps(recipe).encode()), dtype=torch.uint8)
    stream = io.BytesIO()
    pemncodec.encode(state, stream, manifest=False)
    assert torch.equal(pemncodec.load_state_dict(stream)["weight"], bake(model).weight)
