"""Modules whose masked weights stay packed: outputs, state dict, copies, and what they refuse."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import exchange_kernels, random_masks
from torch import Tensor, nn
from torch.nn import functional

import pemncodec
from pemncodec import DecodeArgumentError, SeededPrototype, TorchPrototype
from pemncodec.contents import Contents, DenseTensor, Fill, MaskedTensor, StoredPrototype
from pemncodec.format.writer import encode_contents
from pemncodec.packed import product
from pemncodec.packed.modules import packed_weights
from pemncodec.packed.weight import PackedWeight
from pemncodec.packed.workspace import Workspace
from pemncodec.tensors import same_bits, tensor_to_array


@pytest.fixture(autouse=True)
def no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights are expanded, so that results have the bits of dense ones."""
    monkeypatch.setattr(product, "most_inputs", lambda: 0)


class Everything(nn.Module):
    """A weight of every kind that a layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8, padding_idx=0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.own = nn.Parameter(torch.randn(8, 8))
        self.one = nn.Conv1d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose1d(8, 8, 2, 2)
        self.two = nn.Conv2d(1, 3, 3, padding=1, groups=1)
        self.three = nn.Conv3d(1, 2, (1, 3, 3), padding=(0, 1, 1))
        self.norm = nn.BatchNorm2d(3)
        self.pair = nn.Bilinear(8, 8, 8)
        self.last = nn.Linear(8, 8)
        self.shared = self.last
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens)
        x = self.attention(x, x, x)[0] + x
        x = self.recurrent(self.encoder(x))[0] @ self.own
        x = self.up(self.one(x.transpose(1, 2)))
        x = self.norm(self.two(x.unsqueeze(1))).mean(1, keepdim=True)
        x = self.three(x.unsqueeze(1)).mean((1, 2)).transpose(1, 2)
        x = self.pair(x, x) + self.shared(self.last(x))
        return self.head(x)


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return manifest_of_everything()


def manifest_of_everything() -> dict[str, Any]:
    torch.manual_seed(0)
    model, written = Everything().eval(), io.BytesIO()
    pemncodec.encode(
        model, written, masks=random_masks(model), example_inputs=torch.randint(11, (2, 5))
    )
    with pemncodec.open(written) as file:
        assert file.manifest is not None
        return file.manifest


def stored(dtype: str, length: int = 37) -> StoredPrototype:
    values = torch.randn(length, generator=torch.Generator().manual_seed(1))
    values = values.to(getattr(torch, dtype))
    return StoredPrototype(tensor_to_array(values, ""), dtype)


PROTOTYPES: dict[str, Any] = {
    "short seed": SeededPrototype("normal", 7, 37),
    "long seed": SeededPrototype("uniform", 7, 100_003),
    "shuffled": SeededPrototype("normal", 7, 113, 0, 17),
    "constant": SeededPrototype("signed-constant", 7, 37),
    "long constant": SeededPrototype("signed-constant", 7, 1_999),
    "torch": TorchPrototype("normal", 7, 37, 5),
    "long torch": TorchPrototype("uniform", 7, 100_003, 5),
    "torch signs": TorchPrototype("normal-signs", 7, 1_999),
    "stored": stored("float32"),
    "stored half": stored("float16"),
    "stored constant": StoredPrototype(np.array([0.25, -0.25, -0.25], np.float32), "float32"),
    "stored pair": StoredPrototype(np.array([0.25, -0.5, -0.5], np.float32), "float32"),
}
HELD = {  # what the state dict has for the prototype: dtype, and how many items
    "short seed": (torch.float32, 37),
    "shuffled": (torch.float32, 113),
    "constant": (torch.uint8, 5),
    "long constant": (torch.uint8, 250),
    "torch": (torch.float32, 37),
    "torch signs": (torch.uint8, 250),
    "stored": (torch.float32, 37),
    "stored half": (torch.float16, 37),
    "stored constant": (torch.uint8, 1),
    "stored pair": (torch.float32, 3),
}


def file_of(
    manifest: dict[str, Any],
    prototypes: tuple[Any, ...],
    dtype: str = "float32",
    keep: float = 0.5,
) -> io.BytesIO:
    """A file whose tensors take one prototype after the other, at various offsets and scales."""
    torch.manual_seed(0)
    model = Everything().to(getattr(torch, dtype))
    nn.init.uniform_(model.norm.running_mean)
    masks, tensors, index = random_masks(model, keep), [], 0
    names = {"head.weight": "words.weight", "shared.weight": "last.weight"}
    names["shared.bias"] = "last.bias"
    for name, tensor in model.state_dict().items():
        if name in names:
            tensors.append(pemncodec.contents.AliasTensor(name, names[name]))
            continue
        kind = str(tensor.dtype).removeprefix("torch.")
        shape = tuple(tensor.shape)
        if name in masks:
            prototype = index % len(prototypes)
            offset = 3 * index % prototypes[prototype].length
            scale = float(np.float32(0.3 + index % 3)) if index % 4 else 1.0
            fill = Fill(prototype, offset, scale)
            tensors.append(MaskedTensor(name, kind, shape, fill, masks[name].numpy()))
            index += 1
        else:
            tensors.append(DenseTensor(name, kind, shape, tensor_to_array(tensor, name)))
    return io.BytesIO(b"".join(encode_contents(Contents(prototypes, tuple(tensors), manifest))))


@pytest.fixture
def stream(manifest: dict[str, Any]) -> io.BytesIO:
    return file_of(manifest, (PROTOTYPES["short seed"], PROTOTYPES["long torch"]))


TOKENS = torch.tensor([[1, 4, 0, 10, 2], [3, 3, 9, 7, 5]])


def assert_same_module(first: nn.Module, second: nn.Module) -> None:
    assert str(first) == str(second)
    mine, other = first.state_dict(), second.state_dict()
    assert list(mine) == list(other)
    assert all(same_bits(mine[name], other[name]) for name in mine)
    assert [p.requires_grad for p in first.parameters()] == [
        p.requires_grad for p in second.parameters()
    ]
    named = [name for name, _ in first.named_parameters(remove_duplicate=False)]
    assert named == [name for name, _ in second.named_parameters(remove_duplicate=False)]


# --------------------------------------------------------------------------------- results


@pytest.mark.parametrize("given", ["net.pemn", b"bytes", {}, None])
def test_only_modules_are_unpacked(given: Any) -> None:
    with pytest.raises(TypeError, match="unpack takes a module that decode made, not "):
        pemncodec.unpack(given)


@pytest.mark.parametrize("which", PROTOTYPES)
def test_every_prototype_gives_the_dense_results(manifest: dict[str, Any], which: str) -> None:
    stream = file_of(manifest, (PROTOTYPES[which],))
    dense, packed = pemncodec.decode(stream), pemncodec.decode(stream, packed=True)
    state = packed.state_dict()
    held = {n: t for n, t in state.items() if n.endswith(".prototype")}
    if which in HELD:
        dtype, items = HELD[which]
        assert {tensor.dtype for tensor in held.values()} == {dtype}
        assert {tensor.numel() for tensor in held.values()} == {items}
        assert len({tensor.data_ptr() for tensor in held.values()}) == 1
    else:
        assert not held
    assert {type(tensor) for tensor in state.values()} == {Tensor}
    for grad in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with grad():
            assert torch.equal(packed(TOKENS), dense(TOKENS))
    assert_same_module(pemncodec.unpack(packed), dense)
    assert torch.equal(packed(TOKENS), dense(TOKENS))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_of_the_file(manifest: dict[str, Any], dtype: str) -> None:
    constant = torch.tensor([0.1, -0.1], dtype=getattr(torch, dtype))
    signs = StoredPrototype(tensor_to_array(constant, ""), dtype)
    together = (signs, *PROTOTYPES.values(), stored(dtype))
    stream = file_of(manifest, together, dtype)
    dense, packed = pemncodec.decode(stream), pemncodec.decode(stream, packed=True)
    assert packed.own.dtype == dense.own.dtype
    assert torch.equal(packed(TOKENS), dense(TOKENS))
    assert_same_module(pemncodec.unpack(packed), dense)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("when", ["decode", "to"])
def test_other_dtypes(manifest: dict[str, Any], dtype: torch.dtype, when: str) -> None:
    stream = file_of(manifest, tuple(PROTOTYPES.values()))
    dense = pemncodec.decode(stream, dtype=dtype)
    if when == "decode":
        packed = pemncodec.decode(stream, packed=True, dtype=dtype)
    else:
        packed = pemncodec.decode(stream, packed=True).to(dtype)
    assert isinstance(packed.own, PackedWeight)
    assert packed.own.dtype == dtype
    assert packed.head.weight is packed.words.weight
    assert torch.equal(packed(TOKENS), dense(TOKENS))
    assert_same_module(pemncodec.unpack(packed), dense)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_masks_of_one_kind(manifest: dict[str, Any], keep: float) -> None:
    stream = file_of(manifest, (PROTOTYPES["stored"],), keep=keep)
    dense, packed = pemncodec.decode(stream), pemncodec.decode(stream, packed=True)
    assert torch.equal(packed(TOKENS), dense(TOKENS))


@pytest.mark.parametrize("odd_ones", [0, 1])
def test_signed_constants_that_no_seed_makes_take_a_sign_each(odd_ones: int) -> None:
    """A file has them only where masks use them. One other value, and all are held as they are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(61, 48))
    mask = torch.rand(48, 61) < 0.5
    with torch.no_grad():
        weight = torch.empty(48, 61).bernoulli_() - 0.5
        used = mask.nonzero()[:odd_ones]
        weight[used[:, 0], used[:, 1]] = 3
        model[0].weight.copy_(weight * mask)
    written = io.BytesIO()
    given = {"0.weight": mask}
    inputs = torch.randn(1000, 61)
    pemncodec.encode(model, written, masks=given, find_seed="off", example_inputs=inputs[:2])
    dense, packed = pemncodec.decode(written), pemncodec.decode(written, packed=True)
    state = packed.state_dict()
    if odd_ones:
        assert set(state) == {"0.weight", "0.bias"}
    else:
        assert state["0.weight.prototype"].dtype == torch.uint8
        assert state["0.weight.prototype"].numel() == 48 * 61 // 8
    assert torch.equal(packed(inputs), dense(inputs))
    assert_same_module(pemncodec.unpack(packed), dense)


