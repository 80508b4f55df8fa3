"""Trained tensors in fewer bits, batch norms as two vectors, and what a network loses by them."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, fails
from hypothesis import given
from hypothesis import strategies as st
from test_cli import ARCH, EXAMPLE
from torch import Tensor, nn

import pemncodec
from pemncodec.coders.affine import quantize
from pemncodec.coders.dense import decode_dense, encode_dense, largest_errors, shortened
from pemncodec.contents import DenseMode
from pemncodec.errors import DecodeError, EncodeError
from pemncodec.masking import OneLayer, mask_model

MODES: list[DenseMode] = ["fp16", "bf16", "q8"]
FINITE = st.floats(-6e4, 6e4, width=32)
TORCH_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def network() -> nn.Sequential:
    """Masked, with batch norms that have seen images, one of them a channel that is always 0."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.BatchNorm2d(16, eps=1e-3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    mask_model(model, OneLayer(), exclude="7.*")
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
        model[4].bias.normal_()
        model[3].parametrizations["weight"].original[3] = 0
        model[3].bias[3] = 0
    for _ in range(30):
        model(images(64))
    return model.eval()


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 3, 8, 8)


def encoded(**options: object) -> tuple[pemncodec.Report, io.BytesIO, nn.Module]:
    model, stream = network(), io.BytesIO()
    report = pemncodec.encode(model, stream, example_inputs=images(), **options)  # type: ignore[arg-type]
    return report, stream, model


# ------------------------------------------------------------------------------------- modes


@given(
    values=st.lists(FINITE, min_size=1, max_size=80),
    rows=st.integers(1, 3),
    mode=st.sampled_from(MODES),
)
def test_values_come_back_within_the_error_of_the_mode(
    values: list[float], rows: int, mode: DenseMode
) -> None:
    array = np.array([values] * rows, np.float32)
    made = shortened(array, mode, "w")
    if mode == "q8":
        # Half a step, and what rounding the scale, the product and the sum to binary32 adds.
        step = (float(array.max()) - float(array.min())) / 255
        rounding = 255 * 1e-45 + 3 * float(np.spacing(np.abs(array).max()))
        assert np.abs(made.astype(np.float64) - array).max() <= step / 2 + rounding
    else:
        assert torch.equal(
            torch.from_numpy(made), torch.from_numpy(array).to(TORCH_DTYPES[mode]).float()
        )


def test_q8_keeps_a_few_far_values_exactly() -> None:
    array = np.random.default_rng(0).standard_normal(128).astype(np.float32)
    array[[5, 77]] = 300, -280
    made = shortened(array, "q8", "w")
    assert made[[5, 77]].tolist() == [300, -280]
    assert np.abs(made - array).max() < 0.02


@pytest.mark.parametrize(("size", "exact"), [(1, 0), (3, 2), (5, 4), (33, 32), (65, 64), (67, 0)])
def test_q8_leaves_out_what_pays_and_at_most_32_of_each_end(size: int, exact: int) -> None:
    """Each costs some forty bits; where one value is left, the range needs none."""
    array = np.random.default_rng(0).permutation(np.linspace(-1, 1, size, dtype=np.float32))
    codes, _, _, outliers = quantize(array)
    assert outliers.size == exact
    assert not codes[outliers].any()
    made = shortened(array, "q8", "w")
    assert np.array_equal(made, array) == (size <= 65)
    assert np.abs(made - array).max() <= 1 / 254


def affine(
    flag: int = 0, scale: float = 1, offset: float = 0, listed: str = "00", exact: str = ""
) -> bytes:
    """A section of three elements with the codes 0, 1 and 2."""
    head = bytes([6, flag]) + np.array([scale, offset], "<f4").tobytes()
    return head + bytes.fromhex(listed + exact) + b"\0\0\1\2"


def test_an_affine_section_byte_by_byte() -> None:
    def values(section: bytes) -> list[float]:
        return list(decode_dense(section, [(3,)], "float32").tolist())

    assert values(affine(scale=0.5, offset=-1)) == [-1, -0.5, 0]
    assert values(affine(flag=1)) == [0, 1, 2]  # one dimension is one row
    assert values(affine(listed="0102", exact="00001041")) == [0, 1, 9]
    assert values(affine(listed="020001", exact="00001041" * 2)) == [9, 1, 9]
    assert values(affine(listed="03000000", exact="00001041" * 3)) == [9, 9, 9]


