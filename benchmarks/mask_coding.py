"""Masks through our coders and through what one would use instead: size, speed, memory.

python benchmarks/mask_coding.py [FILE.pemn …] [--side 4096] [--rounds 5] [-o FILE.csv]

Synthetic masks: independent bits of several densities, and one ("rows × columns") whose rows and
columns have densities of their own, 0.5419 bits of true entropy a weight at 4096 × 4096. All masks
of a file are one set. Every coder gets packed bits in memory and gives them back; the presets also
unpack them to count, which the rANS kernel's own row leaves out. Speeds are medians over
interleaved rounds on one thread; peak memory is by how much the process grows over both ways.
Peers that are not installed are left out and named.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import bitarray
import bitarray.util
import click
import numpy as np
import zstandard
from numpy.typing import NDArray
from provenance import provenance, write_table
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import pemncodec
from pemncodec.coders.buckets import value_buckets
from pemncodec.coders.mask_coder import Buckets, MaskContext, order0_bits
from pemncodec.coders.masks import MaskEncoder, Preset, decode_masks
from pemncodec.coders.packed import packed_size, unpack
from pemncodec.coders.rans import decode_rans, encode_rans
from pemncodec.format.header import MaskedRow
from pemncodec.format.prototype_rows import StoredRow
from pemncodec.format.reader import PemnFile
from pemncodec.spool import Spool

ROOT = Path(__file__).parent.parent
PEERS = ("brotli", "constriction", "torchac", "nncodec")

Packed = NDArray[np.uint8]


@dataclass(frozen=True)
class Mask:
    """A mask to code.

    Attributes:
        packed: uint8 [ceil(n / 8)].
        shape: of its tensor.
        buckets: of the prototype's values and the fill's offset, where the mask is a real one.
    """

    packed: Packed
    shape: tuple[int, ...]
    buckets: Buckets | None = None
    offset: int = 0

    @property
    def count(self) -> int:
        return int(np.prod(self.shape))

    @property
    def context(self) -> MaskContext:
        known = None if self.buckets is None else partial(np.asarray, self.buckets)
        return MaskContext(self.shape, known, self.offset)

    def order0_bytes(self) -> float:
        return order0_bits(int(np.bitwise_count(self.packed).sum(dtype=np.int64)), self.count) / 8


Coded = list[tuple[bytes, list[int]]]
"""Byte strings, each with the numbers of the masks that it holds."""


@dataclass(frozen=True)
class Coder:
    """Masks to bytes; and back, given the masks' shapes, in the same order."""

    encode: Callable[[list[Mask]], Coded]
    decode: Callable[[Coded, list[Mask]], list[Packed]]


def each(encode: Callable[[Mask], bytes], decode: Callable[[bytes, Mask], Packed]) -> Coder:
    """A coder of one mask at a time."""
    return Coder(
        lambda masks: [(encode(mask), [index]) for index, mask in enumerate(masks)],
        lambda coded, masks: [decode(data, masks[index]) for data, (index,) in coded],
    )


def ours(preset: Preset) -> Coder:
    """The sections that a preset writes."""

    def encode(masks: list[Mask]) -> Coded:
        bits = [unpack(mask.packed, mask.count) for mask in masks]
        with ThreadPoolExecutor(1) as pool:
            spool = Spool()
            coded = MaskEncoder(bits, preset, pool, spool).encode([m.context for m in masks])
            return [(spool.read(section), members) for section, members in coded]

    def decode(coded: Coded, masks: list[Mask]) -> list[Packed]:
        found: dict[int, Packed] = {}
        for data, members in coded:
            decoded = decode_masks(data, [masks[index].context for index in members])
            found |= zip(members, decoded, strict=True)
        return [found[index] for index in range(len(masks))]

    return Coder(encode, decode)


