"""A .pemn file → the forms that deployment takes: torch.export, ONNX, ExecuTorch.

All are for inference (eval mode). They hold the weights in full, or, packed, masks as bits and
operators that make the weights of them.
"""

from pemncodec.export.executorch_file import to_executorch
from pemncodec.export.onnx_file import to_onnx
from pemncodec.export.packing import KeptVector, NotPacked
from pemncodec.export.program import to_program, to_pt2

__all__ = ["KeptVector", "NotPacked", "to_executorch", "to_onnx", "to_program", "to_pt2"]
