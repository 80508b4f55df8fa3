"""Help of a command with many options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click


class Sectioned(click.Command):
    """A command whose help lists its options in sections.

    Attributes:
        sections: titles, each by the parameter that its options begin with.
    """

    def __init__(self, *args: Any, sections: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options; click calls it."""
        records: dict[str, list[tuple[str, str]]] = {}
        title = "Options"
        for param in self.get_params(ctx):
            title = self.sections.get(param.name or "", title)
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                records.setdefault(title, []).append(record)
        for title, options in records.items():
            with formatter.section(title):
                formatter.write_dl(options)
