"""From checkpoints on disk to files and back: every dialect, every refusal, every tie."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    MaskedNet,
    Residual,
    applied,
    masked_module,
    official_state,
    pruned_net,
    random_masks,
    rule,
    small_net,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

import pemncodec
from pemncodec import (
    EncodeArgumentError,
    EncodeError,
    PrototypeMismatchError,
    SeededPrototype,
    UnsupportedModelError,
)
from pemncodec.checkpoints.files import load_checkpoint
from pemncodec.values.philox import generate

State = dict[str, Tensor]


def encoded(source: Any, **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    pemncodec.encode(source, stream, **options)
    return stream


def decoded_state(source: Any, **options: Any) -> State:
    return pemncodec.load_state_dict(encoded(source, manifest=False, **options))


def assert_same(actual: State, expected: State) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].shape == tensor.shape, name
        assert bits(actual[name]) == bits(tensor), name


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_computes(module: nn.Module, expected: nn.Module, *inputs: Tensor) -> None:
    for training in (False, True):
        for size in (1, 3):
            batch = [x.repeat((size,) + (1,) * (x.dim() - 1)) for x in inputs]
            with torch.no_grad():
                ours = copy.deepcopy(module).train(training)(*batch)
                theirs = copy.deepcopy(expected).train(training)(*batch)
            assert torch.equal(ours, theirs)


# -------------------------------------------------------------------------- dialects on disk


def save(state: State, path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_files(tmp_path: Path, suffix: str, prefix: str) -> None:
    module = small_net()
    state = official_state(module)
    path = tmp_path / f"model{suffix}"
    save({prefix + name: tensor for name, tensor in state.items()}, path)
    loaded = load_checkpoint(path)
    target = tmp_path / "model.pemn"
    pemncodec.encode(
        loaded, target, keep=0.3, architecture=small_net(1), example_inputs=torch.ones(1, 3, 8, 8)
    )
    expected = applied(state, 0.3)
    assert_same(pemncodec.load_state_dict(target), expected)
    plain = small_net(2)
    plain.load_state_dict(expected)
    assert_computes(pemncodec.decode(target), plain, torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_pruned_state_dict_files(tmp_path: Path, suffix: str) -> None:
    module = pruned_net()
    save(module.state_dict(), tmp_path / f"model{suffix}")
    loaded = load_checkpoint(tmp_path / f"model{suffix}")
    target = tmp_path / "model.pemn"
    pemncodec.encode(
        loaded, target, architecture=small_net(1), example_inputs=torch.ones(1, 3, 8, 8)
    )
    for layer in (module[0], module[2].fn[0], module[5]):
        prune.remove(layer, "weight")
    # The plain model's order, which pruning changes.
    expected = {name: module.state_dict()[name] + 0 for name in small_net().state_dict()}
    assert_same(pemncodec.load_state_dict(target), expected)
    assert_computes(pemncodec.decode(target), module, torch.randn(2, 3, 8, 8))


def test_pruned_module() -> None:
    module = pruned_net()
    inputs = torch.randn(2, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    stream = encoded(module, example_inputs=inputs)
    assert_same(module.state_dict(), before)  # left as it was
    with torch.no_grad():
        expected = module.eval()(inputs)
    assert torch.equal(pemncodec.decode(stream)(inputs), expected)
    assert list(pemncodec.load_state_dict(stream)) == list(small_net().state_dict())


def test_pruned_module_after_training() -> None:
    """Pruned weights have a history of gradients then."""
    module = pruned_net().train()
    inputs = torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(inputs).square().sum().backward()
    optimizer.step()
    stream = encoded(module, example_inputs=inputs)
    with torch.no_grad():
        expected = module.eval()(inputs)
    assert torch.equal(pemncodec.decode(stream)(inputs), expected)


def test_pruned_bias_and_structured_pruning() -> None:
    module = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(96, 3))
    prune.ln_structured(module[0], "weight", 0.5, n=2, dim=0)
    prune.l1_unstructured(module[2], "weight", 0.4)
    prune.l1_unstructured(module[2], "weight", 0.4)  # twice
    prune.random_unstructured(module[2], "bias", 1)
    inputs = torch.randn(2, 2, 6, 6)
    stream = encoded(module, example_inputs=inputs)
    with torch.no_grad():
        assert torch.equal(pemncodec.decode(stream)(inputs), module(inputs))
    with pemncodec.open(stream) as file:
        assert file.masked_keys() == ["0.weight", "2.weight", "2.bias"]
        assert int(file.mask("2.bias").sum()) == 2


def test_pickled_modules_need_trust(tmp_path: Path) -> None:
    module = pruned_net()
    torch.save(module, tmp_path / "module.pt")
    with pytest.raises(EncodeError, match="trust-pickle"):
        load_checkpoint(tmp_path / "module.pt")
    loaded = load_checkpoint(tmp_path / "module.pt", trust_pickle=True)
    assert isinstance(loaded, nn.Module)
    assert_same(loaded.state_dict(), module.state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_state_dicts_within_checkpoints(tmp_path: Path, key: str) -> None:
    state = official_state(small_net())
    torch.save({"epoch": 7, key: state, "optimizer": {"lr": 0.1}}, tmp_path / "x.pth")
    loaded = load_checkpoint(tmp_path / "x.pth")
    assert isinstance(loaded, dict)
    assert_same(loaded, state)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"no checkpoint", b"PK\3\4" + bytes(100), bytes(64)],
    ids=["empty", "text", "zip", "zeros"],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(EncodeError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "trust-pickle" not in str(caught.value)  # no advice to run what is garbage
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / f"nothing{suffix}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a state dict, found list"),
        (5, "expected a state dict, found int"),
        ({}, "the state dict is empty"),
        ({"a": 1}, "entry 'a' is int"),
        ({1: torch.ones(1)}, "entry 1"),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(EncodeError, match=rf"x\.pt: {message}"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("convert", [lambda m: m, Tensor.float, Tensor.to_dense, Tensor.byte])
def test_explicit_masks(small: MaskedNet, convert: Callable[[Tensor], Tensor]) -> None:
    masks = {name: convert(mask) for name, mask in small.masks.items()}
    stream = encoded(small.module, masks=masks, example_inputs=small.inputs)
    assert_same(pemncodec.load_state_dict(stream), small.effective.state_dict())
    assert_computes(pemncodec.decode(stream), small.effective, small.inputs)
    with pemncodec.open(stream) as file:
        assert file.masked_keys() == list(masks)
        for name, mask in small.masks.items():
            assert np.array_equal(file.mask(name), mask.numpy())
            assert file.mask_bits(name).tolist() == mask.flatten().int().tolist()


def test_explicit_masks_beside_scores() -> None:
    state = official_state(small_net())
    bias = torch.tensor([True, False, True, True])
    stream = encoded(state, keep=0.5, masks={"2.fn.0.bias": bias}, manifest=False)
    with pemncodec.open(stream) as file:
        assert np.array_equal(file.mask("2.fn.0.bias"), bias.numpy())
        assert len(file.masked_keys()) == 4


# --------------------------------------------------------------------------------- the rule


@given(
    st.lists(st.integers(-2, 2), min_size=1, max_size=60),
    st.floats(0, 1, exclude_min=True) | st.sampled_from([0.1, 0.2, 0.5, 0.9, 1.0, 1e-9]),
)
def test_tied_scores_go_by_position(scores: list[int], keep: float) -> None:
    """The earlier of equal scores goes; ±s are equal."""
    count = len(scores)
    gone = sorted(range(count), key=lambda i: (abs(scores[i]), i))[: int((1 - keep) * count)]
    state = {"weight": torch.ones(count), "scores": torch.tensor([3.0 * s for s in scores])}
    expected = torch.tensor([float(i not in gone) for i in range(count)])
    assert torch.equal(decoded_state(state, keep=keep)["weight"], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_other_dtypes(dtype: torch.dtype) -> None:
    scores = torch.randn(50).to(dtype)
    scores[3], scores[4] = float("inf"), float("-inf")
    state = {"a.weight": torch.randn(50), "a.scores": scores}
    expected = applied(state, 0.3)
    assert_same(decoded_state(state, keep=0.3), expected)


def test_masks_follow_logical_order_whatever_the_strides() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last)
    scores = torch.randint(0, 3, (4, 6, 3, 3)).float().to(memory_format=torch.channels_last)
    state = {"a.weight": weight, "a.scores": scores, "t": torch.arange(6.0).reshape(2, 3).T}
    result = decoded_state(state, keep=0.4)
    mask = rule(scores, 0.4)
    assert torch.equal(result["a.weight"], torch.where(mask, weight, torch.zeros(())))
    assert torch.equal(result["t"], state["t"])
    assert all(tensor.is_contiguous() for tensor in result.values())


def test_channels_last_module_computes_the_same() -> None:
    module = small_net().to(memory_format=torch.channels_last)
    masks = random_masks(module)
    inputs = torch.randn(2, 3, 8, 8)
    stream = encoded(module, masks=masks, example_inputs=inputs)
    assert_computes(pemncodec.decode(stream), masked_module(small_net(), masks), inputs)


def test_keeping_all_and_nearly_none() -> None:
    state = official_state(small_net())
    assert_same(decoded_state(state, keep=1.0), applied(state, 1.0))
    assert_same(decoded_state(state, keep=1), applied(state, 1.0))
    result = decoded_state(state, keep=1e-12)
    assert_same(result, applied(state, 1e-12))
    stream = encoded(small_net(), masks={"5.weight": torch.zeros(3, 4)}, manifest=False)
    assert not pemncodec.load_state_dict(stream)["5.weight"].any()


# --------------------------------------------------------------------------------- refusals

NAN_SCORES = official_state(small_net()) | {"0.scores": torch.full((4, 3, 3, 3), float("nan"))}
OFFICIAL = official_state(small_net())
IMAGES = torch.ones(1, 3, 8, 8)


def less(state: State, name: str) -> State:
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        (OFFICIAL, {}, EncodeArgumentError, "keep"),
        (OFFICIAL, {"keep": 0.0}, EncodeArgumentError, "keep"),
        (OFFICIAL, {"keep": 1.0000001}, EncodeArgumentError, "keep"),
        (OFFICIAL, {"keep": -0.5}, EncodeArgumentError, "keep"),
        (OFFICIAL, {"keep": 50}, EncodeArgumentError, "keep"),
        (OFFICIAL, {"keep": float("nan")}, EncodeArgumentError, "keep"),
        (small_net().state_dict(), {"keep": 0.5}, EncodeArgumentError, "scores"),
        (NAN_SCORES, {"keep": 0.5}, EncodeError, "0.scores.*NaN"),
        (small_net().state_dict(), {}, EncodeError, "no masks"),
        ({}, {}, EncodeError, "state dict"),
        ({"weight": 1}, {}, EncodeError, "weight"),
        (less(OFFICIAL, "0.weight"), {"keep": 0.5}, EncodeError, r"0\.scores"),
        (OFFICIAL | {"0.scores": torch.ones(4, 3, 3)}, {"keep": 0.5}, EncodeError, "shape"),
        (OFFICIAL | {"0.scores": torch.ones(108)}, {"keep": 0.5}, EncodeError, "shape"),
        (
            pruned_net().state_dict() | {"0.weight_mask": torch.full((4, 3, 3, 3), 0.5)},
            {},
            EncodeError,
            "0 and 1",
        ),
        (pruned_net().state_dict() | {"0.weight_mask": torch.ones(4)}, {}, EncodeError, "shape"),
        (small_net(), {"masks": {"nobody": torch.ones(1)}}, EncodeError, "nobody"),
        (small_net(), {"masks": {"0.weight": torch.ones(4)}}, EncodeError, "shape"),
        (
            small_net(),
            {"masks": {"1.num_batches_tracked": torch.tensor(True)}},
            EncodeError,
            "int64",
        ),
        (OFFICIAL, {"keep": 0.5, "masks": {"0.weight": torch.ones(4, 3, 3, 3)}}, EncodeError, "0"),
        (
            OFFICIAL | {"extra": torch.empty(2, 2).to_sparse()},
            {"keep": 0.5},
            EncodeError,
            "extra",
        ),
        (
            OFFICIAL | {"extra": torch.empty(2, device="meta")},
            {"keep": 0.5},
            EncodeError,
            "extra",
        ),
        (OFFICIAL | {"": torch.ones(1)}, {"keep": 0.5}, EncodeError, "name"),
        (OFFICIAL | {"a\nb": torch.ones(1)}, {"keep": 0.5}, EncodeError, "name"),
        (OFFICIAL | {"x" * 5000: torch.ones(1)}, {"keep": 0.5}, EncodeError, "name"),
        (OFFICIAL | {"d": torch.ones([1] * 17)}, {"keep": 0.5}, EncodeError, "dimensions"),
        (OFFICIAL, {"keep": 0.5, "metadata": {"a": 1}}, EncodeArgumentError, "metadata"),
        (OFFICIAL, {"keep": 0.5, "metadata": {"a": "\ud800"}}, EncodeArgumentError, "metadata"),
        (OFFICIAL, {"keep": 0.5, "architecture": small_net()}, EncodeArgumentError, "manifest"),
        (
            OFFICIAL,
            {"keep": 0.5, "prototypes": [SeededPrototype("normal", 1, 0)]},
            EncodeArgumentError,
            "length",
        ),
        (
            OFFICIAL,
            {"keep": 0.5, "prototypes": [SeededPrototype("normal", -1, 4)]},
            EncodeArgumentError,
            "seed",
        ),
        (
            OFFICIAL,
            {"keep": 0.5, "prototypes": [SeededPrototype("normal", 1, 400)]},
            PrototypeMismatchError,
            "seed",
        ),
    ],
)
def test_refused_without_manifest(
    source: Any, options: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    refused(source, {"manifest": False, **options}, error, words, tmp_path)


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        (OFFICIAL, {"keep": 0.5, "example_inputs": IMAGES}, EncodeArgumentError, "--arch"),
        (
            small_net(),
            {"architecture": small_net(), "example_inputs": IMAGES},
            EncodeArgumentError,
            "architecture",
        ),
        (
            OFFICIAL | {"later.weight": torch.ones(1)},
            {"keep": 0.5, "architecture": small_net(), "example_inputs": IMAGES},
            EncodeError,
            r"later\.weight",
        ),
        (
            less(OFFICIAL, "5.bias"),
            {"keep": 0.5, "architecture": small_net(), "example_inputs": IMAGES},
            EncodeError,
            r"5\.bias",
        ),
        (
            OFFICIAL | {"5.bias": torch.ones(4)},
            {"keep": 0.5, "architecture": small_net(), "example_inputs": IMAGES},
            EncodeError,
            r"5\.bias.*shape",
        ),
        (
            OFFICIAL,
            {"keep": 0.5, "architecture": small_net(), "example_inputs": torch.ones(1, 5, 8, 8)},
            EncodeError,
            "example",
        ),
        (
            OFFICIAL,
            {"keep": 0.5, "architecture": small_net(), "example_inputs": torch.tensor(1.0)},
            EncodeArgumentError,
            "batch",
        ),
        (
            OFFICIAL,
            {"keep": 0.5, "architecture": small_net(), "example_inputs": [1, 2]},
            EncodeArgumentError,
            "tensors",
        ),
    ],
)
def test_refused_with_manifest(
    source: Any, options: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    refused(source, options, error, words, tmp_path)


def refused(source: Any, options: Any, error: type[Exception], words: str, tmp_path: Path) -> None:
    """One clear line of the right class, and nothing written."""
    target = tmp_path / "x.pemn"
    target.write_bytes(b"old")
    with pytest.raises(EncodeError, match=f"(?s){words}") as caught:
        pemncodec.encode(source, target, **options)
    assert isinstance(caught.value, error)
    if error is EncodeError:
        assert not isinstance(caught.value, EncodeArgumentError)
    assert len(str(caught.value).splitlines()) == 1
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_cannot_be_traced_is_refused_but_its_tensors_are_stored(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    module = nn.Sequential(nn.Linear(3, 3), Odd())
    masks = random_masks(module)
    options = {"masks": masks, "example_inputs": torch.ones(1, 3)}
    refused(module, options, UnsupportedModelError, "'1'.*Odd.*manifest", tmp_path)
    stream = encoded(module, masks=masks, manifest=False)
    assert_same(pemncodec.load_state_dict(stream), masked_module(module, masks).state_dict())
    with pytest.raises(pemncodec.ManifestError) as caught:
        pemncodec.decode(stream)
    assert caught.value.code == "no-manifest"


# ------------------------------------------------------------------------------------- ties


class Tied(nn.Module):
    """As a language model: one tensor for both ends."""

    def __init__(self, head_first: bool = False) -> None:
        super().__init__()
        if head_first:
            self.head = nn.Linear(5, 7, bias=False)
        self.embedding = nn.Embedding(7, 5)
        if not head_first:
            self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x))


TOKENS = torch.tensor([[1, 2, 6]])


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("masked", [("embedding.weight",), ("head.weight",), ("both",)])
def test_masks_of_tied_weights_by_any_of_their_names(
    head_first: bool, masked: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    module = Tied(head_first)
    mask = torch.rand(7, 5) < 0.5
    names = ("embedding.weight", "head.weight") if masked == ("both",) else masked
    stream = encoded(module, masks=dict.fromkeys(names, mask), example_inputs=TOKENS)
    expected = copy.deepcopy(module)
    with torch.no_grad():
        expected.head.weight.mul_(mask)
    assert_computes(pemncodec.decode(stream), expected, TOKENS)
    decoded = pemncodec.decode(stream)
    assert decoded.head.weight is decoded.embedding.weight
    assert not decoded.head.weight.requires_grad
    state = pemncodec.load_state_dict(stream)
    assert list(state) == list(module.state_dict())
    assert state["head.weight"] is state["embedding.weight"]
    with pemncodec.open(stream) as file:
        assert len(file.aliases) == 1
        assert file.info().mask_bytes < 2 * (5 + 1)


def test_tied_weights_in_a_state_dict() -> None:
    module = Tied()
    mask = torch.rand(7, 5) < 0.5
    with pytest.raises(EncodeArgumentError, match=r"head\.weight"):
        encoded(module.state_dict(), masks={"embedding.weight": mask}, manifest=False)
    masks = {"embedding.weight": mask, "head.weight": mask}
    stream = encoded(module.state_dict(), masks=masks, manifest=False)
    with pemncodec.open(stream) as file:
        assert file.aliases == {"head.weight": "embedding.weight"}
    state = pemncodec.load_state_dict(stream)
    assert state["head.weight"] is state["embedding.weight"]


def test_tied_dense_tensors() -> None:
    shared = torch.randn(10)
    state = {"w": torch.randn(4), "a": shared, "b": shared, "c": shared[:5], "d": shared.clone()}
    stream = encoded(state, masks={"w": torch.ones(4)}, manifest=False)
    with pemncodec.open(stream) as file:
        assert file.aliases == {"b": "a"}
    assert_same(pemncodec.load_state_dict(stream), state)


@pytest.mark.parametrize("head_first", [False, True])
def test_a_tie_of_which_one_end_is_pruned_is_refused(head_first: bool) -> None:
    """One tensor cannot be both; the tensors alone can be stored."""
    torch.manual_seed(0)
    module = Tied(head_first)
    whole = module.embedding.weight.detach().clone()
    prune.random_unstructured(module.head, "weight", 0.5)
    with pytest.raises(UnsupportedModelError, match=r"are one tensor .* but differ once masked"):
        encoded(module, example_inputs=TOKENS)
    state = pemncodec.load_state_dict(encoded(module, manifest=False))
    assert torch.equal(state["embedding.weight"], whole)
    assert torch.equal(state["head.weight"], module.head.weight)
    assert not torch.equal(state["head.weight"], whole)


@pytest.mark.parametrize("head_first", [False, True])
def test_pruned_tie_in_a_state_dict_leaves_the_other_whole(head_first: bool) -> None:
    torch.manual_seed(0)
    module = Tied(head_first)
    prune.random_unstructured(module.head, "weight", 0.5)
    state = decoded_state(module.state_dict())
    assert torch.equal(state["embedding.weight"], module.embedding.weight)
    assert torch.equal(state["head.weight"], module.head.weight)


def test_one_module_in_two_places() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    module = nn.Sequential(layer, nn.ReLU(), layer)
    mask = torch.rand(4, 4) < 0.5
    stream = encoded(module, masks={"0.weight": mask}, example_inputs=torch.ones(1, 4))
    decoded = pemncodec.decode(stream)
    assert decoded[0] is decoded[2]
    assert_computes(decoded, masked_module(module, {"0.weight": mask}), torch.randn(1, 4))


# ------------------------------------------------------------------------- decoded modules


def test_decoded_modules_are_frozen_where_masked(small: MaskedNet) -> None:
    small.module[1].bias.requires_grad_(False)
    stream = io.BytesIO()
    small.encode(stream)
    module = pemncodec.decode(stream)
    assert not module.training
    assert not any(below.training for below in module.modules())
    learned = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert learned == {"1.weight", "2.fn.0.bias", "5.bias"}
    assert repr(module) == repr(small.module)
    module.train()(small.inputs).sum().backward()
    assert module[5].bias.grad is not None
    assert all(isinstance(p, nn.Parameter) for p in module.parameters())


def test_encoding_leaves_its_source_alone(small: MaskedNet) -> None:
    small.module.train()
    before = copy.deepcopy(small.module)
    small.encode(io.BytesIO())
    assert small.module.training
    assert_same(small.module.state_dict(), before.state_dict())
    assert all(p.requires_grad for p in small.module.parameters())


def test_decoded_modules_can_be_encoded_again(small: MaskedNet) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    small.encode(first)
    pemncodec.encode(
        pemncodec.decode(first), second, masks=small.masks, example_inputs=small.inputs
    )
    assert_same(pemncodec.load_state_dict(second), pemncodec.load_state_dict(first))


def test_data_parallel_modules(small: MaskedNet) -> None:
    wrapped = nn.DataParallel(small.module)
    plain, stream = io.BytesIO(), io.BytesIO()
    small.encode(plain)
    pemncodec.encode(wrapped, stream, masks=small.masks, example_inputs=small.inputs)
    assert stream.getvalue() == plain.getvalue()


def test_masks_named_as_the_data_parallel_module_names_them(small: MaskedNet) -> None:
    wrapped = nn.DataParallel(small.module)
    masks = {f"module.{name}": mask for name, mask in small.masks.items()}
    stream = encoded(wrapped, masks=masks, example_inputs=small.inputs)
    assert_same(pemncodec.load_state_dict(stream), small.effective.state_dict())


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) * 2


def test_a_module_whose_only_child_is_called_module(small: MaskedNet) -> None:
    wrapped = Wrapper(small.module)
    masks = {f"module.{name}": mask for name, mask in small.masks.items()}
    stream = encoded(wrapped, masks=masks, example_inputs=small.inputs)
    assert_computes(pemncodec.decode(stream), Wrapper(small.effective), small.inputs)
    assert list(pemncodec.load_state_dict(stream)) == list(wrapped.state_dict())


class Gated(nn.Module):
    """Parameters of its own beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(6))
        self.register_buffer("steps", torch.tensor(3))
        self.inner = Residual(nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.gate


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_modules_of_the_user_in_other_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = Gated().to(dtype)
    masks = {"inner.fn.weight": torch.rand(6, 6) < 0.5, "gate": torch.rand(6) < 0.5}
    inputs = torch.randn(2, 6, dtype=dtype)
    stream = encoded(module, masks=masks, example_inputs=inputs)
    decoded = pemncodec.decode(stream)
    expected = masked_module(module, masks)
    assert_same(decoded.state_dict(), expected.state_dict())
    assert_computes(decoded, expected, inputs)


def test_convmixer_variants(convmixer: Callable[..., nn.Module]) -> None:
    for options in ({}, {"act": "relu"}, {"affine": False}):
        torch.manual_seed(0)
        module = convmixer(8, 2, kernel_size=3, patch_size=4, **options)
        masks = random_masks(module)
        inputs = torch.randn(2, 3, 16, 16)
        stream = encoded(module, masks=masks, example_inputs=inputs)
        assert_computes(pemncodec.decode(stream), masked_module(module, masks), inputs)


def test_names_come_in_the_plain_modules_order() -> None:
    state = official_state(small_net())
    scrambled = {name: state[name] for name in sorted(state, reverse=True)}
    stream = encoded(
        scrambled, keep=0.5, architecture=small_net(), example_inputs=torch.ones(1, 3, 8, 8)
    )
    assert list(pemncodec.load_state_dict(stream)) == list(small_net().state_dict())
    assert list(pemncodec.decode(stream).state_dict()) == list(small_net().state_dict())


def test_metadata(small: MaskedNet) -> None:
    metadata = {"title": "ünïcode 日本 😀", "": "empty", "lines": "a\nb\0"}
    stream = io.BytesIO()
    report = small.encode(stream, metadata=metadata)
    with pemncodec.open(stream) as file:
        assert file.metadata == metadata
    assert report.info.metadata == metadata
    assert report.info.file_bytes == len(stream.getvalue())


def test_progress_is_reported_in_order(small: MaskedNet) -> None:
    calls: list[tuple[str, float | None]] = []
    small.encode(io.BytesIO(), progress=lambda step, share: calls.append((step, share)))
    steps = [step for step, _ in itertools.groupby(calls, key=lambda call: call[0])]
    assert steps[-4:] == ["coding", "verifying", "comparing outputs", "writing"]
    assert len(set(steps)) == len(steps)
    shares = [share for step, share in calls if step == "coding" and share is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


# ----------------------------------------------------------------------- seeded prototypes


def seeded_net(seed: int, scales: bool) -> nn.Module:
    """Weights from one stream, tiled, each layer with a scale of its own."""
    module = small_net()
    values = torch.from_numpy(generate("normal", seed, 0, 50))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                scale = (2 / parameter[0].numel()) ** 0.5 if scales else 1.0
                tiled = values[torch.arange(parameter.numel()) % 50].reshape(parameter.shape)
                parameter.copy_(tiled * torch.tensor(scale))
    return module


@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("manifest", [False, True])
def test_seeded_prototypes_store_no_values(scales: bool, manifest: bool) -> None:
    module = seeded_net(2026, scales)
    masks = random_masks(module)
    inputs = torch.randn(1, 3, 8, 8) if manifest else None
    options = {"masks": masks, "manifest": manifest, "example_inputs": inputs}
    stream = encoded(module, prototypes=[SeededPrototype("normal", 2026, 50)], **options)
    assert_same(pemncodec.load_state_dict(stream), masked_module(module, masks).state_dict())
    with pemncodec.open(stream) as file:
        info = file.info()
        assert info.prototype_bytes == 0
        assert file.header.prototypes == (SeededPrototype("normal", 2026, 50),)
    assert info.file_bytes < len(encoded(module, **options).getvalue())


def test_several_seeds_and_a_wrong_one() -> None:
    weights = {
        "a": generate("uniform", 5, 0, 300),
        "b": generate("signed-constant", 5, 0, 200, stream=7) * np.float32(0.05),
        "c": torch.manual_seed(0) and torch.randn(100).numpy(),
    }
    state = {name: torch.from_numpy(values) for name, values in weights.items()}
    masks = {name: torch.rand(tensor.shape) < 0.5 for name, tensor in state.items()}
    known = [SeededPrototype("uniform", 5, 300), SeededPrototype("signed-constant", 5, 200, 7)]
    stream = encoded(state, masks=masks, prototypes=known, manifest=False)
    with pemncodec.open(stream) as file:
        assert file.header.prototypes[:2] == tuple(known)
        assert len(file.header.prototypes) == 3
    assert_same(
        pemncodec.load_state_dict(stream),
        {name: torch.where(masks[name], state[name], torch.zeros(())) for name in state},
    )
    wrong = SeededPrototype("uniform", 6, 300)
    with pytest.raises(PrototypeMismatchError, match="uniform"):
        encoded(state, masks=masks, prototypes=[*known, wrong], manifest=False)


def test_views_of_one_memory_that_differ_are_no_ties() -> None:
    z = torch.randn(4, dtype=torch.complex64)
    state = {"w": torch.randn(4), "a": z, "b": z.conj(), "c": z.imag, "d": z.conj().imag}
    stream = encoded(state, masks={"w": torch.ones(4)}, manifest=False)
    assert_same(
        pemncodec.load_state_dict(stream),
        {n: t.resolve_conj().resolve_neg() for n, t in state.items()},
    )


def test_two_views_with_masks_of_their_own() -> None:
    weight = torch.randn(6)
    masks = {"a": torch.tensor([1, 1, 1, 0, 0, 0]), "b": torch.tensor([0, 0, 1, 1, 1, 1])}
    stream = encoded({"a": weight, "b": weight[:]}, masks=masks, manifest=False)
    state = pemncodec.load_state_dict(stream)
    assert torch.equal(state["a"], weight * masks["a"])
    assert torch.equal(state["b"], weight * masks["b"])


def test_order_of_parameters_of_modules_that_were_not_pruned() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha = nn.Parameter(torch.ones(4))
            self.weight = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.alpha * self.weight

    stream = encoded(Scaled(), masks={"weight": torch.ones(4)}, example_inputs=torch.ones(1, 4))
    assert list(pemncodec.load_state_dict(stream)) == ["alpha", "weight"]
    assert [name for name, _ in pemncodec.decode(stream).named_parameters()] == ["alpha", "weight"]


def test_masks_may_be_numpy_arrays() -> None:
    mask = np.array([True, False, True])
    stream = encoded({"w": torch.ones(3)}, masks={"w": mask}, manifest=False)
    assert pemncodec.load_state_dict(stream)["w"].tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("model.pt", {}, "a module, state dict or open .pemn file, not str"),
        (small_net(), {"masks": [1]}, "masks must be named, not list"),
        (OFFICIAL, {"keep": 0.5, "architecture": small_net}, "architecture must be a module"),
        (OFFICIAL, {"keep": "0.5", "manifest": False}, "at most 1, not '0.5'"),
    ],
)
def test_arguments_of_the_wrong_type(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodeArgumentError, match=message):
        pemncodec.encode(source, io.BytesIO(), **options)


