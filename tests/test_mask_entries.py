"""Masks that a checkpoint or its user has: buffers, dictionaries, files, zeros, bitmasks."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import pemncodec
from pemncodec import EncodeArgumentError, EncodeError
from pemncodec.checkpoints.dialects import read_masks
from pemncodec.checkpoints.reading import with_recorded
from pemncodec.checkpoints.sources import load_masks, read_checkpoint
from pemncodec.cli import cli
from pemncodec.report.costs import CostOptions, model_costs

State = dict[str, Tensor]
MASK = torch.tensor([[1, 0, 1], [0, 0, 1]])


def plain(prefix: str = "fc.") -> State:
    return {f"{prefix}weight": torch.arange(1.0, 7).reshape(2, 3), f"{prefix}bias": torch.ones(2)}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def encoded(source: Any, **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    pemncodec.encode(source, stream, **options)
    return stream


# ------------------------------------------------------------------------ beside the weights


@pytest.mark.parametrize("name", ["fc.mask", "fc_mask", "fc.weight_mask"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16])
def test_masks_beside_weights(name: str, dtype: torch.dtype) -> None:
    read = read_masks(plain() | {name: MASK.to(dtype)})
    assert list(read.tensors) == ["fc.weight", "fc.bias"]
    assert read.masks["fc.weight"].astype(int).tolist() == MASK.tolist()
    assert read.rules == {
        "fc.weight": "masks beside the weights: weights stay where their mask is 1"
    }


def test_a_mask_of_a_parameter_without_a_module() -> None:
    state = {
        "w": torch.ones(2, 3),
        "w_mask": MASK,
        "weight": torch.ones(2),
        "mask": torch.eye(2)[0],
    }
    read = read_masks(state)
    assert list(read.masks) == ["w", "weight"]


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(3, 2),  # another shape, such as of attention
        torch.tensor(1),
        torch.tensor([[1, 0, 2], [0, 0, 1]]),
        torch.tensor([[1, 0, -1], [0, 0, 1]]),
        torch.ones(2, 3, dtype=torch.complex64),
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, 3, device="meta"),
    ],
)
def test_what_is_only_called_a_mask_is_a_tensor(mask: Tensor) -> None:
    read = read_masks(plain() | {"fc.mask": mask, "alone_mask": torch.ones(2)})
    assert not read.masks
    assert list(read.tensors) == ["fc.weight", "fc.bias", "fc.mask", "alone_mask"]


def test_two_masks_beside_one_weight_are_refused() -> None:
    state = plain() | {"fc.mask": MASK, "fc.weight_mask": 1 - MASK}
    with pytest.raises(EncodeError, match=r"fc\.weight has two masks, fc\.weight_mask is one of"):
        read_masks(state)


def test_masks_beside_weights_give_way_to_those_of_the_caller() -> None:
    read = read_masks(plain() | {"fc.mask": MASK}, masks={"fc.weight": 1 - MASK})
    assert read.masks["fc.weight"].astype(int).tolist() == (1 - MASK).tolist()
    assert "fc.mask" in read.tensors


class Masked(nn.Linear):
    """Multiplies with a buffer of its own."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.register_buffer("mask", MASK.float())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


def test_a_network_that_masks_with_buffers_keeps_them() -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(Masked()), torch.randn(2, 3)
    for source, options in (
        (module, {}),
        (module.state_dict(), {"architecture": nn.Sequential(Masked())}),
    ):
        stream = encoded(source, example_inputs=x, **options)
        with pemncodec.open(stream) as file:
            assert file.masked_keys() == ["0.weight"]
        decoded = pemncodec.decode(stream)
        with torch.no_grad():
            assert torch.equal(decoded(x), module(x))
    # A plain architecture takes the weights alone.
    stream = encoded(module.state_dict(), architecture=nn.Sequential(nn.Linear(3, 2)))
    assert list(pemncodec.load_state_dict(stream)) == ["0.weight", "0.bias"]


def test_a_buffer_that_a_module_does_not_use_as_a_mask_is_noticed() -> None:
    class Other(Masked):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight, self.bias) + self.mask.sum()

    x, module = torch.randn(2, 3), nn.Sequential(Other())
    words = (
        r"^0\.mask is called as a mask of 0\.weight, but the network's outputs change by .* give"
    )
    for source, options in ((module, {}), (module.state_dict(), {"architecture": module})):
        with pytest.raises(EncodeError, match=words):
            encoded(source, example_inputs=x, **options)
    # Its own masks, as they are for all to see.
    stream = encoded(module, masks={"0": torch.eye(2, 3)}, example_inputs=x)
    module[0].weight.data *= torch.eye(2, 3)
    with torch.no_grad():
        assert torch.equal(pemncodec.decode(stream)(x), module(x))


