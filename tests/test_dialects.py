"""Dialects of masked checkpoints: each by its rule, several in one state, the order of the fold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from pemncodec import EncodeArgumentError, EncodeError
from pemncodec.checkpoints import dialects
from pemncodec.checkpoints.dialect import Dialect, MaskOptions, binary_mask
from pemncodec.checkpoints.dialects import DIALECTS, dialects_of, read_masks
from pemncodec.masking import MaskedState, OneLayer, Stochastic, TopK, mask_model, masked_state

State = dict[str, Tensor]


def parametrized() -> State:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    mask_model(model, OneLayer(), keep=0.5, seed=3, include="0.*")
    return mask_model(model, OneLayer(), seed=4, include="2.*", selection=Stochastic()).state_dict()


def scored() -> State:
    generator = torch.Generator().manual_seed(1)
    weight, scores = torch.randn(2, 4, 5, generator=generator)
    return {"fc.weight": weight, "fc.scores": scores, "fc.bias": torch.ones(4)}


def pruned() -> State:
    torch.manual_seed(2)
    layer = nn.Linear(5, 4)
    prune.random_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "bias", 0.5)
    return layer.state_dict()


def beside(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def scored_with(name: str) -> Callable[[], State]:
    def state() -> State:
        return {key.replace("scores", name): tensor for key, tensor in scored().items()}

    return state


def logits() -> State:
    return scored_with("mask")() | {"fc.bias_mask": torch.tensor([-1.0, 2.0, 0.5, -0.5])}


def masked() -> State:
    weight = scored()["fc.weight"]
    return {"fc.weight": weight, "fc.weight_mask": (weight > 0).int(), "fc.bias": torch.ones(4)}


def compressed() -> State:
    return {
        "fc.shape": torch.tensor([2, 3]),
        "fc.bitmask": torch.tensor([[5], [2]], dtype=torch.uint8),
        "fc.compressed": torch.tensor([1.0, 2.0, 3.0]),
        "fc.bias": torch.ones(2),
    }


EACH: list[tuple[Callable[[], State], list[str]]] = [
    (parametrized, ["masks of pemncodec.masking (X.parametrizations.weight.…)"]),
    (scored, ["scores (X.scores)"]),
    (pruned, ["pruning masks (X_orig, X_mask)"]),
    (compressed, ["bitmasks of compressed-tensors (X.bitmask, X.compressed, X.shape)"]),
    (scored_with("scores.0"), ["sets of scores of SupSup (X.scores.0, …)"]),
    (scored_with("popup_scores"), ["scores of Hydra (X.popup_scores)"]),
    (scored_with("mask_scores"), ["scores of movement pruning (X.mask_scores)"]),
    (logits, ["mask logits of FedPM (X.mask, X.bias_mask)"]),
    (masked, ["masks beside weights (X.mask, X_mask, X.weight_mask)"]),
    (nn.Linear(3, 2).state_dict, []),
]


# ------------------------------------------------------------------------------- each by itself


@pytest.mark.parametrize(("state", "names"), EACH)
def test_a_state_is_of_the_dialect_whose_entries_it_holds(
    state: Callable[[], State], names: list[str]
) -> None:
    assert [dialect.name for dialect in dialects_of(state())] == names


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_every_dialect_leaves_what_it_does_not_know(dialect: Dialect) -> None:
    plain = {"a": torch.ones(2), "a_mask": torch.ones(3), "b.scores_": torch.ones(1)}
    assert not dialect.matches(plain)
    read = dialect.read(plain, MaskOptions(keep=0.5))
    assert list(read.tensors) == list(plain)
    assert all(read.tensors[name] is plain[name] for name in plain)
    assert not read.masks


def test_every_mask_has_its_rule_in_words() -> None:
    state = beside("a.", parametrized()) | beside("b.", scored()) | beside("c.", pruned())
    mask = torch.ones(4, dtype=torch.bool)
    read = read_masks(state, keep=0.25, masks={"b.fc.bias": mask})
    assert read.rules == {
        "a.0.weight": "pemncodec.masking: TopK(by='magnitude', scope='layer'), keep=0.5",
        "a.2.weight": "pemncodec.masking: Stochastic()",
        "b.fc.weight": "scores: of n weights, the int((1 - keep) * n) with the least |score| go; "
        "keep is 0.25",
        "c.weight": "pruned by torch.nn.utils.prune: X_orig times X_mask",
        "c.bias": "pruned by torch.nn.utils.prune: X_orig times X_mask",
        "b.fc.bias": "given by the caller",
    }
    assert read.rules.keys() == read.masks.keys()


def test_a_masked_model_says_its_rules_too() -> None:
    model = mask_model(nn.Linear(4, 3), OneLayer(), keep=0.5, selection=TopK(by="score"))
    assert masked_state(model).rules == {
        "weight": "pemncodec.masking: TopK(by='score', scope='layer'), keep=0.5"
    }


# ------------------------------------------------------------------------------------- mixtures


@pytest.mark.parametrize("backwards", [False, True])
def test_in_a_mixture_every_layer_is_read_as_if_alone(backwards: bool) -> None:
    parts = {"a.": parametrized(), "b.": scored(), "c.": pruned(), "d.": compressed()}
    parts |= {"e.": masked(), "f.": scored_with("popup_scores")()}
    bias = torch.tensor([1, 0, 0, 1])
    mixed: State = {"first": torch.ones(1)}
    for prefix in sorted(parts, reverse=backwards):
        mixed |= beside(prefix, parts[prefix])
    read = read_masks(mixed, keep=0.3, masks={"b.fc.bias": bias})
    assert len(dialects_of(mixed)) == len(parts)
    names = ["first"]
    for prefix in sorted(parts, reverse=backwards):
        given = {"fc.bias": bias} if prefix == "b." else None
        keep = 0.3 if prefix in ("b.", "f.") else None
        alone = read_masks(parts[prefix], keep=keep, masks=given)
        names += [prefix + name for name in alone.tensors]
        for name, tensor in alone.tensors.items():
            same = read.tensors[prefix + name]
            assert same is tensor or (prefix == "d." and torch.equal(same, tensor))
        for name, mask in alone.masks.items():
            assert np.array_equal(read.masks[prefix + name], mask)
        assert {n: f for n, f in read.fills.items() if n.startswith(prefix)} == {
            prefix + name: fill for name, fill in alone.fills.items()
        }
    assert list(read.tensors) == names
    assert len(read.masks) == 9
    assert read.fills.keys() == {"a.0.weight", "a.2.weight"}


def test_names_that_end_like_the_dialects_own() -> None:
    """A pruned parameter may itself be called mask; only pairs are pruned."""
    layer = nn.Module()
    layer.my_mask = nn.Parameter(torch.arange(4.0))
    layer.register_buffer("other_mask", torch.ones(2))
    prune.l1_unstructured(layer, "my_mask", 0.5)
    read = read_masks(layer.state_dict())
    assert sorted(read.tensors) == ["my_mask", "other_mask"]
    assert read.masks["my_mask"].tolist() == [False, False, True, True]


# --------------------------------------------------------------------------- claimed by two


@pytest.mark.parametrize(
    ("state", "masks", "words"),
    [
        # The weight of a masked layer with scores beside it.
        (
            lambda: (
                mask_model(nn.Linear(3, 2), OneLayer()).state_dict() | {"scores": torch.ones(2, 3)}
            ),
            None,
            r"weight has two masks: \(pemncodec\.masking: .*\) and \(scores: ",
        ),
        (scored, {"fc.weight": torch.ones(4, 5)}, r"fc\.weight has two masks: \(scores: .*given"),
        (
            lambda: pruned() | {"weight": torch.ones(4, 5), "scores": torch.ones(4, 5)},
            None,
            "weight_orig: there is a weight beside it",
        ),
        (
            lambda: scored() | pruned() | {"weight": torch.zeros(4, 5)},
            None,
            "weight_orig: there is a weight beside it",
        ),
        (
            lambda: (
                scored()
                | mask_model(nn.Linear(3, 2), OneLayer()).state_dict()
                | {"weight": torch.zeros(2, 3)}
            ),
            None,
            "there is a weight beside it",
        ),
    ],
)
def test_a_weight_that_two_dialects_claim_is_refused(
    state: Callable[[], State], masks: State | None, words: str
) -> None:
    with pytest.raises(EncodeError, match=words) as caught:
        read_masks(state(), keep=0.5, masks=masks)
    assert len(str(caught.value).splitlines()) == 1


def test_a_mask_that_is_part_of_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def takes_all(state: State, _: MaskOptions) -> MaskedState:
        return MaskedState({name + "'": tensor for name, tensor in state.items()}, {})

    greedy = Dialect("all", bool, takes_all)
    monkeypatch.setattr(dialects, "DIALECTS", (*DIALECTS, greedy))
    with pytest.raises(EncodeError, match=r"fc\.weight has a mask, and is itself part of another"):
        read_masks(scored(), keep=0.5)


# ------------------------------------------------------------------------------- the fold itself


def test_dialects_read_in_order_what_those_before_them_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two toy dialects that know one suffix: the first in the list has its entries."""
    seen: list[tuple[str, list[str]]] = []

    def toy(name: str) -> Dialect:
        def read(state: State, _: MaskOptions) -> MaskedState:
            seen.append((name, list(state)))
            tensors = {n: t for n, t in state.items() if not n.endswith("_logits")}
            masks = {
                n.removesuffix("_logits"): (t > 0).numpy()
                for n, t in state.items()
                if n.endswith("_logits")
            }
            return MaskedState(tensors, masks, rules=dict.fromkeys(masks, name))

        return Dialect(name, lambda state: any(n.endswith("_logits") for n in state), read)

    state = {"w": torch.ones(2), "w_logits": torch.tensor([-1.0, 1.0])}
    for order in (("one", "two"), ("two", "one")):
        seen.clear()
        monkeypatch.setattr(dialects, "DIALECTS", tuple(toy(name) for name in order))
        read = read_masks(state)
        assert seen == [(order[0], ["w", "w_logits"]), (order[1], ["w"])]
        assert read.rules == {"w": order[0]}
        assert read.masks["w"].tolist() == [False, True]


