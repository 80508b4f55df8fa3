"""Rules by which masks follow from scores, and networks whose rule is not the official one."""

from __future__ import annotations

import argparse
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pemncodec
from pemncodec import EncodeArgumentError, EncodeError
from pemncodec.checkpoints.dialects import read_masks
from pemncodec.checkpoints.reading import with_recorded
from pemncodec.checkpoints.score_rules import RULES, RULES_WITH_VALUE, rule_named
from pemncodec.checkpoints.sources import read_checkpoint

State = dict[str, Tensor]
BOTH = {"0.weight": 4, "1.weight": 2}


def scored(*rows: list[float], called: str = "scores") -> State:
    """Layers of one weight each, all of them 1."""
    state: State = {}
    for number, row in enumerate(rows):
        state[f"{number}.weight"] = torch.ones(len(row))
        state[f"{number}.{called}"] = torch.tensor(row)
    return state


def masks_of(state: State, **options: Any) -> list[list[int]]:
    read = read_masks(state, **options)
    return [mask.astype(int).tolist() for mask in read.masks.values()]


# ---------------------------------------------------------------------------- what rules keep


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rule": "magnitude", "keep": 0.5}, [[0, 1, 0, 1], [1, 0]]),
        ({"rule": "score", "keep": 0.5}, [[0, 0, 1, 1], [0, 1]]),
        ({"rule": "movement", "keep": 0.5}, [[0, 0, 1, 1], [0, 1]]),
        ({"rule": "global-magnitude", "keep": 0.5}, [[0, 1, 0, 1], [1, 0]]),
        ({"rule": "global-score", "keep": 0.5}, [[1, 0, 1, 1], [0, 0]]),
        ({"rule": "above=2"}, [[0, 0, 0, 1], [0, 0]]),
        ({"rule": "above=-5"}, [[1, 1, 1, 1], [0, 1]]),
        ({"rule": "at-least=2"}, [[0, 0, 1, 1], [0, 0]]),
        ({"rule": "sigmoid-above=0.5"}, [[1, 0, 1, 1], [0, 0]]),
        ({"rule": "sigmoid-above=0.8"}, [[0, 0, 1, 1], [0, 0]]),
        ({"rule": "magnitude", "keep": {"0.*": 0.25, "*": 1.0}}, [[0, 0, 0, 1], [1, 1]]),
    ],
)
def test_what_a_rule_keeps(options: dict[str, Any], expected: list[list[int]]) -> None:
    state = scored([1.0, -3.0, 2.0, 4.0], [-5.0, 0.0])
    assert masks_of(state, **options) == expected


@pytest.mark.parametrize(
    ("options", "expected", "tied"),
    [
        # Of equal scores at the cut the later stay, of movement pruning the earlier.
        ({"rule": "magnitude", "keep": 0.5}, [[0, 0, 1, 1], [0, 1]], BOTH),
        ({"rule": "movement", "keep": 0.5}, [[1, 1, 0, 0], [1, 0]], BOTH),
        ({"rule": "global-score", "keep": 0.5}, [[0, 0, 0, 1], [1, 1]], BOTH),
        ({"rule": "global-score", "keep": 1.0}, [[1, 1, 1, 1], [1, 1]], {}),
        ({"rule": "at-least=0.5"}, [[1, 1, 1, 1], [1, 1]], {}),
    ],
)  # fmt: skip
def test_equal_scores(
    options: dict[str, Any], expected: list[list[int]], tied: dict[str, int]
) -> None:
    read = read_masks(scored([0.5] * 4, [0.5] * 2), **options)
    assert [mask.astype(int).tolist() for mask in read.masks.values()] == expected
    assert read.ties == tied


def test_ties_of_one_cut_are_counted_where_they_are() -> None:
    read = read_masks(scored([1.0, 2.0, 2.0], [2.0, 3.0], [0.5]), keep=0.5, rule="global-magnitude")
    assert read.ties == {"0.weight": 2, "1.weight": 1}
    assert [mask.tolist() for mask in read.masks.values()] == [
        [False, False, True], [True, True], [False]
    ]  # fmt: skip


