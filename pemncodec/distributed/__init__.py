"""Files of models that several processes hold: checkpoints of torch.distributed.

What a name stands for is imported when it is first used: processes that encode a checkpoint need
neither, and torch.distributed.checkpoint takes each of them half as long as torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pemncodec.distributed.reader import PemnReader
    from pemncodec.distributed.writer import PemnWriter

__all__ = ["PemnReader", "PemnWriter"]

_PLACES = {"PemnReader": "reader", "PemnWriter": "writer"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
