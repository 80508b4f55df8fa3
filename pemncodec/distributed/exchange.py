"""What processes that encode one network tell each other, also when one of them fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from pemncodec.errors import PemnError, named_line

_SAID: Final = "said"
_DONE: Final = "done"
_ABSENT: Final = "absent"
_FAILED: Final = "failed"


class PeerError(PemnError):
    """Another process has failed, and says of what itself."""


class Exchange:
    """Messages between processes, in rounds: in each of them every process sends one.

    A process that fails says so in the next round, in which then all stop.

    Attributes:
        rank: which process this is.
        count: how many there are.
        names: as `Peers` has them.
    """

    def __init__(
        self,
        rank: int,
        count: int,
        send: Callable[[Any], list[Any]],
        names: Sequence[str] = (),
    ) -> None:
        """Sends nothing yet.

        Args:
            rank: which process this is.
            count: how many there are.
            send: one round: from the message of this process to those of all, by rank.
            names: as `Peers` has them.
        """
        self.rank = rank
        self.count = count
        self.names = names
        self._send = send

    def knowing(self, names: Sequence[str]) -> Exchange:
        """The same with the names of all entries of the network, in order."""
        return Exchange(self.rank, self.count, self._send, names)

    def gather(self, value: Any) -> list[Any]:
        """What all say, but those that only attend; see `Peers`.

        Raises:
            PeerError: a process has failed.
        """
        return self._round(_SAID, value)

    def finish(self, value: Any) -> list[Any]:
        """The results of all, but those that only attend.

        Raises:
            PeerError: a process has failed.
        """
        return self._round(_DONE, value)

    def attend(self) -> list[Any]:
        """Takes part without a say until all others are done; their results.

        Raises:
            PeerError: a process has failed.
        """
        while True:
            messages = self._messages(_ABSENT, None)
            if any(kind == _DONE for kind, _ in messages):
                return [value for kind, value in messages if kind == _DONE]

    def fail(self, error: BaseException) -> None:
        """Tells all others that this process has failed."""
        told = isinstance(error, PemnError | OSError)
        self._send((_FAILED, str(error) if told else named_line(error)))

    def _round(self, kind: str, value: Any) -> list[Any]:
        return [said for own, said in self._messages(kind, value) if own == kind]

    def _messages(self, kind: str, value: Any) -> list[tuple[str, Any]]:
        messages = self._send((kind, value))
        for rank, (own, said) in enumerate(messages):
            if own == _FAILED:
                raise PeerError(f"rank {rank}: {said}")
        return messages


@contextmanager
def telling(exchange: Exchange) -> Iterator[None]:
    """An error of this process in the block also ends the others; theirs is only passed on."""
    try:
        yield
    except PeerError:
        raise
    except Exception as error:
        exchange.fail(error)
        raise
