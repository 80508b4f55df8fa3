"""Names of masks → the weights that they are for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pemncodec.checkpoints.names import plain_names
from pemncodec.errors import EncodeArgumentError

# Behind the name of a weight, or of a module that has one.
_MASK_ENDINGS = ("_mask", ".mask")


def weight_of_mask(name: str, names: Collection[str]) -> str | None:
    """The weight that a mask is for: `X.weight` of `X_mask`, `X.mask` or `X.weight_mask`.

    Args:
        name: of an entry that is a mask, in a state dict or in a dictionary of masks.
        names: of the tensors that may have masks.
    """
    for base in (name.removesuffix(ending) for ending in _MASK_ENDINGS if name.endswith(ending)):
        found = _weight(base, names)
        if found is not None:
            return found
    return "weight" if name == "mask" and "weight" in names else None


def weight_named(name: str, names: Collection[str]) -> str | None:
    """The weight that an entry of a dictionary of masks is for, which may be called as the weight.

    Args:
        name: of the entry: a weight, a module that has one, or as in `weight_of_mask`.
        names: of the tensors that may have masks.
    """
    return _weight(name, names) or weight_of_mask(name, names)


def masks_by_weight(
    masks: Mapping[str, Any], plain: Mapping[str, str], names: Collection[str]
) -> dict[str, Any]:
    """Masks by the plain names of their weights; a name that stands for none stays.

    Args:
        masks: by names as in the checkpoint or the network, as `weight_named` takes them.
        plain: the network's own name for each name in the checkpoint.
        names: the network's own.

    Raises:
        EncodeArgumentError: two masks for one weight.
    """
    without = plain_names(masks, names)
    of_mask = {}
    for name in masks:
        candidates = (plain.get(name, name), without[name])
        found = next((weight_named(c, names) for c in candidates if weight_named(c, names)), None)
        other = weight_named(name, plain)
        of_mask[name] = found or (plain[other] if other else name)
    if len(set(of_mask.values())) < len(of_mask):
        raise EncodeArgumentError(f"masks: two for one weight, among {', '.join(of_mask)}")
    return {of_mask[name]: mask for name, mask in masks.items()}


def _weight(name: str, names: Collection[str]) -> str | None:
    return next((found for found in (name, f"{name}.weight") if found in names), None)
