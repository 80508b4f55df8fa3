"""What a caller of `encode` asks for, as one validated value."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, TypeGuard, get_args

from pemncodec.coders.masks import PRESETS, Preset
from pemncodec.contents import DenseMode, Seeded, TorchPrototype
from pemncodec.errors import EncodeArgumentError
from pemncodec.limits import Limits
from pemncodec.peers import Peers
from pemncodec.sizes import size_in_bytes
from pemncodec.threads import is_thread_count
from pemncodec.values.generators import GENERATORS, check_prototype
from pemncodec.values.seed_search import FAST, FULL, THOROUGH, Effort

if TYPE_CHECKING:
    from torch import Tensor, nn

FindSeed = Literal["auto", "quick", "full", "off"]


class MaskChoices(TypedDict, total=False):
    """What a caller says of masks, as `pemncodec.encode` and `EncodeOptions` document it."""

    masks: Mapping[str, Any] | None
    keep: float | Mapping[str, float] | None
    rule: str | None
    scores_name: str | None
    task: int | None
    masks_from: Literal["zeros"] | None
    masks_are: str


_NO_UNIT: Final = 1000  # bytes, fewer than which nobody means


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodeOptions:
    """The options of `pemncodec.encode`, which documents them; what needs no model is checked.

    Attributes:
        masks_are: where `masks` come from, in words.
        peers: the processes that encode the other tensors of the network; None where the source is
            all of it.

    Raises:
        EncodeArgumentError: options that are out of range, or contradict each other.
    """

    masks: Mapping[str, Tensor] | None = None
    masks_are: str = "given by the caller"
    masks_from: Literal["zeros"] | None = None
    keep: float | Mapping[str, float] | None = None
    rule: str | None = None
    scores_name: str | None = None
    task: int | None = None
    architecture: nn.Module | None = None
    prefix: str | None = None
    example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None = None
    dynamic_axes: Sequence[Collection[int]] = ()
    manifest: bool = True
    train_graph: bool = False
    builder: tuple[str, Mapping[str, Any]] | None = None
    prototypes: Sequence[Seeded] = ()
    find_seed: FindSeed = "auto"
    seed: int | None = None
    preset: Preset = "default"
    threads: int | None = None
    dense: DenseMode | Mapping[str, DenseMode] = "lossless"
    fold_bn: bool = False
    accuracy: Callable[[nn.Module], float] | None = None
    max_drop: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    peers: Peers | None = None
    shard_size: int | str | None = None
    share_prototypes: bool = False
    resume: bool = False

    @property
    def shard_bytes(self) -> int | None:
        """What a shard may take; None for one file."""
        size = self.shard_size
        return size_in_bytes(size) if isinstance(size, str) else size

    @property
    def dense_modes(self) -> Mapping[str, DenseMode]:
        """Modes by pattern of the tensor's name, the first that fits."""
        return self.dense if isinstance(self.dense, Mapping) else {"*": self.dense}

    @property
    def seed_effort(self) -> Effort | None:
        """How much is tried to find the seeds of frozen weights; None for nothing."""
        if self.find_seed == "off":
            return None
        if self.find_seed == "full":
            return FULL
        return FAST if self.find_seed == "quick" or self.preset == "fast" else THOROUGH

    @property
    def trust(self) -> tuple[str, ...]:
        """Code that the file names and that reading it back may run."""
        return () if self.builder is None else (self.builder[0],)

    def __post_init__(self) -> None:
        if not self.manifest:
            self._check_without_manifest()
        if self.dynamic_axes and self.example_inputs is None:
            raise EncodeArgumentError("dynamic_axes needs example_inputs")
        if self.masks is not None and not isinstance(self.masks, Mapping):
            raise EncodeArgumentError(f"masks must be named, not {type(self.masks).__name__}")
        for name in self.masks or ():
            if not isinstance(name, str):
                raise EncodeArgumentError(f"masks must be named by text, not by {name!r:.60}")
        if self.masks_from not in (None, "zeros"):
            raise EncodeArgumentError(
                f'--masks-from (masks_from=…) must be "zeros", not {self.masks_from!r:.60}'
            )
        if self.prefix is not None and not (isinstance(self.prefix, str) and self.prefix):
            raise EncodeArgumentError(
                f"--prefix (prefix=…) must be the beginning of names, not {self.prefix!r:.60}"
            )
        if not is_thread_count(self.threads):
            raise EncodeArgumentError(
                f"--threads (threads=…) must be 1 or more, not {self.threads!r:.60}"
            )
        if self.preset not in PRESETS:
            raise EncodeArgumentError(
                f"unknown preset {self.preset!r:.60}, have {', '.join(PRESETS)}"
            )
        for mode in self.dense_modes.values():
            if mode not in get_args(DenseMode):
                known = ", ".join(get_args(DenseMode))
                raise EncodeArgumentError(f"unknown dense mode {mode!r:.60}, have {known}")
        if self.find_seed not in get_args(FindSeed):
            known = ", ".join(get_args(FindSeed))
            raise EncodeArgumentError(f"unknown find_seed {self.find_seed!r:.60}, have {known}")
        if self.seed is not None and not _is_seed(self.seed):
            raise EncodeArgumentError(
                f"--seed (seed=…) must be what torch.manual_seed takes, not {self.seed!r:.60}"
            )
        if self.max_drop is not None and self.accuracy is None:
            raise EncodeArgumentError("--max-drop (max_drop) needs --accuracy (accuracy)")
        if self.accuracy is not None and not callable(self.accuracy):
            raise EncodeArgumentError(
                f"accuracy must be a function of a module, not {self.accuracy!r:.60}"
            )
        for prototype in self.prototypes:
            if type(prototype) not in GENERATORS:
                raise EncodeArgumentError(
                    "prototypes must be SeededPrototype(…) or TorchPrototype(…), "
                    f"not {prototype!r:.60}"
                )
            try:
                check_prototype(prototype)
            except ValueError as error:
                raise EncodeArgumentError(str(error)) from None
            most = Limits().drawn_words
            if isinstance(prototype, TorchPrototype) and prototype.skip > most:
                raise EncodeArgumentError(
                    f"TorchPrototype: skip is {prototype.skip:,}, and readers draw at most "
                    f"{most:,} words"
                )
        _check_metadata(self.metadata)
        self._check_shards()

    def _check_shards(self) -> None:
        size = self.shard_bytes
        if self.shard_size is not None and not (_is_integer(size) and size > 0):
            raise EncodeArgumentError(
                "--shard-size (shard_size=…) must be bytes, such as 2GB, 500MB or 2GiB, not "
                f"{self.shard_size!r:.60}"
            )
        plain = isinstance(self.shard_size, str) and self.shard_size.isdigit()
        if plain and size is not None and size < _NO_UNIT:
            given = self.shard_size
            raise EncodeArgumentError(
                f"--shard-size (shard_size=…): {given} is without a unit: {given}GB, {given}MB, or "
                f"{given}B if bytes are meant"
            )
        if self.share_prototypes and size is None:
            raise EncodeArgumentError(
                "--share-prototypes (share_prototypes=True) is for shards: it needs --shard-size "
                "(shard_size=…)"
            )
        if self.resume and size is None and self.peers is None:
            raise EncodeArgumentError(
                "--resume (resume=True) continues shards: a file that is encoded without "
                "--shard-size (shard_size=…) is written at once, in the end"
            )

    def _check_without_manifest(self) -> None:
        if self.architecture is not None:
            raise EncodeArgumentError(
                "--no-manifest (manifest=False) stores no architecture: leave out --arch "
                "(architecture=…)"
            )
        if self.builder is not None:
            raise EncodeArgumentError(
                "--no-manifest (manifest=False) stores no --builder (builder=…): leave out one of "
                "them"
            )
        if self.fold_bn or self.accuracy is not None:
            raise EncodeArgumentError(
                "--fold-bn and --accuracy need the architecture: leave out --no-manifest "
                "(manifest=False)"
            )


