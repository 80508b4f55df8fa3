"""Changes the package in one place at a time and asks the tests: results/mutants.csv.

A mutant is a copy of the package with one node of one module's syntax tree replaced: a comparison
or operator by another, a condition by True or False, a number by its neighbour, a statement by
nothing. It is killed if a test of that module fails or runs too long. A sample of all mutants is
drawn, the same one for the same code and seed; a line is as likely as any other, however long. A
mutant that no test can notice stands in equivalent_mutants.csv with the reason why.

Two libraries do the like. cosmic-ray starts a process for each mutant, most of whose time would go
into importing torch; mutmut leaves out tables and decorated functions, which is where much of
`architecture` is. So here every mutant is a fork of a process that has imported torch already.

    python benchmarks/mutants.py [--count N] [--jobs N] [--limit S] [--list] [--rest] [PART…]
"""

from __future__ import annotations

import argparse
import csv
import importlib
import itertools
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from mutations import Mutant, mutants_of

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results" / "mutants.csv"
EQUIVALENT: Final = ROOT / "benchmarks" / "equivalent_mutants.csv"
COLUMNS: Final = ("module", "line", "in", "change", "outcome", "reason")

# Tests that take seconds, and ask what the others of their file ask too.
_LEFT_OUT: Final = (
    "test_shorter_floats.py::test_the_command_line",
    "test_container.py::test_encoding_twice_gives_the_same_bytes",
    "test_mixing.py::test_round_trip[numpy]",
    "test_mixing.py::test_damaged_sections[numpy]",
    "test_mixing.py::test_both_implementations_write_the_same_bytes",
    "test_mixing.py::test_both_implementations_refuse_alike",
)
_PRELOADED: Final = (
    *("bitarray", "click.testing", "hypothesis", "pytest", "rich.console", "safetensors.torch"),
    *("torch", "torch._dynamo", "torch.export", "torch.fx", "zstandard"),
)

_MASKS = ("masks", "mixing", "vectors")
_DENSE = ("dense", "shorter_floats", "vectors")
_FILES = ("container", "vectors", "encode", "mixing", "shorter_floats")
_LISTS = "vectors::test_the_text_lists_what_the_package_knows"
_DESCRIPTION = (_LISTS, "manifest", "vectors", "rebuild")
_VALUES = ("generator", "prototype", "mixing")
_ENCODING = ("encode", "proof", "shorter_floats", "architectures", "container")
_RULES = ("score_rules", "mask_entries", "published_dialects", "dialects", "scores")
_DIALECTS = (*_RULES, "encode")
_SHARDING = ("sharding",)
_NAMES = ("names", "inputs", "encode", "scores")

