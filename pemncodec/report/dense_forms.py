"""Forms that any network has: every tensor as it is, or compressed by a general compressor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import IO, cast

import safetensors
import safetensors.torch
import torch
import zstandard
from torch import Tensor

from pemncodec.report.form import Form, FormBytes, FormError, Network, largest_error

_ZSTD_LEVEL = 19


def saved_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What `torch.save` writes of a state dict."""
    counter = _Counter()
    torch.save(dict(tensors), cast(IO[bytes], counter))  # it asks for no more than these methods
    return counter.bytes


class _Counter:
    """A file that only counts."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        pass


def as_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """A state dict as a safetensors file.

    Raises:
        FormError: it has no dtype for one of the tensors.
    """
    try:
        return safetensors.torch.save(dict(tensors))
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise FormError(f"safetensors cannot hold it: {error}") from None


def _torch_save(network: Network) -> FormBytes:
    return FormBytes(saved_bytes(network.tensors))


def _safetensors(network: Network) -> FormBytes:
    return FormBytes(len(as_safetensors(network.tensors)))


def _halves(network: Network) -> FormBytes:
    halves = {
        name: tensor.half() if tensor.dtype == torch.float32 else tensor
        for name, tensor in network.tensors.items()
    }
    error = largest_error((t, halves[n]) for n, t in network.tensors.items() if t is not halves[n])
    if math.isinf(error):
        raise FormError("a value became infinite")
    return FormBytes(len(as_safetensors(halves)), error)


def _zstd(network: Network) -> FormBytes:
    whole = as_safetensors(network.tensors)
    return FormBytes(len(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(whole)))


# Repeated prototypes are where zstd is slowest: below a megabyte a second.
DENSE_FORMS = (
    Form("torch_save", "torch.save", _torch_save),
    Form("safetensors", "safetensors", _safetensors),
    Form("safetensors_fp16", "safetensors fp16", _halves, lossy=True),
    Form("safetensors_zstd19", "safetensors + zstd-19", _zstd, most_bytes=12 << 20),
)
