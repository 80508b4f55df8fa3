"""A .pemn file → the network as an exported program, and as the file that torch.export makes."""

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
from pemncodec.architecture.isolation import working_copy
from pemncodec.decoding import load_module
from pemncodec.errors import ExportError
from pemncodec.export.packed_program import pack_module, sink_weights
from pemncodec.export.packing import (
    NotPacked,
    Packing,
    plan_packing,
    portable_by_operators,
)
from pemncodec.export.program_proof import (
    drawn_inputs,
    outputs_of,
    program_outputs,
    same_outputs,
)
from pemncodec.format.atomic import write_file
from pemncodec.format.reader import PemnFile, open_file
from pemncodec.limits import Limits

_BATCH: Final = 2  # sizes of 0 and 1 would be taken for constants

Source = str | os.PathLike[str] | BinaryIO
Target = str | os.PathLike[str] | BinaryIO


def to_program(
    source: Source,
    *,
    packed: bool = False,
    batch: int | None = None,
    limits: Limits | None = None,
    trust: Collection[str] = (),
) -> ExportedProgram:
    """The network as an exported program, inputs as the file describes them.

    Args:
        source: a path, a URL, or a binary file object.
        packed: masks as bits, of which the program makes the weights when it is called; False
            holds the weights. Before a packed program is returned it is run once: its outputs are
            those of the network, bit for bit.
        batch: batch size to fix; None lets it vary, and so every size that may.
        limits: bounds on what the file may decode to.
        trust: as in `pemncodec.decode`.

    Raises:
        ExportError: torch.export cannot export it so, or the packed program's outputs differ from
            the network's; the message says why.
        DecodeError: as in `pemncodec.decode`.
    """
    program, _ = program_of(source, packed, batch=batch, limits=limits, trust=trust)
    return program


def to_pt2(source: Source, target: Target, *, packed: bool = False, **options: Any) -> NotPacked:
    """Write what `to_program` gives as `torch.export.save` does; arguments as there.

    Returns:
        What stays larger than bits, and why; nothing unless `packed`.
    """
    program, not_packed = program_of(source, packed, **options)
    stream = io.BytesIO()
    torch.export.save(program, stream)
    write_file([stream.getbuffer()], target)
    return not_packed


def program_of(
    source: Source,
    packed: bool,
    *,
    limits: Limits | None = None,
    batch: int | None = None,
    trust: Collection[str] = (),
) -> tuple[ExportedProgram, NotPacked]:
    """What `to_program` gives, and what `to_pt2` does."""
    with open_file(source, limits=limits) as file:
        packing = plan_packing(file, portable_by_operators, draws=False) if packed else None
        program = export_program(file, packing, batch, trust)
    return program, packing.not_packed if packing is not None else NotPacked()


def export_program(
    file: PemnFile,
    packing: Packing | None = None,
    batch: int | None = None,
    trust: Collection[str] = (),
) -> ExportedProgram:
    """The network of an open file; see `to_program`."""
    module = load_module(file, "cpu", trust)
    examples, varying = _examples((file.manifest or {}).get("inputs", []), batch)
    if packing is None:
        return _export(module, examples, varying)
    inputs = drawn_inputs(examples)
    try:
        expected = outputs_of(working_copy(module), inputs)
    except Exception as error:
        raise ExportError(f"the network fails on inputs of its file: {cause_of(error)}") from error
    made_by = pack_module(module, packing, file.aliases)
    program = _export(module, examples, varying)
    sink_weights(program, made_by)
    outputs = program_outputs(program, inputs)
    if not same_outputs(outputs, expected):
        # torch.export may choose other operators than the module, which round differently.
        dense = _export(load_module(file, "cpu", trust), examples, varying)
        if not same_outputs(outputs, program_outputs(dense, inputs)):
            raise ExportError(
                "the packed program's outputs differ from the network's: "
                "export it without --packed (packed=False)"
            )
    return program


def _examples(
    inputs: list[dict[str, Any]], batch: int | None
) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Inputs as a file describes them, and their sizes that vary, by axis."""
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
        examples.append(torch.zeros(sizes, dtype=getattr(torch, item["dtype"])))
        dynamic.append(varying)
    return tuple(examples), tuple(dynamic)


def _export(
    module: nn.Module, examples: tuple[Tensor, ...], varying: tuple[dict[int, Any], ...]
) -> ExportedProgram:
    with quiet():
        try:
            program = torch.export.export(module, examples, dynamic_shapes=varying, strict=False)
        except Exception as error:
            hint = (
                "; a fixed batch may do: --batch 1 (batch=1)"
                if any(0 in axes for axes in varying)
                else ""
            )
            raise ExportError(f"torch.export: {cause_of(error)}{hint}") from error
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def require(form: str, packages: tuple[str, ...], command: str) -> None:
    """Raises ExportError where a package is missing that a form needs."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ExportError(f"{form} needs {' and '.join(missing)}: {command}")


def cause_of(error: Exception) -> str:
    """What an exporter's error says, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    specific = [line for line in lines if "specialized" in line or "not supported" in line]
    return ([*specific, *lines] or [type(error).__name__])[0][:300]
