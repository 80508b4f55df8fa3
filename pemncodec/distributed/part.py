"""A process's tensors of a network → its shard; the shards of all → the files of the model."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from pemncodec.checkpoints.mask_names import masks_by_weight
from pemncodec.checkpoints.names import module_of
from pemncodec.distributed.exchange import Exchange, telling
from pemncodec.encoding import Progress, encode_with
from pemncodec.errors import EncodeError
from pemncodec.format.atomic import write_file
from pemncodec.format.container import decode_container
from pemncodec.format.index import Shard, ShardIndex, encode_index, index_name, shard_names
from pemncodec.limits import UNLIMITED
from pemncodec.options import EncodeOptions


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a process encodes.

    Attributes:
        names: of all entries of the network, plain, in order.
        tensors: its own entries by name, in that order; none where others have them all.
        rank: which process it is.
    """

    names: Sequence[str]
    tensors: Mapping[str, Tensor]
    rank: int


@dataclass(frozen=True, slots=True)
class Written:
    """The shard of a process.

    Attributes:
        rank: the process.
        tensors: names, in order.
        rules: how its masks were found, as `Report` has them.
        notes: likewise.
    """

    rank: int
    tensors: tuple[str, ...]
    rules: tuple[str, ...]
    notes: tuple[str, ...]


def encode_part(
    part: Part, target: Path, options: EncodeOptions, exchange: Exchange, progress: Progress
) -> list[Written]:
    """Encode some tensors of a network, while other processes encode the others.

    Args:
        part: what to encode.
        target: NAME.pemn, as which the model will be known.
        options: the same for all processes, but for `peers`.
        exchange: with the others.
        progress: called with the step that is under way, and its share done.

    Returns:
        What all have written, for `publish`.

    Raises:
        PeerError: another process has failed.
        EncodeError: as `encode` raises it.
        OSError: the shard cannot be written.
    """
    with _gone_after_errors(_shard(target, part.rank)), telling(exchange):
        masks = _masks_of(part, options)
        shards_folder(target).mkdir(exist_ok=True)
        if not part.tensors:
            return exchange.attend()
        own = replace(options, masks=masks, peers=exchange)
        report = encode_with(own, part.tensors, _shard(target, part.rank), progress)
        names = tuple(tensor.name for tensor in report.info.tensors)
        return exchange.finish(Written(part.rank, names, report.rules, report.notes))


def publish(target: Path, names: Sequence[str], written: Sequence[Written]) -> list[Path]:
    """Give the shards of all processes their names, and write their index last.

    Args:
        target: NAME.pemn, as which the model is known.
        names: of all entries of the network, plain, in order.
        written: what `encode_part` has returned.

    Returns:
        The files of the model: its shards, or the only one.
    """
    folder = shards_folder(target)
    index = target.with_name(index_name(target.name))
    files = [target.name] if len(written) == 1 else shard_names(target.name, len(written))
    index.unlink(missing_ok=True)
    shards = {}
    for file, own in zip(files, written, strict=True):
        shards[file] = _read_shard(_shard(target, own.rank))
        _shard(target, own.rank).replace(target.with_name(file))
    if len(written) > 1:
        file_of = {n: file for file, own in zip(files, written, strict=True) for n in own.tensors}
        order = in_order([own.tensors for own in written], names)
        weight_map = {name: file_of[name] for name in order}
        write_file([encode_index(ShardIndex(shards, weight_map))], index)
    shutil.rmtree(folder)
    return [target.with_name(file) for file in files]


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


def shards_folder(target: Path) -> Path:
    """Where shards are until all of them are there."""
    return target.with_name(f".{target.name}.ranks")


def _shard(target: Path, rank: int) -> Path:
    return shards_folder(target) / f"rank-{rank}.pemn"


@contextlib.contextmanager
def _gone_after_errors(shard: Path) -> Iterator[None]:
    """A shard without others is of no use; the last process also removes their folder."""
    try:
        yield
    except BaseException:
        shard.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            shard.parent.rmdir()
        raise


def _read_shard(path: Path) -> Shard:
    with path.open("rb") as stream:
        container = decode_container(stream, UNLIMITED)
    return Shard(container.file_size, container.crc)


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
