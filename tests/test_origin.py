"""A .pemn file as the source of another, and modules that were decoded and are encoded again."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MaskedNet, Run, random_masks, small_net
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor, nn

import pemncodec
from pemncodec import (
    EncodeArgumentError,
    EncodeError,
    PrototypeMismatchError,
    SeededPrototype,
    TorchPrototype,
)
from pemncodec.coders.dense import shortened
from pemncodec.format.container import encode_container
from pemncodec.format.header import encode_header
from pemncodec.limits import Limits
from pemncodec.masking import Independent, MaxLayerPadding, RandomPadding, mask_model
from pemncodec.spool import Spool


def encoded(source: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    pemncodec.encode(source, stream, **options)
    return stream.getvalue()


def decoded(data: bytes) -> Any:
    return pemncodec.decode(data)


def header(data: bytes) -> Any:
    with pemncodec.open(data) as file:
        return file.header


OPTIONS: dict[str, dict[str, Any]] = {
    "lossless": {},
    "fast": {"preset": "fast"},
    "max": {"preset": "max", "metadata": {"accuracy": "61.1"}},
    "fp16": {"dense": "fp16"},
    "q8": {"dense": "q8", "fold_bn": True},
    "by pattern": {"dense": {"*.bias": "bf16", "*.running_mean": "q8"}},
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_same_bytes_where_nothing_changed(
    small: MaskedNet, options: dict[str, Any], mode: str
) -> None:
    small.module.train(mode == "train")
    stream = io.BytesIO()
    small.encode(stream, **options)
    data = stream.getvalue()
    preset = {"preset": options.get("preset", "default")}
    assert encoded(decoded(data), **preset) == data
    assert encoded(pemncodec.open(data), **preset) == data
    assert encoded(pemncodec.open(data), dense=options.get("dense", "lossless"), **preset) == data


STRATEGIES: dict[str, Any] = {
    "independent": Independent(),
    "mp": MaxLayerPadding(),
    "rp": RandomPadding(length=17),
    "shuffled": RandomPadding(length=17, mode="shuffle"),
}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_seeds_are_kept(strategy: Any) -> None:
    model = mask_model(small_net(), strategy, keep=0.5, seed=3, rescale=True)
    data = encoded(model, example_inputs=torch.randn(2, 3, 8, 8))
    assert all(isinstance(row, SeededPrototype) for row in header(data).prototypes)
    assert encoded(decoded(data)) == data


def drawn_network() -> nn.Module:
    torch.manual_seed(1234)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))


def test_a_seed_may_be_given_again() -> None:
    module = drawn_network()
    data = encoded(module, masks=random_masks(module), seed=1234)
    assert encoded(decoded(data), seed=1234) == data
    with pytest.raises(PrototypeMismatchError, match="seed 5 "):
        encoded(decoded(data), seed=5)


def test_weights_that_were_drawn_anew_have_another_seed() -> None:
    module = drawn_network()
    masks = random_masks(module)
    again = decoded(encoded(module, masks=masks))
    torch.manual_seed(7)
    with torch.no_grad():
        again[0].weight.copy_(torch.empty(64, 64).normal_(0, 0.1) * masks["0.weight"])
    seeds = {row.seed for row in header(encoded(again)).prototypes}
    assert seeds == {7, 1234}


def test_masks_in_place_of_those_of_a_file_by_the_name_of_a_module() -> None:
    module = drawn_network()
    data = encoded(module, masks=random_masks(module), find_seed="off")
    every = torch.ones(64, 64, dtype=torch.bool)
    again = encoded(decoded(data), masks={"0": every}, find_seed="off")
    with pemncodec.open(again) as file, pemncodec.open(data) as before:
        assert file.mask("0.weight").all()
        assert (file.mask("2.weight") == before.mask("2.weight")).all()


def test_a_part_of_a_file_by_prefix() -> None:
    module = drawn_network()
    data = encoded(module, masks=random_masks(module), find_seed="off")
    part = encoded(pemncodec.open(data), prefix="2.", manifest=False, find_seed="off")
    with pemncodec.open(part) as file, pemncodec.open(data) as before:
        assert list(file.keys()) == ["weight", "bias"]
        assert (file.mask("weight") == before.mask("2.weight")).all()


def test_a_file_beyond_the_limit_of_words_that_a_caller_trusts() -> None:
    module = drawn_network()
    data = encoded(module, masks=random_masks(module), find_seed="off")
    # A prototype that no tensor takes values from, so that no words are drawn here.
    with pemncodec.open(data) as file:
        far = TorchPrototype("normal", 1, 16, Limits().drawn_words)
        prototypes = (*file.header.prototypes, far)
        front = encode_header(replace(file.header, prototypes=prototypes))
        entries = file.container.sections
    sections = [data[entry.offset : entry.offset + entry.length] for entry in entries]
    data = b"".join([encode_container(front, map(Spool().add, sections), 2), *sections])
    module = pemncodec.decode(data, limits=Limits(drawn_words=1 << 40))
    assert len(header(encoded(module, find_seed="off")).prototypes) == len(prototypes) - 1


def test_a_given_prototype_is_kept() -> None:
    prototype = SeededPrototype("normal", 5, 40)
    module = nn.Linear(8, 5, bias=False)
    values = pemncodec.generator.generate("normal", 5, 0, 40)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(values).view(5, 8) * 0.5)
    data = encoded(module, masks=random_masks(module), prototypes=[prototype])
    assert encoded(decoded(data)) == data
    assert header(encoded(decoded(data).half())).prototypes == (prototype,)


def test_stored_prototypes_of_which_all_values_are_kept() -> None:
    module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        for layer in module:
            layer.weight.copy_(torch.randn(17).repeat(300)[: 64 * 64].view(64, 64))
    data = encoded(module, masks=random_masks(module, 0.3), preset="max")
    assert encoded(decoded(data), preset="max") == data


def test_trained_tensors_may_change(small: MaskedNet) -> None:
    stream = io.BytesIO()
    small.encode(stream, dense="q8", metadata={"accuracy": "61.1"}, preset="fast")
    module = decoded(stream.getvalue())
    with torch.no_grad():
        module[1].bias.copy_(torch.randn(4))
    again = io.BytesIO()
    report = pemncodec.encode(module, again, preset="fast")
    left_out = "the metadata of its .pemn file is left out, since tensors have changed"
    assert report.notes[0] == left_out
    assert report.info.metadata == {}
    assert torch.equal(decoded(again.getvalue())[1].bias, module[1].bias)
    coders = {tensor.name: tensor.coder for tensor in report.info.tensors}
    assert coders["1.bias"] not in ("q8", None)
    assert coders["1.running_mean"] in ("q8", None)  # or a constant
    assert coders["2.fn.0.bias"] == "q8"
    before, after = header(stream.getvalue()), header(again.getvalue())
    assert [row.fill for row in after.tensors if hasattr(row, "fill")] == [
        row.fill for row in before.tensors if hasattr(row, "fill")
    ]
    with pemncodec.open(again.getvalue()) as file:
        for name, mask in small.masks.items():
            assert np.array_equal(file.mask(name), mask.numpy()), name


@pytest.mark.parametrize("option", [{"dense": "fp16"}, {"fold_bn": True}, {"masks": True}])
def test_metadata_is_of_the_same_tensors(small: MaskedNet, option: dict[str, Any]) -> None:
    stream = io.BytesIO()
    with torch.no_grad():
        small.module[2].fn[0].bias.normal_()
    small.encode(stream, metadata={"accuracy": "61.1"})
    if "masks" in option:
        option = {"masks": {"5.weight": torch.zeros(3, 4)}}
    report = pemncodec.encode(pemncodec.open(stream.getvalue()), io.BytesIO(), **option)
    assert report.info.metadata == {}
    assert report.notes[0].startswith("the metadata of its .pemn file is left out")
    kept = {**option, "metadata": {"accuracy": "60.9"}}
    report = pemncodec.encode(pemncodec.open(stream.getvalue()), io.BytesIO(), **kept)
    assert report.info.metadata == {"accuracy": "60.9"}


def test_the_error_of_what_was_shortened_before_stays(small: MaskedNet) -> None:
    with torch.no_grad():
        for name, tensor in small.module.named_parameters():
            if "bias" in name:
                tensor.add_(torch.randn_like(tensor))
    stream = io.BytesIO()
    small.encode(stream, dense="q8")
    errors = {
        row.name: row.error
        for row in header(stream.getvalue()).tensors
        if row.name[2:] and hasattr(row, "error")
    }
    assert any(errors.values())
    again = header(encoded(pemncodec.open(stream.getvalue()), dense="fp16"))
    for row in again.tensors:
        if hasattr(row, "error"):
            assert row.error >= errors[row.name]


@given(
    arrays(
        np.float32,
        array_shapes(max_dims=2, max_side=200),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_shortening_again_loses_nothing_more(values: Any) -> None:
    for mode in ("fp16", "bf16", "q8"):
        if mode == "fp16":
            values = np.clip(values, -6e4, 6e4)
        once = shortened(values, mode, "values")
        twice = shortened(once, mode, "values")
        if mode != "q8" or values.size <= 2:
            assert np.array_equal(twice, once)
        # A value that was kept exactly may come into the range of the codes: then it is off by
        # half a step of these, as before.
        else:
            assert np.abs(twice - once).max() <= np.ptp(values) / 255


def test_q8_values_get_their_codes_again() -> None:
    generator = np.random.default_rng(0)
    for size in (5, 63, 64 * 70, 300):
        for offset in (0.0, 3.0, -40.0, 1e4):
            for _ in range(8):
                values = (generator.standard_normal(size) + offset).astype(np.float32)
                shape = (70, 64) if size == 64 * 70 else (size,)
                once = shortened(values.reshape(shape), "q8", "values")
                twice = shortened(once, "q8", "values")
                assert np.array_equal(twice.view("<u4"), once.view("<u4"))


def test_weights_may_change_where_they_are_used(small: MaskedNet) -> None:
    stream = io.BytesIO()
    small.encode(stream)
    module = decoded(stream.getvalue())
    with torch.no_grad():
        module[5].weight.mul_(2)
    again = decoded(encoded(module))
    assert torch.equal(again[5].weight, module[5].weight)


def test_a_weight_that_came_back_is_refused(small: MaskedNet) -> None:
    stream = io.BytesIO()
    small.encode(stream)
    module = decoded(stream.getvalue())
    with torch.no_grad():
        module[5].weight.add_(1)
    with pytest.raises(EncodeError, match=r"5\.weight is not 0 everywhere where the mask of its"):
        encoded(module)
    masks = {"5.weight": torch.ones_like(module[5].weight)}
    again = decoded(encoded(module, masks=masks))
    assert torch.equal(again[5].weight, module[5].weight)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),  # noqa: S301
    "DataParallel": nn.DataParallel,
    "train mode": lambda module: module.train(),
    "double": lambda module: module.double(),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_copies_and_wrappers_remember(
    small: MaskedNet, change: Callable[[nn.Module], nn.Module]
) -> None:
    stream = io.BytesIO()
    small.encode(stream)
    with pemncodec.open(encoded(change(decoded(stream.getvalue())))) as file:
        for name, mask in small.masks.items():
            assert np.array_equal(file.mask(name), mask.numpy()), name


def test_a_module_of_the_caller_remembers_what_it_was_filled_with(small: MaskedNet) -> None:
    stream = io.BytesIO()
    small.encode(stream)
    module = pemncodec.decode(stream.getvalue(), into=small_net(4))
    assert encoded(module) == stream.getvalue()


def test_a_module_without_memory_is_refused(small: MaskedNet) -> None:
    stream = io.BytesIO()
    small.encode(stream)
    with pytest.raises(EncodeError, match="meta"):
        encoded(pemncodec.decode(stream.getvalue(), device="meta"), masks=small.masks)


def test_decoded_modules_as_parts_of_another(small: MaskedNet) -> None:
    stream = io.BytesIO()
    small.encode(stream)
    data = stream.getvalue()
    other = nn.Linear(3, 3, bias=False)
    masks = random_masks(other)
    around = nn.Sequential(decoded(data), decoded(encoded(other, masks=masks)), nn.Linear(3, 2))
    again = encoded(around, example_inputs=small.inputs)
    assert torch.equal(decoded(again)(small.inputs), around.eval()(small.inputs))
    with pemncodec.open(again) as file:
        assert file.masked_keys() == [*(f"0.{name}" for name in small.masks), "1.weight"]
        assert np.array_equal(file.mask("1.weight"), masks["weight"].numpy())


def test_a_part_that_was_put_in_later_counts_more(small: MaskedNet) -> None:
    stream = io.BytesIO()
    small.encode(stream)
    module = decoded(stream.getvalue())
    other = nn.Linear(4, 3)
    masks = {"weight": ~small.masks["5.weight"]}
    module[5] = decoded(encoded(other, masks=masks))
    with pemncodec.open(encoded(module)) as file:
        assert np.array_equal(file.mask("5.weight"), masks["weight"].numpy())


class Tokens(nn.Module):
    """What no guess fits: two inputs, one of them of indices, one of a size that varies."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return self.linear(x) * self.embedding(tokens)


