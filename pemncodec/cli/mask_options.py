"""Options that say how the masks of a checkpoint are found; `encode` and `verify` share them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import click

from pemncodec.cli.options import only_one
from pemncodec.cli.streams import checkpoint_path, named
from pemncodec.options import MaskChoices, check_shares
from pemncodec.remote.urls import shown

Keep = float | dict[str, float]


class Shares(click.ParamType["float | dict[str, float]"]):
    """`0.5`, or shares by pattern of the weight's name, the first that fits: `head.*=0.8,*=0.3`."""

    name = "shares"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Keep:
        if not isinstance(value, str) or "=" not in value:
            return self._share(value, param, ctx)
        shares: dict[str, float] = {}
        for part in value.split(","):
            pattern, equals, share = part.strip().rpartition("=")
            if not equals or not pattern:
                self.fail(f"{part!r} is no pattern and share, such as head.*=0.8", param, ctx)
            if pattern in shares:
                self.fail(f"two shares for {pattern}", param, ctx)
            shares[pattern] = self._share(share, param, ctx)
        return shares

    def _share(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, str) and value.strip().endswith("%"):
            self.fail(f"{value!r} is a percentage: give a share, such as 0.5", param, ctx)
        return float(click.FLOAT(value, param, ctx))


@dataclass(frozen=True, slots=True)
class MaskArguments:
    """What the options say."""

    keep: Keep | None
    rule: str | None
    scores_name: str | None
    task: int | None
    masks: str | None
    masks_from: Literal["zeros"] | None

    def given(self) -> list[str]:
        """The options that were given, as a user writes them."""
        names = (field.name for field in fields(self) if getattr(self, field.name) is not None)
        return [f"--{name.replace('_', '-')}" for name in names]

    def choices(self) -> MaskChoices:
        """What they ask for, with the masks of a file in memory.

        Raises:
            OSError: the file cannot be read.
            PemnError: it holds no masks.
        """
        choices: MaskChoices = {
            "keep": self.keep,
            "rule": self.rule,
            "scores_name": self.scores_name,
            "task": self.task,
            "masks_from": self.masks_from,
        }
        if self.masks is not None:
            from pemncodec.checkpoints.sources import load_masks

            with named(self.masks), checkpoint_path(self.masks) as path:
                choices["masks"] = load_masks(path)
            choices["masks_are"] = f"from {Path(shown(self.masks)).name}"
        return choices


keep_option = click.option(
    "--keep",
    type=Shares(),
    multiple=True,  # so that a second one is seen
    callback=only_one,
    metavar="SHARES",
    help="Share of each layer's weights that scores keep: 0.5, or head.*=0.8,*=0.3 by name.",
)
MASK_SECTION = {"keep": "Masks of the checkpoint"}
_OPTIONS = (
    keep_option,
    click.option(
        "--rule",
        metavar="RULE",
        help="Rule that makes masks of scores: magnitude, score, global-magnitude, global-score, "
        "movement, biprop, biprop-global, at-least=T, above=T, sigmoid-above=T, bernoulli=SEED  "
        "[default: as the code that made the checkpoint, where its names tell].",
    ),
    click.option(
        "--scores-name", metavar="NAME", help="Scores are X.NAME beside X.weight, in any code."
    ),
    click.option(
        "--task",
        type=click.IntRange(0),
        metavar="N",
        help="Which of the scores X.scores.0, X.scores.1, ….",
    ),
    click.option(
        "--masks", metavar="FILE", help="Masks by name, 0 and 1, in a file that encode would take."
    ),
    click.option(
        "--masks-from",
        type=click.Choice(["zeros"]),
        help="zeros: weights that are 0 are masked out.",
    ),
)


def mask_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command, which gets them as one argument, `mask_arguments`."""

    @functools.wraps(command)
    def packed(**arguments: Any) -> None:
        own = {field.name: arguments.pop(field.name) for field in fields(MaskArguments)}
        check_shares(own["keep"])
        command(mask_arguments=MaskArguments(**own), **arguments)

    for option in reversed(_OPTIONS):
        option(packed)
    return packed
