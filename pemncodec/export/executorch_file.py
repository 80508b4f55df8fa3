"""A .pemn file → a file for ExecuTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pemncodec.architecture.exported import quiet
from pemncodec.errors import ExportError
from pemncodec.export.program import Source, Target, cause_of, program_and_dense, require
from pemncodec.format.atomic import write_file


def to_executorch(
    source: Source, target: Target, *, packed: bool = False, **options: Any
) -> Mapping[str, str]:
    """Write the network for ExecuTorch (.pte); arguments and errors as in `to_program`.

    Returns:
        Names of masked tensors that are not packed, and why; empty unless `packed`.
    """
    require("ExecuTorch", ("executorch",), "pip install executorch")
    program, dense = program_and_dense(source, packed, **options)
    with quiet():
        try:
            from executorch.exir import to_edge

            lowered = to_edge(program).to_executorch()
        except Exception as error:
            raise ExportError(f"cannot export to ExecuTorch: {cause_of(error)}") from error
    write_file([lowered.buffer], target)
    return dense
