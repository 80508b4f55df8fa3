"""Train one network of the PEMN paper's CIFAR-10 tables, store it, and prove what was stored.

A row is one command, for example ConvMixer d6-256, and so is one column of it, RP 1e-3:

    python benchmarks/train_cifar10.py --data cifar-10-batches-py --model convmixer --depth 6 \\
        --dim 256 --row -o runs/convmixer-d6-256
    python benchmarks/train_cifar10.py --data cifar-10-batches-py --model convmixer --depth 6 \\
        --dim 256 --strategy rp --ratio 1e-3 -o runs/convmixer-d6-256/rp-0.001

The recipe is the paper's for ConvMixer unless options change it: AdamW, learning rate 0 → max at
2/5 → max/20 at 4/5 → 0, 100 epochs in batches of 512. ViT, whose recipe the paper does not give,
has a smaller learning rate, without which it does not train. Into the folder go `log.csv` and
`log.json` (a line an epoch), `last.pt` (the same command goes on from there), `model.pemn`
(`model.safetensors` for a dense network), and `result.json`: configuration, data, machine,
accuracy, bytes. benchmarks/train_table.py makes a table of several folders. JPEG data needs Pillow.
"""

from __future__ import annotations

import copy
import csv
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import safetensors.torch
import torch
from cifar10 import Augmentation, Images, augment, load_cifar10, normalize
from models import IMAGE_SIZE, MODELS, RESNETS, build_model
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

import pemncodec
from pemncodec.masking import (
    Independent,
    MaxLayerPadding,
    OneLayer,
    RandomPadding,
    Strategy,
    mask_model,
    parameter_groups,
)

ROOT = Path(__file__).parent.parent
STRATEGIES = ("dense", "mask", "one-layer", "mp", "rp")
# Of a row of the paper's table, the one that matters most first.
ROW = (("rp", 1e-3), ("dense", None), ("mask", None), ("one-layer", None), ("mp", None),
       ("rp", 1e-1), ("rp", 1e-2))  # fmt: skip
PATCHES = {"convmixer": 2, "vit": 4}
LEARNING_RATES = {"vit": 0.001}
EVALUATION_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Config:
    """What a run's result depends on, besides the machine; `None` where it has no meaning."""

    model: str
    dim: int | None
    depth: int | None
    patch: int | None
    kernel: int | None
    strategy: str
    ratio: float | None
    padding: str | None
    keep: float | None
    distribution: str | None
    rescale: bool | None
    epochs: int
    batch: int
    lr: float
    weight_decay: float
    decay_scores: bool | None
    augment: Augmentation
    limit: int | None
    seed: int
    bf16: bool
    compile: bool

    @property
    def masked(self) -> bool:
        return self.strategy != "dense"


# ----------------------------------------------------------------------------------- training


def build(config: Config) -> nn.Module:
    """The network before training, on the CPU."""
    torch.manual_seed(config.seed)
    model = build_model(
        config.model,
        dim=config.dim or 0,
        depth=config.depth or 0,
        patch=config.patch or 0,
        kernel=config.kernel or 0,
    )
    if config.masked:
        mask_model(
            model,
            padding_strategy(config),
            keep=config.keep,
            seed=config.seed,
            distribution=config.distribution,
            rescale=config.rescale,
        )
    return model.to(memory_format=torch.channels_last)


def padding_strategy(config: Config) -> Strategy:
    """How the frozen weights are filled."""
    if config.strategy == "rp":
        return RandomPadding(ratio=config.ratio, mode=config.padding)
    return {"mask": Independent, "one-layer": OneLayer, "mp": MaxLayerPadding}[config.strategy]()