# ------------------------------------------------------------------- dictionaries and files


@pytest.mark.parametrize(
    "masks",
    [
        {"fc.weight": MASK, "fc.bias": None},
        OrderedDict({"fc": MASK.bool()}),
        {"fc.mask": MASK},
        {"fc_mask": MASK},
        {"module.fc.weight_mask": MASK.float()},
        {"masks": {"module.fc.weight": MASK}, "step": 5},
    ],
)
@pytest.mark.parametrize("key", ["masks", "mask", "mask_dict"])
def test_dictionaries_of_masks(masks: Any, key: str, tmp_path: Path) -> None:
    torch.save({"model": plain(), key: masks, "epoch": 3}, tmp_path / "x.pt")
    result = run("encode", tmp_path / "x.pt", "--no-manifest")
    assert result.exit_code == 0, result.output
    assert f"masks: the dictionary {key} beside the state dict (1 tensor)" in result.output
    with pemncodec.open(tmp_path / "x.pemn") as file:
        assert file.mask("fc.weight").astype(int).tolist() == MASK.tolist()
    assert run("verify", tmp_path / "x.pemn", "--against", tmp_path / "x.pt").exit_code == 0
    torch.save(masks, tmp_path / "masks.pt")
    torch.save(plain("module.fc."), tmp_path / "plain.pt")
    options = ["--masks", tmp_path / "masks.pt"]
    result = run("encode", tmp_path / "plain.pt", "--no-manifest", *options)
    assert result.exit_code == 0, result.output
    assert "masks: from masks.pt (1 tensor)" in result.output
    result = run("verify", tmp_path / "plain.pemn", "--against", tmp_path / "plain.pt", *options)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "beside",
    [
        {"masks": [MASK]},
        {"masks": {}},
        {"masks": None},
        {"mask": {"fc.weight": "none"}},
        {"mask": {1: MASK}},
        {"masks": {"attention.causal": torch.ones(2, 2)}},  # of no weight
    ],
)
def test_what_is_no_dictionary_of_masks_is_passed_over(beside: Any, tmp_path: Path) -> None:
    torch.save({"model": plain(), **beside}, tmp_path / "x.pt")
    assert with_recorded(read_checkpoint(tmp_path / "x.pt"), {}) == {}


