"""Four processes that load shards of a file by torch.distributed.checkpoint, and compare them.

    python tests/ranks.py FILE STATE FOLDER RANKS WAY…

STATE is what `load_state_dict` gives, saved by torch. Each rank writes what it decoded of masks, in
weights, for each way of sharding: FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from pemncodec import kernels
from pemncodec.distributed import PemnReader

RANKS = 4
RANS = ("rans_decode", "rans_decode_first")


class Counted:
    """Weights whose masks some kernels decode, as long as this is entered."""

    def __init__(self, names: Sequence[str], weights_an_item: int) -> None:
        self.weights = 0
        self._weights_an_item = weights_an_item
        self._kernels = {name: getattr(kernels, name) for name in names}

    def _count(self, decode: Callable[..., None], *arguments: Any) -> None:
        self.weights += self._weights_an_item * arguments[-1].size
        decode(*arguments)

    def __enter__(self) -> Counted:
        for name, decode in self._kernels.items():
            setattr(kernels, name, partial(self._count, decode))
        return self

    def __exit__(self, *_: object) -> None:
        for name, decode in self._kernels.items():
            setattr(kernels, name, decode)


def check(loaded: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Every bit of this rank's shards."""
    for name, tensor in loaded.items():
        expected = state[name]
        if isinstance(tensor, DTensor) and tensor.dim():
            shape, offset = compute_local_shape_and_global_offset(
                tensor.shape, tensor.device_mesh, tensor.placements
            )
            own = tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))
            expected = expected[own]
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        assert torch.equal(tensor.view(torch.int32), expected.contiguous().view(torch.int32)), name


class Layers(nn.Module):
    """A module whose state dict has the tensors' names."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            self.register_parameter(name, nn.Parameter(torch.zeros_like(tensor)))


def sharded(way: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Zeros in the shapes of a state, as a way of sharding has them on this rank."""
    if way == "plain":
        return {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    line = init_device_mesh("cpu", (dist.get_world_size(),))
    if way == "fsdp":
        module = Layers({name: tensor for name, tensor in state.items() if tensor.dim()})
        fully_shard(module, mesh=line)
        return module.state_dict()
    if way == "both":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
        of_matrix: list[Placement] = [Shard(0), Shard(-1)]
    else:
        mesh = line
        of_matrix = [{"rows": Shard(0), "columns": Shard(-1), "replicated": Replicate()}[way]]
    return {
        name: distribute_tensor(torch.zeros_like(t), mesh, of_matrix if t.dim() else None)
        for name, t in state.items()
    }


def load(way: str, source: str, state: dict[str, Tensor]) -> dict[str, int]:
    """The weights that this rank decodes, by coder."""
    tensors = sharded(way, state)
    with Counted(RANS, 8) as rans, Counted(["mixing_decode"], 1) as mixing:
        dcp.load(tensors, storage_reader=PemnReader(source))
    check(tensors, state)
    return {"rans": rans.weights, "mixing": mixing.weights}


def in_processes(folder: Path, run: Callable[[int], None], ranks: int = RANKS) -> NoReturn:
    """Runs a function in the processes of one group, and ends with status 0 if all do."""
    children = []
    for rank in range(ranks):  # what is imported is imported once
        child = os.fork()
        if not child:
            status = 1
            try:
                os.environ["GLOO_SOCKET_IFNAME"] = "lo"
                where = f"file://{folder / 'rendezvous'}"
                dist.init_process_group("gloo", init_method=where, rank=rank, world_size=ranks)
                run(rank)
                dist.destroy_process_group()
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    raise SystemExit(any(statuses))


def main(source: str, state_file: str, folder: str, ranks: str, *ways: str) -> None:
    state = torch.load(state_file)

    def run(rank: int) -> None:
        results = {way: load(way, source, state) for way in ways}
        Path(folder, f"{rank}.json").write_text(json.dumps(results))

    in_processes(Path(folder), run, int(ranks))


if __name__ == "__main__":
    main(*sys.argv[1:])
