"""`pemn decode`: a file → a state dict, or a network to deploy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pemncodec.cli.options import (
    force_option,
    json_option,
    max_memory_option,
    quiet_option,
    threads_option,
)
from pemncodec.cli.state_dict import save_state_dict
from pemncodec.cli.streams import STDIO, FileName, check_output, named, opened, output_target
from pemncodec.cli.terminal import Step, print_json, steps
from pemncodec.limits import limits_within
from pemncodec.remote.stores import stored_bytes
from pemncodec.remote.urls import is_url, shown
from pemncodec.saving import plain_names

if TYPE_CHECKING:
    from pemncodec.export import NotPacked

_STATE_DICT_SUFFIXES = (".safetensors", ".pt", ".pth")
_EXPORT_SUFFIXES = (".pt2", ".onnx", ".pte")


@click.command(short_help="Decode to a plain state dict, or export a module.")
@click.argument("source", metavar="FILE", type=FileName())
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=FileName(),
    required=True,
    help="A state dict (.safetensors, .pt, .pth; - is safetensors) or a network to deploy (.pt2, "
    ".onnx, .pte).",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    metavar="N",
    help="Fix the batch size of a network to deploy.",
)
@click.option(
    "--packed",
    is_flag=True,
    help="In a network to deploy, store a bit for each masked weight, and operators that make the "
    "weights of them.",
)
@click.option(
    "--trust",
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="Code that the file may run, if it was encoded with --builder.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to decode, such as cuda.")
@max_memory_option
@threads_option
@force_option
@quiet_option
@json_option
def decode(
    source: str,
    output: str,
    batch: int | None,
    packed: bool,
    trust: Sequence[str],
    device: str,
    max_memory: int,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Decode to a plain state dict (masks applied, masked-out weights 0), or to a network.

    \b
    pemn decode net.pemn -o net.safetensors
    pemn decode net.pemn -o net.onnx --batch 1
    pemn decode net.pemn -o small.onnx --batch 1 --packed
    """
    suffix = Path(output).suffix
    if output != STDIO and suffix not in (*_STATE_DICT_SUFFIXES, *_EXPORT_SUFFIXES):
        known = ", ".join((*_STATE_DICT_SUFFIXES, *_EXPORT_SUFFIXES))
        raise click.BadParameter(f"{shown(output)} must end in {known}", param_hint="-o")
    check_output(output, source, force=force)
    if device.startswith("meta"):
        raise click.BadParameter("meta holds no data", param_hint="--device")
    if suffix in _EXPORT_SUFFIXES:
        if device != "cpu":
            raise click.UsageError(f"--device is for state dicts, not for {suffix}")
        with steps(quiet=quiet) as step:
            options = {"batch": batch, "packed": packed, "trust": trust}
            kept = _export(source, output, options, max_memory, step)
        written = stored_bytes(output) if is_url(output) else Path(output).stat().st_size
        text = "\n".join([f"{written:,} bytes", *_lines(kept)])
        _say(output, {"bytes": written, **asdict(kept)}, text, quiet=quiet, as_json=as_json)
        return
    own = {"--batch": batch is not None, "--packed": packed, "--trust": bool(trust)}
    if given := [name for name, is_given in own.items() if is_given]:
        what = shown(output) if output != STDIO else "standard output"
        raise click.UsageError(
            f"{what} becomes a state dict: {' and '.join(given)} "
            f"{'are' if len(given) > 1 else 'is'} for networks ({', '.join(_EXPORT_SUFFIXES)})"
        )
    with steps(quiet=quiet) as step, opened(source, max_memory) as file, named(source):
        count = len(plain_names(file))
        save_state_dict(file, output, device, step)
    _say(output, {"tensors": count}, f"{count} tensors", quiet=quiet, as_json=as_json)


def _say(output: str, written: dict[str, Any], text: str, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        print_json({"output": shown(output), **written}, to_stderr=output == STDIO)
    elif not quiet:
        click.echo(f"{shown(output)}: {text}", err=True)


def _export(
    source: str,
    output: str,
    options: dict[str, Any],
    max_memory: int,
    step: Step,
) -> NotPacked:
    """What stays larger than bits, and why."""
    step("loading torch", None)
    from pemncodec import export

    write: dict[str, Callable[..., NotPacked]] = {
        ".pt2": export.to_pt2,
        ".onnx": export.to_onnx,
        ".pte": export.to_executorch,
    }
    step("exporting", None)
    given = sys.stdin.buffer if source == STDIO else source
    with named(source), output_target(output) as target:
        limits = limits_within(max_memory)
        return write[Path(output).suffix](given, target, limits=limits, **options)


def _lines(kept: NotPacked) -> list[str]:
    """One for each reason why tensors are not packed, and for each vector that is large."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in kept.dense.items():
        by_reason.setdefault(reason, []).append(name)
    dense = [f"dense, because {why}: {', '.join(names)}" for why, names in by_reason.items()]
    return [*dense, *(vector.in_words for vector in kept.vectors)]
