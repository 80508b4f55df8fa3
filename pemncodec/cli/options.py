"""Options that commands share, and what their texts stand for."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import click

from pemncodec.coders.masks import PRESETS
from pemncodec.errors import EncodeArgumentError, named_line
from pemncodec.limits import Limits
from pemncodec.options import FindSeed
from pemncodec.sizes import size_in_bytes
from pemncodec.threads import threads_given

if TYPE_CHECKING:
    from torch import Tensor


class Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        size = size_in_bytes(str(value))
        if size is None:
            self.fail(f"{value!r} is not a size such as 512M or 32G", param, ctx)
        return size


class Shape(click.ParamType["tuple[str, tuple[str, ...]]"]):
    """`3,32,32` or `int64:16?`: dtype and sizes of one input, without the batch."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[str, ...]]:
        dtype, _, sizes = value.rpartition(":") if ":" in value else ("float32", "", value)
        if not re.fullmatch(r"\d+\??(,\d+\??)*|", sizes) or not re.fullmatch(r"[a-z]+\d*", dtype):
            self.fail(f"{value!r} is not a shape such as 3,32,32 or int64:16", param, ctx)
        return dtype, tuple(size for size in sizes.split(",") if size)


def only_one(
    ctx: click.Context,  # noqa: ARG001 what click calls it with
    param: click.Parameter,
    values: tuple[Any, ...],
) -> Any:
    """The value of an option that may be given once; None where it is not."""
    if len(values) > 1:
        raise click.UsageError(f"{param.opts[0]} is given {len(values)} times")
    return values[0] if values else None


quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
force_option = click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
prefix_option = click.option(
    "--prefix",
    metavar="TEXT",
    help="Leave out what the checkpoint's names begin with, such as model., and all other names.",
)
find_seed_option = click.option(
    "--find-seed",
    type=click.Choice(get_args(FindSeed)),
    default="auto",
    metavar="HOW",
    show_default=True,
    help="Look for the seeds of torch and NumPy behind the weights. auto: for some seconds. quick: "
    "for one. full: also among all 2^32 seeds, 45 s on two cores wherever the weights may begin. "
    "off: not at all.",
)
preset_option = click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="default",
    show_default=True,
    help="fast: masks decode at memory speed. max: the smallest masks, slow to decode. "
    "default: max for up to 16 million masked weights where that is smaller, else fast.",
)
dense_option = click.option(
    "--dense",
    multiple=True,
    metavar="[PATTERN=]MODE",
    help="How tensors without masks are stored, or those whose names fit PATTERN: lossless, fp16, "
    "bf16 or q8 (8 bits)  [default: lossless].",
)
seed_option = click.option(
    "--seed", type=int, metavar="N", help="What torch.manual_seed or np.random.seed was given."
)
metadata_option = click.option(
    "--metadata", multiple=True, metavar="KEY=VALUE", help="Text to keep in the file; repeatable."
)
shard_size_option = click.option(
    "--shard-size",
    metavar="SIZE",
    help="Write several files of at most SIZE bytes (2GB, 500MB, 2GiB) and an index, where one "
    "would be larger. They are cut by what tensors take before compression, so most are smaller; "
    "no tensor is cut.",
)
resume_option = click.option(
    "--resume",
    is_flag=True,
    help="Continue an encoding into shards that was interrupted: give the same options again.",
)
trust_pickle_option = click.option(
    "--trust-pickle", is_flag=True, help="Load a pickled module; runs code from that file."
)


def _with_threads(ctx: click.Context, _: click.Parameter, value: int | None) -> None:
    ctx.with_resource(threads_given(value))


threads_option = click.option(
    "--threads",
    type=click.IntRange(1),
    metavar="N",
    envvar="PEMN_THREADS",
    show_envvar=True,
    expose_value=False,
    callback=_with_threads,
    help="How many threads to use  [default: as many as can run].",
)
max_memory_option = click.option(
    "--max-memory",
    type=Size(),
    default=Limits().decoded_bytes,
    help="Refuse a file that decodes to more, such as 512M or 32G  [default: 16G].",
)


def parse_dense(options: Sequence[str]) -> dict[str, Any]:
    """Modes by pattern, the one without a pattern last; `encode` checks them."""
    modes: dict[str, Any] = {}
    for option in sorted(options, key=lambda option: "=" not in option):
        pattern, _, mode = option.rpartition("=")
        if (pattern or "*") in modes:
            raise click.BadParameter(f"two modes for {pattern or '*'}", param_hint="--dense")
        modes[pattern or "*"] = mode
    return modes


def parse_metadata(options: Sequence[str]) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for option in options:
        key, found, value = option.partition("=")
        if not key or not found:
            raise click.BadParameter(f"{option!r} is not KEY=VALUE", param_hint="--metadata")
        if key in metadata:
            raise click.BadParameter(f"two values for {key}", param_hint="--metadata")
        metadata[key] = value
    return metadata


def parse_argv(text: str | None, arch: str | None, *, builder: bool) -> list[str]:
    if text is None:
        return []
    if arch is None:
        raise click.UsageError("--arch-argv belongs to --arch")
    if builder:
        raise click.UsageError("--builder stores no --arch-argv: give --arch-kwargs")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}", param_hint="--arch-argv") from None


def parse_kwargs(text: str, arch: str | None) -> dict[str, Any]:
    try:
        kwargs = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON ({error})", param_hint="--arch-kwargs") from None
    if not isinstance(kwargs, dict):
        raise click.BadParameter("not a JSON object", param_hint="--arch-kwargs")
    if kwargs and arch is None:
        raise click.UsageError("--arch-kwargs belongs to --arch")
    return kwargs


def example_inputs(shapes: Sequence[tuple[str, tuple[str, ...]]]) -> list[Tensor]:
    import torch

    from pemncodec.architecture.example import random_input

    inputs = []
    for name, sizes in shapes:
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise EncodeArgumentError(f"--example-shape: torch has no dtype {name}")
        try:
            inputs.append(random_input(dtype, [int(size.rstrip("?")) for size in sizes]))
        except RuntimeError as error:
            raise EncodeArgumentError(f"--example-shape: {named_line(error)}") from None
    return inputs
