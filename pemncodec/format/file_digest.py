"""The digest of all that a file decodes to (spec/pemn.md section 3.5), a tensor at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import repeat
from typing import Any, Final

import numpy as np

from pemncodec.contents import CARRIERS, Array, numel
from pemncodec.errors import DecodeArgumentError
from pemncodec.format.digests import (
    PIECE_BYTES,
    digest_of,
    digest_of_pieces,
    piece_digest,
    values_digest,
)
from pemncodec.format.header import AliasRow, ConstantRow, MaskedRow, TensorRow
from pemncodec.format.reader import PemnFile, open_file
from pemncodec.format.sections import Source
from pemncodec.limits import Limits
from pemncodec.threads import available_threads, is_thread_count, threads_given

_PIECES_AHEAD: Final = 4  # for each thread, since pieces hold what they are made of

Progress = Callable[[float], None]
Piece = Callable[[], bytes]
"""What makes some values of a tensor, and says their digest."""


def digest(
    source: Source | PemnFile, *, limits: Limits | None = None, threads: int | None = None
) -> str:
    """What a file decodes to, as 64 hexadecimal digits: names, values, masks and architecture.

    The same for every preset, for values of a seed and stored ones, in one file or in shards. Text
    of `metadata` does not count.

    Args:
        source: as `open` takes it, or an open file.
        limits: bounds on what the file may decode to; an open file has its own.
        threads: how many work; None takes as many as can run.

    Raises:
        DecodeArgumentError: no such number of threads.
        DecodeError: the file is damaged, or no .pemn file.
        OSError: from the file system, or from the server.
    """
    if not is_thread_count(threads):
        raise DecodeArgumentError(f"threads must be 1 or more, not {threads!r:.60}")
    with threads_given(threads):
        if isinstance(source, PemnFile):
            return file_digest(source)
        with open_file(source, limits=limits) as file:
            return file_digest(file)


def file_digest(file: PemnFile, progress: Progress | None = None) -> str:
    """The digest of an open file; checks every section.

    Args:
        file: open.
        progress: called with the share of all values that are hashed, 0 to 1.
    """
    file.expect()
    own = [row for row in file.header.tensors if not isinstance(row, AliasRow)]
    total, done = sum(numel(row.shape) for row in own), 0
    threads = available_threads()
    running: deque[Future[bytes]] = deque()
    found: list[tuple[dict[str, Any], list[Future[bytes]]]] = []
    with ThreadPoolExecutor(threads) as pool:
        try:
            for row in file.header.tensors:
                fields, pieces = _hashed(file, row)
                hashed = []
                for piece in pieces:
                    if len(running) > _PIECES_AHEAD * threads:
                        running.popleft().result()
                    hashed.append(pool.submit(piece))
                    running.append(hashed[-1])
                found.append((fields, hashed))
                if progress is not None and not isinstance(row, AliasRow):
                    done += numel(row.shape)
                    progress(done / max(total, 1))
            for future in running:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    file.verify_rest()
    tensors = [
        digest_of(fields | _values([piece.result() for piece in hashed], fields))
        for fields, hashed in found
    ]
    manifest = None if file.manifest is None else digest_of(file.manifest)
    return digest_of(
        {
            "inference_only": file.header.inference_only,
            "manifest": manifest,
            "tensors": tensors,
        }
    )


def _values(pieces: list[bytes], fields: dict[str, Any]) -> dict[str, str]:
    return {} if fields["kind"] == "alias" else {"values": digest_of_pieces(pieces)}


def _hashed(file: PemnFile, row: TensorRow) -> tuple[dict[str, Any], Iterable[Piece]]:
    """The fields of a tensor's digest but its values, and the pieces of these."""
    if isinstance(row, AliasRow):
        return {"kind": "alias", "name": row.name, "target": row.target}, ()
    fields = {"dtype": row.dtype, "kind": "dense", "name": row.name, "shape": list(row.shape)}
    step = PIECE_BYTES // CARRIERS[row.dtype].itemsize
    if isinstance(row, MaskedRow):
        mask, slices = file.masked.mask_and_slices(row, step)
        fields |= {"kind": "masked", "mask": values_digest(mask)}
        return fields, (partial(_made, make) for make in slices)
    if isinstance(row, ConstantRow):
        return fields, _constant_pieces(row, step)
    flat = file.tensor(row.name).reshape(-1)
    starts = range(0, flat.size, step)
    return fields, (partial(piece_digest, flat[start : start + step]) for start in starts)


def _made(make: Callable[[], Array]) -> bytes:
    return piece_digest(make())


def _constant_pieces(row: ConstantRow, step: int) -> Iterator[Piece]:
    """All but the last are equal, and hashed once."""
    count, items = numel(row.shape), np.frombuffer(row.value, np.uint8)
    whole, rest = divmod(count, step)
    for pieces, size in ((whole, step), (1, rest)):
        if pieces and size:
            hashed = piece_digest(np.tile(items, size))
            yield from repeat(partial(bytes, hashed), pieces)
