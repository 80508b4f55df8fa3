"""ConvMixer ("Patches Are All You Need?", Trockman & Kolter, arXiv:2201.09792) in plain PyTorch.

Module names follow the official code of "Parameter-Efficient Masking Networks" (Bai et al., NeurIPS
2022), so its checkpoints load key for key once their scores are set aside.
"""

from collections.abc import Callable

from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class Residual(nn.Module):
    """`x + fn(x)`."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


def convmixer(
    dim: int,
    depth: int,
    kernel_size: int = 5,
    patch_size: int = 2,
    n_classes: int = 10,
    act: str = "gelu",
    affine: bool = True,
) -> nn.Sequential:
    """Build a ConvMixer: a patch embedding, `depth` mixing blocks and a linear classifier.

    `act` is "gelu" or "relu"; `affine` gives the batch norms their scale and shift.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, not {act!r}")

    def activated(conv: nn.Conv2d) -> list[nn.Module]:
        return [conv, ACTIVATIONS[act](), nn.BatchNorm2d(dim, affine=affine)]

    def block() -> nn.Sequential:
        spatial = nn.Conv2d(dim, dim, kernel_size, groups=dim, padding="same", bias=False)
        pointwise = nn.Conv2d(dim, dim, 1, bias=False)
        return nn.Sequential(Residual(nn.Sequential(*activated(spatial))), *activated(pointwise))

    return nn.Sequential(
        *activated(nn.Conv2d(3, dim, patch_size, stride=patch_size, bias=False)),
        *(block() for _ in range(depth)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(dim, n_classes, bias=False),
    )
