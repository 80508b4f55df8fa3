"""Networks that people train, of timm and transformers where these are installed: file and back."""

from __future__ import annotations

import io
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import random_masks

import pemncodec

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from manifests import difference
from wide_zoo import WIDE_ZOO
from zoo import ZOO

LIBRARIES = {"timm": "timm", "HF": "transformers"}
# Those that take long to encode, or are built as others are; the benchmark has them all.
LARGE = {"timm ResNet-18", "timm ResNet-50", "timm Swin-tiny", "timm MLP-Mixer"}
ALIKE = {"timm EfficientNet-B0", "timm DeiT-tiny", "HF DistilBERT"}
# As their libraries make them, each for what it does: sizes as numbers, a list that a child grows,
# a forward that an instance chooses, caches, strided slices, devices as arguments.
WIDE = [
    "timm edgenext_xx_small",
    "timm ese_vovnet19b_slim_dw",
    "timm fasternet_t0",
    "timm starnet_s050",
    "HF OPTModel",
    "HF Qwen2Model",
    "HF SwinModel",
    "HF CLIPTextModel",
]
MANIFEST_BYTES = {"ConvMixer": 400, "timm ViT-tiny": 1500, "HF BERT": 1500, "HF Llama": 2200}


def skip_without_library(name: str) -> None:
    library = LIBRARIES.get(name.split()[0])
    if library is not None and find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


LEFT_OUT = LARGE | ALIKE | {"decides by a value"}


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("name", [n for n in ZOO if n not in LEFT_OUT])
def test_network(name: str) -> None:
    skip_without_library(name)
    make, inputs = ZOO[name]
    torch.manual_seed(0)
    model = make().eval()
    masks, stream = random_masks(model), io.BytesIO()
    report = pemncodec.encode(model, stream, masks=masks, example_inputs=inputs(3), preset="fast")
    assert report.info.manifest_bytes <= MANIFEST_BYTES.get(name, 1 << 14)
    with torch.no_grad():
        for key, mask in masks.items():
            model.get_parameter(key).mul_(mask)
        rebuilt = pemncodec.decode(stream)
        scripted = torch.jit.script(torch.fx.symbolic_trace(rebuilt))
        for batch in (2, 5):
            given = inputs(batch)
            assert difference(model(*given), rebuilt(*given)) == 0
            assert difference(model(*given), scripted(*given)) == 0


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("name", WIDE)
def test_network_as_its_library_makes_it(name: str) -> None:
    skip_without_library(name)
    torch.manual_seed(0)
    model, inputs = WIDE_ZOO[name]()
    masks, stream = random_masks(model.eval()), io.BytesIO()
    report = pemncodec.encode(model, stream, masks=masks, example_inputs=inputs(2), preset="fast")
    assert any("caches" in note for note in report.notes) == (
        name in ("HF OPTModel", "HF Qwen2Model")
    )
    rebuilt, given = pemncodec.decode(stream), inputs(3)
    with torch.no_grad():
        for key, mask in masks.items():
            model.get_parameter(key).mul_(mask)
        # Fused kernels may round otherwise than what an exported graph spells out.
        assert difference(model(*given), rebuilt(*given)) <= 1e-5


def test_what_cannot_be_described_is_refused() -> None:
    make, inputs = ZOO["decides by a value"]
    model = make()
    with pytest.raises(pemncodec.UnsupportedModelError, match="depends on values"):
        pemncodec.encode(model, io.BytesIO(), masks=random_masks(model), example_inputs=inputs(3))