def test_numpy_kernels(stream: io.BytesIO, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, packed = pemncodec.decode(stream), pemncodec.decode(stream, packed=True)
    exchange_kernels(monkeypatch, "numpy")
    assert torch.equal(packed(TOKENS), dense(TOKENS))


def test_gradients_reach_what_is_not_packed(stream: io.BytesIO) -> None:
    dense, packed = (pemncodec.decode(stream, packed=packed) for packed in (False, True))
    for model in (dense, packed):
        (model(TOKENS) ** 2).sum().backward()
    expected = dict(dense.named_parameters())
    for name, parameter in packed.named_parameters():
        assert parameter.requires_grad == expected[name].requires_grad
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, expected[name].grad)
        else:
            assert parameter.grad is None


# ------------------------------------------------------------------------ the module itself


def test_a_packed_module_looks_like_the_dense_one(stream: io.BytesIO) -> None:
    dense, packed = pemncodec.decode(stream), pemncodec.decode(stream, packed=True)
    assert [(n, p.shape, p.dtype, p.device) for n, p in packed.named_parameters()] == [
        (n, p.shape, p.dtype, p.device) for n, p in dense.named_parameters()
    ]
    assert not packed.training
    assert isinstance(packed.own, nn.Parameter)
    assert packed.shared is packed.last
    assert packed.own.is_contiguous()
    assert packed.own.stride() == dense.own.stride()
    assert torch.equal(packed.own + 0, dense.own)
    assert torch.equal(packed.own.t()[:2], dense.own.t()[:2])


