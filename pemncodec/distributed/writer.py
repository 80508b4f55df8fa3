"""A file, or several with an index, as what torch.distributed.checkpoint saves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from pemncodec.checkpoints.names import plain_names, tied_names
from pemncodec.checkpoints.parts import check_parts_suffice
from pemncodec.coders.masks import Preset
from pemncodec.contents import DenseMode, Seeded
from pemncodec.distributed.exchange import Exchange, telling
from pemncodec.distributed.layout import Box, Carrier, Held, box_of, layout_of
from pemncodec.distributed.ownership import owners
from pemncodec.distributed.part import Part, encode_part, prepare, publish
from pemncodec.distributed.ranks import Ranks
from pemncodec.errors import EncodeArgumentError
from pemncodec.masking.masked_state import StateDict
from pemncodec.options import EncodeOptions, FindSeed
from pemncodec.remote.urls import is_url


class PemnWriter(StorageWriter):
    """Encodes what `torch.distributed.checkpoint.save` is given, each process some of it.

    Each layer has one owner, which gets the pieces that others hold of it, tensor by tensor, and
    encodes it; as many bytes for each. `NAME.pemn` becomes a shard for each process and an index
    `NAME.pemn.index.json`; where one process has all of it, the one file. All processes write into
    the same folder. Before any file has its name, its process has decoded and compared it.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | None = None,
        *,
        masks: Mapping[str, Tensor] | None = None,
        masks_from: Literal["zeros"] | None = None,
        keep: float | Mapping[str, float] | None = None,
        rule: str | None = None,
        scores_name: str | None = None,
        task: int | None = None,
        prefix: str | None = None,
        prototypes: Sequence[Seeded] = (),
        find_seed: FindSeed = "auto",
        seed: int | None = None,
        preset: Preset = "default",
        threads: int | None = None,
        shard_size: int | str | None = None,
        dense: DenseMode | Mapping[str, DenseMode] = "lossless",
        metadata: Mapping[str, str] | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        """Takes the options of `pemncodec.encode` that need no architecture; writes nothing yet.

        Args:
            target: NAME.pemn; None takes the `checkpoint_id` of `save`.
            masks: see `pemncodec.encode`, as all that follow up to `metadata`; whole tensors.
            masks_from: …
            keep: …
            rule: … but for "bernoulli=SEED".
            scores_name: …
            task: …
            prefix: … such as "model." for a state that has the network as an entry "model".
            prototypes: …
            find_seed: … but for "full".
            seed: …
            preset: …
            threads: … of each process; None shares those of the machine.
            shard_size: … else a process writes one shard.
            dense: …
            metadata: …
            process_group: as `save` gets it.

        Raises:
            EncodeArgumentError: options that are out of range, or need the whole network.
        """
        self._target = target
        self._group = process_group
        self._options = EncodeOptions(
            masks=masks,
            masks_from=masks_from,
            keep=keep,
            rule=rule,
            scores_name=scores_name,
            task=task,
            prefix=prefix,
            manifest=False,
            prototypes=prototypes,
            find_seed=find_seed,
            seed=seed,
            preset=preset,
            threads=threads,
            shard_size=shard_size,
            dense=dense,
            metadata=metadata or {},
        )
        check_parts_suffice(self._options)
        self._items: dict[tuple[str, Box], WriteItem] = {}
        self._names: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        # What a process of `async_save` gets, whose own group has the same ranks.
        return self.__dict__ | {"_group": None}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Takes the file's name, where `save` is given it."""
        if checkpoint_id is not None:
            self._target = checkpoint_id

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether a name is that of a .pemn file."""
        return Path(os.fspath(checkpoint_id)).suffix == ".pemn"

    def set_up_storage_writer(
        self,
        is_coordinator: bool,  # noqa: ARG002 as all writers are called
        *args: Any,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Refuses what it cannot write to.

        Raises:
            EncodeArgumentError: says what to do.
            OSError: there is no such folder.
        """
        if not kwargs.get("use_collectives", True):
            raise EncodeArgumentError("PemnWriter needs collectives: leave out use_collectives")
        self._path()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """With all that this process holds, from which the planner then takes duplicates."""
        items = [item for item in plan.items if item.tensor_data is not None]
        self._items = {(item.index.fqn, box_of(item)): item for item in items}
        return replace(plan, storage_data=plan.items)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """With what all processes hold.

        Raises:
            EncodeArgumentError: something that is no tensor, or plans that a planner has cached.
        """
        if not all(getattr(plan, "usable", True) for plan in plans):
            raise EncodeArgumentError("PemnWriter needs whole plans: no enable_plan_caching")
        layout = layout_of([plan.storage_data for plan in plans])
        return [replace(plan, storage_data=layout) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Gets the tensors that this process owns, and encodes them.

        Raises:
            EncodeError: as `pemncodec.encode` raises it.
            PeerError: another process has failed.
            OSError: the shard cannot be written.
        """
        exchange = Exchange(self._rank(), self._size(), self._all_gather)
        prepare(self._path(), exchange, resume=False, force=True)
        with telling(exchange):
            part = self._part(plan.storage_data, planner, exchange)
        threads = self._options.threads or Ranks.from_environment().threads
        options = replace(self._options, prefix=None, threads=threads)
        written = encode_part(part, self._path(), options, exchange, lambda _, __: None)
        self._names = list(part.names)
        done: Future[list[WriteResult]] = Future()
        own = [each for each in written if each.rank == exchange.rank]
        done.set_result([WriteResult(MetadataIndex(str(each.rank)), 0, each) for each in own])
        return done

    def finish(
        self,
        metadata: Metadata,  # noqa: ARG002 which the files tell
        results: list[list[WriteResult]],
    ) -> None:
        """Gives all files their names.

        Raises:
            OSError: that fails.
        """
        written = [result.storage_data for own in results for result in own]
        publish(self._path(), self._names, written, self._size())

    def _path(self) -> Path:
        if self._target is None:
            raise EncodeArgumentError(
                "no file: give PemnWriter(…) or save(checkpoint_id=…) the name of one"
            )
        if is_url(self._target):
            raise EncodeArgumentError(
                "PemnWriter writes into a folder that all processes share, not to a URL"
            )
        path = Path(self._target).absolute()
        if path.suffix != ".pemn":
            raise EncodeArgumentError(f"{path.name} must end in .pemn")
        return path

    def _part(self, layout: Mapping[str, Held], planner: SavePlanner, exchange: Exchange) -> Part:
        """The tensors that this process owns, whole."""
        names = plain_names(list(layout), (), self._options.prefix)
        tied = _ties(exchange.gather(self._held_together(planner, names)))
        sizes = {new: layout[old].bytes for old, new in names.items()}
        first = {names[old]: names[one] for old, one in tied.items()}
        owner = owners(sizes, exchange.count, [[one, other] for other, one in first.items()])
        carrier = Carrier(self._group, exchange.rank)
        tensors: StateDict = {}
        for old, new in names.items():
            if new in first:
                if first[new] in tensors:
                    tensors[new] = tensors[first[new]]
                continue
            own = partial(self._own, planner, old)
            whole = carrier.bring(old, layout[old], owner[new], own)
            if whole is not None:
                tensors[new] = whole
        return Part(list(names.values()), tensors)

    def _own(self, planner: SavePlanner, name: str, box: Box) -> Tensor:
        tensor = planner.resolve_data(self._items[name, box])
        assert isinstance(tensor, Tensor)
        return tensor.detach()

    def _held_together(self, planner: SavePlanner, names: Mapping[str, str]) -> dict[str, str]:
        """By name of a tensor that this process holds the first of the same memory."""
        held = {
            name: self._own(planner, name, box)
            for name, box in self._items
            if name in names and 0 not in box[1]
        }
        return {name: others[0] for name, others in tied_names(held).items()}

    def _all_gather(self, message: Any) -> list[Any]:
        messages: list[Any] = [None] * self._size()
        if self._size() == 1:
            return [message]
        dist.all_gather_object(messages, message, group=self._group)
        return messages

    def _size(self) -> int:
        return dist.get_world_size(self._group) if dist.is_initialized() else 1

    def _rank(self) -> int:
        return dist.get_rank(self._group) if dist.is_initialized() else 0


def _ties(held: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Names of tensors to the first name of the same, where all processes that hold it agree."""
    found: dict[str, set[str]] = {}
    for own in held:
        for name, first in own.items():
            found.setdefault(name, set()).add(first)
    one = {name: firsts.pop() for name, firsts in found.items() if len(firsts) == 1}
    return {name: first for name, first in one.items() if name != first}
