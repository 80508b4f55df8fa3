"""Several processes that make the files of one model."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

import pemncodec
from pemncodec.distributed import PemnWriter
from pemncodec.format.index import decode_index
from pemncodec.limits import Limits

# Which torch says of a process that is in no group.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

KEEP = {"l0.*": 0.5, "*": 0.3}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for number in range(6):
        shape = (61 + number, 37)
        state[f"l{number}.bias"] = torch.randn(5, generator=generator)
        state[f"l{number}.weight"] = torch.randn(shape, generator=generator)
        state[f"l{number}.scores"] = torch.randn(shape, generator=generator)
    state["norm.weight"] = torch.randn(3, generator=generator).to(torch.bfloat16)
    state["head.weight"], state["head.scores"] = state["l1.weight"], state["l1.scores"]
    state["scalar"] = torch.tensor(2.5)
    return state


def encoded(state: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """What one process makes of it."""
    stream = io.BytesIO()
    pemncodec.encode(state, stream, manifest=False, **(options or {"keep": KEEP}))
    return pemncodec.load_state_dict(stream.getvalue())


def assert_holds(target: Path, expected: dict[str, Tensor], shards: int) -> None:
    """A model in so many files; each of them can be opened alone."""
    index = decode_index(target.with_suffix(".pemn.index.json").read_bytes(), Limits())
    names = [f"{target.stem}-{n:05}-of-{shards:05}.pemn" for n in range(1, shards + 1)]
    assert list(index.shards) == names
    assert list(index.weight_map) == list(expected)
    found: dict[str, Tensor] = {}
    for name, shard in index.shards.items():
        data = (target.parent / name).read_bytes()
        assert len(data) == shard.size
        own = pemncodec.load_state_dict(data)
        assert set(own) == {tensor for tensor, file in index.weight_map.items() if file == name}
        found |= own
    whole = pemncodec.load_state_dict(target.with_suffix(".pemn.index.json"))
    assert list(whole) == list(expected)
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
def test_four_ranks(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "state.pt")
    result = subprocess.run(
        [sys.executable, Path(__file__).parent / "saving_ranks.py", tmp_path],
        check=False,
        capture_output=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr.decode()
    expected = encoded(state)
    for way in ("plain", "rows", "columns", "both", "hybrid", "fsdp", "later"):
        assert_holds(tmp_path / f"{way}.pemn", expected, 4)
    assert_holds(tmp_path / "pair.pemn", expected, 2)
    assert_holds(tmp_path / "process.pemn", expected, 2)
    together = encoded(state, keep=0.4, rule="global-magnitude")
    assert_holds(tmp_path / "together.pemn", together, 4)
    with pemncodec.open(tmp_path / "rows-00002-of-00004.pemn") as file:
        assert file.metadata == {"way": "rows"}
    # A tied tensor is one, in the shard of its first name.
    index = decode_index((tmp_path / "rows.pemn.index.json").read_bytes(), Limits())
    with pemncodec.open(tmp_path / index.weight_map["head.weight"]) as shard:
        kinds = {tensor.name: tensor.kind for tensor in shard.info().tensors}
    assert kinds["head.weight"] == "alias"
    left = {path.name.partition("-")[0].partition(".")[0] for path in tmp_path.glob("*pemn*")}
    ways = {"plain", "rows", "columns", "both", "hybrid", "fsdp", "later", "pair"}
    assert left == ways | {"process", "together"}


class TestOneProcess:
    def test_one_file(self, state: dict[str, Tensor], tmp_path: Path) -> None:
        target = tmp_path / "net.pemn"
        writer = PemnWriter(target, keep=KEEP, prefix="model.")
        dcp.save({"model": state, "other": torch.ones(2)}, storage_writer=writer)
        assert [path.name for path in tmp_path.iterdir()] == ["net.pemn"]
        found, expected = pemncodec.load_state_dict(target), encoded(state)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"rule": "bernoulli=3"}, "draws for one layer after the other"),
            ({"rule": "global"}, "there is no 'global', have magnitude"),
            ({"find_seed": "full"}, "looks at the whole network"),
            ({"preset": "best"}, "unknown preset"),
        ],
    )
    def test_options(self, options: dict[str, object], words: str) -> None:
        with pytest.raises(pemncodec.EncodeArgumentError, match=words):
            PemnWriter("net.pemn", **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("target", "words"),
        [
            (None, r"no file: give PemnWriter\(…\)"),
            ("net.pt", "net.pt must end in .pemn"),
            ("memory://net.pemn", "a folder that all processes share"),
            ("nowhere/net.pemn", "nowhere"),
        ],
    )
    def test_targets(self, state: dict[str, Tensor], target: str | None, words: str) -> None:
        with pytest.raises(CheckpointException, match=words):
            dcp.save(state, storage_writer=PemnWriter(target, keep=KEEP))

    def test_masks_are_for_weights_that_are_there(
        self, state: dict[str, Tensor], tmp_path: Path
    ) -> None:
        weights = {name: tensor for name, tensor in state.items() if "scores" not in name}
        masks = {"l0": state["l0.scores"] > 0, "l3.weight": state["l3.scores"] > 0}
        dcp.save(weights, storage_writer=PemnWriter(tmp_path / "net.pemn", masks=masks))
        found = pemncodec.load_state_dict(tmp_path / "net.pemn")
        for name in ("l0.weight", "l3.weight"):
            assert torch.equal(found[name] != 0, state[name.replace("weight", "scores")] > 0)
        writer = PemnWriter(tmp_path / "other.pemn", masks={**masks, "x.weight": masks["l0"]})
        with pytest.raises(CheckpointException, match=r"there is no tensor x\.weight"):
            dcp.save(weights, storage_writer=writer)


def run_ranks(runs: list[dict[str, Any]]) -> list[list[tuple[int, str]]]:
    """What each rank of each run ended with, and said."""
    result = subprocess.run(
        [sys.executable, Path(__file__).parent / "encoding_ranks.py"],
        check=False,
        capture_output=True,
        input=json.dumps(runs).encode(),
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr.decode()
    return json.loads(result.stdout)


def files_of(folder: Path, name: str) -> dict[str, bytes]:
    """All that is there of a model, without its name."""
    return {
        path.name.replace(name, ""): path.read_bytes()
        for path in folder.glob(f"*{name}*")
        if path.is_file()
    }


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
def test_encode(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": state, "epoch": 3}, tmp_path / "net.pt")
    dcp.save({"model": state, "epoch": 3}, checkpoint_id=tmp_path / "folder")
    torch.save({**state, "l1.bias": state["l1.bias"] + 1}, tmp_path / "changed.pt")
    torch.save({"a.bias": torch.ones(3)}, tmp_path / "unmasked.pt")

    def run(ranks: int, source: str, output: str, *more: str, **killed: Any) -> dict[str, Any]:
        source, output = str(tmp_path / source), str(tmp_path / output)
        arguments = ["encode", source, "-o", output, "--threads", "1", *more]
        return {"ranks": ranks, "arguments": arguments} | killed

    keep = ("--keep", "l0.*=0.5,*=0.3")
    runs = {
        "whole": run(4, "net.pt", "whole.pemn", *keep),
        "folder": run(2, "folder", "folder.pemn", *keep),
        "small": run(2, "net.pt", "small.pemn", *keep, "--shard-size", "3KB"),
        "together": run(
            3, "net.pt", "together.pemn", "--keep", "0.4", "--rule", "global-magnitude"
        ),
        "one": run(2, "unmasked.pt", "one.pemn"),
        "keepless": run(3, "net.pt", "keepless.pemn"),
        "killed": run(4, "net.pt", "killed.pemn", *keep, killed=(2, "encode_contents")),
        "again": run(4, "net.pt", "killed.pemn", *keep),
        "fewer": run(2, "net.pt", "killed.pemn", *keep, "--resume"),
        "other": run(4, "net.pt", "killed.pemn", "--keep", "0.4", "--resume"),
        "resumed": run(4, "net.pt", "killed.pemn", *keep, "--resume"),
        "moving": run(4, "net.pt", "moving.pemn", *keep, killed=(0, "put_shards")),
        "moving fewer": run(2, "net.pt", "moving.pemn", *keep, "--resume"),
        "moving other": run(4, "net.pt", "moving.pemn", "--keep", "0.4", "--resume"),
        "moving others": run(4, "changed.pt", "moving.pemn", *keep, "--resume"),
        "moving faster": run(4, "net.pt", "moving.pemn", *keep, "--preset", "fast", "--resume"),
        "moved": run(4, "net.pt", "moving.pemn", *keep, "--resume"),
        "naming": run(4, "net.pt", "naming.pemn", *keep, killed=(0, "sync_folder")),
        "named": run(4, "net.pt", "naming.pemn", *keep, "--resume"),
        "exists": run(2, "net.pt", "whole.pemn", *keep),
    }
    found = dict(zip(runs, run_ranks(list(runs.values())), strict=True))
    ends = {name: [end for end, _ in ranks] for name, ranks in found.items()}
    said = {name: [text for _, text in ranks if text] for name, ranks in found.items()}

    expected = encoded(state)
    assert ends["whole"] == [0, 0, 0, 0]
    assert_holds(tmp_path / "whole.pemn", expected, 4)
    (summary,) = said["whole"]
    assert "whole-00003-of-00004.pemn" in summary
    assert "verified: every tensor bit for bit, by the process that encoded it" in summary
    masks = [line for line in summary.splitlines() if line.startswith("masks: ")]
    counted = [int(re.search(r"\((\d+) tensors?\)$", line)[1]) for line in masks]
    assert sum(counted) == sum(name.endswith(".scores") for name in state)
    assert len(masks) == len({line.rpartition(" (")[0] for line in masks})
    assert ends["folder"] == [0, 0]
    assert_holds(tmp_path / "folder.pemn", expected, 2)
    together = encoded(state, keep=0.4, rule="global-magnitude")
    assert_holds(tmp_path / "together.pemn", together, 3)
    shards = len(list(tmp_path.glob("small-*.pemn")))
    assert shards > 4
    assert_holds(tmp_path / "small.pemn", expected, shards)

    # An error is told once, by whoever has it first.
    assert all(ends["keepless"])
    (message,) = said["keepless"]
    assert message.startswith("pemn: the checkpoint holds scores but not the keep ratio")
    assert message.count("\n") == 1
    (message,) = said["one"]
    assert "no masks found" in message
    (message,) = said["exists"]
    assert message.startswith(f"pemn: {tmp_path / 'whole.pemn'}")

    # A rank that is killed ends the others, and leaves what is finished for --resume.
    assert sorted(ends["killed"]) == [-9, 1, 1, 1]
    assert said["killed"] == [
        "pemn: a process has ended before all were done: --resume keeps finished shards\n"
    ]
    assert "by 4 processes was interrupted" in said["again"][0]
    assert "start as many" in said["fewer"][0]
    assert "was made of other tensors, or with other options" in said["other"][0]
    assert ".killed.*-of-4.pemn.partial or give -f" in said["other"][0]
    assert ends["resumed"] == [0, 0, 0, 0]
    assert "1 of 1 shards were there from an interrupted encoding" in said["resumed"][0]
    assert ends["moving"][0] == -9
    assert "start as many" in said["moving fewer"][0]
    assert "was made of other tensors, or with other options" in said["moving other"][0]
    assert "was made of other tensors, or with other options" in said["moving others"][0]
    assert "made with --preset default, not fast" in said["moving faster"][0]
    for name in ("fewer", "other", "others", "faster"):
        assert all(ends[f"moving {name}"])
    assert ends["moved"] == [0, 0, 0, 0]
    assert "1 of 1 shards were there from an interrupted encoding" in said["moved"][0]
    assert ends["naming"][0] == -9
    assert ends["named"] == [0, 0, 0, 0]
    whole = files_of(tmp_path, "whole")
    for name in ("killed", "moving", "naming"):
        files = files_of(tmp_path, name)
        assert files.keys() == whole.keys()
        for file in files:
            assert files[file].replace(name.encode(), b"whole") == whole[file]
    assert not list(tmp_path.glob(".*"))
