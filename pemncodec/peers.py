"""Processes that encode one network together, each some of its tensors."""

from __future__ import annotations

from typing import Any, Protocol


class Peers(Protocol):
    """What such a process knows of the others.

    Attributes:
        rank: which of them it is.
        count: how many there are.
    """

    rank: int
    count: int

    def gather(self, value: Any) -> list[Any]:
        """What all say at this point, in their order; each calls it as often as the others.

        Args:
            value: what this one says: text, numbers, lists and dictionaries.
        """
