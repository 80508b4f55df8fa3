"""Train a masked ConvMixer on CIFAR-10: random weights stay frozen, a score per weight is learned.

All layers repeat one short random prototype ("RP" in "Parameter-Efficient Masking Networks", Bai et
al., NeurIPS 2022), which comes from a seed, and each layer uses the weights whose scores are
largest in magnitude.

Needs Pillow beside the package. `examples/convmixer-rp1e-3-k50.pt` and `examples/cifar10-200.npz`
were made with

    python examples/train_convmixer.py --data cifar10_jpeg.npz \\
        -o examples/convmixer-rp1e-3-k50.pt --images examples/cifar10-200.npz

(`cifar10_jpeg.npz`: `{train,test}_jpeg`, all files one after the other, with `_offsets` and
`_labels`; accuracy on its 10,000 test images: TOP1 %.)
"""

import io
from pathlib import Path

import click
import numpy as np
import torch
from convmixer import convmixer
from PIL import Image
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from pemncodec.masking import RandomPadding, mask_model, parameter_groups

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
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the top-1 accuracy of `model`."""
    model.eval()
    logits = [model(normalize(part)) for part in images.split(500)]
    return (torch.cat(logits).argmax(1) == labels).float().mean().item()


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
    mask_model(model, RandomPadding(ratio=ratio), keep=keep, seed=seed)
    model.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    groups = parameter_groups(model, weight_decay=0.005, scores_weight_decay=0.005)
    optimizer = torch.optim.AdamW(groups, lr=lr)
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
            loss = functional.cross_entropy(model(inputs), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        top1 = accuracy(model, test_x, test_y)
        click.echo(f"epoch {epoch + 1}: test top-1 {top1:.2%}")

    state = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    torch.save(state, output)


if __name__ == "__main__":
    main()
