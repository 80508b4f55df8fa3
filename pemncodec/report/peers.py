"""What other codecs make of a state dict, where they are installed.

* zipnn (Hershcovitch et al., "ZipNN: Lossless Compression for AI Models", 2024), lossless.
* nncodec (ISO/IEC 15938-17; Becking et al., 2023) quantizes, here by its defaults: qp −32, and −75
  for vectors.

Each runs in a process of its own, where what it makes is decoded and compared too. A peer that is
broken, writes files or crashes (zipnn does, on a few bytes) costs its own row, not the report.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pemncodec.report.dense_forms import as_safetensors
from pemncodec.report.form import Form, FormBytes, FormError, Network, largest_error

State = Mapping[str, Tensor]


def is_installed(package: str) -> bool:
    """Whether Python finds a package; it may be broken."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module without a specification is there, and will fail by itself
        return True


def _measure(peer: str, network: Network) -> FormBytes:
    # Where this process finds its modules, the other one shall find them too.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    with tempfile.TemporaryDirectory(prefix="pemn-") as folder:
        Path(folder, "state").write_bytes(as_safetensors(network.tensors))
        result = subprocess.run(
            [sys.executable, "-P", "-m", __name__, peer],
            cwd=folder, env=environment, capture_output=True, text=True, errors="replace",
            check=False,
        )  # fmt: skip
        measured = Path(folder, peer)
        if result.returncode == 0 and measured.exists():
            return FormBytes(**json.loads(measured.read_text()))
    if result.returncode < 0:
        raise FormError(f"{peer} was stopped by signal {-result.returncode}")
    said = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
    raise FormError(f"{peer}: {said[-1]:.200}")


PEER_FORMS = (
    Form("safetensors_zipnn", "safetensors + zipnn", partial(_measure, "zipnn"), package="zipnn"),
    Form(
        "nncodec",
        "nncodec qp -32 (lossy)",
        partial(_measure, "nncodec"),
        most_bytes=24 << 20,
        lossy=True,
        package="nncodec",
    ),
)


# -------------------------------------------------------------------- in a process of its own


def _zipnn(state: State, whole: bytes) -> tuple[int, State]:
    from zipnn import ZipNN  # type: ignore[import-not-found]

    sizes = dict.fromkeys(("float32", "bfloat16", "float16"), 0)
    for tensor in state.values():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype in sizes:
            sizes[dtype] += tensor.nbytes
    most = max(sizes, key=lambda dtype: sizes[dtype])
    options = {"input_format": "byte", "bytearray_dtype": most}
    # It reorders in place, so that both get copies.
    coded = bytes(ZipNN(**options).compress(bytearray(whole)))
    decoded = bytes(ZipNN(**options).decompress(bytearray(coded)))
    if decoded != whole:
        raise ValueError("does not give back what it was given")
    return len(coded), state


def _nncodec(state: State, _: bytes) -> tuple[int, State]:
    from nncodec.nn import decode, encode  # type: ignore[import-not-found]

    arrays = {name: _as_nncodec_takes_it(tensor) for name, tensor in state.items()}
    coded = encode(arrays, args={"verbose": False, "results": "."})
    decoded = decode(coded)
    return len(coded), {
        name: torch.from_numpy(np.array(decoded[name])).reshape(tensor.shape)
        for name, tensor in state.items()
    }


def _as_nncodec_takes_it(tensor: Tensor) -> Any:
    """float32 or int32, of one dimension or more."""
    if tensor.is_complex():
        raise ValueError("nncodec has no complex numbers")
    if tensor.is_floating_point():
        return np.atleast_1d(tensor.float().numpy())
    array = np.atleast_1d(tensor.numpy())
    if array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise ValueError("nncodec has no integers above 32 bits")
    return array.astype(np.int32)


_CODECS = {"zipnn": _zipnn, "nncodec": _nncodec}


def main() -> None:
    """Codes the file `state` by the peer that is named, and writes a file of that name about it."""
    whole = Path("state").read_bytes()
    state = safetensors.torch.load(whole)
    size, decoded = _CODECS[sys.argv[1]](state, whole)
    error = largest_error((tensor, decoded[name]) for name, tensor in state.items())
    Path(sys.argv[1]).write_text(json.dumps(asdict(FormBytes(size, error))))


if __name__ == "__main__":
    main()
