"""pemncodec: codec and file format for masked networks.

What a name stands for is imported when it is first used: NumPy takes a moment, and torch, which
`encode`, `decode`, `unpack` and `load_state_dict` need, takes longer.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pemncodec import generator as generator
    from pemncodec.contents import SeededPrototype, TorchPrototype
    from pemncodec.decoding import decode, load_state_dict
    from pemncodec.encoding import encode
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
        ShardError,
        TruncatedError,
        UnsupportedModelError,
        UnsupportedVersionError,
    )
    from pemncodec.format.file_digest import digest
    from pemncodec.format.reader import PemnFile
    from pemncodec.format.reader import open_file as open  # noqa: A004 a module's open, as gzip.open
    from pemncodec.limits import Limits
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
    "ShardError",
    "TorchPrototype",
    "TruncatedError",
    "UnsupportedModelError",
    "UnsupportedVersionError",
    "__version__",
    "decode",
    "digest",
    "encode",
    "generator",
    "load_state_dict",
    "open",
    "unpack",
]
__version__ = "0.1.0"
# What the loggers below "pemncodec" say is shown by programs that ask for it, and by no others.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_PLACES = {
    "Limits": "pemncodec.limits",
    "PemnFile": "pemncodec.format.reader",
    "Report": "pemncodec.proof",
    "SeededPrototype": "pemncodec.contents",
    "TorchPrototype": "pemncodec.contents",
    "decode": "pemncodec.decoding",
    "digest": "pemncodec.format.file_digest",
    "encode": "pemncodec.encoding",
    "load_state_dict": "pemncodec.decoding",
    "unpack": "pemncodec.packed.modules",
}


def __getattr__(name: str) -> Any:
    if name == "generator":
        return import_module("pemncodec.generator")
    if name == "open":
        return import_module("pemncodec.format.reader").open_file
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES.get(name, "pemncodec.errors")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