@pytest.mark.parametrize(
    ("section", "code"),
    [
        (affine(flag=2), "section"),
        (affine(scale=np.inf), "section"),
        (affine(offset=np.nan), "section"),
        (affine(listed="0100", exact="0000807f"), "section"),
        (affine(listed="0103", exact="00001041"), "section"),  # behind the last
        (affine(listed="020002", exact="00001041" * 2), "section"),
        (affine(listed="0400000000", exact="00001041" * 4), "section"),
        (affine()[:1], "truncated"),
        (affine()[:9], "truncated"),
        (affine()[:10], "truncated"),
        (affine(listed="01")[:11], "truncated"),
        (affine(listed="0100", exact="000010")[:15], "truncated"),
        (affine()[:-1], "section"),
    ],
)
def test_affine_sections_that_are_refused(section: bytes, code: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_dense(section, [(3,)], "float32")
    assert caught.value.code == code


@pytest.mark.parametrize("mode", MODES)
def test_tensors_of_no_elements_lose_nothing(mode: DenseMode) -> None:
    state = {"w": torch.randn(4), "none": torch.empty(3, 0), "some": torch.randn(70)}
    stream = io.BytesIO()
    masks = {"w": torch.ones(4)}
    report = pemncodec.encode(state, stream, masks=masks, manifest=False, dense=mode)
    assert [t.name for t in report.info.tensors if t.max_error] == ["some"]
    assert pemncodec.load_state_dict(stream)["none"].shape == (3, 0)


@pytest.mark.parametrize("in_rows", [0, 1])
def test_affine_sections_of_no_elements(in_rows: int) -> None:
    """No writer makes them, but nothing forbids them."""
    parameters = bytes([6, in_rows]) + bytes(8) + b"\0"  # scale and offset, and nothing exact
    assert decode_dense(parameters + b"\0", [(0,)], "float32").shape == (0,)
    with pytest.raises(DecodeError):
        decode_dense(parameters + b"\0\0", [(0,)], "float32")


def test_q8_gives_the_rows_of_a_matrix_their_own_range() -> None:
    array = np.random.default_rng(0).standard_normal((4, 100)).astype(np.float32)
    array *= np.array([[1e-3], [1], [1e3], [0]], np.float32)
    made = shortened(array, "q8", "w")
    error = np.abs(made - array).max(1)
    assert (error <= np.ptp(array, axis=1) / 500).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_refused(mode: DenseMode, bad: float) -> None:
    with pytest.raises(EncodeError, match=r"^w "):
        shortened(np.array([1, bad], np.float32), mode, "w")


def test_what_overflows_is_refused_by_name() -> None:
    with pytest.raises(EncodeError, match="w: 70000 is too large for fp16"):
        shortened(np.array([1, 70000], np.float32), "fp16", "w")


@given(section=st.binary(max_size=60), count=st.integers(0, 20), coder=st.integers(4, 6))
def test_random_sections(section: bytes, count: int, coder: int) -> None:
    try:
        values = decode_dense(bytes([coder]) + section, [(count,)], "float32")
    except DecodeError:
        return
    assert values.shape == (count,)


@given(cut=st.integers(0, 200), data=st.data(), mode=st.sampled_from(MODES))
def test_damaged_sections(cut: int, data: st.DataObject, mode: DenseMode) -> None:
    arrays = [np.linspace(-1, 1, 30, dtype=np.float32), np.array([1e6, 0, 1], np.float32)]
    section = bytearray(encode_dense(arrays[: 1 + (mode != "fp16")], "float32", mode))
    section[data.draw(st.integers(1, len(section) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        decode_dense(bytes(section[: cut or None]), [(30,), (3,)], "float32")


# ------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fold", [False, True])
def test_a_file_says_what_was_lost(mode: DenseMode, fold: bool) -> None:
    report, stream, model = encoded(dense=mode, fold_bn=fold)
    plain, _, _ = encoded()
    assert report.info.file_bytes < plain.info.file_bytes
    assert report.verified.startswith("as shortened, every tensor bit for bit")
    assert plain.verified.startswith("every tensor bit for bit")
    assert report.difference is not None
    assert 0 < report.difference < 0.1
    assert report.info.inference_only == fold
    x = images()
    with torch.no_grad():
        expected, actual = model(x), pemncodec.decode(stream)(x)
    assert (expected - actual).abs().max() <= 0.1 * expected.abs().max()
    for tensor in report.info.tensors:
        if tensor.kind == "dense" and tensor.dtype == "float32":
            assert tensor.coder == mode
            loaded = pemncodec.load_state_dict(stream)[tensor.name].double()
            assert tensor.relative_error == tensor.max_error / float(loaded.abs().max())
            if fold:
                assert tensor.max_error > 0
            else:
                error = float((model.state_dict()[tensor.name] - loaded).abs().max())
                assert error <= tensor.max_error <= error * 1.1


def test_all_that_a_tensor_holds_may_be_lost() -> None:
    state = {"w": torch.ones(4), "b": torch.tensor([1e-9, -2e-9])}
    report = pemncodec.encode(
        state, io.BytesIO(), masks={"w": torch.ones(4) > 0}, manifest=False, dense="fp16"
    )
    lost = report.info.tensors[1]
    assert (lost.max_error, lost.relative_error) == (2e-9, 1)


@pytest.mark.parametrize("mode", MODES)
def test_errors_are_of_each_tensor_in_a_group(mode: DenseMode) -> None:
    arrays = [np.linspace(-a, a, 99, dtype=np.float32) for a in (1, 1e4, 1e-2)]
    errors = largest_errors(encode_dense(arrays, "float32", mode), arrays)
    alone = [largest_errors(encode_dense([array], "float32", mode), [array])[0] for array in arrays]
    assert errors == alone
    assert errors[1] > 100 * errors[0] > 1000 * errors[2]
    assert largest_errors(encode_dense(arrays, "float32"), arrays) == [0, 0, 0]


def test_modes_by_pattern() -> None:
    report, stream, model = encoded(dense={"*.running_*": "lossless", "7.*": "q8", "*": "fp16"})
    coders = {tensor.name: tensor.coder for tensor in report.info.tensors}
    assert coders["7.weight"] == coders["7.bias"] == "q8"
    assert coders["1.weight"] == coders["3.bias"] == "fp16"
    state = pemncodec.load_state_dict(stream)
    assert torch.equal(state["1.running_mean"], model.state_dict()["1.running_mean"])
    assert torch.equal(state["1.weight"], model.state_dict()["1.weight"].half().float())


def test_lossless_files_lose_nothing() -> None:
    report, _, _ = encoded(dense="lossless")
    assert report.difference is None
    assert not any(tensor.max_error for tensor in report.info.tensors)


def test_folding_keeps_the_module_and_its_outputs() -> None:
    report, stream, _ = encoded(fold_bn=True)
    plain, _, _ = encoded()
    assert report.difference is not None
    assert report.difference < 1e-5
    assert report.info.dense_bytes < plain.info.dense_bytes
    state = pemncodec.load_state_dict(stream)
    assert not state["1.running_mean"].any()
    assert state["4.num_batches_tracked"] == 0
    fresh = pemncodec.decode(stream)
    fresh.load_state_dict(state, strict=True)
    assert isinstance(fresh[1], nn.BatchNorm2d)
    kinds = {tensor.name: tensor.kind for tensor in report.info.tensors}
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert kinds[f"1.{name}"] == kinds[f"4.{name}"] == "constant"


def test_a_checkpoint_with_copies_of_a_batch_norm_that_the_module_shares() -> None:
    """As .safetensors has them, which holds no memory twice."""
    norm = nn.BatchNorm1d(4)
    nn.init.uniform_(norm.weight, 1, 2)
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stream = io.BytesIO()
    masks = {"0.weight": state["0.weight"] > 0}
    report = pemncodec.encode(state, stream, architecture=model, masks=masks, fold_bn=True)
    assert report.difference is not None
    assert report.difference < 1e-5
    rebuilt = pemncodec.decode(stream)
    assert rebuilt[1] is rebuilt[3]


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 1e-12, 0.1, 1e-8, 0.5])
def test_a_neutral_batch_norm_changes_nothing(eps: float) -> None:
    """But for what its own rounding of 1 / √(var + eps) does, which is nothing where var is."""
    from pemncodec.architecture.batch_norm import fold_batch_norms

    norm = nn.BatchNorm2d(4, eps=eps).eval()
    norm.load_state_dict(fold_batch_norms(norm) | {})
    with torch.no_grad():
        norm.weight.fill_(1)
        x = torch.randn(3, 4, 5, 5)
        assert torch.equal(norm(x), x)


# ---------------------------------------------------------------------------------- accuracy


def nearness(of: Tensor) -> Callable[[nn.Module], float]:
    def metric(model: nn.Module) -> float:
        assert not model.training
        return -float((model(torch.ones(1, 3, 8, 8)) - of).abs().max())

    return metric


def test_accuracy_is_measured_before_and_after(tmp_path: Path) -> None:
    with torch.no_grad():
        reference = network()(torch.ones(1, 3, 8, 8))
    report, _, _ = encoded(dense="q8", accuracy=nearness(reference))
    assert report.accuracy is not None
    assert report.accuracy[0] == 0 > report.accuracy[1]
    target = tmp_path / "net.pemn"
    with pytest.raises(EncodeError, match="the accuracy falls from"):
        pemncodec.encode(
            network(), target, example_inputs=images(), dense="q8",
            accuracy=nearness(reference), max_drop=1e-9,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense": "q4"}, "unknown dense mode 'q4', have lossless, fp16, bf16, q8"),
        ({"dense": {"nobody.*": "q8"}}, "no tensor is called nobody"),
        ({"fold_bn": True, "manifest": False}, "need the architecture"),
        ({"max_drop": 0.1}, "needs --accuracy"),
        ({"accuracy": 3}, "must be a function"),
        ({"prototypes": [("normal", 1, 2)]}, "prototypes must be SeededPrototype"),
        ({"metadata": ["a"]}, "metadata must be text by name"),
        ({"accuracy": lambda _: "high"}, "the accuracy function failed: ValueError"),
        ({"accuracy": lambda _: math.nan}, "the accuracy function gives nan, then nan"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(pemncodec.EncodeArgumentError, match=message):
        encoded(**options)


def test_the_command_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text(
        "def weights(model):\n    return float(len(list(model.parameters())))\n"
        "def fails(model):\n    raise ValueError('no data\\nhere')\nnumber = 3\n"
    )
    result = run(
        "encode", EXAMPLE, *ARCH, "--dense", "q8", "--dense", "*.bias=fp16", "--fold-bn",
        "--accuracy", "metric.py:weights", "--max-drop", "0.1", "-o", "net.pemn",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    printed = result.stdout.decode()
    assert "inference only: batch norms were folded" in printed
    assert "accuracy: 28 before, 28 after" in printed
    assert (tmp_path / "net.pemn").stat().st_size < 14_000
    shown = json.loads(run("inspect", "net.pemn", "--json").stdout)
    assert shown["inference_only"]
    coders = {tensor["name"]: tensor["coder"] for tensor in shown["tensors"]}
    assert coders["2.weight"] == "q8"
    assert coders["2.bias"] == "fp16"
    table = run("inspect", "net.pemn", "-v").stdout.decode()
    assert "max error" in table
    for options, words in (
        (["--dense", "q9"], ["q9"]),
        (["--dense", "q8", "--dense", "fp16"], ["two modes"]),
        (["--accuracy", "metric.py:nobody"], ["nobody"]),
        (["--accuracy", "metric.py:fails"], ["failed", "ValueError: no data"]),
        (["--accuracy", "metric.py:number"], ["function"]),
    ):
        fails(run("encode", EXAMPLE, *ARCH, *options, "-o", "x.pemn"), 2, *words)
        assert not (tmp_path / "x.pemn").exists()


def test_there_must_be_a_batch_norm_to_fold() -> None:
    model = mask_model(nn.Linear(4, 4), OneLayer())
    with pytest.raises(pemncodec.EncodeArgumentError, match="no batch norm"):
        pemncodec.encode(model, io.BytesIO(), fold_bn=True)