def test_keep_is_refused_unless_a_dialect_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EncodeArgumentError, match="no scores"):
        read_masks({"w": torch.ones(2)}, keep=0.5, masks={"w": torch.ones(2)})
    with pytest.raises(EncodeArgumentError, match="follow from the checkpoint itself"):
        read_masks(pruned(), keep=0.5)
    monkeypatch.setattr(dialects, "DIALECTS", DIALECTS[::-1])
    with pytest.raises(EncodeArgumentError, match="holds scores but not the keep ratio"):
        read_masks(beside("a.", pruned()) | scored())
    assert len(read_masks(beside("a.", pruned()) | scored(), keep=0.5).masks) == 3


@pytest.mark.parametrize("keep", [0, -1.0, 1.01, float("nan"), "0.5"])
def test_keep_is_a_share(keep: float) -> None:
    with pytest.raises(EncodeArgumentError, match="must be above 0 and at most 1"):
        MaskOptions(keep)
    with pytest.raises(EncodeArgumentError, match="must be above 0 and at most 1"):
        read_masks(scored(), keep=keep)


# ------------------------------------------------------------------------ whatever there is


def blocks() -> State:
    inner = "fc.mask_module.context_modules."
    ranks = {f"{inner}0.mask_scores": torch.arange(4.0), f"{inner}1.mask_scores": torch.ones(5)}
    return {"fc.weight": scored()["fc.weight"], **ranks}


