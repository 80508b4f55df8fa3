"""Layers that hold others: containers, composites, and what constructors make within a layer.

Of a container and a composite the file lists the children (spec section 8.2); of other layers it
does not, and graphs may use them (section 8.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pemncodec.architecture.arguments import FLAG_OFF, FLAG_ON, INT_LIMIT, Argument

CONTAINERS: Final = frozenset({"Sequential", "ModuleList", "ModuleDict"})


@dataclass(frozen=True, slots=True)
class Composite:
    """A layer that is built of layers given as its children.

    Attributes:
        arguments: of the constructor, beside the children.
        children: names, in the order of registration, each with the classes that it may have.
        repeated: class of the items when the child `layers` is a `ModuleList` of layers.
    """

    arguments: Mapping[str, Argument]
    children: Mapping[str, tuple[str, ...]]
    repeated: str = ""


_FEED_FORWARD: Final = {"linear1": "Linear", "dropout": "Dropout", "linear2": "Linear"}

# Layers within layers, which the constructor makes.
INNER_LAYERS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "MultiheadAttention": {"out_proj": "Linear"},
        "TransformerEncoderLayer": {
            "self_attn": "MultiheadAttention",
            **_FEED_FORWARD,
            **{f"norm{n}": "LayerNorm" for n in (1, 2)},
            **{f"dropout{n}": "Dropout" for n in (1, 2)},
        },
        "TransformerDecoderLayer": {
            "self_attn": "MultiheadAttention",
            "multihead_attn": "MultiheadAttention",
            **_FEED_FORWARD,
            **{f"norm{n}": "LayerNorm" for n in (1, 2, 3)},
            **{f"dropout{n}": "Dropout" for n in (1, 2, 3)},
        },
    }
)

_FINAL_NORM: Final = ("LayerNorm", "RMSNorm")  # may be left out

COMPOSITES: Final[Mapping[str, Composite]] = MappingProxyType(
    {
        "TransformerEncoder": Composite(
            {"enable_nested_tensor": FLAG_ON, "mask_check": FLAG_ON},
            {"layers": ("ModuleList",), "norm": _FINAL_NORM},
            "TransformerEncoderLayer",
        ),
        "TransformerDecoder": Composite(
            {}, {"layers": ("ModuleList",), "norm": _FINAL_NORM}, "TransformerDecoderLayer"
        ),
        "Transformer": Composite(
            {
                "d_model": Argument(integers=(1, INT_LIMIT)),
                "nhead": Argument(integers=(1, INT_LIMIT)),
                "batch_first": FLAG_OFF,
            },
            {"encoder": ("TransformerEncoder",), "decoder": ("TransformerDecoder",)},
        ),
    }
)
