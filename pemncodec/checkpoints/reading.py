"""What a caller gives `encode`, a module or a state dict → weights and masks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pemncodec.checkpoints.dialects import check_describable, known_masks, read_masks
from pemncodec.checkpoints.files import check_state_dict
from pemncodec.checkpoints.names import drop_prefix
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.format.columns import is_name
from pemncodec.limits import Limits
from pemncodec.masking.masked_model import unwrapped
from pemncodec.masking.masked_state import MaskedState
from pemncodec.options import EncodeOptions


def described_module(
    source: nn.Module | Mapping[str, Tensor], options: EncodeOptions
) -> nn.Module | None:
    """The module that the manifest is to describe; None for a file without one.

    Raises:
        EncodeArgumentError: there is none, or there are two.
    """
    if not isinstance(source, nn.Module | Mapping):
        raise EncodeArgumentError(f"expected a module or state dict, not {type(source).__name__}")
    if not isinstance(options.architecture, nn.Module | None):
        raise EncodeArgumentError(
            f"architecture must be a module, not {options.architecture!r:.60}"
        )
    if isinstance(source, nn.Module):
        if options.architecture is not None:
            raise EncodeArgumentError("a module is its own architecture: give one of the two")
        return unwrapped(source) if options.manifest else None
    if options.manifest and options.architecture is None:
        raise EncodeArgumentError(
            "a state dict does not hold its architecture: give --arch pkg.module:factory "
            "(architecture=…), or --no-manifest (manifest=False) to store the tensors alone"
        )
    return options.architecture


def read_source(source: nn.Module | Mapping[str, Tensor], options: EncodeOptions) -> MaskedState:
    """Weights and masks.

    Raises:
        EncodeArgumentError: options that do not fit the source.
        EncodeError: no masks, or data that cannot be encoded.
    """
    masks = options.masks
    if isinstance(source, nn.Module):
        if source is not unwrapped(source):
            source, masks = unwrapped(source), drop_prefix(masks or {})
        named = dict(source.state_dict(keep_vars=True))
        own = named
    else:
        own = options.architecture.state_dict() if options.architecture is not None else {}
        named = drop_prefix(check_state_dict(source, "state dict"), like=own)
    _check_names(named)
    state = read_masks(named, keep=options.keep, masks=masks, own=own)
    if options.manifest and isinstance(source, nn.Module):
        check_describable(named, options.keep)
    if not state.masks:
        raise EncodeError(
            f"no masks found: neither {known_masks()}; masks of your own go through "
            'pemncodec.encode, such as masks={"fc.weight": weight != 0}; '
            "a model of pemncodec.masking is encoded before bake, which drops its masks"
        )
    return state


def notes_of(state: MaskedState) -> tuple[str, ...]:
    """What one should know of how the masks were found."""
    if not state.ties:
        return ()
    most = max(state.ties, key=lambda name: state.ties[name])
    return (
        f"{sum(state.ties.values()):,} scores of {len(state.ties):,} weights are equal where the "
        f"cut goes between them ({most}: {state.ties[most]:,}): the earlier of them go, and code "
        "that sorts otherwise drops others",
    )


def _check_names(state: Mapping[str, Tensor]) -> None:
    """Names and shapes that a reader would refuse; the rest is checked by decoding the file."""
    for name, tensor in state.items():
        if not is_name(name):
            raise EncodeError(f"{name!r:.60} cannot be the name of a tensor")
        if isinstance(tensor, Tensor) and tensor.dim() > Limits().dimensions:
            raise EncodeError(f"{name} has more than {Limits().dimensions} dimensions")
