"""What counts as scores and what is a tensor of the network; shares by name; ties at the cut."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from conftest import rule
from torch import Tensor, nn
from torch.nn.utils import prune

import pemncodec
from pemncodec import EncodeArgumentError, EncodeError, UnsupportedModelError
from pemncodec.checkpoints.dialects import read_masks
from pemncodec.masking import OneLayer, Stochastic, Threshold, TopK, mask_model

State = dict[str, Tensor]
FLOAT8 = [
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
]


def scored(prefix: str = "fc.", seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    weight, scores = torch.randn(2, 3, 4, generator=generator)
    return {f"{prefix}weight": weight, f"{prefix}scores": scores, f"{prefix}bias": torch.ones(3)}


def encoded(source: Any, **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    pemncodec.encode(source, stream, **options)
    return stream


class OwnNames(nn.Module):
    """A network with tensors that are named like those of dialects."""

    def __init__(self, *, beside: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.gain_orig = nn.Parameter(torch.full((3,), 2.0))
        self.register_buffer("scores", torch.arange(3.0))
        self.register_buffer("alone_mask", torch.ones(3))
        if beside:  # the name of scores, in the module that has the weight
            self.fc.register_buffer("scores", torch.arange(3.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x) * self.gain_orig + self.scores * self.alone_mask
        return x + self.fc.scores if "scores" in self.fc._buffers else x


# --------------------------------------------------------------------------- own names


@pytest.mark.parametrize("how", ["pemncodec", "prune", "masks"])
def test_tensors_that_are_only_named_like_a_dialects_own(how: str) -> None:
    torch.manual_seed(0)
    module, options = OwnNames(beside=False), {}
    if how == "pemncodec":
        mask_model(module, OneLayer(), keep=0.5)
    elif how == "prune":
        prune.l1_unstructured(module.fc, "weight", 0.5)
    else:
        options = {"masks": {"fc.weight": torch.eye(3, 4)}}
    x = torch.randn(2, 4)
    for source in (module, dict(module.state_dict())):
        as_tensors = encoded(source, manifest=False, **options)
        with pemncodec.open(as_tensors) as file:
            assert file.masked_keys() == ["fc.weight"]
            assert {"scores", "gain_orig", "alone_mask"} <= set(file.keys())
        if source is not module:
            options["architecture"] = OwnNames(beside=False)
        stream = encoded(source, example_inputs=x, **options)
        decoded = pemncodec.decode(stream)
        assert torch.equal(decoded.scores, module.scores)
        if how != "masks":
            assert torch.equal(decoded(x), module.eval()(x))


def test_a_buffer_beside_a_weight_is_no_scores_when_its_shape_is_another() -> None:
    module = nn.Sequential(OwnNames(beside=True))
    # A layer of torch.nn with a buffer of its own is no layer of torch.nn: tensors alone.
    stream = encoded(module, masks={"0.fc.weight": torch.eye(3, 4)}, manifest=False)
    state = pemncodec.load_state_dict(stream)
    assert list(state) == list(module.state_dict())
    assert torch.equal(state["0.fc.scores"], torch.arange(3.0))


def test_own_scores_beside_masks_from_scores() -> None:
    """With a keep ratio, what fits no weight is an error unless the network has that name."""
    own = {"pool.scores": torch.arange(3.0)}
    with pytest.raises(EncodeError, match=r"pool\.scores: there is no pool\.weight"):
        read_masks(scored() | own, keep=0.5)
    with pytest.raises(EncodeError, match=r"pool\.scores has shape \(3,\), pool\.weight itself"):
        read_masks(scored() | own | {"pool.weight": torch.ones(2)}, keep=0.5)
    read = read_masks(scored() | own, keep=0.5, own=["pool.scores", "fc.weight"])
    assert list(read.tensors) == ["fc.weight", "fc.bias", "pool.scores"]
    assert list(read.masks) == ["fc.weight"]


def test_an_architecture_tells_which_scores_are_its_own() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.register_buffer("scores", torch.arange(3.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * self.scores

    state = scored() | {"scores": torch.ones(3)}
    stream = encoded(state, keep=0.5, architecture=Pooled())
    assert pemncodec.load_state_dict(stream)["scores"].tolist() == [1, 1, 1]
    # The file knows its names, too: verify --against compares with the same reading.
    with pemncodec.open(stream) as file:
        read = read_masks(state, keep=0.5, own=file.keys())
    assert list(read.tensors) == ["fc.weight", "fc.bias", "scores"]


def test_an_original_without_its_mask_is_a_tensor() -> None:
    layer = nn.Linear(4, 3)
    prune.l1_unstructured(layer, "weight", 0.5)
    state = dict(layer.state_dict()) | {"norm.weight_orig": torch.ones(2), "b_orig": torch.ones(1)}
    read = read_masks(state)
    assert set(read.tensors) == {"weight", "bias", "norm.weight_orig", "b_orig"}
    assert list(read.masks) == ["weight"]
    lost = {name: tensor for name, tensor in state.items() if name != "weight_mask"}
    with pytest.raises(EncodeError, match="the checkpoint has weight_orig, the architecture"):
        encoded(
            {name: lost[name] for name in ("weight_orig", "bias")},
            masks={"bias": torch.ones(3)},
            architecture=nn.Linear(4, 3),
        )


class Gained(nn.Module):
    """With a parameter and what is called its mask, made without torch's pruning."""

    def __init__(self, *, buffer: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.gain_orig = nn.Parameter(torch.ones(3))
        if buffer:
            self.register_buffer("gain_mask", torch.ones(3))
        else:
            self.gain_mask = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.gain_orig * self.gain_mask


def test_a_pair_that_pruning_has_not_made() -> None:
    masks, x = {"fc.weight": torch.eye(3, 4)}, torch.randn(2, 4)
    module = Gained(buffer=False)
    decoded = pemncodec.decode(encoded(module, masks=masks, example_inputs=x))
    module.fc.weight.data *= torch.eye(3, 4)
    with torch.no_grad():
        assert torch.equal(decoded(x), module(x))
    with pytest.raises(UnsupportedModelError, match="gain_orig and gain_mask are called as if"):
        encoded(Gained(buffer=True), masks=masks, example_inputs=x)


# --------------------------------------------------------------------- masks instead of a share


def test_masks_for_all_weights_that_have_scores_need_no_share() -> None:
    state, mask = scored(), torch.eye(3, 4)
    stream = encoded(state, masks={"fc.weight": mask}, manifest=False)
    assert list(pemncodec.load_state_dict(stream)) == ["fc.weight", "fc.bias"]
    with pemncodec.open(stream) as file:
        assert np.array_equal(file.mask("fc.weight"), mask.bool().numpy())
    both = state | scored("head.")
    words = r"not the keep ratio and masks has nothing for head\.weight: give --keep"
    with pytest.raises(EncodeArgumentError, match=words):
        read_masks(both, masks={"fc.weight": mask})
    plain = {name.removeprefix("fc."): tensor for name, tensor in state.items()}
    encoded(plain, masks={"weight": mask}, architecture=nn.Linear(4, 3))


def test_a_module_with_scores_of_its_own_is_described_when_its_masks_are_given() -> None:
    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))
            self.scores = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight * self.scores)

    torch.manual_seed(0)
    module, mask, x = Scored(), torch.eye(3, 4), torch.randn(2, 4)
    decoded = pemncodec.decode(encoded(module, masks={"weight": mask}, example_inputs=x))
    assert torch.equal(decoded.scores, module.scores)
    with torch.no_grad():
        assert torch.equal(
            decoded(x), nn.functional.linear(x, mask * module.weight * module.scores)
        )
    with pytest.raises(EncodeArgumentError, match="computes its masks in code of its own"):
        encoded(module, keep=0.5, example_inputs=x)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (None, "the mask of w is None: leave out what has no mask"),
        ("half", "the mask of w is no tensor of 0 and 1 but str"),
        ([[1, 0], [1]], "the mask of w is no tensor of 0 and 1 but list"),
        ({}, "the mask of w is no tensor of 0 and 1 but dict"),
        (np.array([None, 1]), "the mask of w is no tensor of 0 and 1 but ndarray"),
    ],
)
def test_masks_that_are_none(mask: Any, words: str) -> None:
    with pytest.raises(EncodeArgumentError, match=words) as caught:
        encoded({"w": torch.ones(2)}, masks={"w": mask}, manifest=False)
    assert "\n" not in str(caught.value)


