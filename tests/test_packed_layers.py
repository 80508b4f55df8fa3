"""Single layers that work on the bits of their weights: products of few inputs, embeddings."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from test_packed import PROTOTYPES, stored
from torch import Tensor, nn

import pemncodec
from pemncodec.contents import Contents, Fill, MaskedTensor, TorchPrototype
from pemncodec.decoding import load_tensors
from pemncodec.format.writer import encode_contents
from pemncodec.packed import devices, expansion
from pemncodec.packed import weight as weight_module
from pemncodec.packed.modules import install_weights
from pemncodec.packed.packing import pack_weights

KINDS = {
    **PROTOTYPES,
    "torch normal": TorchPrototype("normal", 3, 100_003, 5),
    "long stored half": stored("float16", 500),
}


def weights(
    prototype: Any, shape: tuple[int, ...], *, offset: int = 7, dtype: str = "float32"
) -> tuple[Any, Tensor]:
    """A packed weight, and the dense one."""
    mask = np.random.default_rng(0).random(shape) < 0.5
    fill = Fill(0, offset % prototype.length, float(np.float32(0.3)))
    contents = Contents((prototype,), (MaskedTensor("weight", dtype, shape, fill, mask),))
    with pemncodec.open(io.BytesIO(b"".join(encode_contents(contents)))) as file:
        packed = pack_weights([file.masked_values("weight")])
        return packed["weight"], load_tensors(file, "cpu")["weight"]


def installed(layer: Any, weight: Tensor, name: str = "weight") -> Any:
    install_weights(layer, {name: weight}, [name])
    return layer.eval()


@pytest.fixture
def no_expansion(monkeypatch: pytest.MonkeyPatch) -> None:
    def expand(*_: object) -> None:
        raise AssertionError("expanded")

    monkeypatch.setattr(weight_module, "expand", expand)


HELD = ["short seed", "shuffled", "torch", "stored", "constant", "long constant", "torch signs"]


@pytest.mark.parametrize("which", HELD)
@pytest.mark.parametrize("shape", [(40, 64), (170, 13), (1600, 1), (3, 700)])
@pytest.mark.usefixtures("no_expansion")
def test_products_of_few_inputs(which: str, shape: tuple[int, int]) -> None:
    packed, dense = weights(KINDS[which], shape)
    rows, columns = shape
    layer = installed(nn.Linear(columns, rows), packed)
    torch.manual_seed(0)
    for inputs in (torch.randn(columns), torch.randn(1, columns), torch.randn(2, 2, columns)):
        exact = inputs.double() @ dense.double().t() + layer.bias.double()
        magnitude = inputs.double().abs() @ dense.double().abs().t() + layer.bias.double().abs()
        with torch.no_grad():
            error = (layer(inputs).double() - exact).abs()
        unit = (columns + 3) * 2.0**-24  # one more for the bias
        assert (error <= unit / (1 - unit) * magnitude).all()
    transposed = torch.randn(columns, 3).t()
    assert torch.allclose(layer(transposed), layer(transposed.contiguous()))


class Conv1D(nn.Module):
    """As in transformers: the weight is [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


@pytest.mark.parametrize("which", HELD)
@pytest.mark.parametrize("shape", [(40, 64), (170, 13), (1, 1600), (700, 3)])
@pytest.mark.usefixtures("no_expansion")
def test_products_of_columns(which: str, shape: tuple[int, int]) -> None:
    packed, dense = weights(KINDS[which], shape)
    inputs, outputs = shape
    layer = installed(Conv1D(inputs, outputs), packed)
    torch.manual_seed(0)
    for given in (torch.randn(inputs), torch.randn(1, inputs), torch.randn(2, 2, inputs)):
        exact = given.double() @ dense.double()
        magnitude = given.double().abs() @ dense.double().abs()
        unit = (inputs + 3) * 2.0**-24
        with torch.no_grad():
            error = (given @ layer.weight).double() - exact
            biased = layer(given).double() - (exact + layer.bias.double())
        assert (error.abs() <= unit / (1 - unit) * magnitude).all()
        magnitude = magnitude + layer.bias.double().abs()
        assert (biased.abs() <= unit / (1 - unit) * magnitude).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
def test_products_of_columns_are_compiled() -> None:
    packed, dense = weights(KINDS["stored"], (24, 16))
    layer, given = installed(Conv1D(24, 16), packed), torch.randn(2, 24)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(given), layer(given))
        assert torch.allclose(layer(given), given @ dense + layer.bias, atol=1e-5)


