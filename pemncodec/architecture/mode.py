"""Whether code that runs asks a module for its mode: train or eval.

Code that never asks does in one mode what it does in the other, so that one run tells about both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

# There is one class to watch at: a second watch would end the first one early.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(slots=True)
class ModeWatch:
    """What was seen.

    Attributes:
        asked: whether the mode was read, or could have been read unseen.
    """

    asked: bool


@contextmanager
def watched_mode(root: nn.Module) -> Iterator[ModeWatch]:
    """Watch code that runs `root`.

    What other threads run meanwhile is watched, too; a watch in one of them waits for this one.
    """
    if not all(map(_is_visible, root.modules())):
        yield ModeWatch(asked=True)
        return
    watch = ModeWatch(asked=False)

    def read(module: nn.Module) -> bool:
        # Dropout asks even where it drops nothing.
        if not (type(module) is nn.Dropout and module.p == 0):
            watch.asked = True
        if "training" not in vars(module):  # modules of TorchScript keep it elsewhere
            raise AttributeError("training")
        mode: bool = vars(module)["training"]
        return mode

    def write(module: nn.Module, mode: bool) -> None:
        vars(module)["training"] = mode

    with _ONE_AT_A_TIME:
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
        and kind.__setattr__ is nn.Module.__setattr__
        and kind.__getattribute__ is nn.Module.__getattribute__
        and not {"train", "eval"} & vars(module).keys()
    )
