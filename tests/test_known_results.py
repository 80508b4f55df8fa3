"""What we say that operators return on the meta device is what PyTorch says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

import pemncodec
from pemncodec.architecture.known_results import KnownResults, known_result

ROOT = Path(__file__).parent.parent
aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def layout(value: Any) -> Any:
    """Shape, dtype and strides; those of axes of one item are any."""
    if isinstance(value, tuple | list):
        return [layout(item) for item in value]
    pairs = zip(value.stride(), value.shape, strict=True)
    strides = [n for n, size in pairs if size != 1] if value.numel() else []
    return tuple(value.shape), strides, value.dtype


def agrees(function: Any, *arguments: Any, **named: Any) -> bool:
    """Whether there is a rule that answers; it must answer as PyTorch does."""
    known = known_result(function, arguments, named)
    if known is not None:
        assert layout(known) == layout(function(*arguments, **named)), function
    return known is not None


class Compared(KnownResults):
    """Counts operators that are answered by rules and those that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[str] = set()
        self.others: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if agrees(func, *args, **(kwargs or {})):
            self.known.add(str(func))
        else:
            self.others.add(str(func))
        return super().__torch_dispatch__(func, types, args, kwargs)


class Everything(nn.Module):
    """The steps of exported Transformers and of image networks, on tensors of any order."""

    def forward(self, x: Tensor) -> Tensor:
        image = nn.functional.max_pool2d(torch.relu_(x + 1), 3, 2, 1)
        rows = image.permute(0, 2, 3, 1)
        rows = nn.functional.layer_norm(rows, rows.shape[-1:])
        rows = torch.roll(rows.transpose(1, 2) * rows.sin(), (1, 1), (1, 2))
        places = torch.arange(rows.shape[1], device=x.device)
        near = (places[:, None] - places).abs() <= 2
        near = (near & (places > 0)).cumsum(0) != 1
        picked = torch.where(near[None, :, :, None], rows, torch.zeros((), device=x.device))
        picked = torch.cat([picked, -picked], -1)[places[:2].minimum(places[:2])]
        picked = torch.stack([picked, picked.clone()]).mean([0, -2])
        picked = picked.gather(1, places[None, :, None].expand(picked.shape[0], -1, 1))
        return (picked.softmax(1) / picked.pow(2).sqrt()).mul_(2.0).mean()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8), nn.GELU("tanh")),
            *(nn.Conv2d(8, 8, 3, padding="same", groups=4), nn.Hardswish(inplace=True)),
            *(nn.ConvTranspose2d(8, 6, 3, 2, output_padding=1), nn.SiLU(), nn.Flatten(2)),
            nn.Conv1d(6, 4, 3, dilation=2),
        ),
        (2, 3, 16, 16),
    ),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), (2, 5, 8)),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
    "LSTM": (lambda: nn.LSTM(8, 8, bidirectional=True), (5, 2, 8)),
    "everything": (Everything, (2, 8, 9, 9)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_same_values_in_the_same_order(name: str) -> None:
    make, shape = NETWORKS[name]
    with torch.device("meta"), Compared() as built:
        module = make().eval()
    given_to = [meta(*shape)] * (3 if name == "attention" else 1)
    with torch.no_grad(), Compared() as run:
        module(*given_to)
    assert run.known
    # Operators of C++, which import nothing.
    cheap = "t transpose view expand slice unsqueeze select permute empty unbind split as_strided"
    cheap += " squeeze zeros ones zero_ detach alias _to_copy scalar_tensor"
    left = {other.split(".")[1] for other in built.others | run.others} - set(cheap.split())
    assert not left


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Any:
    ones = [1, 1]
    return aten.convolution.default, x, weight, bias, ones, [0, 0], ones, False, [0, 0], groups


def batch_norm(statistics: int, training: bool) -> Any:
    mean = meta(statistics)
    x = meta(2, 3, 4)
    return aten.native_batch_norm.default, x, None, None, mean, mean, training, 0.1, 1e-5


POOL = aten.max_pool2d_with_indices.default
UNFIT: dict[str, tuple[Any, ...]] = {
    "channels": convolution(meta(2, 3, 8, 8), meta(4, 4, 3, 3)),
    "groups": convolution(meta(2, 4, 8, 8), meta(3, 2, 3, 3), groups=2),
    "small image": convolution(meta(2, 3, 2, 2), meta(4, 3, 3, 3)),
    "bias": convolution(meta(2, 3, 8, 8), meta(4, 3, 3, 3), meta(3)),
    "inner sizes": (aten.mm.default, meta(2, 3), meta(4, 5)),
    "dtypes": (aten.mm.default, meta(2, 3), meta(3, 5, dtype=torch.float64)),
    "batches": (aten.bmm.default, meta(2, 3, 4), meta(3, 4, 5)),
    "added bias": (aten.addmm.default, meta(4), meta(2, 3), meta(3, 5)),
    "sum": (aten.add.Tensor, meta(2, 3), meta(2, 4)),
    "sum in place": (aten.add_.Tensor, meta(1, 3), meta(2, 3)),
    "sum onto one item": (aten.add_.Tensor, meta(1, 3).expand(2, 3), meta(2, 3)),
    "statistics": batch_norm(4, training=False),
    "training": batch_norm(3, training=True),
    "normed shape": (aten.native_layer_norm.default, meta(2, 3), [4], None, None, 1e-5),
    "normed weight": (aten.native_layer_norm.default, meta(2, 3), [3], meta(4), None, 1e-5),
    "indices": (aten.embedding.default, meta(5, 3), meta(2)),
    "window": (POOL, meta(2, 3, 4, 4), [5, 5]),
    "padding": (POOL, meta(2, 3, 8, 8), [2, 2], [2, 2], [2, 2]),
    "axis": (aten._softmax.default, meta(2, 3), 2, False),
    "axis twice": (aten.mean.dim, meta(2, 3), [0, -2]),
    "size": (aten._unsafe_view.default, meta(2, 3), [7]),
    "open size": (aten._unsafe_view.default, meta(2, 3), [-1]),
    "other sizes": (aten.cat.default, [meta(2, 3), meta(3, 3)], 1),
    "too many indices": (aten.index.Tensor, meta(2), [meta(1, dtype=torch.int64)] * 2),
    "gathered": (aten.gather.default, meta(2, 3), 1, meta(3, 1, dtype=torch.int64)),
    "approximation": (aten.gelu.default, meta(2), {"approximate": "area"}),
    "shifts": (aten.roll.default, meta(2, 3), [1], [0, 1]),
    "backwards": (aten.arange.start, 3, 1, {"device": torch.device("meta")}),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_left_to_pytorch(name: str) -> None:
    function, *arguments = UNFIT[name]
    named = arguments.pop() if isinstance(arguments[-1], dict) else {}
    assert known_result(function, arguments, named) is None


def test_tensors_elsewhere_are_left_to_pytorch() -> None:
    assert known_result(aten.relu.default, (torch.zeros(2),), {}) is None
    assert known_result(aten.cat.default, ([meta(2), torch.zeros(2)],), {}) is None


sizes = st.lists(st.sampled_from([1, 1, 2, 3]), min_size=0, max_size=4)
dtypes = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool])


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of any order in memory, with gaps and repeated items."""
    tensor = meta(*draw(sizes), dtype=draw(dtypes))
    tensor = tensor.permute(draw(st.permutations(range(tensor.dim()))))
    if tensor.dim():
        axis = draw(st.integers(0, tensor.dim() - 1))
        if draw(st.booleans()):
            tensor = tensor.narrow(axis, 0, max(tensor.shape[axis] - 1, 1))
        elif tensor.shape[axis] == 1:
            tensor = tensor.expand(*(3 if n == axis else -1 for n in range(tensor.dim())))
    return tensor


@given(tensors(), st.one_of(tensors(), st.sampled_from([2, 0.5, True])))
def test_pairs(x: Tensor, y: Tensor | float) -> None:
    names = "add sub mul div add_ sub_ mul_ div_ eq lt bitwise_and"
    overload = "Tensor" if isinstance(y, Tensor) else "Scalar"
    for name in names.split():
        agrees(getattr(getattr(aten, name), overload), x, y)
    if isinstance(y, Tensor):
        agrees(aten.where.self, x, y, y)
        agrees(aten.cat.default, [x, y], -1)
        agrees(aten.index.Tensor, x, [y])
        agrees(aten.embedding.default, x, y)


@st.composite
def operands(draw: st.DrawFn) -> list[Tensor]:
    """Three that have a common shape, each with axes that it repeats."""
    common = draw(st.lists(st.sampled_from([2, 3, 4]), min_size=2, max_size=5))
    found = []
    for _ in range(3):
        tensor = meta(*(draw(st.sampled_from([1, size])) for size in common))
        order = draw(st.permutations(range(len(common))))
        tensor = (
            tensor.permute(order).contiguous().permute([order.index(n) for n in range(len(order))])
        )
        found.append(tensor.expand(common) if draw(st.booleans()) else tensor)
    return found


@given(operands())
def test_operands_that_repeat_axes(given_to: list[Tensor]) -> None:
    x, y, z = given_to
    condition = z > 0
    agrees(aten.where.self, condition, x, y)
    agrees(aten.add.Tensor, x, y)


def test_an_order_that_depends_on_all_operands() -> None:
    """As T5 masks its positions: of the first two axes, no operand has more than one."""
    condition = torch.empty_strided((2, 1, 16, 16), (0, 16, 1, 0), dtype=torch.bool, device="meta")
    biases = torch.empty_strided((1, 2, 16, 16), (2, 1, 32, 2), device="meta")
    assert agrees(aten.where.self, condition, biases, meta())


@given(tensors())
def test_single_tensors(x: Tensor) -> None:
    for name in ("relu", "gelu", "sqrt", "neg", "abs", "clone", "relu_", "zero_", "mean"):
        agrees(getattr(aten, name).default, x)
    for axis in (0, -1, 3):
        agrees(aten.mean.dim, x, [axis], True)
        agrees(aten._softmax.default, x, axis, False)
        agrees(aten.cumsum.default, x, axis)
        agrees(aten.roll.default, x, [1], [axis])
        agrees(aten.unsafe_split.Tensor, x, 1, axis)
    agrees(aten.clone.default, x, memory_format=torch.contiguous_format)
    agrees(aten.full_like.default, x, 1)
    agrees(aten._unsafe_view.default, x, [x.numel()])


def test_the_first_decode_of_a_process_imports_no_compiler(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(288, 4)
    model = nn.Sequential(*layers)
    path = tmp_path / "net.pemn"
    mask = torch.rand(8, 3, 3, 3) > 0.5
    pemncodec.encode(model, path, masks={"0.weight": mask}, example_inputs=torch.rand(2, 3, 8, 8))
    script = (
        "import sys, torch; before = set(sys.modules); import pemncodec;"
        "pemncodec.decode(sys.argv[1]); print(*(set(sys.modules) - before))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported = run.stdout.split()
    assert "pemncodec.decoding" in imported
    slow = ("sympy", "torch._dynamo", "torch.export", "torch.fx.experimental", "pemncodec.encoding")
    assert [name for name in imported if name.startswith(slow)] == []