def build_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    decay = config.weight_decay
    groups: Any = model.parameters()
    if config.masked:
        scores_decay = decay if config.decay_scores else 0.0
        groups = parameter_groups(model, weight_decay=decay, scores_weight_decay=scores_decay)
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=decay, fused=True)


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Of step 1 to `steps`: piecewise linear."""
    return config.lr * float(np.interp(step / steps, [0, 0.4, 0.8, 1], [0, 1, 0.05, 0]))


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Images,
    config: Config,
    epoch: int,
    console: Console,
) -> float:
    """One pass over the training images.

    Order and augmentation depend on the seed and the epoch alone, so that a run can be interrupted.

    Returns:
        The mean loss.
    """
    device = images.labels.device
    seed = int(np.random.SeedSequence([config.seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator(device).manual_seed(seed)
    batches = torch.randperm(len(images), device=device, generator=generator).split(config.batch)
    total = torch.zeros((), device=device)
    model.train()
    title = f"epoch {epoch + 1}/{config.epochs}"
    progress = track(batches, title, console=console, transient=True)
    for step, index in enumerate(progress, epoch * len(batches) + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, config.epochs * len(batches))
        inputs = augment(images.pixels[index], generator, config.augment)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            loss = functional.cross_entropy(model(inputs), images.labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(index)
    return total.item() / len(images)


@torch.no_grad()
def predict(model: nn.Module, images: Images, *, bf16: bool = False) -> Tensor:
    """Logits float32 [n, classes] in eval mode."""
    model.eval()
    with torch.autocast(images.labels.device.type, torch.bfloat16, enabled=bf16):
        parts = [model(normalize(part)).float() for part in images.pixels.split(EVALUATION_BATCH)]
    return torch.cat(parts)


def top1(logits: Tensor, images: Images) -> float:
    """Accuracy in percent."""
    return (logits.argmax(1) == images.labels).double().mean().item() * 100


def train(
    model: nn.Module,
    data: tuple[Images, Images],
    config: Config,
    folder: Path,
    stop_after: int | None,
    measured_on: dict[str, str],
    console: Console,
) -> list[dict[str, Any]]:
    """Trains from where `last.pt` left off, to the end or for `stop_after` epochs.

    Returns:
        The log, a row an epoch.
    """
    train_images, test_images = data
    optimizer = build_optimizer(model, config)
    log = load_progress(folder / "last.pt", model, optimizer, config)
    compiled = torch.compile(model) if config.compile else model
    end = min(config.epochs, len(log) + stop_after) if stop_after else config.epochs
    for epoch in range(len(log), end):
        start = time.perf_counter()
        loss = train_epoch(compiled, optimizer, train_images, config, epoch, console)
        if not np.isfinite(loss):
            raise click.ClickException(f"epoch {epoch + 1}: the loss is {loss}")
        trained = time.perf_counter()
        accuracy = top1(predict(compiled, test_images, bf16=config.bf16), test_images)
        log.append(
            {
                "epoch": epoch + 1,
                "train_loss": round(loss, 5),
                "test_top1": round(accuracy, 3),
                "train_seconds": round(trained - start, 2),
                "test_seconds": round(time.perf_counter() - trained, 2),
            }
        )
        save_progress(folder, model, optimizer, config, log, measured_on)
        console.print(
            f"epoch {epoch + 1}: loss {loss:.4f}, test top-1 {accuracy:.2f} %, "
            f"{trained - start:.1f} s"
        )
    return log


def save_progress(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Config,
    log: list[dict[str, Any]],
    measured_on: dict[str, str],
) -> None:
    state = {
        "environment": measured_on,
        "config": asdict(config),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "log": log,
    }
    torch.save(state, folder / "last.pt.tmp")
    (folder / "last.pt.tmp").replace(folder / "last.pt")
    with (folder / "log.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, log[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(log)
    (folder / "log.json").write_text(json.dumps(log, indent=1) + "\n")


def load_progress(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: Config
) -> list[dict[str, Any]]:
    """Puts the state of an interrupted run into `model` and `optimizer`; returns its log."""
    if not path.exists():
        return []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise click.ClickException(
            f"{path} is damaged ({type(error).__name__}): delete it to start anew"
        ) from None
    for key, value in asdict(config).items():
        if state["config"][key] != value:
            found = state["config"][key]
            raise click.ClickException(f"{path} is of a run with {key} {found}, not {value}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    log: list[dict[str, Any]] = state["log"]
    return log


# ------------------------------------------------------------------------------------ storing


def store(model: nn.Module, test_images: Images, folder: Path) -> dict[str, Any]:
    """Writes a masked network as .pemn, reads it again, and compares their logits.

    Both run on the test images' device, in float32, on the whole test set.
    """
    path = folder / "model.pemn"
    example = normalize(test_images.pixels[:5].cpu())
    trained = copy.deepcopy(model).cpu().train()  # always in the same mode, which a manifest keeps
    info = pemncodec.encode(trained, path, example_inputs=example).info
    with pemncodec.open(path) as file:
        prototypes = [prototype.period or prototype.length for prototype in file.header.prototypes]
    decoded = pemncodec.decode(path, device=test_images.labels.device)
    # The layout of the trained network, so that the same kernels run.
    decoded.to(memory_format=torch.channels_last)
    trained_logits, decoded_logits = predict(model, test_images), predict(decoded, test_images)
    # One bit a weight and the prototype in float32: how the paper counts.
    paper_bytes = info.masked_weights / 8 + 4 * sum(prototypes)
    return {
        "file_bytes": info.file_bytes,
        "header_bytes": info.header_bytes,
        "manifest_bytes": info.manifest_bytes,
        "prototype_bytes": info.prototype_bytes,
        "dense_bytes": info.dense_bytes,
        "mask_bytes": info.mask_bytes,
        "order0_bytes": round(info.order0_bytes, 1),
        "masked_weights": info.masked_weights,
        "bits_per_weight": info.bits_per_weight,
        "prototype_values": sum(prototypes),
        "paper_formula_bytes": round(paper_bytes),
        "dense_model_bytes": info.dense_model_bytes,
        "top1": top1(decoded_logits, test_images),
        "same_predictions": torch.equal(trained_logits.argmax(1), decoded_logits.argmax(1)),
        "max_abs_logit_difference": (trained_logits - decoded_logits).abs().max().item(),
    }


def store_dense(model: nn.Module, test_images: Images, folder: Path) -> dict[str, Any]:
    """Writes a network that was trained as usual."""
    path = folder / "model.safetensors"
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, path)
    return {
        "file_bytes": path.stat().st_size,
        "dense_model_bytes": sum(t.numel() * t.element_size() for t in state.values()),
        "top1": top1(predict(model, test_images), test_images),
    }


def environment(device: torch.device, data: Path) -> dict[str, str]:
    """Data, machine, versions and commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {
        "data": data.name,
        "pemncodec": f"{pemncodec.__version__} ({commit or 'no commit'})",
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": next(_cpu_names(), platform.processor()),
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
    }


