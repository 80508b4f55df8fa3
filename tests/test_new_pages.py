"""New memory that kernels fill: its bytes are right, whatever it is and the system allows."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import native_kernels
from hypothesis import given, settings
from hypothesis import strategies as st

from pemncodec.contents import Array

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for its pages")

PAGE = mmap.PAGESIZE
LARGE = 2 << 20
MASK = np.packbits(np.random.default_rng(1).random(1 << 22) < 0.3)
VALUES = np.random.default_rng(2).integers(0, 256, 40_000, np.uint8)
QUANTILES = np.random.default_rng(3).standard_normal(4096).astype(np.float32)
STATE = np.random.default_rng(4).integers(0, 1 << 32, 624, np.uint32)
ONE = np.ones(1, np.float32)

Fill = Callable[[ModuleType, Array], None]


def expand(kernel: ModuleType, out: Array, itemsize: int = 4) -> None:
    period = 1250 * itemsize if itemsize < 4 else 40_000  # one is repeated, the other is not
    count = out.size // itemsize
    kernel.expand(VALUES[:period], itemsize, 7, MASK[: -(-count // 8)], out, 0, 1)


def expand_normal(kernel: ModuleType, out: Array) -> None:
    kernel.expand_normal(5, 6, 7, QUANTILES, MASK[: -(-out.size // 32)], out)


def expand_drawn(kernel: ModuleType, out: Array) -> None:
    mask = MASK[: -(-out.size // 32)]
    kernel.expand_drawn(STATE, 3, 1, np.zeros(0, np.float32), ONE, mask, out)


FILLS: list[Fill] = [expand, expand_normal, expand_drawn]
OF_ITEMS: list[tuple[Fill, int]] = [
    *((partial(expand, itemsize=size), size) for size in (1, 2, 4, 8, 16)),
    *((fill, 4) for fill in FILLS),
]


def new_memory(size: int, flags: int = mmap.MAP_PRIVATE) -> Array:
    """Zeros that no page is there for."""
    return np.frombuffer(mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS), np.uint8)


def expected(fill: Fill, size: int) -> Array:
    """What is written to memory that is there."""
    out = np.full(size, 1, np.uint8)
    fill(native_kernels(), out)
    return out


def check(fill: Fill, out: Array) -> None:
    fill(native_kernels(), out)
    assert np.array_equal(out, expected(fill, out.size))


def page_faults(call: Callable[[], object]) -> int:
    """Of this thread."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    call()
    faults: int = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
    return faults


def run_script(script: str) -> None:
    """In a process of its own, which a kernel that waits for ever does not keep alive."""
    script = "from test_new_pages import *\n" + script
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def can_make_pages() -> None:
    """Skips where the system lets nobody make pages."""
    number = {"x86_64": 323, "aarch64": 282}.get(os.uname().machine)
    if number is None or ctypes.CDLL(None).prctl(21, 0, 0, 0, 0) != 0:  # PR_GET_SECCOMP
        pytest.skip("system calls are filtered")
    descriptor = ctypes.CDLL(None).syscall(number, os.O_CLOEXEC | 1)
    if descriptor < 0:
        pytest.skip("the system has no userfaultfd for user space")
    os.close(descriptor)


@pytest.mark.usefixtures("can_make_pages")
@pytest.mark.parametrize("fill", FILLS)
def test_pages_are_made(fill: Fill) -> None:
    """The memory is filled without the page faults that stores would have; it is ordinary then."""
    out, kernel = new_memory(4 << 20), native_kernels()
    fill(kernel, np.ones(1 << 20, np.uint8))
    assert page_faults(lambda: fill(kernel, out)) < out.size // PAGE // 8
    assert np.array_equal(out, expected(fill, out.size))
    assert "uffd" not in Path("/proc/self/maps").read_text()
    out[:] = 3
    assert out.min() == 3


