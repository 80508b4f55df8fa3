"""What is known of an encoding that is under way, so that another process can continue it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any, Final

import numpy as np

from pemncodec.coders.canonical_json import decode_json, encode_json
from pemncodec.contents import (
    AliasTensor,
    Contents,
    DenseTensor,
    Prototype,
    StoredPrototype,
    Tensor,
)
from pemncodec.errors import CorruptError, DecodeError
from pemncodec.format.columns import is_file_name
from pemncodec.format.digests import digest_of, values_digest

_FORMAT: Final = "pemn-journal"

ARCHITECTURE: Final = "architecture"
ORDER: Final = "order of tensors"
DIGESTED: Final = (ARCHITECTURE, ORDER)
"""What only the index has of a model; a journal keeps digests of it, beside the options."""


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A shard that is whole and on disk.

    Attributes:
        contents: what it was made of, by `contents_digest`.
        size: its bytes.
        front_crc: as the index has it.
    """

    contents: str
    size: int
    front_crc: int


@dataclass(frozen=True, slots=True)
class Journal:
    """How far an encoding is.

    Attributes:
        made_with: options that decide about bytes and that contents do not show, and the version of
            this package, as text by the name of the option; and digests of what is `DIGESTED`.
        shards: by the name of each file that is finished.
        proven: all are there and compared with the original: from here on they get their names.
        replaced: names of files of an earlier encoding that go in the end.
    """

    made_with: Mapping[str, str]
    shards: Mapping[str, FinishedShard] = field(default_factory=dict)
    proven: bool = False
    replaced: tuple[str, ...] = ()


def encode_journal(journal: Journal) -> bytes:
    """A journal as JSON."""
    return encode_json({"format": _FORMAT, **asdict(journal)})


def decode_journal(data: bytes) -> Journal:
    """A journal of its JSON.

    Raises:
        CorruptError: these are other bytes.
    """
    try:
        value: dict[str, Any] = decode_json(data, depth=4)
        if value.pop("format") != _FORMAT or type(value["proven"]) is not bool:
            raise ValueError
        shards = {name: FinishedShard(**shard) for name, shard in value.pop("shards").items()}
        for name, shard in shards.items():
            if not is_file_name(name) or list(map(type, astuple(shard))) != [str, int, int]:
                raise ValueError
        texts = (*value["made_with"].values(), *value["replaced"])
        if not all(isinstance(text, str) for text in texts):
            raise ValueError
        return Journal(**value | {"shards": shards, "replaced": tuple(value["replaced"])})
    except (DecodeError, AttributeError, KeyError, TypeError, ValueError):
        raise CorruptError("header", "not the journal of an encoding") from None


def contents_digest(contents: Contents) -> str:
    """Of all that the bytes of a file are made of, for one version of this package.

    What a digest of decoded contents leaves out counts here: prototypes, their numbers, and which
    mode shortens a tensor.
    """
    return digest_of(
        {
            "inference_only": contents.inference_only,
            "manifest": contents.manifest,
            "metadata": contents.metadata,
            "prototypes": [_prototype_facts(prototype) for prototype in contents.prototypes],
            "tensors": [_tensor_facts(tensor) for tensor in contents.tensors],
        }
    )


def _prototype_facts(prototype: Prototype) -> list[Any]:
    if not isinstance(prototype, StoredPrototype):
        return [type(prototype).__name__, *astuple(prototype)]
    place = None if prototype.place is None else list(astuple(prototype.place))
    return [prototype.dtype, values_digest(prototype.values), place, prototype.whole]


def _tensor_facts(tensor: Tensor) -> list[Any]:
    if isinstance(tensor, AliasTensor):
        return [tensor.name, tensor.target]
    common = [tensor.name, tensor.dtype, list(tensor.shape)]
    if isinstance(tensor, DenseTensor):
        return [*common, values_digest(tensor.data), tensor.mode, tensor.error]
    return [*common, values_digest(np.packbits(tensor.mask)), *astuple(tensor.fill)]
