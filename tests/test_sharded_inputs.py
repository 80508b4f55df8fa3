"""Checkpoints in several files: indexes of shards, folders, lists of files, torch.distributed's."""

from __future__ import annotations

import json
import math
import pickle
import random
import re
import shutil
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from conftest import Run, fails
from file_server import serving
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

import pemncodec
from pemncodec import EncodeError
from pemncodec.checkpoints.folders import check_files
from pemncodec.checkpoints.sources import join_checkpoints, load_masks, read_checkpoint

# Which torch says of a process that is in no group.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

State = dict[str, Tensor]
ENCODE = ["--keep", 0.5, "--no-manifest", "-q"]
INDEX = {".safetensors": "model.safetensors.index.json", ".bin": "pytorch_model.bin.index.json"}


def tensors() -> State:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(3):
        state[f"{layer}.weight"] = torch.randn(6, 5, generator=generator)
        state[f"{layer}.scores"] = torch.randn(6, 5, generator=generator)
        state[f"{layer}.bias"] = torch.randn(6, generator=generator)
    return state


def parts() -> list[State]:
    """What `tensors` gives, by layers."""
    return [
        {name: t for name, t in tensors().items() if name.startswith(f"{layer}.")}
        for layer in range(3)
    ]


def same(first: Any, second: State) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[n], second[n]) and first[n].dtype == second[n].dtype for n in second
    )


def save(state: State, path: Path) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)


def save_pretrained(folder: Path, suffix: str = ".safetensors") -> Path:
    """A folder as transformers leaves it, with other files in it; the path of its index."""
    folder.mkdir(exist_ok=True)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names: dict[str, str] = {}
    for number, part in enumerate(parts(), 1):
        shard = f"{stem}-{number:05}-of-00003{suffix}"
        save(part, folder / shard)
        names |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": dict(sorted(names.items()))}
    (folder / INDEX[suffix]).write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    torch.save({"step": 3}, folder / "optimizer.pt")
    torch.save([1], folder / "training_args.bin")
    return folder / INDEX[suffix]


def reindex(index: Path, change: Callable[[dict[str, Any]], object]) -> None:
    said = json.loads(index.read_text())
    change(said["weight_map"])
    index.write_text(json.dumps(said))


@pytest.fixture
def expected(run: Run, tmp_path: Path) -> bytes:
    """The file that all forms of the checkpoint become."""
    torch.save(tensors(), tmp_path / "whole.pt")
    assert run("encode", "whole.pt", *ENCODE).returncode == 0
    return (tmp_path / "whole.pemn").read_bytes()


def in_order(path: Path) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in pemncodec.load_state_dict(path).items()}


# ----------------------------------------------------------------------------- indexes, folders


@pytest.mark.parametrize("suffix", INDEX)
def test_index_and_folder(suffix: str, run: Run, tmp_path: Path, expected: bytes) -> None:
    index = save_pretrained(tmp_path / "net-1.5", suffix)
    for number, source in enumerate((index, index.parent, "net-1.5/")):
        result = run("encode", source, *ENCODE, "-o", f"{number}.pemn")
        assert result.returncode == 0, result.stderr
        assert in_order(tmp_path / f"{number}.pemn") == in_order(tmp_path / "whole.pemn")
        assert run("verify", "whole.pemn", "--against", source, "--keep", 0.5).returncode == 0
    if suffix == ".bin":  # in the order of the state dict, which the index has not
        assert (tmp_path / "0.pemn").read_bytes() == expected


def test_names_of_what_is_written(run: Run, tmp_path: Path) -> None:
    index = save_pretrained(tmp_path / "net-1.5")
    assert run("encode", "net-1.5/", *ENCODE).returncode == 0
    assert run("encode", index, *ENCODE).returncode == 0
    assert run("encode", ".", *ENCODE, cwd=index.parent).returncode == 0
    dcp.save(tensors(), checkpoint_id=tmp_path / "step-10")
    assert run("encode", "step-10/.metadata", *ENCODE).returncode == 0
    names = ["net-1.5.pemn", "net-1.5/model.pemn", "net-1.5/net-1.5.pemn", "step-10.pemn"]
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.pemn")) == names


def test_what_tensors_of_transformers_need(run: Run, tmp_path: Path) -> None:
    index = save_pretrained(tmp_path / "net")
    config = index.parent / "config.json"
    for text in ("{", "[]", '{"architectures": ["a b"]}', '{"architectures": ["A", "B"]}'):
        config.write_text(text)
        fails(run("encode", "net", "--keep", 0.5), 2, "give --arch pkg.module:factory")
    config.write_text('{"architectures": ["BertModel"]}')
    words = "whose function returns BertModel(AutoConfig.from_pretrained('net')), or --no-manifest"
    for source in ("net", "net/model.safetensors.index.json"):
        fails(run("encode", source, "--keep", 0.5), 2, f"{source} holds tensors of tran", words)
    assert run("encode", "net", *ENCODE).returncode == 0
    for path in index.parent.glob("model*"):
        path.unlink()
    torch.save(tensors(), index.parent / "other.pt")
    for source in ("net", "net/other.pt"):
        fails(run("encode", source, "--keep", 0.5, "-f"), 2, "give --arch pkg.module:factory")


