"""What a packed program promises: it is run once, and gives what the network gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.func import functional_call
from torch.utils import _pytree as pytree


def drawn_inputs(examples: Sequence[Tensor]) -> list[Tensor]:
    """Inputs on which outputs are compared, of the dtypes and shapes of the examples.

    Floats lie between 0 and 1: few networks refuse them, even as indices. Others stay as they are.
    """
    generator = torch.Generator().manual_seed(0)
    return [
        torch.rand(x.shape, generator=generator).to(x.dtype) if x.is_floating_point() else x.clone()
        for x in examples
    ]


def program_outputs(program: ExportedProgram, inputs: Sequence[Tensor]) -> list[Any]:
    """What a program gives; the program stays as it is."""
    module = program.module()
    state = {name: values.clone() for name, values in module.named_buffers()}
    return outputs_of(lambda *given: functional_call(module, state, given), inputs)


def outputs_of(network: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Any]:
    """What a network gives, where it draws random numbers from the same seed each time."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # other operators than torch.export records
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return pytree.tree_leaves(network(*(x.clone() for x in inputs)))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def same_outputs(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Whether outputs are equal bit for bit."""
    return len(first) == len(second) and all(map(_same, first, second))


def _same(first: Any, second: Any) -> bool:
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return bool(first == second)
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return torch.equal(_bytes(first), _bytes(second))


def _bytes(values: Tensor) -> Tensor:
    return values.resolve_conj().contiguous().reshape(-1).view(torch.uint8)
