"""Names, shapes, values and graphs of a manifest: 8.1 and 8.4 of pemn.md. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from keyword import iskeyword
from typing import Any

import reference_lists as lists
from reference_errors import require

DIMENSIONS = 16  # 9

Json = dict[str, Any]


def schema(condition: bool, message: str) -> None:
    require(condition, "manifest-schema", message)


def naming(condition: bool, message: str) -> None:
    require(condition, "manifest-name", message)


def argument(condition: bool, message: str) -> None:
    require(condition, "manifest-argument", message)


def check_keys(value: Any, *known: str) -> None:
    """8: "A key that is not listed [...] is refused, unless it starts with `?`"."""
    schema(isinstance(value, dict), "not an object")
    unknown = [key for key in value if key not in known and not key.startswith("?")]
    schema(not unknown, f"unknown keys {unknown}")


def array(value: Json, key: str) -> list[Any]:
    items = value.get(key, [])
    schema(isinstance(items, list), f"{key} is no array")
    return list(items)


# 8.1: names


def is_name(text: Any) -> bool:
    pattern = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}"
    if not isinstance(text, str) or not re.fullmatch(pattern, text):
        return False
    return not text.startswith("__") and not iskeyword(text)


def is_identifier(text: Any) -> bool:
    return is_name(text) and text.isidentifier()


def is_path(text: Any) -> bool:
    return isinstance(text, str) and all(map(is_name, text.split(".")))


# 8.1, 8.4: shapes


def is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 1 << 31


def is_range(value: Any) -> bool:
    """8.4: "an array of the smallest and largest"."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_size, value)) and (
        value[0] <= value[1]
    )  # fmt: skip


def check_shape(shape: Any, *, varies: bool = False, ranges: bool = False) -> None:
    schema(isinstance(shape, list), "a shape is no array")
    require(len(shape) <= DIMENSIONS, "limit", "dimensions")
    elements = 1
    for size in shape:
        if not (varies and size is None) and not (ranges and is_range(size)):
            argument(is_size(size), "a size")
            elements *= size
    argument(elements <= 1 << 50, "elements of a shape")


def check_dtype(dtype: Any) -> None:
    argument(isinstance(dtype, str) and dtype in lists.DTYPES, "a dtype")


# ----------------------------------------------------------------------------------- 8.4 Graphs

FIELDS = {
    "in": ("default", "only", "dtype", "shape"),
    "attr": (),
    "mod": ("args", "kwargs"),
    "fn": ("args", "kwargs"),
    "meth": ("args", "kwargs"),
    "get": ("args",),
    "out": (),
}


def reference_to(value: Any) -> int | None:
    """The i of "%i"."""
    match = re.fullmatch("%(0|[1-9][0-9]{0,8})", value) if isinstance(value, str) else None
    return int(match[1]) if match else None


def is_key(value: Any) -> bool:
    return isinstance(value, str) and bool(
        re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_./ -]{0,127}", value)
    )


def check_value(value: Any, before: int) -> None:
    """8.4, the table of values; `before` nodes can be referred to."""
    if value is None or isinstance(value, bool | float):
        return
    if isinstance(value, int):
        argument(abs(value) <= 1 << 31, "an integer out of range")
    elif isinstance(value, str):
        node = reference_to(value)
        if node is None:
            argument(value == "..." or value in lists.WORDS, f"the string {value}")
        else:
            schema(node < before, f"{value} is not computed before")
    elif isinstance(value, list):
        for item in value:
            check_value(item, before)
    else:
        argument(len(value) == 1, "an object of other than one key")
        ((tag, content),) = value.items()
        if tag == "dtype":
            check_dtype(content)
        elif tag == "float":
            argument(content in ("inf", "-inf", "nan"), "a special number")
        elif tag in ("tuple", "slice"):
            is_array = isinstance(content, list)
            argument(is_array and (tag == "tuple" or len(content) == 3), tag)
            check_value(content, before)
        else:
            argument(tag == "dict" and isinstance(content, list), f"a value {tag}")
            keys: list[str] = []
            for pair in content:
                is_pair = isinstance(pair, list) and len(pair) == 2
                argument(is_pair and is_key(pair[0]) and pair[0] not in keys, "a key of a dict")
                keys.append(pair[0])
                check_value(pair[1], before)


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield abs(int(value))
    elif isinstance(value, list | dict):
        for item in value if isinstance(value, list) else value.values():
            yield from numbers(item)


