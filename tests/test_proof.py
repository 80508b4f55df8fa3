"""The proof before a file is written: the model as it was given, against what the file gives.

A `forward` may keep what it computed, for its next call: in buffers, attributes, classes, globals.
Such a model is described rightly, or refused in one line; "verified" is never said of another one.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import math
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_masks
from torch import Tensor, nn

import pemncodec
from pemncodec import Limits, proof
from pemncodec.architecture import trace
from pemncodec.architecture.example import VERIFIED_BATCH_SIZES, given_inputs, guessed_inputs
from pemncodec.architecture.isolation import isolated, random_states
from pemncodec.architecture.mode import watched_mode
from pemncodec.architecture.outputs import (
    Reference,
    compare_outputs,
    relative_difference,
    same_outputs,
)
from pemncodec.errors import EncodeArgumentError, EncodeError, UnsupportedModelError


def table(rows: int) -> Tensor:
    """What the networks below compute once, and keep."""
    return torch.arange(4.0 * rows).reshape(1, rows, 4) / 7


class Net(nn.Module):
    """A linear layer, and something that `setup` makes and `forward` changes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.setup()

    def setup(self) -> None:
        pass


class Rebound(Net):
    """Puts a table of the right size in the place of a buffer of another size."""

    def setup(self) -> None:
        self.register_buffer("t", torch.zeros(1, 1, 4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.t.shape[1] != x.shape[1]:
            self.t = table(x.shape[1])
        return self.linear(x) + self.t


class ReboundPersistent(Rebound):
    def setup(self) -> None:
        self.register_buffer("t", torch.zeros(1, 1, 4))


class OnFirstUse(Net):
    """Keeps a table as an attribute."""

    def setup(self) -> None:
        self.t: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.t is None:
            self.t = table(x.shape[1])
        return self.linear(x) + self.t


class OnFirstUseBuffer(OnFirstUse):
    def setup(self) -> None:
        self.register_buffer("t", None, persistent=False)


class OnFirstUsePersistent(OnFirstUse):
    def setup(self) -> None:
        self.register_buffer("t", None)


class Filled(Net):
    """Writes a table into a buffer, and remembers that it did."""

    def setup(self) -> None:
        self.register_buffer("t", torch.zeros(1, 3, 4), persistent=False)
        self.ready = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.t.copy_(table(3))
            self.ready = True
        return self.linear(x) + self.t


class FilledPersistent(Filled):
    def setup(self) -> None:
        self.register_buffer("t", torch.zeros(1, 3, 4))
        self.ready = False


class FilledByMode(Net):
    """torch.fx follows both modes here; the first must not tell the second what is ready."""

    def setup(self) -> None:
        self.register_buffer("t", torch.zeros(4), persistent=False)
        self.ready = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.t.clamp_(1.5)
            self.ready = True
        return self.linear(x) + self.t


class PerSize(Net):
    def setup(self) -> None:
        self.tables: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1]
        if size not in self.tables:
            self.tables[size] = table(size)
        return self.linear(x) + self.tables[size]


class Remembers(nn.Module):
    """Keeps a table in a dict that other modules have too."""

    def __init__(self, tables: dict[int, Tensor]) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, x: Tensor) -> Tensor:
        self.tables[0] = table(x.shape[1])
        return x


class SharesContainer(Net):
    """A copy whose modules no longer share the dict would find it empty."""

    def setup(self) -> None:
        self.tables: dict[int, Tensor] = {}
        self.first = Remembers(self.tables)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.first(x)) + self.tables[0]


class PerBatch(Net):
    def setup(self) -> None:
        self.tables: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[0]
        if size not in self.tables:
            self.tables[size] = table(size).reshape(size, 1, 4)
        return self.linear(x) + self.tables[size]


