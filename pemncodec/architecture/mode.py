"""Whether code that runs asks a module for its mode: train or eval.

Code that never asks does in one mode what it does in the other, so that one run tells about both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn


@dataclass(slots=True)
class ModeWatch:
    """What was seen.

    Attributes:
        asked: whether the mode was read, or could have been read unseen.
    """

    asked: bool


@contextmanager
def watched_mode(root: nn.Module) -> Iterator[ModeWatch]:
    """Watch code that runs `root` in eval mode.

    Not for use by several threads at once: what others run meanwhile is watched, too.
    """
    watch = ModeWatch(asked=not all(map(_is_visible, root.modules())))

    def read(module: nn.Module) -> bool:
        # Dropout asks even where it drops nothing.
        if not (type(module) is nn.Dropout and module.p == 0):
            watch.asked = True
        mode: bool = vars(module)["training"]
        return mode

    def write(module: nn.Module, mode: bool) -> None:
        vars(module)["training"] = mode

    # A property of the class goes before the attribute that each module has.
    nn.Module.training = property(read, write)  # type: ignore[assignment]
    try:
        yield watch
    finally:
        del nn.Module.training


def _is_visible(module: nn.Module) -> bool:
    """Whether the mode is where `nn.Module` keeps it, and setting it does nothing else."""
    kind = type(module)
    own = [owner for owner in kind.__mro__ if owner is not nn.Module]
    return (
        "training" in vars(module)
        and not any("training" in vars(owner) for owner in own)
        and kind.train is nn.Module.train
        and kind.eval is nn.Module.eval
        and not {"train", "eval"} & vars(module).keys()
    )