def test_movement_pruning_counts_what_stays() -> None:
    """int(keep · n) stay, where edge-popup drops int((1 − keep) · n): 2 and 3 of 7."""
    state = scored([1.0, 2, 3, 4, 5, 6, 7])
    assert sum(masks_of(state, keep=0.4, rule="movement")[0]) == 2
    assert sum(masks_of(state, keep=0.4, rule="magnitude")[0]) == 3


def test_drawn_masks_follow_from_the_seed_and_the_probabilities() -> None:
    state = scored(torch.full((4000,), 1.0).tolist(), torch.zeros(4000).tolist())
    first = masks_of(state, rule="bernoulli=3")
    assert first == masks_of(state, rule="bernoulli=3")
    assert first != masks_of(state, rule="bernoulli=4")
    for mask, probability in zip(first, (0.7311, 0.5), strict=True):
        assert abs(sum(mask) / 4000 - probability) < 0.03
    torch.manual_seed(3)
    assert first[0] == torch.bernoulli(state["0.scores"].sigmoid()).int().tolist()


def test_what_changes_weights_leaves_none_that_are_not_numbers() -> None:
    state = scored([1.0, 2.0])
    with pytest.raises(EncodeError, match=r"0\.weight: keep 0\.3 leaves no weights to use"):
        read_masks(state, keep=0.3, rule="biprop")
    # As in the published code, which takes the largest for the cut.
    with pytest.raises(EncodeError, match=r"0\.weight: keep 1\.0 leaves no weights to use"):
        read_masks(state, keep=1.0, rule="biprop-global")
    assert masks_of(scored([]), keep=0.5, rule="biprop-global") == [[]]


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(2, dtype=torch.int64),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, dtype=torch.float8_e5m2),
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
    ],
)
def test_weights_that_no_rule_can_change(weight: Tensor) -> None:
    with pytest.raises(EncodeError, match=r"0\.weight: (cannot mask weights of|expected a dense)"):
        read_masks(scored([1.0, 2.0]) | {"0.weight": weight}, keep=0.5, rule="biprop")


# ------------------------------------------------------------------------------- naming rules


@pytest.mark.parametrize("name", [*RULES, *(f"{name}=1" for name in RULES_WITH_VALUE)])
def test_every_rule_says_in_words_what_it_does(name: str) -> None:
    said = rule_named(name).in_words("scores", 0.25)
    assert said.startswith("scores: ")
    assert ("0.25" in said) == rule_named(name).needs_keep
    assert "{" not in said


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("largest", "there is no 'largest', have magnitude, score, "),
        ("", "there is no '', have magnitude"),
        ("magnitude=0.5", "there is no 'magnitude=0.5', have"),
        ("above", r"'above' lacks its number: above=0\.5"),
        ("above=", r"'above=' lacks its number: above=0\.5"),
        ("above=nan", "'above=nan' lacks its number"),
        ("at-least=x", "'at-least=x' lacks its number"),
        ("bernoulli=0.5", "'bernoulli=0.5' lacks its number: bernoulli=0, with a seed"),
        ("bernoulli=-1", "lacks its number: bernoulli=0"),
        (5, "there is no 5, have"),
    ],
)
def test_rules_that_are_none(rule: Any, words: str) -> None:
    with pytest.raises(EncodeArgumentError, match=words) as caught:
        read_masks(scored([1.0, 2.0]), rule=rule)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "score"}, "--rule score ranks scores: give --keep"),
        ({"rule": "above=0", "keep": 0.5}, "--rule above=0 takes no share: leave out --keep"),
        (
            {"rule": "global-score", "keep": {"*": 0.5}},
            "--rule global-score makes one cut for all weights: give --keep .* one number",
        ),
        ({"rule": "global-magnitude", "keep": {"*": 0.5}}, "makes one cut for all weights"),
        ({"rule": "biprop-global", "keep": {"*": 0.5}}, "makes one cut for all weights"),
        ({}, "holds scores but not the keep ratio: give --keep"),
        ({"scores_name": "x", "keep": 0.5}, r"no X\.x has the shape of an X\.weight beside it"),
        ({"task": 1, "keep": 0.5}, "--task .* is for sets of scores"),
    ],
)
def test_options_that_do_not_fit_scores(options: dict[str, Any], words: str) -> None:
    with pytest.raises(EncodeArgumentError, match=words):
        read_masks(scored([1.0, 2.0], [3.0, -4.0]), **options)


