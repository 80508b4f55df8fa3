"""CIFAR-10 from files to batches: loading, and augmentation in batches on the images' device.

The augmentation is that of the PEMN recipe (torchvision's RandomHorizontalFlip, RandAugment,
ColorJitter, RandomErasing), drawn anew for every image. What differs: ColorJitter keeps one order
of its steps, and RandomErasing clips a box that is too large where torchvision draws another.
"""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
SIZE = 32

# ------------------------------------------------------------------------------------ loading


@dataclass(frozen=True, slots=True)
class Images:
    """Pixels uint8 [n, 3, 32, 32] and labels int64 [n]."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device))


def load_cifar10(path: Path, limit: int | None = None) -> tuple[Images, Images]:
    """Training and test images.

    Args:
        path: the folder of the python version's files (`data_batch_1` …), or the one it lies in; or
            an .npz of JPEG files: `{train,test}_jpeg` uint8, all files one after the other,
            `_offsets` [n + 1], `_labels` [n].
        limit: take so many images of each only, evenly spread (the files may be sorted by class).

    Raises:
        FileNotFoundError: there is no CIFAR-10 at `path`.
        ValueError: the files hold something else.
    """
    if path.is_file():
        return _load_jpegs(path, "train", limit), _load_jpegs(path, "test", limit)
    for folder in (path, path / "cifar-10-batches-py"):
        if (folder / "data_batch_1").is_file():
            train = _load_batches(sorted(folder.glob("data_batch_[1-5]")), limit)
            return train, _load_batches([folder / "test_batch"], limit)
    raise FileNotFoundError(f"{path} is neither an .npz nor a folder with data_batch_1")


def _load_jpegs(path: Path, split: str, limit: int | None) -> Images:
    from PIL import Image

    with np.load(path) as arrays:
        jpeg, ends, labels = (arrays[f"{split}_{name}"] for name in ("jpeg", "offsets", "labels"))
    chosen = _spread(len(labels), limit)
    files = (jpeg[ends[i] : ends[i + 1]].tobytes() for i in chosen)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    return _images(pixels.transpose(0, 3, 1, 2), labels[chosen])


def _load_batches(paths: list[Path], limit: int | None) -> Images:
    batches = []
    for path in paths:
        with path.open("rb") as stream:
            batches.append(_ArrayUnpickler(stream).load())
    pixels = np.concatenate([batch[b"data"] for batch in batches])
    labels = np.concatenate([batch[b"labels"] for batch in batches])
    chosen = _spread(len(labels), limit)
    return _images(pixels[chosen].reshape(-1, 3, SIZE, SIZE), labels[chosen])


def _spread(count: int, limit: int | None) -> np.ndarray[Any, Any]:
    return np.arange(min(limit or count, count)) * count // min(limit or count, count)


def _images(pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Images:
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3, SIZE, SIZE):
        raise ValueError(f"{len(labels)} labels with images {pixels.dtype} {pixels.shape}")
    return Images(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        torch.from_numpy(labels.astype(np.int64)),
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts, lists, bytes and arrays; a pickle that names anything else is refused."""

    _ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise ValueError(f"a CIFAR-10 file has no use for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


# ------------------------------------------------------------------------------- augmentation

Augmentation = Literal["full", "light", "none"]


def augment(pixels: Tensor, generator: Generator, kind: Augmentation) -> Tensor:
    """A training batch as the network's input.

    Args:
        pixels: uint8 [n, 3, 32, 32].
        generator: on the device of `pixels`.
        kind: "full" is the PEMN recipe, "light" shifts and mirrors, "none" does nothing.

    Returns:
        float32 [n, 3, 32, 32], normalised.
    """
    if kind == "none":
        return normalize(pixels)
    if kind == "light":
        return normalize(shift_and_flip(pixels, generator))
    images = flip(pixels, generator).float()
    images = jitter(rand_augment(images, generator), generator)
    return erase(normalize(images), generator)


def normalize(images: Tensor) -> Tensor:
    """Values from 0 to 255 as the floats that networks expect, channels last in memory."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    normalized = (images.float() / 255 - mean) / std
    return normalized.contiguous(memory_format=torch.channels_last)


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirrors half of the images."""
    mirrored = _uniform(0, 1, len(images), generator) < 0.5
    return torch.where(_per_image(mirrored), images.flip(3), images)


def shift_and_flip(images: Tensor, generator: Generator, padding: int = 4) -> Tensor:
    """Shifts every image by up to `padding` pixels over a black border, and mirrors half."""
    n, channels, size, _ = images.shape
    along = torch.arange(size, device=images.device)
    down, right = (_uniform(0, 2 * padding + 1, n, generator).long().view(n, 1) for _ in range(2))
    mirrored = _uniform(0, 1, n, generator).view(n, 1) < 0.5
    rows, columns = down + along, right + torch.where(mirrored, along.flip(0), along)
    return functional.pad(images, (padding,) * 4)[
        torch.arange(n, device=images.device).view(n, 1, 1, 1),
        torch.arange(channels, device=images.device).view(1, channels, 1, 1),
        rows.view(n, 1, size, 1),
        columns.view(n, 1, 1, size),
    ]


def rand_augment(
    images: Tensor, generator: Generator, operations: int = 2, magnitude: int = 12
) -> Tensor:
    """RandAugment (Cubuk et al., 2020) with torchvision's operations and magnitudes of 0 to 30.

    Every operation runs on the whole batch and is used where an image has drawn it: no step waits
    for the device.

    Args:
        images: float [n, 3, h, w], 0 to 255; so is the result.
    """
    for _ in range(operations):
        drawn = _uniform(0, 1 + len(OPERATIONS), len(images), generator).long()
        sign = _uniform(0, 2, len(images), generator).floor() * 2 - 1
        before = images
        for index, operation in enumerate(OPERATIONS):
            chosen = _per_image(drawn == index)
            images = torch.where(chosen, operation(before, sign * magnitude / 30), images)
    return images


def jitter(images: Tensor, generator: Generator, amount: float = 0.2) -> Tensor:
    """Brightness, contrast and saturation, each by a factor of 1 ± `amount`."""
    for operation in (brightness, contrast, color):
        factor = _uniform(1 - amount, 1 + amount, len(images), generator)
        images = operation(images, factor)
    return images


def erase(images: Tensor, generator: Generator, probability: float = 0.2) -> Tensor:
    """Random erasing (Zhong et al., 2020): zeros in a box of 2 % to 33 % of the area."""
    n, _, height, width = images.shape
    area = _uniform(0.02, 0.33, n, generator) * (height * width)
    aspect = _uniform(math.log(0.3), math.log(3.3), n, generator).exp()
    inside = _uniform(0, 1, n, generator).view(n, 1) < probability
    box = []
    for size, length in ((height, (area * aspect).sqrt()), (width, (area / aspect).sqrt())):
        extent = length.round().clamp(max=size - 1)
        start = (_uniform(0, 1, n, generator) * (size - extent + 1)).floor()
        along = torch.arange(size, device=images.device)
        box.append((along >= start.view(n, 1)) & (along < (start + extent).view(n, 1)))
    rows, columns = box
    erased = (rows & inside).view(n, 1, height, 1) & columns.view(n, 1, 1, width)
    return images.masked_fill(erased, 0)


# ------------------------------------------------------------------------- RandAugment's operations
#
# float [n, 3, h, w] of 0 to 255 → the same. Factors and angles are float [n]: one for each image.


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Each image at the affine `matrix` [n, 2, 3] of its coordinates, −1 to 1; outside is black."""
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="nearest", align_corners=False)


def shear_x(images: Tensor, factor: Tensor) -> Tensor:
    """Slants by `factor` pixels a row; the first row stays."""
    return warp(images, _matrix(((1, factor, factor), (0, 1, 0)), factor))


def shear_y(images: Tensor, factor: Tensor) -> Tensor:
    """Slants by `factor` pixels a column; the first column stays."""
    return warp(images, _matrix(((1, 0, 0), (factor, 1, factor)), factor))


def translate_x(images: Tensor, pixels: Tensor) -> Tensor:
    """Moves to the left by whole pixels."""
    return warp(images, _matrix(((1, 0, 2 / images.shape[3] * pixels.trunc()), (0, 1, 0)), pixels))


def translate_y(images: Tensor, pixels: Tensor) -> Tensor:
    """Moves upwards by whole pixels."""
    return warp(images, _matrix(((1, 0, 0), (0, 1, 2 / images.shape[2] * pixels.trunc())), pixels))


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turns around the centre."""
    sin, cos = degrees.deg2rad().sin(), degrees.deg2rad().cos()
    return warp(images, _matrix(((cos, -sin, 0), (sin, cos, 0)), degrees))


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """0 is black, 1 the image."""
    return _blend(images, torch.zeros_like(images), factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """0 is gray, 1 the image."""
    return _blend(images, _gray(images), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """0 is the mean gray, 1 the image."""
    return _blend(images, _gray(images).mean((2, 3), keepdim=True), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """0 is smoothed but for the border, 1 the image."""
    inner = functional.avg_pool2d(images, 3, stride=1) * 9 + 4 * images[:, :, 1:-1, 1:-1]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = inner / 13
    return _blend(images, smooth, factor)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the upper `bits` of 8."""
    step = _per_image(torch.exp2(8 - bits))
    return (images / step).floor() * step


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts values from `threshold` on."""
    return torch.where(images >= _per_image(threshold), 255 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel to the whole range."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low) * (255 / (high - low).clamp(min=1e-3))
    return torch.where(high > low, stretched.clamp(0, 255), images)


def equalize(images: Tensor) -> Tensor:
    """Spreads each channel's values evenly, as Pillow's `ImageOps.equalize` does."""
    levels = images.round().long().flatten(2)
    counts = levels.new_zeros((*levels.shape[:2], 256))
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    highest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - highest) // 255
    before = counts.cumsum(2) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    equal = table.gather(2, levels).to(images.dtype).view_as(images)
    return torch.where((step > 0).unsqueeze(3), equal, images)


# By the level, −1 to 1: torchvision's scales. The identity is the operation after the last.
OPERATIONS = (
    lambda images, level: shear_x(images, 0.3 * level),
    lambda images, level: shear_y(images, 0.3 * level),
    lambda images, level: translate_x(images, 150 / 331 * images.shape[3] * level),
    lambda images, level: translate_y(images, 150 / 331 * images.shape[2] * level),
    lambda images, level: rotate(images, 30 * level),
    lambda images, level: brightness(images, 1 + 0.9 * level),
    lambda images, level: color(images, 1 + 0.9 * level),
    lambda images, level: contrast(images, 1 + 0.9 * level),
    lambda images, level: sharpness(images, 1 + 0.9 * level),
    lambda images, level: posterize(images, 8 - (4 * level.abs()).round()),
    lambda images, level: solarize(images, 255 * (1 - level.abs())),
    lambda images, _: autocontrast(images),
    lambda images, _: equalize(images),
)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + _per_image(factor) * (images - other)).clamp(0, 255)


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _matrix(rows: tuple[tuple[Tensor | float, ...], ...], like: Tensor) -> Tensor:
    """[n, 2, 3] of numbers and of tensors [n]."""
    flat = [torch.as_tensor(v, device=like.device).expand_as(like) for row in rows for v in row]
    return torch.stack(flat, dim=1).to(like.dtype).view(-1, 2, 3)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _uniform(low: float, high: float, n: int, generator: Generator) -> Tensor:
    values = torch.rand(n, device=generator.device, generator=generator)
    return low + (high - low) * values
