"""A .pemn file → one ONNX file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from pemncodec.architecture.exported import quiet
from pemncodec.errors import ExportError
from pemncodec.export.packing import NotPacked
from pemncodec.export.program import Source, Target, cause_of, export_program, require
from pemncodec.format.atomic import write_file
from pemncodec.format.reader import PemnFile, open_file
from pemncodec.limits import Limits

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto


def to_onnx(
    source: Source,
    target: Target,
    *,
    packed: bool = False,
    limits: Limits | None = None,
    **options: Any,
) -> NotPacked:
    """Write the network as one ONNX file; other arguments and errors as in `to_program`.

    Inputs are named as the arguments of `forward`.

    Args:
        source: a path, a URL, or a binary file object.
        target: likewise.
        packed: masks as bits, and standard operators that make the weights of them when a session
            is made; False stores the weights.
        limits: bounds on what the file may decode to.

    Returns:
        What stays larger than bits, and why; nothing unless `packed`.
    """
    require("onnx", ("onnx", "onnxscript"), "pip install onnx onnxscript")
    with open_file(source, limits=limits) as file:
        model, not_packed = (
            _packed_model(file, options) if packed else (_model(file, options), NotPacked())
        )
    write_file([_checked(model)], target)
    return not_packed


def _model(file: PemnFile, options: Mapping[str, Any]) -> ModelProto:
    model, _ = _exported(file, (), options)
    return model


def _packed_model(file: PemnFile, options: Mapping[str, Any]) -> tuple[ModelProto, NotPacked]:
    """The same graph, in which operators make tensors that the other holds as initializers."""
    from pemncodec.export.onnx_dense import dense_makers
    from pemncodec.export.onnx_graph import OnnxGraph
    from pemncodec.export.onnx_weights import MaskedTensors, plan_onnx

    packing = plan_onnx(file)
    dense, aliases = dense_makers(file), file.aliases
    own = {*packing.packed, *dense}
    names = own | {name for name, target in aliases.items() if target in own}
    model, made = _exported(file, names, options)
    graph = OnnxGraph(_names(model))
    masked = MaskedTensors(graph, packing)
    for name, under in made.items():
        target = aliases.get(name, name)
        if target in packing.packed:
            rank = len(packing.packed[target].row.shape)
            masked.add(target, *_take_transposed(model.graph, under, rank))
        else:
            dense[target](graph, under)
    _strip_names(model)
    nodes = [*graph.nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(graph.initializers)
    return model, packing.not_packed


def _take_transposed(graph: GraphProto, name: str, rank: int) -> tuple[str, tuple[int, ...]]:
    """The value that a graph needs in place of a tensor, and its order of the tensor's axes.

    A Transpose that is all the graph does with the tensor is taken out.
    """
    users = [node for part in _graphs(graph) for node in part.node if name in node.input]
    returned = any(name == value.name for value in graph.output)
    if returned or len(users) != 1 or users[0].op_type != "Transpose" or users[0] not in graph.node:
        return name, tuple(range(rank))
    graph.node.remove(users[0])
    axes = (tuple(attribute.ints) for attribute in users[0].attribute)
    return users[0].output[0], next(axes, tuple(range(rank))[::-1])


def _exported(
    file: PemnFile, names: Collection[str], options: Mapping[str, Any]
) -> tuple[ModelProto, dict[str, str]]:
    """The network in ONNX.

    Args:
        file: open.
        names: of tensors that something else will make.
        options: of `export_program`.

    Returns:
        The model, and which of these tensors it uses, without holding them, each with the name
        that it has there: another one than its own where an input or an output has that.
    """
    program = export_program(file, None, **options)
    with quiet():
        try:
            exported = torch.onnx.export(program, (), dynamo=True, verbose=False, optimize=False)
            assert exported is not None
            graph = exported.model.graph
            count = len(graph.inputs)
            lifted = {name: v for name, v in graph.initializers.items() if name in names}
            taken = {value.name for value in graph.inputs}
            taken.update(value.name for node in graph for value in node.outputs)
            for name, value in list(graph.initializers.items()):
                if name in taken or name in names:
                    del graph.initializers[name]
                    while value.name in taken or value.name in graph.initializers:
                        value.name = f"{value.name}_"
                    taken.add(value.name)
                    if name not in names:
                        graph.initializers[str(value.name)] = value
            # As inputs, so that optimizing cannot look into them, nor merge or transpose them.
            for value in lifted.values():
                value.const_value = None
                graph.inputs.append(value)
            exported.optimize()
            model = exported.model_proto
        except Exception as error:
            raise ExportError(f"cannot export to ONNX: {cause_of(error)}") from error
    del model.graph.input[count:]
    _strip_metadata(model)
    used = _names(model)
    return model, {name: str(v.name) for name, v in lifted.items() if v.name in used}


def _checked(model: ModelProto) -> bytes:
    """The bytes of a model that runtimes can open."""
    from onnx import checker

    try:
        data: bytes = model.SerializeToString()
        checker.check_model(data)
    except checker.ValidationError as error:
        raise ExportError(f"the export is no valid ONNX model: {cause_of(error)}") from error
    except Exception as error:  # of protobuf, in which a model has at most 2 GiB
        raise ExportError(f"cannot export to ONNX: {cause_of(error)}") from error
    return data


def _strip_metadata(model: ModelProto) -> None:
    """Takes out what tells about the exporter and not about the network."""
    for graph in _graphs(model.graph):
        values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
        for part in (graph, *graph.node, *values):
            del part.metadata_props[:]
            part.ClearField("doc_string")


def _strip_names(model: ModelProto) -> None:
    """Takes out names of nodes, and shapes that every reader infers."""
    for graph in _graphs(model.graph):
        del graph.value_info[:]
        for node in graph.node:
            node.ClearField("name")


def _names(model: ModelProto) -> set[str]:
    """Of all values."""
    return {
        name
        for graph in _graphs(model.graph)
        for part in (
            *((value.name,) for value in (*graph.input, *graph.output, *graph.initializer)),
            *((*node.input, *node.output) for node in graph.node),
        )
        for name in part
    }


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and those of its branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)
