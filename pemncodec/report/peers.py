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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class PeerForm:
    """A state dict as a peer codes it.

    Attributes:
        bytes: 0 where the peer failed.
        error: the largest of `largest_error`; 0 where every bit came back.
        failure: in words; None where the peer worked.
    """

    bytes: int = 0
    error: float = 0.0
    failure: str | None = None


def measure_peers(
    state: State, progress: Callable[[str], None] = lambda _: None
) -> dict[str, PeerForm]:
    """What every peer that is installed makes of tensors.

    Args:
        state: name → tensor.
        progress: called with the name of the peer that is at work.

    Returns:
        By name of the form, such as "safetensors + zipnn".
    """
    installed = {form: peer for form, peer in _PEERS.items() if _is_installed(peer)}
    forms = {}
    with tempfile.TemporaryDirectory(prefix="pemn-") as folder:
        if installed:
            own = {name: t.detach().cpu().clone().contiguous() for name, t in state.items()}
            (Path(folder) / "state").write_bytes(safetensors.torch.save(own))
        for form, peer in installed.items():
            progress(peer)
            forms[form] = _measure(peer, folder)
    return forms


def largest_error(original: State, decoded: State) -> float:
    """The largest difference of any element, relative to the largest magnitude of its tensor.

    Returns:
        0 where all are equal; infinite where something finite became infinite or NaN.
    """
    errors = [0.0]
    for name, tensor in original.items():
        before, after = tensor.double(), decoded[name].double()
        equal = (before == after) | (before.isnan() & after.isnan())
        if not equal.all():
            difference = float(
                (before - after)[~equal].abs().nan_to_num(torch.inf, torch.inf).max()
            )
            largest = float(before.nan_to_num(0, 0, 0).abs().max())
            errors.append(difference / largest if largest else torch.inf)
    return max(errors)


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


_PEERS = {"safetensors + zipnn": "zipnn", "nncodec qp -32 (lossy)": "nncodec"}
_CODECS = {"zipnn": _zipnn, "nncodec": _nncodec}


def _is_installed(peer: str) -> bool:
    try:
        return importlib.util.find_spec(peer) is not None
    except ValueError:  # a module without a specification is there, and will fail by itself
        return True


def _measure(peer: str, folder: str) -> PeerForm:
    # Where this process finds its modules, the other one shall find them too.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    result = subprocess.run(
        [sys.executable, "-P", "-m", __name__, peer],
        cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    measured = Path(folder, peer)
    if result.returncode == 0 and measured.exists():
        return PeerForm(**json.loads(measured.read_text()))
    if result.returncode < 0:
        return PeerForm(failure=f"{peer} was stopped by signal {-result.returncode}")
    said = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
    return PeerForm(failure=f"{peer}: {said[-1]:.200}")


def main() -> None:
    """Codes the file `state` by the peer that is named, and writes a file of that name about it."""
    whole = Path("state").read_bytes()
    state = safetensors.torch.load(whole)
    size, decoded = _CODECS[sys.argv[1]](state, whole)
    measured = {"bytes": size, "error": largest_error(state, decoded)}
    Path(sys.argv[1]).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
