"""Processes that encode one network together, each some of its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Peers(Protocol):
    """What such a process knows of the others.

    Attributes:
        rank: which of them it is.
        count: how many there are.
        names: of all entries of the network, in order, once they are known.
    """

    rank: int
    count: int
    names: Sequence[str]

    def gather(self, value: Any) -> list[Any]:
        """What all say at this point, in their order; each calls it as often as the others.

        Args:
            value: what this one says: text, numbers, arrays, lists and dictionaries.
        """
