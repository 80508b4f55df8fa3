"""What torch itself draws: in this process, or as a program for a process of another kind.

    echo '[{"call": "normal_", "arguments": [0, 1], "seed": 0, "skip": 5, "shape": [40]}]' \
        | python tests/torch_draws.py drawn.npz
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def draw(
    call: str, arguments: Sequence[float], seed: int, skip: int, shape: Sequence[int]
) -> NDArray[np.float32]:
    """What a call makes of a new float32 tensor after `skip` words of a seed, [*shape].

    Args:
        call: a method of tensors, a function of `torch.nn.init`, or one of them and then "sign".
    """
    torch.manual_seed(seed)
    torch.empty(skip).uniform_()
    tensor = torch.full(list(shape), torch.nan)
    name, _, sign = call.partition(" ")
    if hasattr(Tensor, name):
        getattr(tensor, name)(*arguments)
    else:
        getattr(nn.init, name)(tensor, *arguments)
    return (tensor.sign() if sign else tensor).numpy()


if __name__ == "__main__":
    drawn = [draw(**case) for case in json.load(sys.stdin)]
    np.savez(sys.argv[1], *drawn)