def test_one_cut_is_for_scores_of_one_kind() -> None:
    other = {"b.weight": torch.ones(2), "b.popup_scores": torch.tensor([30.0, -40.0])}
    state = {**scored([1.0, 2.0]), **other}
    words = "one cut for all weights, but .* several kinds, scores and popup_scores: "
    with pytest.raises(EncodeArgumentError, match=words):
        read_masks(state, rule="global-magnitude", keep=0.5)
    with pytest.raises(EncodeArgumentError, match=r"several kinds, popup_scores and scores: give"):
        read_masks(state, rule="global-magnitude", keep=0.5, scores_name="popup_scores")
    assert masks_of(state, rule="magnitude", keep=0.5) == [[0, 1], [0, 1]]
    ones = {"b.weight": torch.ones(2)}
    assert len(masks_of(state, rule="magnitude", keep={"0.*": 0.5}, masks=ones)) == 2


def test_a_rule_without_scores_is_refused() -> None:
    pruned = {"fc.weight": torch.ones(2), "fc.mask": torch.tensor([1, 0])}
    with pytest.raises(EncodeArgumentError, match="the masks follow from the checkpoint itself"):
        read_masks(pruned, rule="above=0")
    ones = torch.ones(2, 2)
    for given in ({"masks": {"fc.weight": ones}}, {"masks_from": "zeros"}):
        with pytest.raises(EncodeArgumentError, match="there are no scores to apply it to: leave"):
            read_masks({"fc.weight": ones}, rule="above=0", **given)
    with pytest.raises(EncodeArgumentError, match="no scores to apply it to: one of its tensors"):
        read_masks({"fc.weight": torch.eye(2)}, keep=0.5)
    named = {"fc.weight": torch.ones(2, 2), "fc.merit": torch.ones(2, 2)}
    words = r"apply it to: if fc\.merit are scores of fc\.weight, give --scores-name merit"
    with pytest.raises(EncodeArgumentError, match=words):
        read_masks(named, keep=0.5)


# ------------------------------------------------------------------------- masks as scores


def test_scores_that_are_0_and_1_are_masks() -> None:
    state = scored([0.0, 1.0, 1.0], [1.0, 1.0])
    read = read_masks(state)
    assert masks_of(state) == [[0, 1, 1], [1, 1]]
    assert set(read.rules.values()) == {"scores: 0 and 1 already, used as they are"}
    assert list(read.tensors) == ["0.weight", "1.weight"]
    assert masks_of(scored([0.0, 1.0, 0.0]), keep=0.3) == [[0, 1, 0]]


def test_scores_that_are_0_and_1_are_not_ranked() -> None:
    state = scored([0.0, 1.0, 1.0, 1.0])
    words = r"0\.scores are 0 and 1 already and keep 3 of 4 weights, not the share 0\.5: leave out"
    with pytest.raises(EncodeArgumentError, match=words):
        read_masks(state, keep=0.5)
    assert masks_of(state, keep=0.5, rule="magnitude") == [[0, 0, 1, 1]]


def test_only_some_scores_are_0_and_1() -> None:
    state = scored([0.0, 1.0, 1.0, 0.0], [0.5, 1.0, -2.0, 0.0])
    with pytest.raises(EncodeArgumentError, match="not the keep ratio"):
        read_masks(state)
    assert masks_of(state, keep=0.5) == [[0, 1, 1, 0], [0, 1, 1, 0]]
    # Scores that are all alike say nothing of which stay.
    assert masks_of(scored([1.0, 1.0]), keep=0.5) == [[0, 1]]