# Which tests are asked, those first that are fast and nearest to the module.
TESTS: Final[dict[str, tuple[str, ...]]] = {
    "coders/affine": ("shorter_floats", "vectors"),
    "coders/buckets": ("mixing",),
    "coders/canonical_json": ("manifest", "container"),
    "coders/constant": _MASKS,
    "coders/dense": _DENSE,
    "coders/lossless": _DENSE,
    "coders/mask_coder": _MASKS,
    "coders/masks": _MASKS,
    "coders/mixing": ("mixing",),
    "coders/packed": _MASKS,
    "coders/palette": _DENSE,
    "coders/planes": _DENSE,
    "coders/rans": ("masks", "vectors"),
    "coders/raw": _DENSE,
    "coders/shortening": _DENSE,
    "coders/varint": ("varint", "masks", "shorter_floats"),
    "coders/zstd": ("manifest", "container"),
    "coders/zstd_bits": _DENSE,
    "values/every_seed": ("every_seed",),
    "values/fill": ("prototype", "device", "generator", "mixing"),
    "values/generators": _VALUES,
    "values/initialisation": ("every_seed",),
    "values/periods": ("periods", "prototype"),
    "values/philox": _VALUES,
    "values/portable": (*_VALUES, "vectors"),
    "values/recovery": _VALUES,
    "values/rounding": _VALUES,
    "values/pattern_tables": ("word_search",),
    "values/word_patterns": ("word_search",),
    "values/word_search": ("word_search",),
    "format/columns": _FILES,
    "format/container": _FILES,
    "format/contexts": ("mixing", "container", "encode"),
    "format/dense_sections": ("shorter_floats", "dense", "container", "encode"),
    "format/digests": ("digest", "shared_prototypes"),
    "format/file_digest": ("digest",),
    "format/encoded": ("spool", "memory"),
    "format/header": _FILES,
    "format/index": ("index",),
    "format/joining": ("sharded_files", "shared_prototypes"),
    "format/merging": ("sharded_files",),
    "format/opening": ("sharded_files", "sharded_commands"),
    "format/journal": _SHARDING,
    "format/leftovers": _SHARDING,
    "format/partial": _SHARDING,
    "format/partition": _SHARDING,
    "format/pipes": ("pipes",),
    "format/places": _SHARDING,
    "format/publishing": _SHARDING,
    "format/sharded_sections": ("sharded_files", "sharded_commands"),
    "format/in_turn": ("saving",),
    "format/masked_sections": _FILES,
    "format/reader": _FILES,
    "format/remote_sections": ("remote",),
    "format/sections": _FILES,
    "format/weights": _FILES,
    "saving": ("saving",),
    "format/writer": _FILES,
    "architecture/arguments": _DESCRIPTION,
    "architecture/composites": _DESCRIPTION,
    "architecture/layers": _DESCRIPTION,
    "architecture/manifest": _DESCRIPTION,
    "architecture/operators": _DESCRIPTION,
    "architecture/outputs": ("proof", "rebuild"),
    "checkpoints/biprop": _RULES,
    "checkpoints/compared_scores": _RULES,
    "checkpoints/compressed_tensors": _RULES,
    "checkpoints/dialect": _DIALECTS,
    "checkpoints/dialects": _DIALECTS,
    "checkpoints/fedpm": _RULES,
    "checkpoints/files": ("mask_entries", "files", "encode"),
    "checkpoints/folders": ("sharded_inputs",),
    "checkpoints/given_masks": _DIALECTS,
    "checkpoints/hydra": _RULES,
    "checkpoints/inert": ("score_rules", "files"),
    "checkpoints/kinds": ("files", "sharded_inputs"),
    "checkpoints/mask_buffers": _RULES,
    "checkpoints/mask_names": _RULES,
    "checkpoints/movement_pruning": _RULES,
    "checkpoints/names": ("published_dialects", *_NAMES),
    "checkpoints/official_scores": _DIALECTS,
    "checkpoints/pieces": ("sharded_inputs",),
    "checkpoints/plain_module": (*_DIALECTS, "inputs", "leftovers"),
    "checkpoints/ranked_scores": _RULES,
    "checkpoints/reading": (*_RULES, "names", "inputs", "encode"),
    "checkpoints/recorded": _RULES,
    "checkpoints/score_rule": _RULES,
    "checkpoints/score_rules": _RULES,
    "checkpoints/scored_weights": _RULES,
    "checkpoints/sources": ("sharded_inputs", "mask_entries"),
    "checkpoints/supsup": _RULES,
    "checkpoints/torch_distributed": ("sharded_inputs",),
    "checkpoints/torch_prune": _DIALECTS,
    "checkpoints/unmasked": _RULES,
    "checkpoints/wrappers": _NAMES,
    "checkpoints/zero_masks": _RULES,
    "cli/mask_options": _RULES,
    "cli/comparing": ("memory", "origin", "cli"),
    "cli/user_code": ("user_code",),
    "masking/lazy_mapping": ("memory", "score_rules"),
    "masking/one_cut": ("parts", "score_rules"),
    "packed/devices": ("triton", "device", "packed_layers"),
    "packed/masks_on_device": ("triton", "device"),
    "packed/triton_kernels": ("triton",),
    "packed/triton_rans": ("triton",),
    "remote/downloads": ("remote",),
    "remote/stores": ("remote",),
    "remote/urls": ("remote",),
    "remote/web": ("remote",),
    "assembling": _ENCODING,
    "encoding": _ENCODING,
    "options": _ENCODING,
    "proof": ("proof", "encode", "shorter_floats", "architectures"),
    "sharding": _SHARDING,
    "mapped_masks": ("memory",),
    "spool": ("spool", "pipes"),
    "sizes": _SHARDING,
    "tensors": ("dense", "encode"),
}


Row = tuple[str, ...]
"""Of the CSV, in the order of its columns."""

Key = tuple[str, str, str]
"""What tells a mutant from others, also when lines move: module, function, change."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Files of tests to run, and what to change before.

    Attributes:
        tests: their names, in order.
        seconds: how long they may take.
        module: what the mutant is of.
        mutant: None for the code as it is.
    """

    tests: tuple[str, ...]
    seconds: float
    module: str = ""
    mutant: Mutant | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A trial under way: its number, its copy of the repository, its start, where it reports."""

    number: int
    tree: Path
    start: float
    pipe: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended: "killed", "survived" or "timeout"; the first test that failed."""

    number: int
    verdict: str
    killer: str
    seconds: float


