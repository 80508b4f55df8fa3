"""Networks that people train, small enough to encode in seconds: name → module and inputs.

timm and transformers come from the `zoo` extra. timm needs torchvision's image transforms alone:
where only a build of it for CUDA is to be had, `pip install --no-deps torchvision` is enough beside
a CPU build of torch, once the operators are declared that its import expects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

Inputs = Callable[[int], tuple[Tensor, ...]]
_WORDS: Final = 100


def images(size: int = 64) -> Inputs:
    """A batch of images [batch, 3, size, size]."""
    return lambda batch: (torch.randn(batch, 3, size, size),)


def tokens(length: int = 16) -> Inputs:
    """A batch of token numbers [batch, length]."""
    return lambda batch: (torch.randint(0, _WORDS - 10, (batch, length)),)


def features(*sizes: int, count: int = 1) -> Inputs:
    """`count` inputs of floats [batch, *sizes]."""
    return lambda batch: tuple(torch.randn(batch, *sizes) for _ in range(count))


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        _declare_torchvision()
        import timm

        module: nn.Module = timm.create_model(name, **options)
        return module

    return make


_declared: list[torch.library.Library] = []


def _declare_torchvision() -> None:
    if not _declared:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)


def _transformers(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        _declare_torchvision()
        import transformers

        transformers.logging.set_verbosity_error()
        built = getattr(transformers, config)(**options)
        module: nn.Module = getattr(transformers, model)(built)
        return module

    return make


# ------------------------------------------------------------------------------ of our own


class Residual(nn.Module):
    """x + fn(x)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


def conv_mixer(width: int = 128, depth: int = 4) -> nn.Module:
    """ConvMixer as PEMN trains it."""

    def block(layer: nn.Module) -> nn.Sequential:
        return nn.Sequential(layer, nn.GELU(), nn.BatchNorm2d(width))

    depthwise = [
        nn.Sequential(
            Residual(block(nn.Conv2d(width, width, 5, groups=width, padding="same"))),
            *block(nn.Conv2d(width, width, 1)),
        )
        for _ in range(depth)
    ]
    return nn.Sequential(
        *block(nn.Conv2d(3, width, 4, 4)),
        *depthwise,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


class Tagger(nn.Module):
    """A bidirectional LSTM over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, 32)
        self.lstm = nn.LSTM(32, 32, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.tags = nn.Linear(64, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tags(self.lstm(self.words(tokens))[0])


class UNet(nn.Module):
    """Two levels down and up, with the features of each level passed across."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([self._stage(3, 16), self._stage(16, 32)])
        self.middle = self._stage(32, 64)
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)]
        )
        self.join = nn.ModuleList([self._stage(64, 32), self._stage(32, 16)])
        self.head = nn.Conv2d(16, 2, 1)

    @staticmethod
    def _stage(before: int, after: int) -> nn.Module:
        layers = [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(True)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        across = []
        for stage in self.down:
            x = stage(x)
            across.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.middle(x)
        for up, join, other in zip(self.up, self.join, reversed(across), strict=True):
            x = join(torch.cat([up(x), other], dim=1))
        return self.head(x)


class Tied(nn.Module):
    """One matrix for words in and out, positions that are no part of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, 32)
        self.body = nn.Linear(32, 32)
        self.out = nn.Linear(32, _WORDS, bias=False)
        self.out.weight = self.words.weight
        self.register_buffer("positions", torch.randn(16, 32), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        order = torch.arange(tokens.shape[1], device=tokens.device)
        return self.out(torch.tanh(self.body(self.words(tokens) + self.positions[order])))


class Fork(nn.Module):
    """Branches without parameters, two inputs, a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.left, self.right = nn.ReLU(), nn.Sequential(nn.Tanh(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({"a": nn.Linear(32, 4), "b": nn.Linear(32, 2)})

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        x = self.first(x) * torch.sigmoid(self.first(y))
        x = self.left(x) + self.right(x)
        return {"a": self.heads["a"](x), "rest": (self.heads["b"](x), x.mean())}


class ByValue(nn.Module):
    """What cannot be described: it decides by a value."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x


_SMALL = {"vocab_size": _WORDS}

ZOO: Final[dict[str, tuple[Callable[[], nn.Module], Inputs]]] = {
    "ConvMixer": (conv_mixer, images(32)),
    "timm ResNet-18": (_timm("resnet18"), images()),
    "timm ResNet-50": (_timm("resnet50"), images()),
    "timm ConvNeXt atto": (_timm("convnext_atto"), images()),
    "timm EfficientNet-B0": (_timm("efficientnet_b0"), images()),
    "timm MobileNetV3": (_timm("mobilenetv3_small_100"), images()),
    "timm ViT-tiny": (_timm("vit_tiny_patch16_224", img_size=64), images()),
    "timm DeiT-tiny": (_timm("deit_tiny_patch16_224", img_size=64), images()),
    "timm Swin-tiny": (_timm("swin_tiny_patch4_window7_224"), images(224)),
    "timm MLP-Mixer": (_timm("mixer_s32_224", img_size=64), images()),
    "HF BERT": (
        _transformers(
            "BertModel",
            "BertConfig",
            **_SMALL,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        ),
        tokens(),
    ),
    "HF DistilBERT": (
        _transformers(
            "DistilBertModel",
            "DistilBertConfig",
            **_SMALL,
            dim=32,
            n_layers=2,
            n_heads=2,
            hidden_dim=64,
            max_position_embeddings=64,
        ),
        tokens(),
    ),
    "HF GPT-2": (
        _transformers(
            "GPT2LMHeadModel",
            "GPT2Config",
            **_SMALL,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=0,
        ),
        tokens(),
    ),
    "HF Llama": (
        _transformers(
            "LlamaForCausalLM",
            "LlamaConfig",
            **_SMALL,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        ),
        tokens(),
    ),
    "HF T5 encoder": (
        _transformers(
            "T5EncoderModel",
            "T5Config",
            **_SMALL,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
        ),
        tokens(),
    ),
    "LSTM tagger": (Tagger, tokens()),
    "U-Net": (UNet, images(32)),
    "tied, non-persistent": (Tied, tokens()),
    "fork, dict output": (Fork, features(16, count=2)),
    "decides by a value": (ByValue, features(16)),
}
