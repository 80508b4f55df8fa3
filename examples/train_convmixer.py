"""Train a masked ConvMixer on CIFAR-10: random weights stay frozen, a score per weight is learned.

All layers repeat one short random prototype ("RP" in "Parameter-Efficient Masking Networks", Bai et
al., NeurIPS 2022), and each layer uses the weights whose scores are largest in magnitude. The
result is a `state_dict` in the authors' form: `X.weight` frozen, `X.scores` learned, batch norms
trained as usual.

Needs Pillow beside the package. `examples/convmixer-rp1e-3-k50.pt` and `examples/cifar10-200.npz`
were made with

    python examples/train_convmixer.py --data cifar10_jpeg.npz \\
        -o examples/convmixer-rp1e-3-k50.pt --images examples/cifar10-200.npz

(`cifar10_jpeg.npz`: `{train,test}_jpeg`, all files one after the other, with `_offsets` and
`_labels`; accuracy on its 10,000 test images: 69.59 %.)
"""

import io
import math
from pathlib import Path

import click
import numpy as np
import torch
from convmixer import convmixer
from PIL import Image
from rich.progress import track
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def load_images(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """Decode the "train" or "test" JPEGs of `path` to uint8 [n, 3, 32, 32], with int64 labels."""
    with np.load(path) as arrays:
        jpeg, ends, labels = (arrays[f"{split}_{name}"] for name in ("jpeg", "offsets", "labels"))
    files = (io.BytesIO(part.tobytes()) for part in np.split(jpeg, ends[1:-1]))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(labels).long()


def normalize(images: Tensor) -> Tensor:
    """Turn uint8 images into the floats that the network expects."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, padding: int = 4) -> Tensor:
    """Shift every image by up to `padding` pixels and mirror half of them."""
    n, channels, size, _ = images.shape
    along = torch.arange(size)
    rows = torch.randint(2 * padding + 1, (n, 1)) + along
    mirrored = torch.rand(n, 1) < 0.5
    columns = torch.randint(2 * padding + 1, (n, 1)) + torch.where(mirrored, along.flip(0), along)
    return functional.pad(images, (padding,) * 4)[
        torch.arange(n).view(n, 1, 1, 1),
        torch.arange(channels).view(1, channels, 1, 1),
        rows.view(n, 1, size, 1),
        columns.view(n, 1, 1, size),
    ]


@torch.no_grad()
def fill_weights(model: nn.Module, ratio: float) -> None:
    """Draw the largest layer, and fill all masked layers with repeats of its first values."""
    weights = [w for w in model.parameters() if w.ndim > 1]
    largest = max(weights, key=Tensor.numel)
    nn.init.kaiming_normal_(largest, mode="fan_in", nonlinearity="relu")
    n = largest.numel()
    prototype = largest.flatten()[: int(n * ratio) + 1].clone()
    tiled = prototype.repeat(math.ceil(n / len(prototype)))
    for weight in weights:
        weight.requires_grad_(False).copy_(tiled[: weight.numel()].view_as(weight))


def initial_scores(model: nn.Module) -> dict[str, nn.Parameter]:
    """Draw a score for every weight, under the weight's name."""
    scores = {}
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            scores[name] = nn.Parameter(torch.empty_like(weight))
            nn.init.kaiming_uniform_(scores[name], a=math.sqrt(5))
    return scores


def mask(scores: Tensor, keep: float) -> Tensor:
    """Return 1 for the fraction `keep` of the largest |scores| and 0 elsewhere.

    The gradient passes straight through to |scores|.
    """
    magnitude = scores.abs()
    order = magnitude.detach().flatten().sort(stable=True).indices
    hard = torch.ones_like(order, dtype=scores.dtype)
    hard[order[: int((1 - keep) * len(order))]] = 0
    return hard.view_as(scores) + (magnitude - magnitude.detach())


def effective_weights(
    model: nn.Module, scores: dict[str, nn.Parameter], keep: float
) -> dict[str, Tensor]:
    """Return the masked weights, under their names in `model`."""
    return {name: model.get_parameter(name) * mask(s, keep) for name, s in scores.items()}


@torch.no_grad()
def accuracy(model: nn.Module, weights: dict[str, Tensor], images: Tensor, labels: Tensor) -> float:
    """Return the top-1 accuracy of `model` with `weights` in place of its own."""
    model.eval()
    logits = [functional_call(model, weights, (normalize(part),)) for part in images.split(500)]
    return (torch.cat(logits).argmax(1) == labels).float().mean().item()


def checkpoint(model: nn.Module, scores: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the `state_dict` of `model` with every layer's scores beside its weights."""
    tensors = {}
    for name, value in model.state_dict().items():
        tensors[name] = value
        if name in scores:
            tensors[name.removesuffix("weight") + "scores"] = scores[name].detach()
    return {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}


@click.command()
@click.option("--data", type=Path, required=True, help="CIFAR-10 as JPEG bytes in one .npz file.")
@click.option("-o", "--output", type=Path, required=True, help="Checkpoint to write.")
@click.option("--images", type=Path, help="Also write 20 test images of each class here (.npz).")
@click.option("--epochs", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--batch", default=256, show_default=True)
@click.option("--lr", default=0.05, show_default=True)
@click.option("--ratio", default=1e-3, show_default=True, help="Prototype size over largest layer.")
@click.option("--keep", default=0.5, show_default=True, help="Fraction of weights each layer uses.")
@click.option("--threads", default=1, show_default=True)
def main(
    data: Path,
    output: Path,
    images: Path | None,
    epochs: int,
    seed: int,
    batch: int,
    lr: float,
    ratio: float,
    keep: float,
    threads: int,
) -> None:
    """Train a masked ConvMixer (dim 128, depth 4, kernel 5, patch 4) and save its checkpoint."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    x, y = load_images(data, "train")
    test_x, test_y = load_images(data, "test")
    if images:
        first = torch.cat([(test_y == label).nonzero()[:20, 0] for label in test_y.unique()])
        labels = test_y[first].to(torch.uint8)
        np.savez_compressed(images, images=test_x[first].numpy(), labels=labels.numpy())

    model = convmixer(128, 4, kernel_size=5, patch_size=4)
    fill_weights(model, ratio)
    model.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    scores = initial_scores(model)
    trained = [*scores.values(), *(p for p in model.parameters() if p.requires_grad)]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.005)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: float(np.interp((step + 1) / steps, [0, 0.4, 0.8, 1], [0, 1, 0.05, 0])),
    )

    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(x))[: len(x) // batch * batch]
        for index in track(order.split(batch), f"epoch {epoch + 1}/{epochs}", transient=True):
            inputs = normalize(augment(x[index]))
            logits = functional_call(model, effective_weights(model, scores, keep), (inputs,))
            loss = functional.cross_entropy(logits, y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        top1 = accuracy(model, effective_weights(model, scores, keep), test_x, test_y)
        click.echo(f"epoch {epoch + 1}: test top-1 {top1:.2%}")

    torch.save(checkpoint(model, scores), output)


if __name__ == "__main__":
    main()