def sample(count: int, seed: int) -> dict[str, list[Mutant]]:
    """About `count` mutants of all modules; each has as many as its lines are of all lines.

    The order in which they are drawn goes by a hash of each, so that a small change to the code
    leaves most of the sample as it was.
    """
    every = {module: mutants_of(source_of(ROOT, module).read_text("utf-8")) for module in TESTS}
    lines = {module: len({m.line for m in found}) for module, found in every.items()}
    sampled = {}
    for module, found in every.items():
        wanted = -(-count * lines[module] // sum(lines.values()))
        found.sort(key=lambda m: blake2b(f"{seed} {module} {m.scope} {m.change}".encode()).digest())
        turns: Counter[int] = Counter()  # the first mutant of every line, then all the second ones
        order = []
        for mutant in found:
            turns[mutant.line] += 1
            order.append((turns[mutant.line], len(order)))
        first = [found[number] for _, number in sorted(order)[:wanted]]
        sampled[module] = sorted(first, key=lambda mutant: mutant.line)
    return sampled


def source_of(tree: Path, module: str) -> Path:
    return tree / "pemncodec" / f"{module}.py"


class Bench:
    """Copies of the repository, in which trials run at the same time."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.free = [folder / f"copy{job}" / "repository" for job in range(jobs)]
        self.mtimes = itertools.count(10**9)  # compiled files go by these
        for tree in self.free:
            ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "results")
            shutil.copytree(ROOT, tree, ignore=ignored)
            if (ROOT.parent / "shared").is_dir():
                (tree.parent / "shared").symlink_to(ROOT.parent / "shared")

    def outcomes(self, trials: list[Trial]) -> Iterator[Outcome]:
        """Runs all trials; the outcome of each as it ends."""
        waiting = list(enumerate(trials))[::-1]
        running: dict[int, Running] = {}
        while waiting or running:
            while waiting and self.free:
                number, trial = waiting.pop()
                pid, started = self._start(number, trial)
                running[pid] = started
            for pid, started in list(running.items()):
                outcome = self._outcome(pid, started, trials[started.number])
                if outcome is not None:
                    del running[pid]
                    yield outcome
            time.sleep(0.02)

    def _start(self, number: int, trial: Trial) -> tuple[int, Running]:
        tree = self.free.pop()
        if trial.mutant is not None:
            self._write(tree, trial.module, trial.mutant.source())
        reading, writing = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            os.setsid()
            ask(tree, trial, writing)
        os.close(writing)
        return pid, Running(number, tree, time.monotonic(), reading)

    def _outcome(self, pid: int, started: Running, trial: Trial) -> Outcome | None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        seconds = time.monotonic() - started.start
        if not ended and seconds < trial.seconds:
            return None
        if not ended:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        with open(started.pipe, encoding="utf-8", errors="replace") as pipe:  # noqa: PTH123
            killer = pipe.read()
        if trial.mutant is not None:
            self._write(started.tree, trial.module, trial.mutant.text)
        self.free.append(started.tree)
        verdict = "timeout" if not ended else "survived" if status == 0 else "killed"
        return Outcome(started.number, verdict, killer, seconds)

    def _write(self, tree: Path, module: str, text: str) -> None:
        path = source_of(tree, module)
        path.write_text(text, "utf-8")
        mtime = next(self.mtimes)
        os.utime(path, (mtime, mtime))


def ask(tree: Path, trial: Trial, pipe: int) -> None:
    """Runs a trial in this process, which is a fork, and ends it."""
    import hypothesis
    import pytest

    class First:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                os.write(pipe, report.nodeid.encode()[:1000])

        pytest_collectreport = pytest_runtest_logreport

    log = os.open(tree.parent / "log", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for stream in (0, 1, 2):
        os.dup2(log, stream)
    resource.setrlimit(resource.RLIMIT_CPU, (int(trial.seconds), int(trial.seconds)))
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path[:] = [
        str(tree),
        *(p for p in sys.path if not Path(p).is_relative_to(ROOT) or ".venv" in p),
    ]
    # The first counterexample is enough: no search for a smaller one.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    health = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile(
        "mutants", deadline=None, derandomize=True, phases=phases, suppress_health_check=health
    )
    already = "-Wignore:Module already imported:pytest.PytestAssertRewriteWarning"
    options = [already, "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
    options += [f"--deselect=tests/{test}" for test in _LEFT_OUT]
    code = 1
    try:
        for name in trial.tests:  # a file at a time, since collecting them takes a while too
            file, colons, function = name.partition("::")
            path = f"tests/test_{file}.py{colons}{function}"
            code = int(pytest.main([*options, path], plugins=[First()]))
            if code:
                break
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def seconds_of(names: Iterable[str], bench: Bench) -> dict[str, float]:
    """How long files of tests take without a mutant, of which none may fail."""
    files, seconds = list(names), {}
    for ended in bench.outcomes([Trial((name,), 600) for name in files]):
        if ended.verdict != "survived":
            raise SystemExit(f"tests fail without a mutant: {ended.killer or files[ended.number]}")
        seconds[files[ended.number]] = ended.seconds
        print(f"test_{files[ended.number]}: {ended.seconds:.1f} s", flush=True)
    return seconds


def run(chosen: list[tuple[str, Mutant]], bench: Bench, limit: float | None) -> list[Row]:
    """A row of the CSV for each mutant; progress goes to the standard output."""
    asked = dict.fromkeys(name for module, _ in chosen for name in TESTS[module])
    taken = seconds_of(asked, bench) if limit is None else {}
    trials = []
    for module, mutant in chosen:
        seconds = limit or 20 + 5 * sum(taken[name] for name in TESTS[module])
        trials.append(Trial(TESTS[module], seconds, module, mutant))
    rows: dict[int, Row] = {}
    for ended in bench.outcomes(trials):
        module, mutant = chosen[ended.number]
        row = (module, str(mutant.line), mutant.scope, mutant.change, ended.verdict, "")
        rows[ended.number] = row
        print(f"{len(rows)}/{len(chosen)}", *row, ended.killer, sep=" | ", flush=True)
    return [rows[number] for number in sorted(rows)]


def preload() -> None:
    """Imports what takes long, so that forks need not; nothing of the package."""
    for name in _PRELOADED:
        importlib.import_module(name)
    assert not any(name.partition(".")[0] == "pemncodec" for name in sys.modules)


def reasons() -> dict[Key, str]:
    """Why mutants are no others than the code."""
    with EQUIVALENT.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return {(row["module"], row["in"], row["change"]): row["reason"] for row in rows}


def read_results() -> dict[Key, Row]:
    if not RESULTS.exists():
        return {}
    with RESULTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[2:]
    return {(row[0], row[2], row[3]): tuple(row) for row in rows}


def write_results(rows: Iterable[Row], seed: int) -> None:
    from provenance import provenance  # imports the package, which the forks must do anew

    source = provenance(["torch", "hypothesis", "pytest"])
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# {source}; seed {seed}\n")
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=500, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--list", action="store_true", help="show the sample, test nothing")
    parser.add_argument(
        "--rest",
        action="store_true",
        help="only those that survived without a reason, or were not tested",
    )
    parser.add_argument(
        "--limit", type=float, help="seconds for a mutant; else five times what its tests take"
    )
    parser.add_argument("only", nargs="*", metavar="part", help="of the names of modules")
    options = parser.parse_args()
    sampled = {
        (module, mutant.scope, mutant.change): (module, mutant)
        for module, mutants in sample(options.count, options.seed).items()
        for mutant in mutants
    }
    known, explained = read_results(), reasons()
    chosen = [
        (module, mutant)
        for key, (module, mutant) in sampled.items()
        if not options.only or any(part in module for part in options.only)
        if not options.rest
        or (key not in explained and (key not in known or known[key][4] == "survived"))
    ]
    if options.list:
        for module, mutant in chosen:
            print(module, mutant.line, mutant.scope, mutant.change, sep=" | ")
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork
    preload()
    with tempfile.TemporaryDirectory() as folder:
        tested = run(chosen, Bench(Path(folder), options.jobs), options.limit)
    known = read_results() | {(row[0], row[2], row[3]): row for row in tested}
    known |= {key: (*row[:5], explained.get(key, "")) for key, row in known.items()}
    rows = [known[key] for key in sampled if key in known]
    tally = Counter(row[4] for row in rows)
    unexplained = [row for row in rows if row[4] == "survived" and not row[5]]
    summary = ", ".join(f"{number} {verdict}" for verdict, number in sorted(tally.items()))
    print(f"{len(rows)} mutants: {summary}; {len(unexplained)} survived without a reason")
    write_results(rows, options.seed)
    sys.exit(1 if unexplained else 0)


if __name__ == "__main__":
    main()
