"""The rules by which masks may follow from scores, by the names that callers give them.

A new rule is a `ScoreRule` and a line in `RULES` or `RULES_WITH_VALUE`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from pemncodec.checkpoints.biprop import BIPROP, BIPROP_GLOBAL
from pemncodec.checkpoints.compared_scores import ABOVE, AT_LEAST, BERNOULLI, SIGMOID_ABOVE
from pemncodec.checkpoints.ranked_scores import (
    GLOBAL_MAGNITUDE,
    GLOBAL_SCORE,
    MAGNITUDE,
    MOVEMENT,
    SCORE,
)
from pemncodec.checkpoints.score_rule import ScoreRule
from pemncodec.errors import EncodeArgumentError

RULES: dict[str, ScoreRule] = {
    "magnitude": MAGNITUDE,
    "score": SCORE,
    "global-magnitude": GLOBAL_MAGNITUDE,
    "global-score": GLOBAL_SCORE,
    "movement": MOVEMENT,
    "biprop": BIPROP,
    "biprop-global": BIPROP_GLOBAL,
}
RULES_WITH_VALUE: dict[str, ScoreRule] = {
    "above": ABOVE,
    "at-least": AT_LEAST,
    "sigmoid-above": SIGMOID_ABOVE,
    "bernoulli": BERNOULLI,
}


def rule_named(text: str) -> ScoreRule:
    """The rule that a caller names, such as "global-score" or "above=0.5".

    Raises:
        EncodeArgumentError: there is none, or its number is missing or none.
    """
    name, equals, number = text.partition("=") if isinstance(text, str) else ("", "", "")
    if not equals and name in RULES:
        return RULES[name]
    if name not in RULES_WITH_VALUE:
        known = ", ".join((*RULES, *(f"{name}=…" for name in RULES_WITH_VALUE)))
        raise EncodeArgumentError(f"--rule (rule=…): there is no {text!r:.60}, have {known}")
    rule = RULES_WITH_VALUE[name]
    try:
        value = float(int(number)) if rule is BERNOULLI else float(number)
    except ValueError:
        value = math.nan
    if math.isnan(value) or (rule is BERNOULLI and not 0 <= value < 1 << 53):
        example = "bernoulli=0, with a seed" if rule is BERNOULLI else f"{name}=0.5"
        raise EncodeArgumentError(f"--rule (rule=…): {text!r:.60} lacks its number: {example}")
    return replace(rule, value=value)