class PerDtype(Net):
    """Converts a buffer to the dtype of its input, once."""

    def setup(self) -> None:
        self.register_buffer("t", table(3).double() / 3, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.t.dtype != x.dtype:
            self.t = self.t.to(x.dtype)
        return self.linear(x) + self.t


class PerDtypePersistent(PerDtype):
    def setup(self) -> None:
        self.register_buffer("t", table(3).double() / 3)


class OfWeights(Net):
    """Keeps what it computed from its weights."""

    def setup(self) -> None:
        self.doubled: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.doubled is None:
            self.doubled = self.linear.weight * 2
        return x @ self.doubled.T


class OfData(Net):
    """Keeps what it computed from the first inputs that it saw."""

    def setup(self) -> None:
        self.mean: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = x.mean((0, 1))
        return self.linear(x) - self.mean


class OfDataInBuffer(Net):
    def setup(self) -> None:
        self.register_buffer("mean", torch.zeros(4))
        self.ready = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.mean.copy_(x.mean((0, 1)))
            self.ready = True
        return self.linear(x) - self.mean


class Counts(Net):
    def setup(self) -> None:
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * self.calls


class CountsToThree(Counts):
    """Differs only from the third call on."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * (2.0 if self.calls > 2 else 1.0)


class CountsOnLayer(Net):
    """As `CountsToThree`, on a layer of PyTorch, which has no such attribute."""

    def setup(self) -> None:
        self.linear.calls = 0  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        self.linear.calls += 1  # type: ignore[operator,assignment]
        return self.linear(x) * (2.0 if self.linear.calls > 2 else 1.0)  # type: ignore[operator]


class CountsInPartial(Net):
    """From the third call on; the list that it counts in is no attribute of its own."""

    def setup(self) -> None:
        self.count = functools.partial(list.append, [])

    def forward(self, x: Tensor) -> Tensor:
        self.count(1)
        return self.linear(x) * (2.0 if len(self.count.args[0]) > 2 else 1.0)


class Slotted:
    __slots__ = ("__dict__", "calls")

    def __init__(self) -> None:
        self.calls = 0


class CountsInSlot(Net):
    def setup(self) -> None:
        self.count = Slotted()

    def forward(self, x: Tensor) -> Tensor:
        self.count.calls += 1
        return self.linear(x) * (2.0 if self.count.calls > 2 else 1.0)


class Items(list[int]):
    calls = 0


class CountsOnList(Net):
    """In an attribute of a list, whose items stay."""

    def setup(self) -> None:
        self.count = Items()

    def forward(self, x: Tensor) -> Tensor:
        self.count.calls += 1
        return self.linear(x) * (2.0 if self.count.calls > 2 else 1.0)


class CountsBesideTree(Net):
    """In a module that is no child."""

    def setup(self) -> None:
        self.others = [CountsToThree()]

    def forward(self, x: Tensor) -> Tensor:
        self.others[0].calls += 1
        return self.linear(x) * (2.0 if self.others[0].calls > 2 else 1.0)


class LargeFirst(Net):
    """Differs only if its first call has the larger batch."""

    def setup(self) -> None:
        self.first = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x) * (2.0 if self.first and len(x) == 5 else 1.0)
        self.first = False
        return y


class GrowsContainer(Net):
    """From the third call on with a layer more."""

    def setup(self) -> None:
        self.layers = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        self.layers.append(nn.Identity())
        return self.linear(x) * (2.0 if len(self.layers) > 3 else 1.0)


class CountsInTraining(Counts):
    """torch.fx sees the same in both modes; only a second call in train mode differs."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.linear(x) * (2.0 if self.calls > 1 else 1.0)


class CountsForNothing(Counts):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)


class CountsInBuffer(Net):
    """Rebinds its buffer."""

    def setup(self) -> None:
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.linear(x) * self.calls


class CountsInPlace(CountsInBuffer):
    """What a graph has as well: a buffer that every call writes in place."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.linear(x) * self.calls


class CountsInPlacePassing(CountsInPlace):
    def setup(self) -> None:
        self.register_buffer("calls", torch.zeros(()), persistent=False)


class CountsInPlaceExported(CountsInPlace):
    """What it held before its first run is in the file, though it has run to be exported."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("three rows")
        return super().forward(x)


class CountsInViewExported(Net):
    def setup(self) -> None:
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("three rows")
        self.calls[1:].add_(1)
        return self.linear(x) * self.calls[1]


class Grows(Net):
    def setup(self) -> None:
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.linear(x) * len(self.seen)


class KeepsLast(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.linear(x)
        return self.last


class UsesLast(Net):
    def setup(self) -> None:
        self.last: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x) + self.last
        self.last = x.mean((0, 1))
        return y


class Renormalizes(Net):
    """Gives a parameter new values."""

    def forward(self, x: Tensor) -> Tensor:
        self.linear.weight.data = torch.renorm(self.linear.weight.data, 2, 0, 0.1)
        return self.linear(x)


class Decays(Net):
    """Writes into a parameter."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.linear.weight.mul_(0.5)
        return self.linear(x)


class DecaysWithDropout(Decays):
    """As above, where the rebuilt module runs as often as the model, so that both decay alike."""

    def setup(self) -> None:
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.dropout(x))


class InTraining(Rebound):
    """Makes its table in train mode alone."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.t.shape[1] != x.shape[1]:
            self.t = table(x.shape[1])
        return self.linear(x) + (self.t if self.training else 0)


class OnClass(Net):
    kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if OnClass.kept is None:
            OnClass.kept = table(x.shape[1])
        return self.linear(x) + OnClass.kept


