"""Networks on the Hugging Face Hub, or in folders that are laid out as its repositories.

By the conventions of `huggingface_hub`: the same names, arguments and cache. These are functions
and no mixin, since a decoded module has no class of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

from torch import Tensor, nn

from pemncodec.decoding import decode
from pemncodec.encoding import encode
from pemncodec.errors import EncodeArgumentError, named_line
from pemncodec.format.atomic import write_file
from pemncodec.format.index import INDEX_SUFFIX, SUFFIX, decode_index, index_name
from pemncodec.format.info import FileInfo
from pemncodec.format.publishing import put_file
from pemncodec.format.reader import PemnFile
from pemncodec.limits import Limits
from pemncodec.remote.urls import is_url, last_part

try:
    from huggingface_hub import HfApi, ModelCard, ModelCardData, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
except ModuleNotFoundError as error:
    if error.name != "huggingface_hub":  # but one that it needs
        raise
    raise ImportError("pemncodec.hub needs huggingface_hub: pip install huggingface_hub") from None

FILE_NAME: Final = "model.pemn"
CARD_NAME: Final = "README.md"
_SHARDS: Final = "model-*-of-*.pemn"
# Of its client, which is not the same in all versions; hf_xet has no class of its own.
_BREAKS: Final = (*HfHubHTTPError.__bases__, RuntimeError)

_PARTS: Final = {
    "header": "header: names, shapes, seeds",
    "manifest": "architecture",
    "prototype": "stored values of frozen weights",
    "dense": "trained tensors",
    "mask": "masks",
}


def from_pretrained(
    pretrained_model_name_or_path: str | os.PathLike[str],
    *,
    filename: str = FILE_NAME,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    **options: Any,
) -> nn.Module:
    """The network of a repository on the Hub, or of a folder; see `pemncodec.decode`.

    Args:
        pretrained_model_name_or_path: a folder or its URL, or "user/name" of a repository, whose
            files are kept in the cache of `huggingface_hub`. A path of a file, or a URL that ends
            with ".pemn" or ".pemn.index.json", is taken as it is.
        filename: of the .pemn file in it, or of the model whose index is there.
        revision: branch, tag or commit of the repository.
        cache_dir: another folder for the cache.
        force_download: downloads also what is in the cache.
        local_files_only: uses the cache alone, without a network.
        token: for private repositories; None takes that of `hf auth login`.
        **options: of `decode`, such as `device` or `into`.

    Raises:
        OSError: there is no such file or repository, or it cannot be reached.
        DecodeError: as in `decode`.
    """
    name = os.fspath(pretrained_model_name_or_path)
    if is_url(name):
        if last_part(name).endswith((SUFFIX, INDEX_SUFFIX)):
            return decode(name, **options)
        return _decode_either(f"{name.rstrip('/')}/{filename}", options)
    if Path(name).is_dir():
        return _decode_either(str(Path(name, filename)), options)
    if Path(name).is_file():
        return decode(name, **options)
    download = partial(
        _download,
        name,
        revision=revision,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        force_download=force_download,
        local_files_only=local_files_only,
        token=token,
        library_name="pemncodec",
    )
    try:
        path = _downloaded(download, filename, options.get("limits") or Limits())
    except HFValidationError:
        raise FileNotFoundError(
            errno.ENOENT, "there is no such folder, and no repository has such a name", name
        ) from None
    except OSError as error:
        error.add_note(f"The Hub was asked, since there is no folder {name!r} here.")
        raise
    return decode(path, **options)


def _download(repository: str, **options: Any) -> str:
    """A file of a repository, in the cache."""
    try:
        return str(hf_hub_download(repository, **options))
    except (OSError, RecursionError, NotImplementedError):
        raise
    except Exception as error:
        if not isinstance(error, _BREAKS):
            raise
        raise ConnectionAbortedError(
            errno.ECONNABORTED,
            f"the connection to the Hub broke ({named_line(error)}): try again later; files that "
            "came whole are in the cache and not fetched again",
            f"{repository}/{options['filename']}",
        ) from error


def _decode_either(file: str, options: Mapping[str, Any]) -> nn.Module:
    """The network of a path or URL, or of the index beside it where the model is in shards."""
    try:
        return decode(file, **options)
    except FileNotFoundError as error:
        try:
            return decode(index_name(file), **options)
        except FileNotFoundError:
            raise error from None


def _downloaded(download: Callable[..., str], filename: str, limits: Limits) -> str:
    """The path of a file in the cache, or of the index whose shards are there, too."""
    try:
        return download(filename=filename)
    except EntryNotFoundError as error:
        index = index_name(filename)
        try:
            path = download(filename=index)
        except EntryNotFoundError:
            raise error from None
    # A branch may get other shards meanwhile; the cache has a folder for each commit.
    commit = Path(path).parents[len(PurePosixPath(index).parts) - 1].name
    for shard in decode_index(Path(path).read_bytes(), limits).shards:
        download(filename=str(PurePosixPath(index).with_name(shard)), revision=commit)
    return path


def save_pretrained(
    source: nn.Module | Mapping[str, Tensor] | PemnFile,
    save_directory: str | os.PathLike[str],
    *,
    card_data: Mapping[str, Any] | None = None,
    **options: Any,
) -> FileInfo:
    """Write a network as `model.pemn` into a folder, and a model card with its sizes.

    With a `shard_size`, large networks become several files and `model.pemn.index.json`. A card
    that is there stays. The folder is made where there is none.

    Args:
        source: as in `pemncodec.encode`. An open file without options is written as it is.
        save_directory: the folder.
        card_data: fields of the card's head, such as `license` or `pipeline_tag`.
        **options: of `encode`, such as `example_inputs`, `preset` or `shard_size`.

    Returns:
        What the file costs, part by part.

    Raises:
        EncodeError: as in `encode`; no folder was made then.
    """
    if is_url(save_directory):
        raise EncodeArgumentError("save_directory is a folder of this machine; see push_to_hub")
    folder = Path(save_directory)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder", str(folder))
    return _save(source, folder, folder.resolve().name, card_data, options)


def push_to_hub(
    source: nn.Module | Mapping[str, Tensor] | PemnFile,
    repo_id: str,
    *,
    commit_message: str = "Push model using pemncodec.",
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    card_data: Mapping[str, Any] | None = None,
    **options: Any,
) -> str:
    """Save a network as `save_pretrained` does, and put it into a repository on the Hub.

    The repository is made where there is none. A card that is there stays.

    Args:
        source: as in `save_pretrained`.
        repo_id: "user/name".
        commit_message: of the commit.
        private: whether a new repository is private; None leaves it to the Hub's settings.
        token: None takes that of `hf auth login`.
        branch: of the repository, "main" by default.
        create_pr: opens a pull request.
        card_data: as in `save_pretrained`.
        **options: of `encode`.

    Returns:
        The URL of the commit.

    Raises:
        EncodeError: as in `encode`; nothing was sent then.
        OSError: the Hub cannot be reached, or refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        _save(source, Path(folder), repo_id, card_data, options)
        api = HfApi(token=token, library_name="pemncodec")
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        known = api.file_exists(repository, CARD_NAME, revision=branch)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
            ignore_patterns=CARD_NAME if known else None,
            delete_patterns=[FILE_NAME, index_name(FILE_NAME), _SHARDS],  # but what is uploaded
        )
    return str(commit)