def coders() -> dict[str, Coder]:
    """Our coders, and the peers that are installed."""
    found = {
        "pemncodec fast": ours("fast"),
        "pemncodec max": ours("max"),
        "pemncodec rANS kernel": each(
            lambda m: encode_rans(m.packed, m.count), lambda d, m: decode_rans(d, m.count)
        ),
        "packed bits": each(
            lambda m: m.packed.tobytes(), lambda d, _: np.frombuffer(d, np.uint8).copy()
        ),
        "bitarray sc_encode": each(
            lambda m: bitarray.util.sc_encode(bitarray.bitarray(buffer=m.packed, endian="little")),
            lambda d, _: np.frombuffer(bitarray.util.sc_decode(d), np.uint8),
        ),
    }
    for level in (1, 19):
        found[f"zstd-{level}"] = each(
            lambda m, level=level: zstandard.ZstdCompressor(level=level).compress(m.packed),
            lambda d, _: np.frombuffer(zstandard.ZstdDecompressor().decompress(d), np.uint8),
        )
    if importlib.util.find_spec("brotli"):
        import brotli

        found["brotli 11"] = each(
            lambda m: brotli.compress(m.packed.tobytes(), quality=11),
            lambda d, _: np.frombuffer(brotli.decompress(d), np.uint8),
        )
    if importlib.util.find_spec("constriction"):
        found["constriction range"] = constriction_range()
    if importlib.util.find_spec("torchac"):
        found["torchac"] = torchac_static()
    if importlib.util.find_spec("nncodec"):
        found["nncodec"] = nncodec_masks()
    return found


def constriction_range() -> Coder:
    """Its range coder with a static Bernoulli model of the mask's density."""
    import constriction

    stream = constriction.stream

    def encode(mask: Mask) -> bytes:
        bits = unpack(mask.packed, mask.count).astype(np.int32)
        p = float(bits.mean())
        coder = stream.queue.RangeEncoder()
        coder.encode(bits, stream.model.Bernoulli(p, perfect=False))
        return np.float64(p).tobytes() + coder.get_compressed().tobytes()

    def decode(data: bytes, mask: Mask) -> Packed:
        (p,) = np.frombuffer(data[:8], np.float64)
        coder = stream.queue.RangeDecoder(np.frombuffer(data[8:], np.uint32))
        bits = coder.decode(stream.model.Bernoulli(float(p), perfect=False), mask.count)
        return np.packbits(bits.astype(np.uint8), bitorder="little")

    return each(encode, decode)


def torchac_static() -> Coder:
    """Its arithmetic coder with the density as the model of all bits."""
    import torch
    import torchac

    def table(p: float, count: int) -> torch.Tensor:
        return torch.tensor([0.0, 1 - p, 1.0]).expand(count, 3)

    def encode(mask: Mask) -> bytes:
        bits = torch.from_numpy(unpack(mask.packed, mask.count)).to(torch.int16)
        p = float(bits.float().mean())
        coded: bytes = torchac.encode_float_cdf(table(p, mask.count), bits)
        return np.float64(p).tobytes() + coded

    def decode(data: bytes, mask: Mask) -> Packed:
        (p,) = np.frombuffer(data[:8], np.float64)
        bits = torchac.decode_float_cdf(table(float(p), mask.count), data[8:])
        return np.packbits(bits.numpy().astype(np.uint8), bitorder="little")

    return each(encode, decode)


def nncodec_masks() -> Coder:
    """NNC (ISO/IEC 15938-17) of the mask as an integer tensor."""
    from nncodec import nn

    def encode(mask: Mask) -> bytes:
        bits = unpack(mask.packed, mask.count).astype(np.int32).reshape(mask.shape)
        return bytes(nn.encode({"mask": bits}, args={"verbose": False, "results": "."}))

    def decode(data: bytes, _: Mask) -> Packed:
        bits = nn.decode(bytearray(data))["mask"]
        return np.packbits(np.asarray(bits).reshape(-1).astype(np.uint8), bitorder="little")

    return each(encode, decode)