class OnClassOfWeights(Net):
    """Without care, torch.fx would leave a stand-in of its own on the class."""

    kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if OnClassOfWeights.kept is None:
            OnClassOfWeights.kept = self.linear.bias * 2
        return self.linear(x) + OnClassOfWeights.kept


class OnClassOfData(Net):
    kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if OnClassOfData.kept is None:
            OnClassOfData.kept = x.mean((0, 1))
        return self.linear(x) + OnClassOfData.kept


class CountsOnClass(Net):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        CountsOnClass.calls += 1
        return self.linear(x) * CountsOnClass.calls


_TABLES: dict[int, Tensor] = {}
_SEEN: list[int] = []
_KINDS: set[str] = set()


class OnGlobal(Net):
    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1]
        if size not in _TABLES:
            _TABLES[size] = table(size)
        _KINDS.add("called")
        return self.linear(x) + _TABLES[size]


class CountsOnGlobal(Net):
    def forward(self, x: Tensor) -> Tensor:
        _SEEN.append(1)
        return self.linear(x) * len(_SEEN)


@functools.lru_cache
def cached_table(rows: int) -> Tensor:
    return table(rows)


class Cached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + cached_table(x.shape[1])


class Leaf(nn.Linear):
    """A layer with a table, which the graphs around it call."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("t", torch.zeros(1, 1, 4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.t.shape[1] != x.shape[1]:
            self.t = table(x.shape[1])
        return super().forward(x) + self.t


class Around(Net):
    """torch.fx follows this class, and calls what it cannot follow."""

    def setup(self) -> None:
        self.first = Leaf()
        self.second = OnFirstUse()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.second(self.first(x)))


class AroundExported(Around):
    """Exported as a whole, with the tables below it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 1 if x.shape[1] == 3 else x)


class ReadsBelow(Net):
    """Uses the table of a module below, which that makes."""

    def setup(self) -> None:
        self.first = Rebound()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.first(x)) + self.first.t


class Twice(Net):
    """One module in two places."""

    def setup(self) -> None:
        self.first = Rebound()
        self.again = nn.ModuleList([self.first])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.again[0](self.first(x)))


class FlipsMode(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x) * (2 if self.training else 1)
        self.train(not self.training)
        return y