def test_report_of_a_folder(run: Run, tmp_path: Path, expected: bytes) -> None:
    index = save_pretrained(tmp_path / "net")
    shards = sum(path.stat().st_size for path in index.parent.glob("model*"))
    result = run("report", "net", "--keep", 0.5, "--forms", "safetensors", "--json")
    (model,) = json.loads(result.stdout)["models"]
    assert model["file_bytes"] == shards
    assert model["keep"] == 0.5
    shutil.copy(tmp_path / "whole.pemn", index.parent)
    index.unlink()
    (model,) = json.loads(run("report", "net", "--json").stdout)["models"]
    assert model["file_bytes"] == len(expected)


def test_masks_in_an_index(run: Run, tmp_path: Path) -> None:
    masks = {f"{layer}.weight": torch.rand(6, 5) < 0.5 for layer in range(3)}
    (tmp_path / "masks").mkdir()
    names = dict(zip(masks, ("a.pt", "b.pt", "a.pt"), strict=True))
    for shard in ("a.pt", "b.pt"):
        torch.save(
            {n: m for n, m in masks.items() if names[n] == shard}, tmp_path / "masks" / shard
        )
    (tmp_path / "masks/x.index.json").write_text(json.dumps({"weight_map": names}))
    assert same(load_masks(tmp_path / "masks/x.index.json"), masks)
    state = {name: t for name, t in tensors().items() if "scores" not in name}
    torch.save(state, tmp_path / "m.pt")
    result = run("encode", "m.pt", "--masks", "masks/x.index.json", "--no-manifest", "-q")
    assert result.returncode == 0, result.stderr
    decoded = pemncodec.load_state_dict(tmp_path / "m.pemn")
    assert torch.equal(decoded["2.weight"], state["2.weight"] * masks["2.weight"])


