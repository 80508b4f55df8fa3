"""A module whose masked weights are made of bits when it runs, as torch.export wants it.

Operators of ATen alone: whoever runs the program may fold what they make of constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from pemncodec.contents import SeededPrototype, numel
from pemncodec.export.packing import Packing, TwoValues
from pemncodec.format.header import MaskedRow
from pemncodec.tensors import array_to_tensor
from pemncodec.values.on_device import permutation_on, philox_on, values_of_words
from pemncodec.values.philox import normal_quantiles

_CPU = torch.device("cpu")


def pack_module(module: nn.Module, packing: Packing, aliases: Mapping[str, str]) -> None:
    """Replaces weights of a decoded module by bits, and by hooks that make them for each call.

    Args:
        module: the network, changed in place.
        packing: of its file.
        aliases: of its file.
    """
    weights = _Weights(module, packing)
    places: list[tuple[nn.Module, str, str]] = []
    targets = {name: name for name in packing.packed} | dict(aliases)
    for name, target in targets.items():
        path, _, attribute = name.rpartition(".")
        owner = module.get_submodule(path)
        for registered in (owner._parameters, owner._buffers):
            if target in packing.packed and registered.pop(attribute, None) is not None:
                places.append((owner, attribute, target))

    def make(*_: Any) -> None:
        made = weights.make()
        for owner, attribute, target in places:
            vars(owner)[attribute] = made[target]
        for owner, _attribute, _target in places:
            if isinstance(owner, nn.RNNBase):
                owner._flat_weights = [getattr(owner, n) for n in owner._flat_weights_names]

    def drop(*_: Any) -> None:
        for owner, attribute, _target in places:
            vars(owner).pop(attribute, None)

    module.register_forward_pre_hook(make)
    module.register_forward_hook(drop, always_call=True)


class _Weights:
    """Makes packed weights of buffers of a module."""

    def __init__(self, module: nn.Module, packing: Packing) -> None:
        self._module = module
        self._rows = [masked.row for masked in packing.packed.values()]
        self._prototypes = packing.prototypes
        self._keep("places", torch.tensor([1 << i for i in range(8)], dtype=torch.uint8))
        for index, masked in enumerate(packing.packed.values()):
            self._keep(f"bits_{index}", torch.from_numpy(masked.packed_mask().copy()))
        for index, prototype in packing.prototypes.items():
            own = prototype.values
            if isinstance(own, SeededPrototype):
                if own.distribution == "normal":
                    self._keep("quantiles", torch.from_numpy(normal_quantiles().copy()))
                continue
            if isinstance(own, TwoValues):
                self._keep(f"signs_{index}", torch.from_numpy(own.bits))
                own = own.pair
            self._keep(f"prototype_{index}", array_to_tensor(own, prototype.dtype, _CPU))

    def _keep(self, name: str, values: Tensor) -> None:
        self._module.register_buffer(f"packed_{name}", values)

    def _kept(self, name: str) -> Tensor:
        return self._module.get_buffer(f"packed_{name}")

    def make(self) -> dict[str, Tensor]:
        """All packed weights by name."""
        values = {index: self._values(index) for index in self._prototypes}
        return {
            row.name: self._expanded(row, self._kept(f"bits_{index}"), values[row.fill.prototype])
            for index, row in enumerate(self._rows)
        }

    def _values(self, index: int) -> Tensor:
        """The values of a prototype, or as many as tensors need."""
        prototype = self._prototypes[index]
        seeded = prototype.values
        if not isinstance(seeded, SeededPrototype):
            values = self._kept(f"prototype_{index}")
            if isinstance(seeded, TwoValues):
                which = self._unpacked(self._kept(f"signs_{index}"), seeded.count)
                return torch.where(which, values[1], values[0])
            return values
        kind, seed, stream = seeded.distribution, seeded.seed, seeded.stream
        count = seeded.period or min(seeded.length, prototype.needed)
        words = philox_on(_CPU, seed, 0, count, stream=stream)
        table = self._kept("quantiles") if kind == "normal" else words
        values = values_of_words(kind, words, table)
        if not seeded.period:
            return values
        return values[permutation_on(_CPU, seed, count, seeded.length, stream=stream) % count]

    def _unpacked(self, bits: Tensor, count: int) -> Tensor:
        return ((bits[:, None] & self._kept("places")) != 0).reshape(-1)[:count]

    def _expanded(self, row: MaskedRow, bits: Tensor, values: Tensor) -> Tensor:
        """The weights of a tensor [*shape]; see spec section 5.3."""
        count, dtype = numel(row.shape), getattr(torch, row.dtype)
        used = self._unpacked(bits, count)
        if values.dtype != dtype or row.fill.scale != 1:
            values = (values.to(torch.float32) * row.fill.scale).to(dtype)
        last = row.fill.offset + count
        values = values.repeat(-(-last // values.numel()))[row.fill.offset : last]
        return torch.where(used, values, 0).reshape(row.shape)


def sink_constants(program: ExportedProgram) -> None:
    """Moves what is made of constants to where it is first used: few weights exist at once."""
    graph = program.graph
    given = set(program.graph_signature.user_inputs)
    constant: set[Node] = set()
    for node in graph.nodes:
        own = node.op == "placeholder" and node.name not in given
        if own or (node.op == "call_function" and all(n in constant for n in node.all_input_nodes)):
            constant.add(node)
    unplaced = {node for node in constant if node.op == "call_function"}

    def place_inputs(node: Node, before: Node) -> None:
        for given in node.all_input_nodes:
            if given in unplaced:
                unplaced.remove(given)
                place_inputs(given, before)
                before.prepend(given)

    nodes = list(graph.nodes)
    for node in nodes:
        if node not in constant:
            place_inputs(node, node)
    for node in reversed(nodes):
        if node in unplaced:
            graph.erase_node(node)
        elif node in constant:
            for key in ("source_fn_stack", "torch_fn", "from_node"):
                node.meta.pop(key, None)
    program.graph_module.recompile()
