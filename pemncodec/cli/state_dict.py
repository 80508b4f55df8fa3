"""An open file's state dict → a safetensors file, or what `torch.save` writes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pemncodec.cli.streams import STDIO, output_target
from pemncodec.cli.terminal import Step
from pemncodec.contents import Array
from pemncodec.format.atomic import atomic_path, named_errors, write_file
from pemncodec.format.reader import PemnFile
from pemncodec.remote.urls import shown
from pemncodec.saving import Values, safetensors_pieces

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Buffer


def save_state_dict(file: PemnFile, output: str, device: str, step: Step) -> None:
    """Writes the format that the output's name says; standard output gets safetensors.

    Args:
        file: open.
        output: a path, or standard output.
        device: where values are made. On the CPU, safetensors needs no torch, and memory for a few
            tensors only.
        step: called with what is under way, and the share of it that is done.
    """
    to_safetensors = output == STDIO or Path(output).suffix == ".safetensors"
    values: Values | None = None
    if not to_safetensors or device != "cpu":
        step("loading torch", None)
        from pemncodec.decoding import load_state

        state = load_state(file, device, lambda share: step("decoding", share))
        if not to_safetensors:
            step("writing", None)
            _save_torch(state, output)
            return
        values = partial(_arrays, state)
    if output == STDIO:  # from which nothing can be taken back
        step("checking", None)
        file.check_sections()
    with output_target(output) as target:
        write_file(safetensors_pieces(file, values, lambda share: step("writing", share)), target)


def _arrays(state: dict[str, Tensor], names: list[str]) -> Iterator[Array]:
    from pemncodec.tensors import tensor_to_array

    return (tensor_to_array(state[name], name) for name in names)


def _save_torch(state: dict[str, Tensor], output: str) -> None:
    import torch

    with (
        named_errors(shown(output)),
        atomic_path(output) as path,
        _Writer(path.open("wb", buffering=0)) as stream,
    ):
        try:
            torch.save(state, stream)
        except RuntimeError:
            if stream.error is not None:
                raise stream.error from None
            raise


class _Writer(io.BufferedWriter):
    """Keeps the error of a write, such as of a full disk: torch raises one of its own."""

    error: OSError | None = None

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise
