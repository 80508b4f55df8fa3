"""What a checkpoint file says of its masks beside the state dict, as options of `encode`.

biprop records `conv_type` and `prune_rate`, SupSup its command line as `args`; others keep a
dictionary of masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pemncodec.checkpoints.dialect import MissingRuleError
from pemncodec.checkpoints.inert import Inert
from pemncodec.errors import EncodeArgumentError
from pemncodec.options import MaskChoices

# What dictionaries of masks are called, which may be part of another one of these names.
MASKS = ("masks", "mask", "mask_dict", "mask_state_dict")
# Rules by the class of the layers that have scores. biprop's have names as in hidden-networks,
# which does not record them.
_BIPROP = {"SubnetConv": "biprop", "GlobalSubnetConv": "biprop-global"}
_SUPSUP = {
    "MaskConv": "magnitude",
    "MultitaskMaskConv": "magnitude",
    "FastMultitaskMaskConv": "at-least=0",
    "StackedFastMultitaskMaskConv": "at-least=0",
}
_DRAWN = ("SampleSubnetConv",)
_WITHOUT_RULE = ("DenseConv", "StandardConv", "FixedSubnetConv", "None")


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """What a checkpoint says of its masks.

    Attributes:
        conv_type: class of the layers with scores; None where the checkpoint does not say.
        rule: the rule of that class, where it is known.
        keep: the share of the weights that stay, where the checkpoint says that.
        prune_rate: a number that is the share that stays in some code, the share that goes in
            other.
        masks: masks by name, as the checkpoint has them.
        masks_are: where these are, in words.
    """

    conv_type: str | None = None
    rule: str | None = None
    keep: float | None = None
    prune_rate: float | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    masks_are: str = ""

    def complete(self, given: MaskChoices, *, needs_rule: bool) -> MaskChoices:
        """What the caller says, completed by what the checkpoint says.

        Args:
            given: by the caller; a rule or masks prevail over those of the checkpoint.
            needs_rule: whether the checkpoint has scores that are no masks yet.

        Raises:
            MissingRuleError: the checkpoint says that its rule is another one, or not which.
            EncodeArgumentError: the checkpoint says otherwise.
        """
        choices = MaskChoices(**given)
        if given.get("masks"):
            return choices
        if self.masks:
            choices["masks"], choices["masks_are"] = self.masks, self.masks_are
        if not needs_rule or given.get("rule") is not None:
            return choices
        self._check_known()
        keep = given.get("keep")
        if self.rule is not None:
            choices["rule"] = self.rule
        if self.keep is not None:
            if keep not in (None, self.keep):
                raise EncodeArgumentError(
                    f"the checkpoint records that the share {self.keep:g} of the weights stays: "
                    "leave out --keep (keep=…)"
                )
            choices["keep"] = self.keep
        elif self.prune_rate is not None and keep is None:
            raise MissingRuleError(
                f"the checkpoint records prune_rate {self.prune_rate:g}, which is the share that "
                "stays in some code and the share that goes in other: give --keep "
                f"{self.prune_rate:g} or --keep {1 - self.prune_rate:g} (keep=…)"
            )
        return choices

    def _check_known(self) -> None:
        if self.conv_type in _DRAWN:
            raise MissingRuleError(
                f"the checkpoint records layers {self.conv_type}, whose masks are drawn in each "
                "forward: give --rule sigmoid-above=0.5, or --rule bernoulli=SEED to draw them "
                "once (rule=…)"
            )
        if self.conv_type not in (None, *_WITHOUT_RULE) and self.rule is None:
            raise MissingRuleError(
                f"the checkpoint records layers {self.conv_type}, whose rule is not known: give "
                "--rule (rule=…), such as magnitude with --keep, or masks with --masks (masks=…)"
            )


def recorded_in(loaded: Any, nested: str) -> Recorded:
    """What a loaded file says beside its state dict.

    Args:
        loaded: what the file holds, by name.
        nested: the key of the state dict.
    """
    arguments = _arguments(loaded.get("args"))
    own = _text(loaded.get("conv_type"))
    conv_type = _text(arguments.get("conv_type")) if own is None else own
    rate = _number(loaded.get("prune_rate", arguments.get("prune_rate")))
    masks, masks_are = _masks(loaded, nested)
    if own in _BIPROP and rate is not None:
        return Recorded(own, _BIPROP[own], rate, None, masks, masks_are)
    if conv_type in _SUPSUP:
        rule = _SUPSUP[conv_type]
        share = _number(arguments.get("sparsity")) if rule == "magnitude" else None
        if rule == "magnitude" and arguments.get("er_sparsity") is True:
            conv_type = f"{conv_type} with er_sparsity"  # each layer's share follows from its shape
        elif share is not None or rule != "magnitude":
            return Recorded(conv_type, rule, share, None, masks, masks_are)
    return Recorded(conv_type, None, None, rate, masks, masks_are)


def _arguments(value: Any) -> Mapping[str, Any]:
    """A command line that argparse has read, whose class was not imported."""
    if isinstance(value, Inert):
        return value.state
    return value if isinstance(value, Mapping) else getattr(value, "__dict__", {})


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def _masks(loaded: Mapping[str, Any], nested: str) -> tuple[Mapping[str, Tensor], str]:
    for key in MASKS:
        masks = dictionary_of_masks(loaded[key]) if key != nested and key in loaded else {}
        named = isinstance(masks, Mapping) and all(isinstance(name, str) for name in masks)
        if masks and named and all(isinstance(mask, Tensor) for mask in masks.values()):
            return masks, f"the dictionary {key} beside the state dict"
    return {}, ""


def dictionary_of_masks(value: Any) -> Any:
    """A dictionary, or one that lies in it, without what is None: layers that have no mask."""
    while isinstance(value, Mapping):
        inner = next((value[key] for key in MASKS if isinstance(value.get(key), Mapping)), None)
        if inner is None:
            return {name: mask for name, mask in value.items() if mask is not None}
        value = inner
    return value
