"""Batch norms of a trained network as two vectors, for inference (spec section 4.2).

In eval mode a batch norm computes (x − mean) / √(var + eps) · weight + bias, which is
x · weight' + bias' with weight' = weight / √(var + eps) and bias' = bias − mean · weight'. The
module stays a batch norm: its statistics become mean 0 and a variance at which √(var + eps) is 1,
constants that cost nothing in a file. The masked weights before and after it stay as they are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> dict[str, Tensor]:
    """New tensors by name, for every float32 batch norm with affine parameters and statistics."""
    folded: dict[str, Tensor] = {}
    # Under each of its names, since a state dict may hold copies of what the module shares.
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, _BatchNorm) or module.weight is None:
            continue
        mean, variance = module.running_mean, module.running_var
        if mean is None or variance is None or module.weight.dtype != torch.float32:
            continue
        prefix = f"{name}.".lstrip(".")
        weight = module.weight.double() / (variance.double() + module.eps).sqrt()
        folded[f"{prefix}weight"] = weight.float()
        folded[f"{prefix}bias"] = (module.bias.double() - mean.double() * weight).float()
        folded[f"{prefix}running_mean"] = torch.zeros_like(mean)
        folded[f"{prefix}running_var"] = torch.full_like(variance, neutral_variance(module.eps))
        folded[f"{prefix}num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    return folded


def neutral_variance(eps: float) -> float:
    """The binary32 number nearest to 1 − eps whose binary32 sum with eps is 1."""
    nearest = np.float32(1 - eps)
    above, below = (np.nextafter(nearest, np.float32(end)) for end in (np.inf, -np.inf))
    for candidate in (nearest, above, below):
        if candidate + np.float32(eps) == 1:
            return float(candidate)
    return float(nearest)
