"""`pemn report`: models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from pemncodec.cli.mask_options import Keep, keep_option
from pemncodec.cli.options import force_option, json_option, max_memory_option
from pemncodec.cli.streams import STDIO, check_output, named
from pemncodec.cli.terminal import print_json, print_table, steps, visible
from pemncodec.format.atomic import write_file
from pemncodec.limits import Limits
from pemncodec.report.page import costs_page
from pemncodec.report.table import table_csv, table_row


@click.command()
@click.argument("sources", metavar="FILE…", nargs=-1, required=True)
@keep_option
@click.option("--csv", "csv_path", metavar="PATH", help="Also write the table as CSV.")
@click.option("--html", "html_path", metavar="PATH", help="Also write one page with plots.")
@max_memory_option
@force_option
@json_option
def report(
    sources: Sequence[str],
    keep: Keep | None,
    csv_path: str | None,
    html_path: str | None,
    max_memory: int,
    force: bool,
    as_json: bool,
) -> None:
    """Compare what models cost, as .pemn and in the forms that one would use instead.

    Masked checkpoints (.pt, .pth, .safetensors) are encoded first, without a manifest; those with
    scores alone (official PEMN) need --keep. All others are shown as the dense models they are.
    """
    for path in filter(None, (csv_path, html_path)):
        if path == STDIO:
            raise click.UsageError("--csv and --html write files")
        for source in sources:
            check_output(path, source, force=force)
    with steps(quiet=False) as step:
        step("loading torch", None)
        from pemncodec.report.costs import model_costs

        models = []
        limits = Limits(decoded_bytes=max_memory)
        for number, source in enumerate(sources, 1):
            place = f"{visible(source)} ({number} of {len(sources)})"

            def show(what: str, share: float | None, place: str = place) -> None:
                step(f"{place}: {what}", share)

            show("reading", None)
            with named(source):
                models.append(model_costs(Path(source), keep=keep, limits=limits, progress=show))
    for model in models:
        for form, failure in model.failures.items():
            click.echo(f"{visible(model.name)}: no {form}: {visible(failure)}", err=True)
    rows = [table_row(model) for model in models]
    if as_json:
        print_json({"models": [model.to_json() for model in models]})
    else:
        print_table(rows)
    if csv_path is not None:
        write_file([table_csv(rows).encode()], csv_path)
    if html_path is not None:
        title = f"What {len(models)} model{'s' * (len(models) != 1)} cost"
        write_file([costs_page(models, title).encode()], html_path)