def check_shares(keep: object) -> None:
    """Check what a caller gives as `keep`.

    Raises:
        EncodeArgumentError: it is neither a share, nor shares by pattern, nor None.
    """
    if keep is None:
        return
    for name in keep if isinstance(keep, Mapping) else ():
        if not isinstance(name, str):
            raise EncodeArgumentError(f"keep must be named by patterns, not by {name!r:.60}")
    for share in keep.values() if isinstance(keep, Mapping) else (keep,):
        if not (isinstance(share, Real) and 0 < float(share) <= 1):
            raise EncodeArgumentError(
                f"--keep (keep=…) must be above 0 and at most 1, not {share!r:.60}: "
                "it is a share, such as 0.5"
            )


def check_dense_pattern(pattern: str, names: Iterable[str]) -> None:
    """Raises EncodeArgumentError for a pattern of `dense` that fits none of the tensors' names."""
    if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
        raise EncodeArgumentError(f"dense: no tensor is called {pattern}")


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_seed(value: object) -> bool:
    return isinstance(value, Integral) and -(1 << 63) <= int(value) < 1 << 64


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if not isinstance(metadata, Mapping):
        raise EncodeArgumentError(f"metadata must be text by name, not {metadata!r:.60}")
    for key, value in metadata.items():
        for text in (key, value):
            if not isinstance(text, str) or (not text.isascii() and _has_surrogate(text)):
                raise EncodeArgumentError(f"metadata must be text, not {key!r:.60}: {value!r:.60}")


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
