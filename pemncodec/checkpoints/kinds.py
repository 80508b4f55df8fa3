"""What a file is, by its first bytes, and what to do with one that is no checkpoint.

Works without torch.
"""

from __future__ import annotations

import errno
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from pemncodec.coders.canonical_json import is_object
from pemncodec.errors import EncodeError
from pemncodec.format.container import SIGNATURE
from pemncodec.format.index import FORMAT, INDEX_SUFFIX

Kind = Literal[
    "pickle", "safetensors", "npz", "npy", "pemn", "torchscript", "pt2", "onnx", "hdf5", "gguf",
    "gzip", "zip", "cut", "index", "pemn-index", "distributed", "folder", "empty", "unknown",
]  # fmt: skip

CHECKPOINTS: Final[tuple[Kind, ...]] = (
    *("pickle", "safetensors", "npz", "pemn", "pemn-index", "distributed"),
)
INDICES: Final[tuple[Kind, ...]] = ("index", "pemn-index")
DISTRIBUTED: Final = ".metadata"  # of torch.distributed.checkpoint, beside its .distcp files

_MOST_HEADER: Final = 100_000_000  # bytes, of a safetensors file

WHAT_TO_DO: Final[dict[Kind, str]] = {
    "npy": "a single NumPy array: save all tensors by name with numpy.savez",
    "torchscript": "a TorchScript module: save the state_dict() of torch.jit.load(…) by torch.save",
    "pt2": "an exported program: save the state_dict of torch.export.load(…) with torch.save",
    "onnx": "an ONNX model: give the checkpoint that it was exported from",
    "hdf5": "an HDF5 file: save its arrays by name with numpy.savez",
    "gguf": "a GGUF file, quantized for llama.cpp: give the checkpoint that it was made from",
    "gzip": "compressed with gzip: decompress it first",
    "zip": "an archive that is damaged or cut off: take the file once more",
    "cut": (
        "a zip file, as torch.save writes, whose end is missing: it is cut off, get it once more"
    ),
    "folder": "a folder: name a file in it",
    "empty": "the file is empty",
}
_BEGINNINGS: Final[dict[bytes, Kind]] = {
    SIGNATURE: "pemn",
    b"\x93NUMPY": "npy",
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"GGUF": "gguf",
    b"\x1f\x8b": "gzip",
}


def kind_of(path: Path) -> Kind:
    """What a file is.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_dir():
        return "folder"
    with path.open("rb") as stream:
        head = stream.read(16)
    if not head:
        return "empty"
    for beginning, kind in _BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    if is_object(head):
        return "pemn-index" if _is_pemn_index(path) else "index"
    if head[8:9] == b"{":  # behind eight bytes of length
        return "safetensors"
    if head[:1] == b"\x80":
        return "distributed" if path.name == DISTRIBUTED else "pickle"
    if _is_archive(path):
        names = _names_in(path)
        return "zip" if names is None else _kind_of_archive(names)
    if head.startswith(b"PK\3\4"):
        return "cut"
    return "onnx" if path.suffix == ".onnx" else "unknown"


def may_begin_checkpoint(head: bytes) -> bool:
    """Whether a file that begins so may be a checkpoint: of nine bytes or more, or a whole one."""
    return head[8:9] == b"{" or head.startswith((SIGNATURE, b"\x80", b"PK"))


def kind_of_checkpoint(path: Path, name: str) -> Kind:
    """What a file is that may be a checkpoint.

    Args:
        path: the file.
        name: what messages call it.

    Raises:
        OSError: it cannot be read.
        EncodeError: it is no checkpoint; says what to do.
    """
    kind = kind_of(path)
    if kind in WHAT_TO_DO:
        raise EncodeError(f"{name}: cannot load this: {WHAT_TO_DO[kind]}")
    return kind


def _is_pemn_index(path: Path) -> bool:
    """Whether JSON is an index of .pemn files, by its own word or by its name."""
    if path.name.endswith(INDEX_SUFFIX):
        return True
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(index, dict) and index.get("format") == FORMAT


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def _names_in(path: Path) -> list[str] | None:
    """Names in an archive; None where its directory is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception as error:  # of many classes, where it is damaged
        if isinstance(error, OSError | MemoryError) and not is_seek_of_damaged(error):
            raise
        return None


def is_seek_of_damaged(error: Exception) -> bool:
    """Whether an error is of a position that a damaged file names."""
    return isinstance(error, OSError) and error.errno == errno.EINVAL


def is_cut_safetensors(path: Path) -> bool:
    """Whether a safetensors file ends before the last of the tensors that its header names.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _MOST_HEADER or stream.read(1) != b"{":
            return False
        stream.seek(8)
        header = stream.read(length)
    if len(header) < length:
        return True
    try:
        tensors = [row for name, row in json.loads(header).items() if name != "__metadata__"]
        return size < 8 + length + max((row["data_offsets"][1] for row in tensors), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return False


def _kind_of_archive(names: Sequence[str]) -> Kind:
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside:
        return "torchscript"
    if "data.pkl" in inside:
        return "pickle"
    if "archive_format" in inside:
        return "pt2"
    return "npz" if names and all(name.endswith(".npy") for name in names) else "unknown"


def advice(path: Path) -> str:
    """What a file that is no .pemn file is, and what to do with it; nothing where that is unknown.

    Raises:
        OSError: it cannot be read.
    """
    kind = kind_of(path)
    if path.name.endswith(INDEX_SUFFIX):
        return "it is damaged: take it once more"
    if kind == "index":
        return "it is JSON, of which pemn encode takes indexes of shards"
    if kind in CHECKPOINTS:
        return "it is a checkpoint, which pemn encode makes a .pemn file of"
    return f"it is {WHAT_TO_DO[kind]}" if kind in WHAT_TO_DO and kind != "empty" else ""