def test_what_a_module_shows(manifest: dict[str, Any]) -> None:
    own = StoredPrototype(np.random.default_rng(0).random(64).astype("f4"), "float32")
    stream = file_of(manifest, (own, *PROTOTYPES.values(), *PROTOTYPES.values()))
    packed = pemncodec.decode(stream, packed=True)
    shown = str(packed)
    assert shown.startswith("Everything(\n  dense own: hardly smaller packed\n")
    assert "100,003 uniform values, from seed 7" in shown
    assert "values × 0.3" in shown
    assert "signs" in shown
    assert not isinstance(packed.own, PackedWeight)
    assert repr(packed.pair.weight).startswith("PackedWeight((8, 8, 8), torch.float32, ")
    dense = pemncodec.decode(stream)
    assert torch.equal(packed(TOKENS), dense(TOKENS))
    assert_same_module(pemncodec.unpack(packed), dense)


def through_pickle(module: nn.Module) -> nn.Module:
    copied: nn.Module = pickle.loads(pickle.dumps(module))  # noqa: S301
    return copied


def through_torch_save(module: nn.Module) -> nn.Module:
    written = io.BytesIO()
    torch.save(module, written)
    written.seek(0)
    loaded: nn.Module = torch.load(written, weights_only=False)
    return loaded