def test_a_module_whose_scores_are_masks_is_described_with_them() -> None:
    class Fixed(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.scores = nn.Parameter((torch.arange(12) % 3 > 0).float().reshape(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight * self.scores, self.bias)

    module, x, stream = nn.Sequential(Fixed()), torch.randn(2, 4), io.BytesIO()
    pemncodec.encode(module, stream, example_inputs=x)
    decoded = pemncodec.decode(stream)
    assert torch.equal(decoded(x), module(x))
    with pemncodec.open(stream) as file:
        assert file.masked_keys() == ["0.weight"]
        assert "0.scores" in file.keys()  # noqa: SIM118


def test_an_architecture_that_masks_by_itself_is_refused() -> None:
    class Scored(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.scores = nn.Parameter(torch.randn(3, 4))

    module = Scored()
    words = r"a module with scores \(X\.scores\) computes its masks in code of its own"
    with pytest.raises(EncodeArgumentError, match=words):
        pemncodec.encode(module.state_dict(), io.BytesIO(), keep=0.5, architecture=Scored())


# ------------------------------------------------------------------- what a checkpoint records


def recorded(tmp_path: Path, content: dict[str, Any], **given: Any) -> dict[str, Any]:
    torch.save({"state_dict": scored([1.0, -2.0, 3.0]), **content}, tmp_path / "x.pt")
    choices = with_recorded(read_checkpoint(tmp_path / "x.pt"), given)
    return {name: value for name, value in choices.items() if value is not None}


def namespace(**options: Any) -> dict[str, Any]:
    return {"args": argparse.Namespace(**options)}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"conv_type": "SubnetConv", "prune_rate": 0.4}, {"rule": "biprop", "keep": 0.4}),
        (
            {"conv_type": "GlobalSubnetConv", "prune_rate": 0.1},
            {"rule": "biprop-global", "keep": 0.1},
        ),
        ({"conv_type": "DenseConv"}, {}),
        ({"conv_type": 5, "args": None}, {}),
        (
            namespace(conv_type="MultitaskMaskConv", sparsity=0.3),
            {"rule": "magnitude", "keep": 0.3},
        ),
        (namespace(conv_type="FastMultitaskMaskConv", sparsity=0.3), {"rule": "at-least=0"}),
        (namespace(conv_type="FastMultitaskMaskConv", er_sparsity=True), {"rule": "at-least=0"}),
        ({"args": {"lr": 0.1}}, {}),
        ({"args": {"conv_type": torch.ones(2), "er_sparsity": torch.ones(2)}}, {}),
        ({"prune_rate": torch.ones(2), "conv_type": None}, {}),
        ({"args": {"conv_type": "FastMultitaskMaskConv"}}, {"rule": "at-least=0"}),
    ],
)
def test_what_a_checkpoint_records_is_used(
    content: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    assert recorded(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"conv_type": "SampleSubnetConv", "prune_rate": 0.5},
            "whose masks are drawn in each forw",
        ),
        ({"conv_type": "OtherConv"}, "records layers OtherConv, whose rule is not known: give"),
        # hidden-networks has a class of that name, too.
        (namespace(conv_type="SubnetConv", prune_rate=0.3), "layers SubnetConv, whose rule is not"),
        (
            namespace(conv_type="MultitaskMaskConv", sparsity=0.3, er_sparsity=True),
            "layers MultitaskMaskConv with er_sparsity, whose rule is not known",
        ),
        ({"prune_rate": 0.3}, r"prune_rate 0\.3, .*: give --keep 0\.3 or --keep 0\.7"),
        (namespace(prune_rate=0.3), r"prune_rate 0\.3, .*: give --keep 0\.3 or --keep 0\.7"),
    ],
)
def test_a_checkpoint_that_records_another_rule_is_not_taken_for_an_official_one(
    content: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(EncodeArgumentError, match=words):
        recorded(tmp_path, content)
    for given in ({"rule": "above=0"}, {"rule": "magnitude", "keep": 0.5}):
        assert recorded(tmp_path, content, **given) == given


def test_what_the_caller_says_against_what_is_recorded(tmp_path: Path) -> None:
    biprop = {"conv_type": "SubnetConv", "prune_rate": 0.4}
    assert recorded(tmp_path, biprop, keep=0.4) == {"rule": "biprop", "keep": 0.4}
    with pytest.raises(
        EncodeArgumentError, match=r"the share 0\.4 of the weights stays: leave out"
    ):
        recorded(tmp_path, biprop, keep=0.5)
    assert recorded(tmp_path, {"prune_rate": 0.3}, keep=0.7) == {"keep": 0.7}
    masks = {"0.weight": torch.tensor([1, 0, 1])}
    assert recorded(tmp_path, biprop, masks=masks) == {"masks": masks}


def test_what_is_recorded_of_a_network_without_scores_is_passed_over(tmp_path: Path) -> None:
    for state in ({"w": torch.ones(2)}, scored([0.0, 1.0])):
        content = {"conv_type": "SubnetConv", "prune_rate": 0.4, "state_dict": state}
        assert recorded(tmp_path, content) == {}


def test_a_command_line_is_read_without_its_class(tmp_path: Path) -> None:
    """argparse is not imported; an object that is pickled in another way has no attributes."""

    class Odd:
        def __reduce__(self) -> Any:
            return argparse.Namespace, (), [("conv_type", "OtherConv")]

    with pytest.raises(EncodeArgumentError, match="OtherConv"):
        recorded(tmp_path, namespace(conv_type="OtherConv"))
    assert recorded(tmp_path, {"args": Odd()}) == {}
    assert pickle.dumps(Odd())  # which torch.save could write


# ------------------------------------------------------------------------------ one by one


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, {"keep": 0.5}, r"2 sets of scores, X\.scores\.0 to X\.scores\.1: give --task"),
        ({}, {"keep": 0.5, "task": 2}, r"there is no X\.scores\.2, the checkpoint has 0 to 1"),
        (
            {},
            {"task": 1},
            r"give --keep .* for MultitaskMaskConv, .* or --rule at-least=0 for Fast",
        ),
        ({"b.scores.1": None}, {"keep": 0.5, "task": 1}, r"b\.weight has no scores of task 1"),
        (
            {"b.scores.1": torch.full((2,), torch.nan)},
            {"keep": 0.5, "task": 1},
            r"b\.scores\.1: the scores hold NaN",
        ),
    ],
)
def test_sets_of_scores_that_do_not_fit(
    change: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    state: dict[str, Any] = {}
    for layer in "ab":
        state |= {f"{layer}.weight": torch.ones(2)}
        state |= {f"{layer}.scores.{task}": torch.tensor([1.0, 2.0]) * task for task in (0, 1)}
    state = {name: t for name, t in {**state, **change}.items() if t is not None}
    with pytest.raises(EncodeError, match=words):
        read_masks(state, **options)


def test_a_single_set_of_scores_needs_no_task() -> None:
    state = {"weight": torch.ones(3), "scores.4": torch.tensor([1.0, -2.0, 3.0])}
    assert masks_of(state, rule="at-least=0") == [[1, 0, 1]]
    assert masks_of(state, rule="at-least=0", task=4) == [[1, 0, 1]]


def test_what_is_no_number_of_a_task() -> None:
    names = ["scores.01", "scores.", "scores.x", "scores.-1", "scores.1.2", f"scores.{'1' * 5000}"]
    state = {"weight": torch.ones(2)} | {name: torch.tensor([1.0, -1.0]) for name in names}
    assert list(read_masks(state).tensors) == list(state)


def test_what_a_task_takes_of_a_network_with_several() -> None:
    state = {
        "a.weight": torch.ones(2),
        "a.scores.0": torch.tensor([1.0, -1.0]),
        "a.scores.1": torch.tensor([-1.0, 1.0]),
        "a.stacked": torch.ones(2, 2),
        "n.bns.0.running_mean": torch.zeros(1),
        "n.bns.1.running_mean": torch.ones(1),
        "other.stacked": torch.ones(1),
        "mine.bns.0.x": torch.ones(1),
    }
    read = read_masks(state, rule="at-least=0", task=1, own=["mine.bns.0.x"])
    assert list(read.tensors) == ["a.weight", "n.running_mean", "other.stacked", "mine.bns.0.x"]
    assert read.tensors["n.running_mean"].item() == 1
    assert read.masks["a.weight"].tolist() == [False, True]


@pytest.mark.parametrize("rule", ["above=2.5", "sigmoid-above=0.99"])
def test_thresholds_of_movement_pruning_keep_half_a_percent(rule: str) -> None:
    state = scored([0.0] * 400 + [3.0, 5.0], called="mask_scores")
    words = r"0\.weight: fewer than 0\.5 % of its scores are above the threshold"
    with pytest.raises(EncodeError, match=words):
        read_masks(state, rule=rule)
    state["0.mask_scores"][:5] = 6.0
    assert sum(masks_of(state, rule=rule)[0]) > 2
    with pytest.raises(EncodeArgumentError, match=r"but not its method: give --keep .* for topK"):
        read_masks(state)


CONTEXT = "fc.mask_module.context_modules."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"1.mask_scores": torch.ones(2)}, "expected one matrix, or a vector for rows and one for"),
        ({"0.mask_scores": torch.ones(2)}, "expected one matrix, or a vector for rows and one for"),
        ({"0.mask_scores": None, "1.mask_scores": torch.ones(2)}, "expected one matrix, or a vect"),
        ({"0.mask_scores": torch.ones(2, 2, 2)}, "expected one matrix"),
        ({"0.mask_scores": torch.ones(3, 2)}, r"fc\.mask_scores has shape \(3, 2\), fc\.weight"),
        ({"0.mask_scores": torch.ones(2, 0)}, r"fc\.mask_scores has shape \(2, 0\), fc\.weight"),
        ({"0.mask_scores": torch.ones(4, device="meta"), "1.mask_scores": torch.ones(6)}, "dense"),
        ({"0.mask_scores": torch.ones(4).int(), "1.mask_scores": torch.ones(6)}, "expected floats"),
        ({"weight": None}, r"such scores without fc\.weight, or with a pattern of 2:4 beside them"),
        ({"ampere_module.ampere_pattern": torch.ones(6, 4)}, "or with a pattern of 2:4 beside"),
    ],
)  # fmt: skip
def test_scores_of_blocks_that_do_not_fit(change: dict[str, Any], words: str) -> None:
    state: dict[str, Any] = {"fc.weight": torch.ones(4, 6), f"{CONTEXT}0.mask_scores": torch.eye(2)}
    for name, tensor in change.items():
        state[f"{CONTEXT if name[0].isdigit() else 'fc.'}{name}"] = tensor
    with pytest.raises(EncodeError, match=words):
        read_masks({name: t for name, t in state.items() if t is not None}, rule="above=0.5")


