"""How much memory encoding takes for each weight of a longer model, by the kind of its masks: JSON.

A process of its own, in which all large blocks go back to the system as soon as they are freed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal, Self

import torch
from torch import nn

import pemncodec
from pemncodec import mapped_masks, spool
from pemncodec import threads as threads_module
from pemncodec.format import in_turn
from pemncodec.masking import RandomPadding, TopK, mask_model

SIZE = 1 << 19  # weights of a layer
FEW, MANY = 2, 18  # layers


def scored(dtype: torch.dtype, layers: int) -> dict[str, torch.Tensor]:
    """Layers of one random vector, with scores as the official code has them."""
    torch.manual_seed(0)
    vector = torch.randn(512).repeat(SIZE // 512)
    state = {}
    for layer in range(layers):
        state[f"{layer}.weight"] = vector.reshape(-1, 64).clone()
        state[f"{layer}.scores"] = torch.randn(SIZE // 64, 64).to(dtype)
    return state


def recipes(layers: int, scope: Literal["layer", "global"]) -> dict[str, torch.Tensor]:
    """The state dict of layers that pemncodec.masking has masked."""
    plain = nn.Sequential(*(nn.Linear(64, SIZE // 64, bias=False) for _ in range(layers)))
    masked = mask_model(
        plain, RandomPadding(length=512), selection=TopK(scope=scope), keep=0.5, seed=0
    )
    return masked.state_dict()


CHECKPOINTS: dict[str, Callable[[int], tuple[dict[str, torch.Tensor], dict[str, Any]]]] = {
    "scores": lambda n: (scored(torch.float32, n), {"keep": 0.5}),
    "short scores": lambda n: (scored(torch.float16, n), {"keep": 0.5}),
    "one cut": lambda n: (scored(torch.float32, n), {"keep": 0.5, "rule": "global-magnitude"}),
    "thresholds": lambda n: (scored(torch.float32, n), {"rule": "above=0"}),
    "recipes": lambda n: (recipes(n, "layer"), {}),
    "recipes of one cut": lambda n: (recipes(n, "global"), {}),
    "zeros": lambda n: (
        {
            k: t * (torch.rand(t.shape) < 0.5)
            for k, t in scored(torch.float32, n).items()
            if "w" in k
        },
        {"masks_from": "zeros"},
    ),
}


class Anonymous(Thread):
    """The most memory that the process has while it runs, files not counted: bytes."""

    def __enter__(self) -> Self:
        self.most, self.ended = 0, Event()
        self.start()
        return self

    def run(self) -> None:
        while not self.ended.wait(0.0005):
            lines = Path("/proc/self/status").read_text().splitlines()
            line = next(line for line in lines if line.startswith("RssAnon"))
            self.most = max(self.most, int(line.split()[1]) << 10)

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()


def more_for_each_weight(kind: str) -> float:
    """Bytes that each weight of further layers takes, beyond its own in the checkpoint."""
    (small, options), (large, _) = CHECKPOINTS[kind](FEW), CHECKPOINTS[kind](MANY)
    mosts = []
    # On a busy machine a short run may end between two looks at it, so there are several.
    for state in (small, small, small, small, large):
        with Anonymous() as memory:
            pemncodec.encode(
                state, io.BytesIO(), manifest=False, find_seed="off", preset="fast", threads=1,
                **options,
            )  # fmt: skip
        mosts.append(memory.most)
    return (mosts[-1] - max(mosts[1:-1])) / (SIZE * (MANY - FEW))


if __name__ == "__main__":
    mapped_masks._LARGE = spool._IN_MEMORY = in_turn._BATCH_BYTES = 1 << 16
    threads_module._BYTES_AT_ONCE = 1 << 16
    print(json.dumps({kind: more_for_each_weight(kind) for kind in CHECKPOINTS}))