@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle, through_torch_save])
def test_copies(stream: io.BytesIO, way: Callable[[nn.Module], nn.Module]) -> None:
    packed = pemncodec.decode(stream, packed=True)
    expected = packed(TOKENS)
    copied = way(packed)
    assert str(copied) == str(packed)
    assert torch.equal(copied(TOKENS), expected)
    assert copied.head.weight is copied.words.weight
    assert isinstance(copied.own, nn.Parameter)
    assert not copied.own.requires_grad
    mine = {n: t.data_ptr() for n, t in copied.state_dict().items() if "recipe" not in n}
    other = {n: t.data_ptr() for n, t in packed.state_dict().items() if "recipe" not in n}
    assert not set(mine.values()) & set(other.values())
    prototypes = {place for name, place in mine.items() if name.endswith(".prototype")}
    assert len(prototypes) == 1
    for name, tensor in copied.state_dict().items():
        if name.endswith(".bits"):
            tensor.zero_()
    assert torch.equal(packed(TOKENS), expected)
    assert_same_module(pemncodec.unpack(packed), pemncodec.decode(stream))


def test_a_state_dict_is_loaded_again(stream: io.BytesIO) -> None:
    packed = pemncodec.decode(stream, packed=True)
    written = io.BytesIO()
    torch.save(packed.state_dict(), written)
    expected = packed(TOKENS)
    for name, tensor in packed.state_dict().items():
        if name.endswith((".bits", ".prototype")):
            tensor.zero_()
    assert not torch.equal(packed(TOKENS), expected)
    written.seek(0)
    state = torch.load(written, weights_only=True)
    assert not packed.load_state_dict(state).missing_keys
    assert torch.equal(packed(TOKENS), expected)
    assert all(same_bits(tensor, state[name]) for name, tensor in packed.state_dict().items())
    assert torch.equal(packed.last.state_dict()["weight.bits"], state["last.weight.bits"])
    fresh = pemncodec.decode(stream, packed=True)
    fresh.load_state_dict(state, assign=True)  # last: PyTorch notes it in the state
    assert torch.equal(fresh(TOKENS), expected)


