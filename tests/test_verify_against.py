"""What `pemn verify --against` says of files that lose something, and of masks that differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Run, fails
from torch import nn

import pemncodec

OPTIONS = ("--keep", 0.5, "--no-manifest", "--find-seed", "off")
AGAINST = ("verify", "net.pemn", "--against", "scores.pt")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with scores.pt: two weights with scores, and trained tensors."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    state = {}
    for layer, size in (("0", 20), ("1", 30)):
        state[f"{layer}.weight"] = torch.randn(10, size)
        state[f"{layer}.scores"] = torch.randn(10, size)
    state |= {"1.bias": torch.randn(10), "2.weight": torch.randn(8, 10), "3.weight": torch.ones(8)}
    torch.save(state, "scores.pt")
    return tmp_path


def encoded(run: Run, *options: object, name: str = "net.pemn", source: str = "scores.pt") -> None:
    result = run("encode", source, "-o", name, *OPTIONS, *options)
    assert result.returncode == 0, result.stderr


def changed(name: str, number: float) -> None:
    state = torch.load("scores.pt")
    state[name].view(-1)[0] += number
    torch.save(state, "scores.pt")


@pytest.mark.parametrize(
    ("dense", "says"),
    [
        (["q8"], ", but 2 that are stored as q8,"),
        (["2.*=bf16"], ", but 1 that is stored as bf16,"),
        (["2.*=bf16", "1.*=q8"], ", but 2 that are stored as bf16 and q8,"),
        ([], ""),
    ],
)
def test_shortened_tensors_are_within_their_errors(run: Run, dense: list[str], says: str) -> None:
    encoded(run, *(f"--dense={mode}" for mode in dense))
    result = run(*AGAINST, "--keep", 0.5)
    assert result.returncode == 0, result.stderr
    end = f"{says} within the errors that the file records" if says else ""
    expected = f"net.pemn: valid, 5 tensors, every one bit for bit as in scores.pt{end}\n"
    assert result.stdout.decode() == expected


def test_shortened_tensors_in_json(run: Run) -> None:
    encoded(run, "--dense", "q8")
    told = json.loads(run(*AGAINST, "--keep", 0.5, "--json").stdout)
    assert told["shortened"] == {"1.bias": "q8", "2.weight": "q8"}


def test_a_shortened_file_against_an_exact_one(run: Run) -> None:
    encoded(run, "--dense", "q8")
    encoded(run, name="exact.pemn")
    result = run("verify", "net.pemn", "--against", "exact.pemn")
    assert b"2 that are stored as q8" in result.stdout, result.stderr
    # What is exact says of no errors.
    words = "exact.pemn: 2 of 5 tensors differ, first 1.bias"
    fails(run("verify", "exact.pemn", "--against", "net.pemn"), 1, words)


@pytest.mark.parametrize("number", [0.1, float("nan"), float("inf")])
def test_what_is_further_off_than_the_errors_differs(run: Run, number: float) -> None:
    encoded(run, "--dense", "q8")
    changed("2.weight", number)
    fails(run(*AGAINST, "--keep", 0.5), 1, "net.pemn: 2.weight differs\n")


def test_a_tensor_of_another_dtype_is_not_within_errors(run: Run) -> None:
    encoded(run, "--dense", "q8")
    state = torch.load("scores.pt")
    torch.save(state | {"2.weight": state["2.weight"].double()}, "scores.pt")
    fails(run(*AGAINST, "--keep", 0.5), 1, "2.weight differs\n")


def test_it_is_said_in_how_many_weights_masks_differ(run: Run) -> None:
    encoded(run)
    end = "differ in 50 of 500 weights: say as for encode how they are found (--keep, --rule, …)\n"
    words = f"net.pemn: 2 of 5 tensors differ, first 0.weight; masks {end}"
    fails(run(*AGAINST, "--keep", 0.4), 1, words)
    one = f"net.pemn: 1.weight differs; masks {end.replace('50 of', '30 of')}"
    fails(run(*AGAINST, "--keep", "0.*=0.5,*=0.4"), 1, one)


def test_shortened_tensors_do_not_count_where_masks_differ(run: Run) -> None:
    encoded(run, "--dense", "q8")
    words = "2 of 5 tensors differ, first 0.weight; masks differ in 50 of 500 weights"
    fails(run(*AGAINST, "--keep", 0.4), 1, words)


def test_values_behind_equal_masks(run: Run) -> None:
    encoded(run)
    state = torch.load("scores.pt")
    torch.save(state | {"0.weight": state["0.weight"] * 2}, "scores.pt")
    fails(run(*AGAINST, "--keep", 0.5), 1, "net.pemn: 0.weight differs; masks are equal\n")


class TestFoldedBatchNorms:
    @pytest.fixture(autouse=True)
    def folded(self) -> None:
        net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
        net[1].running_mean.copy_(torch.randn(5))
        weight = net[0].weight.detach()
        scores = torch.randn(5, 6)
        torch.save({**net.state_dict(), "0.scores": scores}, "scores.pt")
        kept = torch.zeros(30, dtype=torch.bool)
        kept[scores.abs().view(-1).argsort()[15:]] = True
        masks = {"0.weight": kept.view_as(weight)}
        pemncodec.encode(
            net.eval(), "net.pemn", masks=masks, fold_bn=True, find_seed="off",
            example_inputs=torch.randn(2, 6),
        )  # fmt: skip

    def test_they_cannot_be_compared(self, run: Run) -> None:
        words = "net.pemn: cannot be compared with scores.pt: batch norms are folded into other"
        fails(run(*AGAINST, "--keep", 0.5), 1, words)

    def test_masks_are_compared_all_the_same(self, run: Run) -> None:
        fails(run(*AGAINST, "--keep", 0.3), 1, "masks differ in 6 of 30 weights")

    def test_a_masked_weight_that_differs_is_told_first(self, run: Run) -> None:
        state = torch.load("scores.pt")
        torch.save(state | {"0.weight": state["0.weight"] * 2}, "scores.pt")
        fails(run(*AGAINST, "--keep", 0.5), 1, "first 0.weight; masks are equal")

    def test_another_folded_file_is_compared(self, run: Run) -> None:
        net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).eval()
        state = torch.load("scores.pt")
        del state["0.scores"]
        net.load_state_dict(state)
        with torch.no_grad():
            net[0].bias[0] += 1
        with pemncodec.open("net.pemn") as file:
            masks = {"0.weight": torch.from_numpy(file.mask("0.weight"))}
        options = {"masks": masks, "fold_bn": True, "find_seed": "off"}
        pemncodec.encode(net, "other.pemn", example_inputs=torch.randn(2, 6), **options)
        result = run("verify", "net.pemn", "--against", "other.pemn")
        fails(result, 1, "net.pemn: ", "differ")
        assert b"cannot be compared" not in result.stderr

    def test_a_file_equals_itself(self, run: Run) -> None:
        assert run("verify", "net.pemn", "--against", "net.pemn").returncode == 0
        assert run("decode", "net.pemn", "-o", "plain.pt").returncode == 0
        assert run("verify", "net.pemn", "--against", "plain.pt").returncode == 0


@pytest.mark.parametrize("keep", ["50%", "*=50%"])
def test_a_share_is_no_percentage(run: Run, keep: str) -> None:
    words = "'50%' is a percentage: give a share, such as 0.5"
    fails(run("encode", "scores.pt", "--keep", keep, "--no-manifest"), 2, "--keep", words)
