"""Frozen weights → the seeds of torch's CPU generator, or of NumPy's legacy one, behind them.

Weights say of many words of the generator in which interval they lie (`draws.py`). With enough of
them its state is the solution of linear equations, whatever the seed is and however many words were
drawn before. Weights that are too few for that are looked for among the words of small seeds, and
on request behind every seed, where the architecture suggests. Once a seed is known, all other
weights are looked for among its words. What is found is made again and compared before it counts.

How much is tried is counted, not timed, so that the bytes of a file do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from pemncodec import kernels
from pemncodec.contents import SeededFill
from pemncodec.limits import limits_within
from pemncodec.values.draws import Draws, Equations, equations_of
from pemncodec.values.every_seed import Place, search_seeds, telling_equations
from pemncodec.values.initialisation import Drawn, numpy_words_before, words_before
from pemncodec.values.mersenne import stream_of
from pemncodec.values.numpy_legacy import is_numpy, words_each
from pemncodec.values.recovery import Layer
from pemncodec.values.seeding import seed_before
from pemncodec.values.sought import Hypothesis, Sought, hypotheses, sought_tensors
from pemncodec.values.torch_cpu import is_normal, words_of
from pemncodec.values.word_patterns import Pattern, pattern_of
from pemncodec.values.word_search import search_words

_STATE, _STATE_BITS = 624, 19_937
_MOST_BITS = 60_000.0  # of draws that become equations: where words say much, some depend on others
_MOST_SIGNS = 24_000.0  # the same where each says a bit
_TELLING = 56.0  # bits of a pattern: more than words are looked at
_AROUND = 8  # words that are drawn for a network, for each of its weights
_ALSO_DRAWN = 1 << 16
_BETWEEN = (0, 1, 2)  # tensors of a network, times the values of the later one
GIVEN_DRAWN = 1 << 27
"""Words that may lie before a network whose seed is given."""

_FURTHEST_BACK = 1 << 30  # the same before weights that were solved for: 0.2 s
_STEPPED_BACK = 500_000  # words for which `Effort.solving` counts 1
_USUAL_SEEDS = (0, 1, 42, 2, 3, 123, 1234, 2023, 2022, 2021, 2020, 2024, 2025, 3407, 1337, 12345)
_MOST_TENSORS = 2  # that are looked for behind all seeds
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Network:
    """What torch may have drawn, in order.

    Attributes:
        drawn: all layers, also those without a mask.
        places: which of them each masked layer is.
    """

    drawn: tuple[Drawn, ...] = ()
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is tried.

    Attributes:
        solving: of linear equations: for each system, with its unknowns and its words counted in
            thousands, the cube of the unknowns and thrice their product; 8,000 take about a second.
            Words between a state that was found and its seed count, too.
        comparing: words of small seeds with what tensors say of them: 6 × 10^9 take about a second.
        seeds: how many small seeds, and usual ones.
        every: seeds that are tried at each place where the architecture's initialisation may have
            drawn a tensor.
    """

    solving: float
    comparing: int
    seeds: int
    every: range = range(0)


FAST = Effort(solving=8_000, comparing=1 << 31, seeds=64)
THOROUGH = Effort(solving=48_000, comparing=1 << 33, seeds=1024)
FULL = replace(THOROUGH, every=range(1 << 32))


