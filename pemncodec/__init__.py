"""pemncodec: codec and file format for masked networks.

`encode`, `decode`, `load_state_dict` need torch, which is imported when they are first used;
`open` does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pemncodec.contents import SeededPrototype
from pemncodec.errors import (
    CorruptError,
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
from pemncodec.file import PemnFile
from pemncodec.file import open_file as open  # noqa: A004 a module's open, as gzip.open
from pemncodec.limits import Limits

if TYPE_CHECKING:
    from pemncodec.torch.decode import decode, load_state_dict
    from pemncodec.torch.encode import Report, encode

__all__ = [
    "CorruptError",
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
    "TruncatedError",
    "UnsupportedModelError",
    "UnsupportedVersionError",
    "decode",
    "encode",
    "load_state_dict",
    "open",
]
__version__ = "0.1.0"

_NEEDS_TORCH = {
    "encode": "pemncodec.torch.encode",
    "Report": "pemncodec.torch.encode",
    "decode": "pemncodec.torch.decode",
    "load_state_dict": "pemncodec.torch.decode",
}


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        from importlib import import_module

        return getattr(import_module(_NEEDS_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NEEDS_TORCH})