@pytest.mark.parametrize(
    ("which", "dtype", "batch"),
    [
        ("short seed", torch.float32, 257),
        ("long seed", torch.float32, 1),
        ("stored half", torch.float32, 1),
        ("short seed", torch.float64, 1),
        ("constant", torch.float32, 257),
        ("constant", torch.bfloat16, 1),
    ],
)
def test_other_products_are_those_of_dense_weights(
    which: str, dtype: torch.dtype, batch: int
) -> None:
    packed, dense = weights(KINDS[which], (24, 16))
    layer = installed(nn.Linear(16, 24), packed).to(dtype)
    inputs = torch.randn(batch, 16, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(layer(inputs), nn.functional.linear(inputs, dense.to(dtype), layer.bias))
        assert torch.equal(inputs[:, :1] @ layer.weight[:1], inputs[:, :1] @ dense.to(dtype)[:1])


@pytest.mark.parametrize("scale", [(0.5, 1), (1, 0.5)])
def test_scaled_sums(scale: tuple[float, float]) -> None:
    packed, dense = weights(KINDS["stored"], (24, 16))
    alpha, beta = scale
    bias, inputs = torch.randn(24), torch.randn(2, 16)
    expected = torch.addmm(bias, inputs, dense.t(), alpha=alpha, beta=beta)
    assert torch.equal(torch.addmm(bias, inputs, packed.t(), alpha=alpha, beta=beta), expected)


@pytest.mark.parametrize("which", ["stored", "constant"])
def test_no_inputs(which: str) -> None:
    packed, _ = weights(KINDS[which], (24, 16))
    layer = installed(nn.Linear(16, 24), packed)
    assert layer(torch.empty(0, 16)).shape == (0, 24)
    assert (torch.empty(0, 24) @ packed).shape == (0, 16)


def outcome(work: Callable[[Tensor], Tensor], weight: Tensor) -> tuple[Any, ...]:
    """Shape and dtype of a result, or the error in its place."""
    try:
        result = work(weight)
    except Exception as error:
        return type(error), str(error)
    return result.shape, result.dtype


@pytest.mark.parametrize("which", ["stored", "constant"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 4), (5, 8), (24, 16)])
def test_what_does_not_fit_fails_as_with_dense_weights(which: str, shape: tuple[int, int]) -> None:
    """With sizes of which the bits fill the same bytes, too."""
    prototype = stored("float32", 2) if which == "stored" else KINDS[which]
    packed, dense = weights(prototype, shape)
    functional, failed = nn.functional, 0
    for matrix in (packed, packed.t()):
        plain = dense if matrix is packed else dense.t()
        n, m = plain.shape
        works: list[Callable[[Tensor], Tensor]] = []
        for sizes in product((1, 2, 4), {1, 2, 3, 4, 8, 16, 24, n, m}):
            x = torch.ones(sizes)
            works += [
                lambda w, x=x: torch.mm(x, w),
                lambda w, x=x: x @ w,
                lambda w, x=x: functional.linear(x, w),
                lambda w, x=x: functional.linear(x, w, torch.ones(w.shape[0])),
                lambda w, x=x: torch.addmm(torch.ones(w.shape[1]), x, w),
            ]
        x = torch.ones(2, n)
        biases = [(2, 1, m), (1, 2, m), (3, m), (2, m + 1), (m + 1,), (1, 1, 1)]
        biases += [(), (1,), (m,), (1, m), (2, 1), (2, m), (0,)]
        for bias in [*map(torch.ones, biases), torch.ones(m).double(), torch.ones(m).long()]:
            works.append(lambda w, x=x, bias=bias: torch.addmm(bias, x, w))
        works += [
            lambda w, x=x: torch.addmm(torch.ones(w.shape[1], device="meta"), x, w),
            lambda w, x=x: torch.mm(x.double(), w),
            lambda w, x=x: torch.mm(x[0], w),
            lambda w, x=x: torch.mm(x[None], w),
        ]
        for work in works:
            expected = outcome(work, plain)
            assert outcome(work, matrix) == expected
            failed += isinstance(expected[1], str)
    assert failed > 50


