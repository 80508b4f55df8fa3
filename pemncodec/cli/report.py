"""`pemn report`: what models cost, side by side, for people, papers and programs."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pemncodec.cli.mask_options import MASK_SECTION, Keep, MaskArguments, Shares, mask_options
from pemncodec.cli.options import (
    force_option,
    json_option,
    max_memory_option,
    prefix_option,
    threads_option,
    trust_pickle_option,
)
from pemncodec.cli.sections import Sectioned
from pemncodec.cli.streams import (
    STDIO,
    BadDataError,
    FileName,
    check_output,
    check_source,
    checkpoint_path,
    named,
)
from pemncodec.cli.terminal import Step, print_json, steps, visible
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.format.atomic import write_file
from pemncodec.limits import limits_within
from pemncodec.remote.urls import is_url, shown

if TYPE_CHECKING:
    from pemncodec.report.costs import CostOptions, ModelCosts


@click.command(
    cls=Sectioned,
    sections={
        **MASK_SECTION,
        "forms": "What is compared",
        "csv": "What is written",
        "trust_pickle": "Other options",
    },
    short_help="Compare what models cost in this form and in others.",
)
@click.argument("sources", metavar="FILE…", type=FileName(), nargs=-1, required=True)
@mask_options
@prefix_option
@click.option(
    "--keep-of",
    "keeps",
    multiple=True,
    metavar="FILE=SHARES",
    help="As --keep, for one of the files: k50.pt=0.5.",
)
@click.option(
    "--forms",
    metavar="NAMES",
    help="Only these other forms: torch_save, safetensors, fp16, zstd19, zipnn, nncodec, csr, "
    "bitmask, two_of_four, packed_masks  [default: all].",
)
@click.option(
    "--exact", is_flag=True, help="Estimate nothing: some forms take a minute for every 50 MB."
)
@click.option(
    "--columns",
    "keys",
    metavar="NAMES",
    help="Only these columns, in this order, such as keep,pemn_bytes,metadata.NAME.",
)
@click.option("--csv", metavar="PATH", type=FileName(), help="Also write a table with all numbers.")
@click.option(
    "--markdown", metavar="PATH", type=FileName(), help="Also write a table for a README."
)
@click.option(
    "--latex",
    metavar="PATH",
    type=FileName(),
    help="Also write a table for a paper; needs booktabs and graphicx.",
)
@click.option("--html", metavar="PATH", help="Also write one page with plots.")
@click.option(
    "--figures",
    metavar="FOLDER",
    help="Also draw figures, each as SVG and PDF. Needs matplotlib.",
)
@trust_pickle_option
@max_memory_option
@threads_option
@force_option
@json_option
def report(
    sources: Sequence[str],
    mask_arguments: MaskArguments,
    prefix: str | None,
    keeps: Sequence[str],
    forms: str | None,
    exact: bool,
    keys: str | None,
    csv: str | None,
    markdown: str | None,
    latex: str | None,
    html: str | None,
    figures: str | None,
    trust_pickle: bool,
    max_memory: int,
    force: bool,
    as_json: bool,
) -> None:
    """Compare what models cost, as .pemn and in the forms that one would use instead.

    \b
    pemn report *.pemn k50.pt --keep-of k50.pt=0.5 --html sizes.html

    Masked checkpoints (.pt, .pth, .safetensors) are encoded first, without an architecture; those
    with scores alone (official PEMN) need --keep. Checkpoints without masks are shown as the dense
    models they are. Of several files, one that cannot be used is named and left out, and the exit
    status is 1. A dash in place of a PATH prints that table instead of the usual one.
    """
    keep_of = _parse_keeps(keeps, sources)
    tables = {"csv": csv, "markdown": markdown, "latex": latex}
    printed = [name for name, path in tables.items() if path == STDIO]
    if len(printed) + as_json > 1:
        raise click.UsageError("only one table is printed: of --csv -, --latex -, --json and so on")
    if html == STDIO:
        raise click.UsageError("--html writes a file")
    outputs = [path for path in (*tables.values(), html) if path and path != STDIO]
    _check_outputs(outputs, figures, sources, force=force)
    # One of several that cannot be used is left out; one that is not there ends all at once.
    ignored = () if len(sources) == 1 else (EncodeError,)
    for source in sources:
        with contextlib.suppress(*ignored):
            check_source(source)
    with steps(quiet=False) as step:
        step("loading torch", None)
        from pemncodec.cli.costs_table import print_costs
        from pemncodec.report.columns import COLUMNS, chosen_columns, columns_of, paper_columns
        from pemncodec.report.costs import CostOptions
        from pemncodec.report.forms import FORMS, check_forms
        from pemncodec.report.page import costs_page
        from pemncodec.report.table import table_csv, table_latex, table_markdown

        chosen = None if keys is None else chosen_columns(_split(keys))
        options = CostOptions(
            masks=mask_arguments.choices(),
            prefix=prefix,
            forms=None if forms is None else check_forms(_split(forms)),
            exact=exact,
            trust_pickle=trust_pickle,
            limits=limits_within(max_memory),
        )
        models, unusable = _measure(sources, options, keep_of, step)
        given = [name for name in ("--keep", "--rule") if name in mask_arguments.given()]
        drawn = {}
        if figures is not None and models:
            from pemncodec.report.figures import draw_figures

            step("drawing figures", None)
            drawn = draw_figures(models)
    for said in unusable:
        click.echo(f"pemn: {visible(said)}", err=True)
    if not models:
        raise click.exceptions.Exit(1)
    if given and not any(model.ranked for model in models):
        click.echo(f"{' and '.join(given)}: there are no scores to apply it to", err=True)
    for model in models:
        failed = [f"no {FORMS[form].title}: {why}" for form, why in model.failures.items()]
        for said in (*model.notes, *failed):
            click.echo(visible(f"{model.name}: {said}"), err=True)
    texts = {
        "csv": table_csv(models, chosen or COLUMNS),
        "markdown": table_markdown(models, chosen or paper_columns(models, options.forms)),
        "latex": table_latex(models, chosen or paper_columns(models, options.forms)),
    }
    if as_json:
        print_json({"models": [model.to_json() for model in models]})
    elif printed:
        click.echo(texts[printed[0]], nl=False)
    else:
        print_costs(models, chosen or columns_of(models))
    for name, target in tables.items():
        if target is not None and target != STDIO:
            write_file([texts[name].encode()], target)
    if html is not None:
        title = f"What {len(models)} model{'s' * (len(models) != 1)} cost"
        page = costs_page(models, chosen or columns_of(models), title)
        write_file([page.encode()], html)
    if figures is not None:
        Path(figures).mkdir(exist_ok=True)
        for name, data in drawn.items():
            write_file([data], Path(figures, name))
    if unusable:
        raise click.exceptions.Exit(1)


def _measure(
    sources: Sequence[str], options: CostOptions, keep_of: dict[str, Keep], step: Step
) -> tuple[list[ModelCosts], list[str]]:
    """What models cost, and what is wrong with files that are left out as they cannot be used."""
    from pemncodec.report.costs import model_costs

    models: list[ModelCosts] = []
    unusable: list[str] = []
    names = dict(zip(sources, _names(sources), strict=True))
    for number, source in enumerate(sources, 1):
        place = f"{visible(shown(source))} ({number} of {len(sources)})"

        def show(what: str, share: float | None, place: str = place) -> None:
            step(f"{place}: {what}", share)

        show("reading", None)
        try:
            with _named(source, alone=len(sources) == 1), checkpoint_path(source) as path:
                keep = keep_of.get(source)
                costs = model_costs(path, options, keep=keep, name=shown(source), progress=show)
        except BadDataError as error:
            if len(sources) == 1:
                raise
            unusable.append(f"{error}; left out")
        else:
            models.append(replace(costs, name=names[source]))
    return models, unusable


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _parse_keeps(keeps: Sequence[str], sources: Sequence[str]) -> dict[str, Keep]:
    """Shares by file; a file may be named without its folder."""
    shares: dict[str, Keep] = {}
    names = {name for source in sources for name in (source, Path(source).name)}
    for keep in keeps:
        # Names may have = in them, and so may shares.
        name = max((name for name in names if keep.startswith(f"{name}=")), key=len, default=None)
        if name is None:
            raise click.BadParameter(
                f"{keep} is not FILE=SHARES with the name of one of the files",
                param_hint="--keep-of",
            )
        share = Shares().convert(keep[len(name) + 1 :], None, None)
        for source in dict.fromkeys(sources):
            if name in (source, Path(source).name):
                if source in shares:
                    raise click.BadParameter(f"twice for {shown(source)}", param_hint="--keep-of")
                shares[source] = share
    return shares


def _check_outputs(
    paths: Sequence[str], figures: str | None, sources: Sequence[str], *, force: bool
) -> None:
    """Refuses what cannot be written before anything is measured."""
    if figures is not None:
        if is_url(figures):
            raise click.UsageError("--figures is a folder here, no URL")
        if find_spec("matplotlib") is None:
            raise click.UsageError("--figures needs matplotlib: pip install matplotlib")
        folder = Path(figures)
        if folder.exists() and not folder.is_dir():
            raise click.UsageError(f"{figures} is not a folder")
        if not folder.absolute().parent.is_dir():
            raise click.UsageError(f"there is no folder {folder.parent}")
        if folder.is_dir() and any(folder.iterdir()) and not force:
            raise click.UsageError(f"{figures} is not empty: -f writes figures into it")
    for path, count in Counter(paths).items():
        if count > 1:
            raise click.UsageError(
                f"{shown(path)} is named twice: each table needs a file of its own"
            )
    for path, source in product(paths, sources):
        check_output(path, source, force=force)


def _names(sources: Sequence[str]) -> list[str]:
    """The names of files, with their folders where several have the same."""
    names = [
        Path(shown(source)).name if source != STDIO else "standard input" for source in sources
    ]
    counts = Counter(names)
    return [
        name if counts[name] == 1 else shown(source)
        for name, source in zip(names, sources, strict=True)
    ]


@contextlib.contextmanager
def _named(source: str, *, alone: bool) -> Iterator[None]:
    """Puts the file's name in front of every error, as one of several was given the options."""
    from pemncodec.checkpoints.dialect import MissingRuleError

    name = shown(source)
    try:
        with named(source):
            yield
    except MissingRuleError as error:
        hint = "" if alone else f", or --keep-of {Path(name).name}=0.5 for this file"
        raise EncodeArgumentError(f"{name}: {error}{hint}") from None
    except EncodeArgumentError as error:
        raise EncodeArgumentError(f"{name}: {error}") from None
