"""Checkpoints of the official code: sizes, exactness, and modules rebuilt without their code."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Official
from torch import Tensor, nn

import pemncodec
from pemncodec.masking import OneLayer, mask_model, masked_state

ARCHITECTURE = {"dim": 128, "depth": 4, "kernel_size": 5, "patch_size": 4, "n_classes": 10}
BATCHES = (1, 4, 7)

STRANGER = """
import importlib.util, sys, torch, pemncodec
assert importlib.util.find_spec("examples") is None
assert importlib.util.find_spec("convmixer") is None
images = torch.load(sys.argv[2])
results = {}
for training in (False, True):
    for size in map(int, sys.argv[4:]):
        module = pemncodec.decode(sys.argv[1]).train(training)
        with torch.no_grad():
            logits = module(images[:size])
        results[training, size] = logits, dict(module.state_dict())
torch.save(results, sys.argv[3])
assert not any("convmixer" in name for name in sys.modules)
"""


def effective_state(official: Official) -> dict[str, Tensor]:
    """The rule of the checkpoints' README, in its words."""
    state = official.state()
    effective = {}
    for name, tensor in state.items():
        if name.endswith(".scores"):
            continue
        scores = state.get(name.removesuffix("weight") + "scores")
        if scores is not None and name.endswith(".weight"):
            s = scores.abs().flatten()
            order = s.sort(stable=True).indices
            j = int((1 - official.keep) * s.numel())
            mask = torch.empty_like(s)
            mask[order[:j]] = 0
            mask[order[j:]] = 1
            masked_out = mask.reshape(tensor.shape) == 0
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            tensor[masked_out] = 0.0
        effective[name] = tensor
    return effective


def test_masks_of_a_model_with_official_weights_and_scores(
    official: Official, convmixer: Callable[..., nn.Module]
) -> None:
    model = mask_model(convmixer(**ARCHITECTURE), OneLayer(), keep=official.keep)
    renamed = {}
    for name, tensor in official.state().items():
        prefix, _, attribute = name.rpartition(".")
        entry = f"{prefix}.parametrizations.weight"
        if attribute == "scores":
            renamed[f"{entry}.0.scores"] = tensor
        elif f"{prefix}.scores" in official.state():
            renamed[f"{entry}.original"] = tensor
        else:
            renamed[name] = tensor
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all(name.endswith("._extra_state") for name in missing)
    expected = effective_state(official)
    weights = {n: m.weight for n, m in model.named_modules() if hasattr(m, "parametrizations")}
    assert len(weights) == 10
    for name, weight in weights.items():
        assert bits(weight) == bits(expected[f"{name}.weight"])
    for name, mask in masked_state(model).masks.items():
        assert torch.equal(torch.from_numpy(mask), expected[name] != 0)


@pytest.fixture(scope="module")
def original(official: Official, convmixer: Callable[..., nn.Module]) -> nn.Module:
    module = convmixer(**ARCHITECTURE)
    module.load_state_dict(effective_state(official))
    return module


@pytest.fixture(scope="module")
def encoded(
    official: Official,
    convmixer: Callable[..., nn.Module],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("official") / "model.pemn"
    pemncodec.encode(
        official.state(),
        path,
        keep=official.keep,
        architecture=convmixer(**ARCHITECTURE),
        example_inputs=torch.randn(2, 3, 32, 32),
    )
    return path


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_the_file_is_small(official: Official, encoded: Path) -> None:
    assert encoded.stat().st_size <= official.most_bytes


def test_parts_add_up_to_the_file(encoded: Path) -> None:
    with pemncodec.open(encoded) as file:
        info = file.info()
    parts = (
        info.header_bytes,
        info.manifest_bytes,
        info.prototype_bytes,
        info.dense_bytes,
        info.mask_bytes,
    )
    assert sum(parts) == info.file_bytes == encoded.stat().st_size
    assert info.masked_weights == 85_760
    assert sum(t.bytes for t in info.tensors if t.kind == "masked") == info.mask_bytes
    assert sum(t.bytes for t in info.tensors if t.kind == "dense") == info.dense_bytes


def test_every_tensor_is_bit_identical(
    official: Official, encoded: Path, convmixer: Callable[..., nn.Module]
) -> None:
    decoded = pemncodec.load_state_dict(encoded)
    expected = effective_state(official)
    assert list(decoded) == list(convmixer(**ARCHITECTURE).state_dict()) == list(expected)
    for name, tensor in expected.items():
        assert decoded[name].dtype == tensor.dtype, name
        assert decoded[name].shape == tensor.shape, name
        assert bits(decoded[name]) == bits(tensor), name
        assert decoded[name].is_contiguous()


def test_module_prefix_changes_nothing(
    official: Official, encoded: Path, convmixer: Callable[..., nn.Module], tmp_path: Path
) -> None:
    pemncodec.encode(
        {f"module.{name}": tensor for name, tensor in official.state().items()},
        tmp_path / "prefixed.pemn",
        keep=official.keep,
        architecture=convmixer(**ARCHITECTURE),
        example_inputs=torch.randn(1, 3, 32, 32),
    )
    assert (tmp_path / "prefixed.pemn").read_bytes() == encoded.read_bytes()


def test_stranger_computes_the_same_logits(
    original: nn.Module, encoded: Path, tmp_path: Path
) -> None:
    """A process that has this package on its path and nothing else of the repository."""
    (tmp_path / "site").mkdir()
    package = Path(pemncodec.__file__).parent
    (tmp_path / "site" / package.name).symlink_to(package)
    images = torch.randn(max(BATCHES), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.save(images, tmp_path / "images.pt")
    arguments = ["images.pt", "results.pt", *map(str, BATCHES)]
    # Without site (-S), whose .pth files may put the whole clone on the path.
    libraries = os.pathsep.join([str(tmp_path / "site"), sysconfig.get_path("purelib")])
    subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", STRANGER, encoded, *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": libraries, "PATH": ""},
        check=True,
    )
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    assert len(results) == 2 * len(BATCHES)
    for (training, size), (logits, state) in results.items():
        original.load_state_dict(before)
        with torch.no_grad():
            expected = original.train(training)(images[:size])
        assert float((logits - expected).abs().max()) == 0.0, (training, size)
        for name, tensor in original.state_dict().items():
            assert torch.equal(state[name], tensor), (training, size, name)


def test_decoded_module_is_ready_for_use(encoded: Path) -> None:
    module = pemncodec.decode(encoded)
    assert not module.training
    with pemncodec.open(encoded) as file:
        masked = set(file.masked_keys())
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == (name not in masked), name
        assert parameter.is_contiguous()


def test_the_random_vector_has_17_values(official_rp: Official, tmp_path: Path) -> None:
    target = tmp_path / "rp.pemn"
    pemncodec.encode(official_rp.state(), target, keep=official_rp.keep, manifest=False)
    with pemncodec.open(target) as file:
        assert [prototype.length for prototype in file.header.prototypes] == [17]
        # As torch drew them; the file has the scale beside them.
        (scale,) = {file.masked_row(name).fill.scale for name in file.masked_keys()}
        values = file.prototype(0) * np.float32(scale)
    largest = max(
        (t for name, t in official_rp.state().items() if name.endswith(".weight") and t.dim() > 1),
        key=Tensor.numel,
    )
    # Every value is used by some mask, so that all come back.
    assert values.tobytes() == largest.contiguous().reshape(-1)[:17].numpy().tobytes()
