"""`decode` and its arguments: other dtypes, devices, a module of the caller's."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import MaskedNet, Run, fails, random_masks
from test_rebuild import TOKENS, Norms, TiedTagger, example
from torch import nn

import pemncodec
from pemncodec import DecodeArgumentError


@pytest.fixture
def stream(small: MaskedNet) -> io.BytesIO:
    written = io.BytesIO()
    small.encode(written)
    return written


def tied_file(**options: Any) -> io.BytesIO:
    torch.manual_seed(0)
    model, written = TiedTagger().eval(), io.BytesIO()
    inputs = example([TOKENS], 3)
    pemncodec.encode(model, written, masks=random_masks(model), example_inputs=inputs, **options)
    return written


# ------------------------------------------------------------------------------------- dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_dtype(stream: io.BytesIO, small: MaskedNet, dtype: torch.dtype) -> None:
    expected = small.effective.eval().to(dtype)
    model = pemncodec.decode(stream, dtype=dtype)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
        assert model.state_dict()[name].dtype == tensor.dtype
    assert torch.equal(model(small.inputs.to(dtype)), expected(small.inputs.to(dtype)))
    state = pemncodec.load_state_dict(stream, dtype=dtype)
    assert {name: t.dtype for name, t in state.items()} == {
        name: t.dtype for name, t in expected.state_dict().items()
    }


def test_tied_tensors_stay_tied_in_another_dtype() -> None:
    model = pemncodec.decode(tied_file(), dtype=torch.float64)
    assert model.out.weight is model.words.weight
    assert not model.out.weight.requires_grad
    assert model(*example([TOKENS], 2)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, "float16", float])
def test_what_is_no_dtype_of_floats(stream: io.BytesIO, dtype: Any) -> None:
    for load in (pemncodec.decode, pemncodec.load_state_dict):
        with pytest.raises(DecodeArgumentError, match=r"such as torch\.float16, not"):
            load(stream, dtype=dtype)
    with pytest.raises(DecodeArgumentError, match=r"such as torch\.float16, not"):
        pemncodec.decode(stream, into=nn.Linear(1, 1), dtype=dtype)


# ------------------------------------------------------------------------------------ device


def test_shapes_alone(stream: io.BytesIO, small: MaskedNet) -> None:
    model = pemncodec.decode(stream, device="meta", dtype=torch.float16)
    expected = small.module.half().state_dict()
    for state in (model.state_dict(), pemncodec.load_state_dict(stream, device="meta")):
        assert list(state) == list(expected)
        assert all(tensor.is_meta for tensor in state.values())
        assert all(tensor.shape == expected[name].shape for name, tensor in state.items())
    assert {name: t.dtype for name, t in model.state_dict().items()} == {
        name: t.dtype for name, t in expected.items()
    }
    assert model(small.inputs.half().to("meta")).shape == (2, 3)
    assert not model[0].weight.requires_grad
    assert model[1].weight.requires_grad


def test_shapes_alone_of_tied_tensors() -> None:
    model = pemncodec.decode(tied_file(), device="meta")
    assert model.out.weight is model.words.weight


def test_shapes_alone_read_no_section(stream: io.BytesIO) -> None:
    data = bytearray(stream.getvalue())
    with pemncodec.open(data) as file:
        entry = file.container.sections[-1]
    data[entry.offset] ^= 1
    with pytest.raises(pemncodec.DecodeError):
        pemncodec.decode(data)
    assert pemncodec.decode(data, device="meta")[0].weight.is_meta


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "xla", "", "cpu:x"])
def test_a_device_that_is_not_there(stream: io.BytesIO, device: str) -> None:
    for load in (pemncodec.decode, pemncodec.load_state_dict):
        with pytest.raises(DecodeArgumentError, match=r"^--device \(device=…\) ") as caught:
            load(stream, device=device)
        assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_on_the_command_line(
    run: Run, stream: io.BytesIO, tmp_path: Any
) -> None:
    (tmp_path / "net.pemn").write_bytes(stream.getvalue())
    for device in ("cuda:99", "xla", "meta"):
        fails(run("decode", "net.pemn", "-o", "net.pt", "--device", device), 2, "--device", device)


# -------------------------------------------------------------------------------------- into


def test_a_module_of_the_caller_is_filled(stream: io.BytesIO, small: MaskedNet) -> None:
    mine = copy.deepcopy(small.module).train()
    for parameter in mine.parameters():
        nn.init.zeros_(parameter)
    mine[0].weight.requires_grad_(False)
    before = {name: id(tensor) for name, tensor in mine.named_parameters()}
    assert pemncodec.decode(stream, into=mine) is mine
    assert {name: id(tensor) for name, tensor in mine.named_parameters()} == before
    assert mine.training
    assert [p.requires_grad for p in mine.parameters()][:2] == [False, True]
    assert torch.equal(mine.eval()(small.inputs), small.effective.eval()(small.inputs))


def test_a_module_in_another_dtype_is_filled(stream: io.BytesIO, small: MaskedNet) -> None:
    mine = copy.deepcopy(small.module).half()
    with pytest.raises(DecodeArgumentError, match=r"float16 .* in the file .*float32"):
        pemncodec.decode(stream, into=mine)
    pemncodec.decode(stream, into=mine, dtype=torch.float16)
    assert torch.equal(mine[0].weight, small.effective[0].weight.half())


@pytest.mark.parametrize("manifest", [True, False])
def test_tied_modules_are_filled(manifest: bool) -> None:
    written = tied_file() if manifest else tied_file(manifest=False)
    mine = TiedTagger().eval()
    pemncodec.decode(written, into=mine)
    assert mine.out.weight is mine.words.weight
    assert torch.equal(mine.words.weight, pemncodec.load_state_dict(written)["words.weight"])


def apart(model: nn.Module) -> nn.Module:
    model.out.weight = nn.Parameter(torch.zeros_like(model.out.weight))
    return model


def test_tensors_that_the_file_ties_and_the_module_does_not() -> None:
    written = tied_file()
    mine = pemncodec.decode(written, into=apart(TiedTagger()))
    assert mine.out.weight is not mine.words.weight
    assert torch.equal(mine.out.weight, mine.words.weight)


def test_tensors_that_the_module_ties_and_the_file_does_not() -> None:
    torch.manual_seed(0)
    model, written = apart(TiedTagger()).eval(), io.BytesIO()
    nn.init.normal_(model.out.weight)
    pemncodec.encode(model, written, masks=random_masks(model), example_inputs=example([TOKENS], 3))
    refuses(written, TiedTagger(), "are one tensor, but two in the file")


def refuses(stream: io.BytesIO, module: nn.Module, cause: str, **options: Any) -> None:
    before = {
        name: tensor.clone() for name, tensor in module.state_dict().items() if not tensor.is_meta
    }
    with pytest.raises(DecodeArgumentError, match=cause) as caught:
        pemncodec.decode(stream, into=module, **options)
    assert "\n" not in str(caught.value)
    after = module.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


UNFIT: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "a tensor more": (
        lambda m: nn.Sequential(*m, nn.Linear(3, 3)),
        r"the file has no tensor 6\.weight",
    ),
    "a tensor less": (lambda m: m[:-1], r"the module has no tensor 5\.weight"),
    "another shape": (
        lambda m: nn.Sequential(*m[:-1], nn.Linear(4, 4)),
        r"5\.weight of the module is torch\.float32 of \(4, 4\), in the file .* of \(3, 4\)",
    ),
    "another dtype": (lambda m: m.double(), "torch.float64"),
    "a wrapper": (Wrapper, r"the file has no tensor module\.0\.weight"),
    "without memory": (lambda m: m.to("meta"), "has no memory yet"),
    "not run yet": (
        lambda m: nn.Sequential(*m[:-1], nn.LazyLinear(3)),
        r"5\.weight of the module has no memory yet",
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("kind", [kind for kind in UNFIT if kind != "not run yet"])
def test_a_module_that_does_not_fit_keeps_its_values(
    stream: io.BytesIO, small: MaskedNet, kind: str
) -> None:
    change, cause = UNFIT[kind]
    refuses(stream, change(copy.deepcopy(small.module)), cause)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_module_that_has_not_run_yet(stream: io.BytesIO, small: MaskedNet) -> None:
    change, cause = UNFIT["not run yet"]
    with pytest.raises(DecodeArgumentError, match=cause):
        pemncodec.decode(stream, into=change(copy.deepcopy(small.module)))


def test_a_damaged_file_changes_nothing(stream: io.BytesIO, small: MaskedNet) -> None:
    data = bytearray(stream.getvalue())
    data[-1] ^= 1
    mine = copy.deepcopy(small.module)
    nn.init.zeros_(mine[0].weight)
    with pytest.raises(pemncodec.DecodeError):
        pemncodec.decode(data, into=mine)
    assert not mine[0].weight.any()


def test_other_options_with_a_module(stream: io.BytesIO, small: MaskedNet) -> None:
    refuses(stream, small.module, "leave out device", device="meta")
    refuses(stream, small.module, "leave out device", trust=["a:b"])


def test_exported_networks_take_floats_of_their_own_dtype() -> None:
    torch.manual_seed(0)
    model, written = Norms().eval(), io.BytesIO()
    inputs = torch.rand(2, 6, 8)
    pemncodec.encode(model, written, masks=random_masks(model), example_inputs=inputs)
    rebuilt = pemncodec.decode(written, dtype=torch.float64)
    assert rebuilt(inputs.double())["y"].dtype == torch.float64
    with pytest.raises(ValueError, match="was stored for"):
        rebuilt(inputs.long())


def test_what_is_no_module_or_device(stream: io.BytesIO) -> None:
    with pytest.raises(DecodeArgumentError, match="into must be a module, not <class"):
        pemncodec.decode(stream, into=nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(DecodeArgumentError, match=r"--device \(device=…\) '3.5'"):
        pemncodec.decode(stream, device=3.5)  # type: ignore[arg-type]
    with pytest.raises(DecodeArgumentError) as caught:
        pemncodec.decode(stream, device="mps")
    assert len(str(caught.value)) < 300
