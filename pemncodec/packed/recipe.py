"""All of a packed weight but its tensors, as a value: to compare, to store, to compile with."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

from pemncodec.coders.canonical_json import decode_json, encode_json
from pemncodec.contents import WEIGHT_DTYPES, Seeded, SeededPrototype, TorchPrototype, numel
from pemncodec.errors import DecodeError
from pemncodec.values.generators import check_prototype

_KINDS: dict[str, type[SeededPrototype] | type[TorchPrototype]] = {
    "portable": SeededPrototype,
    "torch": TorchPrototype,
}


@dataclass(frozen=True)
class Recipe:
    """How bits and a prototype become a weight: value i is `prototype[(offset + i) % length]`,
    times `scale` in binary32, rounded to `dtype`; +0.0 where bit i is 0.

    Attributes:
        shape: of the weight.
        dtype: that its file has; a weight that was converted is this, rounded once more.
        offset: in the prototype.
        scale: a binary32 number.
        signs: how many signs the prototype is made of, if it is ±1; 0 for any other.
        seeded: the prototype, if its values are made when they are needed; None if they are held.
    """

    shape: tuple[int, ...]
    dtype: str
    offset: int
    scale: float
    signs: int = 0
    seeded: Seeded | None = None

    @property
    def count(self) -> int:
        """Of weights."""
        return numel(self.shape)

    @cached_property
    def text(self) -> str:
        """As canonical JSON; `parse_recipe` reads it."""
        value: dict[str, Any] = {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "offset": self.offset,
            "scale": self.scale.hex(),
            "signs": self.signs,
        }
        for kind, of in _KINDS.items():
            if isinstance(self.seeded, of):
                value[kind] = asdict(self.seeded)
        return encode_json(value).decode()


@lru_cache(maxsize=4096)
def parse_recipe(text: str) -> Recipe:
    """The recipe of a `text`.

    Raises:
        ValueError: it is none.
    """
    try:
        value = decode_json(text.encode(), depth=3)
        seeded = None
        for kind, of in _KINDS.items():
            if kind in value:
                seeded = of(**value[kind])
                check_prototype(seeded)
        shape, scale = tuple(value["shape"]), float.fromhex(value["scale"])
        recipe = Recipe(shape, value["dtype"], value["offset"], scale, value["signs"], seeded)
        numbers = (*shape, recipe.offset, recipe.signs)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise TypeError
        if recipe.dtype not in WEIGHT_DTYPES or math.isnan(scale) or recipe.text != text:
            raise ValueError
    except (DecodeError, ValueError, TypeError, KeyError, AttributeError):
        raise ValueError("not the recipe of a packed weight") from None
    return recipe
