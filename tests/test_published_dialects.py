"""Checkpoints as published code writes them, encoded from the command line alone.

The masks and outputs are literals that each dialect's own modules gave for these small tensors. The
repository and commit stand beside them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from torch import Tensor

import pemncodec
from pemncodec.cli import cli

PEMN = "yueb17/PEMN@371620df: src/convmixer/models.py"
HIDDEN = "allenai/hidden-networks@dddf2d09: utils/conv_type.py"
BIPROP = "chrundle/biprop@f709fc53: utils/conv_type.py"
SUPSUP = "RAIVNLab/supsup@6a318784: models/modules.py"
FEDPM = "BerivanIsik/sparse-random-networks@cf6b5496: src/fedssm/models/masked_layers.py"
HYDRA = "inspire-group/hydra@9d41c931: models/layers.py"
MOVEMENT = (
    "huggingface/transformers-research-projects@fccd0cda: "
    "movement-pruning/emmental/modules/masked_nn.py"
)
NN_PRUNING = "huggingface/nn_pruning@0cef2b24: nn_pruning/modules/masked_nn.py"
SYNFLOW = "ganguli-lab/Synaptic-Flow@9dfa57aa: Layers/layers.py"
DEEP_COMPRESSION = "mightydeveloper/Deep-Compression-PyTorch@a3ace315: net/prune.py"
RIGL = "varun19299/rigl-reproducibility@97443bea: sparselearning/core.py"
OPEN_LTH = "facebookresearch/open_lth@2ce732fe: pruning/mask.py"
COMPRESSED = (
    "neuralmagic/compressed-tensors@52792be0: src/compressed_tensors/compressors/sparse_compressors"
)

W = torch.tensor(
    [[1.625, -1.5, -1.25, 0.25], [-2.125, -1.625, 2.125, 2.0], [2.875, -0.75, -2.5, 2.5]]
)
B = torch.tensor([-0.75, 0.375, -0.375])
S = torch.tensor([[-0.14, -0.22, 0.15, -0.09], [0.08, 0.1, 0.12, -0.19], [0.05, 0.04, -0.2, 0.14]])
X = torch.tensor([[1.25, -2.0, -1.625, -0.25], [-1.375, -0.75, 0.625, -1.0]])
# Layers behind them, for rules with one cut for the whole network.
W2 = torch.tensor([[-1.25, -0.375, -1.375], [0.25, 0.75, -1.125]])
S2 = torch.tensor([[-0.01, -0.04, 0.01], [-0.06, -0.02, -0.12]])
# Other scores of the same weights.
S_TASK = torch.tensor(
    [[-0.09, 0.0, -0.05, -0.1], [0.15, 0.14, 0.23, 0.09], [0.12, 0.2, -0.14, -0.22]]
)
S_TIED = torch.tensor(
    [[0.1, -0.22, 0.15, -0.09], [0.08, 0.1, 0.12, -0.19], [0.05, 0.04, -0.2, 0.14]]
)
V = torch.tensor(
    [
        [5.75, 0.0, -4.25, 0.0, -0.75, -5.0, -4.375, 2.25, -0.375, 0.0, 2.75, -2.875],
        [0.0, 0.625, 0.0, 0.25, -1.0, 0.0, 4.375, -1.125, 1.125, 4.125, 4.0, 0.0],
    ]
)
X12 = torch.tensor(
    [
        [-0.875, -1.5, -4.25, 2.375, 2.5, 1.25, -3.125, -5.125, 5.125, -2.625, -0.5, -2.375],
        [3.125, -5.0, 0.125, 3.25, 4.0, -1.375, 2.0, 0.125, 1.0, 3.375, 3.0, 2.125],
    ]
)  # fmt: skip
W48 = torch.tensor(
    [
        [1.125, 3.875, -5.5, -3.5, -6.0, -1.875, -0.25, -1.5],
        [6.5, -8.0, 2.625, -1.75, -5.25, 3.25, -4.75, 6.875],
        [3.5, 2.5, -0.875, 4.25, 6.125, -0.5, -1.0, 4.125],
        [-2.25, 4.375, -3.0, -2.625, -3.125, -3.375, 3.125, -3.75],
    ]
)
S_BLOCKS = torch.tensor([[0.03, 0.11, -0.08, -0.12], [-0.02, 0.09, 0.01, 0.07]])
X8 = torch.tensor(
    [
        [0.25, 2.75, -2.75, 1.25, 2.625, 2.0, -0.625, 3.0],
        [-1.625, 0.125, 2.5, 2.875, 0.375, 3.125, -0.375, 0.125],
    ]
)
TOP = "0110 0001 0011"  # of W by |S| with keep 0.4, as edge-popup
TOP_OUTPUTS = [[4.28125, -0.125, 3.0625], [-0.40625, -1.625, -4.4375]]  # with the bias
TOP_WITHOUT_BIAS = [[5.03125, -0.5, 3.4375], [0.34375, -2.0, -4.0625]]

# What `--arch` names in the tests' own folder.
ARCHITECTURES = """
from torch import nn

