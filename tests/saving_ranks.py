"""Four processes that save sharded states as .pemn files, and what goes wrong; FOLDER gets them.

    python tests/saving_ranks.py FOLDER

The folder has state.pt: entries of a checkpoint with scores.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import RANKS, in_processes
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from pemncodec.distributed import PemnWriter

KEEP = {"l0.*": 0.5, "*": 0.3}


def network(state: dict[str, Tensor]) -> nn.Module:
    """A module with these parameters."""
    whole = nn.Module()
    once: dict[int, nn.Parameter] = {}
    for name, tensor in state.items():
        *path, own = name.split(".")
        module = whole
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        parameter = once.setdefault(id(tensor), nn.Parameter(tensor.clone()))
        module.register_parameter(own, parameter)
    return whole


def sharded(way: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a way of sharding has them on this rank; tied ones stay tied."""
    if way == "plain":
        return state
    line = init_device_mesh("cpu", (RANKS,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    if way == "fsdp":
        module = network({name: tensor for name, tensor in state.items() if tensor.dim()})
        fully_shard(module, mesh=line)
        return module.state_dict() | {name: t for name, t in state.items() if not t.dim()}
    mesh, of_matrix = {
        "rows": (line, [Shard(0)]),
        "columns": (line, [Shard(-1)]),
        "both": (square, [Shard(0), Shard(-1)]),
        "hybrid": (square, [Replicate(), Shard(0)]),
    }[way]
    once: dict[int, Tensor] = {}
    for tensor in state.values():
        if id(tensor) not in once:
            places = of_matrix if tensor.dim() else None
            once[id(tensor)] = distribute_tensor(tensor.clone(), mesh, places)
    return {name: once[id(tensor)] for name, tensor in state.items()}


def fails(state: dict[str, Any], target: Path, words: str, **options: Any) -> None:
    with pytest.raises(CheckpointException, match=words):
        dcp.save(state, storage_writer=PemnWriter(target, keep=KEEP, **options))


def by_process(state: dict[str, Any], writer: PemnWriter, group: dist.ProcessGroup) -> None:
    """Saves from a process beside each of a group."""
    dcp.async_save(
        state,
        storage_writer=writer,
        process_group=group,
        async_checkpointer_type=AsyncCheckpointerType.PROCESS,
    ).result()


def run(rank: int, folder: Path) -> None:
    state = torch.load(folder / "state.pt")
    for way in ("plain", "rows", "columns", "both", "hybrid", "fsdp"):
        writer = PemnWriter(folder / f"{way}.pemn", keep=KEEP, metadata={"way": way})
        dcp.save(sharded(way, state), storage_writer=writer)

    # What goes wrong ends all, and the group can be used afterwards.
    fails({**state, "step": 3}, folder / "object.pemn", "step is no tensor")
    damaged = {name: tensor.clone() for name, tensor in state.items()}
    damaged["l2.scores"][0, 0] = torch.nan
    fails(damaged, folder / "damaged.pemn", "l2.scores: the scores hold NaN")
    fails(state, folder / "nowhere" / "net.pemn", "nowhere")
    fails(state, folder / "other.pemn", "no tensor is called x", dense={"x*": "fp16"})

    rows = {"net": sharded("rows", state), "other": {"tensor": torch.ones(3)}}
    writer = PemnWriter(folder / "later.pemn", keep=KEEP, prefix="net.", threads=1)
    dcp.async_save(rows, storage_writer=writer).result()

    writer = PemnWriter(folder / "together.pemn", keep=0.4, rule="global-magnitude")
    dcp.save(sharded("rows", state), storage_writer=writer)

    # Two of the four.
    pair = dist.new_group([1, 3])
    if rank in (1, 3):
        writer = PemnWriter(keep=KEEP, process_group=pair)
        dcp.save(
            state, checkpoint_id=folder / "pair.pemn", storage_writer=writer, process_group=pair
        )
        by_process(state, PemnWriter(folder / "process.pemn", keep=KEEP, process_group=pair), pair)
        for target, words in (("nowhere/net.pemn", "nowhere"), ("net.pt", "must end in .pemn")):
            with pytest.raises(CheckpointException, match=words):
                by_process(state, PemnWriter(folder / target, keep=KEEP), pair)


if __name__ == "__main__":
    in_processes(Path(sys.argv[1]), lambda rank: run(rank, Path(sys.argv[1])))
