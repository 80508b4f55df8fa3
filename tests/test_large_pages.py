"""Large pages for what is filled next: where the free memory of a faked system says so."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import exchange_kernels
from torch import nn

import pemncodec
from pemncodec.contents import Array
from pemncodec.format import large_pages
from pemncodec.format.filling import fill_tensors
from pemncodec.masking import RandomPadding, mask_model

LARGE = 2 << 20
WEIGHTS = 9 * LARGE // 4
FREE = "Node 0, zone    DMA32  7  7  7  7  7  7  7  7  7  {}  {}\n"


def can_ask() -> bool:
    """Whether the system has large pages, of the size that these tests take for granted."""
    path = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
    own = sys.platform == "linux" and path.exists() and int(path.read_text()) == LARGE
    return own and mmap.PAGESIZE == 4096


pytestmark = pytest.mark.skipif(not can_ask(), reason="the system has no large pages of 2 MiB")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = mask_model(nn.Linear(2048, WEIGHTS // 2048, bias=False), RandomPadding(length=100))
    path = tmp_path_factory.mktemp("large") / "net.pemn"
    pemncodec.encode(model, path, preset="fast", manifest=False, find_seed="off")
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with large pages, and with nothing free yet."""
    exchange_kernels(monkeypatch, "native")
    monkeypatch.setattr(large_pages, "_ROOT", tmp_path)
    write(tmp_path / "sys/kernel/mm/transparent_hugepage/hpage_pmd_size", f"{LARGE}\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def new_memory(size: int) -> Array:
    """Zeros that no page is there for."""
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return np.frombuffer(mmap.mmap(-1, size, flags=kind), np.uint8)


def has_asked(array: Array) -> bool:
    """Whether large pages are allowed for its middle."""
    middle, found = array.ctypes.data + array.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if area := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            found = int(area[1], 16) <= middle < int(area[2], 16)
        elif found and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("no such memory")


def fill(file: Path) -> bool:
    """Whether loading that file into new memory asks for large pages; what is loaded is right."""
    out = new_memory(4 * WEIGHTS).view(np.float32)
    with pemncodec.open(file) as opened:
        name = opened.masked_keys()[0]
        fill_tensors([(opened.masked_values(name), out.reshape(opened.shape(name)))])
    expected = pemncodec.load_state_dict(file)[name].reshape(-1)
    assert torch.equal(torch.from_numpy(out), expected)
    return has_asked(out)


@pytest.mark.parametrize(
    ("blocks", "asks"),
    [
        ((18, 0), True),  # twice what 9 large pages hold
        ((17, 0), False),
        ((0, 9), True),
        ((0, 8), False),
        ((2, 8), True),
    ],
)
def test_as_many_free_blocks_as_are_needed_twice(
    root: Path, file: Path, blocks: tuple[int, int], asks: bool
) -> None:
    write(root / "proc/buddyinfo", FREE.format(*blocks))
    assert fill(file) == asks


def test_zones_count_together_and_nodes_each(root: Path, file: Path) -> None:
    node = FREE.format(9, 0) + FREE.format(9, 0).replace("DMA32", "Normal")
    write(root / "proc/buddyinfo", node + node.replace("Node 0", "Node 1"))
    assert fill(file)
    write(root / "proc/buddyinfo", node + FREE.format(17, 0).replace("Node 0", "Node 1"))
    assert not fill(file)


@pytest.mark.parametrize(("order", "asks"), [("9", False), ("10", True), ("4294967295", True)])
def test_blocks_that_the_host_has(root: Path, file: Path, order: str, asks: bool) -> None:
    write(root / "proc/buddyinfo", FREE.format(100, 100))
    write(root / "sys/module/page_reporting/parameters/page_reporting_order", f"{order}\n")
    assert fill(file) == asks


@pytest.mark.parametrize(
    "text", [None, "", "Node 0, zone", "nothing", "Node 0, zone  Normal  x -1"]
)
def test_a_system_that_does_not_say(root: Path, file: Path, text: str | None) -> None:
    if text is not None:
        write(root / "proc/buddyinfo", text)
    assert not fill(file)


@pytest.mark.parametrize("size", ["", "never", "4096", "0", "1073741824"])
def test_large_pages_of_other_sizes(root: Path, file: Path, size: str) -> None:
    write(root / "sys/kernel/mm/transparent_hugepage/hpage_pmd_size", size)
    write(root / "proc/buddyinfo", FREE.format(100, 100))
    assert not fill(file)


def test_small_tensors_stay_as_they_are(root: Path) -> None:
    write(root / "proc/buddyinfo", FREE.format(100, 100))
    arrays = [new_memory(size) for size in (2 * LARGE - 1, 2 * LARGE, 6 * LARGE)]
    large_pages.allow_large_pages(arrays[:2])
    assert not any(map(has_asked, arrays))
    large_pages.allow_large_pages(arrays)
    assert list(map(has_asked, arrays)) == [False, True, True]


def test_memory_that_is_there_stays_as_it_is(root: Path) -> None:
    write(root / "proc/buddyinfo", FREE.format(100, 100))
    array = new_memory(8 * LARGE)
    array[-mmap.PAGESIZE] = 1
    large_pages.allow_large_pages([array])
    assert not has_asked(array)