def synthetic(side: int) -> Iterator[tuple[str, list[Mask]]]:
    """Masks of side × side weights, by name."""
    for density in (0.01, 0.05, 0.1, 0.2, 0.3, 0.5):
        rng = np.random.default_rng(int(1000 * density) + 1)
        bits = rng.random(side * side, np.float32) < density
        yield f"p = {density}", [Mask(np.packbits(bits, bitorder="little"), (side, side))]
    rng = np.random.default_rng(7)
    rows, columns = rng.standard_normal(side), rng.standard_normal(side)
    odds = rows[:, None] + columns[None, :] - 1.9613480874031666
    bits = rng.random(odds.shape) < 1 / (1 + np.exp(-odds))
    yield "rows × columns", [Mask(np.packbits(bits, bitorder="little"), (side, side))]


def masks_of(path: Path) -> list[Mask]:
    """The masks of a .pemn file."""
    with pemncodec.open(path) as file:
        rows = [row for row in file.header.tensors if isinstance(row, MaskedRow)]
        return [
            Mask(file.packed_mask(row.name), row.shape, known_buckets(file, row), row.fill.offset)
            for row in rows
        ]


def known_buckets(file: PemnFile, row: MaskedRow) -> Buckets | None:
    """Of the prototype's values, unless masks have to be known to read those."""
    source = file.header.prototypes[row.fill.prototype]
    if isinstance(source, StoredRow) and source.used == "masks":
        return None
    return value_buckets(file.prototype(row.fill.prototype))


def peak_memory(work: Callable[[], object]) -> int:
    """Bytes that the process grows by at most (Linux)."""

    def memory(entry: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(entry):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"no {entry} in /proc/self/status")

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return max(0, memory("VmHWM") - before)


def measure(
    masks: list[Mask], chosen: dict[str, Coder], rounds: int, tick: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """Bits per weight, million weights a second and peak memory of every coder."""
    weights = sum(mask.count for mask in masks)
    results: dict[str, dict[str, float]] = {}
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in chosen}
    slow: set[str] = set()
    for round_number in range(rounds):
        for name, coder in chosen.items():
            tick()
            if name in slow:
                continue
            start = time.perf_counter()
            coded = coder.encode(masks)
            middle = time.perf_counter()
            decoded = coder.decode(coded, masks)
            end = time.perf_counter()
            seconds[name][0].append(middle - start)
            seconds[name][1].append(end - middle)
            if end - start > 5:
                slow.add(name)  # once is enough
            if round_number == 0:
                for mask, packed in zip(masks, decoded, strict=True):
                    if not np.array_equal(packed[: packed_size(mask.count)], mask.packed):
                        raise RuntimeError(f"{name} does not give back what it was given")
                results[name] = {
                    "bits per weight": 8 * sum(len(data) for data, _ in coded) / weights,
                    "peak MiB": peak_memory(lambda c=coder: c.decode(c.encode(masks), masks))
                    / 2**20,
                }
    for name, (encode, decode) in seconds.items():
        results[name]["encode Mw/s"] = weights / 1e6 / statistics.median(encode)
        results[name]["decode Mw/s"] = weights / 1e6 / statistics.median(decode)
    return results


