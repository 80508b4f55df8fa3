"""What a mobile export script does with a .pemn file: networks for a phone, one image at a time.

    python mobile_export.py net.pemn out/

Writes out/net.onnx with all weights, out/net.packed.onnx with masks as bits, of which the runtime
makes the weights when it loads the file, and the same as .pte where ExecuTorch is installed. No
code of the model is needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pemncodec
from pemncodec.export import to_executorch, to_onnx


def main(source: str, folder: str) -> None:
    """Export `source` into `folder`, with a batch of one, as phones run networks."""
    pemncodec.decode(source)  # a file that is no network ends here
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    for suffix, write in ((".onnx", to_onnx), (".pte", to_executorch)):
        for packed in (False, True):
            target = out / f"{Path(source).stem}{'.packed' * packed}{suffix}"
            try:
                write(source, target, batch=1, packed=packed)
                print(f"{target}: {target.stat().st_size:,} bytes")
            except pemncodec.ExportError as error:
                print(f"{target}: left out, {error}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (pemncodec.PemnError, OSError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")
