"""Reading a .pemn file, with random access to what it holds (spec/pemn.md sections 2 to 4)."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeGuard

import numpy as np
import numpy.typing as npt
from bitarray import bitarray

from pemncodec.architecture.manifest import decode_manifest
from pemncodec.coders import dense, masks
from pemncodec.coders.mixing import Buckets, MixingTensor, buckets_of_slices, value_buckets
from pemncodec.coders.packed import unpack
from pemncodec.contents import (
    CARRIERS,
    Array,
    SeededPrototype,
    numel,
)
from pemncodec.errors import DecodeError
from pemncodec.format.container import (
    SIGNATURE,
    check_file_size,
    check_signature,
    decode_container,
    read_section,
    read_up_to,
)
from pemncodec.format.header import (
    AliasRow,
    ConstantRow,
    DenseRow,
    Header,
    MaskedRow,
    PrototypeRow,
    StoredRow,
    TensorRow,
    decode_header,
)
from pemncodec.format.info import FileInfo, TensorInfo, share_bytes
from pemncodec.limits import Limits
from pemncodec.values.fill import (
    RepeatedValues,
    SeededValues,
    prototype_values,
    scale_values,
    seeded_slice,
    used_values,
)

_HELD_VALUES = 1 << 20  # of a seeded prototype; longer ones are made slice by slice
_JOBS_AHEAD = 2  # for each thread
_SMALL_BYTES = 1 << 20  # of a prototype that is kept for the next question about it

Path_ = str | os.PathLike[str]


class PemnFile:
    """An open file. Decodes what is asked for, and keeps what several tensors share.

    Opening checks signature, header and the file's size; every section is checked when it is
    first touched. Not safe for use by several threads at once.
    """

    def __init__(self, source: Path_ | BinaryIO, limits: Limits | None = None) -> None:
        """Opens a path, or a binary file object, which stays the caller's to close.

        Raises:
            DecodeError: not a file that this reader can read.
            OSError: from the file system.
        """
        self.limits = limits or Limits()
        self._owned = isinstance(source, str | os.PathLike)
        self._stream: BinaryIO = (
            Path(source).open("rb") if isinstance(source, str | os.PathLike) else _seekable(source)  # noqa: SIM115 closed by close()
        )
        try:
            container = decode_container(self._stream, self.limits)
            check_file_size(self._stream, container)
            self._container = container
            self._header = decode_header(container.header, len(container.sections), self.limits)
            self._groups = self._group_bounds()
        except BaseException:
            self.close()
            raise
        self._rows = {row.name: row for row in self._header.tensors}
        self._group_items: dict[int, Array] = {}
        self._prototypes: dict[int, Array] = {}
        self._buckets: dict[int, Buckets] = {}
        self._sharers: dict[int, list[MaskedRow]] = {}
        self._shared_masks: dict[str, npt.NDArray[np.uint8]] = {}
        self._users: dict[int, list[MaskedRow]] = {}
        for row in self._header.tensors:
            if isinstance(row, MaskedRow):
                self._sharers.setdefault(row.section, []).append(row)
                self._users.setdefault(row.fill.prototype, []).append(row)
        self._manifest: dict[str, Any] | None = None

    def close(self) -> None:
        if self._owned:
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def metadata(self) -> dict[str, str]:
        """What the encoder's caller wanted to be kept, text to text."""
        return dict(self._header.metadata)

    @property
    def header(self) -> Header:
        """The rows of the file's header."""
        return self._header

    @property
    def aliases(self) -> dict[str, str]:
        """Names of tied tensors to the name of the tensor that they share."""
        return {row.name: row.target for row in self._header.tensors if isinstance(row, AliasRow)}

    def keys(self) -> list[str]:
        """Names of all tensors in `state_dict` order, aliases included."""
        return [row.name for row in self._header.tensors]

    def masked_keys(self) -> list[str]:
        """Names of the masked tensors."""
        return [row.name for row in self._header.tensors if isinstance(row, MaskedRow)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; KeyError when there is none of that name."""
        return self._placed_row(name).shape

    def dtype(self, name: str) -> str:
        """Name of a tensor's dtype, as torch calls it; KeyError when there is none."""
        return self._placed_row(name).dtype

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The architecture, validated; None in a file without one."""
        if self._manifest is None and "manifest" in self._header.sections:
            index = self._header.sections.index("manifest")
            with _in_section(index):
                self._manifest = decode_manifest(self._section(index), self.limits)
        return self._manifest

    def packed_mask(self, name: str) -> npt.NDArray[np.uint8]:
        """A mask as packed bits, uint8 [ceil(n / 8)], weight i in bit i % 8 of byte i // 8."""
        row = self._masked_row(name)
        if row.name in self._shared_masks:
            return self._shared_masks[row.name]
        decoded = self._section_masks(row.section)()
        if len(decoded) > 1:
            for packed in decoded.values():
                packed.flags.writeable = False
            self._shared_masks |= decoded
        return decoded[row.name]

    def mask(self, name: str) -> npt.NDArray[np.bool_]:
        """A mask as bool [*shape]; KeyError when no masked tensor has that name."""
        row = self._masked_row(name)
        return unpack(self.packed_mask(name), numel(row.shape)).reshape(row.shape)

    def mask_bits(self, name: str) -> bitarray:
        """A mask as a bitarray of n bits in C order."""
        bits = bitarray(buffer=self.packed_mask(name), endian="little").copy()
        del bits[numel(self._masked_row(name).shape) :]
        return bits

    def tensor(self, name: str) -> Array:
        """A tensor's values, masks applied, [*shape], in the carrier dtype of its dtype."""
        row = self._placed_row(name)
        if not isinstance(row, MaskedRow):
            return self._plain_values(row)
        values = np.empty(row.shape, CARRIERS[row.dtype])
        self.read_masked({name: values})
        return values

    def read_masked(
        self, targets: Mapping[str, Array], progress: Callable[[float], None] | None = None
    ) -> None:
        """Masked tensors as `tensor` gives them, each into memory of the caller's.

        A thread for each processor decodes masks and makes values, a block of each at a time.

        Args:
            targets: C-ordered [*shape] in the carrier dtype, by name; unspecified after an error.
            progress: called with the share that is done, 0 to 1.
        """
        by_section: dict[int, list[tuple[MaskedRow, Array]]] = {}
        for name, target in targets.items():
            row = self._masked_row(name)
            by_section.setdefault(row.section, []).append((row, target.reshape(-1)))
        threads = os.cpu_count() or 1
        with ThreadPoolExecutor(threads) as pool:
            running: list[Future[None]] = []
            try:
                # The first jobs run while sections are read for the next; not too far ahead, since
                # jobs hold what they need.
                for fills in by_section.values():
                    if len(running) > _JOBS_AHEAD * threads:
                        running[-_JOBS_AHEAD * threads].result()
                    running += [pool.submit(job) for job in self._fill_jobs(fills)]
                for done, job in enumerate(running):
                    if progress is not None:
                        progress(done / len(running))
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def verify(self) -> None:
        """Decodes everything once.

        Raises:
            DecodeError: the first rule of the format that is found broken.
        """
        for row in self._header.tensors:
            if not isinstance(row, AliasRow):
                self.tensor(row.name)
        self.verify_rest()

    def verify_rest(self) -> None:
        """Decodes what no tensor's values depend on: the manifest, prototypes without a user."""
        _ = self.manifest
        for index, row in enumerate(self._header.prototypes):
            if isinstance(row, StoredRow) and index not in self._users:
                self.prototype(index)

    def prototype(self, index: int) -> Array:
        """A prototype's values [length]; +0.0 where no mask uses one that is stored by use."""
        if index in self._prototypes:
            return self._prototypes[index]
        row = self._header.prototypes[index]
        if isinstance(row, StoredRow):
            values = self._stored_values(row, index)
        else:
            values = prototype_values(row)
        # One that a single tensor uses is as large as that tensor.
        if values.nbytes <= _SMALL_BYTES or len(self._users.get(index, ())) > 1:
            self._prototypes[index] = values
        return values

    def info(self) -> FileInfo:
        """Bytes of every part and tensor; decodes the masks to count their ones."""
        by_kind = dict.fromkeys(("manifest", "prototype", "dense", "mask"), 0)
        for kind, entry in zip(self._header.sections, self._container.sections, strict=True):
            by_kind[kind] += entry.length
        shares: dict[str, int] = {}
        coders: dict[int, str] = {}
        for section, (_, starts) in self._groups.items():
            coders[section] = dense.CODER_NAMES[dense.dense_coder(self._section(section))]
            size = self._container.sections[section].length
            counts = [numel(self.shape(name)) for name in starts]
            shares |= zip(starts, share_bytes(size, counts), strict=True)
        for section, sharers in self._sharers.items():
            data = self._section(section)
            with _in_section(section):
                coders[section] = masks.CODER_NAMES[masks.mask_coder(data)]
            size = self._container.sections[section].length
            counts = [numel(row.shape) for row in sharers]
            shares |= zip([row.name for row in sharers], share_bytes(size, counts), strict=True)
        tensors = [self._tensor_info(row, shares, coders) for row in self._header.tensors]
        masked = [t for t in tensors if t.kind == "masked"]
        weights = sum(numel(t.shape) for t in masked)
        return FileInfo(
            file_bytes=self._container.file_size,
            header_bytes=self._container.size,
            manifest_bytes=by_kind["manifest"],
            prototype_bytes=by_kind["prototype"],
            dense_bytes=by_kind["dense"],
            mask_bytes=by_kind["mask"],
            order0_bytes=sum(t.order0_bytes or 0.0 for t in masked),
            masked_weights=weights,
            bits_per_weight=8 * by_kind["mask"] / weights if weights else None,
            dense_model_bytes=sum(
                numel(t.shape) * CARRIERS[t.dtype].itemsize for t in tensors if t.kind != "alias"
            ),
            format_version="{}.{}".format(*self._container.version),
            prototypes=tuple(_describe_prototype(row) for row in self._header.prototypes),
            metadata=self.metadata,
            tensors=tuple(tensors),
            inference_only=self._header.inference_only,
        )

    # ------------------------------------------------------------------------------ inside

    def _section(self, index: int) -> bytes:
        return read_section(self._stream, self._container.sections[index], index)

    def _placed_row(self, name: str) -> MaskedRow | DenseRow | ConstantRow:
        row = self._rows[name]
        while isinstance(row, AliasRow):
            row = self._rows[row.target]
        return row

    def _masked_row(self, name: str) -> MaskedRow:
        row = self._placed_row(name)
        if not isinstance(row, MaskedRow):
            raise KeyError(f"{name} is not a masked tensor")
        return row

    def _group_bounds(self) -> dict[int, tuple[int, dict[str, int]]]:
        """Dense section → its number of items, and where each of its tensors starts."""
        groups: dict[int, tuple[int, dict[str, int]]] = {}
        for row in self._header.tensors:
            if isinstance(row, DenseRow):
                count, starts = groups.get(row.section, (0, {}))
                starts[row.name] = count
                groups[row.section] = count + numel(row.shape), starts
        return groups

    def _shapes(self, section: int) -> list[tuple[int, ...]]:
        """Of the dense tensors of a section."""
        return [self._placed_row(name).shape for name in self._groups[section][1]]

    def _dense_items(self, section: int) -> Array:
        if section in self._group_items:
            return self._group_items[section]
        _, starts = self._groups[section]
        dtype = self._placed_row(next(iter(starts))).dtype
        with _in_section(section):
            items = dense.decode_dense(self._section(section), self._shapes(section), dtype)
        if len(starts) > 1:
            items.flags.writeable = False
            self._group_items[section] = items
        return items

    def _stored_values(self, row: StoredRow, index: int) -> Array:
        count = row.length
        if row.used == "masks":
            users = self._users.get(index, [])
            used = used_values(
                row.length, ((user.fill.offset, self.mask(user.name).reshape(-1)) for user in users)
            )
            count = int(np.count_nonzero(used))
        with _in_section(row.section):
            kept = dense.decode_dense(self._section(row.section), [(count,)], row.dtype)
        if row.used == "all":
            return kept
        values = np.zeros(row.length, kept.dtype)
        values[used] = kept
        return values

    def _section_masks(self, index: int) -> Callable[[], dict[str, npt.NDArray[np.uint8]]]:
        """What decodes the masks of a section, by name; the call reads no more of the file."""
        data, sharers = self._section(index), self._sharers[index]
        with _in_section(index):
            mixed = masks.mask_coder(data) == masks.MIXING
        buckets = [self._value_buckets(r.fill.prototype) if mixed else None for r in sharers]

        def decode() -> dict[str, npt.NDArray[np.uint8]]:
            tensors = [
                MixingTensor(row.shape, known() if known else None, row.fill.offset)
                for row, known in zip(sharers, buckets, strict=True)
            ]
            with _in_section(index):
                decoded = masks.decode_masks(data, tensors)
            return dict(zip([row.name for row in sharers], decoded, strict=True))

        return decode

    def _value_buckets(self, index: int) -> Callable[[], Buckets] | None:
        """What makes those of a prototype; None for one stored by use, which the masks tell."""
        source = self._header.prototypes[index]
        if isinstance(source, StoredRow) and source.used == "masks":
            return None
        if index in self._buckets:
            return lambda: self._buckets[index]
        if _is_made_in_slices(source):
            make = partial(buckets_of_slices, source.length, partial(seeded_slice, source))
        else:
            make = partial(value_buckets, self.prototype(index))
        if len(self._users[index]) == 1:
            return make
        self._buckets[index] = buckets = make()
        return lambda: buckets

    def _plain_values(self, row: DenseRow | ConstantRow) -> Array:
        carrier = CARRIERS[row.dtype]
        if isinstance(row, ConstantRow):
            return np.full(row.shape, np.frombuffer(row.value or bytes(carrier.itemsize), carrier))
        start = self._groups[row.section][1][row.name]
        items = self._dense_items(row.section)[start : start + numel(row.shape)]
        return items.reshape(row.shape)

    def _fill_jobs(self, fills: Sequence[tuple[MaskedRow, Array]]) -> list[Callable[[], None]]:
        """What fills tensors [n] of one section; jobs may run at the same time."""
        section = fills[0][0].section
        # First, since a prototype that is stored by use needs masks, which are kept then.
        values = [self._values_of(row) for row, _ in fills]
        if len(fills) == len(self._sharers[section]) and fills[0][0].name not in self._shared_masks:
            data = self._section(section)
            with _in_section(section):
                if len(fills) > 1 or masks.mask_coder(data) == masks.MIXING:
                    return [partial(_fill_all, self._section_masks(section), fills, values)]
                ((_, out),) = fills
                blocks = masks.mask_blocks(data, out.size)
            return [partial(_fill_block, section, block, values[0], out) for block in blocks]
        return [
            partial(_fill_block, section, block, own, out)
            for (row, out), own in zip(fills, values, strict=True)
            for block in masks.blocks_of(self.packed_mask(row.name), out.size)
        ]

    def _values_of(self, row: MaskedRow) -> RepeatedValues | SeededValues:
        """The values that a tensor takes, scaled."""
        source = self._header.prototypes[row.fill.prototype]
        if _is_made_in_slices(source):
            return SeededValues(source, row.fill, row.dtype)
        dtype = source.dtype if isinstance(source, StoredRow) else "float32"
        values, offset = self.prototype(row.fill.prototype), row.fill.offset
        count = numel(row.shape)
        # A tensor that is smaller than the prototype must not cost the scaling of all of it.
        if offset + count <= values.size:
            values, offset = values[offset : offset + max(count, 1)], 0
        elif count < values.size:
            values = np.concatenate([values[offset:], values[: offset + count - values.size]])
            offset = 0
        return RepeatedValues(scale_values(values, dtype, row.fill.scale, row.dtype), offset)

    def _tensor_info(
        self, row: TensorRow, shares: Mapping[str, int], coders: Mapping[int, str]
    ) -> TensorInfo:
        if isinstance(row, AliasRow):
            target = self._placed_row(row.name)
            return TensorInfo(row.name, target.shape, target.dtype, "alias", None, None, 0, None)
        if isinstance(row, ConstantRow):
            return TensorInfo(row.name, row.shape, row.dtype, "constant", None, None, 0, None)
        if isinstance(row, MaskedRow):
            count = numel(row.shape)
            ones = int(np.bitwise_count(self.packed_mask(row.name)).sum(dtype=np.int64))
            return TensorInfo(
                row.name,
                row.shape,
                row.dtype,
                "masked",
                ones / count if count else 0.0,
                coders[row.section],
                shares[row.name],
                masks.order0_bits(ones, count) / 8,
            )
        largest = float(np.abs(self._plain_values(row)).max(initial=0)) if row.error else 0.0
        return TensorInfo(
            row.name,
            row.shape,
            row.dtype,
            "dense",
            None,
            coders[row.section],
            shares[row.name],
            None,
            row.error,
            row.error / largest if largest else float(row.error > 0),
        )


def _is_made_in_slices(source: PrototypeRow) -> TypeGuard[SeededPrototype]:
    return (
        isinstance(source, SeededPrototype) and not source.period and source.length > _HELD_VALUES
    )


def _fill_block(
    section: int, block: masks.MaskBlock, values: RepeatedValues | SeededValues, out: Array
) -> None:
    with _in_section(section):
        packed = block.decode()
    values.fill_masked(block.start, packed, out[block.start : block.stop])


def _fill_all(
    decode: Callable[[], Mapping[str, npt.NDArray[np.uint8]]],
    fills: Sequence[tuple[MaskedRow, Array]],
    values: Sequence[RepeatedValues | SeededValues],
) -> None:
    decoded = decode()
    for (row, out), own in zip(fills, values, strict=True):
        own.fill_masked(0, decoded[row.name], out)


def open_file(source: Path_ | BinaryIO, *, limits: Limits | None = None) -> PemnFile:
    """Opens a .pemn file for reading, without torch.

    Args:
        source: a path, or a binary file object.
        limits: bounds on what the file may decode to.

    Raises:
        DecodeError: not a file that this reader can read.
        OSError: from the file system.
    """
    return PemnFile(source, limits)


def _seekable(stream: BinaryIO) -> BinaryIO:
    """The stream from its first byte, or, from a pipe, all of it in memory."""
    if not hasattr(stream, "seekable"):
        raise TypeError(f"expected a path or a binary file object, not {type(stream).__name__}")
    if not stream.seekable():
        head = read_up_to(stream, len(SIGNATURE))
        check_signature(head)  # before everything else is taken in
        return io.BytesIO(head + stream.read())
    stream.seek(0)
    return stream


@contextlib.contextmanager
def _in_section(index: int) -> Iterator[None]:
    """Adds the section to errors that coders raise, which know only their own bytes."""
    try:
        yield
    except DecodeError as error:
        if error.section is None:
            error.section = index
        raise


def _describe_prototype(row: PrototypeRow) -> str:
    if isinstance(row, SeededPrototype):
        return (
            f"{row.length:,} {row.distribution} values, from seed {row.seed}, stream {row.stream}"
        )
    stored = "stored" if row.used == "all" else "of which the used ones are stored"
    return f"{row.length:,} {row.dtype} values, {stored}"
