"""Tensors that every operator reads and none writes to: packed weights, and views of them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor
from torch._C import _disabled_torch_function_impl


class ReadOnlyTensor(Tensor):
    """A tensor that has its values elsewhere, and to operators is like a dense one."""

    def dense(self) -> Tensor:
        """Its values as an ordinary tensor."""
        raise NotImplementedError

    # What is called with it comes to `__torch_dispatch__`, the same as for other tensors.
    __torch_function__ = _disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        from pemncodec.packed import operators  # which make such tensors

        compiles = "torch._dynamo" in sys.modules
        call = operators.untraced_call if compiles else operators.call
        return call(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        """The same, detached; it cannot be set."""
        return self.detach()

    @data.setter
    def data(self, _: Tensor) -> None:
        refuse_writing("data")


class DenseView(ReadOnlyTensor):
    """A view of a packed weight, such as `weight[0]`.

    The weight was expanded for it. Were this an ordinary tensor, then a write would go to values
    that the weight does not have, and be lost. What is computed of it is ordinary.

    Attributes:
        expanded: an ordinary tensor.
    """

    expanded: Tensor

    @staticmethod
    def __new__(cls, expanded: Tensor) -> DenseView:
        return Tensor._make_wrapper_subclass(
            cls,
            expanded.size(),
            strides=expanded.stride(),
            storage_offset=expanded.storage_offset(),
            dtype=expanded.dtype,
            device=expanded.device,
        )

    def __init__(self, expanded: Tensor) -> None:
        self.expanded = expanded

    def dense(self) -> Tensor:
        """Its values, in the memory that they are in."""
        return self.expanded

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["expanded"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> DenseView:
        return DenseView(inner["expanded"])

    def numpy(self, *, force: bool = False) -> Any:
        """An array that cannot be written to either."""
        array = self.expanded.numpy(force=force)
        array.flags.writeable = False
        return array

    def tolist(self) -> Any:
        """Nested lists of numbers."""
        return self.expanded.tolist()

    # Copies are ordinary tensors, as clones are.
    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return copy.deepcopy(self.expanded, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.expanded.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def refuse_writing(what: object) -> NoReturn:
    """Raises RuntimeError, about an operator or attribute that would change a packed weight."""
    raise RuntimeError(
        f"{what}: a packed weight cannot be written to; unpack the module first (pemncodec.unpack)"
    )