def plot(rows: list[dict[str, object]], mask: str, path: Path) -> None:
    """Size against decoding speed on one mask."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    points = [
        (float(str(row["decode Mw/s"])), float(str(row["bits per weight"])), str(row["coder"]))
        for row in rows
        if row["mask"] == mask and row["coder"] != "pemncodec rANS kernel"
    ]
    bound = next(float(str(row["order-0"])) for row in rows if row["mask"] == mask)
    height = max(y for _, y, _ in points) - min(y for _, y, _ in points)
    below = 0  # labels of neighbours go below one another
    for i, (x, y, coder) in enumerate(points := sorted(points)):
        ours = coder.startswith("pemncodec")
        axes.plot(x, y, "o", color="#c2410c" if ours else "#475569", markersize=8 if ours else 6)
        near = i > 0 and x < 2 * points[i - 1][0] and abs(y - points[i - 1][1]) < height / 20
        below = below + 1 if near else 0
        axes.annotate(
            coder, (x, y), xytext=(7, 5 - 14 * below), textcoords="offset points", fontsize=9,
            weight="bold" if ours else "normal",
        )  # fmt: skip
    axes.axhline(bound, color="#94a3b8", linestyle="--", linewidth=1)
    axes.text(
        0.99, bound, "order-0 entropy", transform=axes.get_yaxis_transform(),
        ha="right", va="bottom", fontsize=9, color="#64748b",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.2, y=0.15)
    axes.set_xlabel("decoding, million weights a second, one thread (right is better)")
    axes.set_ylabel("bits per weight (lower is better)")
    axes.set_title(f"Masks: size against speed ({mask})")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--side", default=4096, show_default=True, help="Of the synthetic masks; 0: none.")
@click.option("--rounds", default=5, show_default=True)
@click.option(
    "-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "mask_coding.csv"
)
def main(files: tuple[Path, ...], side: int, rounds: int, output: Path) -> None:
    """Measure, print, and write a CSV and a plot beside it."""
    measured_on = provenance(
        ("zstandard", "bitarray", "numpy")
    )  # before the output changes what git sees
    sets = [*(synthetic(side) if side else ()), *((path.stem, masks_of(path)) for path in files)]
    chosen = coders()
    absent = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if absent:
        click.echo(f"not installed, left out: {', '.join(absent)}", err=True)
    rows: list[dict[str, object]] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("coding", total=len(sets) * rounds * len(chosen))
        for title, masks in sets:
            weights = sum(mask.count for mask in masks)
            bound = 8 * sum(mask.order0_bytes() for mask in masks) / weights
            measured = measure(masks, chosen, rounds, lambda: progress.advance(task))
            for name, values in measured.items():
                rows.append(
                    {"mask": title, "weights": weights, "order-0": f"{bound:.4f}", "coder": name}
                    | {
                        "bits per weight": f"{values['bits per weight']:.4f}",
                        "encode Mw/s": f"{values['encode Mw/s']:.1f}",
                        "decode Mw/s": f"{values['decode Mw/s']:.1f}",
                        "peak MiB": f"{values['peak MiB']:.1f}",
                    }
                )
    write_table(output, measured_on, rows, rows[0])
    show(rows, measured_on)
    if importlib.util.find_spec("matplotlib"):
        for title in ("p = 0.2", "rows × columns"):
            if any(row["mask"] == title for row in rows):
                name = "p02" if title == "p = 0.2" else "rows_columns"
                plot(rows, title, output.with_name(f"{output.stem}_{name}.svg"))


def show(rows: list[dict[str, object]], title: str) -> None:
    """Bits per weight of every mask and coder; speeds at a density of 0.2."""
    masks = list(dict.fromkeys(str(row["mask"]) for row in rows))
    table = Table(title=title, title_justify="left")
    table.add_column("bits per weight", no_wrap=True)
    for mask in masks:
        table.add_column(mask, justify="right")
    speeds = "p = 0.2" if "p = 0.2" in masks else masks[0]
    table.add_column(f"enc Mw/s, {speeds}", justify="right")
    table.add_column(f"dec Mw/s, {speeds}", justify="right")
    cells = {(str(row["coder"]), str(row["mask"])): row for row in rows}
    bounds = {str(row["mask"]): str(row["order-0"]) for row in rows}
    table.add_row("order-0 entropy", *(bounds[mask] for mask in masks), "", "")
    for coder in dict.fromkeys(str(row["coder"]) for row in rows):
        own = [str(cells[coder, mask]["bits per weight"]) for mask in masks]
        speed = cells[coder, speeds]
        table.add_row(coder, *own, str(speed["encode Mw/s"]), str(speed["decode Mw/s"]))
    Console(width=max(100, 30 + 14 * (len(masks) + 2))).print(table)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
