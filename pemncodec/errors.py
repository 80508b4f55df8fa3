"""Every error the package raises on purpose. `OSError` passes through unchanged.

`DecodeError.code` is one of a closed set, listed in spec/pemn.md section 10.
"""

from __future__ import annotations

from typing import Literal

ErrorCode = Literal[
    "not-pemn",  # the signature is not that of a .pemn file
    "version",  # a format version this reader does not know
    "truncated",  # the file, or a part of it, ends too early
    "trailing",  # bytes behind the end of the file, or of a part of it
    "checksum",  # a CRC-32 does not match
    "zstd",  # a Zstandard frame that is malformed or of another size than declared
    "json",  # header or manifest are not the JSON subset the spec allows
    "unknown-field",  # a required field, kind or coder this reader does not know
    "header",  # the header breaks a rule of the spec
    "section",  # a section's payload breaks a rule of the spec
    "limit",  # a limit of this reader would be passed
    "shard",  # a file that belongs to this one is missing, or is another one than is named
    "manifest-schema",  # the manifest breaks a rule of the spec
    "manifest-name",  # a name in the manifest is not allowed
    "manifest-class",  # a class outside the allowlist
    "manifest-op",  # an operator outside the allowlist
    "manifest-argument",  # an argument that its class or operator does not take
    "manifest-tensor",  # parameters of the manifest and tensors of the file differ
    "manifest-trust",  # the manifest names code that the caller did not allow to run
    "manifest-run",  # the network cannot be run on the inputs that the manifest gives
    "no-manifest",  # the file holds no architecture
]


class PemnError(Exception):
    """Base of all errors of this package."""


class EncodeError(PemnError, ValueError):
    """What was to be encoded cannot be encoded as asked."""


class EncodeArgumentError(EncodeError):
    """An argument is missing, out of range, or contradicts what is to be encoded."""


class UnsupportedModelError(EncodeError):
    """The architecture cannot be described in a manifest."""


class PrototypeMismatchError(EncodeError):
    """Weights are not what the given prototype generates."""


class ExportError(PemnError, ValueError):
    """A network cannot be exported as asked, or what that takes is not installed."""


class DecodeArgumentError(PemnError, ValueError):
    """An argument of `decode` or `load_state_dict` that does not fit the file or the machine."""


class DecodeError(PemnError, ValueError):
    """A file is not a valid .pemn file.

    Attributes:
        code: the reason, one of `ErrorCode`.
        file: name of the shard concerned; "" when there is but one file.
        section: index of the section concerned; None when it is the file's header.
        offset: byte offset in the file, or in the section when there is one; None when unknown.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        section: int | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.file = ""
        self.section = section
        self.offset = offset

    def __str__(self) -> str:
        place = [
            f"{name} {value}"
            for name, value in (("section", self.section), ("offset", self.offset))
            if value is not None
        ]
        return ": ".join(filter(None, (self.file, ", ".join(place), super().__str__())))


class NotPemnError(DecodeError):
    """The data does not begin as a .pemn file does, perhaps since a transfer damaged it."""


class UnsupportedVersionError(DecodeError):
    """The file needs a newer reader."""


class TruncatedError(DecodeError, EOFError):
    """The data ends before the file does."""


class CorruptError(DecodeError):
    """A checksum, length or rule of the format is violated."""


class ManifestError(DecodeError):
    """The architecture is missing, malformed, or not allowed."""


class ShardError(DecodeError):
    """A file that belongs to this one is missing, or is another one than is named."""


class LimitError(DecodeError):
    """Decoding would pass a limit of this reader; see `pemncodec.Limits`."""


def first_line(error: BaseException) -> str:
    """What an error of other code says, in one line; its class when it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def named_line(error: BaseException) -> str:
    """The class of an error of other code, and what it says, in one line."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