def test_masks_of_the_caller_prevail_over_a_dictionary(tmp_path: Path) -> None:
    torch.save({"model": plain(), "masks": {"fc": MASK}}, tmp_path / "x.pt")
    given = {"masks": {"fc.weight": 1 - MASK}}
    assert with_recorded(read_checkpoint(tmp_path / "x.pt"), given) == given


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"fc": MASK, "fc.weight": MASK}, r"masks: two for one weight, among fc, fc\.weight"),
        ({"conv": MASK}, "masks: there is no tensor conv"),
        (
            {"fc": MASK.t()},
            r"the mask of fc\.weight has shape \(3, 2\), fc\.weight itself \(2, 3\)",
        ),
        ({"fc": 2 * MASK}, r"masks: fc\.weight: a mask holds only 0 and 1"),
    ],
)
def test_masks_by_name_that_do_not_fit(masks: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match=words):
        encoded(plain(), masks=masks, manifest=False)
    torch.save({"model": plain(), "masks": {"fc.bias": torch.ones(2), **masks}}, tmp_path / "x.pt")
    result = run("encode", tmp_path / "x.pt", "--no-manifest")
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([MASK], "expected a state dict, found list"),
        ({}, "the state dict is empty"),
        ({"fc.weight": None}, "the state dict is empty"),
        ({"masks": {"fc.weight": 5}}, "entry 'fc.weight' is int, expected a tensor"),
        (MASK, "expected a state dict, found torch.Tensor"),
    ],
)
def test_files_that_hold_no_masks(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "masks.pt"
    torch.save(content, path)
    with pytest.raises(EncodeError, match=words):
        load_masks(path)
    torch.save(plain(), tmp_path / "x.pt")
    result = run("encode", tmp_path / "x.pt", "--no-manifest", "--masks", path)
    assert result.exit_code == 1
    result = run("encode", tmp_path / "x.pt", "--no-manifest", "--masks", tmp_path / "nothing.pt")
    assert result.exit_code == 1


# ------------------------------------------------------------------------------------- zeros


def test_zeros_are_masks_of_matrices_alone() -> None:
    state = {
        "fc.weight": torch.tensor([[1.0, 0.0], [-0.0, 2.0]]),
        "full.weight": torch.ones(2, 2),
        "fc.bias": torch.zeros(2),
        "table": torch.zeros(2, 2, dtype=torch.int64),
    }
    others = {"sparse": torch.eye(2).to_sparse(), "meta": torch.zeros(2, 2, device="meta")}
    read = read_masks(state | others, masks_from="zeros")
    assert {n: m.astype(int).tolist() for n, m in read.masks.items()} == {
        "fc.weight": [[1, 0], [0, 1]]
    }
    assert read.rules["fc.weight"].startswith("zeros: weights that are 0 are masked out")
    stored = pemncodec.load_state_dict(encoded(state, masks_from="zeros", manifest=False))
    assert all(torch.equal(stored[name], tensor) for name, tensor in state.items())


def test_zeros_beside_other_masks() -> None:
    state = plain("a.") | plain("b.") | plain("c.") | {"a.mask": MASK}
    state |= {name: tensor * torch.eye(2, 3) for name, tensor in state.items() if tensor.dim() > 1}
    read = read_masks(state, masks={"b.weight": MASK}, masks_from="zeros")
    assert read.masks["a.weight"].astype(int).tolist() == (MASK * torch.eye(2, 3)).int().tolist()
    assert read.masks["b.weight"].astype(int).tolist() == MASK.tolist()
    assert read.masks["c.weight"].astype(int).tolist() == torch.eye(2, 3).int().tolist()


@pytest.mark.parametrize("state", [plain(), {"b": torch.zeros(3)}])
def test_a_checkpoint_without_zeros(state: State) -> None:
    with pytest.raises(
        EncodeArgumentError, match="no tensor of two or more dimensions holds zeros"
    ):
        read_masks(state, masks_from="zeros")


def test_zeros_are_all_that_masks_come_from() -> None:
    with pytest.raises(EncodeArgumentError, match=r'masks-from .* must be "zeros", not \'ones\''):
        encoded(plain(), masks_from="ones")


# -------------------------------------------------------------------------- bitmasks


def bitmask(**change: Tensor) -> State:
    parts = {
        "shape": torch.tensor([2, 9]),
        "bitmask": torch.tensor([[5, 1], [0, 1]], dtype=torch.uint8),
        "compressed": torch.tensor([1.0, 0.0, 3.0, 4.0]),
        "row_offsets": torch.tensor([0, 3]),
    }
    return {f"fc.{name}": tensor for name, tensor in (parts | change).items()}


def test_bitmasks_become_weights() -> None:
    for state in (bitmask(), {n.replace("fc.", "fc.weight."): t for n, t in bitmask().items()}):
        read = read_masks({"a": torch.ones(1), **state, "fc.bias": torch.ones(2)})
        assert list(read.tensors) == ["a", "fc.weight", "fc.bias"]
        assert read.masks["fc.weight"].astype(int).tolist() == [
            [1, 0, 1, 0, 0, 0, 0, 0, 1],
            [0, 0, 0, 0, 0, 0, 0, 0, 1],
        ]
        assert read.tensors["fc.weight"][:, ::2].tolist() == [[1, 0, 0, 0, 3], [0, 0, 0, 0, 4]]
    short = bitmask(compressed=torch.ones(4, dtype=torch.bfloat16))
    assert read_masks(short).tensors["fc.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": torch.tensor([2, 9, 1])}, r"fc\.shape: expected two sizes, found int64 \(3,\)"),
        ({"shape": torch.ones(2, dtype=torch.complex64)}, "expected two sizes, found complex64"),
        ({"shape": torch.ones(2, device="meta")}, r"fc\.shape: expected a dense tensor"),
        ({"bitmask": torch.ones(2, 2, device="meta")}, r"fc\.bitmask: expected a dense tensor"),
        ({"compressed": torch.ones(4).to_sparse()}, r"fc\.compressed: expected a dense tensor"),
        ({"shape": torch.tensor([-2, 9])}, r"expected two sizes, found \[-2, 9\]"),
        ({"shape": torch.tensor([2.0, 9.0])}, "expected two sizes"),
        ({"shape": torch.tensor([2**31, 2**31])}, "expected two sizes"),
        ({"shape": torch.tensor([2, 17])}, r"fc\.bitmask: expected uint8 of shape \(2, 3\), found"),
        ({"shape": torch.tensor([3, 9])}, r"expected uint8 of shape \(3, 2\), found \(2, 2\)"),
        ({"bitmask": torch.tensor([[5, 1], [0, 1]])}, "expected uint8 of shape"),
        ({"compressed": torch.ones(3)}, r"fc\.compressed: 3 values for 4 ones of the bitmask"),
        ({"compressed": torch.ones(5)}, "5 values for 4 ones"),
        ({"weight": torch.ones(2, 9)}, r"fc\.bitmask: there is a fc\.weight beside it"),
        ({"compressed": torch.ones(4, dtype=torch.int8)}, "cannot mask weights of int8"),
    ],
)  # fmt: skip
def test_bitmasks_that_do_not_fit(change: State, words: str) -> None:
    with pytest.raises(EncodeError, match=words):
        read_masks(bitmask(**change))


