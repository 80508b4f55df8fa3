"""A file as a checkpoint of torch.distributed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from file_server import serving
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

import pemncodec
from pemncodec.distributed import PemnReader

# Which torch says of a process that is in no group.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ROWS, COLUMNS = 2400, 1000  # coded in three blocks
BLOCK = ROWS * COLUMNS // 3


@pytest.fixture(scope="module")
def file() -> bytes:
    """Masks in blocks, mixed, and one that its stored values need; trained and tied tensors."""
    generator = torch.Generator().manual_seed(0)
    seeded = torch.tensor(pemncodec.generator.generate("normal", 3, 0, 1000))
    rows, columns = torch.rand(400, 1, generator=generator), torch.rand(400, generator=generator)
    masks = {
        "blocks": torch.rand(ROWS, COLUMNS, generator=generator) < 0.3,
        "stored": torch.rand(300, 500, generator=generator) < 0.3,
        "mixed": torch.rand(400, 400, generator=generator) < rows * columns,
    }
    # At the ends of blocks, so that it shows whether they are decoded.
    masks["blocks"].view(-1)[[BLOCK - 1, BLOCK]] = True
    state = {
        "blocks": seeded.expand(ROWS, COLUMNS) * masks["blocks"],
        "stored": torch.randn(300, 500, generator=generator) * masks["stored"],
        "mixed": seeded.repeat(160).reshape(400, 400) * masks["mixed"],
        "scalar": torch.tensor(2.5),
        "bias": torch.randn(10, generator=generator),
    }
    state["tied"] = state["blocks"]
    stream = io.BytesIO()
    prototype = pemncodec.SeededPrototype("normal", seed=3, length=1000)
    info = pemncodec.encode(
        state, stream, masks=masks, manifest=False, prototypes=[prototype], preset="max"
    ).info
    coders = {tensor.name: (tensor.kind, tensor.coder) for tensor in info.tensors}
    assert coders["blocks"] == coders["stored"] == ("masked", "rans")
    assert coders["mixed"] == ("masked", "mixing")
    assert coders["tied"][0] == "alias"
    return stream.getvalue()


def needed(rows: range, columns: range = range(COLUMNS)) -> int:
    """Weights from the beginning of a block to the last of a part, in whole bytes of the mask."""
    first = rows.start * COLUMNS + columns.start
    last = (rows.stop - 1) * COLUMNS + columns.stop
    return -(-last // 8) * 8 - first // BLOCK * BLOCK


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
def test_four_ranks(file: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.pemn").write_bytes(file)
    torch.save(pemncodec.load_state_dict(file), tmp_path / "state.pt")
    ranks = Path(__file__).parent / "ranks.py"
    ways = ("plain", "replicated", "rows", "columns", "both", "fsdp")
    arguments = [tmp_path / "net.pemn", tmp_path / "state.pt", tmp_path, 4, *ways]
    result = subprocess.run(
        [sys.executable, ranks, *map(str, arguments)],
        check=False,
        capture_output=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr.decode()
    for rank in range(4):
        decoded = json.loads((tmp_path / f"{rank}.json").read_text())
        own = needed(range(rank * ROWS // 4, (rank + 1) * ROWS // 4))
        # A mask that stored values need, and a mixed one, are decoded as a whole, and once.
        stored, mixed = 300 * 500, 400 * 400
        for way in ("rows", "fsdp"):
            assert decoded[way] == {"rans": own + stored, "mixing": mixed}
        half = range(rank // 2 * ROWS // 2, (rank // 2 + 1) * ROWS // 2)
        columns = range(rank % 2 * COLUMNS // 2, (rank % 2 + 1) * COLUMNS // 2)
        assert decoded["both"] == {"rans": needed(half, columns) + stored, "mixing": mixed}
        columns = range(rank * COLUMNS // 4, (rank + 1) * COLUMNS // 4)
        own = needed(range(ROWS), columns)
        assert decoded["columns"] == {"rans": own + stored, "mixing": mixed}
        for way in ("plain", "replicated"):
            assert decoded[way] == {"rans": ROWS * COLUMNS + stored, "mixing": mixed}


@pytest.mark.parametrize(
    ("offsets", "lengths"),
    [
        ((BLOCK // COLUMNS, 0), (1, 1)),  # the first weight of a block, and the last
        ((BLOCK // COLUMNS - 1, COLUMNS - 1), (1, 1)),
        ((0, 5), (ROWS, 2)),
        ((3, 3), (0, 4)),
    ],
)
def test_parts_of_any_shape(
    file: bytes,
    monkeypatch: pytest.MonkeyPatch,
    offsets: tuple[int, ...],
    lengths: tuple[int, ...],
) -> None:
    expected = pemncodec.load_state_dict(file)["blocks"]
    # Memory may still hold what was decoded before.
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full(shape, 7, dtype))
    index = MetadataIndex("blocks")
    zeros = torch.Size([0, 0])
    item = ReadItem(
        LoadItemType.TENSOR, index, zeros, index, torch.Size(offsets), torch.Size(lengths)
    )
    state = {"blocks": torch.zeros(lengths)}
    planner = DefaultLoadPlanner()
    planner.set_up_planner(state)
    PemnReader(file).read_data(LoadPlan([item]), planner).wait()
    rows, columns = (slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))
    assert torch.equal(state["blocks"], expected[rows, columns])


def test_several_parts_of_a_block(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pemncodec.load_state_dict(file)["blocks"]
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full(shape, 7, dtype))
    index, state = MetadataIndex("blocks"), {"blocks": torch.zeros(3, COLUMNS)}
    rows = (700, 3, BLOCK // COLUMNS + 5)
    items = [
        ReadItem(LoadItemType.TENSOR, index, torch.Size([at, 0]), index, torch.Size([row, 0]),
                 torch.Size([1, COLUMNS]))
        for at, row in enumerate(rows)
    ]  # fmt: skip
    planner = DefaultLoadPlanner()
    planner.set_up_planner(state)
    PemnReader(file).read_data(LoadPlan(items), planner).wait()
    assert torch.equal(state["blocks"], expected[list(rows)])


def test_one_process_needs_no_group(file: bytes) -> None:
    expected = pemncodec.load_state_dict(file)
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    state["blocks"] = state["blocks"].to(torch.float64)
    dcp.load({"model": state}, storage_reader=PemnReader(file, prefix="model."))
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype))


def test_only_what_is_asked_for_is_fetched(file: bytes) -> None:
    state = {"mixed": torch.zeros(400, 400)}
    with serving() as server:
        server.files["/net.pemn"] = file
        dcp.load(state, storage_reader=PemnReader(server.url("/net.pemn")))
        assert server.sent < 1 << 18 < len(file)
    assert torch.equal(state["mixed"], pemncodec.load_state_dict(file)["mixed"])


def test_the_name_may_be_the_checkpoint_id(file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pemn"
    path.write_bytes(file)
    state = {"bias": torch.zeros(10)}
    dcp.load(state, checkpoint_id=path, storage_reader=PemnReader())
    assert torch.equal(state["bias"], pemncodec.load_state_dict(file)["bias"])
    assert PemnReader.validate_checkpoint_id(path)
    assert not PemnReader.validate_checkpoint_id(tmp_path)


def test_a_module_without_buffers_that_are_not_persistent() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("shift", torch.ones(4), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.shift

    module = Network()
    stream = io.BytesIO()
    masks = {"layer.weight": torch.eye(4) > 0}
    pemncodec.encode(module, stream, masks=masks, example_inputs=torch.randn(2, 4))
    names = PemnReader(stream.getvalue()).read_metadata().state_dict_metadata.keys()
    assert names == {"layer.weight", "layer.bias"}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"other": torch.zeros(3)}, "Missing key in checkpoint state_dict: other"),
        ({"bias": torch.zeros(3)}, "Size mismatch"),
        (
            {"bias": torch.zeros(10, dtype=torch.int64)},
            "bias is float32 in the file and int64 in the state",
        ),
    ],
)
def test_states_that_do_not_fit(file: bytes, state: dict[str, Tensor], words: str) -> None:
    with pytest.raises(CheckpointException, match=words):
        dcp.load(state, storage_reader=PemnReader(file))


def test_damage_and_a_missing_name(file: bytes) -> None:
    damaged = bytearray(file)
    damaged[-5] ^= 1
    expected = pemncodec.load_state_dict(file)
    with pytest.raises(CheckpointException, match="checksum does not match: bytes were damaged"):
        dcp.load(
            {name: torch.zeros_like(tensor) for name, tensor in expected.items()},
            storage_reader=PemnReader(bytes(damaged)),
        )
    with pytest.raises(pemncodec.DecodeArgumentError, match=r"no file: give PemnReader\(…\)"):
        PemnReader().read_metadata()


def test_a_path_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pemn"):
        PemnReader(tmp_path / "none.pemn")
