"""A .pemn file as a checkpoint of torch.distributed: every rank decodes what its shards need."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from pemncodec.contents import CARRIERS, Array, numel
from pemncodec.errors import DecodeArgumentError
from pemncodec.format.header import MaskedRow
from pemncodec.format.index import INDEX_SUFFIX, SUFFIX
from pemncodec.format.reader import PemnFile, open_file
from pemncodec.format.sections import Source
from pemncodec.limits import Limits
from pemncodec.remote.urls import is_url
from pemncodec.saving import plain_names
from pemncodec.tensors import array_to_tensor, dtype_name
from pemncodec.threads import available_threads


class PemnReader(StorageReader):
    """Gives `torch.distributed.checkpoint.load` the tensors of a file, masks applied.

    Fills plain tensors and DTensors, sharded in whatever way. Of a mask that is stored in blocks a
    rank decodes the blocks that its shards of the tensor overlap, each once; every other mask once.
    """

    def __init__(
        self,
        source: Source | None = None,
        *,
        prefix: str = "",
        limits: Limits | None = None,
    ) -> None:
        """Opens nothing yet, but looks for a path.

        Args:
            source: as `pemncodec.open` takes it, the same for every rank; None takes the
                `checkpoint_id` of `load`.
            prefix: what names have in front in the state dict: "model." for one that is an entry
                "model" of what is loaded.
            limits: bounds on what the file may decode to.

        Raises:
            FileNotFoundError: there is no such path; `load` would tell that in other words.
        """
        if isinstance(source, str | os.PathLike) and not is_url(source):
            Path(source).stat()
        self._source = source
        self._prefix = prefix
        self._limits = limits

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Takes the file's name, where `load` is given it."""
        if checkpoint_id is not None:
            self._source = checkpoint_id

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether a name is that of a .pemn file, or of an index of several."""
        return os.fspath(checkpoint_id).endswith((SUFFIX, INDEX_SUFFIX))

    def read_metadata(self, *_args: Any, **_options: Any) -> Metadata:
        """Names, dtypes and shapes, from the front of the file.

        Raises:
            DecodeError: not a file that can be read.
            OSError: from the file system, or from the server.
        """
        with self._opened() as file:
            return Metadata(
                {
                    self._prefix + name: _metadata(file.dtype(name), file.shape(name))
                    for name in plain_names(file)
                }
            )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: every rank reads the file by itself."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Decodes tensor by tensor what the plan asks for.

        Raises:
            DecodeError: the file is damaged.
            OSError: from the file system, or from the server.
        """
        with self._opened() as file, ThreadPoolExecutor(available_threads()) as pool:
            # Tied tensors are one.
            items: dict[str, list[ReadItem]] = {}
            for item in plan.items:
                name = item.storage_index.fqn.removeprefix(self._prefix)
                items.setdefault(file.placed_row(name).name, []).append(item)
            file.expect(items)
            for name, wanted in items.items():
                tensor = array_to_tensor(_decoded(file, name, wanted, pool), file.dtype(name))
                for item in wanted:
                    target = planner.resolve_tensor(item).detach()
                    if target.is_floating_point() != tensor.is_floating_point():
                        raise DecodeArgumentError(
                            f"{self._prefix}{name} is {file.dtype(name)} in the file and "
                            f"{dtype_name(target)} in the state: give the state that dtype"
                        )
                    target.copy_(tensor[_slices(item)])
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _opened(self) -> PemnFile:
        if self._source is None:
            raise DecodeArgumentError("no file: give PemnReader(…) or load(checkpoint_id=…) one")
        return open_file(self._source, limits=self._limits)


def _metadata(dtype: str, shape: tuple[int, ...]) -> TensorStorageMetadata:
    size = torch.Size(shape)
    whole = ChunkStorageMetadata(torch.Size([0] * len(shape)), size)
    return TensorStorageMetadata(TensorProperties(getattr(torch, dtype)), size, [whole])


def _decoded(file: PemnFile, name: str, wanted: list[ReadItem], pool: ThreadPoolExecutor) -> Array:
    """A tensor's values, [*shape], of which those that are wanted are there."""
    row = file.placed_row(name)
    if not isinstance(row, MaskedRow):
        return file.tensor(name)
    # Not touched, and so no memory, where nothing is wanted.
    array = np.empty(numel(row.shape), CARRIERS[row.dtype])
    parts = [_bounds(item, row.shape) for item in wanted]
    for job in [pool.submit(job) for job in file.masked.part_jobs(row, parts, array)]:
        job.result()
    return array.reshape(row.shape)


def _slices(item: ReadItem) -> tuple[slice, ...]:
    return tuple(
        slice(start, start + length)
        for start, length in zip(item.storage_offsets, item.lengths, strict=True)
    )


def _bounds(item: ReadItem, shape: tuple[int, ...]) -> tuple[int, int]:
    """The first value that an item needs, and the one behind its last, in C order."""
    if 0 in item.lengths:
        return 0, 0
    first = last = 0
    for start, length, size in zip(item.storage_offsets, item.lengths, shape, strict=True):
        first, last = first * size + start, last * size + start + length - 1
    return first, last + 1
