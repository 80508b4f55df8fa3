"""A module becomes a manifest: layers by class, classes of the user by graph (spec section 8)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pemncodec.architecture.describable import refuse
from pemncodec.architecture.example import ExampleInputs
from pemncodec.architecture.forwards import trace_forwards
from pemncodec.architecture.manifest import FORMAT, validate_manifest
from pemncodec.architecture.tree import Tree
from pemncodec.errors import DecodeError
from pemncodec.limits import Limits


@dataclass(frozen=True, slots=True)
class Trace:
    """A module, described.

    Attributes:
        manifest: its architecture.
        tensors: what the file must hold beside the state dict: buffers that are not persistent,
            and constants of exported graphs, by name.
        trains: whether every graph for train mode is there.
        exported: whether a `forward` had to be exported; fused kernels may round otherwise.
    """

    manifest: dict[str, Any]
    tensors: dict[str, Tensor]
    trains: bool
    exported: bool


def trace_module(
    module: nn.Module,
    inputs: Sequence[Mapping[str, Any]],
    *,
    example: ExampleInputs | None = None,
    train_graph: bool = False,
    masked: Collection[str] = (),
    progress: Callable[[float], None] = lambda _: None,
) -> Trace:
    """Describe a module so that `build_module` can rebuild it without its code.

    A `forward` that torch.fx cannot trace is exported with all that is below it, for eval mode
    and, on request, for train mode.

    Args:
        module: left as it is, but for parameters that its own code writes to.
        inputs: of `forward`, each {"dtype": "float32", "shape": [None, 3, 32, 32]}; None stands
            for a size that may vary. Arguments of `forward` beyond them keep their defaults.
        example: what the module is run on where a `forward` has to be exported; None refuses it.
        train_graph: export train mode, too.
        masked: names of parameters that need no entry in the manifest's list of frozen ones.
        progress: called with the share that is done; it may begin again.

    Raises:
        UnsupportedModelError: the manifest cannot describe it; names the module and the cause.
    """
    frozen = [  # told before its code runs, which shares the parameters
        name
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad and name not in masked
    ]
    evaluating = trace_forwards(
        module,
        len(inputs),
        example,
        training=False,
        export=True,
        progress=lambda share: progress(share / 2),
    )
    training = trace_forwards(
        module,
        len(inputs),
        example,
        training=True,
        export=train_graph,
        progress=lambda share: progress(0.5 + share / 2),
        other=evaluating,
    )
    tree = Tree(module, evaluating, training)
    manifest: dict[str, Any] = {"format": FORMAT, "tree": tree.root}
    for key, value in (
        ("graphs", tree.graphs),
        ("training", module.training),
        ("frozen", frozen),
        ("nonpersistent", list(tree.tensors)),
        ("inputs", [dict(item) for item in inputs]),
    ):
        if value:
            manifest[key] = value
    try:
        validate_manifest(manifest, Limits())
    except DecodeError as error:
        refuse(module, "", str(error))
    exported = bool(evaluating.exported or training.exported)
    return Trace(manifest, tree.tensors, not training.missing, exported)
