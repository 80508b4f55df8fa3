"""Fixtures that several test modules share."""

from __future__ import annotations

import copy
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from kernel_builds import VERSIONS, build, can_run, has_versions, load
from torch import Tensor, nn
from torch.nn.utils import prune

from pemncodec import kernels
from pemncodec.kernels import twins

ROOT = Path(__file__).resolve().parent.parent
# Some of what pytest imports sets it for the processes that tests start, behind Python's back.
os.environ.pop("COLUMNS", None)
os.unsetenv("COLUMNS")
# The kernels stay exchanged for all examples of a test, so a fixture per function is right.
settings.register_profile(
    "pemncodec", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("pemncodec")


def native_kernels() -> ModuleType:
    if importlib.util.find_spec("pemncodec.kernels._native") is None:
        pytest.skip("the C extension is not built")
    return importlib.import_module("pemncodec.kernels._native")


def exchange_kernels(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    module = native_kernels() if which == "native" else twins
    for name in twins.__all__:
        monkeypatch.setattr(kernels, name, getattr(module, name))


@pytest.fixture(scope="session", params=["native", "numpy", *VERSIONS])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The inner loops: the extension, its twin, and the extension for other processors."""
    if request.param == "numpy":
        return twins
    if request.param == "native":
        return native_kernels()
    if not has_versions():
        pytest.skip("only x86 has several versions")
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    if not can_run(request.param):
        pytest.skip(f"this processor has no {request.param}")
    path = tmp_path_factory.mktemp("kernels") / "_native.so"
    build(path, ["-O3"], request.param)
    return load(path)


@pytest.fixture(params=["native", "numpy"])
def kernels_implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test over both implementations of the inner loops."""
    exchange_kernels(monkeypatch, request.param)
    return request.param


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Changes the implementation in the middle of a test."""

    def change(which: str) -> None:
        exchange_kernels(monkeypatch, which)

    return change


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The independent decoder of the specification."""
    return importlib.import_module("reference_decoder")


def shared_folder(name: str) -> Path:
    folder = ROOT.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"there is no folder ../shared/{name} beside the repository")
    return folder


@dataclass(frozen=True)
class Official:
    """A checkpoint of the official code, and what is known of it."""

    path: Path
    keep: float
    most_bytes: int

    def state(self) -> dict[str, Tensor]:
        return torch.load(self.path, weights_only=True)


OFFICIAL = {
    "rp": ("official-convmixer-rp1e-3-k50.pt", 0.5, 25_700),
    "onelayer": ("official-convmixer-onelayer-k20.pt", 0.2, 23_900),
}


@pytest.fixture(scope="session", params=sorted(OFFICIAL))
def official(request: pytest.FixtureRequest) -> Official:
    return official_checkpoint(request.param)


@pytest.fixture(scope="session")
def official_rp() -> Official:
    return official_checkpoint("rp")


def official_checkpoint(which: str) -> Official:
    name, keep, most_bytes = OFFICIAL[which]
    path = shared_folder("checkpoints") / name
    if not path.is_file():
        pytest.skip(f"there is no {name} in ../shared/checkpoints")
    return Official(path, keep, most_bytes)


@pytest.fixture(scope="session")
def convmixer() -> Callable[..., nn.Module]:
    """The factory in examples/convmixer.py."""
    path = ROOT / "examples" / "convmixer.py"
    spec = importlib.util.spec_from_file_location("examples_convmixer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.convmixer


class Residual(nn.Module):
    """A class of the user, so that manifests hold a graph."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def random_masks(module: nn.Module, keep: float = 0.5, seed: int = 0) -> dict[str, Tensor]:
    """Masks for every weight of two dimensions or more."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(tensor.shape, generator=generator) < keep
        for name, tensor in module.named_parameters()
        if tensor.dim() > 1
    }


def masked_module(module: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """The module with its masks applied: what a decoder must give back."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if name in masks:
                tensor.copy_(torch.where(masks[name], tensor, torch.zeros_like(tensor)))
    return module


@dataclass(frozen=True)
class MaskedNet:
    """A module, its masks, an input, and the module with its masks applied."""

    module: nn.Module
    masks: dict[str, Tensor]
    inputs: Tensor

    @property
    def effective(self) -> nn.Module:
        return masked_module(self.module, self.masks)

    def encode(self, target: Any, **options: Any) -> Any:
        import pemncodec

        if options.get("manifest", True):
            options.setdefault("example_inputs", self.inputs)
        return pemncodec.encode(self.module, target, masks=self.masks, **options)


@pytest.fixture
def small() -> MaskedNet:
    module = small_net()
    return MaskedNet(module, random_masks(module), torch.randn(2, 3, 8, 8))


def pemn_process(
    *arguments: object, cwd: Path, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """`pemn` in a process of its own, which imports torch first: most tests need none."""
    return subprocess.run(
        [sys.executable, "-m", "pemncodec", *map(str, arguments)],
        cwd=cwd, input=stdin, capture_output=True, check=False, env={**os.environ, **(env or {})},
    )  # fmt: skip


Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Run:
    """`pemn` in this process, which has torch already, in an empty folder or another one."""
    from pemncodec.cli import main

    def call(
        *arguments: object, cwd: Path = tmp_path, stdin: bytes | io.BytesIO = b""
    ) -> subprocess.CompletedProcess[bytes]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["pemn", *map(str, arguments)])
        stream = io.BytesIO(stdin) if isinstance(stdin, bytes) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        monkeypatch.setattr(sys, "path", list(sys.path))
        for file in cwd.glob("*.py"):
            monkeypatch.delitem(sys.modules, file.stem, raising=False)
        importlib.invalidate_caches()
        status: Any = 0
        try:
            main()
        except SystemExit as error:
            status = error.code
        assert sys.argv[0] == "pemn"  # put back
        return subprocess.CompletedProcess([], status, *capfdbinary.readouterr())

    return call


def rule(scores: Tensor, keep: float) -> Tensor:
    """The official rule, as its README has it."""
    s = scores.abs().flatten()
    order = s.sort(stable=True).indices
    mask = torch.ones(s.numel(), dtype=torch.bool)
    mask[order[: int((1 - keep) * s.numel())]] = False
    return mask.reshape(scores.shape)


def official_state(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """In the official dialect: scores beside each masked weight."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if name.endswith("weight") and tensor.dim() > 1:
            state[name] = tensor
            name = name.removesuffix("weight") + "scores"
            tensor = torch.randn(tensor.shape, generator=generator)
        state[name] = tensor
    return state


def applied(state: dict[str, Tensor], keep: float) -> dict[str, Tensor]:
    plain = {}
    for name, tensor in state.items():
        scores = state.get(name.removesuffix("weight") + "scores")
        if scores is not None and name.endswith("weight"):
            tensor = torch.where(rule(scores, keep), tensor, torch.zeros_like(tensor))
        if not name.endswith("scores"):
            plain[name] = tensor
    return plain


def pruned_net() -> nn.Module:
    module = small_net()
    for layer in (module[0], module[2].fn[0], module[5]):
        prune.random_unstructured(layer, "weight", 0.5)
    return module


def fails(result: subprocess.CompletedProcess[bytes], status: int, *words: str) -> None:
    message = result.stderr.decode()
    assert result.returncode == status, message
    assert message.count("\n") == 1, message
    assert message.startswith("pemn: ")
    for word in words:
        assert word in message
