"""A mapping whose values are made each time they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LazyMapping(Mapping[str, Value], Generic[Value]):
    """Values by name, of which none is kept."""

    def __init__(self, names: Collection[str], make: Callable[[str], Value]) -> None:
        """Makes nothing yet.

        Args:
            names: in order, each once.
            make: from a name to its value.
        """
        self._names = dict.fromkeys(names)
        self._make = make

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Value:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)
