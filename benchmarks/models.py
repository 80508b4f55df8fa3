"""Networks in plain PyTorch: of PEMN's CIFAR experiments (Bai et al., NeurIPS 2022), and larger.

* ConvMixer is that of the authors' code, in examples/convmixer.py.
* CIFAR ResNets are those of He et al. (CVPR 2016), section 4.2, with parameter-free shortcuts
  (option A).
* ViT is an assumption, as the authors published their ConvMixer code only. It has what is usual for
  CIFAR-10 at these widths and depths: patches of 4 pixels, 8 heads of 64, a hidden layer of 512, a
  class token, layer norms first, learned positions, no dropout.
* ResNet-50 (He et al., table 1, with strides in the 3×3 convolutions) and the ViTs of 224 pixels
  (Dosovitskiy et al., ICLR 2021; tiny of Touvron et al., ICML 2021) have the sizes of ImageNet's.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from convmixer import convmixer

RESNETS = {"resnet20": 3, "resnet32": 5, "resnet56": 9}
MODELS = ("convmixer", "vit", *RESNETS)
IMAGE_SIZE = 32
LARGE_VITS = {"ViT-Ti/16": (192, 3), "ViT-B/16": (768, 12)}  # width, heads
LARGE = ("ResNet-50", *LARGE_VITS)
LARGE_IMAGE_SIZE = 224


def build_model(
    name: str, *, dim: int, depth: int, patch: int, kernel: int, n_classes: int = 10
) -> nn.Module:
    """A network of `MODELS` with PyTorch's initial values.

    Args:
        name: ResNets are what their name says and leave the other arguments aside.
        dim: width in channels.
        depth: number of blocks.
        patch: patch size in pixels.
        kernel: kernel size of a ConvMixer.
        n_classes: number of outputs.

    Returns:
        float32 [n, 3, 32, 32] → logits [n, n_classes].
    """
    if name == "convmixer":
        return convmixer(dim, depth, kernel_size=kernel, patch_size=patch, n_classes=n_classes)
    if name == "vit":
        return VisionTransformer(dim, depth, patch=patch, n_classes=n_classes)
    return resnet(RESNETS[name], n_classes)


def build_large(name: str) -> nn.Module:
    """A network of `LARGE` with PyTorch's initial values: float32 [n, 3, 224, 224] → [n, 1000]."""
    if name == "ResNet-50":
        return resnet50()
    dim, heads = LARGE_VITS[name]
    return VisionTransformer(
        dim,
        12,
        patch=16,
        hidden=4 * dim,
        n_classes=1000,
        heads=heads,
        image_size=LARGE_IMAGE_SIZE,
        qkv_bias=True,
    )


# ------------------------------------------------------------------------------------- ResNet


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, and a shortcut that subsamples and pads with zero channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            x = functional.avg_pool2d(x, 1, self.stride)
        if self.padding:
            x = functional.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(y + x)


def resnet(blocks: int, n_classes: int = 10) -> nn.Sequential:
    """A CIFAR ResNet of 6 · `blocks` + 2 layers: three stages of 16, 32 and 64 channels."""
    widths = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *(
            BasicBlock(before, after, stride=after // before)
            for before, after in itertools.pairwise(widths)
        ),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, n_classes),
    )


class Bottleneck(nn.Module):
    """Convolutions of 1×1, 3×3 and 1×1, and a shortcut, projected where its shape changes."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def resnet50(n_classes: int = 1000) -> nn.Sequential:
    """Four stages of 3, 4, 6 and 3 blocks."""
    blocks, channels = [], 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            blocks.append(Bottleneck(channels, width, 1 if index else stride))
            channels = 4 * width
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, n_classes),
    )


# ---------------------------------------------------------------------------------------- ViT


class Attention(nn.Module):
    """Self-attention of `heads` heads, each `head_dim` wide."""

    def __init__(
        self, dim: int, heads: int = 8, head_dim: int = 64, *, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=qkv_bias)
        self.out = nn.Linear(heads * head_dim, dim)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=1)
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(functional.gelu(self.up(self.norm(x))))


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al., ICLR 2021)."""

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        patch: int = 4,
        hidden: int = 512,
        n_classes: int = 10,
        heads: int = 8,
        image_size: int = IMAGE_SIZE,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        patches = (image_size // patch) ** 2
        self.embed = nn.Conv2d(3, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, patches + 1, dim))
        self.blocks = nn.Sequential(
            *(
                layer
                for _ in range(depth)
                for layer in (
                    Attention(dim, heads, qkv_bias=qkv_bias),
                    FeedForward(dim, hidden),
                )
            )
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        first = self.class_token.expand(x.shape[0], -1, -1)
        y = torch.cat([first, tokens], dim=1) + self.positions
        return self.head(self.norm(self.blocks(y)[:, 0]))