def test_functional_softmax_is_traced() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.log_softmax(self.fc(x), dim=1) + nn.functional.softmax(x[:, :3], 1)

    module = Attention()
    stream = encoded(module, masks={"fc.weight": torch.ones(3, 4)})
    assert_computes(pemncodec.decode(stream), module, torch.randn(3, 4))


def test_a_parameter_that_is_only_named_like_scores() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.attention_scores = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * self.attention_scores

    module = Attention()
    stream = encoded(module, masks={"fc.weight": torch.ones(3, 3)})
    assert_computes(pemncodec.decode(stream), module, torch.randn(2, 3))


def test_a_parameter_that_is_only_named_like_a_pruned_one() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.gain_orig = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * self.gain_orig

    module = Scaled()
    stream = encoded(module, masks={"fc.weight": torch.ones(3, 3)})
    assert_computes(pemncodec.decode(stream), module, torch.randn(2, 3))
    prune.random_unstructured(module.fc, "weight", 0.5)
    stream = encoded(module, example_inputs=torch.randn(2, 3))
    prune.remove(module.fc, "weight")
    assert_computes(pemncodec.decode(stream), module, torch.randn(2, 3))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_pruning_does_not_change_the_order_of_parameters(name: str) -> None:
    module = nn.Sequential(nn.Linear(4, 3))
    prune.random_unstructured(module[0], name, 0.5)
    stream = encoded(module, example_inputs=torch.ones(1, 4))
    assert list(pemncodec.load_state_dict(stream)) == ["0.weight", "0.bias"]
    decoded = pemncodec.decode(stream)
    assert [name for name, _ in decoded.named_parameters()] == ["0.weight", "0.bias"]
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(decoded(x), module(x))