def test_masks_are_named_by_text() -> None:
    for source in ({"w": torch.ones(2)}, nn.Linear(2, 2)):
        with pytest.raises(EncodeArgumentError, match="masks must be named by text, not by 0"):
            encoded(source, masks={0: torch.ones(2)}, manifest=False)


# ------------------------------------------------------------------------------ shares by name


def test_shares_by_name() -> None:
    state = scored() | scored("head.", 1)
    for keep in ({"head.*": 0.75, "*": 0.25}, {"fc.weight": 0.25, "head.weight": np.float32(0.75)}):
        stream = encoded(state, keep=keep, manifest=False)
        with pemncodec.open(stream) as file:
            for name, share in (("fc", 0.25), ("head", 0.75)):
                expected = rule(state[f"{name}.scores"], share)
                assert np.array_equal(file.mask(f"{name}.weight"), expected.numpy())
    read = read_masks(state, keep={"head.*": 0.5}, masks={"fc.weight": torch.eye(3, 4)})
    assert [int(mask.sum()) for mask in read.masks.values()] == [6, 3]
    assert read.rules["head.weight"].endswith("keep is 0.5")


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"fc.weight": 0.5}, r'keep has nothing for head\.weight: add it, or "\*" for all others'),
        ({"fc.*": 0.5, "head.*": 0.5, "x": 0.5}, "no masked weight is called x"),
        ({"*": 0.0}, r"above 0 and at most 1, not 0\.0"),
        ({"*": float("nan")}, "above 0 and at most 1, not nan"),
        ({"*": "0.5"}, r"above 0 and at most 1, not '0\.5'"),
        ({"*": None}, "above 0 and at most 1, not None"),
        ({}, "keep has nothing for fc"),
        ({1: 0.5}, "keep must be named by patterns, not by 1"),
    ],
)
def test_shares_that_do_not_fit(keep: Any, words: str) -> None:
    with pytest.raises(EncodeArgumentError, match=words):
        read_masks(scored() | scored("head."), keep=keep)