def find_seeds(
    layers: Sequence[Layer],
    effort: Effort | None,
    seeds: Mapping[int, int] = MappingProxyType({}),
    progress: Progress | None = None,
    network: Network | None = None,
    weights: int | None = None,
) -> list[SeededFill | None]:
    """Where each layer's weights come from, as far as that is found.

    Args:
        layers: of a network, or of a part of it; those with a fill are passed over.
        effort: how much is tried; None only looks behind the given seeds.
        seeds: that the weights may come from, tried before any other; and how many words may lie
            before those of the network.
        progress: called with what is under way, and the share of its effort that was spent.
        network: what else torch may have drawn; without it, all seeds are not tried.
        weights: of all layers of the network; None if `layers` are all. The more they are, the
            further their words are looked for.
    """
    if weights is None:
        weights = sum(layer.values.size for layer in layers)
    search = _Search(layers, effort or Effort(0, 0, 0), weights, progress or (lambda _, __: None))
    for seed, before in seeds.items():
        search.look_behind(seed, before)
    search.solve()
    if not search.seeds:
        search.solve_together()
    if not search.seeds:
        search.try_usual_seeds()
    if not search.seeds and network is not None and search.effort.every:
        search.try_every_seed(network)
    return search.fills


class _Search:
    def __init__(
        self, layers: Sequence[Layer], effort: Effort, weights: int, progress: Progress
    ) -> None:
        self.fills: list[SeededFill | None] = [None] * len(layers)
        self.seeds: list[int] = []
        self.effort, self._progress = effort, progress
        self._solving, self._comparing = 0.0, 0
        self._drawn = _ALSO_DRAWN + _AROUND * weights
        self._last = limits_within(4 * weights).drawn_words  # that readers of the file will draw
        deviations = usual_deviations(layers)
        tensors = {tensor: hypotheses(tensor, deviations) for tensor in sought_tensors(layers)}
        self._weights = sum(tensor.layer.values.size for tensor in tensors)
        self._left = {tensor: ways for tensor, ways in tensors.items() if ways}
        # Drawn from a known seed, and changed since: no other seed is behind them.
        self._changed: set[Sought] = set()

    def solve(self) -> None:
        """By linear equations, from the tensor with the most known values on."""
        for hypothesis in [way for ways in self._left.values() for way in ways]:
            if hypothesis.tensor not in self._left or hypothesis.tensor in self._changed:
                continue
            left, origin = self._solved(hypothesis.draws)
            if origin is not None and self._found(hypothesis, *origin):
                self.look_behind(*origin)
            elif left is not None and left <= 0:
                self._refuted(hypothesis)

    def solve_together(self) -> None:
        """By equations of all tensors, as if each was drawn soon after the one before.

        Between them are as many words as the later one has values, times some number: what it was
        drawn with before, or its scores.
        """
        tensors = sorted(self._left.values(), key=lambda ways: min(ways[0].tensor.layers))
        by_torch = [[way for way in ways if not is_numpy(way.prototype)] for ways in tensors]
        by_numpy = [[way for way in ways if is_numpy(way.prototype)] for ways in tensors]
        # The most exact way of each; signs may be of normal values or of uniform ones.
        likely = [[ways[0] for ways in by_torch if ways], [ways[-1] for ways in by_torch if ways]]
        if not any(way.prototype.distribution == "uniform-signs" for way in likely[1]):
            del likely[1]
        likely.append([ways[0] for ways in by_numpy if ways])
        for between in _BETWEEN:
            for ways in likely:
                skips = _places(ways, between)
                origin = self._solved(_together(ways, skips))[1] if len(ways) > 1 else None
                if origin is None:
                    continue
                seed, before = origin
                for way, skip in zip(ways, skips, strict=True):
                    self._found(way, seed, before + skip)
                if self.seeds:
                    self.look_behind(seed, before)
                    return

    def _solved(self, draws: Draws) -> tuple[int | None, tuple[int, int] | None]:
        """What the solver returns, None where it is not asked; seed and words before the first."""
        equations = _enough_equations(draws)
        if equations is None:
            return None, None
        work = _work(equations)
        if self._solving + work > self.effort.solving:
            return None, None
        self._spend(solving=work)
        state = np.empty(_STATE, np.uint32)
        left = kernels.mersenne_solve(equations.words, equations.masks, equations.parities, state)
        if left:
            return left, None
        most = min(_FURTHEST_BACK + self._drawn, self._last)
        origin = seed_before(state, most)
        self._spend(solving=(most if origin is None else origin[1]) / _STEPPED_BACK)
        return left, origin

    def try_usual_seeds(self) -> None:
        """Small seeds and popular ones, by the two tensors that tell the most.

        Not where what was solved, or how values lie, refutes that torch drew most of them.
        """
        if 2 * sum(tensor.layer.values.size for tensor in self._left) < self._weights:
            return
        patterns = [_patterns(ways) for ways in self._left.values()]
        patterns.sort(key=lambda ways: -max((way[1].bits for way in ways), default=0.0))
        telling = [way for ways in patterns[:2] for way in ways]
        # Making a word takes about as long as comparing it twice.
        work = self._drawn * (2 + sum(pattern.passes for _, pattern in telling))
        numbers = dict.fromkeys((*_USUAL_SEEDS, *range(self.effort.seeds)))
        for seed in list(numbers)[: self.effort.seeds]:
            if not telling or self._comparing + work > self.effort.comparing:
                return
            self._spend(comparing=work)
            self._search(seed, self._drawn, telling)
            if seed in self.seeds:
                self.look_behind(seed, 0)
                return

    def try_every_seed(self, network: Network) -> None:
        """Behind those tensors that tell the most, wherever the network may have drawn them."""
        telling = [_telling(ways) for ways in self._left.values()]
        chances = [
            (way, Place(equations, skip))
            for ways in [ways for ways in telling if ways][:_MOST_TENSORS]
            for way, equations in ways
            for skip in _usual_places(way, network)
        ]
        what = f"trying all seeds at {len(chances)} places"

        def found(index: int, seed: int) -> bool:
            way, place = chances[index]
            if not self._found(way, seed, place.skip):
                return False
            self.look_behind(seed, place.skip)
            # Those that tell too little to be looked for at every word.
            for way in [way for ways in self._left.values() for way in ways]:
                for skip in _usual_places(way, network):
                    if way.tensor in self._left:
                        self._found(way, seed, skip)
            return True

        search_seeds(
            [place for _, place in chances],
            self.effort.every,
            found,
            lambda share: self._progress(what, share),
        )

    def look_behind(self, seed: int, skip: int) -> None:
        """All that is left, among the words of a seed up to those of a network after `skip`."""
        ways = [way for ways in self._left.values() for way in _patterns(ways)]
        self._search(seed, min(skip + self._drawn, self._last), ways)

    def _search(self, seed: int, stop: int, ways: Sequence[tuple[Hypothesis, Pattern]]) -> None:
        def found(index: int, skip: int) -> set[int]:
            hypothesis = ways[index][0]
            if not self._found(hypothesis, seed, skip):
                self._changed.add(hypothesis.tensor)  # so many bits do not fit by chance
            return {i for i, (way, _) in enumerate(ways) if way.tensor in self._left}

        held = stream_of(seed)  # with states on the way, while tensors are compared
        search_words(seed, stop, [pattern for _, pattern in ways], found)
        del held

    def _found(self, hypothesis: Hypothesis, seed: int, skip: int) -> bool:
        within = skip + words_of(hypothesis.prototype) <= self._last
        fill = hypothesis.confirmed(seed, skip) if within else None
        if fill is None:
            return False
        for index in hypothesis.tensor.layers:
            self.fills[index] = fill
        del self._left[hypothesis.tensor]
        if seed not in self.seeds:
            self.seeds.append(seed)
        return True

    def _refuted(self, hypothesis: Hypothesis) -> None:
        ways = self._left[hypothesis.tensor]
        ways.remove(hypothesis)
        if not ways:
            del self._left[hypothesis.tensor]

    def _spend(self, solving: float = 0.0, comparing: int = 0) -> None:
        self._solving += solving
        self._comparing += comparing
        effort = self.effort
        solving = self._solving / effort.solving if effort.solving else 1.0
        compared = self._comparing / effort.comparing if effort.comparing else 1.0
        self._progress("looking for seeds", min((solving + compared) / 2, 1.0))


