"""Training masked networks: weights frozen at values from a seed, masks learned by scores."""

from pemncodec.masking.keep import KeepSchedule
from pemncodec.masking.masked_model import (
    advance_keep,
    bake,
    mask_model,
    masked_state,
    parameter_groups,
)
from pemncodec.masking.masked_state import MaskedState
from pemncodec.masking.masked_weight import MaskedWeight
from pemncodec.masking.selection import Stochastic, Threshold, TopK
from pemncodec.masking.strategies import (
    Independent,
    MaxLayerPadding,
    OneLayer,
    RandomPadding,
    Strategy,
)

__all__ = [
    "Independent",
    "KeepSchedule",
    "MaskedState",
    "MaskedWeight",
    "MaxLayerPadding",
    "OneLayer",
    "RandomPadding",
    "Stochastic",
    "Strategy",
    "Threshold",
    "TopK",
    "advance_keep",
    "bake",
    "mask_model",
    "masked_state",
    "parameter_groups",
]