def test_which_file_of_a_folder(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    save_pretrained(folder)
    torch.save({"other": torch.ones(3)}, folder / "extra.pt")  # beside a model of the known name
    assert same(read_checkpoint(folder).source, tensors())
    save(tensors(), folder / "model.safetensors")
    words = "net: a folder with several checkpoints: name model.safetensors or model.safetensors.in"
    fails(run("encode", "net", *ENCODE), 1, words)
    for path in folder.glob("model*"):
        path.unlink()
    assert same(read_checkpoint(folder).source, {"other": torch.ones(3)})
    torch.save({}, folder / "more.pth")
    fails(run("encode", "net", *ENCODE), 1, "several checkpoints: name extra.pt or more.pth in it")
    for number in range(6):
        (folder / f"n{number}.npz").touch()
    words = "name extra.pt or more.pth or n0.npz or n1.npz or n2.npz or n3.npz or 2 more in it\n"
    fails(run("encode", "net", *ENCODE), 1, words)
    for path in (*folder.glob("n*.npz"), folder / "extra.pt", folder / "more.pth"):
        path.unlink()
    fails(run("encode", "net", *ENCODE), 1, "net: a folder without a checkpoint: name a file")
    for part in (1, 2):
        torch.save({f"{part}": torch.ones(2)}, folder / f"x-0000{part}-of-00002.pt")
    fails(run("encode", "net", *ENCODE), 1, "no index: name all of them", "x-00002-of-00002.pt")
    torch.save({"a": torch.ones(2)}, folder / "x-100000-of-100000.pt")
    fails(run("encode", "net", *ENCODE), 1, "no index: name all of them", "x-100000-of-100000.pt")


# ------------------------------------------------------------------------------- what is wrong


def test_all_missing_shards_are_named(run: Run, tmp_path: Path) -> None:
    index = save_pretrained(tmp_path / "net")
    for number in (1, 3):
        (index.parent / f"model-0000{number}-of-00003.safetensors").unlink()
    missing = (
        "2 of 3 shards are missing: model-00001-of-00003.safetensors, model-00003-of-00003.saf"
    )
    fails(run("encode", "net", *ENCODE), 1, f"net/{index.name}: {missing}")
    fails(run("encode", index, *ENCODE), 1, f"model.safetensors.index.json: {missing}")
    reindex(index, lambda names: names.update({f"{n}": f"{n:05}.bin" for n in range(2000)}))
    words = "2,002 of 2,003 shards are missing: 00000.bin, 00001.bin, 00002.bin, 00003.bin, "
    fails(run("encode", "net", *ENCODE), 1, words, "00005.bin and 1,996 more\n")


@pytest.mark.parametrize(
    "place", ["../x.pt", "/etc/passwd", "a/b.pt", "..", "", ".", "a\\b", "c:x", 3, None]
)
def test_places_outside_the_folder_are_refused(place: Any, run: Run, tmp_path: Path) -> None:
    index = save_pretrained(tmp_path / "net")
    torch.save(parts()[0], tmp_path / "x.pt")
    reindex(index, lambda names: names.update({"0.weight": place}))
    fails(run("encode", "net", *ENCODE), 1, "0.weight is in ", "not the name of a file beside it")


def test_index_and_shards_that_differ(tmp_path: Path) -> None:
    index = save_pretrained(tmp_path / "net")
    first, second = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2))
    reindex(index, lambda names: names.update({"lost": second, "lost too": second}))
    with pytest.raises(EncodeError, match=f"{second}: it lacks lost and 1 more tensors, which mod"):
        read_checkpoint(index)
    reindex(index, lambda names: (names.pop("lost"), names.pop("lost too"), names.pop("1.bias")))
    with pytest.raises(EncodeError, match=r"shards also have 1\.bias, of which it says nothing"):
        read_checkpoint(index)
    save(parts()[1] | {"0.bias": torch.ones(6)}, index.parent / second)
    with pytest.raises(EncodeError, match=rf"0\.bias is in both \S*{first} and \S*{second}$"):
        read_checkpoint(index)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_what_is_no_index(text: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.index.json").write_text(text)
    torch.save(tensors(), tmp_path / "m.pt")
    words = "x.index.json: not an index of shards"
    fails(run("encode", "x.index.json", *ENCODE), 1, words)
    fails(run("encode", "m.pt", "--masks", "x.index.json", "--no-manifest"), 1, words)


def test_an_index_whose_shard_is_an_index(tmp_path: Path, run: Run) -> None:
    index = save_pretrained(tmp_path / "net")
    reindex(index, lambda names: names.update({"0.bias": index.name}))
    fails(run("encode", index, *ENCODE), 1, "cannot load this: JSON where tensors are expected")


def test_shards_are_looked_at_first(tmp_path: Path) -> None:
    """Before torch is imported."""
    index = save_pretrained(tmp_path / "net")
    check_files(index, "net")
    shard = index.parent / "model-00002-of-00003.safetensors"
    shard.write_bytes(b"GGUF" + bytes(20))
    for path in (index, index.parent):
        with pytest.raises(EncodeError, match=rf"{shard}: cannot load this: a GGUF file"):
            check_files(path, "net")
    shard.unlink()
    with pytest.raises(EncodeError, match="1 of 3 shards is missing: model-00002"):
        check_files(index, "net")


def test_a_damaged_shard_is_named(run: Run, tmp_path: Path) -> None:
    index = save_pretrained(tmp_path / "net")
    shard = index.parent / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    fails(
        run("encode", "net", *ENCODE),
        1,
        f"{shard.name}: cannot load this: a safetensors file that is cut off",
    )


# --------------------------------------------------------------------------------- several files


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
@pytest.mark.usefixtures("expected")
def test_several_files(suffix: str, run: Run, tmp_path: Path) -> None:
    names = [f"{layer}{'.pt' if suffix == '.npz' and layer else suffix}" for layer in range(3)]
    for name, part in zip(names, parts(), strict=True):
        if name.endswith(".npz"):
            np.savez(tmp_path / name, **{n: t.numpy() for n, t in part.items()})
        else:
            save(part, tmp_path / name)
    assert run("encode", *names, *ENCODE, "-o", "out.pemn").returncode == 0
    assert in_order(tmp_path / "out.pemn") == in_order(tmp_path / "whole.pemn")
    against = [argument for name in names for argument in ("--against", name)]
    assert run("verify", "out.pemn", *against, "--keep", 0.5).returncode == 0
    fails(run("verify", "out.pemn", *against[:4], "--keep", 0.5), 1, "2.")


def test_some_of_the_files_are_not_enough(run: Run, tmp_path: Path, expected: bytes) -> None:
    index = save_pretrained(tmp_path / "net", ".bin")
    index.unlink()
    shards = [f"net/pytorch_model-{number:05}-of-00003.bin" for number in (1, 2, 3)]
    for some, lacking in (((0, 2), 1), ((0, 1), 2), ((1,), 0), ((0, 0, 1), 2)):
        words = f"{shards[lacking]} is not named, one of 3 files: name all of them, their folder"
        named = [shards[number] for number in some]
        fails(run("encode", *named, *ENCODE, "-o", "out.pemn"), 1, words)
        against = [argument for name in named for argument in ("--against", name)]
        fails(run("verify", "whole.pemn", *against), 1, words)
    assert run("encode", *shards, *ENCODE, "-o", "out.pemn").returncode == 0
    assert (tmp_path / "out.pemn").read_bytes() == expected
    shutil.copy(tmp_path / "out.pemn", tmp_path / "a-00001-of-00002.pemn")  # which opens alone
    result = run("encode", "a-00001-of-00002.pemn", "--no-manifest", "-o", "out.pemn", "-f")
    assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("expected")
def test_several_files_that_cannot_be_joined(run: Run, tmp_path: Path) -> None:
    for number, part in enumerate(parts()):
        torch.save(part, tmp_path / f"{number}.pt")
    fails(run("encode", "0.pt", "1.pt", *ENCODE), 2, "name the file to write with -o")
    output = ["-o", "out.pemn"]
    result = run("encode", "0.pt", "1.pt", "whole.pt", *ENCODE, *output)
    fails(result, 1, "0.weight is in both 0.pt and whole.pt")
    result = run("encode", "0.pt", "whole.pemn", *ENCODE, *output)
    fails(result, 1, "whole.pemn: only state dicts can be parts of a checkpoint, not a PemnFile")
    fails(run("encode", "0.pt", "9.pt", *ENCODE, *output), 1, "9.pt")
    assert not (tmp_path / "out.pemn").exists()
    torch.save(torch.nn.Linear(2, 3), tmp_path / "module.pt")
    for names in (["module.pt"], ["0.pt", "module.pt"]):
        result = run("encode", *names, *ENCODE, *output)
        fails(result, 1, "module.pt: cannot load this: it holds more than tensors")
    result = run("encode", "0.pt", "module.pt", "--trust-pickle", *ENCODE, *output)
    fails(result, 1, "module.pt: only state dicts can be parts of a checkpoint, not a Linear")
    with pytest.raises(EncodeError, match="more than tensors"):
        join_checkpoints({"m": tmp_path / "module.pt"})


def test_what_several_files_record_of_masks(tmp_path: Path) -> None:
    mask = {"a": torch.ones(2), "b": torch.zeros(2)}
    paths = {name: tmp_path / name for name in "ab"}
    for name, path in paths.items():
        loaded = {"state_dict": {name: torch.ones(2)}, "masks": {name: mask[name]}}
        torch.save(loaded | {"prune_rate": 0.3, "conv_type": "SubnetConv"}, path)
    recorded = join_checkpoints(paths).recorded
    assert (recorded.rule, recorded.keep) == ("biprop", 0.3)
    assert same(recorded.masks, mask)
    torch.save({"state_dict": {"b": torch.ones(2)}, "prune_rate": 0.4}, paths["b"])
    with pytest.raises(EncodeError, match=r"^a and b record different rules"):
        join_checkpoints(paths)


# ------------------------------------------------------------------------- torch.distributed


class App:
    """As in PyTorch's tutorial."""

    def state_dict(self) -> dict[str, Any]:
        return {"model": tensors(), "optim": {"state": [torch.ones(2), 3]}, "step": 5}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize(
    "saved", [tensors(), {"model": tensors(), "epoch": 3}, {"app": App()}, {"net": tensors()}]
)
def test_distributed_checkpoints(saved: Any, run: Run, tmp_path: Path, expected: bytes) -> None:
    folder = tmp_path / "step-10"
    dcp.save(saved, checkpoint_id=folder)
    assert same(read_checkpoint(folder).source, tensors())
    assert run("encode", "step-10", *ENCODE).returncode == 0
    assert (tmp_path / "step-10.pemn").read_bytes() == expected
    assert run("verify", "whole.pemn", "--against", folder, "--keep", 0.5).returncode == 0
    (model,) = json.loads(run("report", folder, "--keep", 0.5, "--json").stdout)["models"]
    assert model["file_bytes"] == sum(path.stat().st_size for path in folder.iterdir())


def test_models_of_equal_rank_keep_their_names(run: Run, tmp_path: Path, expected: bytes) -> None:
    dcp.save({"a": {"model": tensors()}, "b": {"model": tensors()}}, checkpoint_id=tmp_path / "x")
    assert len(read_checkpoint(tmp_path / "x").source) == 2 * len(tensors())
    assert run("encode", "x", "--prefix", "a.model.", *ENCODE).returncode == 0
    assert (tmp_path / "x.pemn").read_bytes() == expected


def test_names_in_nested_dictionaries(tmp_path: Path) -> None:
    nested = {"model": {"a": {"weight": torch.ones(2)}, "b": torch.ones(3)}, "net": torch.ones(1)}
    dcp.save(nested, checkpoint_id=tmp_path / "x")
    expected = {"a.weight": torch.ones(2), "b": torch.ones(3)}
    assert same(read_checkpoint(tmp_path / "x").source, expected)
    flat = {"model": torch.ones(2), "b": torch.ones(3)}
    dcp.save(flat, checkpoint_id=tmp_path / "y")
    assert same(read_checkpoint(tmp_path / "y").source, flat)
    metadata: Metadata = metadata_of(tmp_path / "x")
    metadata.planner_data = OrderedDict(metadata.planner_data)
    (tmp_path / "x/.metadata").write_bytes(pickle.dumps(metadata))
    assert same(read_checkpoint(tmp_path / "x").source, expected)


def test_an_item_that_is_cut_off_by_a_byte(tmp_path: Path) -> None:
    dcp.save({"a": torch.ones(3)}, checkpoint_id=tmp_path / "x")
    (file,) = (tmp_path / "x").glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EncodeError, match=rf"a in {file.name} is damaged \(the file is cut off\)"):
        read_checkpoint(tmp_path / "x")