def test_biases_of_every_shape_that_fits() -> None:
    packed, dense = weights(KINDS["stored"], (24, 16))
    inputs = torch.randn(2, 16)
    for shape in [(), (1,), (24,), (1, 24), (2, 1), (2, 24)]:
        bias = torch.randn(shape)
        expected = torch.addmm(bias, inputs, dense.t())
        assert torch.allclose(torch.addmm(bias, inputs, packed.t()), expected, atol=1e-5)


@pytest.mark.parametrize("which", ["stored", "constant"])
def test_gradients_pass_through_a_product(which: str) -> None:
    packed, dense = weights(KINDS[which], (24, 16))
    inputs = torch.randn(2, 16, requires_grad=True)
    layer = installed(nn.Linear(16, 24), packed)
    layer(inputs).sum().backward()
    assert torch.allclose(inputs.grad, dense.sum(0).expand(2, 16))
    assert torch.equal(layer.bias.grad, torch.full((24,), 2.0))


@pytest.mark.parametrize("which", ["stored", "constant"])
def test_a_packed_weight_times_another(which: str) -> None:
    packed, dense = weights(KINDS[which], (24, 16))
    assert torch.allclose(packed @ packed.t(), dense @ dense.t(), atol=1e-6)


@pytest.mark.parametrize("which", ["stored", "constant"])
def test_autocast(which: str) -> None:
    packed, dense = weights(KINDS[which], (24, 16))
    layer, inputs = installed(nn.Linear(16, 24), packed), torch.randn(2, 16)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(layer(inputs), nn.functional.linear(inputs, dense, layer.bias))


@pytest.mark.parametrize("which", KINDS)
@pytest.mark.parametrize("columns", [8, 13])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("no_expansion")
def test_rows_of_an_embedding(which: str, columns: int, dtype: str) -> None:
    packed, dense = weights(KINDS[which], (700, columns), dtype=dtype)
    layer = installed(nn.Embedding(700, columns, padding_idx=3), packed)
    for indices in (torch.tensor([[3, 699, 3], [0, 1, 350]]), torch.tensor(5, dtype=torch.int32)):
        assert torch.equal(layer(indices), dense[indices.long()])
    assert layer(torch.empty(0, dtype=torch.int64)).shape == (0, columns)
    for wrong in (-1, 700):
        with pytest.raises(IndexError, match="index out of range in self"):
            layer(torch.tensor([1, wrong]))


def test_indices_are_integers() -> None:
    packed, dense = weights(KINDS["stored"], (700, 8))
    for indices in (
        torch.tensor([1.5, 2]),
        torch.tensor([True]),
        torch.tensor([1], dtype=torch.uint8),
    ):
        expected = outcome(lambda w, i=indices: torch.embedding(w, i), dense)
        assert expected[0] is RuntimeError
        assert outcome(lambda w, i=indices: torch.embedding(w, i), packed) == expected


def test_rows_of_a_transposed_weight() -> None:
    packed, dense = weights(KINDS["stored"], (700, 16))
    indices = torch.tensor([15, 0, 3])
    assert torch.equal(nn.functional.embedding(indices, packed.t()), dense.t()[indices])


@pytest.mark.parametrize("which", KINDS)
@pytest.mark.parametrize("cached", [0, 1 << 22])
def test_weights_that_are_made_in_parts(
    which: str, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "_CACHED_BYTES", cached)
    packed, dense = weights(KINDS[which], (333, 401), offset=1900)
    assert torch.equal(packed.dense(), dense)
    assert torch.equal(packed.t().dense(), dense.t())
    assert torch.equal(packed.to(torch.float16).dense(), dense.half())
    made = devices.expand_on_device(packed.recipe, packed.bits, packed.prototype, packed.dtype)
    assert torch.equal(made.view(333, 401), dense)


def test_a_buffer_stays_dense() -> None:
    layer = installed(nn.BatchNorm1d(4), torch.zeros(4), "running_mean")
    assert "dense running_mean: only parameters are packed" in str(layer)
    assert "dense weight: hardly smaller packed" in str(
        installed(nn.Linear(4, 4), torch.ones(4, 4))
    )


def test_many_rows_of_an_embedding() -> None:
    for which in ("stored", "long seed", "constant"):
        packed, dense = weights(KINDS[which], (70, 8))
        indices = torch.randint(70, (9, 30))
        assert torch.equal(nn.functional.embedding(indices, packed), dense[indices])
