"""Sections that wait for their place in a file."""

from __future__ import annotations

import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pemncodec import spool as spool_module
from pemncodec.contents import Contents, DenseTensor
from pemncodec.format.reader import PemnFile
from pemncodec.format.writer import encode_contents
from pemncodec.spool import Spool

PIECES = [bytes([index]) * (index * 37 % 50) for index in range(100)]


@pytest.mark.parametrize("in_memory", [0, 1000, 1 << 24])
def test_what_was_added_is_read_in_any_order(
    in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_IN_MEMORY", in_memory)
    with Spool(tmp_path) as spool, ThreadPoolExecutor(4) as pool:
        places = list(pool.map(spool.add, PIECES))
        assert [place.size for place in places] == [len(piece) for piece in PIECES]
        assert [place.crc for place in places] == [zlib.crc32(piece) for piece in PIECES]
        assert [spool.read(place) for place in places[::-1]] == PIECES[::-1]
        assert spool.read(spool.add(b"more")) == b"more"
        assert spool.read(places[7]) == PIECES[7]
        whole = spool.add(bytes(range(256)) * 20)
        assert list(spool.pieces(whole)) == [bytes(range(256)) * 20]
        monkeypatch.setattr(spool_module, "_PIECE", 1000)
        assert [len(piece) for piece in spool.pieces(whole)] == [1000] * 5 + [120]
        assert b"".join(spool.pieces(whole)) == spool.read(whole)
        assert list(spool.pieces(places[0])) == []
    assert not list(tmp_path.iterdir())


def test_the_temporary_file_is_where_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_IN_MEMORY", 10)
    with Spool(tmp_path / "missing") as spool:
        spool.add(b"123456789")
        with pytest.raises(FileNotFoundError):
            spool.add(b"12")


def test_a_coded_file_is_read_as_one_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_IN_MEMORY", 100)
    values = [np.random.default_rng(i).random(30_000, np.float32) for i in range(3)]
    tensors = tuple(DenseTensor(f"{i}", "float32", v.shape, v) for i, v in enumerate(values))
    with Spool(tmp_path) as spool:
        encoded = encode_contents(Contents((), tensors), spool=spool)
        with PemnFile(encoded) as file:
            assert file.data() is None
            spooled = [file.tensor(name).tobytes() for name in file.keys()]  # noqa: SIM118
        pieces = list(encoded)
    with PemnFile(io.BytesIO(b"".join(pieces))) as file:
        written = [file.tensor(name).tobytes() for name in file.keys()]  # noqa: SIM118
    assert len(pieces) == 4
    assert spooled == written == [v.tobytes() for v in values]
