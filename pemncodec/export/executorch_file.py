"""A .pemn file → a file for ExecuTorch."""

from __future__ import annotations

from typing import Any

from pemncodec.architecture.exported import quiet
from pemncodec.errors import ExportError
from pemncodec.export.packing import NotPacked
from pemncodec.export.program import Source, Target, cause_of, program_of, require
from pemncodec.format.atomic import write_file


def to_executorch(
    source: Source, target: Target, *, packed: bool = False, **options: Any
) -> NotPacked:
    """Write the network for ExecuTorch (.pte); arguments and errors as in `to_program`.

    Returns:
        What stays larger than bits, and why; nothing unless `packed`.
    """
    require("ExecuTorch", ("executorch",), "pip install executorch")
    program, not_packed = program_of(source, packed, **options)
    with quiet():
        try:
            from executorch.exir import to_edge

            lowered = to_edge(program).to_executorch()
        except Exception as error:
            raise ExportError(f"cannot export to ExecuTorch: {cause_of(error)}") from error
    write_file([lowered.buffer], target)
    return not_packed
