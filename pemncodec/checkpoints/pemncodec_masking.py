"""The dialect of `pemncodec.masking`: parametrizations that say how their masks are made."""

from __future__ import annotations

from pemncodec.checkpoints.dialect import Dialect, MaskOptions
from pemncodec.masking.masked_state import MaskedState, StateDict
from pemncodec.masking.parametrized import is_parametrized_entry, read_parametrized


def _matches(state: StateDict) -> bool:
    return any(map(is_parametrized_entry, state))


def _read(state: StateDict, options: MaskOptions) -> MaskedState:
    return read_parametrized(state, options.peers)


PEMNCODEC_MASKING = Dialect(
    "masks of pemncodec.masking (X.parametrizations.weight.…)", _matches, _read, together=True
)