def test_scores_of_blocks_beside_scores_of_weights() -> None:
    state = {
        "fc.weight": torch.ones(2, 4),
        f"{CONTEXT}0.mask_scores": torch.tensor([[3.0, 1.0]]),
        "last.weight": torch.ones(1, 2),
        "last.mask_scores": torch.tensor([[1.0, 5.0]]),
    }
    read = read_masks(state, keep=0.5)
    assert list(read.tensors) == ["fc.weight", "last.weight"]
    assert read.masks["fc.weight"].astype(int).tolist() == [[1, 1, 0, 0]] * 2
    assert read.masks["last.weight"].astype(int).tolist() == [[0, 1]]


def test_biases_of_rows_that_keep_nothing() -> None:
    state = {
        "fc.weight": torch.ones(2, 2), "fc.bias": torch.tensor([1.0, 2.0]),
        "fc.mask_module.context_modules.0.mask_scores": torch.tensor([[1.0], [-1.0]]),
    }  # fmt: skip
    words = (
        r"fc\.weight has rows that keep nothing, .* with bias_mask alone: give the mask of fc\.b"
    )
    with pytest.raises(EncodeError, match=words):
        read_masks(state, keep=0.5)
    zero = state | {"fc.bias": torch.tensor([1.0, 0.0])}
    assert masks_of(zero, keep=0.5) == [[[1, 1], [0, 0]]]
    assert masks_of(state, keep=1.0) == [[[1, 1], [1, 1]]]
    given = {"fc.bias": torch.tensor([1, 0])}
    assert masks_of(state, rule="above=-2", masks=given) == [[[1, 1], [1, 1]], [1, 0]]
    assert masks_of(state, rule="movement", keep={"fc.w*": 0.5}, masks=given)[1] == [1, 0]