def _save(
    source: nn.Module | Mapping[str, Tensor] | PemnFile,
    folder: Path,
    title: str,
    card_data: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> FileInfo:
    head = _card_head({} if card_data is None else card_data)
    if isinstance(source, PemnFile) and not options and (own := source.data()) is not None:
        info = source.info()
        folder.mkdir(parents=True, exist_ok=True)
        put_file([own], folder / FILE_NAME)
    else:
        with _made(folder):
            info = encode(source, folder / FILE_NAME, **options).info
    card = folder / CARD_NAME
    if not card.exists():
        write_file([str(_card(head, title, info)).encode()], card)
    return info


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder that is made where there is none, and is gone after an error if nothing is in it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _card_head(data: Mapping[str, Any]) -> ModelCardData:
    if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
        raise EncodeArgumentError(
            f'card_data must be fields by name, such as {{"license": "mit"}}, not {data!r:.60}'
        )
    return ModelCardData(
        **{"library_name": "pemncodec", "tags": ["pemncodec", "masked-network"], **data}
    )


def _card(head: ModelCardData, title: str, info: FileInfo) -> ModelCard:
    masked = "No weights are masked."
    if info.bits_per_weight is not None:
        masked = (
            f"{info.masked_weights:,} weights are frozen, and a mask of {info.bits_per_weight:.2f} "
            "bits for each says which of them are used."
        )
    in_shards = f", in {len(info.shards):,} shards" if info.shards else ""
    lines = [
        f"---\n{head.to_yaml()}\n---\n",
        f"# {title}\n",
        f"A masked network in a `.pemn` file. {masked}\n",
        *_losses(info),
        "| | bytes |",
        "|---|---:|",
        f"| the same tensors, plain | {info.dense_model_bytes:,} |",
        f"| **{FILE_NAME}{in_shards}** | **{info.file_bytes:,}** |",
        *(f"| {_PARTS[part]} | {size:,} |" for part, size in info.parts.items()),
        "\n```python",
        "from pemncodec.hub import from_pretrained\n",
        f'model = from_pretrained("{title if "/" in title else f"user/{title}"}")',
        "```",
        *(f"\n* {key}: {' '.join(text.split())}" for key, text in info.metadata.items()),
    ]
    return ModelCard("\n".join(lines) + "\n")


def _losses(info: FileInfo) -> Iterator[str]:
    """What the network in the file has lost, a line each."""
    if info.largest_error:
        yield (
            "Lossy: trained tensors are shortened, values of a tensor by up to "
            f"{100 * info.largest_error:.2g} % of its largest.\n"
        )
    if info.inference_only:
        yield "For inference only: batch norms are folded into a scale and a shift.\n"