def test_a_bitmask_without_its_values_is_a_tensor() -> None:
    state = bitmask()
    del state["fc.compressed"]
    assert list(read_masks(state).tensors) == list(state)


# -------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            plain(),
            r"^no masks found: masks of your own go into --masks FILE .*before bake.* README",
        ),
        (
            plain() | {"fc.importance": torch.randn(2, 3)},
            r"if fc\.importance are scores of fc\.weight, give --scores-name importance",
        ),
        (
            {"a": torch.eye(2), "b": torch.eye(3), "c": torch.ones(2, 2)},
            "^no masks found: 2 of its tensors hold zeros: if these are pruned weights, give",
        ),
        (
            {"a": torch.eye(2), "c": torch.ones(2, 2)},
            "^no masks found: one of its tensors holds zeros: if these are pruned weights, give",
        ),
        (
            {"n.weight": torch.ones(3), "n.running_var": torch.ones(3)},
            "^no masks found: masks of your own",
        ),
    ],
)
def test_a_checkpoint_without_masks_says_what_to_give(state: State, words: str) -> None:
    with pytest.raises(EncodeError, match=words) as caught:
        encoded(state, manifest=False)
    assert "\n" not in str(caught.value)


def test_rules_are_printed_and_counted(tmp_path: Path) -> None:
    state: State = {}
    for number, share in enumerate("abcdef"):
        state |= {f"{share}.weight": torch.ones(9), f"{share}.scores": torch.arange(9.0) + number}
    torch.save(state | plain() | {"fc.mask": MASK}, tmp_path / "x.pt")
    keep = ",".join(f"{name}.*={0.1 * (i + 1):.1f}" for i, name in enumerate("abcd")) + ",*=0.5"
    result = run("encode", tmp_path / "x.pt", "--no-manifest", "--keep", keep)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("masks: ")]
    assert "keep is 0.5 (2 tensors)" in lines[0]
    assert len(lines) == 5
    assert lines[-1] == "masks: and 2 more rules"


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ("head", "'head' is not a valid float"),
        ("a=0.5,b", "'b' is no pattern and share, such as head.*=0.8"),
        ("=0.5", "'=0.5' is no pattern and share"),
        ("a=0.5,a=0.6", "two shares for a"),
        ("a=x", "'x' is not a valid float"),
        ("a=0.5,", "'' is no pattern and share"),
        ("a=1.5", "must be above 0 and at most 1"),
        ("50", "must be above 0 and at most 1, not 50.0: it is a share, such as 0.5"),
        ("a=0.5", "keep has nothing for fc.weight"),
    ],
)
def test_shares_by_name_from_the_command_line(keep: str, words: str, tmp_path: Path) -> None:
    state = {"fc.weight": torch.ones(4), "fc.scores": torch.arange(4.0)}
    torch.save(state, tmp_path / "x.pt")
    result = run("encode", tmp_path / "x.pt", "--no-manifest", "--keep", keep)
    assert result.exit_code in (1, 2)
    assert words in result.output + str(result.exception)
    result = run("encode", tmp_path / "x.pt", "--no-manifest", "--keep", "head.*=0.8, fc.*=0.25")
    assert "no masked weight is called head.*" in str(result.exception)
    result = run("encode", tmp_path / "x.pt", "--no-manifest", "--keep", "*=0.3,fc.*=0.8")
    assert "keep: fc.* never applies behind *: put it first" in str(result.exception)
    result = run("encode", tmp_path / "x.pt", "--no-manifest", "--keep", "fc.*=0.25,*=0.8")
    assert "no masked weight is called" not in str(result.exception)


