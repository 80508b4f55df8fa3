"""The processes that torchrun starts: which of them this one is, and how it talks to the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, Final

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from pemncodec.distributed.exchange import Exchange
from pemncodec.errors import PemnError
from pemncodec.threads import available_threads, given_threads

_LOST: Final = "a process has ended before all were done: --resume keeps finished shards"
# How long a process waits for one that works. One that ends is noticed at once.
_PATIENCE: Final = timedelta(days=30)
_MEETING: Final = timedelta(minutes=10)  # for all to start


class LostPeerError(PemnError):
    """Another process has ended without a word."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """What the environment says.

    Attributes:
        rank: of this process.
        count: of all.
        here: how many of them are on this machine.
    """

    rank: int
    count: int
    here: int

    @classmethod
    def from_environment(cls) -> Ranks:
        """As torchrun sets it; one process without."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        rank = int(os.environ.get("RANK", "0"))
        return cls(rank, count, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    @property
    def threads(self) -> int:
        """How many this process may use beside the others, unless the caller says."""
        return given_threads() or max(1, available_threads() // self.here)

    @contextmanager
    def exchange(self) -> Iterator[Exchange]:
        """Messages between the processes, in a group that they form.

        What is sent raises `LostPeerError` where a process has ended.
        """
        if self.count == 1:
            yield Exchange(0, 1, lambda message: [message])
            return
        with _noticed():
            store = PrefixStore("exchange", _store())
            store.set(f"here {self.rank}", "")
            store.wait([f"here {rank}" for rank in range(self.count)], _MEETING)
            dist.init_process_group(
                "gloo", store=store, rank=self.rank, world_size=self.count, timeout=_PATIENCE
            )

        def send(message: Any) -> list[Any]:
            messages: list[Any] = [None] * self.count
            with _noticed():
                dist.all_gather_object(messages, message)
            return messages

        try:
            yield Exchange(self.rank, self.count, send)
        finally:
            dist.destroy_process_group()

    def is_first_to_fail(self) -> bool:
        """Whether no other process has asked this before; so that one tells what went wrong."""
        if self.count == 1:
            return True
        try:
            return bool(_store().add("failed", 1) == 1)
        except RuntimeError:  # what kept it has ended
            return True


@contextmanager
def _noticed() -> Iterator[None]:
    """The end of another process, which breaks connections."""
    try:
        yield
    except RuntimeError:
        raise LostPeerError(_LOST) from None


@cache
def _store() -> Store:
    """What the processes share before they are a group; torchrun says where it is."""
    store, *_ = next(rendezvous("env://", timeout=_MEETING))
    return PrefixStore("pemncodec", store)