def _cpu_names() -> Iterator[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return (line.partition(": ")[2] for line in lines if line.startswith("model name"))


# ------------------------------------------------------------------------------------ command


def make_config(options: dict[str, Any], device: torch.device) -> Config:
    """Options that have no meaning for the model or strategy become None."""
    if options["patch"] is None:
        options["patch"] = PATCHES.get(options["model"])
    if options["lr"] is None:
        options["lr"] = LEARNING_RATES.get(options["model"], 0.05)
    if options["bf16"] is None:
        options["bf16"] = device.type == "cuda"
    unused = set()
    if options["model"] in RESNETS:
        unused |= {"dim", "depth", "patch"}
    if options["model"] != "convmixer":
        unused |= {"kernel"}
    if options["strategy"] != "rp":
        unused |= {"ratio", "padding"}
    if options["strategy"] == "dense":
        unused |= {"keep", "distribution", "rescale", "decay_scores"}
    return Config(**{name: None if name in unused else v for name, v in options.items()})


@click.command(help=__doc__.partition("\n")[0], context_settings={"show_default": True})
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="Folder of the usual CIFAR-10 python files, or an .npz of JPEGs.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the run; an unfinished run in it is resumed.",
)
@click.option("--model", type=click.Choice(MODELS), default="convmixer")
@click.option("--dim", type=click.IntRange(1), default=256)
@click.option("--depth", type=click.IntRange(1), default=6)
@click.option(
    "--patch", type=click.IntRange(1, IMAGE_SIZE), help="Patch size.  [default: 2, ViT: 4]"
)
@click.option("--kernel", type=click.IntRange(1), default=5)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default="rp",
    help="mask: independent random weights; mp: max-layer padding; rp: random padding.",
)
@click.option(
    "--row",
    is_flag=True,
    help="Every column of the paper's row, each in a folder of its own in --output.",
)
@click.option(
    "--ratio",
    type=click.FloatRange(0, 1),
    default=1e-3,
    help="rp: prototype size over largest layer.",
)
@click.option("--padding", type=click.Choice(["copy", "shuffle"]), default="copy", help="rp.")
@click.option(
    "--keep",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    help="Share of each layer's weights that is used.",
)
@click.option(
    "--distribution",
    type=click.Choice(["normal", "signed-constant", "uniform"]),
    default="normal",
    help="Of the frozen weights.",
)
@click.option("--rescale/--no-rescale", default=False, help="Scale each layer to its own fan-in.")
@click.option("--epochs", type=click.IntRange(1), default=100)
@click.option("--batch", type=click.IntRange(1), default=512)
@click.option("--lr", type=float, help="Learning rate.  [default: 0.05, ViT: 0.001]")
@click.option("--weight-decay", type=float, default=0.005)
@click.option(
    "--decay-scores/--no-decay-scores", default=True, help="Decay scores as the official code does."
)
@click.option(
    "--augment",
    type=click.Choice(["full", "light", "none"]),
    default="full",
    help="full: the paper's; light: shift and mirror.",
)
@click.option("--limit", type=click.IntRange(1), help="Use so many images of each split only.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--bf16/--no-bf16", default=None, help="Autocast.  [default: on CUDA]")
@click.option("--compile/--no-compile", default=False, help="torch.compile.")
@click.option("--stop-after", type=click.IntRange(1), help="Stop after so many epochs, unfinished.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--threads", type=click.IntRange(1), default=os.cpu_count())
def main(
    data: Path,
    output: Path,
    row: bool,
    stop_after: int | None,
    device: str,
    threads: int,
    **options: Any,
) -> None:
    torch.set_num_threads(threads)
    try:
        where = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        cause = str(error).partition("\n")[0]
        raise click.BadParameter(cause, param_hint="--device") from None
    console = Console(stderr=True)
    try:
        images = tuple(part.to(where) for part in load_cifar10(data, options["limit"]))
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{data}: {error}") from None
    measured_on = environment(where, data)
    if not row:
        check_used(options)
        run(make_config(options, where), images, output, stop_after, measured_on, console)
        return
    for name in ("strategy", "ratio"):
        if given(name):
            raise click.UsageError(f"--row is of every strategy: leave out --{name}")
    for strategy, ratio in ROW:
        name = strategy if ratio is None else f"{strategy}-{ratio:g}"
        console.print(f"[bold]{name}")
        config = make_config({**options, "strategy": strategy, "ratio": ratio}, where)
        run(config, images, output / name, stop_after, measured_on, console)