def test_state_dicts_that_do_not_fit(stream: io.BytesIO, manifest: dict[str, Any]) -> None:
    packed, dense = pemncodec.decode(stream, packed=True), pemncodec.decode(stream)
    expected = packed(TOKENS)
    with pytest.raises(RuntimeError, match=r"own is dense in the state and packed in the module"):
        packed.load_state_dict(dense.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*own\.bits"):
        dense.load_state_dict(packed.state_dict())
    another = file_of(manifest, (SeededPrototype("normal", 8, 38), PROTOTYPES["long seed"]))
    with pytest.raises(RuntimeError, match=r"own: .*decode the file that the state is of"):
        packed.load_state_dict(pemncodec.decode(another, packed=True).state_dict())
    state = packed.state_dict()
    state["own.recipe"] = torch.zeros(5, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"own: not the recipe of a packed weight"):
        packed.load_state_dict(state)
    del state["own.recipe"], state["own.bits"]
    with pytest.raises(RuntimeError, match=r"Missing key.*own"):
        packed.load_state_dict(state)
    assert torch.equal(packed(TOKENS), expected)


@pytest.mark.parametrize("gone", ["recipe", "bits"])
def test_parts_of_a_weight_are_unexpected(stream: io.BytesIO, gone: str) -> None:
    packed = pemncodec.decode(stream, packed=True)
    state = packed.state_dict()
    parts = [name for name in state if name.startswith("own.")]
    del state[f"own.{gone}"]
    found = packed.load_state_dict(state, strict=False)
    assert found.missing_keys == ["own"]
    assert found.unexpected_keys == [name for name in parts if name != f"own.{gone}"]


def with_values(manifest: dict[str, Any], seed: int) -> nn.Module:
    """A packed module; all its weights take one prototype, whose values are stored."""
    values = np.random.default_rng(seed).random(37).astype("f4")
    stream = file_of(manifest, (StoredPrototype(values, "float32"),))
    return pemncodec.decode(stream, packed=True)


def test_loading_one_weight_changes_no_other(manifest: dict[str, Any]) -> None:
    packed, other = with_values(manifest, 0), with_values(manifest, 1)
    before = {name: weight.dense().clone() for _, name, weight in packed_weights(packed.pair)}
    before |= {"own": packed.own.dense().clone()}
    alias, kept = packed.last.weight.detach(), packed.last.weight.dense().clone()
    packed.last.load_state_dict(other.last.state_dict())
    assert torch.equal(packed.last.weight.dense(), other.last.weight.dense())
    assert torch.equal(alias.dense(), kept)  # whole, either way
    assert torch.equal(packed.pair.weight.dense(), before["weight"])
    assert torch.equal(packed.own.dense(), before["own"])
    state = {name: t for name, t in other.state_dict().items() if name.startswith("own.")}
    packed.load_state_dict(state, strict=False)
    assert torch.equal(packed.own.dense(), other.own.dense())
    assert torch.equal(packed.pair.weight.dense(), before["weight"])
    state["own.prototype"].zero_()
    assert packed.own.dense().any()


def test_all_weights_loaded_share_a_prototype(manifest: dict[str, Any]) -> None:
    packed, other = with_values(manifest, 0), with_values(manifest, 1)
    packed.load_state_dict(other.state_dict())
    held = {id(weight.prototype) for _, _, weight in packed_weights(packed)}
    assert len(held) == 1
    assert torch.equal(packed(TOKENS), other(TOKENS))
    assert not held & {id(weight.prototype) for _, _, weight in packed_weights(other)}


def test_what_is_converted_is_a_copy(manifest: dict[str, Any]) -> None:
    packed, other = with_values(manifest, 0), with_values(manifest, 1)
    expected = packed(TOKENS)
    for copied in (packed.own.to(torch.float64), packed.own.to("cpu", copy=True)):
        copied.prototype.zero_()
        assert torch.equal(packed(TOKENS), expected)
    packed.own.prototype.copy_(other.own.prototype)
    assert torch.equal(packed.own.to(torch.float64).prototype, other.own.prototype)


def test_a_detached_weight_takes_no_other_prototype(manifest: dict[str, Any]) -> None:
    packed, other = with_values(manifest, 0), with_values(manifest, 1)
    expected = packed(TOKENS)
    with torch.no_grad(), pytest.raises(RuntimeError, match="another prototype: load a state dict"):
        packed.own.detach().copy_(other.own)
    with torch.no_grad(), pytest.raises(RuntimeError, match="same seed, scale and offset"):
        packed.own.copy_(packed.own.t())
    assert torch.equal(packed(TOKENS), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
def test_compiled(manifest: dict[str, Any]) -> None:
    together = [PROTOTYPES[which] for which in ("short seed", "long torch", "constant")]
    stream = file_of(manifest, tuple(together))
    dense, packed = pemncodec.decode(stream), pemncodec.decode(stream, packed=True)

    def part(model: nn.Module, tokens: Tensor) -> Tensor:
        x = model.one((model.words(tokens) @ model.own).transpose(1, 2))
        return model.head(model.last(x.transpose(1, 2)))

    torch._dynamo.reset()
    compiled = torch.compile(part, backend="aot_eager", fullgraph=True)
    for grad in (torch.no_grad, torch.enable_grad):
        with grad():
            torch.testing.assert_close(compiled(packed, TOKENS), part(dense, TOKENS))
            torch.testing.assert_close(compiled(packed, TOKENS[:1]), part(dense, TOKENS[:1]))
    # Where a graph breaks, our own code is not compiled.
    recurrent = torch.compile(lambda x: packed.recurrent(x)[0], backend="aot_eager")
    given = torch.rand(1, 3, 8)
    with torch.no_grad():
        assert torch.equal(recurrent(given), dense.recurrent(given)[0])


def test_encoded_again(stream: io.BytesIO) -> None:
    packed, written = pemncodec.decode(stream, packed=True), io.BytesIO()
    pemncodec.encode(packed, written)
    expected = io.BytesIO()
    pemncodec.encode(pemncodec.decode(stream), expected)
    assert written.getvalue() == expected.getvalue()
    assert isinstance(packed.own, PackedWeight)


def test_on_another_device(stream: io.BytesIO) -> None:
    packed = pemncodec.decode(stream, packed=True).to("meta")
    assert packed(TOKENS.to("meta")).shape == (2, 10, 11)
    held = {id(w.prototype) for _, _, w in packed_weights(packed) if w.prototype is not None}
    assert len(held) == 1
    assert packed.head.weight is packed.words.weight
    assert packed.own.device.type == packed.own.bits.device.type == "meta"


def test_a_module_of_trusted_code() -> None:
    torch.manual_seed(0)
    model, written = nn.Linear(300, 40), io.BytesIO()
    with torch.no_grad():
        model.weight.copy_(torch.randn(50).repeat(240).view(40, 300))
    builder = ("torch.nn:Linear", {"in_features": 300, "out_features": 40})
    pemncodec.encode(model, written, masks=random_masks(model), builder=builder)
    packed = pemncodec.decode(written, packed=True, trust=[builder[0]])
    assert isinstance(packed.weight, PackedWeight)
    dense = pemncodec.decode(written, trust=[builder[0]])
    inputs = torch.randn(2, 300)
    assert torch.equal(packed(inputs), dense(inputs))
    assert_same_module(pemncodec.unpack(packed), dense)


def test_in_shared_memory(stream: io.BytesIO) -> None:
    packed = pemncodec.decode(stream, packed=True)
    with torch.no_grad():
        expected = packed(TOKENS)
    assert packed.share_memory().own.bits.is_shared()
    assert packed.own.prototype.is_shared()
    with torch.no_grad():
        assert torch.equal(packed(TOKENS), expected)


# ------------------------------------------------------------------------------- refusals


WRITES: dict[str, Callable[[nn.Module], object]] = {
    "in place": lambda m: m.own.mul_(2),
    "initial values": lambda m: nn.init.normal_(m.own),
    "dense values": lambda m: m.own.copy_(torch.zeros(8, 8)),
    "into several": lambda m: torch._foreach_zero_([m.own]),
    "as a result": lambda m: torch.add(torch.zeros(8, 8), 1, out=m.own),
    "embedding with a norm": lambda m: functional.embedding(TOKENS, m.words.weight, max_norm=0.1),
    "a row": lambda m: m.own[0].zero_(),
    "a weight": lambda m: m.own.__setitem__((0, 0), 100.0),
    "some": lambda m: m.own.__setitem__(torch.eye(8) > 0, 100.0),
    "a part of its data": lambda m: m.own.data.__setitem__(slice(5), 7.0),
    "a row of its data": lambda m: m.own.data[0].add_(1),
    "its data": lambda m: setattr(m.own, "data", torch.zeros(8, 8)),
    "data of a view": lambda m: setattr(m.own[0], "data", torch.zeros(8)),
    "a flat view": lambda m: m.own.view(-1)[:10].fill_(9),
    "flattened": lambda m: m.own.flatten().zero_(),
    "reshaped": lambda m: m.own.reshape(4, 16).zero_(),
    "another dtype": lambda m: m.own.view(torch.int32).zero_(),
    "transposed": lambda m: m.own.T.zero_(),
    "a transposed row": lambda m: m.own.t()[0].zero_(),
    "a chunk": lambda m: m.attention.in_proj_weight.chunk(3)[1].mul_(2),
    "one of a pair": lambda m: m.own.split(4)[0].mul_(2),
    "a row of rows": lambda m: m.own.unbind()[3].mul_(2),
    "a diagonal": lambda m: m.own.diagonal().fill_(0),
    "a view as a result": lambda m: torch.add(torch.zeros(8), 1, out=m.own[0]),
    "views": lambda m: torch._foreach_mul_([m.own[0], torch.ones(8)], 2),
    "a detached view": lambda m: m.own[0].detach().zero_(),
    "orthogonal values": lambda m: nn.init.orthogonal_(m.own),
    "the identity": lambda m: nn.init.eye_(m.own),
    "a vector": lambda m: nn.utils.vector_to_parameters(torch.zeros(64), [m.own]),
    "a step": lambda m: step(m.own, foreach=False),
    "a step of all": lambda m: step(m.own, foreach=True),
}


def step(weight: Tensor, *, foreach: bool) -> None:
    weight.grad = torch.ones(8, 8)
    torch.optim.SGD([weight], lr=1.0, foreach=foreach).step()


@pytest.fixture(scope="module")
def written_to(manifest: dict[str, Any]) -> nn.Module:
    prototypes = (PROTOTYPES["short seed"], PROTOTYPES["long torch"])
    return pemncodec.decode(file_of(manifest, prototypes), packed=True)


@pytest.mark.parametrize("way", WRITES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_written(written_to: nn.Module, way: str, mode: Callable[[], Any]) -> None:
    expected = written_to(TOKENS)
    with mode(), pytest.raises(RuntimeError, match="a packed weight cannot be written to"):
        WRITES[way](written_to)
    assert torch.equal(written_to(TOKENS), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_views_are_read(stream: io.BytesIO, mode: Callable[[], Any]) -> None:
    dense, packed = pemncodec.decode(stream), pemncodec.decode(stream, packed=True)
    x, y = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    with mode():
        # Three products of three chunks, since query, key and value differ.
        first, second = (model.attention(x, y, x + y) for model in (dense, packed))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
        mine, own = packed.own, dense.own
        for part in (
            lambda w: functional.linear(x, w[2:5]),
            lambda w: x @ w.T[:, 1:] + w[0, 1:],
            lambda w: w.reshape(2, 4, 8).permute(2, 0, 1).flatten(1)[::2].contiguous(),
            lambda w: torch.cat([w.chunk(2)[1], w]).sum(0),
            lambda w: torch.einsum("bij,kj->bik", x, w.view(8, 8)),
        ):
            assert torch.equal(part(mine), part(own))
        for written in (mine[0].clone(), mine[0] * 2, mine.T.reshape(-1), mine[:3].double()):
            expected = written.mul(0.5)
            assert torch.equal(written.mul_(0.5), expected)
            assert type(written) is Tensor
        assert torch.equal(mine + 0, own)
    assert mine[0].tolist() == own[0].tolist()
    assert str(mine[0].clone()) == str(own[0].detach().clone())
    assert repr(mine[0]).startswith("DenseView([")
    assert not mine[0].detach().numpy().flags.writeable
    assert np.array_equal(np.asarray(mine[0]), own[0].detach())
    assert type(copy.deepcopy(mine[0].detach())) is Tensor
    assert torch.equal(pickle.loads(pickle.dumps(mine[1])), own[1])  # noqa: S301


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
def test_views_are_compiled(stream: io.BytesIO) -> None:
    dense, packed = pemncodec.decode(stream), pemncodec.decode(stream, packed=True)

    def part(model: nn.Module, x: Tensor) -> Tensor:
        query, _, value = model.attention.in_proj_weight.chunk(3)
        return functional.linear(functional.linear(x, query), value[2:]) @ model.own.T[:6]

    torch._dynamo.reset()
    compiled, x = torch.compile(part, backend="aot_eager", fullgraph=True), torch.randn(2, 8)
    with torch.no_grad():
        assert torch.equal(compiled(packed, x), part(dense, x))


def test_nothing_is_trained(stream: io.BytesIO) -> None:
    packed = pemncodec.decode(stream, packed=True)
    with pytest.raises(RuntimeError, match="cannot be trained: unpack the module"):
        packed.requires_grad_(True)
    packed.requires_grad_(False)


def test_options_that_exclude_each_other(stream: io.BytesIO) -> None:
    with pytest.raises(DecodeArgumentError, match="leave out device, packed"):
        pemncodec.decode(stream, into=Everything(), packed=True)
    with pytest.raises(DecodeArgumentError, match="packed: on the meta device"):
        pemncodec.decode(stream, device="meta", packed=True)


def test_a_module_without_packed_weights_stays_as_it_is(stream: io.BytesIO) -> None:
    dense = pemncodec.decode(stream)
    before = {name: id(tensor) for name, tensor in dense.named_parameters()}
    assert pemncodec.unpack(dense) is dense
    assert {name: id(tensor) for name, tensor in dense.named_parameters()} == before


# ---------------------------------------------------------------------------- the workspace


def test_two_weights_of_one_product(stream: io.BytesIO) -> None:
    dense, packed = pemncodec.decode(stream), pemncodec.decode(stream, packed=True)
    with torch.no_grad():
        assert torch.equal(packed.own @ packed.last.weight, dense.own @ dense.last.weight)
        first, second = packed.own + 0, packed.last.weight.t() @ packed.own
        assert torch.equal(first, dense.own)
        assert torch.equal(second, dense.last.weight.t() @ dense.own)


def test_a_weight_that_is_held_is_not_overwritten(stream: io.BytesIO) -> None:
    dense, packed = pemncodec.decode(stream), pemncodec.decode(stream, packed=True)
    held = [weight.dense() for _, _, weight in packed_weights(packed)]
    for _ in range(2):
        packed(TOKENS)
    rows = packed.last.weight.dense()[3:]  # a view alone
    packed(TOKENS)
    for (_, _, weight), values in zip(packed_weights(packed), held, strict=True):
        assert torch.equal(values, weight.dense())
    assert torch.equal(rows, dense.last.weight[3:])


def test_threads_share_a_module(stream: io.BytesIO) -> None:
    packed = pemncodec.decode(stream, packed=True)
    inputs = [torch.randint(11, (1, 5 + index)) for index in range(6)]
    with torch.no_grad():
        expected = [packed(tokens) for tokens in inputs]
    wrong: list[int] = []

    def call(index: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                if not torch.equal(packed(inputs[index]), expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_memory_is_used_again_once_it_is_free() -> None:
    workspace = Workspace()
    first = workspace.empty(1000, torch.float32)
    place = first.data_ptr()
    second = workspace.empty(1000, torch.float32)
    assert second.data_ptr() != place
    view = first[:1]
    del first
    assert workspace.empty(10, torch.float32).data_ptr() != place
    del view, second
    gc.collect()
    assert len(workspace._free) == 1  # the largest
    for count in (1000, 1005, 1010, 1015):  # somewhat larger than what is there
        assert workspace.empty(count, torch.float32).shape == (count,)
    assert workspace.empty(500, torch.float64).data_ptr() % 64 == 0
    assert workspace.empty(0, torch.float32).shape == (0,)


@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle, through_torch_save, nn.Module.half])
def test_layers_take_turns_in_one_buffer(
    stream: io.BytesIO, way: Callable[[nn.Module], nn.Module]
) -> None:
    def places(module: nn.Module) -> set[int]:
        for _, _, weight in packed_weights(module):
            weight.dense()  # it grows to the largest
        return {weight.dense().data_ptr() for _, _, weight in packed_weights(module)}

    packed = pemncodec.decode(stream, packed=True)
    assert len(places(packed)) == 1
    copied = way(packed)
    assert len(places(copied)) == 1
    assert copied is packed or places(copied) != places(packed)


def test_small_next_to_dense(manifest: dict[str, Any]) -> None:
    stream = file_of(manifest, (PROTOTYPES["constant"],))
    state = pemncodec.decode(stream, packed=True).state_dict()
    bits = {n: t.nbytes for n, t in state.items() if n.endswith(".bits")}
    weights = pemncodec.decode(stream).state_dict()
    assert all(
        size == -(-weights[name.removesuffix(".bits")].numel() // 8) for name, size in bits.items()
    )
