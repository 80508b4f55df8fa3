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
from zoo import ZOO

LIBRARIES = {"timm": "timm", "HF": "transformers"}
# Those of more than ten million weights take long to encode; the benchmark has them all.
LARGE = {"timm ResNet-18", "timm ResNet-50", "timm Swin-tiny", "timm MLP-Mixer"}
MANIFEST_BYTES = {"ConvMixer": 400, "timm ViT-tiny": 1500, "HF BERT": 1500, "HF Llama": 2200}


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("name", [n for n in ZOO if n not in LARGE and n != "decides by a value"])
def test_network(name: str) -> None:
    library = LIBRARIES.get(name.split()[0])
    if library is not None and find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
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


def test_what_cannot_be_described_is_refused() -> None:
    make, inputs = ZOO["decides by a value"]
    model = make()
    with pytest.raises(pemncodec.UnsupportedModelError, match="depends on values"):
        pemncodec.encode(model, io.BytesIO(), masks=random_masks(model), example_inputs=inputs(3))