def test_pieces_of_different_dtypes(tmp_path: Path) -> None:
    metadata = cut(tmp_path / "x", "1.weight")
    place = metadata.storage_data[MetadataIndex("1.weight", torch.Size([4, 3]))]
    with (tmp_path / "x" / place.relative_path).open("r+b") as stream:
        stream.seek(place.offset)
        torch.save(torch.zeros(2, 2, dtype=torch.int32), stream)
    with pytest.raises(EncodeError, match=r"1\.weight: pieces of float32 and int32"):
        read_checkpoint(tmp_path / "x")


def test_every_dtype_and_shape(tmp_path: Path) -> None:
    state = {
        f"{dtype}": torch.arange(6).reshape(2, 3).to(dtype).T
        for dtype in (torch.bfloat16, torch.float64, torch.bool, torch.uint8, torch.complex64)
    } | {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3)}
    dcp.save(state, checkpoint_id=tmp_path / "x")
    assert same(read_checkpoint(tmp_path / "x").source, state)
    dcp.save({"none": torch.zeros(0)}, checkpoint_id=tmp_path / "y")
    assert same(read_checkpoint(tmp_path / "y").source, {"none": torch.zeros(0)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.to("meta"), r"found strided \(3,\) on the meta device$"),
        (lambda t: t.repeat(2), r"expected a dense \(3,\), found strided \(6,\)$"),
        (lambda t: t.to_sparse(), r"found sparse_coo \(3,\)$"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), r"found qint8 \(3,\)$"),
    ],
)
def test_items_that_are_no_plain_tensors(
    change: Callable[[Tensor], Tensor], words: str, tmp_path: Path
) -> None:
    dcp.save({"a": torch.ones(3)}, checkpoint_id=tmp_path / "x")
    metadata = metadata_of(tmp_path / "x")
    (stored,) = metadata.storage_data.values()
    with (tmp_path / "x" / stored.relative_path).open("wb") as stream:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is deprecated
            torch.save(change(torch.ones(3)), stream)
        stored.offset, stored.length = 0, stream.tell()
    (tmp_path / "x/.metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(EncodeError, match=words):
        read_checkpoint(tmp_path / "x")


def test_conjugates_are_resolved(tmp_path: Path) -> None:
    value = torch.complex(torch.ones(3), torch.arange(3.0))
    saved = {"conjugate": value.conj(), "negative": value.conj().imag}
    dcp.save(saved, checkpoint_id=tmp_path / "x")
    assert same(read_checkpoint(tmp_path / "x").source, saved)


def metadata_of(folder: Path) -> Any:
    return pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301 of our own


def cut(folder: Path, key: str) -> Metadata:
    """Writes one tensor in four pieces, in two files, as ranks would."""
    dcp.save(tensors(), checkpoint_id=folder)
    metadata: Metadata = metadata_of(folder)
    tensor, stored = tensors()[key], metadata.state_dict_metadata[key]
    assert stored.chunks.pop() is not None  # type: ignore[union-attr]
    metadata.storage_data = {
        index: info for index, info in metadata.storage_data.items() if index.fqn != key
    }
    kind = type(metadata_of(folder).state_dict_metadata[key].chunks[0])
    for rows in (slice(0, 4), slice(4, 6)):
        with (folder / f"__{rows.start}_0.distcp").open("ab") as stream:
            for columns in (slice(0, 3), slice(3, 5)):
                start = stream.tell()
                torch.save(tensor[rows, columns].clone(), stream)
                offsets = torch.Size([rows.start, columns.start])
                sizes = tensor[rows, columns].shape
                stored.chunks.append(kind(offsets, sizes))  # type: ignore[union-attr]
                metadata.storage_data[MetadataIndex(key, offsets)] = _StorageInfo(
                    f"__{rows.start}_0.distcp", start, stream.tell() - start
                )
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return metadata


def test_pieces_are_put_together(tmp_path: Path) -> None:
    cut(tmp_path / "x", "1.weight")
    assert same(read_checkpoint(tmp_path / "x").source, tensors())


def drop_piece(metadata: Metadata) -> None:
    metadata.state_dict_metadata["1.weight"].chunks.pop()  # type: ignore[union-attr]


def double_piece(metadata: Metadata) -> None:
    chunks = metadata.state_dict_metadata["1.weight"].chunks  # type: ignore[union-attr]
    chunks[3] = type(chunks[0])(torch.Size([0, 0]), torch.Size([4, 3]))


def move_piece(metadata: Metadata) -> None:
    chunks = metadata.state_dict_metadata["1.weight"].chunks  # type: ignore[union-attr]
    chunks[3].offsets = torch.Size([5, 3])


def grow_piece(metadata: Metadata) -> None:
    chunks = metadata.state_dict_metadata["1.weight"].chunks  # type: ignore[union-attr]
    chunks[3].sizes = torch.Size([3, 2])


def flatten_piece(metadata: Metadata) -> None:
    chunks = metadata.state_dict_metadata["1.weight"].chunks  # type: ignore[union-attr]
    chunks[3].sizes = torch.Size([4])


def swap_pieces(metadata: Metadata) -> None:
    chunks = metadata.state_dict_metadata["1.weight"].chunks  # type: ignore[union-attr]
    at = [MetadataIndex("1.weight", chunk.offsets) for chunk in chunks]
    places = metadata.storage_data
    places[at[0]], places[at[1]] = places[at[1]], places[at[0]]


def forget_piece(metadata: Metadata) -> None:
    metadata.storage_data.pop(MetadataIndex("1.weight", torch.Size([4, 3])))


def place(**changes: Any) -> Callable[[Metadata], None]:
    def change(metadata: Metadata) -> None:
        for name, value in changes.items():
            setattr(metadata.storage_data[MetadataIndex("0.bias", torch.Size([0]))], name, value)

    return change


def sized(size: Any) -> Callable[[Metadata], None]:
    def change(metadata: Metadata) -> None:
        metadata.state_dict_metadata["0.bias"].size = size  # type: ignore[union-attr]

    return change


def chunked(**changes: Any) -> Callable[[Metadata], None]:
    def change(metadata: Metadata) -> None:
        for name, value in changes.items():
            setattr(metadata.state_dict_metadata["0.bias"].chunks[0], name, value)  # type: ignore[union-attr]

    return change


def planned(paths: Any) -> Callable[[Metadata], None]:
    def change(metadata: Metadata) -> None:
        metadata.planner_data = paths

    return change


def unused(**changes: Any) -> Callable[[Metadata], None]:
    """What no tensor of the model needs."""

    def change(metadata: Metadata) -> None:
        names = [name for name in metadata.state_dict_metadata if name != "0.bias"]
        metadata.planner_data = {name: ("model", name) for name in names}
        place(**changes)(metadata)

    return change


def share_bytes(metadata: Metadata) -> None:
    place = metadata.storage_data[MetadataIndex("0.bias", torch.Size([0]))]
    for number in range(20):
        name = f"more.{number}"
        metadata.state_dict_metadata[name] = metadata.state_dict_metadata["0.bias"]
        metadata.storage_data[MetadataIndex(name, torch.Size([0]))] = place


DAMAGED = r"/x/\.metadata: not the metadata of torch\.distributed\.checkpoint, or damaged \(\w+: "


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_piece, r"1\.weight: pieces of 26 values in all, but it has 30: is a file missing"),
        (double_piece, r"1\.weight: two pieces have the values from \(0, 0\) on"),
        (move_piece, r"no file has the values of 1\.weight from \(5, 3\) on"),
        (grow_piece, r"1\.weight: a piece ends at \(7, 5\), behind \(6, 5\)"),
        (flatten_piece, r"1\.weight: a piece of another number of dimensions"),
        (swap_pieces, r"1\.weight: expected a dense \(4, 3\), found strided \(4, 2\)"),
        (forget_piece, r"no file has the values of 1\.weight from \(4, 3\) on"),
        (place(relative_path="../x"), r"0\.bias is in '\.\./x', which is not the name of a file"),
        (place(relative_path="lost"), r"1 of 3 files is missing: lost$"),
        (place(offset=10**9), r"0\.bias in __0_0\.distcp is damaged \(the file is cut off\)"),
        (place(offset=7), r"0\.bias in __0_0\.distcp is damaged"),
        (place(offset=-9), r"0\.bias: 1,577 bytes at -9 cannot hold"),
        (place(length=5), r"0\.bias: 5 bytes at [\d,]+ cannot hold \(6,\)"),
        (place(length=100), r"0\.bias in __0_0\.distcp is damaged"),
        (place(length="x"), r"not the metadata of torch\.distributed\.checkpoint, or damaged"),
        (place(transform_descriptors=["zstd"]), r"stored through 'zstd': save the checkpoint once"),
        (place(transform_descriptors=[3]), DAMAGED),
        (place(relative_path=5), DAMAGED),
        (place(relative_path="n" * 5000), DAMAGED),
        (place(offset=0.5), DAMAGED),
        (place(offset=True), DAMAGED),
        (place(offset=1 << 80), DAMAGED),
        (place(length=1 << 80), DAMAGED),
        (place(length=1 << 62), r"0\.bias in __0_0\.distcp is damaged \(the file is cut off\)"),
        (sized(None), DAMAGED),
        (sized("6"), DAMAGED),
        (sized((6.0,)), DAMAGED),
        (sized((1 << 70,)), DAMAGED),
        (sized((1,) * 17), DAMAGED),
        (sized((-6,)), r"0\.bias: a piece ends at \(6,\), behind \(-6,\)"),
        (sized([6]), DAMAGED),
        (chunked(offsets=[0]), DAMAGED),
        (chunked(sizes=(float("nan"),)), DAMAGED),
        (chunked(sizes=("6",)), DAMAGED),
        (planned({"0.bias": 5}), DAMAGED),
        (planned({"0.bias": ("model", ["x"])}), DAMAGED),
        (planned({"0.bias": ("model", 1 << 70)}), DAMAGED),
        (planned({"0.bias": ("model",) * 65}), DAMAGED),
        (
            planned({"0.bias": ("net", "b"), "1.bias": ("net", "b")}),
            r"0\.bias and 1\.bias are both",
        ),
        (unused(relative_path=5), DAMAGED),
        (unused(relative_path=b"x"), DAMAGED),
        (unused(relative_path="../x"), r"0\.bias is in '\.\./x', which is not the name"),
        (unused(offset="x"), DAMAGED),
        (share_bytes, r"tensors take [\d,]+ bytes of __0_0\.distcp, which has [\d,]+$"),
    ],
)
def test_what_is_wrong_with_the_metadata(
    change: Callable[[Metadata], None], words: str, tmp_path: Path
) -> None:
    metadata = cut(tmp_path / "x", "1.weight")
    change(metadata)
    (tmp_path / "x/.metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(EncodeError, match=words) as caught:
        read_checkpoint(tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_a_damaged_item_is_named(tmp_path: Path, run: Run) -> None:
    dcp.save(tensors(), checkpoint_id=tmp_path / "x")
    place = metadata_of(tmp_path / "x").storage_data[MetadataIndex("2.bias", torch.Size([0]))]
    file = tmp_path / "x" / place.relative_path
    data = bytearray(file.read_bytes())
    data[place.offset + place.length - 30] ^= 1  # in the zip's directory
    file.write_bytes(data)
    fails(run("encode", "x", *ENCODE), 1, f"2.bias in {file.name} is damaged (")


def test_damaged_metadata_is_refused_in_one_line(tmp_path: Path) -> None:
    metadata = cut(tmp_path / "x", "1.weight")
    data = pickle.dumps(metadata)
    draw = random.Random(0)
    refused: list[str] = []
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(draw.choice([1, 2, 5, 20])):
            damaged[draw.randrange(len(data))] = draw.randrange(256)
        (tmp_path / "x/.metadata").write_bytes(damaged)
        try:
            read_checkpoint(tmp_path / "x")
        except EncodeError as error:
            refused.append(str(error))
    assert refused
    assert not [said for said in refused if "\n" in said]


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    dcp.save(tensors(), checkpoint_id=tmp_path / "x")
    metadata: Metadata = metadata_of(tmp_path / "x")
    metadata.planner_data = Runs(ran)
    (tmp_path / "x/.metadata").write_bytes(pickle.dumps(metadata))
    assert same(read_checkpoint(tmp_path / "x").source, tensors())
    (tmp_path / "x/.metadata").write_bytes(pickle.dumps([Runs(ran)]))
    with pytest.raises(EncodeError, match="not the metadata"):
        read_checkpoint(tmp_path / "x")
    # In place of a tensor.
    dcp.save({"a": torch.ones(200)}, checkpoint_id=tmp_path / "y")
    (place,) = metadata_of(tmp_path / "y").storage_data.values()
    with (tmp_path / "y" / place.relative_path).open("r+b") as stream:
        torch.save(Runs(ran), stream)
        assert stream.tell() <= place.length
    with pytest.raises(EncodeError, match=r"a in \S+ is damaged"):
        read_checkpoint(tmp_path / "y")
    assert not ran.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_tensors_of_a_distributed_checkpoint_are_mapped(tmp_path: Path) -> None:
    saved = {"a": torch.ones(7), "b": torch.arange(1 << 20)}
    dcp.save(saved, checkpoint_id=tmp_path / "x")
    state: Any = read_checkpoint(tmp_path / "x").source
    maps = re.findall(r"(?m)^(\w+)-(\w+) .*\(deleted\)$", Path("/proc/self/maps").read_text())
    where = state["b"].data_ptr()
    assert any(int(start, 16) <= where < int(stop, 16) for start, stop in maps)
    state["a"][0] = 7  # in this process alone
    assert same(read_checkpoint(tmp_path / "x").source, saved)


def test_safetensors_of_ranks(run: Run, tmp_path: Path) -> None:
    """As HuggingFaceStorageWriter leaves them with `save_distributed`."""
    folder = tmp_path / "net"
    folder.mkdir()
    for rank, rows in enumerate((slice(0, 2), slice(2, 6))):
        own = {name: tensor[rows].clone() for name, tensor in tensors().items()}
        if rank:
            own["only"] = torch.ones(3)
        said = {name: {"saved_offsets": [rows.start, 0][: t.dim()]} for name, t in own.items()}
        said |= {"only": {"saved_offsets": [0]}}
        metadata = {"DCP_SHARDING_INFO": json.dumps(said), "DCP_VERSION": "1.0", "format": "pt"}
        path = folder / f"shard-0000{rank + 1}-model-00001-of-00001.safetensors"
        safetensors.torch.save_file(own, path, metadata)
    whole = tensors() | {"only": torch.ones(3)}
    assert same(read_checkpoint(folder).source, whole)
    names = sorted(folder.iterdir())
    assert run("encode", *reversed(names), *ENCODE, "-o", "out.pemn").returncode == 0
    assert run("verify", "out.pemn", "--against", "net", "--keep", 0.5).returncode == 0
    second = "shard-00002-model-00001-of-00001.safetensors"
    fails(run("encode", f"net/{second}", *ENCODE), 1, "is a file missing?")
    wrong: list[Any] = [[3], {"only": 3}, {"only": {}}]
    for offsets in ([], [0, 0], ["0"], [0.0], [None], [math.inf], [-1], [1 << 70], [[0]], 0, "0"):
        wrong.append({"only": {"saved_offsets": offsets}})
    for value in wrong:
        changed = metadata | {"DCP_SHARDING_INFO": json.dumps(value)}
        safetensors.torch.save_file(own, names[1], changed)
        with pytest.raises(EncodeError, match=f"net/{second}: its DCP_SHARDING_INFO is not what"):
            read_checkpoint(folder)
    own = {"0.weight": torch.ones(3)}
    changed = metadata | {"DCP_SHARDING_INFO": '{"0.weight": {"saved_offsets": [30]}}'}
    safetensors.torch.save_file(own, names[1], changed)
    with pytest.raises(EncodeError, match=r"^0\.weight: pieces of different numbers of dimension"):
        read_checkpoint(folder)


def test_what_the_hugging_face_writer_writes(tmp_path: Path) -> None:
    numbers = {name: 1 + number % 2 for number, name in enumerate(tensors())}
    writer = HuggingFaceStorageWriter(str(tmp_path / "x"), fqn_to_index_mapping=numbers)
    dcp.save(tensors(), storage_writer=writer)
    assert (tmp_path / "x/model.safetensors.index.json").exists()
    assert same(read_checkpoint(tmp_path / "x").source, tensors())
    writer = HuggingFaceStorageWriter(str(tmp_path / "y"), save_distributed=True)
    dcp.save(tensors(), storage_writer=writer)
    assert same(read_checkpoint(tmp_path / "y").source, tensors())


# ---------------------------------------------------------------------------------------- URLs


def test_an_index_at_a_url(run: Run, tmp_path: Path, expected: bytes) -> None:
    index = save_pretrained(tmp_path / "net", ".bin")
    with serving() as server:
        for path in index.parent.iterdir():
            server.files[f"/net/{path.name}"] = path.read_bytes()
        result = run("encode", server.url(f"/net/{index.name}"), *ENCODE, "-o", "out.pemn")
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "out.pemn").read_bytes() == expected
        del server.files["/net/pytorch_model-00002-of-00003.bin"]
        result = run("encode", server.url(f"/net/{index.name}"), *ENCODE, "-o", "out.pemn", "-f")
        fails(result, 1, "/net/pytorch_model-00002-of-00003.bin: No such file")
        reindex(index, lambda names: names.update({"0.bias": "../x"}))
        server.files[f"/net/{index.name}"] = index.read_bytes()
        fails(run("encode", server.url(f"/net/{index.name}"), *ENCODE), 1, "not the name of a file")
