"""A pickle → plain values and stand-ins for objects: nothing that it names is imported or called.

Only those instructions of a pickle are followed that build values. What they take is in proportion
to the bytes that were read: a value that is used twice is never copied, hashed or compared.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(slots=True, eq=False)
class StandIn:
    """Stands for a class, a function or an object, of which nothing is imported.

    Attributes:
        of: module and name of the class or function.
        state: an object's attributes, where they are plain.
    """

    of: tuple[str, str]
    state: dict[str, Any] = field(default_factory=dict)


def load_plain(data: bytes) -> Any:
    """The value that a pickle describes.

    Dictionaries, lists and tuples are as the pickle has them; a `collections.OrderedDict` is a
    dictionary, a set a list, and a `torch.Size` a tuple. Items of dictionaries are left out unless
    their keys are text or objects, and so are items of a `StandIn`.

    Raises:
        Exception: of many classes, where the pickle is damaged or has other instructions.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _STEPS:
            break
        _STEPS[opcode.name](machine, argument)
    if opcode.name != "STOP":
        raise ValueError(f"a pickle with {opcode.name}")
    (value,) = machine.stack
    return value


@dataclass(slots=True)
class _Machine:
    """What the protocol of pickle calls stack and memo; each mark begins another stack."""

    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def popped(self, count: int) -> list[Any]:
        start = len(self.stack) - count
        if start < 0:
            raise IndexError("an instruction takes more than there is")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def memoize(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            self.stack[-1].update((k, v) for k, v in pairs if isinstance(k, str | StandIn))

    def dictionary(self, items: list[Any]) -> None:
        self.push({})
        self.update(items)

    def find(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a class whose name is no text")
        self.push(StandIn((module, name)))

    def make(self, function: Any, arguments: Any, _: Any = None) -> None:
        of = function.of
        if of == ("collections", "OrderedDict"):
            self.push({})
        elif of == ("torch", "Size"):
            (sizes,) = arguments
            if not isinstance(sizes, tuple):  # one of which a copy would be made
                raise TypeError("a torch.Size of something else than a tuple")
            self.push(sizes)
        else:
            self.push(StandIn(of))

    def build(self) -> None:
        (state,) = self.popped(1)
        if isinstance(self.stack[-1], StandIn) and isinstance(state, dict):
            self.stack[-1].state = state


_Step = Callable[[_Machine, Any], object]
_ARGUMENTS: Final = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)
_STEPS: Final[dict[str, _Step]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda _, __: None),
    **dict.fromkeys(_ARGUMENTS, lambda m, value: m.push(value)),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda m, _: m.push([])),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "MARK": lambda m, _: m.mark(),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda m, _: m.push(m.marked())),
    "DICT": lambda m, _: m.dictionary(m.marked()),
    "TUPLE": lambda m, _: m.push(tuple(m.marked())),
    "TUPLE1": lambda m, _: m.push(tuple(m.popped(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.popped(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.popped(3))),
    "POP": lambda m, _: m.popped(1),
    "POP_MARK": lambda m, _: m.marked(),
    "APPEND": lambda m, _: m.extend(m.popped(1)),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.extend(m.marked())),
    "SETITEM": lambda m, _: m.update(m.popped(2)),
    "SETITEMS": lambda m, _: m.update(m.marked()),
    "MEMOIZE": lambda m, _: m.memoize(len(m.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, at: m.push(m.memo[at])),
    "GLOBAL": lambda m, name: m.find(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.find(*m.popped(2)),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: m.make(*m.popped(2))),
    "NEWOBJ_EX": lambda m, _: m.make(*m.popped(3)),
    "BUILD": lambda m, _: m.build(),
}
