"""A network that several processes encode: who owns what, and what only all of them can tell."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pemncodec
from pemncodec.distributed.exchange import Exchange, PeerError
from pemncodec.distributed.ownership import owners
from pemncodec.distributed.part import in_order
from pemncodec.encoding import encode_with
from pemncodec.masking import MaxLayerPadding, TopK, mask_model
from pemncodec.masking.one_cut import Cut, cut_together
from pemncodec.options import EncodeOptions


class Threads:
    """Processes that are threads: one round of messages after the other."""

    def __init__(self, count: int) -> None:
        self._messages: list[Any] = [None] * count
        self._barrier = threading.Barrier(count, timeout=60)

    def exchange(self, rank: int) -> Exchange:
        def send(message: Any) -> list[Any]:
            self._messages[rank] = message
            self._barrier.wait()
            everything = list(self._messages)
            self._barrier.wait()
            return everything

        return Exchange(rank, len(self._messages), send)

    def run(self, work: Callable[[int, Exchange], Any]) -> list[Any]:
        """What each gives or raises."""
        results: list[Any] = list(self._messages)

        def run(rank: int) -> None:
            exchange = self.exchange(rank)
            try:
                results[rank] = work(rank, exchange)
            except PeerError as error:
                results[rank] = error
            except Exception as error:
                results[rank] = error
                exchange.fail(error)

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(results))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def encoded(parts: Sequence[Mapping[str, Tensor]], **options: Any) -> list[Any]:
    """The files of a network in parts, or what goes wrong; empty parts only attend."""
    names = sorted(name for part in parts for name in part)

    def work(rank: int, exchange: Exchange) -> Any:
        if not parts[rank]:
            exchange.attend()
            return None
        stream = io.BytesIO()
        peers = exchange.knowing(names)
        asked = EncodeOptions(manifest=False, peers=peers, **options)
        report = encode_with(asked, dict(parts[rank]), stream)
        exchange.finish(rank)
        return stream.getvalue(), report

    return Threads(len(parts)).run(work)


def assert_as_one(parts: Sequence[Mapping[str, Tensor]], **options: Any) -> None:
    """Parts give the tensors that one process gives for all of them, and say the same of ties."""
    whole = {name: tensor for part in parts for name, tensor in part.items()}
    stream = io.BytesIO()
    report = pemncodec.encode(
        {name: whole[name] for name in sorted(whole)}, stream, manifest=False, **options
    )
    expected = pemncodec.load_state_dict(stream.getvalue())
    found: dict[str, Tensor] = {}
    tied = 0
    for result in encoded(parts, **options):
        if result is not None:
            file, own = result
            found |= pemncodec.load_state_dict(file)
            tied += ties_in(own.notes)
            assert own.rules == report.rules
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert tied == ties_in(report.notes)


def ties_in(notes: Sequence[str]) -> int:
    said = [note.partition(" ")[0] for note in notes if "scores are equal where the cut" in note]
    return sum(int(number.replace(",", "")) for number in said)


def scored(*names: str, size: int = 20) -> dict[str, Tensor]:
    state = {}
    for name in names:
        generator = torch.Generator().manual_seed(len(name) + ord(name[0]))
        state[f"{name}.weight"] = torch.rand(size, size, generator=generator).exp()
        state[f"{name}.scores"] = torch.randn(size, size, generator=generator)
        state[f"{name}.bias"] = torch.randn(size, generator=generator)
    return state


class TestOwners:
    def test_what_belongs_together_has_one_owner(self) -> None:
        groups = [
            ["a.weight", "a.scores", "a.bias", "a_mask"],
            ["b.weight_orig", "b.weight_mask", "b.bias"],
            ["c.parametrizations.weight.original", "c.parametrizations.weight.0.scores", "c.bias"],
            ["d.weight", "d.mask_module.context_modules.0.mask_scores"],
            ["e.weight", "e.scores.0", "e.scores.1"],
            ["f.shape", "f.bitmask", "f.compressed"],
            ["g.in_proj_orig", "g.in_proj_mask"],
            ["weight", "mask"],
        ]
        names = [name for group in groups for name in group]
        # As many processes as there are tensors, so that whatever can part does.
        found = owners(dict.fromkeys(names, 8), len(names))
        for group in groups:
            assert len({found[name] for name in group}) == 1, group
        assert len(set(found.values())) == len(groups)

    def test_tensors_of_one_module_that_are_no_weight_may_part(self) -> None:
        found = owners({"weight0": 4, "weight1": 4, "m.first": 4, "m.second": 4}, 4)
        assert sorted(found.values()) == [0, 1, 2, 3]

    def test_tied_names_have_one_owner(self) -> None:
        sizes = {"in.weight": 8, "x.weight": 8, "out.weight": 8, "out.bias": 1, "y.weight": 8}
        found = owners(sizes, 4, [["in.weight", "out.weight"]])
        assert found["in.weight"] == found["out.weight"] == found["out.bias"]
        assert len(set(found.values())) == 3

    @given(st.lists(st.integers(0, 1 << 40), max_size=60), st.integers(1, 9))
    def test_balance(self, sizes: list[int], ranks: int) -> None:
        named = {f"layer{number}.weight": size for number, size in enumerate(sizes)}
        found = owners(named, ranks)
        assert list(found) == list(named)
        loads = [0] * ranks
        for name, rank in found.items():
            loads[rank] += named[name]
        assert max(loads) - min(loads) <= max(sizes, default=0)


class TestOrder:
    def test_parts_that_alternate(self) -> None:
        names = ["w0", "w1", "w2", "w3", "w4"]
        assert in_order([["w0", "w3"], ["w1", "w2", "w4"]], names) == names

    def test_names_that_the_masks_make(self) -> None:
        names = ["a.bias", "a.weight_orig", "a.weight_mask", "b.weight_orig", "b.weight_mask"]
        parts = [["b.weight"], ["a.bias", "a.weight"]]
        assert in_order(parts, names) == ["a.bias", "a.weight", "b.weight"]

    def test_the_order_of_a_part_is_kept(self) -> None:
        # As parametrizations stand behind the bias, and the weight that they are before it.
        names = ["a.bias", "a.parametrizations.weight.original", "b.weight"]
        parts = [["b.weight"], ["a.weight", "a.bias"]]
        assert in_order(parts, names) == ["a.weight", "a.bias", "b.weight"]


FEW = [0.0, -0.0, 1.0, -1.0, 1.0 + 2**-23, 2.0**-140, -(2.0**-149), math.inf, -math.inf, 3e38]


class TestCut:
    @given(
        st.lists(
            st.tuples(
                st.lists(st.sampled_from(FEW), max_size=6),
                st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
                st.integers(0, 2),
            ),
            max_size=6,
        ),
        st.floats(0, 1),
        st.booleans(),
    )
    def test_what_goes_is_what_a_stable_sort_has_first(
        self, layers: list[tuple[list[float], torch.dtype, int]], share: float, magnitude: bool
    ) -> None:
        named = {f"l{at}": torch.tensor(v, dtype=d) for at, (v, d, _) in enumerate(layers)}
        owner = {f"l{at}": rank for at, (_, _, rank) in enumerate(layers)}
        rank = torch.abs if magnitude else torch.clone
        ranks = {name: rank(tensor).double().numpy() for name, tensor in named.items()}

        def work(own: int, exchange: Exchange) -> Cut:
            return cut_together(
                {name: tensor for name, tensor in named.items() if owner[name] == own},
                rank,
                lambda count: int(share * count),
                exchange.knowing(list(named)),
            )

        cuts = Threads(3).run(work)
        values = np.concatenate([np.empty(0), *ranks.values()])
        gone = int(share * values.size)
        order = np.argsort(values, kind="stable")
        expected = np.ones(values.size, np.bool_)
        expected[order[:gone]] = False
        found = [cuts[owner[name]].mask(name, ranks[name]) for name in named]
        assert np.array_equal(np.concatenate([np.empty(0, np.bool_), *found]), expected)
        parted = 0 < gone < values.size and values[order[gone - 1]] == values[order[gone]]
        for name in named:
            tied = np.count_nonzero(ranks[name] == values[order[gone - 1]]) if parted else 0
            assert cuts[owner[name]].tied[name] == tied

    def test_many_values(self) -> None:
        values = torch.randn((1 << 20) + 77, generator=torch.Generator().manual_seed(0))
        for tensor in (values, values.double() * math.pi):
            cut = cut_together({"a": tensor}, torch.abs, lambda count: count // 3)
            assert cut.value == tensor.abs().sort().values[tensor.numel() // 3 - 1].numpy()


class TestTogether:
    def test_same_tensors_as_one_process(self) -> None:
        parts = [scored("a"), scored("b"), {}, {"c.bias": torch.ones(3)}]
        assert_as_one(parts, keep={"a.*": 0.3, "b.*": 0.6})

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({}, "holds scores but not the keep ratio"),
            ({"keep": {"*": 0.5, "d.*": 0.3}}, "keep: no masked weight is called d"),
            ({"keep": 0.5, "dense": {"d*": "fp16"}}, "dense: no tensor is called d"),
            ({"keep": 0.5, "masks_from": "zeros"}, "no tensor of two or more dimensions holds"),
            ({"keep": 0.5, "task": 1}, "--task (task=…) is for sets"),
            ({"keep": 0.5, "scores_name": "other"}, "no X.other has the shape"),
            ({"rule": "global-score"}, "--rule global-score ranks scores: give --keep"),
            ({"rule": "global-score", "keep": {"*": 0.5}}, "makes one cut for all weights: give"),
            ({"keep": 0.5, "seed": 77}, "no masked layer comes from seed 77"),
            (
                {"keep": 0.5, "prototypes": [pemncodec.SeededPrototype("normal", 5, 3)]},
                "no masked layer comes from",
            ),
        ],
    )
    def test_what_fits_nowhere(self, options: dict[str, Any], words: str) -> None:
        for result in encoded([scored("a"), {"c.bias": torch.ones(3)}, scored("b")], **options):
            assert isinstance(result, pemncodec.PemnError)
            assert words in str(result)

    @pytest.mark.parametrize(
        ("parts", "options", "words"),
        [
            ([{"a.weight": torch.ones(3, 3)}, {"b.bias": torch.ones(3)}], {}, "no masks found"),
            ([{"a.mask": torch.ones(3)}, {"b.bias": torch.ones(3)}], {"keep": 0.5}, "no scores to"),
            (
                [{"a.mask": torch.ones(3)}, {"b.bias": torch.ones(3)}],
                {"keep": 0.5, "rule": "global-score"},
                "no scores to",
            ),
        ],
    )
    def test_no_masks(
        self, parts: list[dict[str, Tensor]], options: dict[str, Any], words: str
    ) -> None:
        for result in encoded(parts, **options):
            assert isinstance(result, pemncodec.EncodeError)
            assert words in str(result)

    @pytest.mark.parametrize("rule", ["global-magnitude", "global-score", "biprop-global"])
    @pytest.mark.parametrize("keep", [0.37, 1e-20])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_one_cut(self, rule: str, keep: float, dtype: torch.dtype) -> None:
        if rule == "biprop-global" and keep < 0.1:
            return  # keeps no weights to use
        parts = [scored("a", "d"), scored("b", "e"), {}, {"c.bias": torch.ones(3)}, scored("f")]
        for part in parts:
            for name in part:
                if name.endswith("scores"):  # some of them equal, and of two dtypes
                    coarse = (part[name] * 4).round() / 4
                    part[name] = coarse.to(dtype) if name[0] < "e" else coarse
        assert_as_one(parts, rule=rule, keep=keep, find_seed="off")

    def test_layers_that_were_ranked_together_in_training(self) -> None:
        layers = [nn.Linear(20, 30), nn.Linear(30, 9), nn.Linear(9, 8), nn.Linear(8, 8)]
        model = mask_model(
            nn.Sequential(*layers[:3]),
            MaxLayerPadding(),
            keep={"0.*": 0.7, "*": 0.2},
            selection=TopK(scope="global"),
            seed=3,
        )
        other = mask_model(nn.Sequential(layers[3]), MaxLayerPadding(), seed=4)  # a cut of its own
        state = model.state_dict()
        state |= {f"other.{name}": tensor for name, tensor in other.state_dict().items()}
        for name, tensor in state.items():
            if name.endswith("scores"):
                state[name] = (tensor * 50).round() / 50
        parts = [{n: t for n, t in state.items() if n[0] in own} for own in ("02", "1", "", "o")]
        assert_as_one(parts, find_seed="off")
        for result in encoded([parts[0], parts[2], parts[3]]):
            assert isinstance(result, pemncodec.PemnError)
            assert "ranked among 942 weights (scope='global'), and 672 are here" in str(result)

    @pytest.mark.parametrize("together", [True, False])
    def test_one_cut_is_for_scores_of_one_kind(self, together: bool) -> None:
        first, second = scored("a"), scored("b")
        second["b.popup_scores"] = second.pop("b.scores")
        parts = [first | second, scored("c"), {}] if together else [first, second, {}]
        for result in encoded(parts, rule="global-score", keep=0.5):
            assert isinstance(result, pemncodec.PemnError)
            assert "are of several kinds, scores and popup_scores" in str(result)

    def test_scores_whose_meaning_depends_on_others(self) -> None:
        first, second = scored("a"), scored("b")
        second["b.scores"] = torch.cat([torch.ones(10, 20), torch.zeros(10, 20)])
        for result in encoded([first, second], keep=0.5):
            assert isinstance(result, pemncodec.EncodeError)
            assert "some scores are 0 and 1 alone, others are not" in str(result)

    def test_an_error_of_one_ends_all(self) -> None:
        parts = [scored("a"), scored("b"), {}]
        parts[1]["b.scores"][3, 3] = torch.nan
        first, second, third = encoded(parts, keep=0.5)
        assert str(second) == "b.scores: the scores hold NaN"
        for result in (first, third):
            assert isinstance(result, PeerError)
            assert str(result) == "rank 1: b.scores: the scores hold NaN"

    def test_a_seed_that_one_part_finds_serves_all(self) -> None:
        torch.manual_seed(4321)
        state = {"a.weight": torch.randn(300, 300), "b.weight": torch.randn(6, 6)}
        masks = {name: torch.rand(tensor.shape) < 0.7 for name, tensor in state.items()}
        parts = [{"b.weight": state["b.weight"]}, {"a.weight": state["a.weight"]}]
        results = encoded(
            [{n: t * masks[n] for n, t in part.items()} for part in parts], masks_from="zeros"
        )
        for _, report in results:
            assert not any("stored" in text for text in report.info.prototypes)
            assert any("torch seed 4321" in note for note in report.notes)

    def test_a_prototype_longer_than_a_part(self) -> None:
        model = mask_model(
            torch.nn.Sequential(torch.nn.Linear(30, 30), torch.nn.Linear(5, 4)),
            MaxLayerPadding(),
            seed=3,
        )
        state = model.state_dict()
        parts = [{n: t for n, t in state.items() if n.startswith(f"{at}.")} for at in "01"]
        for _, report in encoded(parts):
            assert "stored" not in " ".join(report.info.prototypes)

    def test_what_is_said_of_masks_and_seeds_is_of_all_parts(self) -> None:
        torch.manual_seed(7)
        state = {}
        for name in "abc":
            state[f"{name}.weight_orig"] = torch.nn.Linear(30, 40, bias=False).weight.detach()
            state[f"{name}.weight_mask"] = torch.rand(40, 30) < 0.5
        parts = [{n: t for n, t in state.items() if n[0] in names} for names in ("ab", "c", "")]
        for _, report in (each for each in encoded(parts) if each):
            (rule,) = report.rules
            assert rule.endswith(" (3 tensors)")
            assert report.notes == ("torch seed 7: 3,600 of 3,600 frozen weights",)