def test_a_module_that_masks_in_code_of_its_own_is_stored_without_architecture() -> None:
    module = nn.Sequential(nn.Linear(6, 4))
    module[0].scores = nn.Parameter(torch.rand(4, 6))
    with pytest.raises(EncodeArgumentError, match="in code of its own"):
        encoded(module, keep=0.5, example_inputs=torch.ones(1, 6))
    state = pemncodec.load_state_dict(encoded(module, keep=0.5, manifest=False))
    assert list(state) == ["0.weight", "0.bias"]
    assert int((state["0.weight"] != 0).sum()) == 12


def test_presets_choose_among_coders() -> None:
    rng = np.random.default_rng(0)
    rows = rng.permutation(200)[:, None] < 100
    masks = {
        "strong": rng.random((200, 200)) < np.where(rows, 0.8, 0.2),
        "weak": rng.random((200, 200)) < np.where(rows, 0.58, 0.42),  # mixing saves 1 %
    }
    weight = torch.randn(200, 200)

    def coder(name: str, **preset: Any) -> str | None:
        stream, mask = io.BytesIO(), {"w": masks[name]}
        report = pemncodec.encode(
            {"w": weight}, stream, masks=mask, manifest=False, find_seed="off", **preset
        )
        (tensor,) = report.info.tensors
        return tensor.coder

    for name, chosen in (
        ("strong", {"fast": "packed", "default": "mixing", "max": "mixing"}),
        ("weak", {"fast": "packed", "default": "packed", "max": "mixing"}),
    ):
        assert {preset: coder(name, preset=preset) for preset in chosen} == chosen
        assert coder(name) == chosen["default"]
    with pytest.raises(EncodeArgumentError, match="slow"):
        coder("weak", preset="slow")
