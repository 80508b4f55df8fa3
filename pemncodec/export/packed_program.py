"""A module whose masked weights are made of bits when it runs, as torch.export wants it.

Operators of ATen alone: whoever runs the program may fold what they make of constants.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from pemncodec.contents import SeededPrototype, TorchPrototype, numel
from pemncodec.export.packing import Packing
from pemncodec.format.header import MaskedRow
from pemncodec.packed.two_values import TwoValues
from pemncodec.tensors import array_to_tensor
from pemncodec.values.on_device import philox_on, values_of_words
from pemncodec.values.philox import normal_quantiles

_CPU = torch.device("cpu")


def pack_module(module: nn.Module, packing: Packing, aliases: Mapping[str, str]) -> str:
    """Replaces weights of a decoded module by bits, and by a module that makes them for each call.

    Args:
        module: the network, changed in place.
        packing: of its file.
        aliases: of its file.

    Returns:
        Name of the module that makes the weights.
    """
    made_by = "packed"
    while hasattr(module, made_by):
        made_by += "_"
    weights = _Weights(packing)
    places: list[tuple[nn.Module, str, str]] = []
    targets = {name: name for name in packing.packed} | dict(aliases)
    for name, target in targets.items():
        path, _, attribute = name.rpartition(".")
        owner = module.get_submodule(path)
        for registered in (owner._parameters, owner._buffers):
            if target in packing.packed and registered.pop(attribute, None) is not None:
                places.append((owner, attribute, target))
    module.add_module(made_by, weights)

    def make(*_: Any) -> None:
        made = weights()
        del module._modules[made_by]  # `forward` may call all children, as that of Sequential does
        for owner, attribute, target in places:
            vars(owner)[attribute] = made[target]
        for owner, _attribute, _target in places:
            if isinstance(owner, nn.RNNBase):
                owner._flat_weights = [getattr(owner, n) for n in owner._flat_weights_names]

    def drop(*_: Any) -> None:
        for owner, attribute, _target in places:
            vars(owner).pop(attribute, None)
        module.add_module(made_by, weights)

    module.register_forward_pre_hook(make)
    module.register_forward_hook(drop, always_call=True)
    return made_by


class _Weights(nn.Module):
    """Makes packed weights of its buffers."""

    def __init__(self, packing: Packing) -> None:
        super().__init__()
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
            assert not isinstance(own, TorchPrototype)  # no operators of torch make their words
            if isinstance(own, TwoValues):
                self._keep(f"signs_{index}", torch.from_numpy(own.bits))
                if own.places.size:
                    self._keep(f"places_{index}", torch.from_numpy(own.places.astype(np.int64)))
                    others = array_to_tensor(own.others, prototype.dtype, _CPU)
                    self._keep(f"others_{index}", others)
                own = own.pair
            self._keep(f"prototype_{index}", array_to_tensor(own, prototype.dtype, _CPU))

    def _keep(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values)

    def _kept(self, name: str) -> Tensor:
        return self.get_buffer(name)

    def forward(self) -> dict[str, Tensor]:
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
                values = torch.where(which, values[1], values[0])
                if seeded.places.size:
                    places, others = self._kept(f"places_{index}"), self._kept(f"others_{index}")
                    values = values.index_copy(0, places, others)
            return values
        kind, seed, stream = seeded.distribution, seeded.seed, seeded.stream
        count = seeded.period or prototype.needed
        words = philox_on(_CPU, seed, 0, count, stream=stream)
        table = self._kept("quantiles") if kind == "normal" else words
        values = values_of_words(kind, words, table)
        if not seeded.period:
            return values
        # Not `permutation_on`, which writes into memory: what the weights are made by can be moved.
        keys = philox_on(_CPU, seed, count, count + seeded.length, stream=stream)
        return values[torch.argsort(keys, stable=True) % count]

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


def sink_weights(program: ExportedProgram, made_by: str) -> None:
    """Moves what makes a weight to where the weight is first used: few weights exist at once.

    Nothing else moves, so what `forward` writes, and what it reads before and after, stay in order.

    Args:
        program: of a module after `pack_module`, changed in place.
        made_by: what `pack_module` gave.
    """
    graph = program.graph
    makers = [node for node in graph.nodes if _is_made_by(node, made_by)]
    for node in makers:  # as operators of the network: `unflatten` takes a module for one call
        node.meta["nn_module_stack"] = dict(list(node.meta["nn_module_stack"].items())[:-1])
    if not all(map(_only_computes, makers)):
        return
    movable = set(makers)

    def place_inputs(node: Node, before: Node) -> None:
        for given in node.all_input_nodes:
            if given in movable:
                movable.remove(given)
                place_inputs(given, before)
                before.prepend(given)

    for node in list(graph.nodes):
        if node not in movable:
            place_inputs(node, node)
    for node in reversed(makers):
        if node in movable:
            graph.erase_node(node)
    program.graph_module.recompile()


def _is_made_by(node: Node, name: str) -> bool:
    """Whether the module of that name computes it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return node.op == "call_function" and bool(stack) and stack[-1][0] == name


def _only_computes(node: Node) -> bool:
    """Whether all that an operator does is to give what its inputs determine."""
    target = node.target
    if not isinstance(target, OpOverload):
        return target is operator.getitem
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