def _patterns(ways: Sequence[Hypothesis]) -> list[tuple[Hypothesis, Pattern]]:
    patterns = [(hypothesis, pattern_of(hypothesis.draws)) for hypothesis in ways]
    return [way for way in patterns if way[1].bits >= _TELLING]


def _telling(ways: Sequence[Hypothesis]) -> list[tuple[Hypothesis, Equations]]:
    """The ways that say enough of words to tell a seed by them."""
    found = [(way, telling_equations(way.draws)) for way in ways]
    return [(way, equations) for way, equations in found if equations is not None]


def _usual_places(way: Hypothesis, network: Network) -> list[int]:
    """How many words may lie before a tensor, drawn for the largest of its layers or the first."""
    largest, *_ = layers = way.tensor.layers
    places: list[int] = []
    for layer in (largest, min(layers)):
        at, prototype = network.places[layer], way.prototype
        if is_numpy(prototype):
            places += numpy_words_before(network.drawn, at, words_each(prototype))
        else:
            places += words_before(network.drawn, at, normal=is_normal(prototype))
    return [skip for skip in dict.fromkeys(places) if skip <= GIVEN_DRAWN]


def _places(ways: Sequence[Hypothesis], between: int) -> list[int]:
    """Where the words of tensors begin, from those of the first on."""
    places: list[int] = []
    end = 0
    for way in ways:
        start = end + between * way.tensor.length * bool(places)
        places.append(start)
        end = start + words_of(way.prototype)
    return places


