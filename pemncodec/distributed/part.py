"""A process's tensors of a network → its shards; the shards of all → the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from pemncodec.checkpoints.mask_names import masks_by_weight
from pemncodec.checkpoints.names import module_of
from pemncodec.distributed.exchange import Exchange, telling
from pemncodec.encoding import Progress, encode_with
from pemncodec.errors import EncodeError
from pemncodec.format.index import ShardIndex, decode_index, index_name
from pemncodec.format.leftovers import is_naming, partial_folder
from pemncodec.format.parts import (
    check_leftover_parts,
    continue_publishing,
    discard_leftover_parts,
    index_of_names,
    part_target,
    publish_parts,
)
from pemncodec.limits import UNLIMITED
from pemncodec.options import EncodeOptions


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a process encodes.

    Attributes:
        names: of all entries of the network, plain, in order.
        tensors: its own entries by name, in that order; none where others have them all.
    """

    names: Sequence[str]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Written:
    """What a process has written.

    Attributes:
        rank: the process.
        file_of: by name of each of its tensors, in order, the file that has it.
        rules: how the masks of all were found, as `Report` has them.
        notes: what else one should know of its tensors, likewise.
    """

    rank: int
    file_of: Mapping[str, str]
    rules: tuple[str, ...]
    notes: tuple[str, ...]


def prepare(target: Path, exchange: Exchange, *, resume: bool, force: bool) -> None:
    """Before processes encode: what they cannot write to is refused, and what is there is cleared.

    Args:
        target: NAME.pemn, as which the model will be known.
        exchange: between the processes.
        resume: whether to continue what was interrupted.
        force: whether to delete it otherwise.

    Raises:
        PeerError: another process has failed.
        EncodeArgumentError: shards are kept of an encoding that was interrupted.
        OSError: from the file system.
    """
    with telling(exchange):
        if exchange.rank == 0:
            if force and not resume:
                discard_leftover_parts(target)
            check_leftover_parts(target, exchange.count, resume=resume)
        exchange.gather(None)


def encode_part(
    part: Part,
    target: Path,
    options: EncodeOptions,
    exchange: Exchange,
    progress: Progress,
    *,
    resume: bool = False,
) -> list[Written]:
    """Encode some tensors of a network, while other processes encode the others.

    Args:
        part: what to encode.
        target: NAME.pemn, as which the model will be known.
        options: the same for all processes, but for `peers` and `resume`.
        exchange: with the others.
        progress: called with the step that is under way, and its share done.
        resume: whether to keep the shards of this process that are finished.

    Returns:
        What all have written, for `publish`.

    Raises:
        PeerError: another process has failed.
        EncodeError: as `encode` raises it.
        OSError: a shard cannot be written; finished ones are kept.
    """
    with telling(exchange):
        masks = _masks_of(part, options)
        if not part.tensors:
            return exchange.attend()
        peers = exchange.knowing(part.names)
        own = replace(options, masks=masks, peers=peers, resume=resume)
        report = encode_with(own, part.tensors, target, progress)
        file_of = {tensor.name: target.name for tensor in report.info.tensors}
        if report.info.shards:
            known = _index(target, exchange).weight_map
            file_of = {name: known[name] for name in file_of}
        return exchange.finish(Written(exchange.rank, file_of, report.rules, report.notes))


def publish(target: Path, names: Sequence[str], written: Sequence[Written], count: int) -> Path:
    """Give the shards of all processes their names, and write their index.

    Args:
        target: NAME.pemn, as which the model is known.
        names: of all entries of the network, plain, in order.
        written: what `encode_part` has returned.
        count: of all processes.

    Returns:
        The index, or the one file.

    Raises:
        OSError: that cannot be done; all is kept.
    """
    file_of = {name: file for own in written for name, file in own.file_of.items()}
    if target.name in file_of.values():  # written at once
        return target
    if is_naming(target):
        continue_publishing(target)
        return target.with_name(index_name(target.name))
    order = in_order([list(own.file_of) for own in written], names)
    parts = [part_target(target, own.rank, count) for own in written]
    publish_parts(target, parts, {name: file_of[name] for name in order})
    return target.with_name(index_name(target.name))


def in_order(parts: Sequence[Sequence[str]], names: Sequence[str]) -> list[str]:
    """The names of all parts in the order of the network, each part's own order kept.

    Args:
        parts: names of tensors.
        names: of the entries that they were read from; a mask's weight may have a name of its own.
    """
    places = {name: place for place, name in enumerate(names)}
    kept = {name for part in parts for name in part}
    modules: dict[str, int] = {}
    for name, place in places.items():
        if name not in kept:
            modules.setdefault(module_of(name), place)
    found: list[tuple[int, int, int, str]] = []
    for number, part in enumerate(parts):
        place = 0
        for at, name in enumerate(part):
            place = max(place, places.get(name, modules.get(module_of(name), place)))
            found.append((place, number, at, name))
    return [name for *_, name in sorted(found)]


def _index(target: Path, exchange: Exchange) -> ShardIndex:
    """Of the shards of a process, or of all, where these are getting their names."""
    part = part_target(target, exchange.rank, exchange.count)
    path = partial_folder(part) / index_name(part.name)
    if is_naming(target):
        path = index_of_names(target)
    return decode_index(path.read_bytes(), UNLIMITED)


def _masks_of(part: Part, options: EncodeOptions) -> dict[str, Tensor]:
    """Those of the given masks that are for weights of a part.

    Raises:
        EncodeError: one is for no weight of the network.
    """
    plain = {name: name for name in part.names}
    # A mask may be called as a weight that an entry of another name stands for.
    found = masks_by_weight(options.masks or {}, plain, part.names)
    modules = {module_of(name) for name in part.names}
    for name in found:
        if name not in plain and module_of(name) not in modules:
            raise EncodeError(f"masks: there is no tensor {name}")
    own = {module_of(name) for name in part.tensors}
    return {
        name: mask
        for name, mask in found.items()
        if (name in part.tensors if name in plain else module_of(name) in own)
    }
