"""Code of the user that options name: it sees its own arguments, and its output stays apart."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pemncodec.errors import EncodeArgumentError, named_line

if TYPE_CHECKING:
    from torch import nn

_SHOWN: Final = 6  # names of a module


@contextlib.contextmanager
def user_code() -> Iterator[None]:
    """What is printed goes to standard error; `sys.argv` is put back in the end."""
    argv = sys.argv
    sys.stdout.flush()
    try:
        # Also what other programs and C libraries write to file descriptor 1.
        with contextlib.redirect_stdout(sys.stderr), _descriptor_to_stderr():
            yield
    finally:
        sys.argv = argv


@contextlib.contextmanager
def _descriptor_to_stderr() -> Iterator[None]:
    try:
        stdout = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        yield
        return
    own = sys.__stdout__
    try:
        yield
    finally:
        # What is still in buffers belongs to standard error, too.
        if own is not None:
            own.flush()
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)


@contextlib.contextmanager
def one_error(what: str) -> Iterator[None]:
    """Whatever the user's code raises, in one line.

    Raises:
        EncodeArgumentError: names `what`.
    """
    with no_exit(what):
        try:
            yield
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise EncodeArgumentError(f"{what}: {named_line(error)}") from error


@contextlib.contextmanager
def no_exit(what: str) -> Iterator[None]:
    """The user's code does not end the process.

    Raises:
        EncodeArgumentError: it wanted to; names `what`.
    """
    error_method = argparse.ArgumentParser.error
    # Else argparse prints how to use that code before it ends the process.
    argparse.ArgumentParser.error = _usage_error  # type: ignore[method-assign,assignment]
    try:
        yield
    except SystemExit as error:
        said = error.code if isinstance(error.code, str) else f"it ended with status {error.code}"
        cause = said.strip().partition("\n")[0]
        hint = " (--arch-argv gives it options)" if what.startswith("--arch") else ""
        raise EncodeArgumentError(f"{what}: {cause}{hint}") from error
    finally:
        argparse.ArgumentParser.error = error_method  # type: ignore[method-assign]


def _usage_error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    raise SystemExit(f"{parser.prog}: {message}")


def load_object(place: str, option: str, argv: Sequence[str] = ()) -> Any:
    """What `pkg.module:name` or `path/to/file.py:name` names.

    Args:
        place: as the user gave it.
        option: that gave it, for messages.
        argv: what that code finds in `sys.argv` behind the name of its file.

    Raises:
        EncodeArgumentError: it cannot be imported, or has no such name.
    """
    name, _, attribute = place.rpartition(":")
    if not name:
        raise EncodeArgumentError(f"{option} {place}: expected module:name")
    with one_error(f"{option} {place}"):
        module = _imported(name, argv)
        if hasattr(module, attribute):
            return getattr(module, attribute)
    there = [
        own
        for own, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not own.startswith("_")
    ]
    listed = f"; it has {', '.join(there[:_SHOWN])}{', …' * (len(there) > _SHOWN)}" if there else ""
    raise EncodeArgumentError(f"{option} {place}: there is no {attribute} in {name}{listed}")


def _imported(name: str, argv: Sequence[str]) -> ModuleType:
    sys.argv = [name, *argv]
    if not name.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        spec = importlib.util.find_spec(name)
        sys.argv = [(spec and spec.origin) or name, *argv]
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None  # for every name that ends so
    assert spec.loader is not None
    sys.path.insert(0, str(Path(name).resolve().parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(module.__name__, module)
    spec.loader.exec_module(module)
    return module


def load_architecture(arch: str, kwargs: dict[str, Any], argv: Sequence[str] = ()) -> nn.Module:
    """The module that the factory at `arch` makes; see `load_object`."""
    from torch import nn

    factory = load_object(arch, "--arch", argv)
    with one_error(f"--arch {arch} with {json.dumps(kwargs)}"):
        built = factory(**kwargs)
    if not isinstance(built, nn.Module):
        raise EncodeArgumentError(f"--arch {arch}: made a {type(built).__name__}, not a module")
    return built