def test_logits_need_a_rule() -> None:
    state = {
        "fc.weight": torch.ones(2), "fc.bias": torch.ones(2),
        "fc.mask": torch.tensor([0.5, -0.5]), "fc.bias_mask": torch.tensor([-3.0, 1.0]),
    }  # fmt: skip
    for options in ({}, {"keep": 0.5}):
        words = r"not how masks follow from them: give --rule sigmoid-above=0\.5, or --rule bern"
        with pytest.raises(EncodeArgumentError, match=words):
            read_masks(state, **options)
    assert masks_of(state, rule="above=0") == [[1, 0], [0, 1]]
    assert masks_of(state, rule="magnitude", keep=0.5) == [[0, 1], [1, 0]]
    given = {"fc.weight": np.array([0, 1]), "fc.bias": np.array([1, 1])}
    read = read_masks(state, masks=given)
    assert list(read.tensors) == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("logits", "expected"), [([1.0, 1.0], [0, 0]), ([0.0, 0.0], [0, 0]), ([0.0, 1.0], [0, 1])]
)
def test_logits_that_are_0_or_1_everywhere(logits: list[float], expected: list[int]) -> None:
    state = scored([2.0, -2.0], logits, called="mask")
    assert masks_of(state, rule="above=1.5") == [[1, 0], expected]
    assert masks_of(scored(logits, called="mask")) == [logits]


