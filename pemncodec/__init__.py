"""pemncodec: codec and file format for masked networks.

`encode`, `decode`, `unpack`, `load_state_dict` need torch, which is imported when they are first
used; `open` does not.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pemncodec import generator as generator
from pemncodec.contents import SeededPrototype, TorchPrototype
from pemncodec.errors import (
    CorruptError,
    DecodeArgumentError,
    DecodeError,
    EncodeArgumentError,
    EncodeError,
    ExportError,
    LimitError,
    ManifestError,
    NotPemnError,
    PemnError,
    PrototypeMismatchError,
    TruncatedError,
    UnsupportedModelError,
    UnsupportedVersionError,
)
from pemncodec.format.reader import PemnFile
from pemncodec.format.reader import open_file as open  # noqa: A004 a module's open, as gzip.open
from pemncodec.limits import Limits

if TYPE_CHECKING:
    from pemncodec.decoding import decode, load_state_dict
    from pemncodec.encoding import encode
    from pemncodec.packed.modules import unpack
    from pemncodec.proof import Report

__all__ = [
    "CorruptError",
    "DecodeArgumentError",
    "DecodeError",
    "EncodeArgumentError",
    "EncodeError",
    "ExportError",
    "LimitError",
    "Limits",
    "ManifestError",
    "NotPemnError",
    "PemnError",
    "PemnFile",
    "PrototypeMismatchError",
    "Report",
    "SeededPrototype",
    "TorchPrototype",
    "TruncatedError",
    "UnsupportedModelError",
    "UnsupportedVersionError",
    "__version__",
    "decode",
    "encode",
    "generator",
    "load_state_dict",
    "open",
    "unpack",
]
__version__ = "0.1.0"
# What the loggers below "pemncodec" say is shown by programs that ask for it, and by no others.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_NEEDS_TORCH = {
    "encode": "pemncodec.encoding",
    "Report": "pemncodec.proof",
    "decode": "pemncodec.decoding",
    "load_state_dict": "pemncodec.decoding",
    "unpack": "pemncodec.packed.modules",
}


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        from importlib import import_module

        return getattr(import_module(_NEEDS_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
