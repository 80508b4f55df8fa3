"""What pemn.md lists in 8.1, 8.3 and 8.4, read out of its text: layers, operators, words.

Lists of many hundred names are not written a second time: the text is what counts, and whoever
changes it changes what `reference_manifest.py` accepts. The tests compare with the package.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TEXT = (Path(__file__).parent / "pemn.md").read_text(encoding="utf-8")


def _section(number: str) -> str:
    return _TEXT.partition(f"\n### {number} ")[2].partition("\n### ")[0]


def _names(section: str, opening: str) -> frozenset[str]:
    """Those between backticks, or in an indented block, behind the words `opening`."""
    behind = section.partition(opening)[2]
    if not behind:
        raise ValueError(f"pemn.md does not say {opening!r}")
    found = re.match(r"\s*`([^`]+)`|[^\n]*\n\n((?:    [^\n]+\n)+)", behind)
    if found is None:
        raise ValueError(f"pemn.md lists nothing behind {opening!r}")
    return frozenset((found[1] or found[2]).split())


_TOP, _LAYERS, _GRAPHS = _section("8.1"), _section("8.3"), _section("8.4")
DTYPES = _names(_TOP, "D is one of ")
BOTH = _names(_GRAPHS, "\nBoth of `torch.` and methods of a tensor:")
METHODS = BOTH | _names(_GRAPHS, "\nOnly methods of a tensor:")
ATTRIBUTES = _names(_GRAPHS, "attribute of the tensor `%i`:")
WORDS = _names(_GRAPHS, '`"area"` and other words |')
KEYWORDS = _names(_GRAPHS, "\nKeywords of `fn` and `meth` nodes (`device` takes only a reference):")
GROWING = _names(_GRAPHS, "with any overload: ")
FUNCTIONS = frozenset(
    prefix + name
    for prefix, names in {
        "math.": _names(_GRAPHS, "Functions of `math.`:"),
        "operator.": _names(_GRAPHS, "Of `operator.`:"),
        "torch.": BOTH | _names(_GRAPHS, "\nOnly of `torch.`:"),
        "torch.nn.functional.": _names(_GRAPHS, "\nFunctions of `torch.nn.functional.`:"),
        "aten.": _names(_GRAPHS, "\nOperators of `aten.`, each with its overload;"),
    }.items()
    for name in names
)
FACTORIES = frozenset(
    re.findall(r"`(\w+)`", _GRAPHS.partition("\n`aten.` ")[2].partition(" have a keyword")[0])
)


@dataclass(frozen=True)
class Argument:
    """One argument of a layer: its domain, as the text before the table of 8.3 explains it."""

    required: bool
    default: Any
    kind: str  # "x", "b", "integer", or "" where there are words alone
    low: int = 0
    high: int = 0
    words: tuple[str, ...] = ()
    null: bool = False
    lengths: tuple[int, ...] = ()
    counted: int = 0  # how many times one number enters the size; 0 without a star

    def admits(self, value: Any) -> bool:
        if isinstance(value, list):
            return len(value) in self.lengths and all(map(self.admits_one, value))
        return self.admits_one(value) or (isinstance(value, str) and value in self.words)

    def admits_one(self, value: Any) -> bool:
        if value is None or isinstance(value, bool):
            return self.null if value is None else self.kind == "b"
        if self.kind == "x":
            return isinstance(value, float) or (type(value) is int and abs(value) <= 1 << 31)
        return self.kind == "integer" and type(value) is int and self.low <= value <= self.high


_INTEGERS = {
    "n": (1, 1 << 31),
    "w": (1, 1 << 16),
    "z": (0, 1 << 16),
    "p": (-(1 << 16), 1 << 16),
    "d": (-16, 15),
}
_DOMAIN = re.compile(
    r"(?P<base>[nwzpdxb]|−?[\d^]+ … [\d^]+)(?P<null>\?)?"
    r"(?:\[(?P<alike>=)?(?P<lengths>[^\]]+)\])?(?P<star>\\\*)?"
)


def _number(text: str) -> int:
    base, _, exponent = text.replace("−", "-").partition("^")
    return int(base) ** int(exponent or 1)


def _argument(text: str, r: int) -> tuple[str, Argument]:
    """A name, and what is behind it in the table, such as: `padding`=0 z[=R] or "same"."""
    match = re.fullmatch(r"`(\w+)`(?:=(\S+))?(.*)", text)
    if match is None:
        raise ValueError(f"not an argument: {text}")
    name, default, domain = match[1], match[2], match[3].strip()
    words = tuple(re.findall(r'"([^"]*)"', text))
    found = _DOMAIN.match(domain)
    value = None if default is None else json.loads(default)
    if found is None:
        return name, Argument(default is None, value, "", words=words)
    base, lengths = found["base"], found["lengths"]
    kind, low, high = base, 0, 0
    if base not in "xb":
        ends = _INTEGERS.get(base) or tuple(map(_number, base.split(" … ")))
        kind, (low, high) = "integer", ends
    sizes: tuple[int, ...] = ()
    if lengths is not None:
        first, _, last = lengths.partition(" … ")
        ends = [r * int(n[:-1] or 1) if n.endswith("R") else int(n) for n in (first, last or first)]
        sizes = tuple(range(ends[0], ends[1] + 1))
    counted = (sizes[0] if found["alike"] else 1) if found["star"] else 0
    required = default is None
    null = bool(found["null"])
    return name, Argument(required, value, kind, low, high, words, null, sizes, counted)


def _layers() -> dict[str, dict[str, Argument]]:
    rows: dict[str, tuple[str, int]] = {}
    for line in _LAYERS.splitlines():
        if line.startswith("| `"):
            classes, arguments = line.strip("| ").split(" | ")
            for name in re.findall(r"`(\w+)`", classes):
                for r in (1, 2, 3) if "R" in name and name.endswith("Rd") else (0,):
                    full = name.replace("Rd", f"{r}d") if r else name
                    digit = full[-2:-1] if full.endswith("d") else ""
                    rows[full] = arguments, int(digit) if digit.isdigit() else 0

    def arguments_of(name: str) -> dict[str, Argument]:
        text, r = rows[name]
        result: dict[str, Argument] = {}
        for part in text.split(", ") if text != "none" else ():
            other = re.fullmatch(r"those of `(\w+)`", part)
            if other is not None:
                result |= arguments_of(other[1].replace("Rd", f"{r}d"))
            else:
                result |= [_argument(part, r)]
        return result

    return {name: arguments_of(name) for name in rows}


LAYERS = _layers()
