"""The sections of a model in shards, in one row, each read from the file that has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Final, NoReturn

from pemncodec.coders.canonical_json import encode_json
from pemncodec.coders.zstd import encode_literals
from pemncodec.errors import LimitError, ShardError
from pemncodec.format.container import Container, SectionEntry
from pemncodec.format.index import Shard, decode_index
from pemncodec.format.joining import join_sections
from pemncodec.format.merging import check_shard, merge_headers, names_by_file
from pemncodec.format.sections import Place, SectionSource, in_file
from pemncodec.limits import Limits
from pemncodec.spool import Spool

_SHOWN: Final = 10  # names of missing files

OpenShard = Callable[[str, Shard], SectionSource]
"""Opens a file of the index's folder; raises FileNotFoundError where there is none."""

HasShard = Callable[[str], bool]
"""Whether there is such a file."""


class ShardedSections:
    """All shards of a model as if they were one file.

    Not safe for use by several threads at once.
    """

    def __init__(
        self,
        data: bytes,
        open_shard: OpenShard,
        has_shard: HasShard,
        limits: Limits,
        *,
        threads: int = 1,
        spool: Spool | None = None,
    ) -> None:
        """Reads and checks the front of every shard.

        Args:
            data: of the index.
            open_shard: opens the files that it names.
            has_shard: asked instead where another file is refused already.
            limits: bounds on what all of them may decode to.
            threads: how many are opened at a time.
            spool: what shards keep, closed with this.

        Raises:
            DecodeError: an index or a shard that this reader cannot read.
            ShardError: files are missing, or are not those of the index.
            OSError: from the file system, or from the server.
        """
        self._spool = spool
        self._sources: dict[str, SectionSource] = {}
        try:
            self.index = decode_index(data, limits)
            self._open(open_shard, has_shard, limits, threads)
            headers = {name: source.header for name, source in self._sources.items()}
            merged = merge_headers(self.index, headers, limits)
        except BaseException:
            self.close()
            raise
        self.header = merged.header
        manifest = self.index.manifest
        self._manifest = None if manifest is None else encode_json(manifest)
        self._places = merged.places if manifest is None else (Place(0), *merged.places)
        fronts = sum(source.container.size for source in self._sources.values())
        own = len(data) - len(self._manifest or b"")
        self.container = Container(
            max(source.container.version for source in self._sources.values()),
            b"",
            own + fronts,
            0,
            tuple(self._entries(own + fronts)),
            {name: source.container.file_size for name, source in self._sources.items()},
        )

    def place(self, index: int) -> Place:
        return self._places[index]

    def expect(self, indices: Iterable[int]) -> None:
        by_file: dict[str, list[int]] = {}
        for place in (self._places[index] for index in indices):
            by_file.setdefault(place.file, []).append(place.section)
        for file, sections in by_file.items():
            if file:
                self._sources[file].expect(sections)

    def read(self, index: int) -> bytes:
        place = self._places[index]
        if not place.file:
            assert self._manifest is not None  # which alone is in no shard
            return encode_literals(self._manifest)
        with in_file(place.file):
            return self._sources[place.file].read(place.section)

    def data(self) -> bytes:
        """The bytes of one file that has the same contents."""
        self.expect(range(len(self._places)))
        return join_sections(self.header, [self.read(index) for index in range(len(self._places))])

    def beside(self, name: str) -> NoReturn:
        """Nothing: a shard that takes values from a file that is no shard was refused."""
        raise ShardError("shard", f"{name} is no shard of the index")

    def close(self) -> None:
        for source in self._sources.values():
            source.close()
        if self._spool is not None:
            self._spool.close()

    def _open(
        self, open_shard: OpenShard, has_shard: HasShard, limits: Limits, threads: int
    ) -> None:
        missing: list[str] = []
        errors: dict[str, Exception] = {}
        tensors = names_by_file(self.index)
        totals = _Totals(limits)

        def open_one(name: str) -> None:
            if any(other < name for other in tuple(errors)):
                if not has_shard(name):
                    missing.append(name)
                return
            shard = self.index.shards[name]
            try:
                with in_file(name):
                    self._sources[name] = source = open_shard(name, shard)
                    if source.container.crc != shard.front_crc:
                        raise _another()
                    check_shard(source.header, tensors[name], self.index)
                totals.add(source)
            except FileNotFoundError:
                missing.append(name)
            except Exception as error:
                errors[name] = error

        names = sorted(self.index.shards)
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(open_one, names))
        else:
            for name in names:
                open_one(name)
        self._sources = {name: self._sources[name] for name in names if name in self._sources}
        if missing:
            raise _missing(sorted(missing), len(names))
        if errors:
            raise errors[min(errors)]

    def _entries(self, offset: int) -> Iterator[SectionEntry]:
        """The section table of one file with the same contents."""
        for place in self._places:
            if place.file:
                entry = self._sources[place.file].container.sections[place.section]
                length, crc = entry.length, entry.crc
            else:
                length, crc = len(self._manifest or b""), 0
            yield SectionEntry(offset, length, crc)
            offset += length


_LIMITED: Final = {
    "header_bytes": "header bytes",
    "sections": "sections",
    "tensors": "prototypes",
}
"""What a limit of one file counts in the fronts of all shards."""


class _Totals:
    """What the fronts of all shards have together, so that many of them take no more than one."""

    def __init__(self, limits: Limits) -> None:
        self._lock = Lock()
        self._most: dict[str, int] = {limit: getattr(limits, limit) for limit in _LIMITED}
        self._left = dict(self._most)

    def add(self, source: SectionSource) -> None:
        """Raises LimitError where there are too many."""
        found = {
            "header_bytes": len(source.container.header),
            "sections": len(source.container.sections),
            "tensors": len(source.header.prototypes),
        }
        with self._lock:
            for limit, count in found.items():
                self._left[limit] -= count
                if self._left[limit] < 0:
                    raise LimitError(
                        "limit",
                        f"shards of more than {self._most[limit]:,} {_LIMITED[limit]}: in Python "
                        f"limits=Limits({limit}=…) raises it, if you trust the files",
                    )


def check_shard_size(size: int, shard: Shard) -> None:
    """Raises ShardError where a file has another size than the index says."""
    if size != shard.size:
        raise ShardError(
            "shard",
            f"it has {size:,} bytes and by the index {shard.size:,}: it is cut off, or of another "
            "encoding; take it and the index from one place",
        )


def _another() -> ShardError:
    return ShardError("shard", "it is of another encoding than the index: take both from one place")


def _missing(names: list[str], count: int) -> ShardError:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    verb = "is" if len(names) == 1 else "are"
    return ShardError(
        "shard",
        f"{len(names):,} of {count:,} shards {verb} missing: {shown}{more}; they must be in the "
        "folder of the index",
    )
