"""`pemn seed`: the seeds of torch or NumPy behind a checkpoint's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from pemncodec.cli.mask_options import MASK_SECTION, MaskArguments, mask_options
from pemncodec.cli.options import (
    find_seed_option,
    json_option,
    prefix_option,
    quiet_option,
    seed_option,
    threads_option,
    trust_pickle_option,
)
from pemncodec.cli.sections import Sectioned
from pemncodec.cli.streams import FileName, check_source, checkpoint_path, named
from pemncodec.cli.terminal import print_json, steps, visible
from pemncodec.cli.user_code import no_exit
from pemncodec.format.reader import PemnFile
from pemncodec.options import EncodeOptions, FindSeed
from pemncodec.remote.urls import shown

if TYPE_CHECKING:
    from pemncodec.contents import SeededFill


@click.command(
    cls=Sectioned,
    sections={
        **MASK_SECTION,
        "find_seed": "Seeds behind the weights",
        "trust_pickle": "Other options",
    },
    short_help="Look for the seeds behind a checkpoint's weights.",
)
@click.argument("source", metavar="CHECKPOINT", type=FileName())
@mask_options
@prefix_option
@find_seed_option
@seed_option
@trust_pickle_option
@threads_option
@quiet_option
@json_option
def seed(
    source: str,
    mask_arguments: MaskArguments,
    prefix: str | None,
    find_seed: FindSeed,
    seed: int | None,
    trust_pickle: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Look for the seeds that torch or NumPy drew a checkpoint's weights from.

    \b
    pemn seed model.pt --keep 0.5

    Only weights that masks use are looked at; without masks, all of two dimensions or more. The
    exit status is 1 if nothing is found.
    """
    looked = find_seed != "off" or seed is not None
    check_source(source)
    hint = ""
    with steps(quiet=quiet) as step:
        step("loading torch", None)
        from torch import nn

        from pemncodec.checkpoints.reading import read_source, with_recorded
        from pemncodec.checkpoints.sources import read_checkpoint
        from pemncodec.checkpoints.unmasked import NoMasksError, masks_from_zeros
        from pemncodec.seeds import all_used, weight_seeds

        given = mask_arguments.choices()
        options = EncodeOptions(
            **given, prefix=prefix, manifest=False, find_seed=find_seed, seed=seed
        )
        step("reading the checkpoint", None)
        with checkpoint_path(source) as path, no_exit(f"code of {shown(source)}"):
            loaded = read_checkpoint(path, trust_pickle=trust_pickle, name=shown(source))
        given_tensors = loaded.source
        if isinstance(given_tensors, PemnFile):
            raise click.UsageError(f"a .pemn file says it itself: pemn inspect {shown(source)}")
        with named(source):
            options = replace(options, **with_recorded(loaded, given))
            try:
                state = read_source(given_tensors, options)
            except NoMasksError:
                if isinstance(given_tensors, nn.Module):
                    given_tensors = given_tensors.state_dict()
                state = all_used(dict(given_tensors))
                hint = masks_from_zeros(given_tensors)
            found = weight_seeds(state, options, step)
    if as_json:
        print_json({"weights": [_row(name, fill) for name, fill in found.items()]})
    elif not quiet:
        for name, fill in found.items():
            without = "not found" if looked else "not looked for"
            words = f"{fill.prototype.in_words}, × {fill.scale:g}" if fill else without
            click.echo(f"{visible(name)}: {words}")
    nothing = not any(found.values())
    if nothing and found and not (looked and hint):
        hint = _next_step(find_seed, looked=looked)
    if hint and not quiet:
        click.echo(f"note: {hint}", err=True)
    if nothing:
        raise click.exceptions.Exit(1)


def _next_step(find_seed: FindSeed, *, looked: bool) -> str:
    if not looked:
        return "--find-seed off looks for no seed: leave it out, or give --seed"
    every = "" if find_seed == "full" else ", and --find-seed full tries every seed"
    return (
        f"few weights do not tell their seed by themselves: --seed tries one that you know{every}"
    )


def _row(name: str, fill: SeededFill | None) -> dict[str, Any]:
    from dataclasses import asdict

    row: dict[str, Any] = {"name": name, "prototype": None, "scale": None}
    return row | {"prototype": asdict(fill.prototype), "scale": fill.scale} if fill else row
