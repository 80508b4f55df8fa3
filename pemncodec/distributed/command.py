"""`torchrun -m pemncodec.distributed encode`: a checkpoint that is too large for one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import click

from pemncodec.checkpoints.parts import check_parts_suffice
from pemncodec.cli.encode import target_beside
from pemncodec.cli.mask_options import MaskArguments, mask_options
from pemncodec.cli.options import (
    dense_option,
    find_seed_option,
    force_option,
    metadata_option,
    parse_dense,
    parse_metadata,
    prefix_option,
    preset_option,
    quiet_option,
    resume_option,
    seed_option,
    shard_size_option,
    threads_option,
)
from pemncodec.cli.streams import (
    STDIO,
    FileName,
    check_output,
    check_sources,
    fail,
    in_one_line,
    named,
)
from pemncodec.cli.terminal import print_info, steps, visible
from pemncodec.coders.masks import Preset
from pemncodec.distributed.exchange import PeerError, telling
from pemncodec.distributed.part import Written, encode_part, prepare, publish
from pemncodec.distributed.ranks import Ranks
from pemncodec.distributed.reading import read_part
from pemncodec.format.index import SUFFIX
from pemncodec.format.leftovers import has_names
from pemncodec.format.reader import open_file
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
@preset_option
@dense_option
@find_seed_option
@seed_option
@metadata_option
@shard_size_option
@resume_option
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
    shard_size: str | None,
    resume: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Encode a checkpoint of a masked network that is too large for one process.

    Each process reads whole layers, as many bytes as the others, and writes a shard; an index
    beside them names all. Tensors alone are stored: describing an architecture runs the network.

    \b
    torchrun --nproc-per-node 4 -m pemncodec.distributed encode CHECKPOINT \\
        --keep 0.5 -o net.pemn
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
        shard_size=shard_size,
    )
    output = output or target_beside(sources)
    for name in (*sources, output):
        if name == STDIO or is_url(name):
            raise click.UsageError(
                f"{shown(name)}: all processes need files in a folder that they share"
            )
    check_sources(sources)
    for source in sources:
        ours = resume and has_names(Path(output))
        check_output(output, source, force=force or ours, resume=resume)
    if not output.endswith(SUFFIX):
        raise click.BadParameter(f"{output} must end in {SUFFIX}", param_hint="-o")
    target = Path(output).absolute()
    with steps(quiet=quiet or ranks.rank > 0) as step:
        given = mask_arguments.choices()
        options = replace(options, **given, threads=ranks.threads)
        check_parts_suffice(options)
        with ranks.exchange() as exchange:
            prepare(target, exchange, resume=resume, force=force)
            step("reading the checkpoint", None)
            with telling(exchange), named(", ".join(sources)):
                part, choices = read_part(
                    {source: Path(source) for source in sources}, exchange, prefix, given
                )
            options = replace(options, **choices, prefix=None)
            written = encode_part(part, target, options, exchange, step, resume=resume)
        if ranks.rank == 0:
            model = publish(target, part.names, written, ranks.count)
            if not quiet:
                _tell(model, written)


def _tell(model: Path, written: Sequence[Written]) -> None:
    with open_file(model) as file:
        print_info(model.name, file.info(decode=False), verbose=False)
    findings = [
        *(f"masks: {rule}" for rule in written[0].rules),
        "verified: every tensor bit for bit, by the process that encoded it",
        *_notes({own.rank: own.notes for own in written}),
        "note: no architecture is stored, since describing one runs the whole network",
    ]
    click.echo("\n".join(map(visible, findings)))


def _notes(by_rank: Mapping[int, Sequence[str]]) -> list[str]:
    """Each sentence once, with the processes that say it unless all do."""
    ranks: dict[str, list[str]] = {}
    for rank, sentences in by_rank.items():
        for sentence in sentences:
            ranks.setdefault(sentence, []).append(str(rank))
    return [
        f"note: {sentence}" + f" (rank {', '.join(own)})" * (len(own) < len(by_rank))
        for sentence, own in ranks.items()
    ]


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
