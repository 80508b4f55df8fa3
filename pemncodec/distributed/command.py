"""`torchrun -m pemncodec.distributed encode`: a checkpoint that is too large for one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import click

from pemncodec.checkpoints.parts import check_parts_suffice
from pemncodec.cli.encode import target_beside
from pemncodec.cli.main import in_one_line
from pemncodec.cli.mask_options import MaskArguments, mask_options
from pemncodec.cli.options import (
    find_seed_option,
    force_option,
    parse_dense,
    parse_metadata,
    prefix_option,
    quiet_option,
    threads_option,
)
from pemncodec.cli.streams import STDIO, FileName, check_output, check_source, fail, named
from pemncodec.cli.terminal import steps, visible
from pemncodec.coders.masks import PRESETS, Preset
from pemncodec.distributed.exchange import PeerError, telling
from pemncodec.distributed.part import Written, encode_part, publish
from pemncodec.distributed.ranks import Ranks
from pemncodec.distributed.reading import read_part
from pemncodec.format.index import SUFFIX
from pemncodec.options import EncodeOptions, FindSeed
from pemncodec.remote.urls import is_url, shown


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Work on one model in several processes, which torchrun starts."""


@commands.command(short_help="Encode a checkpoint, each process some of its tensors.")
@click.argument("sources", metavar="CHECKPOINT…", type=FileName(), nargs=-1, required=True)
@click.option(
    "-o", "--output", type=FileName(), help="File to write  [default: CHECKPOINT with .pemn]."
)
@mask_options
@prefix_option
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="default",
    show_default=True,
    help="As in `pemn encode`; default looks at the tensors of each process.",
)
@click.option(
    "--dense",
    multiple=True,
    metavar="[PATTERN=]MODE",
    help="lossless, fp16, bf16 or q8, for trained tensors (whose names fit)  [default: lossless].",
)
@find_seed_option
@click.option("--seed", type=int, help="What torch.manual_seed or np.random.seed was given.")
@click.option(
    "--metadata", multiple=True, metavar="KEY=VALUE", help="Text to keep in the file; repeatable."
)
@threads_option
@force_option
@quiet_option
def encode(
    sources: Sequence[str],
    output: str | None,
    mask_arguments: MaskArguments,
    prefix: str | None,
    preset: Preset,
    dense: Sequence[str],
    find_seed: FindSeed,
    seed: int | None,
    metadata: Sequence[str],
    force: bool,
    quiet: bool,
) -> None:
    """Encode a checkpoint of a masked network that is too large for one process.

    Each process reads whole layers, as many bytes as the others, and writes a shard; an index
    beside them names all. Tensors alone are stored: describing an architecture runs the network.

    \b
    torchrun --nproc-per-node 4 -m pemncodec.distributed encode CHECKPOINT --keep 0.5 -o net.pemn
    """
    ranks = Ranks.from_environment()
    options = EncodeOptions(
        prefix=prefix,
        manifest=False,
        preset=preset,
        dense=parse_dense(dense),
        find_seed=find_seed,
        seed=seed,
        metadata=parse_metadata(metadata),
    )
    output = output or target_beside(sources)
    for name in (*sources, output):
        if name == STDIO or is_url(name):
            raise click.UsageError(
                f"{shown(name)}: all processes need files in a folder that they share"
            )
    for source in sources:
        check_source(source)
        check_output(output, source, force=force)
    if not output.endswith(SUFFIX):
        raise click.BadParameter(f"{output} must end in {SUFFIX}", param_hint="-o")
    with steps(quiet=quiet or ranks.rank > 0) as step:
        given = mask_arguments.choices()
        options = replace(options, **given, threads=ranks.threads)
        check_parts_suffice(options)
        target = Path(output).absolute()
        with ranks.exchange() as exchange:
            step("reading the checkpoint", None)
            with telling(exchange), named(", ".join(sources)):
                part, choices = read_part(
                    {source: Path(source) for source in sources}, ranks, prefix, given
                )
            options = replace(options, **choices, prefix=None)
            written = encode_part(part, target, options, exchange, step)
        if ranks.rank == 0:
            files = publish(target, part.names, written)
            if not quiet:
                _tell(files, written)


def _tell(files: Sequence[Path], written: Sequence[Written]) -> None:
    for file, own in zip(files, written, strict=True):
        click.echo(f"{file.name}: {file.stat().st_size:,} bytes, {len(own.tensors):,} tensors")
    findings = [f"masks: {rule}" for own in written for rule in own.rules]
    findings.append("verified: every tensor bit for bit, by the process that encoded it")
    findings += [f"note: {note}" for own in written for note in own.notes]
    findings.append("note: no architecture is stored, since describing one runs the whole network")
    click.echo("\n".join(map(visible, dict.fromkeys(findings))))


def main() -> None:
    """Entry point of each process; of those that fail, one says in one line what went wrong."""
    try:
        status = commands.main(standalone_mode=False)
        if status:
            raise SystemExit(status)
    except PeerError:
        raise SystemExit(1) from None  # the other process tells
    except Exception as error:
        _fail(*in_one_line(error))


def _fail(message: str, status: int) -> NoReturn:
    if Ranks.from_environment().is_first_to_fail():
        fail(message, status)
    raise SystemExit(status)
