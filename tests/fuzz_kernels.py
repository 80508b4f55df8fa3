"""Damaged files and hostile arguments for the C kernels, the same ones every time.

First all vectors of the specification are read. Then each round damages one of them and reads it,
and calls every kernel with arguments that are right, nearly right or wrong. A file is read or
refused by a DecodeError; a kernel has the result and the error of its twin. All memory ends where
the data ends, so that a sanitizer notices every access behind it; tests/sanitize.py runs this
file so. What a round does depends on its number alone: after a failure in round n, `--first n
--rounds 1` repeats it.

    python tests/fuzz_kernels.py --rounds 500
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import pemncodec
from pemncodec import kernels
from pemncodec.coders.mixing import _tables
from pemncodec.coders.rans import byte_frequencies, run_frequencies
from pemncodec.format.container import decode_container, encode_container
from pemncodec.kernels import twins
from pemncodec.spool import Spool

VECTORS = Path(__file__).resolve().parent.parent / "spec" / "vectors"
LIMITS = pemncodec.Limits(decoded_bytes=1 << 24)
NUMBERS = (-1, 0, 1, 2, 7, 8, 9, 255, 256, 2**16, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 2**64)

Arguments: TypeAlias = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    if kernels.IMPLEMENTATION != "native":
        raise SystemExit("The C extension is not built: there is nothing to test.")
    files = {path.name: path.read_bytes() for path in sorted(VECTORS.glob("*.pemn"))}
    readable = [data for data in files.values() if reads(data)]
    print(f"{len(files)} vectors, {len(readable)} of them valid", flush=True)
    began, last = time.monotonic(), options.first + options.rounds
    for number in range(options.first, last):
        if number % 100 == 0:  # told before it begins: a sanitizer ends the process
            print(f"round {number} of {last}, {time.monotonic() - began:.0f} s", flush=True)
        random = Random(number)
        reads(damaged_file(random, random.choice(readable)))
        for name, make in MAKERS.items():
            arguments = make(random)
            if random.random() < 0.3:
                spoil(random, arguments)
            check_kernel(number, name, arguments)


# ---- Files


def reads(data: bytes) -> bool:
    """Whether a file can be read; any exception but a DecodeError goes on."""
    try:
        with pemncodec.open(io.BytesIO(data), limits=LIMITS) as file:
            file.verify()
    except pemncodec.DecodeError:
        return False
    return True


def damaged_file(random: Random, data: bytes) -> bytes:
    """A file with damage in its sections, whose checksums are right all the same."""
    container = decode_container(io.BytesIO(data), LIMITS)
    sections = [data[e.offset : e.offset + e.length] for e in container.sections]
    for _ in range(random.randint(1, 3) if sections else 0):
        index = random.randrange(len(sections))
        sections[index] = damaged(random, sections[index])
    front = encode_container(container.header, map(Spool().add, sections), container.version[1])
    return front + b"".join(sections)


def damaged(random: Random, data: bytes) -> bytes:
    """Data with a bit flipped, a byte changed, a part left out, doubled or made up."""
    changed, at = bytearray(data), random.randint(0, len(data))
    kind = random.randrange(6)
    if kind == 0 and data:
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif kind == 1 and data:
        changed[random.randrange(len(data))] = random.choice((0, 1, 127, 128, 255))
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        del changed[at : at + random.randint(1, 4)]
    elif kind == 4:
        changed[at:at] = changed[at : at + random.randint(1, 8)]
    else:
        changed[at : at + 8] = random.randbytes(random.randint(1, 8))
    return bytes(changed)


# ---- Arguments


def memory(random: Random, data: bytes | NDArray[Any]) -> NDArray[np.uint8]:
    """A copy that ends where its memory ends; sometimes it is not aligned."""
    content = np.frombuffer(data, np.uint8)
    shift = random.choice((0, 0, 1, 2, 3))
    copy = np.empty(shift + content.size, np.uint8)
    copy[shift:] = content
    return copy[shift:]


def room(random: Random, size: int) -> NDArray[np.uint8]:
    return memory(random, b"\xaa" * size)


def size_up_to(random: Random, most: int) -> int:
    """Small ones and those at the borders of what loops do at once are frequent."""
    border = random.choice((0, 8, 64, 256, 4096, 1 << 15, 1 << 16, most))
    return min(most, max(0, border + random.randint(-9, 9)))


def mask_of(random: Random, count: int) -> NDArray[np.uint8]:
    dense = np.random.default_rng(random.getrandbits(32)).random(-(-count // 8) * 8)
    return memory(random, np.packbits(dense < random.choice((0, 0.01, 0.3, 0.5, 1))))


def floats(random: Random, count: int) -> NDArray[np.float32]:
    numbers = np.random.default_rng(random.getrandbits(32)).standard_normal(count, np.float32)
    kind = random.randrange(5)
    if kind == 0:
        numbers = np.rint(numbers)
    elif kind == 1:
        numbers[:] = 0.5
        numbers[::3] = -0.0
    elif kind == 2:
        numbers[numbers > 1] = np.inf
    elif kind == 3:
        numbers.sort()
    return numbers


def spoil(random: Random, arguments: Arguments) -> None:
    """Makes one argument another number, or another length."""
    name = random.choice(list(arguments))
    value = arguments[name]
    if isinstance(value, int):
        arguments[name] = random.choice((value - 1, value + 1, random.choice(NUMBERS)))
    elif random.random() < 0.5:
        size = random.choice((0, 1, value.size - 8, value.size - 1, value.size + 1))
        arguments[name] = memory(random, value.tobytes()[: max(0, size)] + b"\0" * (size > 1))
    else:
        arguments[name] = memory(random, damaged(random, value.tobytes()))


def philox4x32(random: Random) -> Arguments:
    out = room(random, 4 * size_up_to(random, 5000))
    return {"out": out} | stream_of(random)


def stream_of(random: Random) -> Arguments:
    start = random.choice((random.getrandbits(64), random.randrange(9), 2**64 - 5000))
    return {"seed": random.getrandbits(64), "stream": random.getrandbits(40), "start": start}


def quantiles(random: Random) -> Arguments:
    words = memory(random, random.randbytes(4 * size_up_to(random, 5000)))
    return {"words": words, "table": table_of(random), "out": room(random, words.size)}


def table_of(random: Random) -> NDArray[np.uint8]:
    return memory(random, np.arange(4096, dtype=np.float32))


def expand(random: Random) -> Arguments:
    itemsize = random.choice((1, 2, 4, 8, 16))
    period = max(1, size_up_to(random, 70_000))
    count = size_up_to(random, 140_000)
    return {
        "values": memory(random, random.randbytes(period * itemsize)),
        "itemsize": itemsize,
        "offset": random.choice((0, period - 1, random.randrange(period))),
        "mask": mask_of(random, count),
        "out": room(random, count * itemsize),
        "read_next": random.choice((0, 1)),
        "threads": random.choice((1, 2)),
    }


def expand_normal(random: Random) -> Arguments:
    count = size_up_to(random, 300_000)
    made = {"table": table_of(random), "mask": mask_of(random, count)}
    return stream_of(random) | made | {"out": room(random, 4 * count)}


def frequencies(random: Random) -> NDArray[np.uint32]:
    kind = random.randrange(3)
    if kind == 0:
        return byte_frequencies(random.randrange(1, 65536))
    if kind == 1:
        return run_frequencies(random.randrange(1, 10240))[1]
    table = np.zeros(256, np.uint32)
    table[random.sample(range(256), 3)] = 1, 2, 2**15 - 3
    return table


def rans_encode(random: Random) -> Arguments:
    model = frequencies(random)
    used = np.flatnonzero(model).tolist()
    symbols = bytes(random.choices(used, model[used].tolist(), k=size_up_to(random, 4105)))
    if random.random() < 0.1:
        symbols = damaged(random, symbols)
    return {
        "symbols": memory(random, symbols),
        "frequencies": memory(random, model),
        "lanes": random.choice((1, 8)),
    }


def rans_decode(random: Random) -> Arguments:
    given = rans_encode(random)
    count = given["symbols"].size
    try:
        data = kernels.rans_encode(**given)
    except ValueError:  # a symbol without frequency
        data = random.randbytes(size_up_to(random, 300))
    if random.random() < 0.2:  # nearly every symbol asks for a word, and words end within a row
        lanes = given["lanes"]
        states = [random.choice((2**16, 2**31)), *[2**16] * (lanes - 1)]
        words = random.choice((lanes - 1, random.randint(0, 3 * lanes)))
        data = np.array(states, "<u4").tobytes() + bytes(2 * words)
        count = random.choice((3 * lanes - 1, random.randint(0, 5 * lanes)))
        given["frequencies"] = memory(random, np.array([1, 2**15 - 1] + [0] * 254, np.uint32))
    elif random.random() < 0.6:
        data = damaged(random, data)
        count += random.choice((0, 0, -1, 1, 8, 100))
    model = {"frequencies": given["frequencies"], "lanes": given["lanes"]}
    return {"data": memory(random, data)} | model | {"out": room(random, max(0, count))}


def rans_decode_first(random: Random) -> Arguments:
    given = rans_decode(random)
    count = size_up_to(random, given["out"].size)
    return given if random.random() < 0.2 else given | {"out": room(random, count)}


def runs_encode(random: Random) -> Arguments:
    count = size_up_to(random, 70_000)
    longest = random.choice((1, 2, 8, 254, 255, random.randint(1, 255)))
    return {"mask": mask_of(random, count), "count": count, "longest": longest}


def runs_decode(random: Random) -> Arguments:
    given = runs_encode(random)
    runs, count = kernels.runs_encode(**given), given["count"]
    if random.random() < 0.6:
        runs = damaged(random, runs)
    out = room(random, -(-count // 8))
    return {"runs": memory(random, runs), "longest": given["longest"], "count": count, "out": out}


def mixing_encode(random: Random) -> Arguments:
    rows = [part_of(random) for _ in range(random.choice((1, 1, 2, 3)))]
    if len(rows) == 1 and random.random() < 0.3:
        rows[0][4] = random.choice((1, random.randrange(5000), 1 << 62))
    if len(rows) > 1 and random.random() < 0.3:
        rows[1][1] = -(-rows[0][0] // (rows[0][1] * rows[0][2]))  # a column for each row before
    weights = sum(row[0] for row in rows)
    density = random.choice((0, 0.05, 0.5, 1))
    return {
        "bits": memory(random, bytes(random.random() < density for _ in range(weights))),
        "buckets": memory(random, bytes(random.choices(range(32), k=weights))),
        "parts": memory(random, np.array(rows, np.uint64)),
        "tables": memory(random, tables_of(random)),
    }


def part_of(random: Random) -> list[int]:
    columns, kernel = random.choice((1, 2, 3, 16, 40)), random.choice((1, 1, 3, 9, 600))
    width = random.choice((1, 3, kernel, 1 << 40))
    return [random.randint(1, 120), columns, kernel, width, 0, random.randrange(256)]


def tables_of(random: Random) -> NDArray[np.int32]:
    if random.random() < 0.9:
        return _tables()
    stretch = np.where(np.arange(4096) < 2048, -9999, 9999)  # the largest that are allowed
    certain, undecided = np.where(np.arange(3072) < 1536, 1, 65535), np.full(3072, 32768)
    return np.append(stretch, random.choice((certain, undecided))).astype(np.int32)


def mixing_decode(random: Random) -> Arguments:
    given = mixing_encode(random)
    bits = given.pop("bits")
    data, _ = kernels.mixing_encode(bits, **given)
    if random.random() < 0.6:
        data = damaged(random, data)
    return {"data": memory(random, data)} | given | {"out": room(random, bits.size)}


def top_k(random: Random) -> Arguments:
    count = size_up_to(random, 140_000)
    kept = random.choice((0, count, random.randint(0, count), count // 2, 1))
    values = memory(random, floats(random, count))
    return {"values": values, "kept": min(kept, count), "out": room(random, count)}


def keep_largest(random: Random) -> Arguments:
    given = top_k(random)
    return {
        "scores": given["values"],
        "magnitude": random.randrange(2),
        "kept": given["kept"],
        "values": memory(random, random.randbytes(given["values"].size)),
        "out": room(random, given["values"].size),
        "threads": random.choice((1, 2, 2**64 - 1)),
    }


def magnitude_gradient(random: Random) -> Arguments:
    count = size_up_to(random, 70_000)
    made = {n: memory(random, floats(random, count)) for n in ("gradient", "values", "scores")}
    return made | {"out": room(random, 4 * count), "threads": random.choice((1, 2))}


def packed_product(random: Random) -> Arguments:
    period = max(1, size_up_to(random, 9000))
    return {
        "bits": room(random, 0),
        "values": memory(random, floats(random, period)),
        "offset": random.choice((0, period - 1, random.randrange(period))),
    } | product_of(random)


def column_product(random: Random) -> Arguments:
    given, rows = packed_product(random), random.choice((1, 2, 63, 64, 65, 200))
    columns, batch = size_up_to(random, 1300), random.choice((1, 2, 5, 17))
    del given["columns"]
    return given | {
        "bits": mask_of(random, rows * columns),
        "rows": rows,
        "inputs": memory(random, floats(random, batch * rows)),
        "out": room(random, 4 * batch * columns),
    }


def signed_product(random: Random) -> Arguments:
    period = max(1, size_up_to(random, 9000))
    return {
        "bits": room(random, 0),
        "signs": mask_of(random, period),
        "period": period,
        "offset": random.choice((0, period - 1, random.randrange(period))),
        "constant": memory(random, floats(random, 1)),
    } | product_of(random)


def product_of(random: Random) -> Arguments:
    columns, rows = max(1, size_up_to(random, 2100)), random.choice((0, 1, 15, 16, 17, 40))
    batch = random.choice((1, 1, 2, 5, 17))
    return {
        "bits": mask_of(random, columns * rows),
        "columns": columns,
        "inputs": memory(random, floats(random, batch * columns)),
        "out": room(random, 4 * batch * rows),
        "threads": random.choice((1, 2)),
    }


def mersenne_solve(random: Random) -> Arguments:
    """Nearly all of a state is known: other systems are slow, and no different."""
    state = np.random.RandomState(random.getrandbits(32)).get_state()[1]
    count = random.choice((623, 630, 1300, 2000))
    generator = np.random.MT19937()
    generator.state = {"bit_generator": "MT19937", "state": {"key": state, "pos": 0}}
    given = generator.random_raw(count).astype(np.uint32)
    unknown = random.choice((0, 1, 5, 40))
    masks = [(index, 1 << bit) for index in range(unknown, 624) for bit in range(32)]
    places = (random.randrange(count) for _ in range(random.choice((0, 40, 40 + 80 * unknown))))
    masks += [(place, random.getrandbits(32)) for place in places]
    masks.sort(key=lambda mask: mask[0])
    words, masks_of = np.array(masks, np.uint32).reshape(-1, 2).T.copy()
    parities = np.bitwise_count(given[np.minimum(words, count - 1)] & masks_of)
    if random.random() < 0.2:
        parities[random.randrange(parities.size)] ^= 1
    equations = {"words": words, "masks": masks_of, "parities": parities}
    return {name: memory(random, value) for name, value in equations.items()} | {
        "out": room(random, 4 * 624)
    }


def mersenne_seed(random: Random) -> Arguments:
    return {"seed": random.getrandbits(32), "out": room(random, 4 * 624)}


def mersenne_advance(random: Random) -> Arguments:
    state = memory(random, random.randbytes(4 * 624))
    return {"state": state, "blocks": random.choice((0, 1, random.randrange(20)))}


def mersenne_rewind(random: Random) -> Arguments:
    """A state that may come from a seed."""
    state = np.frombuffer(random.randbytes(4 * 624), np.uint32).copy()
    if random.random() < 0.7:
        kernels.mersenne_seed(random.getrandbits(32), state)
    blocks = random.choice((0, 1, random.randrange(20)))
    kernels.mersenne_advance(state, random.randrange(20))
    return {"state": memory(random, state.tobytes()), "blocks": blocks}


def mersenne_words(random: Random) -> Arguments:
    state, count = memory(random, random.randbytes(4 * 624)), size_up_to(random, 5000)
    skip = random.choice((0, 623, random.randrange(624)))
    return {"state": state, "skip": skip, "out": room(random, 4 * count)}


def match_words(random: Random) -> Arguments:
    words = memory(random, random.randbytes(4 * size_up_to(random, 5000)))
    table = memory(random, random.randbytes(1 << 16))
    bits = random.choice((1, 2, 4, 8, 16))
    return {"words": words, "bits": bits, "table": table, "out": room(random, 2 * words.size)}


def mersenne_pull_back(random: Random) -> Arguments:
    count, last = size_up_to(random, 70), random.choice((1, 623, 624, 3000))
    words = np.array(sorted(random.randrange(last) for _ in range(count)), np.uint32)
    masks = memory(random, random.randbytes(4 * count))
    return {"words": memory(random, words), "masks": masks, "out": room(random, 2496 * count)}


def mersenne_seeds(random: Random) -> Arguments:
    """Sums of a few words with few bits, so that seeds are found."""
    places, equations = random.choice((1, 2, 3, 4, 5, 7)), random.choice((14, 15, 30))
    tables = np.zeros((places, 624, equations), np.uint32)
    rng = np.random.default_rng(random.getrandbits(32))
    for _ in range(random.choice((0, 1, 4, 40))):
        at = tuple(random.randrange(size) for size in tables.shape)
        tables[at] = rng.integers(1 << 32)
    count = random.choice((0, 1, 47, 48, 49, 300, 2000))
    return {
        "masks": memory(random, tables),
        "parities": memory(
            random, bytes(random.choice((0, 0, 0, 1)) for _ in range(places * equations))
        ),
        "places": places,
        # Among the last: a spoiled count is refused then, where it would take hours elsewhere.
        "first": 2**32 - count - random.choice((0, 1, random.randrange(1000))),
        "count": count,
    }


def torch_normal(random: Random) -> Arguments:
    words = memory(random, random.randbytes(64 * size_up_to(random, 300)))
    return {"words": words, "fused": random.randrange(2), "out": room(random, words.size)}


def torch_uniform(random: Random) -> Arguments:
    words = memory(random, random.randbytes(4 * size_up_to(random, 5000)))
    bounds = memory(random, random.choice((floats(random, 2).tobytes(), random.randbytes(8))))
    made = {"words": words, "fused": random.randrange(2), "bounds": bounds}
    return made | {"out": room(random, words.size)}


def expand_drawn(random: Random) -> Arguments:
    given, count = mersenne_words(random), size_up_to(random, 70_000)
    uniform = torch_uniform(random)["bounds"]
    return {
        "state": given["state"],
        "skip": given["skip"],
        "fused": random.randrange(2),
        "bounds": random.choice((memory(random, b""), uniform)),
        "scale": memory(random, random.choice((floats(random, 1).tobytes(), b"\0\0\x80\x3f"))),
        "mask": mask_of(random, count),
        "out": room(random, 4 * count),
    }


def allow_large_pages(random: Random) -> Arguments:
    return {"out": room(random, random.choice([0, 4096, 5 << 20]))}


MAKERS: dict[str, Callable[[Random], Arguments]] = {
    make.__name__: make
    for make in (
        philox4x32, quantiles, expand, expand_normal, rans_encode, rans_decode,
        rans_decode_first, runs_encode,
        runs_decode, mixing_encode, mixing_decode, top_k, keep_largest, magnitude_gradient,
        packed_product, column_product, signed_product, mersenne_solve, mersenne_pull_back,
        mersenne_seeds, match_words,
        mersenne_seed, mersenne_advance, mersenne_rewind, mersenne_words, torch_normal,
        torch_uniform, expand_drawn,
        allow_large_pages,
    )
}  # fmt: skip


FLOATS = {
    "top_k": ["values"],
    "keep_largest": ["scores"],
    "magnitude_gradient": ["gradient", "values"],
    "packed_product": ["values", "inputs"],
    "column_product": ["values", "inputs"],
    "signed_product": ["constant", "inputs"],
}


# ---- Outcomes


def check_kernel(number: int, name: str, arguments: Arguments) -> None:
    """Compares a kernel with its twin."""
    theirs = arguments | {name: arguments[name].copy() for name in written(arguments)}
    ours, expected = (
        outcome(getattr(module, name), given)
        for module, given in ((kernels, arguments), (twins, theirs))
    )
    if ours != expected and not holds_nan(name, arguments):
        sizes = {key: getattr(value, "size", value) for key, value in arguments.items()}
        sys.exit(f"round {number}: {name} differs from its twin, with {sizes}")


def outcome(kernel: Callable[..., Any], arguments: Arguments) -> tuple[str, Any]:
    """What a call returned and wrote, or its error."""
    try:
        result = kernel(**arguments)
    except ValueError as error:
        return "error", str(error)
    return "returned", (result, *(arguments[name].tobytes() for name in written(arguments)))


def written(arguments: Arguments) -> list[str]:
    """What a kernel may write: a state moves."""
    return [name for name in ("state", "out") if name in arguments]


def holds_nan(name: str, arguments: Arguments) -> bool:
    """Whether a float is not a number where the result is not defined then, or not in every bit."""
    given = [arguments[key] for key in FLOATS.get(name, ())]
    return any(np.isnan(value[: value.size // 4 * 4].view(np.float32)).any() for value in given)


if __name__ == "__main__":
    main()
