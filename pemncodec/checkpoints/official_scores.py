"""The dialect of edge-popup and the official PEMN code: `X.weight` is frozen, `X.scores` learned.

hidden-networks and most code after it have the same entries. The checkpoint does not say which
share of the weights the scores keep, nor whether another rule than the official one is meant.
"""

from __future__ import annotations

from pemncodec.checkpoints.dialect import Dialect, MaskOptions, check_shape
from pemncodec.checkpoints.scored_weights import read_scores
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.masking.masked_state import MaskedState, StateDict
from pemncodec.masking.parametrized import is_parametrized_entry

_OFFICIAL = "scores"


def scores_by_weight(state: StateDict, called: str) -> dict[str, str]:
    """Entries called so, by the weight beside each; a network may have others of that name."""
    return {
        _weight_of(name, called): name
        for name in state
        if _is_called(name, called)
        and _weight_of(name, called) in state
        and state[_weight_of(name, called)].shape == state[name].shape
    }


def _is_called(name: str, called: str) -> bool:
    return (name == called or name.endswith(f".{called}")) and not is_parametrized_entry(name)


def _weight_of(name: str, called: str) -> str:
    return name.removesuffix(called) + "weight"


def _check_all(state: StateDict, called: str, options: MaskOptions) -> None:
    """Who says how masks follow has scores; those that fit no weight are an error, not a buffer."""
    for name in state:
        if _is_called(name, called) and name not in options.own:
            weight = _weight_of(name, called)
            if weight not in state:
                raise EncodeError(f"{name}: there is no {weight} for these scores")
            check_shape(name, state[name], weight, state[weight])


def _without_biases(state: StateDict, called: str, options: MaskOptions) -> StateDict:
    """Without scores of biases, which code ranks by themselves or together with the weight's."""
    plain = {}
    for name, tensor in state.items():
        bias = name.removesuffix(f"bias_{called}") + "bias"
        scores = name not in options.own and name.endswith(f"bias_{called}") and bias in state
        if not scores or state[bias].shape != tensor.shape:
            plain[name] = tensor
        elif bias not in options.masks:
            raise EncodeError(
                f"{name}: how scores of a bias are used differs between codes: give the mask of "
                f"{bias} (masks=…, --masks)"
            )
    return plain


def _read_called(state: StateDict, called: str, options: MaskOptions) -> MaskedState:
    scores = scores_by_weight(state, called)
    plain = _without_biases(state, called, options) if scores else state
    return read_scores(plain, scores, options, label=called, default="magnitude")


def _read_official(state: StateDict, options: MaskOptions) -> MaskedState:
    if options.keep is not None or options.rule is not None:
        _check_all(state, _OFFICIAL, options)
    return _read_called(state, _OFFICIAL, options)


def no_such_scores(called: str) -> str:
    return f"--scores-name (scores_name=…): no X.{called} has the shape of an X.weight beside it"


def _read_named(state: StateDict, options: MaskOptions) -> MaskedState:
    """Scores that are called as the caller says, by the official rule or the caller's.

    Raises:
        EncodeArgumentError: there are none.
        EncodeError: there are some that fit no weight.
    """
    called = options.scores_name
    if called is None:
        return MaskedState(state, {})
    if not scores_by_weight(state, called):
        if options.peers is not None:
            return MaskedState(state, {})
        raise EncodeArgumentError(no_such_scores(called))
    _check_all(state, called, options)
    return _read_called(state, called, options)


NAMED_SCORES = Dialect(
    "scores that the caller names",
    lambda _: False,  # which the caller says
    _read_named,
    by_scores=True,
)
OFFICIAL_SCORES = Dialect(
    "scores (X.scores)",
    lambda state: bool(scores_by_weight(state, _OFFICIAL)),
    _read_official,
    by_scores=True,
)