def tasks() -> State:
    state = scored_with("scores.0")() | scored_with("scores.1")()
    return state | {"n.bns.0.running_mean": torch.zeros(2), "n.bns.1.running_mean": torch.ones(2)}


ODD = [
    torch.ones(()),
    torch.ones(0),
    torch.ones(4, 5, dtype=torch.int64),
    torch.ones(4, 5, dtype=torch.complex64),
    torch.ones(4, 5, dtype=torch.float8_e4m3fn),
    torch.zeros(4, 5, dtype=torch.bool),
    torch.full((4, 5), math.nan),
    torch.full((4, 5), -math.inf),
    torch.eye(4, 5).to_sparse(),
    torch.ones(4, 5, device="meta"),
    torch.ones(5, 4),
    torch.ones(4, 5, 1),
    torch.zeros(4, 0),
]
SAID: list[dict[str, Any]] = [
    {},
    {"keep": 0.5},
    {"keep": 1e-9},
    {"keep": {"*": 0.5}, "task": 1},
    {"rule": "biprop", "keep": 0.5, "task": 0},
    {"rule": "biprop-global", "keep": 1.0, "task": 0},
    {"rule": "global-score", "keep": 0.5, "scores_name": "scores"},
    {"rule": "sigmoid-above=0.5", "task": 1},
    {"rule": "bernoulli=1", "masks_from": "zeros"},
]


@pytest.mark.parametrize("make", [*(make for make, _ in EACH), blocks, tasks])
def test_whatever_an_entry_holds_there_are_masks_or_an_error(make: Callable[[], State]) -> None:
    odd_ones: list[Tensor | None] = [None, *ODD]
    for name, odd, said in itertools.product(make(), odd_ones, SAID):
        state = make()
        del state[name]
        state |= {} if odd is None else {name: odd}
        for own in ((), list(state)):
            words = outcome(state, own, said)
            assert "\n" not in words, (name, odd, said)


def outcome(state: State, own: Collection[str], said: dict[str, Any]) -> str:
    """What the error says, or nothing and masks that fit."""
    try:
        read = read_masks(state, own=own, **said)
    except EncodeError as error:
        return str(error)
    assert read.rules.keys() == read.masks.keys()
    for name, mask in read.masks.items():
        assert mask.shape == tuple(read.tensors[name].shape)
        assert mask.dtype == np.bool_
    return ""


# ----------------------------------------------------------------------------- what is no mask


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.eye(3).to_sparse(), "w: expected a dense tensor"),
        (torch.ones(3, 3, device="meta"), "w: expected a dense tensor"),
        (torch.tensor([0, 1, 2]), "w: a mask holds only 0 and 1"),
        (torch.tensor([0, 1, -1.0]), "w: a mask holds only 0 and 1"),
        (torch.tensor([0, 1, torch.nan]), "w: a mask holds only 0 and 1"),
    ],
)
def test_what_is_no_mask(mask: Tensor, message: str) -> None:
    with pytest.raises(EncodeError, match=f"^{message}$"):
        binary_mask(mask, "w")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16])
def test_masks_of_any_dtype_and_order(dtype: torch.dtype) -> None:
    wanted = torch.tensor([[1, 0, 1], [0, 0, 1]])
    for mask in (wanted.to(dtype), wanted.to(dtype).t().contiguous().t()):
        found = binary_mask(mask, "w")
        assert found.dtype == np.bool_
        assert found.tolist() == wanted.bool().tolist()
