"""What `torch.save` wrote, loaded without any code of the file: unknown types become stand-ins.

A checkpoint has more than tensors beside its state dict: the options of a run, counters of NumPy,
objects of the user. None of it is needed, so none of their classes is imported.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

# How torch.load says that something else than a dict or a list is to be filled.
_WANTED = re.compile(r"Can only .* (lists|dict)\b.*<class '([^']+)'>")
_ARRAYS = ("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct")
_FIRST_PICKLES = 3  # before the object, in files without a zip archive: number, version, system


class Inert:
    """Stands for an object whose class is not imported; takes any arguments and state.

    Each class of the file gets a class of its own, with its name.

    Attributes:
        state: the object's attributes, where they are plain: a command line has its options there.
    """

    state: Mapping[str, Any] = {}

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


def full_name(kind: type) -> str:
    """The name of a type, with its module where it is not Python's own."""
    own = kind.__module__ == "builtins"
    name = kind.__qualname__ if own else f"{kind.__module__}.{kind.__qualname__}"
    return "numpy.ndarray" if name in _ARRAYS else name


def load_inert(path: Path) -> Any:
    """Tensors, and containers of them, as they are; anything else may be an `Inert`.

    Raises:
        Exception: of many classes, where torch.load refuses the file.
    """
    found = _globals(path)
    kinds: dict[str, type] = {}
    while True:
        stand_ins = [_stand_in(module, name, kinds) for module, name in sorted(found)]
        try:
            return _load_with(path, stand_ins)
        except pickle.UnpicklingError as error:
            # Dicts and lists of other classes become plain ones, which torch.load can fill.
            wanted = _WANTED.search(str(error))
            if wanted is None or wanted[2] in kinds:
                raise
            kinds[wanted[2]] = list if wanted[1] == "lists" else OrderedDict


def _load_with(path: Path, stand_ins: Sequence[Any]) -> Any:
    allowed = torch.serialization.get_safe_globals()
    try:
        # In place of what the caller allows, which is not needed either.
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(list(stand_ins))
        with path.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def _stand_in(module: str, name: str, kinds: Mapping[str, type]) -> type:
    made = kinds.get(f"{module}.{name}")
    members: dict[str, Any] = {"__module__": module, "__qualname__": name}
    if made is not None:
        members["__new__"] = lambda _, *__: made()
    return type(name, (Inert,), members)


def _globals(path: Path) -> set[tuple[str, str]]:
    """Module and name of what a file's pickle refers to; torch.load prefers those that it knows."""
    found: set[tuple[str, str]] = set()
    with path.open("rb") as stream:
        if zipfile.is_zipfile(stream):
            with zipfile.ZipFile(stream) as archive:
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(name) as entry:
                    _add_globals(entry, found)
            return found
        stream.seek(0)
        for _ in range(_FIRST_PICKLES + 1):
            _add_globals(stream, found)
    return found


def _add_globals(stream: IO[bytes], found: set[tuple[str, str]]) -> None:
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            # Written under the names of Python 2.
            if (module, name) in NAME_MAPPING:
                module, name = NAME_MAPPING[module, name]
            found.add((IMPORT_MAPPING.get(module, module), name))