def test_scores_under_a_name_that_the_caller_gives() -> None:
    state = scored([1.0, -2.0, 0.5], called="importance")
    read = read_masks(state, scores_name="importance", keep=0.4)
    assert read.masks["0.weight"].tolist() == [True, True, False]
    assert list(read.tensors) == ["0.weight"]
    assert read.rules["0.weight"].startswith("importance: of n weights")
    with pytest.raises(EncodeError, match=r"pool\.importance: there is no pool\.weight"):
        read_masks(state | {"pool.importance": torch.ones(2)}, scores_name="importance", keep=0.5)
    with pytest.raises(EncodeArgumentError, match="not the keep ratio"):
        read_masks(state, scores_name="importance")


def test_scores_of_biases_are_not_passed_over() -> None:
    state = {
        "fc.weight": torch.ones(2, 2), "fc.scores": torch.eye(2) - 2, "fc.bias": torch.ones(2),
        "fc.bias_scores": torch.tensor([1.0, 2.0]), "other.bias_scores": torch.ones(1),
    }  # fmt: skip
    words = r"fc\.bias_scores: how scores of a bias are used differs .*: give the mask of fc\.bias"
    with pytest.raises(EncodeError, match=words):
        read_masks(state, keep=0.5)
    weight = {"masks": {"fc.weight": torch.eye(2), "fc.bias": torch.tensor([0, 1])}}
    read = read_masks(state, **weight)
    assert list(read.tensors) == ["fc.weight", "fc.bias", "other.bias_scores"]
    assert list(read.masks) == ["fc.weight", "fc.bias"]
    read = read_masks(state, keep=0.5, own=["fc.bias_scores", "other.bias_scores"])
    assert "fc.bias_scores" in read.tensors
    assert (
        "bias_scores" in read_masks({"bias": torch.ones(1), "bias_scores": torch.ones(1)}).tensors
    )


def test_scores_that_fit_nothing_are_refused_by_every_rule() -> None:
    for options in ({"rule": "above=0"}, {"keep": 0.5}):
        with pytest.raises(EncodeError, match=r"pool\.scores: there is no pool\.weight"):
            read_masks(scored([1.0, -2.0]) | {"pool.scores": torch.ones(2)}, **options)
