"""`pemn verify`: a file against the rules of the format, and against a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from pemncodec.architecture.manifest import FORMAT
from pemncodec.cli.comparing import compare_files
from pemncodec.cli.mask_options import MASK_SECTION, MaskArguments, mask_options
from pemncodec.cli.options import (
    json_option,
    max_memory_option,
    prefix_option,
    quiet_option,
    threads_option,
    trust_pickle_option,
)
from pemncodec.cli.sections import Sectioned
from pemncodec.cli.streams import FileName, check_sources, named, opened
from pemncodec.cli.terminal import print_json, steps
from pemncodec.remote.urls import shown


@click.command(cls=Sectioned, sections={**MASK_SECTION, "trust_pickle": "Other options"})
@click.argument("source", metavar="FILE", type=FileName())
@click.option(
    "--against",
    metavar="CHECKPOINT",
    multiple=True,
    help="Also compare every tensor with this checkpoint; once for each of its files.",
)
@mask_options
@prefix_option
@trust_pickle_option
@max_memory_option
@threads_option
@quiet_option
@json_option
def verify(
    source: str,
    against: Sequence[str],
    mask_arguments: MaskArguments,
    prefix: str | None,
    trust_pickle: bool,
    max_memory: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Decode all of a file and check every rule of the format.

    \b
    pemn verify net.pemn
    pemn verify net.pemn --against model.pt --keep 0.5
    """
    given = [*mask_arguments.given(), *(["--prefix"] if prefix is not None else [])]
    if given and not against:
        raise click.UsageError(f"{' and '.join(given)}: only with --against")
    check_sources(against)
    with steps(quiet=quiet) as step, opened(source, max_memory) as file, named(source):
        step("verifying", None)

        def progress(share: float) -> None:
            step("verifying", share)

        shortened: dict[str, str] = {}
        if not against:
            file.verify(progress)
        else:
            given_masks = mask_arguments.choices()
            shortened = compare_files(
                file, against, given_masks, prefix, progress, trust_pickle=trust_pickle
            )
        if file.manifest is not None and file.manifest["format"] == FORMAT:
            from pemncodec.decoding import build_empty_module

            build_empty_module(file)
        count = len(file.keys())
    compared_with = ", ".join(map(shown, against)) or None
    if as_json:
        print_json(
            {
                "file": shown(source),
                "valid": True,
                "tensors": count,
                "against": compared_with,
                "shortened": shortened,
            }
        )
    elif not quiet:
        compared = f", every one bit for bit as in {compared_with}" if against else ""
        click.echo(f"{shown(source)}: valid, {count} tensors{compared}{_but(shortened)}")


def _but(shortened: Mapping[str, str]) -> str:
    if not shortened:
        return ""
    modes = " and ".join(sorted(set(shortened.values())))
    are = "1 that is" if len(shortened) == 1 else f"{len(shortened):,} that are"
    return f", but {are} stored as {modes}, within the errors that the file records"
