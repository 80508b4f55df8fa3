"""Tensors that processes hold in pieces, and their way to the process that encodes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from pemncodec.checkpoints.pieces import Cut, Piece, put_together
from pemncodec.errors import EncodeArgumentError

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor, and which processes hold which pieces of it.

    Attributes:
        dtype: of its values.
        shape: of the whole.
        holders: ranks by piece; those without values are left out.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    holders: Mapping[Box, Sequence[int]]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def box_of(item: WriteItem) -> Box:
    """The piece that an item of a plan is."""
    assert item.tensor_data is not None
    chunk = item.tensor_data.chunk
    return tuple(chunk.offsets), tuple(chunk.sizes)


def layout_of(plans: Sequence[Sequence[WriteItem]]) -> dict[str, Held]:
    """All tensors of a state by name, in the order of the first process that has them.

    Args:
        plans: what each process holds, by rank.

    Raises:
        EncodeArgumentError: something that is no tensor.
    """
    holders: dict[str, dict[Box, list[int]]] = {}
    kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for rank, items in enumerate(plans):
        for item in items:
            name = item.index.fqn
            if item.type == WriteItemType.BYTE_IO or item.tensor_data is None:
                raise EncodeArgumentError(
                    f"{name} is no tensor, and a .pemn file holds nothing else: leave it out of "
                    "the state"
                )
            data = item.tensor_data
            kinds.setdefault(name, (data.properties.dtype, tuple(data.size)))
            boxes = holders.setdefault(name, {})
            if math.prod(data.chunk.sizes) or not math.prod(data.size):
                boxes.setdefault(box_of(item), []).append(rank)
    return {name: Held(*kind, holders[name]) for name, kind in kinds.items()}


class Carrier:
    """Brings all pieces of a tensor to one process; all processes take part."""

    def __init__(self, group: dist.ProcessGroup | None, rank: int) -> None:
        """Sends nothing yet.

        Args:
            group: of the processes; None is the default one, or no group where there is but one.
            rank: of this process, in the group.
        """
        self._group = group
        self._rank = rank
        self._device = torch.device("cpu")
        if dist.is_initialized() and "cpu:" not in str(dist.get_backend_config(group)):
            self._device = torch.device("cuda", torch.cuda.current_device())

    def bring(
        self, name: str, held: Held, owner: int, own: Callable[[Box], Tensor]
    ) -> Tensor | None:
        """A whole tensor, for its owner; it may be what this process holds already.

        Args:
            name: of the tensor.
            held: by whom.
            owner: the process that is to have it.
            own: gives a piece that this process holds.

        Returns:
            None for all others.
        """
        pieces = []
        for box, holders in held.holders.items():
            source = owner if owner in holders else holders[owner % len(holders)]
            if self._rank == owner:
                local = source == owner
                read = partial(own, box) if local else partial(self._received, held, box, source)
                pieces.append(Piece(*box, read))
            elif self._rank == source:
                self._send(own(box), owner)
        if self._rank != owner:
            return None
        if len(pieces) == 1 and owner in next(iter(held.holders.values())):
            whole = pieces[0].read()
            if whole.device.type == "cpu" and whole.shape == held.shape:
                return whole
        return put_together({name: Cut(held.shape, pieces)})[name]

    def _send(self, tensor: Tensor, to: int) -> None:
        flat = tensor.to(self._device).contiguous().reshape(-1).view(torch.uint8)
        dist.send(flat, self._global(to), group=self._group)

    def _received(self, held: Held, box: Box, source: int) -> Tensor:
        count = math.prod(box[1]) * held.dtype.itemsize
        flat = torch.empty(count, dtype=torch.uint8, device=self._device)
        dist.recv(flat, self._global(source), group=self._group)
        return flat.cpu().view(held.dtype).reshape(box[1])

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)
