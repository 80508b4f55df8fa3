"""Keep ratios: how many weights of a layer its mask uses, constant or along a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from math import inf
from numbers import Real
from operator import index
from typing import Any


@dataclass(frozen=True, slots=True)
class KeepSchedule:
    """A keep ratio that falls (or rises) over training: polynomial, as in gradual pruning.

    At step t it is stop + (start − stop) · (1 − clamp((t − begin) / steps, 0, 1))^power.

    Attributes:
        start: keep ratio up to step `begin`, in (0, 1].
        stop: keep ratio from step `begin + steps` on, in (0, 1].
        steps: training steps from one to the other.
        begin: the step at which the change begins.
        power: 1 is linear, 3 is the cubic schedule of Zhu & Gupta (arXiv:1710.01878).
    """

    start: float
    stop: float
    steps: int
    begin: int = 0
    power: float = 3.0

    def __post_init__(self) -> None:
        for end in ("start", "stop"):
            object.__setattr__(self, end, check_keep(getattr(self, end)))
        # Plain numbers, since JSON knows no others.
        for count in ("steps", "begin"):
            object.__setattr__(self, count, index(getattr(self, count)))
        object.__setattr__(self, "power", float(self.power))
        if self.steps < 1 or self.begin < 0 or not 0 < self.power < inf:
            raise ValueError("a schedule needs steps ≥ 1, begin ≥ 0 and a finite power > 0")

    def at(self, step: int) -> float:
        """The keep ratio when `step` training steps are done."""
        left = 1 - min(max((step - self.begin) / self.steps, 0.0), 1.0)
        return float(self.stop + (self.start - self.stop) * left**self.power)


Keep = float | KeepSchedule


def keep_at(keep: Keep, step: int) -> float:
    """The keep ratio when `step` training steps are done."""
    return keep.at(step) if isinstance(keep, KeepSchedule) else keep


def dropped_count(count: int, ratio: float) -> int:
    """How many of `count` weights a keep ratio drops: int((1 − keep) · n), as the official code."""
    return int((1 - ratio) * count)


def keep_by_name(
    keep: Keep | Mapping[str, Keep], names: list[list[str]], *, part: bool = False
) -> list[Keep]:
    """The keep of each weight.

    Args:
        keep: one for all, or by pattern of the weight's name (`fnmatch`); the first that fits.
        names: of each weight; several where it is tied.
        part: whether there are other weights, which patterns may be for.

    Raises:
        ValueError: out of range, a weight that no pattern fits, or a pattern that fits none, or
            stands behind one that fits all that it does.
    """
    if not isinstance(keep, Mapping):
        return [check_keep(keep)] * len(names)
    found: list[Keep] = []
    for own in names:
        pattern = _first_fitting(keep, own)
        if pattern is None:
            raise ValueError(f'keep has nothing for {own[0]}: add it, or "*" for all others')
        found.append(check_keep(keep[pattern]))
    if not part:
        check_patterns(keep, names)
    return found


def check_patterns(keep: Mapping[str, Keep], names: list[list[str]]) -> None:
    """Raises ValueError for a pattern that fits no weight, or never comes to its turn."""
    used = {_first_fitting(keep, own) for own in names}
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for own in names for name in own):
            raise ValueError(f"keep: no masked weight is called {pattern}")
        wider = next(p for p in keep if p == pattern or fnmatchcase(pattern, p))
        if wider != pattern and pattern not in used:  # "*" for all others may have none
            raise ValueError(f"keep: {pattern} never applies behind {wider}: put it first")


def _first_fitting(keep: Mapping[str, Keep], own: list[str]) -> str | None:
    return next((p for p in keep if any(fnmatchcase(name, p) for name in own)), None)


def check_keep(keep: Any) -> Keep:
    """`keep` itself; raises ValueError unless a ratio is above 0 and at most 1."""
    if isinstance(keep, KeepSchedule):
        return keep
    if not (isinstance(keep, Real) and 0 < float(keep) <= 1):
        raise ValueError(f"a keep ratio must be above 0 and at most 1, not {keep!r}")
    return float(keep)


def keep_to_json(keep: Keep) -> Any:
    return asdict(keep) if isinstance(keep, KeepSchedule) else keep


def keep_from_json(value: Any) -> Keep:
    return KeepSchedule(**value) if isinstance(value, dict) else check_keep(value)
