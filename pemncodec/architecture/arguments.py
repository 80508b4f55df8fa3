"""What an argument of a layer may be, and its default (spec/pemn.md section 8.3).

Defaults are pinned here: an argument equal to its default is left out of the file, and a reader
passes every argument, so that a file does not depend on the defaults of a version of PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

INT_LIMIT: Final = 1 << 31
ELEMENT_LIMIT: Final = 1 << 50  # elements of one parameter; keeps PyTorch's byte counts in 64 bits
GROWTH_LIMIT: Final = 1 << 16  # a size that an output gets from the file instead of from inputs


class _Required:
    """Stands for the default of an argument that has none."""


REQUIRED: Final = _Required()


@dataclass(frozen=True, slots=True)
class Argument:
    """One constructor argument: what it accepts, and its pinned default.

    Attributes:
        default: value when the file gives none; `REQUIRED` when it must.
        integers: smallest and largest integer accepted.
        numbers: a finite real number is accepted.
        flag: a boolean is accepted.
        words: strings accepted.
        none: null is accepted.
        lengths: lengths of accepted arrays of what is accepted as one number.
        repeat: one number stands for an array of this many equal ones; 0 when it does not.
        sized: the number of elements of the parameters grows with this argument.
    """

    default: Any = REQUIRED
    integers: tuple[int, int] | None = None
    numbers: bool = False
    flag: bool = False
    words: tuple[str, ...] = ()
    none: bool = False
    lengths: tuple[int, ...] = ()
    repeat: int = 0
    sized: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether a JSON value is in the domain of this argument."""
        if isinstance(value, list):
            return len(value) in self.lengths and all(
                not isinstance(item, str) and self._accepts_one(item) for item in value
            )
        return self._accepts_one(value)

    def _accepts_one(self, value: Any) -> bool:
        if value is None:
            return self.none
        if isinstance(value, bool):
            return self.flag
        if isinstance(value, str):
            return value in self.words
        if isinstance(value, int):
            if self.integers is not None:
                return self.integers[0] <= value <= self.integers[1]
            return self.numbers and abs(value) <= INT_LIMIT
        return isinstance(value, float) and self.numbers and math.isfinite(value)

    def compact(self, value: Any) -> Any:
        """The one form in which a value is written: a number instead of `repeat` equal ones."""
        if isinstance(value, list) and len(value) == self.repeat and self.repeat > 0:
            first = value[0]
            if all(item == first for item in value):
                return first
        return value


def is_default(argument: Argument, value: Any) -> bool:
    """Whether `value` is the pinned default, types included (1 is not 1.0)."""
    return argument.default is not REQUIRED and repr(argument.default) == repr(value)


FLAG_ON = Argument(True, flag=True)
FLAG_OFF = Argument(False, flag=True)