class DrawsPython(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (1 if random.random() < 0.999 else 2)


class DrawsTorch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (1 if torch.rand(()) < 0.999 else 2)


DESCRIBED = [
    Rebound,
    OnFirstUse,
    OnFirstUseBuffer,
    Filled,
    FilledByMode,
    PerSize,
    SharesContainer,
    PerDtype,
    OfWeights,
    CountsForNothing,
    CountsInPlace,
    CountsInPlacePassing,
    CountsInPlaceExported,
    CountsInViewExported,
    KeepsLast,
    InTraining,
    OnClass,
    OnClassOfWeights,
    OnGlobal,
    Cached,
    Leaf,
    Around,
    AroundExported,
    ReadsBelow,
    Twice,
]
REFUSED = {
    ReboundPersistent: "forward changes the buffer 't' when it first runs",
    OnFirstUsePersistent: "forward changes the buffer 't' when it first runs",
    FilledPersistent: "forward changes the buffer 't' when it first runs",
    PerDtypePersistent: "forward changes the buffer 't' when it first runs",
    PerBatch: "the model (PerBatch)",
    OfData: "forward changes 'mean' of the model (OfData)",
    OfDataInBuffer: "forward changes the buffer 'mean' when it first runs",
    Counts: "at batch size 5: forward changes 'calls' of the model (Counts)",
    CountsToThree: "at batch size 2 when it is called again: forward changes 'calls'",
    CountsOnLayer: "at batch size 2 when it is called again: forward changes 'calls' of module",
    GrowsContainer: "forward changes",
    CountsInPartial: "when it is called again: forward changes 'count'",
    CountsInSlot: "when it is called again: forward changes 'count'",
    CountsOnList: "when it is called again: forward changes 'count'",
    LargeFirst: "in eval mode at batch size 5 when that is the first call",
    CountsBesideTree: "when it is called again: forward changes 'others'",
    CountsInTraining: "in train mode at batch size 5: forward changes 'calls'",
    CountsInBuffer: "forward changes 'calls' of the model (CountsInBuffer)",
    Grows: "forward changes 'seen' of the model (Grows)",
    UsesLast: "forward changes 'last' of the model (UsesLast)",
    Renormalizes: "forward changes the parameter linear.weight",
    Decays: "forward changes the parameter linear.weight",
    DecaysWithDropout: "forward changes the parameter linear.weight",
    OnClassOfData: "forward changes 'kept' of OnClassOfData",
    CountsOnClass: "forward changes 'calls' of CountsOnClass",
    CountsOnGlobal: "forward changes '_SEEN' of ",
    FlipsMode: "in eval mode at batch size 5",
    DrawsPython: "forward draws random numbers that do not depend on its inputs",
    DrawsTorch: "forward draws random numbers that do not depend on its inputs",
}


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    with isolated(nn.ModuleList([make() for make in (*DESCRIBED, *REFUSED)])):
        yield
    cached_table.cache_clear()


def masked(module: nn.Module) -> dict[str, Tensor]:
    return random_masks(module, keep=0.6)


def effective(module: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
    return module


def through(module: nn.Module, **options: Any) -> tuple[nn.Module, str]:
    """What the file of a module gives, and what was proven of it."""
    stream = io.BytesIO()
    options.setdefault("example_inputs", torch.randn(5, 3, 4))
    report = pemncodec.encode(module, stream, masks=masked(module), **options)
    stream.seek(0)
    return pemncodec.decode(stream), report.verified


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("make", DESCRIBED)
def test_described_rightly(make: Callable[[], nn.Module], ran: bool) -> None:
    module, fresh = seeded(make), seeded(make)
    if ran:
        x = torch.randn(3, 3, 4)
        with isolated(module):
            module(x)  # with gradients, as in training
        with torch.no_grad():
            fresh(x)
    rebuilt, verified = through(module, train_graph=True)
    assert verified == (
        "every tensor bit for bit, outputs equal at batch sizes 2 and 5 in eval and train mode"
    )
    assert list(rebuilt.state_dict()) == list(module.state_dict())
    effective(fresh, masked(module))
    for training in (False, True):
        original, decoded = (copy.deepcopy(each).train(training) for each in (fresh, rebuilt))
        for size in (3, 4, 2, 3):
            x = torch.randn(size, 3, 4)
            with torch.no_grad(), isolated(original):
                expected = original(x)
            assert torch.equal(decoded(x), expected)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.parametrize("train_graph", [False, True])
@pytest.mark.parametrize("make", REFUSED)
def test_refused(make: Callable[[], nn.Module], train_graph: bool) -> None:
    torch.manual_seed(0)
    target = io.BytesIO()
    module = make().eval()
    with pytest.raises(UnsupportedModelError) as caught:
        pemncodec.encode(
            module,
            target,
            masks=masked(module),
            example_inputs=torch.randn(5, 3, 4),
            train_graph=train_graph,
        )
    message = str(caught.value)
    assert REFUSED[make] in message  # type: ignore[index]
    assert "--no-manifest" in message
    assert "\n" not in message
    assert not target.getvalue()


def test_inputs_of_one_row_do_not_hide_what_was_kept_of_them() -> None:
    class OfLargest(OfData):
        def forward(self, x: Tensor) -> Tensor:
            if self.mean is None:
                self.mean = x.amax((0, 1))
            return self.linear(x) - self.mean

    with pytest.raises(UnsupportedModelError, match=r"called with other values before: .* 'mean'"):
        through(OfLargest(), example_inputs=torch.randn(1, 3, 4))


def test_inputs_that_cannot_be_halved() -> None:
    class Demanding(OnFirstUse):
        def forward(self, x: Tensor) -> Tensor:
            if x.device.type == "cpu" and not isinstance(x, torch._subclasses.FakeTensor):
                assert (x == x.round()).all()
            return super().forward(x)

    _, verified = through(Demanding(), example_inputs=torch.full((5, 3, 4), 3.0))
    assert "outputs equal" in verified


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("make", [*DESCRIBED, *REFUSED])
def test_the_module_stays_as_it_was(make: Callable[[], nn.Module], guess: bool) -> None:
    torch.manual_seed(0)
    module = make().train()
    next(module.children(), module).eval()
    next(module.parameters()).requires_grad_(False)
    before = snapshot(module)
    states = random_states()
    spaces = globals_now()
    inputs = {} if guess else {"example_inputs": torch.zeros(5, 3, 4) + 0.25}
    with contextlib.suppress(pemncodec.EncodeError):
        pemncodec.encode(module, io.BytesIO(), masks=masked(module), train_graph=True, **inputs)
    assert random_states() == states
    assert globals_now() == spaces
    assert_untouched(module, before)


def globals_now() -> list[Any]:
    classes = [OnClass.kept, OnClassOfWeights.kept, OnClassOfData.kept, CountsOnClass.calls]
    return [*classes, list(_TABLES), list(_SEEN), set(_KINDS)]


def snapshot(module: nn.Module) -> dict[str, dict[str, Any]]:
    """All that hangs on a module and its children, with values of tensors."""
    return {
        path: {
            key: {name: (item, kept(item)) for name, item in value.items()}
            if isinstance(value, dict)
            else (value, kept(value))
            for key, value in vars(below).items()
        }
        for path, below in module.named_modules()
    }


def kept(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone(), value._version, value.data_ptr(), value.requires_grad
    return copy.copy(value) if isinstance(value, list | set) else None


def assert_untouched(module: nn.Module, before: dict[str, dict[str, Any]]) -> None:
    after = snapshot(module)
    assert list(after) == list(before)
    for path, attributes in after.items():
        assert list(attributes) == list(before[path])
        for key, value in attributes.items():
            old = before[path][key]
            pairs = (
                zip(value.values(), old.values(), strict=True)
                if isinstance(value, dict)
                else [(value, old)]
            )
            assert not isinstance(value, dict) or list(value) == list(old)
            for (mine, content), (other, former) in pairs:
                assert mine is other
                if isinstance(mine, Tensor):
                    assert torch.equal(content[0], former[0])
                    assert content[1:] == former[1:]
                else:
                    assert content == former


def test_hooks_and_gradients_of_the_module_stay(small: Any) -> None:
    small.module(small.inputs).sum().backward()
    before = snapshot(small.module)
    gradients = {name: p.grad.clone() for name, p in small.module.named_parameters()}
    generator = np.random.get_state()[1].copy()
    small.encode(io.BytesIO())
    assert_untouched(small.module, before)
    assert np.array_equal(np.random.get_state()[1], generator)
    for name, parameter in small.module.named_parameters():
        assert torch.equal(parameter.grad, gradients[name])


# ------------------------------------------------- rebuilt modules that differ, one way each


class Mixed(nn.Module):
    """A class of the user with layers of both kinds: with and without a mode of their own."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.dropout(torch.relu(self.norm(self.first(x)))))


Alteration = Callable[[nn.Module, Tensor], Tensor]


def in_train_mode(module: nn.Module, y: Tensor) -> Tensor:
    return y + 1 if module.training else y


def in_eval_mode(module: nn.Module, y: Tensor) -> Tensor:
    return y if module.training else y + 1


def of_largest_batch(_: nn.Module, y: Tensor) -> Tensor:
    return y + 1 if len(y) == max(VERIFIED_BATCH_SIZES) else y


def of_largest_batch_in_train_mode(module: nn.Module, y: Tensor) -> Tensor:
    return y + 1 if module.training and len(y) == max(VERIFIED_BATCH_SIZES) else y


def of_smallest_batch(_: nn.Module, y: Tensor) -> Tensor:
    return y + 1 if len(y) == min(VERIFIED_BATCH_SIZES) else y


def by_one_ulp(_: nn.Module, y: Tensor) -> Tensor:
    return torch.where(torch.arange(y.numel()).reshape(y.shape) == 0, y * (1 + 2**-23), y)


def by_the_sign_of_zero(_: nn.Module, y: Tensor) -> Tensor:
    return y * -0.0


def by_dtype(_: nn.Module, y: Tensor) -> Tensor:
    return y.double()


def on_the_second_call(module: nn.Module, y: Tensor) -> Tensor:
    module.calls = getattr(module, "calls", 0) + 1  # type: ignore[assignment]
    return y + 1 if module.calls > 1 else y  # type: ignore[operator]


def on_the_third_call(module: nn.Module, y: Tensor) -> Tensor:
    module.calls = getattr(module, "calls", 0) + 1  # type: ignore[assignment]
    return y + 1 if module.calls > 2 else y  # type: ignore[operator]


PLACES = {
    in_train_mode: "in train mode at batch size 2",
    in_eval_mode: "in eval mode at batch size 2",
    of_largest_batch: "in eval mode at batch size 5",
    of_largest_batch_in_train_mode: "in train mode at batch size 5",
    of_smallest_batch: "in eval mode at batch size 2",
    by_one_ulp: "in eval mode at batch size 2",
    by_the_sign_of_zero: "in eval mode at batch size 2",
    by_dtype: "in eval mode at batch size 2",
    on_the_second_call: "in eval mode at batch size 5",
    on_the_third_call: "in eval mode at batch size 2 when it is called again",
}


@pytest.fixture
def rebuilt_otherwise(monkeypatch: pytest.MonkeyPatch) -> Callable[[Alteration], None]:
    """Makes every rebuilt module return something else, once its file has been traced."""

    def change(alteration: Alteration) -> None:
        build = pemncodec.decoding.build_module

        def altered(*args: Any) -> nn.Module:
            module = build(*args)
            kind = type(module)

            class Altered(kind):  # type: ignore[misc,valid-type]
                def __call__(self, *inputs: Tensor) -> Tensor:
                    y = super().__call__(*inputs)
                    return y if y.is_meta else alteration(self, y)

            module.__class__ = Altered
            return module

        monkeypatch.setattr("pemncodec.decoding.build_module", altered)

    return change


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("alteration", PLACES)
def test_a_difference_is_noticed(
    rebuilt_otherwise: Callable[[Alteration], None], alteration: Alteration, dropout: float
) -> None:
    torch.manual_seed(0)
    module = Mixed(dropout)
    if alteration is by_the_sign_of_zero:
        nn.init.zeros_(module.second.weight)
        nn.init.zeros_(module.second.bias)
    rebuilt_otherwise(alteration)
    with pytest.raises(UnsupportedModelError) as caught:
        through(module, example_inputs=torch.rand(5, 4))
    assert f"the rebuilt module's output differs {PLACES[alteration]}; " in str(caught.value)


def test_an_exported_graph_may_round_but_not_differ(
    rebuilt_otherwise: Callable[[Alteration], None],
) -> None:
    torch.manual_seed(0)
    rebuilt_otherwise(lambda _, y: y * (1 + 2**-20))
    _, verified = through(Rebound())
    assert "outputs within 1e-06 of the largest" in verified
    rebuilt_otherwise(lambda _, y: y * (1 + 2**-16))
    with pytest.raises(UnsupportedModelError, match="in eval mode at batch size 2"):
        through(Rebound())


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_an_exported_graph_may_round_beside_infinities(
    rebuilt_otherwise: Callable[[Alteration], None], value: float
) -> None:
    """They have no size that others could be compared with, and must be where they were."""

    class Unbounded(Rebound):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super().forward(x), torch.full_like(x, value)])

    torch.manual_seed(0)
    rebuilt_otherwise(lambda _, y: y * (1 + 2**-20))
    _, verified = through(Unbounded())
    assert "outputs within 1e-06 of the largest" in verified
    for alteration in (
        lambda _, y: y * (1 + 2**-16),
        lambda _, y: torch.where(y.isfinite(), y, 0.0),
        lambda _, y: torch.where(y == y[0, 0, 0], value, y),
    ):
        rebuilt_otherwise(alteration)
        with pytest.raises(UnsupportedModelError, match="in eval mode at batch size 2"):
            through(Unbounded())


def test_a_train_graph_that_is_the_eval_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """No layer depends on the mode, the rebuilt graphs do not, but the model does."""

    class ByMode(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2 if self.training else 1)

    real = trace.trace_forwards

    def always_in_eval_mode(*args: Any, **options: Any) -> Any:
        return real(*args, **{**options, "training": False})

    _, verified = through(ByMode(0.0), example_inputs=torch.rand(5, 4))
    assert "eval and train mode" in verified
    monkeypatch.setattr(trace, "trace_forwards", always_in_eval_mode)
    with pytest.raises(UnsupportedModelError, match="in train mode at batch size 2"):
        through(ByMode(0.0), example_inputs=torch.rand(5, 4))


class OwnTrain(Mixed):
    def train(self, mode: bool = True) -> OwnTrain:
        self.second.bias.data.fill_(float(mode))
        return super().train(mode)


class OwnTraining(Mixed):
    training = True  # type: ignore[assignment]


class OwnSetting(Mixed):
    """Keeps the mode under a second name."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "training":
            vars(self)["learns"] = value


class OwnGetting(Mixed):
    """May read any attribute unseen."""

    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__(name)


def scripted() -> nn.Module:
    """Keeps its mode where Python does not look."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script: nn.Module = torch.jit.trace(nn.Linear(4, 4), torch.rand(2, 3, 4))
    return script


@pytest.mark.parametrize(
    ("module", "asks"),
    [
        (nn.Linear(4, 4), False),
        (nn.LayerNorm(4), False),
        (nn.Dropout(0.0), False),
        (nn.Dropout(0.1), True),
        (nn.Dropout1d(0.0), True),
        (nn.BatchNorm1d(3), True),
        (nn.LSTM(4, 4), True),
        (nn.RReLU(), True),
        (nn.Sequential(nn.Linear(4, 4), nn.AlphaDropout(0.1)), True),
        (OwnTrain(0.0), True),
        (OwnTraining(0.0), True),
        (OwnSetting(0.0), True),
        (OwnGetting(0.0), True),
        (scripted(), True),
    ],
)
def test_who_asks_for_the_mode(module: nn.Module, asks: bool) -> None:
    module.eval()
    with watched_mode(module) as watch, torch.no_grad():
        module(torch.rand(2, 3, 4))
    assert watch.asked == asks
    assert "training" not in vars(nn.Module)
    assert not module.training or isinstance(module, OwnTraining)


def test_the_mode_is_watched_for_as_long_as_code_runs() -> None:
    module = nn.Linear(4, 4).train()
    with pytest.raises(RuntimeError, match="mat1"), watched_mode(module):
        module.eval()(torch.rand(2, 3))
    assert not module.training
    assert "training" not in vars(nn.Module)


def test_a_module_that_keeps_its_mode_elsewhere_is_asked_by_another() -> None:
    script = scripted().eval()
    with watched_mode(nn.Linear(4, 4)) as watch:
        assert not script.training
    assert watch.asked


def test_two_threads_watch_one_after_the_other() -> None:
    entered = threading.Event()

    def second() -> bool:
        with watched_mode(nn.Linear(4, 4)) as watch:
            entered.set()
        return watch.asked

    module = nn.BatchNorm1d(4).eval()
    with ThreadPoolExecutor(1) as pool:
        with watched_mode(module) as first:
            asked = pool.submit(second)
            assert not entered.wait(0.1)
            module(torch.rand(2, 4))
        assert first.asked
        assert not asked.result()
    assert "training" not in vars(nn.Module)


def test_the_mode_may_be_asked_for_at_the_larger_batch_alone() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return y * 2 if len(x) == 5 and self.training else y

    inputs = given_inputs(torch.rand(5, 4))
    same, other = nn.Sequential(nn.Linear(4, 4)), Late()
    other.linear = same[0]
    with pytest.raises(UnsupportedModelError, match="in train mode at batch size 5"):
        compare_outputs(Reference(other, inputs), same, trains=True, exported=False)


def test_statistics_that_are_counted_otherwise(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs in train mode do not depend on running statistics; they are compared as well."""
    build = pemncodec.decoding.build_module

    def slower(*args: Any) -> nn.Module:
        module = build(*args)
        module[1].momentum = 0.2
        return module

    monkeypatch.setattr("pemncodec.decoding.build_module", slower)
    with pytest.raises(UnsupportedModelError, match=r"changes 1\.running_\w+ otherwise in train"):
        small.encode(io.BytesIO())


class OwnStatistics(Net):
    """Keeps, in train mode, what it knows of its inputs in a buffer: as own batch norms do."""

    def setup(self) -> None:
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean((0, 1)))
        return x - self.mean


class OwnStatisticsUntraced(OwnStatistics):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] == 4
        return super().forward(x)


class OwnStatisticsCounted(OwnStatistics):
    """Has, as far as torch.fx sees, the same forward each time."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (2.0 if self.calls > 2 else 1.0)


def test_calls_that_leave_traces_in_buffers_alone_are_not_repeated() -> None:
    """If torch.fx has seen them: it follows no control flow by what is in a tensor."""
    calls: list[str] = []

    def count(module: nn.Module, *_: Any) -> None:
        if isinstance(module, OwnStatistics):
            calls.append("train" if module.training else "eval")

    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        through(OwnStatistics(), example_inputs=torch.randn(5, 3, 4))
        assert calls == ["eval", "eval", "train", "train"]
        calls.clear()
        through(OwnStatisticsUntraced(), train_graph=True)
        assert calls.count("train") > 6  # also to be exported
        with pytest.raises(UnsupportedModelError, match="'calls' of the model"):
            through(OwnStatisticsCounted())
    finally:
        handle.remove()


def test_outputs_that_are_memory_of_the_module() -> None:
    class Accumulates(Net):
        def setup(self) -> None:
            self.register_buffer("sum", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.sum.add_(self.linear(x).sum((0, 1)))

    x = torch.ones(5, 3, 4)
    rebuilt, _ = through(Accumulates())
    assert not torch.equal(rebuilt(x).clone(), rebuilt(x))
    first, _, again, *_ = Reference(Accumulates(), given_inputs(x)).evaluated().outputs
    assert not torch.equal(first, again)


def test_guessing_leaves_no_trace() -> None:
    module = Counts().train()
    guessed_inputs(module)
    assert module.calls == 0
    assert module.training


# ------------------------------------------------------------------------- comparing outputs

ONE, NAN = torch.ones(2), torch.full((2,), torch.nan)
SAME: list[tuple[Any, Any]] = [
    (ONE, ONE.clone()),
    (NAN, NAN.clone()),
    (torch.empty(0, 2), torch.empty(0, 2)),
    ([ONE, (NAN, 3)], (ONE, [NAN, 3])),
    ({"a": ONE, "b": None}, {"a": ONE, "b": None}),
    (torch.tensor([1, 2]), torch.tensor([1, 2])),
    (torch.tensor([1, torch.inf, -torch.inf]), torch.tensor([1, torch.inf, -torch.inf])),
]
DIFFERENT: list[tuple[Any, Any]] = [
    (ONE, ONE + 2e-5),
    (ONE, NAN),
    (NAN, ONE),
    (torch.tensor([1, torch.inf]), torch.tensor([2, torch.inf])),
    (torch.tensor([1, torch.nan]), torch.tensor([2, torch.nan])),
    (torch.tensor([1, torch.inf]), torch.tensor([1, -torch.inf])),
    (torch.tensor([1, torch.inf]), torch.tensor([1, 3e38])),
    (ONE, None),
    (ONE, [1.0, 1.0]),
    (ONE, ONE.double()),
    (ONE, ONE[None]),
    (torch.empty(0, 2), torch.empty(2, 0)),
    ([ONE], ONE[None]),
    ([ONE], [ONE, ONE]),
    ([ONE, ONE], [ONE]),
    ([ONE, ONE], [ONE, NAN]),
    ([ONE], {0: ONE}),
    ({"a": ONE}, [ONE]),
    ({"a": ONE}, {"b": ONE}),
    ({"a": ONE, "b": NAN}, {"b": NAN, "a": ONE}),
    ({"a": ONE, "b": ONE}, {"a": ONE, "b": NAN}),
    (3, 4),
    (torch.tensor([100_000_000]), torch.tensor([100_000_001])),
]


@pytest.mark.parametrize("rounded", [False, True])
def test_outputs_that_are_the_same_and_that_are_not(rounded: bool) -> None:
    for expected, actual in SAME:
        assert same_outputs(expected, actual, rounded=rounded)
    for expected, actual in DIFFERENT:
        assert not same_outputs(expected, actual, rounded=rounded)


def test_rounding_is_relative_to_the_largest_magnitude() -> None:
    expected = torch.tensor([-1000.0, 0.0])
    for difference, fits in ((0.0, True), (1e-6, True), (9e-3, True), (1.1e-2, False)):
        actual = torch.tensor([-1000.0, difference])
        assert same_outputs([expected], [actual], rounded=True) == fits
        assert same_outputs(expected, actual) == (difference == 0)
        assert relative_difference(expected, actual) == pytest.approx(difference / 1000)
    assert relative_difference([ONE, -4 * ONE, 7], {"a": ONE, "b": -3 * ONE}) == 0.25
    assert relative_difference(torch.zeros(2), ONE) == 1
    assert relative_difference(torch.tensor([1, torch.inf]), torch.tensor([2, torch.inf])) == 1
    assert relative_difference(torch.tensor([1, torch.inf]), ONE) == torch.inf
    assert relative_difference(NAN, NAN) == 0
    assert relative_difference(NAN, ONE) == torch.inf
    assert relative_difference(torch.tensor([1]), torch.tensor([5])) == 0
    assert relative_difference([torch.empty(0)], [torch.empty(0)]) == 0


def test_what_is_in_memory_may_be_decoded_whatever_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    real = proof.PemnFile

    def opened(encoded: Any, limits: Limits) -> Any:
        seen.append(limits.decoded_bytes)
        return real(encoded, limits)

    monkeypatch.setattr(proof, "PemnFile", opened)
    through(nn.Linear(4, 4))
    assert min(seen) >= 1 << 60


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        ("ab", "missing c"),
        ("a", "missing b and 1 more"),
        ("abcd", "unexpected d"),
        ("acb", "other order"),
    ],
)
def test_how_names_of_tensors_differ(names: str, cause: str) -> None:
    expected = {name: torch.zeros(1) for name in "abc"}
    proof.compare_states(dict(expected), expected)
    with pytest.raises(EncodeError, match=f"tensor names differ: {cause}$"):
        proof.compare_states({name: torch.zeros(1) for name in names}, expected)


def test_as_much_accuracy_may_be_lost_as_is_allowed() -> None:
    def metric(values: list[float]) -> Callable[[nn.Module], float]:
        return lambda _: values.pop(0)

    through(nn.Linear(4, 4), accuracy=metric([1.0, 0.5]), max_drop=0.5)
    with pytest.raises(EncodeError, match=r"falls from 1 to 0\.25, by more than 0\.5"):
        through(nn.Linear(4, 4), accuracy=metric([1.0, 0.25]), max_drop=0.5)


@pytest.mark.parametrize("values", [[1.0, math.nan], [math.nan, 1.0], [math.nan, math.nan]])
def test_an_accuracy_that_is_no_number(values: list[float]) -> None:
    with pytest.raises(EncodeArgumentError, match=r"the accuracy function gives \S+, then \S+$"):
        through(nn.Linear(4, 4), accuracy=lambda _: values.pop(0))