@settings(max_examples=30, deadline=None)
@given(
    fill_items=st.sampled_from(OF_ITEMS),
    before=st.integers(0, 2 * PAGE),
    size=st.integers(1 << 20, 5 << 18)
    | st.integers(0, 40).map(lambda n: n * 32 * 1024 + (1 << 20)),
    behind=st.integers(0, 2 * PAGE),
    touched=st.lists(st.floats(0, 1, exclude_max=True), max_size=3),
    together=st.booleans(),
)
def test_any_part_of_any_memory(
    fill_items: tuple[Fill, int],
    before: int,
    size: int,
    behind: int,
    touched: list[float],
    together: bool,
) -> None:
    """Whatever is there already; what lies around stays as it is."""
    fill, itemsize = fill_items
    size -= size % itemsize
    memory = new_memory(before + size + behind)
    out = memory[before : before + size]
    for place in touched:
        memory[int(place * memory.size)] = 1
    if together and touched:
        memory[int(min(touched) * memory.size) : int(max(touched) * memory.size)] = 2
    around = memory[:before].copy(), memory[before + size :].copy()
    check(fill, out)
    assert np.array_equal(memory[:before], around[0])
    assert np.array_equal(memory[before + size :], around[1])


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("first", [0, PAGE // 2, PAGE, 3 << 18, (3 << 19) - 3 * PAGE])
def test_pages_that_are_there(fill: Fill, first: int) -> None:
    """The rest is filled by stores; pages at the ends say nothing of those between."""
    memory = new_memory(3 << 19)
    memory[first + 2 * PAGE] = 1
    check(fill, memory)


@pytest.mark.parametrize("fill", FILLS)
def test_memory_of_other_kinds(fill: Fill, tmp_path: Path) -> None:
    size = 3 << 19
    check(fill, new_memory(size, mmap.MAP_SHARED))
    path = tmp_path / "file"
    path.write_bytes(b"\1" * size)
    for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
        with path.open("r+b") as stream:
            check(fill, np.frombuffer(mmap.mmap(stream.fileno(), size, flags=flags), np.uint8))
    held = os.memfd_create("held")
    os.truncate(held, size)
    for flags in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
        check(fill, np.frombuffer(mmap.mmap(held, size, flags=flags), np.uint8))
    os.close(held)
    tensor = torch.empty(size, dtype=torch.uint8).share_memory_()
    check(fill, tensor.numpy())


def test_shared_memory_of_which_another_mapping_has_pages() -> None:
    size, held = 3 << 19, os.memfd_create("held")
    os.truncate(held, size)
    other = np.frombuffer(mmap.mmap(held, size), np.uint8)
    other[size // 2] = 1
    check(expand, np.frombuffer(mmap.mmap(held, size), np.uint8))
    assert np.array_equal(other, expected(expand, size))
    os.close(held)


def large(memory: Array) -> int:
    """Bytes of it in large pages."""
    found = inside = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            start, end = (int(word, 16) for word in words[0].split("-"))
            inside = start < memory.ctypes.data + memory.size and memory.ctypes.data < end
        elif inside and words[0] == "AnonHugePages:":
            found += int(words[1]) * 1024
    return found


@pytest.mark.parametrize(
    ("first", "last", "whole"),
    [
        (LARGE // 2, 0, 4),
        (0, LARGE // 2, 4),
        (LARGE // 2, LARGE // 2, 4),
        (PAGE, PAGE, 4),
        (LARGE - PAGE, LARGE - 16, 4),
        (LARGE // 2, LARGE // 2, 1),
    ],
)
def test_large_pages_stay_large(first: int, last: int, whole: int) -> None:
    """Memory that the system gives in large pages is not given in small ones for our sake. Where
    its ends lie within large pages, these cannot be had."""

    def allowed() -> Array:
        memory = mmap.mmap(-1, 8 * LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        every = np.frombuffer(memory, np.uint8)
        start = -every.ctypes.data % LARGE
        out = every[start + first : start + ((first > 0) + whole) * LARGE + last]
        kernel = native_kernels()
        kernel.allow_large_pages(out)
        return out

    before = allowed()
    before[:] = 1
    memory = allowed()
    check(expand, memory)
    after = allowed()
    after[:] = 1
    if min(large(before), large(after)) < whole * LARGE:
        pytest.skip("the system has no large pages to give")
    assert large(memory) >= whole * LARGE


def test_many_threads_fill_parts_of_one_memory() -> None:
    """Parts side by side, which share pages, and the same part."""
    part = (1 << 20) + 1000 * 16 + 16
    memory = new_memory(6 * part)
    reference = expected(expand, part)

    def fill(index: int) -> None:
        expand(native_kernels(), memory[index * part : (index + 1) * part])

    threads = [threading.Thread(target=fill, args=(index % 6,), daemon=True) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for index in range(6):
        assert np.array_equal(memory[index * part : (index + 1) * part], reference)


def test_parts_that_overlap() -> None:
    """Nothing is promised of their bytes, but nobody waits for ever."""
    run_script(
        """
memory = new_memory(8 << 20)
def fill(start):
    for out in (memory[start : start + (3 << 19)], new_memory(3 << 19)):
        expand_normal(native_kernels(), out)
threads = [threading.Thread(target=fill, args=(index << 18,)) for index in range(24)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    )


def test_inputs_within_the_output() -> None:
    run_script(
        """
memory = new_memory(3 << 20)
native_kernels().expand(VALUES, 4, 0, memory[1 << 20 :][: 3 << 15], memory, 0, 1)
memory = new_memory(3 << 20)
native_kernels().expand(memory[1 << 20 : 2 << 20], 4, 0, MASK[: 3 << 15], memory, 0, 1)
memory = new_memory(3 << 20)
native_kernels().expand_normal(5, 6, 7, QUANTILES, memory[1 << 20 :][: 3 << 15], memory)
"""
    )


@pytest.mark.parametrize(
    "call",
    [
        "expand_normal(5, 6, 7, QUANTILES, other[SIZE // 2 :][: SIZE // 32], out)",
        "expand_drawn(STATE, 3, 1, ONE[:0], ONE, other[SIZE // 2 :][: SIZE // 32], out)",
        "expand(VALUES, 4, 7, other[SIZE // 2 :][: SIZE // 32], out, 0, 1)",
        "expand(other, 4, SIZE // 8, ALL, out, 0, 1)",
    ],
)
def test_inputs_within_the_outputs_of_each_other(call: str) -> None:
    """Nothing is promised of the bytes, but the calls do not wait for each other."""
    run_script(
        f"""
import signal
SIZE = 32 << 20
ALL = np.full(SIZE // 32, 255, np.uint8)
signal.alarm(20)
done = []
def fill(out, other):
    together.wait()
    native_kernels().{call}
    done.append(out)
for _ in range(4):
    first, second = new_memory(SIZE), new_memory(SIZE)
    together = threading.Barrier(2)
    pairs = (first, second), (second, first)
    threads = [threading.Thread(target=fill, args=pair) for pair in pairs]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
assert len(done) == 8
"""
    )


@pytest.mark.usefixtures("can_make_pages")
def test_pages_of_two_mappings_of_which_one_can_be_had() -> None:
    """Where a process has as many mappings as it may have, the system takes the pages of the
    first, then says no. They are given back even if a copy of the descriptor is open, as a process
    that was forked has one."""
    run_script(
        """
import signal, time
signal.alarm(20)
limit, system = int(Path("/proc/sys/vm/max_map_count").read_text()), ctypes.CDLL(None)
if limit > 1 << 17: sys.exit()
anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
memory, values = (mmap.mmap(-1, size, flags=anonymous) for size in (2 << 20, 64 << 20))
memory.madvise(mmap.MADV_DONTDUMP, 1 << 20)
out, zeros = np.frombuffer(memory, np.uint8), np.frombuffer(values, np.uint8)
many = mmap.mmap(-1, 2 * limit * PAGE, flags=anonymous, prot=mmap.PROT_READ)
start = np.frombuffer(many, np.uint8).ctypes.data
os.close(descriptor := os.dup(0))
copies, stop = [], False
def copy():
    while not stop:
        try: copies.append(os.dup(descriptor))
        except OSError: continue
        time.sleep(0.01)
def fill():
    for each in (memory, values): each.madvise(mmap.MADV_DONTNEED)
    # All values are read before the pages are taken: time enough for a copy.
    native_kernels().expand(values, 1, zeros.size - 1, MASK[: out.size // 8], out, 0, 1)
fill()
thread = threading.Thread(target=copy)
thread.start()
while system.mprotect(ctypes.c_void_p(start), PAGE, 0) == 0:
    start += 2 * PAGE
for _ in range(4):
    copied = len(copies)
    for _ in range(200):
        if len(copies) == copied: fill()
    assert len(copies) > copied
    start -= 2 * PAGE
    system.munmap(ctypes.c_void_p(start), PAGE)
stop = True
thread.join()
out[:] = 3
"""
    )


def test_errors_leave_ordinary_memory() -> None:
    memory = new_memory(1 << 21)
    with pytest.raises(ValueError, match="mask"):
        native_kernels().expand(VALUES, 4, 0, MASK[:1], memory, 0, 1)
    memory[:] = 1
    assert memory.min() == 1


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_no_descriptor_is_left() -> None:
    before = descriptors()
    for fill in FILLS:
        check(fill, new_memory(1 << 21))
        half = new_memory(1 << 21)
        half[1 << 20] = 1
        check(fill, half)
    assert descriptors() == before


@pytest.mark.parametrize(
    "deny",
    [
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(descriptors()),) * 2)",
        "filter_calls()",
    ],
)
def test_where_the_system_says_no(deny: str) -> None:
    """Also where it would end a process that asks."""
    run_script(
        f"""
import resource
from conftest import native_kernels
native_kernels()
{deny}
for fill in FILLS:
    check(fill, new_memory(3 << 19))
"""
    )


def filter_calls() -> None:
    """From now on `userfaultfd` ends this process."""
    number = {"x86_64": 323, "aarch64": 282}.get(os.uname().machine, 0xFFFF)
    # load the number of the call; if it is this one, kill the process; else allow it
    codes = [
        (0x20, 0, 0, 0),
        (0x15, 0, 1, number),
        (0x06, 0, 0, 0x80000000),
        (0x06, 0, 0, 0x7FFF0000),
    ]
    program = b"".join(
        code.to_bytes(2, sys.byteorder) + bytes((yes, no)) + value.to_bytes(4, sys.byteorder)
        for code, yes, no, value in codes
    )
    held = ctypes.create_string_buffer(program)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    given = Program(len(codes), ctypes.addressof(held))
    system = ctypes.CDLL(None, use_errno=True)
    assert system.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert system.prctl(22, 2, ctypes.byref(given), 0, 0) == 0  # PR_SET_SECCOMP


def test_processes_that_are_forked_meanwhile() -> None:
    """They have ordinary memory while that of their parent is being filled, and what they inherit
    is in nobody's way."""
    run_script(
        """
memory, done = [new_memory(1 << 21) for _ in range(60)], threading.Event()
def fill():
    for out in memory:
        out[1 << 20] = 1
        expand_normal(native_kernels(), out)
    done.set()
threading.Thread(target=fill).start()
held, closed_at_the_end = os.pipe()
children = []
while len(children) < 3 or not done.is_set() and len(children) < 20:
    child = os.fork()
    if child == 0:
        os.close(closed_at_the_end)
        for out in memory:
            out[1 << 18 :: 1 << 18] = 1
        os.read(held, 1)
        os._exit(0)
    children.append(child)
assert done.wait(60)
os.close(closed_at_the_end)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
reference = expected(expand_normal, 1 << 21)
assert all(np.array_equal(out, reference) for out in memory)
"""
    )
