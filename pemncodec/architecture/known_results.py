"""Answers for the meta device that import nothing.

PyTorch's own are Python code that imports SymPy and torch.compile when it first runs, which takes
several times as long as decoding. Where `result_rules` have no answer, PyTorch decides: nothing is
refused because of the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pemncodec.architecture import result_rules as rules


class KnownResults(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers operators on the meta device by the rules, where these say something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operator imports torch.compile

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = known_result(func, args, kwargs or {})
        return func(*args, **(kwargs or {})) if result is None else result


def known_result(function: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """What an operator returns on the meta device; None where no rule says so."""
    rule = _RULES.get(str(function))
    if rule is None or not all(_on_meta(argument) for argument in arguments):
        return None
    try:
        return rule(*arguments, **named)
    except (TypeError, ValueError, IndexError, AttributeError):
        return None  # other arguments than the rule knows


def _on_meta(argument: Any) -> bool:
    if isinstance(argument, list | tuple):
        return all(map(_on_meta, argument))
    plain = type(argument) in (Tensor, nn.Parameter)
    return not isinstance(argument, Tensor) or (plain and argument.is_meta)


def _table(rule: Callable[..., Any], names: str, overload: str = "default") -> dict[str, Any]:
    return {f"aten.{name}.{overload}": rule for name in names.split()}


_COMPARISONS: Final = "eq ne ge gt le lt"
_RULES: Final[Mapping[str, Callable[..., Any]]] = {
    **_table(rules.unary, "relu silu sigmoid tanh hardswish hardsigmoid exp log sqrt rsqrt"),
    **_table(rules.unary, "sin cos"),
    **_table(rules.signed, "abs neg"),
    **_table(rules.unary_in_place, "relu_ silu_ sigmoid_ tanh_ hardswish_ hardsigmoid_ zero_"),
    **_table(rules.filled, "normal_ uniform_"),
    **_table(rules.filled, "fill_", "Scalar"),
    **_table(rules.gelu, "gelu"),
    **_table(rules.arithmetic, "add sub mul", "Tensor"),
    **_table(rules.arithmetic, "mul", "Scalar"),
    **_table(rules.arithmetic, "minimum maximum"),
    **_table(rules.division, "div", "Tensor"),
    **_table(rules.power, "pow", "Tensor_Scalar"),
    **_table(rules.arithmetic_in_place, "add_ sub_ mul_", "Tensor"),
    **_table(rules.division_in_place, "div_", "Tensor"),
    **_table(rules.comparison, _COMPARISONS, "Tensor"),
    **_table(rules.comparison, _COMPARISONS, "Scalar"),
    **_table(rules.logical, "bitwise_and bitwise_or", "Tensor"),
    **_table(rules.where, "where", "self"),
    **_table(rules.softmax, "_softmax _safe_softmax"),
    **_table(rules.cumsum, "cumsum"),
    **_table(rules.mm, "mm"),
    **_table(rules.addmm, "addmm"),
    **_table(rules.bmm, "bmm"),
    **_table(rules.convolution, "convolution"),
    **_table(rules.batch_norm, "native_batch_norm"),
    **_table(rules.layer_norm, "native_layer_norm"),
    **_table(rules.embedding, "embedding"),
    **_table(rules.max_pool2d, "max_pool2d_with_indices"),
    **_table(rules.mean, "mean", "dim"),
    **_table(rules.mean_of_all, "mean"),
    **_table(rules.unsafe_view, "_unsafe_view"),
    **_table(rules.cat, "cat"),
    **_table(rules.stack, "stack"),
    **_table(rules.clone, "clone"),
    **_table(rules.roll, "roll"),
    **_table(rules.unsafe_split, "unsafe_split", "Tensor"),
    **_table(rules.index, "index", "Tensor"),
    **_table(rules.gather, "gather"),
    **_table(rules.full_like, "full_like"),
    **_table(rules.arange, "arange"),
    **_table(rules.arange, "arange", "start"),
}
