"""The dialect of SupSup: one `X.weight`, and scores for each task in `X.scores.0`, `X.scores.1`, ….

One task is read. Batch norms with statistics of their own for each task (`X.bns.0`, …) become the
plain batch norms of that task.
"""

from __future__ import annotations

import re

from pemncodec.checkpoints.dialect import Dialect, MaskOptions, MissingRuleError
from pemncodec.checkpoints.scored_weights import read_scores
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.masking.masked_state import MaskedState, StateDict

_SCORES = re.compile(r"(?P<module>|.*\.)scores\.(?P<task>0|[1-9]\d{0,8})", re.ASCII)
_NORM = re.compile(r"(?P<module>|.*\.)bns\.(?P<task>0|[1-9]\d{0,8})\.(?P<entry>[^.]+)", re.ASCII)
_STACKED = "stacked"  # all masks of a weight, kept while the published code looks for the task


def _matches(state: StateDict) -> bool:
    return bool(_sets(state))


def _sets(state: StateDict) -> dict[str, dict[int, str]]:
    """For each weight that has them the names of its scores by task."""
    found: dict[str, dict[int, str]] = {}
    for name, tensor in state.items():
        match = _SCORES.fullmatch(name)
        weight = f"{match['module']}weight" if match else ""
        if match and weight in state and state[weight].shape == tensor.shape:
            found.setdefault(weight, {})[int(match["task"])] = name
    return found


def _task(tasks: list[int], options: MaskOptions) -> int:
    if options.task is None and len(tasks) > 1:
        raise MissingRuleError(
            f"the checkpoint holds {len(tasks)} sets of scores, X.scores.{tasks[0]} to "
            f"X.scores.{tasks[-1]}: give --task (task=…), such as {tasks[0]}"
        )
    task = tasks[0] if options.task is None else options.task
    if task not in tasks:
        raise EncodeArgumentError(
            f"--task (task=…): there is no X.scores.{task}, the checkpoint has {tasks[0]} to "
            f"{tasks[-1]}"
        )
    return task


def _read(state: StateDict, options: MaskOptions) -> MaskedState:
    sets = _sets(state)
    if not sets:
        return MaskedState(state, {})
    task = _task(sorted({task for names in sets.values() for task in names}), options)
    plain: StateDict = {}
    for name, tensor in state.items():
        match, norm = _SCORES.fullmatch(name), _NORM.fullmatch(name)
        module, _, last = name.rpartition(".")
        if match and f"{match['module']}weight" in sets:
            if int(match["task"]) == task:
                plain[name] = tensor
        elif norm and name not in options.own:
            if int(norm["task"]) == task:
                plain[norm["module"] + norm["entry"]] = tensor
        elif last != _STACKED or f"{module}.weight".removeprefix(".") not in sets:
            plain[name] = tensor
    for weight, names in sets.items():
        if task not in names:
            raise EncodeError(f"{weight} has no scores of task {task}")
    return read_scores(
        plain,
        {weight: names[task] for weight, names in sets.items()},
        options,
        label=f"scores of task {task}",
        default="magnitude",
        missing="the checkpoint holds scores of SupSup but not how masks follow from them",
        give="give --keep (keep=…) for MultitaskMaskConv, which keeps a share of each layer, or "
        "--rule at-least=0 for FastMultitaskMaskConv",
    )


SUPSUP = Dialect("sets of scores of SupSup (X.scores.0, …)", _matches, _read, by_scores=True)
