"""Shards that several processes have made → one model.

Each process has a partial folder of its own. When all are done, one of them brings the shards
together and gives them their names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pemncodec.errors import EncodeArgumentError
from pemncodec.format.index import Shard, ShardIndex, encode_index, index_name
from pemncodec.format.journal import FinishedShard, Journal
from pemncodec.format.leftovers import (
    check_same,
    discard_leftover,
    partial_folder,
    read_journal,
)
from pemncodec.format.partial import finished_path, open_partial
from pemncodec.format.places import Location
from pemncodec.format.sections import ReopenedSections
from pemncodec.format.sharded_sections import ShardedSections
from pemncodec.limits import UNLIMITED

_NONE: Final = FinishedShard("", 0, 0)  # where a shard of that name is not known


def part_target(target: Path, rank: int | str, count: int | str) -> Path:
    """As what the shards of a process are known until those of all are there.

    Args:
        target: NAME.pemn, as which the model will be known.
        rank: the process.
        count: of all processes.
    """
    return target.with_name(f"{target.stem}.{rank}-of-{count}{target.suffix}")


def check_leftover_parts(target: Path, count: int, *, resume: bool) -> None:
    """Refuses to begin where processes were interrupted, unless as many continue.

    Raises:
        EncodeArgumentError: says what to do.
    """
    counts = _counts_of_processes(target)
    if read_journal(target) is None and not counts:
        return
    counts = counts or ["1"]
    interrupted = _interrupted(target, counts)
    if not resume:
        raise EncodeArgumentError(f"{interrupted}: --resume continues it; -f starts over")
    if counts != [str(count)]:
        raise EncodeArgumentError(
            f"{interrupted}: start as many to --resume it; -f without --resume starts over"
        )


def check_no_parts(target: Path) -> None:
    """Refuses to encode in one process where several were interrupted.

    Raises:
        EncodeArgumentError: says what to do.
    """
    if counts := _counts_of_processes(target):
        folders = ", ".join(partial_folder(part_target(target, "*", n)).name for n in counts)
        raise EncodeArgumentError(
            f"{_interrupted(target, counts)}: as many continue it, by torchrun with --resume; "
            f"to start over, delete {folders} or give -f without --resume"
        )


def is_interrupted(target: Location) -> bool:
    """Whether there is something to resume."""
    if read_journal(target) is not None:
        return True
    return isinstance(target, Path) and bool(_counts_of_processes(target))


def discard_leftover_parts(target: Location) -> bool:
    """Deletes what interrupted processes have left; whether there was anything.

    Raises:
        EncodeArgumentError: one is still at it.
    """
    if isinstance(target, str):  # several processes share a folder of this machine
        return discard_leftover(target)
    found = [discard_leftover(_target_of(folder)) for folder in _leftover_parts(target)]
    return discard_leftover(target) or any(found)


def named_shards(
    target: Path,
    made_with: Mapping[str, str],
    plan: Mapping[str, str],
    weight_map: Mapping[str, str],
    manifest: Mapping[str, Any] | None,
) -> ShardedSections:
    """Shards that are getting their names, all or those of a process, wherever each of them is.

    Args:
        target: NAME.pemn, as which the model is known.
        made_with: what is asked for now, as `Journal` has it.
        plan: likewise: names of shards, and the digest of what each is made of.
        weight_map: of their tensors, as `ShardIndex` has it.
        manifest: likewise.

    Raises:
        EncodeArgumentError: they were made of something else, or are missing or damaged.
    """
    journal = read_journal(target) or Journal({})
    known = {name: journal.shards.get(name, _NONE) for name in plan}
    check_same(target, replace(journal, shards=known), made_with, plan)
    paths = {name: finished_path(target, name, shard) for name, shard in known.items()}
    shards = {name: Shard(shard.size, shard.front_crc) for name, shard in known.items()}

    def open_shard(name: str, _: Shard) -> ReopenedSections:
        return ReopenedSections(paths[name], UNLIMITED)

    index = encode_index(ShardIndex(shards, weight_map, manifest))
    return ShardedSections(index, open_shard, paths.__contains__, UNLIMITED)


def publish_parts(target: Path, parts: Sequence[Path], weight_map: Mapping[str, str]) -> None:
    """Give the shards of all processes their names, and write their index.

    Args:
        target: NAME.pemn, as which the model is known.
        parts: of each process that has shards, `part_target`; all are finished and proven.
        weight_map: as `ShardIndex` has it.

    Raises:
        OSError: that cannot be done; all is kept.
    """
    journals = {part: read_journal(part) for part in parts}
    known = {part: journal for part, journal in journals.items() if journal is not None}
    shards = {name: s.contents for journal in known.values() for name, s in journal.shards.items()}
    made_with = next(iter(known.values())).made_with
    with open_partial(target, made_with, shards, resume=True) as partial:
        for part, journal in known.items():
            for name in journal.shards:
                partial.take(name, partial_folder(part) / name)
        partial.add_index(weight_map, None)
        partial.publish()
    for part in parts:
        discard_leftover(part)


def continue_publishing(target: Path) -> None:
    """Give shards their names, which `publish_parts` had begun with.

    What `named_shards` gives is compared before.

    Raises:
        OSError: as there.
    """
    journal = read_journal(target)
    assert journal is not None
    shards = {name: shard.contents for name, shard in journal.shards.items()}
    with open_partial(target, journal.made_with, shards, resume=True) as partial:
        partial.publish()
    discard_leftover_parts(target)


def index_of_names(target: Path) -> Path:
    """The index of shards that are getting their names, which may have got its own."""
    path = partial_folder(target) / index_name(target.name)
    return path if path.exists() else target.with_name(path.name)


def _leftover_parts(target: Path) -> dict[Path, str]:
    """Partial folders of processes, and of how many each is one."""
    name = re.escape(partial_folder(part_target(target, "?", "?")).name)
    own = re.compile(name.replace(r"\?", "([0-9]+)"))
    found = ((path, own.fullmatch(path.name)) for path in sorted(target.parent.glob(".*.partial")))
    return {path: match[2] for path, match in found if match}


def _counts_of_processes(target: Path) -> list[str]:
    """How many processes have made what is left of them."""
    parts = _leftover_parts(target).items()
    return sorted(
        {count for folder, count in parts if read_journal(_target_of(folder)) is not None}
    )


def _interrupted(target: Path, counts: Collection[str]) -> str:
    by = "one process" if counts == ["1"] else f"{' and by '.join(counts)} processes"
    return f"an encoding to {target.name} by {by} was interrupted, and its finished shards are kept"


def _target_of(folder: Path) -> Path:
    """Of a partial folder."""
    return folder.with_name(folder.name.removeprefix(".").removesuffix(".partial"))
