"""Files with torch prototypes (section 5.5), valid and invalid."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from vector_parts import ONES, mixing, pack

from pemncodec.contents import TorchPrototype
from pemncodec.values.fill import prototype_values

LOW, HIGH = "be99999a", "3f4ccccd"  # -0.3 and 0.8, not symmetric: both variants differ


def drawn(
    lengths: list[int], torch: dict[str, list[Any]], mask: bytes = ONES, **more: Any
) -> bytes:
    """A file of a masked tensor on each of some torch prototypes, as long as these."""
    count = len(lengths)
    header: dict[str, Any] = {
        "tensors": {
            "name": [f"w{i}" for i in range(count)],
            "kind": ["masked"] * count,
            "shape": [[length] for length in lengths],
        },
        "masked": {"prototype": list(range(count))},
        "masks": {"section": list(range(count))},
        "prototypes": {"kind": ["torch"] * count, "length": lengths},
        "torch": {"seed": ["00000000"] * count} | torch,
        "sections": [["mask", count]],
    }
    for key, value in more.items():
        header[key] = header[key] | value if isinstance(value, dict) else value
    numpy = any(kind.startswith("numpy-") for kind in torch.get("distribution", ()))
    return pack(header, *[mask] * count, version=(0, 3 if numpy else 2))


def doubles(value: float) -> str:
    return struct.pack(">d", value).hex()


def valid_torch() -> dict[str, bytes]:
    files = {}
    variants = ["vector", "scalar"]
    for variant in variants:
        own = {"variant": [variant]}
        files[f"torch-normal-{variant}"] = drawn([320], own)
        files[f"torch-normal-{variant}-drawn-again"] = drawn([37], own)
        bounds = {"distribution": ["uniform"], "low": [LOW], "high": [HIGH]}
        files[f"torch-uniform-{variant}"] = drawn([17], own | bounds)
    scales = {"masked": {"prototype": [0], "scale": ["3d4ccccd"]}}
    files["torch-uniform-one-value"] = drawn([1], {"distribution": ["uniform"]}, **scales)
    files["torch-normal-scaled"] = drawn([16], {}, **scales)
    # In both some words make a value of 0.
    files["torch-normal-signs"] = drawn(
        [16], {"distribution": ["normal-signs"], "seed": ["00000022"], "gap": [298_484]}, **scales
    )
    files["torch-uniform-signs"] = drawn(
        [5], {"distribution": ["uniform-signs"], "seed": ["00000007"], "gap": [972_420]}, **scales
    )
    files["torch-seeds-and-gaps"] = drawn(
        [16, 17, 20, 16, 16, 16],
        {
            "seed": ["ffffffff", "ffffffff", "ffffffff", "00000001", "ffffffff", "ffffffff"],
            "gap": [1000, 0, -1049, 3, 5, 624],
        },
    )
    # The first values of tensors whose last 16 values are drawn again: all of them before, or not.
    files["torch-first-values"] = drawn([5, 17, 29], {"seed": ["00000003"] * 3, "drawn": [37] * 3})
    files["torch-uniform-first-values"] = drawn(
        [3, 16], {"distribution": ["uniform", "normal"], "seed": ["00000003"] * 2, "drawn": [9, 0]}
    )
    files["torch-between-others"] = pack(
        {
            "tensors": {"name": ["a", "b"], "kind": ["masked"] * 2, "shape": [[16], [16]]},
            "masked": {"prototype": [0, 2]},
            "masks": {"section": [0, 1]},
            "prototypes": {"kind": ["torch", "seeded", "torch"], "length": [16, 3, 16]},
            "seeded": {"seed": ["0000000000000001"]},
            "torch": {"seed": ["00000009"] * 2},
            "sections": [["mask", 2]],
        },
        ONES,
        ONES,
        version=(0, 2),
    )
    files["torch-repeated-from-an-offset"] = drawn(
        [17], {}, tensors={"shape": [[50]]}, masked={"prototype": [0], "offset": [9]}
    )
    for dtype in ("float16", "bfloat16", "float64"):
        files[f"torch-{dtype}"] = drawn([16], {}, tensors={"dtype": [dtype]}, **scales)
    own = {"distribution": ["numpy-uniform"], "low": [doubles(-0.3)], "high": [doubles(0.8)]}
    files["torch-numpy-uniform"] = drawn([17], own)
    files["torch-numpy-uniform-scaled"] = drawn([3], own | {"drawn": [9]}, **scales)
    files["torch-numpy-signs"] = drawn([17], {"distribution": ["numpy-signs"]}, **scales)
    files["torch-numpy-after-each-other"] = drawn(
        [3, 16, 2, 5],
        {
            "distribution": ["numpy-uniform", "normal", "numpy-signs", "uniform"],
            "seed": ["00000003"] * 4,
            "low": [doubles(-1.0), "bf800000", "bf800000", "bf800000"],
            "high": [doubles(1.0), "3f800000", "3f800000", "3f800000"],
            "drawn": [7, 0, 9, 0],
        },
    )
    normal = prototype_values(TorchPrototype("normal", 0, 81))
    section = mixing([[9, 9]], np.asarray(normal))
    files["torch-mask-mixing"] = drawn([81], {}, section, tensors={"shape": [[9, 9]]})
    return files


def invalid_torch() -> dict[str, tuple[str, bytes]]:
    def one(length: int = 16, **torch: Any) -> bytes:
        return drawn([length], {key: [value] for key, value in torch.items()})

    def bits(value: float) -> str:
        return struct.pack(">f", value).hex()

    def numpy(low: str = doubles(-0.5), high: str = doubles(0.5), **more: Any) -> bytes:
        return one(5, distribution="numpy-uniform", low=low, high=high, **more)

    uniform = {"distribution": "uniform"}
    broken = {
        "seed-missing": drawn([16], {"seed": []}),
        "seed-16-digits": one(seed="0" * 16),
        "seed-upper-case": one(seed="0000000A"),
        "seed-number": one(seed=0),
        "unknown-distribution": one(distribution="signed-constant"),
        "unknown-variant": one(variant="avx2"),
        "normal-of-15": one(15),
        "normal-signs-of-15": one(15, distribution="normal-signs"),
        "gap-true": one(gap=True),
        "gap-float": one(gap=0.0),
        "gap-text": one(gap="0"),
        "gap-2-to-the-63": one(gap=1 << 63),
        "gap-minus-2-to-the-63": one(gap=-(1 << 63)),
        "before-the-first-word": one(gap=-1),
        "before-the-first-word-after-another": drawn([16, 16], {"gap": [7, -24]}),
        "gap-of-another-seed": drawn([16, 16], {"seed": ["00000000", "00000001"], "gap": [7, -1]}),
        "end-above-63-bits": one(gap=(1 << 63) - 32),
        "end-above-63-bits-after-another": drawn([16, 16], {"gap": [1, (1 << 63) - 1]}),
        "low-is-high": one(**uniform, low=bits(1.0)),
        "low-above-high": one(**uniform, low=bits(2.0)),
        "low-infinite": one(**uniform, low="ff800000"),
        "low-nan": one(**uniform, low="7fc00000"),
        "high-infinite": one(**uniform, high="7f800000"),
        "high-nan": one(**uniform, high="ffc00001"),
        "low-number": one(**uniform, low=-1.0),
        "range-overflows": one(**uniform, low=bits(-2e38), high=bits(2e38)),
        "range-of-normal": one(low=bits(-0.5)),
        "range-of-signs": one(distribution="uniform-signs", high=bits(0.5)),
        "low-16-digits": one(**uniform, low=doubles(-0.5)),
        "low-12-digits": one(**uniform, low="bf8000000000"),
        "high-16-digits-of-normal": one(high=doubles(1.0)),
        "numpy-low-8-digits": numpy(low=bits(-0.5)),
        "numpy-high-8-digits": numpy(high=bits(0.5)),
        "numpy-default-range": one(5, distribution="numpy-uniform"),
        "numpy-low-is-high": numpy(low=doubles(0.5)),
        "numpy-low-is-high-in-binary32": numpy(low=doubles(0.5 - 2.0**-40)),
        "numpy-low-above-high": numpy(low=doubles(0.75)),
        "numpy-low-infinite": numpy(low="fff0000000000000"),
        "numpy-high-nan": numpy(high="7ff8000000000000"),
        "numpy-high-above-binary32": numpy(high=doubles(1e39)),
        "numpy-range-overflows": numpy(low=doubles(-2e38), high=doubles(2e38)),
        "numpy-scalar": numpy(variant="scalar"),
        "numpy-ends-above-63-bits": numpy(gap=(1 << 63) - 1 - 10 - 16 + 1),
        "numpy-signs-scalar": one(5, distribution="numpy-signs", variant="scalar"),
        "numpy-signs-range": one(5, distribution="numpy-signs", low=bits(-0.5)),
        "numpy-signs-16-digits": one(
            5, distribution="numpy-signs", low=doubles(-1.0), high=doubles(1.0)
        ),
        "drawn-negative": one(drawn=-1),
        "drawn-true": one(drawn=True),
        "drawn-2-to-the-63": one(drawn=1 << 63),
        "drawn-of-15": one(5, drawn=15),
        "drawn-is-length": one(17, drawn=17),
        "drawn-below-length": one(17, drawn=16),
        "drawn-ends-above-63-bits": one(drawn=(1 << 63) - 16),
        "drawn-before-another-above-63-bits": drawn(
            [16, 16], {"drawn": [(1 << 63) - 32, 0], "gap": [0, 0]}
        ),
        "rows-missing": drawn([16, 16], {"seed": ["00000000"]}),
        "rows-without-owner": pack({"torch": {"seed": ["00000000"]}}),
    }
    far = 1 << 33
    limit = {
        "drawn-words": one(gap=far - 15),
        "drawn-words-once-more": one(17, gap=far - 32),
        "drawn-words-of-a-larger-tensor": one(16, drawn=far + 1),
        "drawn-words-numpy": numpy(gap=far - 9),
        "drawn-words-of-two-seeds": drawn(
            [16, 16], {"seed": ["00000000", "00000001"], "gap": [far // 2, far // 2]}
        ),
        "drawn-words-of-an-earlier-one": drawn([16, 16], {"gap": [far, -far]}),
    }
    order = {
        "offset-drawn-words": (
            "header",
            drawn([16], {"gap": [far]}, masked={"prototype": [0], "offset": [16]}),
        ),
        "drawn-words-section": ("limit", drawn([16], {"gap": [far]}, b"")),
    }
    found = {f"header-torch-{name}": ("header", data) for name, data in broken.items()}
    found |= {f"limit-{name}": ("limit", data) for name, data in limit.items()}
    return found | {f"order-{name}": fault for name, fault in order.items()}
