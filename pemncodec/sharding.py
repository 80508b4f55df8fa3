"""Contents of several files → shards and their index, proven before any of them gets its name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from pemncodec import __version__
from pemncodec.coders.masks import Preset, tries_context
from pemncodec.contents import AliasTensor, Contents, MaskedTensor, numel
from pemncodec.errors import EncodeArgumentError, EncodeError
from pemncodec.format.columns import is_file_name
from pemncodec.format.digests import digest_of
from pemncodec.format.index import SUFFIX, shard_names
from pemncodec.format.journal import ARCHITECTURE, ORDER, contents_digest
from pemncodec.format.leftovers import check_leftover, check_nothing_to_continue, is_naming
from pemncodec.format.partial import PartialShards, open_partial
from pemncodec.format.partition import partition, with_shared_prototypes
from pemncodec.format.parts import check_no_parts, named_shards, part_target
from pemncodec.format.places import Location, name_of
from pemncodec.format.sections import SectionSource
from pemncodec.format.sharded_sections import ShardedSections
from pemncodec.format.writer import encode_contents
from pemncodec.options import EncodeOptions
from pemncodec.peers import Peers
from pemncodec.proof import Report
from pemncodec.remote.urls import is_url
from pemncodec.sizes import size_as_text
from pemncodec.spool import Spool

_MOST: Final = 1 << 62  # bytes
Step = Callable[[str, float | None], None]
Target = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, eq=False)
class ShardPlan:
    """A model as several files.

    Attributes:
        target: a path or URL, NAME.pemn.
        whole: likewise, of the model of which this is a part; else the same.
        parts: what each file will hold, by its name; forgotten when it is written.
        digests: of each of `parts`.
        weight_map: as `ShardIndex` has it.
        manifest: of the whole model.
        preset: for each file.
        made_with: as `Journal` has it.
    """

    target: Location
    whole: Location
    parts: dict[str, Contents]
    digests: Mapping[str, str]
    weight_map: Mapping[str, str]
    manifest: Mapping[str, Any] | None
    preset: Preset
    made_with: Mapping[str, str]


def check_shard_target(target: Target | BinaryIO, options: EncodeOptions) -> None:
    """Refuses what shards cannot be written to, or what an interrupted encoding has left.

    That is refused for a single file, too: the shards would get the same name when continued.

    Raises:
        EncodeArgumentError: says what to do.
    """
    if isinstance(target, str | os.PathLike):
        location = _location(target)
        if name_of(location).endswith(SUFFIX):
            check_leftover(location, resume=options.resume)
            if options.peers is None and isinstance(location, Path):
                check_no_parts(location)
    if options.shard_bytes is None:
        return
    if not isinstance(target, str | os.PathLike):
        raise EncodeArgumentError(
            "--shard-size (shard_size=…) writes several files: name one that ends in .pemn (-o)"
        )
    name = name_of(_location(target))
    if not name.endswith(SUFFIX) or not is_file_name(shard_names(name, 1)[0]):
        raise EncodeArgumentError(
            "--shard-size (shard_size=…): shards are called after the output, whose name must end "
            f"in .pemn, not begin with a point and not be long, not {name!r:.80}"
        )


def plan_shards(
    contents: Contents, target: Target | BinaryIO, options: EncodeOptions
) -> ShardPlan | None:
    """The shards of a model; None where one file is asked for, or has room for all of it.

    Raises:
        EncodeArgumentError: an interrupted encoding, which is to be continued, has several.
    """
    peers = options.peers
    if not isinstance(target, str | os.PathLike) or (options.shard_bytes is None and peers is None):
        return None
    size = _MOST if options.shard_bytes is None else options.shard_bytes
    parts = partition(contents, size, shared=options.share_prototypes)
    masked = sum(t.mask.size for t in contents.tensors if isinstance(t, MaskedTensor))
    before, count = 0, len(parts)
    made_with = {
        "pemncodec": __version__,
        "--shard-size": "none" if options.shard_bytes is None else size_as_text(size),
        "--preset": options.preset,
        ARCHITECTURE: digest_of(contents.manifest),
    }
    if peers is None:
        made_with[ORDER] = digest_of([tensor.name for tensor in contents.tensors])
    else:
        said = peers.gather([peers.rank, len(parts), masked])
        before = sum(shards for rank, shards, _ in said if rank < peers.rank)
        count = sum(shards for _, shards, _ in said)
        masked = sum(weights for _, _, weights in said)
    if count == 1:
        check_nothing_to_continue(_location(target))
        return None
    whole = location = _location(target)
    names = shard_names(name_of(whole), count)[before : before + len(parts)]
    if peers is not None:
        assert isinstance(whole, Path)  # in a folder that all share
        location = part_target(whole, peers.rank, peers.count)
    if options.share_prototypes:
        parts = with_shared_prototypes(parts, names)
    files = {
        tensor.name: name
        for name, part in zip(names, parts, strict=True)
        for tensor in part.tensors
    }
    return ShardPlan(
        location,
        whole,
        dict(zip(names, parts, strict=True)),
        {name: contents_digest(part) for name, part in zip(names, parts, strict=True)},
        {tensor.name: files[tensor.name] for tensor in contents.tensors},
        contents.manifest,
        # The choice is for the model, however many files it becomes.
        options.preset if tries_context(options.preset, masked) else "fast",
        made_with,
    )


def encode_shards(
    plan: ShardPlan,
    prove: Callable[[Path | SectionSource], Report],
    step: Callable[[str, float | None], None],
    *,
    resume: bool,
) -> Report:
    """Write a model as several files and an index.

    Args:
        plan: what to write.
        prove: decodes a model, by the path of its index or from its sections, and compares it.
        step: called with what is under way, and the share of it that is done.
        resume: whether to continue where an interrupted encoding has stopped.

    Raises:
        EncodeArgumentError: what such an encoding has left is of something else, or is not to be
            continued.
        EncodeError: the data cannot be encoded, or as `prove` raises it; nothing is kept.
        OSError: files cannot be written; finished shards are kept.
    """
    with (
        open_partial(plan.target, plan.made_with, plan.digests, resume=resume) as partial,
        _kept_or_discarded(partial, plan),
    ):
        if partial.proven and isinstance(plan.target, Path):
            kept = len(plan.digests)
            report = prove(_named(plan, plan.target))
        else:
            kept = _add_shards(partial, plan, step)
            partial.add_index(plan.weight_map, plan.manifest)
            report = prove(partial.index)
        step("writing", None)
        partial.publish()
    return _with_kept(report, plan, kept)


def encode_part(
    plan: ShardPlan,
    prove: Callable[[Path | SectionSource], Report],
    step: Step,
    peers: Peers,
    *,
    resume: bool,
) -> Report:
    """Write the shards of a part of a model, which get their names with all others.

    Until then they are in the partial folder of `plan.target`. Shards that are getting their names
    are only proven again. Arguments and errors are those of `encode_shards`, but for `peers`, who
    write the other parts.
    """
    assert isinstance(plan.whole, Path)  # in a folder that all share
    if resume and is_naming(plan.whole):
        return _with_kept(prove(_named(plan, plan.whole)), plan, len(plan.digests))
    with (
        open_partial(plan.target, plan.made_with, plan.digests, resume=resume) as partial,
        _kept_or_discarded(partial, plan),
    ):
        peers.gather(None)  # what one cannot continue none does
        kept = _add_shards(partial, plan, step)
        partial.add_index(plan.weight_map, plan.manifest)
        return _with_kept(prove(partial.index), plan, kept)


def _named(plan: ShardPlan, whole: Path) -> ShardedSections:
    """The shards of a plan, when those of the whole model are getting their names."""
    return named_shards(whole, plan.made_with, plan.digests, plan.weight_map, plan.manifest)


def _with_kept(report: Report, plan: ShardPlan, kept: int) -> Report:
    if not kept:
        return report
    note = f"{kept} of {len(plan.digests)} shards were there from an interrupted encoding"
    return replace(report, notes=(*report.notes, note))


def _location(target: Target) -> Location:
    return target if is_url(target) else Path(target).absolute()


@contextlib.contextmanager
def _kept_or_discarded(partial: PartialShards, plan: ShardPlan) -> Iterator[None]:
    """After an error, shards that may be good are kept, and the error says how many."""
    try:
        yield
    except EncodeArgumentError:
        raise
    except EncodeError:
        if partial.finished and not partial.proven:
            partial.discard()
        raise
    except BaseException as error:
        if partial.finished:
            count = len(plan.digests)
            error.add_note(f"{partial.finished} of {count} shards are kept for --resume")
        raise


def _add_shards(
    partial: PartialShards, plan: ShardPlan, step: Callable[[str, float | None], None]
) -> int:
    """Encodes the shards that are not finished, one after the other; how many were."""
    values = {name: _values(part) for name, part in plan.parts.items()}
    whole, done, kept = max(sum(values.values()), 1), 0, 0
    for name in plan.digests:
        part = plan.parts.pop(name)
        if partial.has(name):
            kept += 1
        else:

            def progress(share: float, before: int = done, own: int = values[name]) -> None:
                step("coding", (before + share * own) / whole)

            with Spool(partial.folder) as spool:
                partial.add(name, encode_contents(part, progress, plan.preset, spool))
        done += values[name]
    return kept


def _values(part: Contents) -> int:
    return sum(numel(t.shape) for t in part.tensors if not isinstance(t, AliasTensor))