def check_graph_input(node: Json, seen: dict[str, bool]) -> None:
    """`seen`: inputs before it, with whether they have a default."""
    name = node["in"]
    naming(is_identifier(name) and name != "self" and name not in seen, f"input {name}")
    defaults = [key for key in ("default", "only") if key in node]
    schema(len(defaults) < 2, "two defaults")
    schema(bool(defaults) or not any(seen.values()), "no default behind one with a default")
    seen[name] = bool(defaults)
    for key in defaults:
        check_value(node[key], 0)
    if "dtype" in node or "shape" in node:
        schema(not defaults, "a tensor with a default")
        check_dtype(node.get("dtype"))
        check_shape(node.get("shape"), varies=True, ranges=True)


def check_call(kind: str, node: Json, index: int) -> None:
    target = node[kind]
    schema(isinstance(target, str), "the target is no string")
    if kind == "mod":
        naming(is_path(target), f"path {target}")
    else:
        allowed = {"fn": lists.FUNCTIONS, "meth": lists.METHODS, "get": lists.ATTRIBUTES}[kind]
        require(target in allowed, "manifest-op", target)
    args, kwargs = array(node, "args"), node.get("kwargs", {})
    schema(isinstance(kwargs, dict), "kwargs are no object")
    if kind == "mod":
        naming(all(map(is_identifier, kwargs)), "a keyword")
    else:
        argument(lists.KEYWORDS.issuperset(kwargs), "a keyword")
        placed = "device" not in kwargs or reference_to(kwargs["device"]) is not None
        argument(placed, "`device` takes only a reference")
    if kind in ("meth", "get"):
        argument(len(args) > 0 and reference_to(args[0]) is not None, f"{target} of no value")
    if kind == "get":
        argument(len(args) == 1, "an attribute takes no argument")
    name = target
    if kind == "fn":
        name = target.rpartition(".")[2]
        if target.startswith("aten."):
            name = target.split(".")[1]
            argument(name not in lists.FACTORIES or "device" in kwargs, f"{target} has no device")
    if target in ("torch.einsum", "aten.einsum") and args:
        equation = r"[A-Za-z ,.]{1,128}(->[A-Za-z .]{0,64})?"
        argument(isinstance(args[0], str) and bool(re.fullmatch(equation, args[0])), "an equation")
        args = args[1:]
    if target == "operator.getitem" and len(args) == 2 and is_key(args[1]):
        args = args[:1]
    for value in args + [kwargs[key] for key in sorted(kwargs)]:
        check_value(value, index)
    if kind in ("fn", "meth") and name in lists.GROWING:
        product = 1
        for number in numbers([args[:-1] if name in ("full", "new_full") else args, kwargs]):
            product *= max(1, int(number))
            argument(product <= 1 << 24, f"{target} grows")


def check_graph(nodes: Any) -> None:
    schema(isinstance(nodes, list) and len(nodes) > 0, "a graph is no array of nodes")
    inputs: dict[str, bool] = {}
    for index, node in enumerate(nodes):
        schema(isinstance(node, dict), "a node is no object")
        kinds = [kind for kind in FIELDS if kind in node]
        schema(len(kinds) == 1, "a node of no kind, or of two")
        (kind,) = kinds
        check_keys(node, kind, *FIELDS[kind])
        schema((kind == "out") == (index == len(nodes) - 1), "`out` is the last node alone")
        if kind == "in":
            schema(len(inputs) == index, "inputs come first")
            check_graph_input(node, inputs)
        elif kind == "attr":
            naming(is_path(node["attr"]), "path of a tensor")
        elif kind == "out":
            check_value(node["out"], index)
        else:
            check_call(kind, node, index)