def given(name: str) -> bool:
    """Whether an option is on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source == click.core.ParameterSource.COMMANDLINE


def check_used(options: dict[str, Any]) -> None:
    """Refuses an option that the strategy has no use for."""
    for name in ("ratio", "padding"):
        if given(name) and options["strategy"] != "rp":
            raise click.UsageError(f"--{name} is for --strategy rp, not {options['strategy']}")


def run(
    config: Config,
    images: tuple[Images, Images],
    output: Path,
    stop_after: int | None,
    measured_on: dict[str, str],
    console: Console,
) -> None:
    """Trains one network to the end, stores it, and writes its result."""
    train_images, test_images = images
    output.mkdir(parents=True, exist_ok=True)
    model = build(config).to(test_images.labels.device)
    log = train(model, images, config, output, stop_after, measured_on, console)
    if len(log) < config.epochs:
        console.print(f"stopped after epoch {len(log)}; the same command goes on")
        return
    last = torch.load(output / "last.pt", map_location="cpu", weights_only=True)
    stored = (store if config.masked else store_dense)(model, test_images, output)
    result = {
        "config": asdict(config),
        "environment": last["environment"],  # of the last epoch, not of storing it once more
        "train_images": len(train_images),
        "test_images": len(test_images),
        "train_seconds": round(sum(row["train_seconds"] for row in log), 1),
        "best_epoch_top1": max(row["test_top1"] for row in log),
        **stored,
    }
    (output / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"test top-1 {stored['top1']:.2f} %, {stored['file_bytes']:,} bytes")
    if config.masked and not stored["same_predictions"]:
        raise click.ClickException("the decoded network classifies the test set differently")


if __name__ == "__main__":
    main()