def linear(inputs=4, outputs=3, bias=True):
    return nn.Sequential(nn.Linear(inputs, outputs, bias=bias))

def conv():
    return nn.Sequential(nn.Conv2d(4, 3, 1, bias=False))

def two():
    return nn.Sequential(nn.Conv2d(4, 3, 1, bias=False), nn.Conv2d(3, 2, 1, bias=False))

def normed():
    return nn.Sequential(nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3, affine=False))
"""


@dataclass(frozen=True)
class Published:
    """A checkpoint and what the code that made it computes with it."""

    source: str
    content: Any
    options: str
    masks: dict[str, str]
    outputs: list[list[float]]
    arch: str = "linear"
    inputs: Tensor = field(default_factory=lambda: X)
    said: str = ""
    beside: dict[str, Any] = field(default_factory=dict)
    exact: bool = True


def linear(name: str, scores: Tensor, **more: Tensor) -> dict[str, Tensor]:
    return {"0.weight": W, "0.bias": B, f"0.{name}": scores, **more}


def conv(scores: Tensor) -> dict[str, Tensor]:
    return {"0.weight": W.reshape(3, 4, 1, 1), "0.scores": scores.reshape(3, 4, 1, 1)}


def two() -> dict[str, Tensor]:
    behind = {"1.weight": W2.reshape(2, 3, 1, 1), "1.scores": S2.reshape(2, 3, 1, 1)}
    return conv(S) | behind


def biprop(conv_type: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """What its main.py saves, of which the rest are counters and options."""
    return {"epoch": 3, "arch": "Conv2", "state_dict": state, "best_acc1": 50.0,
            "conv_type": conv_type, "prune_rate": 0.4, "jsd": False}  # fmt: skip


def supsup(conv_type: str | None) -> dict[str, Any]:
    shape = (3, 4, 1, 1)
    state = {
        "0.weight": W.reshape(shape),
        "0.scores.0": S.reshape(shape),
        "0.scores.1": S_TASK.reshape(shape),
        "1.bns.0.running_mean": torch.zeros(3),
        "1.bns.0.running_var": torch.ones(3),
        "1.bns.0.num_batches_tracked": torch.tensor(5),
        "1.bns.1.running_mean": torch.tensor([0.5, -0.5, 1.0]),
        "1.bns.1.running_var": torch.tensor([4 - 1e-5, 1 - 1e-5, 0.25 - 1e-5]),
        "1.bns.1.num_batches_tracked": torch.tensor(7),
    }
    if conv_type is None:
        return {"state_dict": state}
    arguments = argparse.Namespace(conv_type=conv_type, sparsity=0.4, er_sparsity=False, lr=0.1)
    return {"epoch": 1, "arch": "resnet18", "state_dict": state, "args": arguments}


def buffers(**masks: str) -> dict[str, Tensor]:
    tensors = {f"0.{name}": bits(text).float() for name, text in masks.items()}
    return {"0.weight": W, "0.bias": B, **tensors}


def bits(text: str) -> Tensor:
    rows = [[int(bit) for bit in row] for row in text.split()]
    return torch.tensor(rows if len(rows) > 1 else rows[0])


def bitmask(prefix: str, *, halves: bool) -> dict[str, Tensor]:
    if halves:  # 2:4: two values of each four, at the larger magnitudes
        return {
            f"{prefix}.shape": torch.tensor([[2], [12]]),
            f"{prefix}.compressed": torch.tensor(
                [[5.75, -4.25, -5.0, -4.375, 2.75, -2.875], [0.625, 0.25, 4.375, -1.125, 4.125, 4]]
            ),
            f"{prefix}.bitmask": torch.tensor([[101, 12], [202, 6]], dtype=torch.uint8),
        }
    return {
        f"{prefix}.shape": torch.tensor([2, 12]),
        f"{prefix}.compressed": V[V != 0],
        f"{prefix}.bitmask": torch.tensor([[245, 13], [218, 7]], dtype=torch.uint8),
        f"{prefix}.row_offsets": torch.tensor([0, 9]),
    }


def blocks(*scores: Tensor) -> dict[str, Tensor]:
    """Layers of nn_pruning, whose scores lie in modules of their own."""
    inner = "0.mask_module.context_modules."
    contexts = {f"{inner}{number}.mask_scores": s for number, s in enumerate(scores)}
    return {"0.weight": W48, "0.bias": torch.tensor([-0.375, -0.75, 0.25, 0.625]), **contexts}


MASKED = "1001 0110 1101"
ZEROS = {"0.weight": torch.where(bits(TOP) == 1, W, -0.0 * W), "0.bias": B}
DENSE = {"0.weight": W, "0.bias": B}
MASKED_OUTPUTS = [[1.21875, 0.171875, 4.09375], [-3.234375, 2.921875, -6.265625]]
TASK_1 = "0000 1010 0111"
TASK_1_OUTPUTS = [[-0.25, -5.609375, 7.875], [-0.25, 4.75, -9.0]]
FAST = "0100 1111 1100"
FAST_OUTPUTS = [[1.25, -2.859375, 8.1875], [0.3125, 3.96875, -8.78125]]

CASES = {
    "PEMN": Published(
        PEMN, linear("scores", S), "--keep 0.4", {"0.weight": TOP}, TOP_OUTPUTS,
        said="scores: of n weights, the int((1 - keep) * n) with the least |score| go; keep is 0.4",
    ),
    "hidden-networks": Published(
        HIDDEN, {"arch": "Conv2", "state_dict": conv(S)}, "--keep 0.4",
        {"0.weight": TOP}, TOP_WITHOUT_BIAS, "conv",
    ),
    "hidden-networks, parallel": Published(
        HIDDEN, {"state_dict": {f"module.{name}": t for name, t in conv(S).items()}},
        "--keep *=0.4", {"0.weight": TOP}, TOP_WITHOUT_BIAS, "conv",
    ),
    "hidden-networks, scores set to 0 and 1": Published(
        HIDDEN + ": FixedSubnetConv.set_subnet",
        {"state_dict": conv(bits("1110 0111 0011").float())}, "", {"0.weight": "1110 0111 0011"},
        [[7.0625, -0.703125, 3.4375], [-1.890625, 0.546875, -4.0625]], "conv",
        said="scores: 0 and 1 already, used as they are",
    ),
    "without abs": Published(
        HIDDEN + ": GetSubnet.apply(scores, 0.4)", conv(S), "--keep 0.4 --rule score",
        {"0.weight": "0010 1110 0001"}, [[2.03125, -2.859375, -0.625], [-0.78125, 5.46875, -2.5]],
        "conv", said="with the least score go; keep is 0.4",
    ),
    "one cut": Published(
        HIDDEN + ": GetSubnet.apply of all |scores| behind each other", two(),
        "--keep 0.4 --rule global-magnitude",
        {"0.weight": "1110 0011 0011", "1.weight": "000 001"},
        [[0.0, -3.8671875], [0.0, 4.5703125]], "two",
        said="of the n weights of all layers together",
    ),
    "one cut without abs": Published(
        HIDDEN + ": GetSubnet.apply of all scores behind each other", two(),
        "--keep 0.4 --rule global-score",
        {"0.weight": "0010 1110 1101", "1.weight": "001 000"},
        [[-6.14453125, 0.0], [8.099609375, 0.0]], "two",
    ),
    "biprop": Published(
        BIPROP, biprop("SubnetConv", conv(S)), "", {"0.weight": TOP},
        [[8.8359375, -0.609375, 3.3515625], [0.3046875, -2.4375, -3.9609375]], "conv",
        said="as in biprop", exact=False,
    ),
    "biprop, before it recorded its layers": Published(
        BIPROP, {"state_dict": conv(S)}, "--rule biprop --keep 0.4", {"0.weight": TOP},
        [[8.8359375, -0.609375, 3.3515625], [0.3046875, -2.4375, -3.9609375]], "conv", exact=False,
    ),
    "biprop, one cut": Published(
        BIPROP + ", trainers/default.py", biprop("GlobalSubnetConv", two()), "",
        {"0.weight": "1110 0011 0011", "1.weight": "000 001"},
        [[0.0, -2.9832587242126465], [0.0, 3.525669813156128]], "two",
        said="as in biprop's GlobalSubnetConv", exact=False,
    ),
    "SupSup, a share": Published(
        SUPSUP, supsup("MultitaskMaskConv"), "--task 1", {"0.weight": TASK_1}, TASK_1_OUTPUTS,
        "normed", said="scores of task 1: of n weights, the int((1 - keep) * n) with the least",
        exact=False,
    ),
    "SupSup, a share that the caller gives": Published(
        SUPSUP, supsup(None), "--task 1 --keep 0.4", {"0.weight": TASK_1}, TASK_1_OUTPUTS,
        "normed", exact=False,
    ),
    "SupSup, a threshold": Published(
        SUPSUP, supsup("FastMultitaskMaskConv"), "--task 1", {"0.weight": FAST}, FAST_OUTPUTS,
        "normed", said="scores of task 1: weights whose score is at least 0 stay", exact=False,
    ),
    "SupSup, a threshold that the caller gives": Published(
        SUPSUP, supsup(None), "--task 1 --rule at-least=0", {"0.weight": FAST}, FAST_OUTPUTS,
        "normed", exact=False,
    ),
    "FedPM, a threshold": Published(
        FEDPM, linear("mask", 10 * S, **{"0.bias_mask": torch.tensor([0.0, -1.5, 1.25])}),
        "--rule sigmoid-above=0.5", {"0.weight": "0010 1110 1101", "0.bias": "001"},
        [[2.03125, -2.859375, 4.09375], [-0.78125, 5.46875, -6.265625]],
        said="mask logits: weights stay where sigmoid(score) is above 0.5",
    ),
    "FedPM, drawn": Published(
        FEDPM + " after torch.manual_seed(7)",
        linear("mask", 10 * S, **{"0.bias_mask": torch.tensor([0.0, -1.5, 1.25])}),
        "--rule bernoulli=7", {"0.weight": "0010 1110 1001", "0.bias": "101"},
        [[1.28125, -2.859375, 2.59375], [-1.53125, 5.46875, -6.828125]],
        said="drawn once by torch.bernoulli after torch.manual_seed(7)",
    ),
    "Hydra": Published(
        HYDRA, {"state_dict": linear("popup_scores", S)}, "--keep 0.4", {"0.weight": TOP},
        TOP_OUTPUTS, said="popup_scores: of n weights",
    ),
    "Hydra, dense": Published(
        HYDRA + ", utils/model.py: subnet_to_dense", ZEROS, "--masks-from zeros",
        {"0.weight": TOP}, TOP_OUTPUTS, said="zeros: weights that are 0 are masked out",
    ),
    "movement pruning, topK": Published(
        MOVEMENT, linear("mask_scores", S_TIED), "--keep 0.4", {"0.weight": "1010 0010 0001"},
        [[3.3125, -3.078125, -1.0], [-3.765625, 1.703125, -2.875]],
        said="mask_scores: of n weights, the int(keep * n) with the largest score stay, of equal",
    ),
    "movement pruning, threshold": Published(
        MOVEMENT, linear("mask_scores", S_TIED), "--rule above=0.05",
        {"0.weight": "1010 1110 0001"},
        [[3.3125, -2.484375, -1.0], [-3.765625, 5.84375, -2.875]],
        said="mask_scores: weights whose score is above 0.05 stay",
    ),
    "movement pruning, sigmoied_threshold": Published(
        MOVEMENT, linear("mask_scores", S_TIED), "--rule sigmoid-above=0.51",
        {"0.weight": "1010 1110 1001"},
        [[3.3125, -2.484375, 2.59375], [-3.765625, 5.84375, -6.828125]],
    ),
    "nn_pruning, topK": Published(
        NN_PRUNING, blocks(S_BLOCKS), "--keep 0.4",
        {"0.weight": "00110000 00110000 00110011 00110011"},
        [[10.375, -10.15625, 20.96875, -7.609375], [-24.1875, 0.78125, 11.171875, -16.0625]],
        "linear:8:4", X8, said="mask_scores of blocks: of n weights, the int(keep * n) with the",
    ),
    "nn_pruning, threshold": Published(
        NN_PRUNING, blocks(S_BLOCKS), "--rule above=0.02",
        {"0.weight": "11110000 11110000 00110011 00110011"},
        [[21.3125, -30.53125, 20.96875, -7.609375], [-25.53125, -10.78125, 11.171875, -16.0625]],
        "linear:8:4", X8,
    ),
    "nn_pruning, 1d": Published(
        NN_PRUNING, blocks(
            torch.tensor([0.1, -0.2, 0.3, 0.4]),
            torch.tensor([-0.12, -0.13, 0.04, 0.08, -0.11, -0.04, 0.05, 0.09]),
        ),
        "--keep 0.4", {"0.weight": "00000001 11001000 00110011 00110011"},
        [[-4.875, -34.90625, 20.96875, -7.609375], [-0.5625, -14.28125, 11.171875, -16.0625]],
        "linear:8:4", X8,
    ),
    "scores under another name": Published(
        PEMN, linear("importance", S), "--scores-name importance --keep 0.4", {"0.weight": TOP},
        TOP_OUTPUTS, said="importance: of n weights",
    ),
    "X.weight_mask, X.bias_mask": Published(
        SYNFLOW, buffers(weight_mask=MASKED, bias_mask="101"), "",
        {"0.weight": MASKED, "0.bias": "101"},
        [[1.21875, -0.203125, 4.09375], [-3.234375, 2.546875, -6.265625]],
        said="masks beside the weights",
    ),
    "X.mask": Published(
        DEEP_COMPRESSION, buffers(mask="1110 1111 1011"), "", {"0.weight": "1110 1111 1011"},
        [[6.3125, -2.984375, 6.65625], [-2.640625, 3.84375, -8.390625]],
    ),
    "X_mask": Published(
        "", {"0.weight": W, "0.bias": B, "0_mask": bits(MASKED).bool()}, "",
        {"0.weight": MASKED}, MASKED_OUTPUTS,
    ),
    "a dictionary beside": Published(
        RIGL + ": Masking.state_dict", {"step": 1, "model": DENSE,
        "mask": {"masks": {"0.weight": bits(MASKED).bool()}, "mask_step": 0}}, "",
        {"0.weight": MASKED}, MASKED_OUTPUTS, said="masks: the dictionary mask beside the state",
    ),
    "a file of masks, .pt": Published(
        OPEN_LTH + ": Mask.save", DENSE, "--masks mask.pth", {"0.weight": MASKED}, MASKED_OUTPUTS,
        beside={"mask.pth": {"0.weight": bits(MASKED).int()}}, said="masks: from mask.pth",
    ),
    "a file of masks, .safetensors": Published(
        "", DENSE, "--masks mask.safetensors", {"0.weight": MASKED}, MASKED_OUTPUTS,
        beside={"mask.safetensors": {"0": bits(MASKED).bool()}},
    ),
    "a file of masks, .npz": Published(
        "", DENSE, "--masks mask.npz", {"0.weight": MASKED}, MASKED_OUTPUTS,
        beside={"mask.npz": {"module.0.weight_mask": bits(MASKED)}},
    ),
    "compressed-tensors, bitmask": Published(
        COMPRESSED + "/sparse_bitmask.py", bitmask("0", halves=False), "",
        {"0.weight": "101011111011 010110111110"}, [[10.578125, -17.8125], [14.609375, 29.34375]],
        "linear:12:2:false", X12, said="compressed-tensors: weights stay where their bit of the",
    ),
    "compressed-tensors, 2:4": Published(
        COMPRESSED + "/sparse_24_bitmask.py", bitmask("0.weight", halves=True), "",
        {"0.weight": "101001100011 010100110110"}, [[25.90625, -21.078125], [17.703125, 32.21875]],
        "linear:12:2:false", X12,
    ),
}  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def write(path: Path, content: Any) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    elif path.suffix == ".npz":
        import numpy as np

        np.savez(path, **{name: tensor.numpy() for name, tensor in content.items()})
    else:
        torch.save(content, path)


def arguments_of(arch: str) -> list[str]:
    name, *sizes = arch.split(":")
    kwargs = dict(zip(("inputs", "outputs", "bias"), map(json.loads, sizes), strict=False))
    shape = str(kwargs.get("inputs", 4)) + ",1,1" * (name != "linear")
    return ["--arch", f"arch.py:{name}", "--arch-kwargs", json.dumps(kwargs),
            "--example-shape", shape]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "arch.py").write_text(ARCHITECTURES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_masks_and_outputs_are_those_of_the_code_that_made_the_checkpoint(
    case: Published, folder: Path
) -> None:
    write(folder / "model.pt", case.content)
    for name, content in case.beside.items():
        write(folder / name, content)
    options = case.options.split()
    result = run("encode", "model.pt", *options, *arguments_of(case.arch), "-o", "net.pemn")
    assert result.exit_code == 0, result.output
    rules = [line for line in result.output.splitlines() if line.startswith("masks: ")]
    assert len(rules) == 1
    assert case.said in rules[0]
    with pemncodec.open("net.pemn") as file:
        assert file.masked_keys() == list(case.masks)
        for name, text in case.masks.items():
            assert file.mask(name).reshape(-1).tolist() == bits(text).bool().reshape(-1).tolist()
    module = pemncodec.decode("net.pemn")
    images = case.inputs.reshape(*case.inputs.shape, *(() if "linear" in case.arch else (1, 1)))
    with torch.no_grad():
        outputs = module(images).flatten(1)
    # Sums of halves, quarters, … are exact in any order.
    error = 0 if case.exact else 1e-6
    assert torch.allclose(outputs, torch.tensor(case.outputs), rtol=error, atol=error)
    result = run("verify", "net.pemn", "--against", "model.pt", *options)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("conv_type", ["SubnetConv", "GlobalSubnetConv"])
def test_weights_of_biprop_have_one_magnitude_a_layer(conv_type: str, folder: Path) -> None:
    write(folder / "model.pt", biprop(conv_type, two()))
    assert run("encode", "model.pt", *arguments_of("two")).exit_code == 0
    state = pemncodec.load_state_dict("model.pemn")
    alphas = {"SubnetConv": (2.4375, 0.875), "GlobalSubnetConv": (1.9285714626312256, 1.125)}
    for name, alpha in zip(("0.weight", "1.weight"), alphas[conv_type], strict=True):
        assert set(state[name].abs().unique().tolist()) == {0.0, alpha}
        signs = dict(two())[name].sign()
        assert torch.equal(state[name], torch.where(state[name] != 0, signs * alpha, 0.0))