def _together(ways: Sequence[Hypothesis], places: Sequence[int]) -> Draws:
    draws = [way.draws for way in ways]
    words = [each.words + place for each, place in zip(draws, places, strict=True)]
    low, width = ([getattr(each, name) for each in draws] for name in ("low", "width"))
    return Draws(np.concatenate(words), np.concatenate(low), np.concatenate(width), draws[0].turn)


def _enough_equations(draws: Draws) -> Equations | None:
    """About as many as are needed, three times the bits of a state; None if there are too few."""
    bits = draws.bits
    most = _MOST_SIGNS if bits.size and bits.max() <= 1 else _MOST_BITS
    enough = int(np.searchsorted(np.cumsum(bits), most))
    equations = equations_of(draws.first(enough))
    return equations if equations.words.size >= _STATE_BITS else None


def _work(equations: Equations) -> float:
    """Of solving them, as `Effort.solving` counts it."""
    inside = int(np.searchsorted(equations.words, _STATE))
    unknowns = (_STATE_BITS - min(inside, _STATE_BITS)) / 1000
    return float(unknowns**3 + 3 * unknowns * int(equations.words[-1]) / 1000)


# ---- Usual scales


def usual_deviations(layers: Sequence[Layer]) -> list[float]:
    """Standard deviations that such layers are usually initialised with.

    Those of `torch.nn.init` with any of its gains, by fan in, fan out or both; with fans that are
    scaled by the share of weights that a mask keeps, as hidden-networks does; and some numbers.
    """
    fans: set[float] = set()
    for layer in layers:
        if len(layer.shape) < 2:
            continue
        out, into, field = layer.shape[0], layer.shape[1], float(np.prod(layer.shape[2:]))
        kept = float(layer.mask.mean()) if layer.mask.size else 1.0
        for fan in (into * field, out * field, (into + out) * field / 2):
            fans |= {fan, fan * kept, fan * round(kept, 2)}
    gains = (1.0, 2**0.5, 5 / 3, 0.75, (2 / (1 + 0.01**2)) ** 0.5, (1 / 3) ** 0.5)
    numbers = (1.0, 0.5, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.001)
    found = {gain / fan**0.5 for fan in fans if fan > 0 for gain in gains}
    return sorted({float(np.float32(deviation)) for deviation in (*found, *numbers)})