def test_a_share_and_a_mask_for_one_weight_are_refused() -> None:
    for keep in (0.5, {"*": 0.5}, {"fc.weight": 0.5}):
        with pytest.raises(EncodeError, match=r"fc\.weight has two masks"):
            read_masks(scored(), keep=keep, masks={"fc.weight": torch.eye(3, 4)})


# ------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [*FLOAT8, torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_every_float(dtype: torch.dtype) -> None:
    state = scored()
    short = state["fc.scores"].to(dtype)
    read = read_masks(state | {"fc.scores": short}, keep=0.4)
    wide = short.to(torch.float64).numpy()
    assert np.array_equal(read.masks["fc.weight"], rule(torch.from_numpy(wide), 0.4).numpy())


@pytest.mark.parametrize("selection", [TopK(), TopK(by="score", scope="global"), Threshold(0.0),
                                       Stochastic()], ids=str)  # fmt: skip
def test_masked_models_in_float8(selection: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    state = mask_model(model, OneLayer(), seed=1, selection=selection).state_dict()
    short, wide = dict(state), dict(state)
    for name in state:
        if name.endswith(".scores"):
            short[name] = state[name].to(torch.float8_e4m3fn)
            wide[name] = short[name].float()
    ours, theirs = read_masks(short), read_masks(wide)
    assert all(np.array_equal(ours.masks[name], theirs.masks[name]) for name in theirs.masks)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (torch.ones(3, 4, dtype=torch.int64), "scores of dtype int64, expected floats"),
        (torch.ones(3, 4, dtype=torch.complex64), "scores of dtype complex64, expected floats"),
        (torch.ones(3, 4).to_sparse(), "expected a dense tensor"),
        (torch.ones(3, 4, device="meta"), "expected a dense tensor"),
        (torch.full((3, 4), torch.nan).to(torch.float8_e5m2), "hold NaN"),
    ],
)
def test_scores_that_cannot_be_ranked(scores: Tensor, words: str) -> None:
    with pytest.raises(EncodeError, match=rf"fc\.scores: .*{words}"):
        read_masks(scored() | {"fc.scores": scores}, keep=0.5)


# --------------------------------------------------------------------------------------- ties


@pytest.mark.parametrize(
    ("scores", "keep", "tied"),
    [
        ([1, 2, 3, 4], 0.5, 0),
        ([1, 2, 2, 4], 0.5, 2),
        ([1, -2, 2, 2], 0.5, 3),
        ([2, 2, 3, 3], 0.5, 0),  # equal, but not across the cut
        ([1, 1, 1, 1], 1.0, 0),
        ([1, 1, 1, 1], 0.25, 4),
        ([0, 0, 0, 2], 0.5, 3),
    ],
)
def test_ties_at_the_cut_are_counted(scores: list[float], keep: float, tied: int) -> None:
    state = {"w.weight": torch.ones(4), "w.scores": torch.tensor(scores, dtype=torch.bfloat16)}
    assert read_masks(state, keep=keep).ties == ({"w.weight": tied} if tied else {})
    report = pemncodec.encode(state, io.BytesIO(), keep=keep, manifest=False)
    assert len(report.notes) == bool(tied)
    for note in report.notes:
        assert note.startswith(f"{tied} scores are equal where the cut goes between them (most in")
        assert f" w.weight: {tied})" in note


def test_ties_of_masked_models_are_counted() -> None:
    torch.manual_seed(0)
    for selection in (TopK(), TopK(by="score"), TopK(scope="global")):
        masked = mask_model(
            nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(2)]),
            OneLayer(), keep=0.3, seed=1, selection=selection,
        )  # fmt: skip
        state = masked.state_dict()
        assert read_masks(state).ties == {}
        short = {n: t.bfloat16() if n.endswith("scores") else t for n, t in state.items()}
        read = read_masks(short)
        ranked = {
            name: selection.ranked(
                short[name.replace("weight", "parametrizations.weight.0.scores")]
            )
            for name in read.masks
        }
        groups = [list(ranked)] if selection.scope == "global" else [[name] for name in ranked]
        for names in groups:
            kept = torch.cat([ranked[n][torch.from_numpy(read.masks[n])] for n in names])
            gone = torch.cat([ranked[n][~torch.from_numpy(read.masks[n])] for n in names])
            tied = kept.min() == gone.max()
            for name in names:
                expected = int((ranked[name] == kept.min()).sum()) if tied else 0
                assert read.ties.get(name, 0) == expected
        assert read.ties
    no_cut = mask_model(nn.Linear(8, 8), OneLayer(), seed=1, selection=Threshold(0.0))
    zeros = {n: t * 0 if n.endswith("scores") else t for n, t in no_cut.state_dict().items()}
    assert read_masks(zeros).ties == {}