def test_reports_use_what_a_checkpoint_says(tmp_path: Path) -> None:
    weight = torch.randn(64, 64)
    scored = {"fc.weight": weight, "fc.scores": torch.randn(64, 64)}
    contents: dict[str, Any] = {
        "dense": {"fc.weight": weight},
        "needs": scored,
        "biprop": {"state_dict": scored, "conv_type": "SubnetConv", "prune_rate": 0.4},
        "unknown": {"state_dict": scored, "conv_type": "OtherConv"},
        "tasks": {"fc.weight": weight, "fc.scores.0": weight, "fc.scores.1": weight},
        "binary": {"fc.weight": weight, "fc.scores": (weight > 0).float()},
        "dictionary": {"model": {"fc.weight": weight}, "masks": {"fc": weight > 0}},
    }
    options = CostOptions(masks={"keep": 0.5}, forms=())
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pt")
        if name in ("unknown", "tasks"):
            with pytest.raises(EncodeArgumentError, match=r"whose rule is not known|give --task"):
                model_costs(tmp_path / f"{name}.pt", options)
        else:
            costs = model_costs(tmp_path / f"{name}.pt", options)
            assert (costs.info is None) == (name == "dense")
    assert model_costs(tmp_path / "biprop.pt", options).keep == pytest.approx(0.4, abs=1e-3)
    with pytest.raises(EncodeArgumentError, match="not the keep ratio"):
        model_costs(tmp_path / "needs.pt", CostOptions(forms=()))


def test_what_is_said_of_masks_belongs_to_a_checkpoint(tmp_path: Path) -> None:
    with (tmp_path / "x.pemn").open("wb") as stream:
        stream.write(encoded(plain(), masks={"fc": MASK}, manifest=False).getvalue())
    for option in ("--rule=above=0", "--task=1", "--masks-from=zeros", "--masks=x.pt", "--keep=1"):
        result = run("verify", tmp_path / "x.pemn", option)
        assert result.exit_code == 2
        assert f"{option.partition('=')[0]}: only with --against" in result.output
    result = run("verify", tmp_path / "x.pemn", "--task=1", "--prefix=x", "--scores-name=y")
    assert "--scores-name and --task and --prefix: only with --against" in result.output
    assert run("verify", tmp_path / "x.pemn").exit_code == 0


@pytest.mark.parametrize(
    "name", ["model.fc.weight", "model.fc", "fc", "fc.weight", "model.fc_mask"]
)
def test_masks_go_by_names_with_and_without_a_prefix(name: str) -> None:
    state = plain("model.fc.") | {"other.weight": torch.ones(1)}
    stream = encoded(state, masks={name: MASK}, prefix="model.", manifest=False)
    with pemncodec.open(stream) as file:
        assert file.masked_keys() == ["fc.weight"]


def test_masks_may_be_arrays() -> None:
    stream = encoded(plain(), masks={"fc": np.eye(2, 3)}, manifest=False)
    with pemncodec.open(stream) as file:
        assert file.mask("fc.weight").tolist() == np.eye(2, 3, dtype=bool).tolist()


@pytest.mark.parametrize("by_caller", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_masks_that_are_1_where_weights_are_dropped(by_caller: bool, dtype: torch.dtype) -> None:
    state = plain()
    state["fc.weight"] = (state["fc.weight"] * MASK).to(dtype)
    masks = {"fc.weight": MASK == 0}
    if not by_caller:
        state["fc.mask"] = masks.pop("fc.weight")
    words = (
        r"the mask of fc\.weight keeps only weights that are 0, and drops the others: a mask is 1"
    )
    with pytest.raises(EncodeError, match=words):
        encoded(state, masks=masks, manifest=False)


@pytest.mark.parametrize(
    ("weight", "mask"),
    [
        (torch.zeros(2, 3), MASK),  # nothing is dropped that was there
        (torch.ones(2, 3), torch.zeros(2, 3)),  # nothing is kept
        (torch.eye(2, 3), torch.eye(2, 3)),
        (torch.cat([torch.zeros(1 << 18), torch.ones(1 << 18)]), torch.ones(1 << 19)),
    ],
)
def test_masks_that_keep_few_weights_or_none(weight: Tensor, mask: Tensor) -> None:
    state = pemncodec.load_state_dict(encoded({"w": weight}, masks={"w": mask}, manifest=False))
    torch.testing.assert_close(state["w"], weight * mask, rtol=0, atol=0)
