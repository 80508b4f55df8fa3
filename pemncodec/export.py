"""A .pemn file → the forms that deployment takes: torch.export, ONNX, ExecuTorch.

All are for inference (eval mode), and hold the weights in full: they are what a .pemn file is
decoded to on the way to a device, not a way to store it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection
from importlib.util import find_spec
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from pemncodec.architecture.exported import quiet
from pemncodec.decoding import load_module
from pemncodec.errors import ExportError
from pemncodec.format.atomic import write_file
from pemncodec.format.reader import open_file
from pemncodec.limits import Limits

_BATCH: Final = 2  # sizes of 0 and 1 would be taken for constants

Source = str | os.PathLike[str] | BinaryIO
Target = str | os.PathLike[str] | BinaryIO


def to_program(
    source: Source,
    *,
    batch: int | None = None,
    limits: Limits | None = None,
    trust: Collection[str] = (),
) -> ExportedProgram:
    """The network as an exported program, inputs as the file describes them.

    Args:
        source: a path, or a binary file object.
        batch: batch size to fix; None lets it vary, and so every size that may.
        limits: bounds on what the file may decode to.
        trust: as in `pemncodec.decode`.

    Raises:
        ExportError: torch.export cannot export it so; the message says why.
        DecodeError: as in `pemncodec.decode`.
    """
    with open_file(source, limits=limits) as file:
        module = load_module(file, "cpu", trust)
        inputs = (file.manifest or {}).get("inputs", [])
    return _export(module, inputs, batch)


def to_pt2(source: Source, target: Target, **options: Any) -> None:
    """Write what `to_program` gives as `torch.export.save` does; arguments as there."""
    stream = io.BytesIO()
    torch.export.save(to_program(source, **options), stream)
    write_file([stream.getbuffer()], target)


def to_onnx(source: Source, target: Target, **options: Any) -> None:
    """Write the network as one ONNX file; arguments and errors as in `to_program`.

    Inputs are named as the arguments of `forward`.
    """
    _require("onnx", ("onnx", "onnxscript"), "pip install 'pemncodec[onnx]'")
    program = to_program(source, **options)
    with quiet():
        try:
            exported = torch.onnx.export(program, (), dynamo=True, verbose=False)
            assert exported is not None
            data = exported.model_proto.SerializeToString()
        except Exception as error:
            raise ExportError(f"cannot export to ONNX: {_cause(error)}") from error
    write_file([data], target)


def to_executorch(source: Source, target: Target, **options: Any) -> None:
    """Write the network for ExecuTorch (.pte); arguments and errors as in `to_program`."""
    _require("ExecuTorch", ("executorch",), "pip install executorch")
    program = to_program(source, **options)
    with quiet():
        try:
            from executorch.exir import to_edge

            lowered = to_edge(program).to_executorch()
        except Exception as error:
            raise ExportError(f"cannot export to ExecuTorch: {_cause(error)}") from error
    write_file([lowered.buffer], target)


def _export(module: nn.Module, inputs: list[dict[str, Any]], batch: int | None) -> ExportedProgram:
    if not inputs:
        raise ExportError("the file does not say what the network takes")
    if batch is not None and batch < 1:
        raise ExportError(f"a batch has at least one item, not {batch}")
    examples = []
    dynamic: list[dict[int, Any]] = []
    for item in inputs:
        sizes = item.get("sizes") or [_BATCH if n is None else n for n in item["shape"]]
        varying = {axis: Dim.DYNAMIC for axis, n in enumerate(item["shape"]) if n is None}
        if batch is not None and varying.pop(0, None) is not None:
            sizes = [batch, *sizes[1:]]
        examples.append(_example(sizes, getattr(torch, item["dtype"])))
        dynamic.append(varying)
    with quiet():
        try:
            program = torch.export.export(
                module, tuple(examples), dynamic_shapes=tuple(dynamic), strict=False
            )
        except Exception as error:
            hint = "; a fixed batch may do: --batch 1 (batch=1)" if batch is None else ""
            raise ExportError(f"torch.export: {_cause(error)}{hint}") from error
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _example(sizes: list[int], dtype: torch.dtype) -> Tensor:
    return torch.zeros(sizes, dtype=dtype)


def _require(form: str, packages: tuple[str, ...], command: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ExportError(f"{form} needs {' and '.join(missing)}: {command}")


def _cause(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    specific = [line for line in lines if "specialized" in line or "not supported" in line]
    return ([*specific, *lines] or [type(error).__name__])[0][:300]