def test_inputs_are_those_of_the_file() -> None:
    module = Tokens()
    inputs = (torch.randn(2, 10, 6), torch.randint(0, 7, (2, 10)))
    data = encoded(
        module, masks=random_masks(module), example_inputs=inputs, dynamic_axes=[[1], [1]]
    )
    assert encoded(decoded(data)) == data


def test_tied_and_passing_tensors() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6, bias=False)
            self.second = nn.Linear(6, 6, bias=False)
            self.second.weight = self.first.weight
            self.register_buffer("table", torch.randn(6), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)) + self.table

    module = Tied()
    masks = {"first.weight": torch.rand(6, 6) < 0.5}
    data = encoded(module, masks=masks, example_inputs=torch.randn(2, 6))
    assert encoded(decoded(data)) == data
    assert encoded(pemncodec.open(data), manifest=False) == encoded(
        module, masks=masks, manifest=False
    )


def test_a_file_without_architecture(small: MaskedNet) -> None:
    data = encoded(small.module, masks=small.masks, manifest=False)
    with pytest.raises(EncodeArgumentError, match="the file holds no architecture: give --arch"):
        encoded(pemncodec.open(data))
    assert encoded(pemncodec.open(data), manifest=False) == data
    module = small_net(1)
    full = encoded(pemncodec.open(data), architecture=module, example_inputs=small.inputs)
    assert full == encoded(small.module, masks=small.masks, example_inputs=small.inputs)


def test_a_file_of_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ofcode.py").write_text("import torch\ndef make(): return torch.nn.Linear(4, 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = nn.Linear(4, 3)
    builder = ("ofcode:make", {})
    data = encoded(module, masks=random_masks(module), builder=builder)
    with pytest.raises(EncodeArgumentError, match="the code ofcode:make: give it with --arch"):
        encoded(pemncodec.open(data))
    again = encoded(pemncodec.open(data), architecture=nn.Linear(4, 3), builder=builder)
    assert again == data
    assert encoded(pemncodec.decode(data, trust=["ofcode:make"]), builder=builder) == data


def test_keep_is_for_scores(small: MaskedNet) -> None:
    stream = io.BytesIO()
    small.encode(stream)
    with pytest.raises(EncodeArgumentError, match="there are no scores"):
        encoded(decoded(stream.getvalue()), keep=0.5)


def test_a_decoded_module_is_masked_anew(small: MaskedNet) -> None:
    stream = io.BytesIO()
    small.encode(stream)
    model = mask_model(decoded(stream.getvalue()), Independent(), keep=0.5, seed=1)
    data = encoded(model, example_inputs=small.inputs)
    with pemncodec.open(data) as file:
        assert not np.array_equal(file.mask("5.weight"), small.masks["5.weight"].numpy())


class TestCommandLine:
    @pytest.fixture
    def data(self, small: MaskedNet, tmp_path: Path) -> bytes:
        small.encode(tmp_path / "net.pemn", dense="q8", metadata={"a": "b"}, preset="fast")
        return (tmp_path / "net.pemn").read_bytes()

    def test_another_preset(self, run: Run, tmp_path: Path, data: bytes) -> None:
        result = run("encode", "net.pemn", "--preset", "max", "-o", "max.pemn")
        assert (result.returncode, result.stderr) == (0, b"")
        assert b"every tensor bit for bit" in result.stdout
        assert b"as shortened" not in result.stdout
        with pemncodec.open(tmp_path / "max.pemn") as file:
            assert file.metadata == {"a": "b"}
        assert run("verify", "max.pemn", "--against", "net.pemn").returncode == 0
        run("encode", "max.pemn", "--preset", "fast", "-o", "fast.pemn")
        assert (tmp_path / "fast.pemn").read_bytes() == data

    def test_masks_of_a_file_for_other_weights(
        self, run: Run, small: MaskedNet, tmp_path: Path, data: bytes
    ) -> None:
        torch.save(small_net(7).state_dict(), tmp_path / "other.pt")
        result = run("encode", "other.pt", "--masks", "net.pemn", "--no-manifest")
        assert (result.returncode, result.stderr) == (0, b"")
        assert b"\nmasks: from net.pemn (3 tensors)\n" in result.stdout
        with pemncodec.open(tmp_path / "other.pemn") as file, pemncodec.open(data) as masks:
            for name in small.masks:
                assert np.array_equal(file.mask(name), masks.mask(name)), name

    def test_pipes(self, run: Run, data: bytes) -> None:
        result = run("encode", "-", "--preset", "fast", "-o", "-", stdin=data)
        assert (result.returncode, result.stdout) == (0, data)

    def test_the_file_itself_is_not_overwritten(
        self, run: Run, tmp_path: Path, data: bytes
    ) -> None:
        result = run("encode", "net.pemn")
        assert result.returncode == 2
        assert b"net.pemn is the input" in result.stderr
        assert (tmp_path / "net.pemn").read_bytes() == data

    def test_a_damaged_file(self, run: Run, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "bad.pemn").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        result = run("encode", "bad.pemn", "-o", "x.pemn")
        assert (result.returncode, result.stdout) == (1, b"")
        assert result.stderr.startswith(b"pemn: bad.pemn: ")
        assert result.stderr.count(b"\n") == 1
        assert not (tmp_path / "x.pemn").exists()

    @pytest.mark.usefixtures("data")
    def test_another_network_is_noticed(self, run: Run, tmp_path: Path) -> None:
        module = small_net(5)
        pemncodec.encode(module, tmp_path / "other.pemn", masks=random_masks(module))
        result = run("verify", "net.pemn", "--against", "other.pemn")
        assert result.returncode == 1
