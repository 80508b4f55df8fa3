"""A masked model or checkpoint → a .pemn file, proven by decoding it again before it is written."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Final, Literal

import torch
from torch import Tensor, nn

from pemncodec.architecture.manifest import BUILDER_FORMAT
from pemncodec.assembling import assemble_contents, dense_modes, shortened_state
from pemncodec.checkpoints.origin import origin_of
from pemncodec.checkpoints.reading import described_module, notes_of, read_source, rules_in_words
from pemncodec.coders.masks import Preset
from pemncodec.contents import DenseMode, Seeded
from pemncodec.decoding import load_module, load_state
from pemncodec.describing import describe_network
from pemncodec.errors import EncodeArgumentError
from pemncodec.format.atomic import folder_beside, named_errors
from pemncodec.format.publishing import put_file
from pemncodec.format.reader import PemnFile
from pemncodec.format.sections import SectionSource, Source
from pemncodec.format.writer import encode_contents
from pemncodec.options import EncodeOptions, FindSeed
from pemncodec.packed.modules import unpacked_copy
from pemncodec.proof import Report, prove_network, prove_own_masks, prove_tensors
from pemncodec.remote.stores import check_target
from pemncodec.remote.urls import is_url, shown
from pemncodec.seeds import seeds_note
from pemncodec.sharding import check_shard_target, encode_part, encode_shards, plan_shards
from pemncodec.spool import Spool
from pemncodec.threads import given_threads, threads_given

Progress = Callable[[str, float | None], None]
_LOG: Final = logging.getLogger(__name__)


def encode(
    source: nn.Module | Mapping[str, Tensor] | PemnFile,
    target: str | os.PathLike[str] | BinaryIO,
    *,
    masks: Mapping[str, Tensor] | None = None,
    masks_from: Literal["zeros"] | None = None,
    keep: float | Mapping[str, float] | None = None,
    rule: str | None = None,
    scores_name: str | None = None,
    task: int | None = None,
    architecture: nn.Module | None = None,
    prefix: str | None = None,
    example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    dynamic_axes: Sequence[Collection[int]] = (),
    manifest: bool = True,
    train_graph: bool = False,
    builder: tuple[str, Mapping[str, Any]] | None = None,
    prototypes: Sequence[Seeded] = (),
    find_seed: FindSeed = "auto",
    seed: int | None = None,
    preset: Preset = "default",
    threads: int | None = None,
    dense: DenseMode | Mapping[str, DenseMode] = "lossless",
    fold_bn: bool = False,
    accuracy: Callable[[nn.Module], float] | None = None,
    max_drop: float | None = None,
    metadata: Mapping[str, str] | None = None,
    shard_size: int | str | None = None,
    share_prototypes: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write a masked network as a .pemn file.

    Before anything is written the file is decoded again: every tensor must come back bit for bit,
    and the rebuilt module must give the original's outputs at two batch sizes, in eval and in
    train mode (where there is one, see `train_graph`).

    Args:
        source: a module of `pemncodec.masking` or in `torch.nn.utils.prune` form, or any with
            `masks`; or the state dict of a masked network, in any of the README's dialects. A
            module that was decoded, or an open .pemn file, comes with its masks, seeds, shortened
            tensors, architecture and metadata: where nothing has changed, the same bytes are
            written.
        target: a path or a URL, replaced atomically, or a binary file object.
        masks: bool [*shape] by name of the parameter, for weights whose masks `source` lacks.
        masks_from: "zeros" for more masks: weights that are 0 are masked out, in all tensors of
            two or more dimensions that hold zeros.
        keep: share of each layer's weights that its scores keep, in (0, 1]; one for all, or by
            pattern of the weight's name (`fnmatch`, the first that fits).
        rule: how masks follow from scores, where not as in the code that the scores' names stand
            for: "magnitude" (the largest |score| of each layer stay), "score" (the largest score),
            "global-magnitude", "global-score" (one cut for the whole network), "movement",
            "biprop", "biprop-global", "above=T", "at-least=T", "sigmoid-above=T", "bernoulli=SEED".
        scores_name: what scores are called beside a weight, where they have another name than those
            of the README's dialects: "importance" for `X.importance` beside `X.weight`.
        task: which set of scores, where there are several (`X.scores.0`, `X.scores.1`, …).
        architecture: the plain module whose state dict `source` is, when that is a state dict.
        prefix: what the names of the network's tensors begin with in a state dict, such as
            "model."; it is left out, and so are all other tensors.
        example_inputs: what the module's `forward` takes, batch first, by position or by name; None
            guesses it from the first layer.
        dynamic_axes: for each of `example_inputs`, axes beside the batch whose sizes may vary, such
            as the length of a sequence; a `forward` that has to be exported fixes all others.
        manifest: False stores the tensors without the architecture.
        train_graph: a `forward` that torch.fx cannot trace is exported for eval mode; True exports
            it for train mode, too.
        builder: import path ("pkg.module:factory") and arguments of code that makes the plain
            module; stored in place of a description, so that who reads the file must have that
            code and allow it to run (`decode(trust=…)`).
        prototypes: seeds (`SeededPrototype`, `TorchPrototype`) that frozen weights may come from.
        find_seed: "auto" looks for the seeds of torch's CPU generator, or of NumPy's legacy one,
            from which the frozen weights come, so that the file stores the seeds and not the
            weights: for some seconds, or for a second with "quick" or preset "fast". "full" then
            tries all 2^32 seeds wherever the architecture suggests, three quarters of a minute for
            each such place on two cores. "off" does not look for any. Nor is it done where
            `prototypes` are given.
        seed: what `torch.manual_seed` or `np.random.seed` was given, if it is known.
        preset: "fast" for masks that decode at memory speed; "max" for the smallest, which decode
            at some 30 million weights a second on one core; "default" for the smallest of models
            that this decodes within a second.
        threads: how many to use, torch's among them; None takes as many as can run, and leaves
            torch's alone. The file is the same.
        dense: how float32 tensors that are not masked are stored: "lossless", "fp16", "bf16" or
            "q8" (8 bits, each tensor or row of a matrix with its own range); one for all, or by
            pattern of the name (`fnmatch`, the first that fits; others are lossless).
        fold_bn: make an inference-only file in which a batch norm is two vectors; the module and
            its names stay what they are.
        accuracy: a metric of a module in eval mode, larger is better; called with the original and
            with what the file gives.
        max_drop: by how much `accuracy` may be smaller for the file.
        metadata: text to keep in the file.
        shard_size: the bytes that a file may have, such as "2GB" or 2_000_000_000. A model that may
            take more, before its masks and values are compressed, becomes several files,
            `NAME-00001-of-00003.pemn` and so on, and an index `NAME.pemn.index.json` for a target
            `NAME.pemn`. Only the file of a tensor that alone takes more is larger.
        share_prototypes: values that are stored, and that several of these files use, are in one of
            them, which the others need beside them. Else each file opens alone.
        resume: continue an encoding into shards that was interrupted: what is finished is kept, if
            the same is encoded with the same options, and the files are the same. One process at a
            time encodes to a name; Windows does not tell where there are two.
        progress: called with the step that is under way and its share done, 0 to 1 or None.

    Raises:
        EncodeArgumentError: arguments that are missing, out of range, or contradict each other.
        UnsupportedModelError: the manifest cannot describe the module.
        PrototypeMismatchError: no weights come from one of `prototypes`, or from `seed`.
        EncodeError: data that cannot be encoded, or a file that loses more than `max_drop`.
    """
    options = EncodeOptions(
        masks=masks,
        masks_from=masks_from,
        keep=keep,
        rule=rule,
        scores_name=scores_name,
        task=task,
        architecture=architecture,
        prefix=prefix,
        example_inputs=example_inputs,
        dynamic_axes=dynamic_axes,
        manifest=manifest,
        train_graph=train_graph,
        builder=builder,
        prototypes=prototypes,
        find_seed=find_seed,
        seed=seed,
        preset=preset,
        threads=threads,
        dense=dense,
        fold_bn=fold_bn,
        accuracy=accuracy,
        max_drop=max_drop,
        metadata=metadata or {},
        shard_size=shard_size,
        share_prototypes=share_prototypes,
        resume=resume,
    )
    return encode_with(options, source, target, progress)


def encode_with(
    options: EncodeOptions,
    source: nn.Module | Mapping[str, Tensor] | PemnFile,
    target: str | os.PathLike[str] | BinaryIO,
    progress: Progress | None = None,
) -> Report:
    """What `encode` does, by options as one value."""
    with threads_given(options.threads), _torch_threads(given_threads()):
        return _encode(options, source, target, _logged(progress))


_BEFORE: Final[list[int]] = []  # torch's threads when calls began that are under way
_BEFORE_LOCK: Final = Lock()


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    """As many threads of torch as the caller has given, while the block runs; None leaves them.

    Calls of several threads may overlap. PyTorch keeps a number for the process, which new threads
    take, and one for each thread; these get back what was before the first of these calls.
    """
    if threads is None:
        yield
        return
    with _BEFORE_LOCK:
        _BEFORE.append(torch.get_num_threads())
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        with _BEFORE_LOCK:
            torch.set_num_threads(_BEFORE[0])
            _BEFORE.pop()


def _encode(
    options: EncodeOptions,
    source: nn.Module | Mapping[str, Tensor] | PemnFile,
    target: str | os.PathLike[str] | BinaryIO,
    step: Progress,
) -> Report:
    if is_url(target):
        check_target(target)
    elif isinstance(target, str | os.PathLike) and not Path(target).absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(Path(target).parent))
    check_shard_target(target, options)
    step("reading masks", None)
    origin = origin_of(source)
    given = unpacked_copy(source) if isinstance(source, nn.Module) else source
    if isinstance(given, PemnFile):
        given = _of_file(given, options)
    module = described_module(given, options)
    state = read_source(given, options, origin)
    notes = notes_of(given, state, options)
    network = None
    if module is not None:
        doing = "describing the architecture"
        step(doing, None)
        network = describe_network(module, state, options, origin, lambda share: step(doing, share))
        prove_own_masks(network, state)
        state = network.state
    modes = dense_modes(state, options)
    # What a file has shortened before loses nothing by the same mode.
    losing = {name: mode for name, mode in modes.items() if mode != state.mode_before(name)}
    # As the file will have it; refuses what it cannot hold before anything is coded.
    as_written = shortened_state(state, losing) if losing else state
    if origin is not None and origin.metadata and not origin.is_unchanged(as_written.effective()):
        origin = replace(origin, metadata={})
        notes += ("the metadata of its .pemn file is left out, since tensors have changed",)
    contents = assemble_contents(
        state,
        modes,
        network.trace if network else None,
        options,
        origin,
        step,
    )

    def prove(source: Source | SectionSource) -> Report:
        step("verifying", None)
        if network is None:
            report = prove_tensors(source, as_written, step)
        else:
            report = prove_network(source, as_written, network, options, step)
        return replace(report, verified=f"as shortened, {report.verified}") if losing else report

    notes += network.notes if network else ()
    if (seeds := seeds_note(contents, options)) is not None:
        notes += (seeds,)
    name = shown(os.fspath(target)) if isinstance(target, str | os.PathLike) else ""
    plan = plan_shards(contents, target, options)
    if plan is not None:
        del contents  # prototypes may take as much memory as the weights
        if options.peers is None:
            report = encode_shards(plan, prove, step, resume=options.resume)
        else:
            report = encode_part(plan, prove, step, options.peers, resume=options.resume)
    else:
        folder = folder_beside(target)
        with Spool(folder) as spool:
            with named_errors(tempfile.gettempdir() if folder is None else name):
                encoded = encode_contents(
                    contents, lambda share: step("coding", share), options.preset, spool
                )
            del contents
            report = prove(encoded)
            step("writing", None)
            put_file(encoded, target)
    rules = rules_in_words(state, options.peers)
    report = replace(report, rules=rules, notes=(*notes, *report.notes))
    for note in notes:
        _LOG.info("%s", note)
    _LOG.info("wrote %s: %r", name, report)
    return report


def _logged(progress: Progress | None) -> Progress:
    """A function that is told of every step: the caller's, and each new step in the log."""
    latest = ""

    def step(name: str, share: float | None) -> None:
        nonlocal latest
        if name != latest:
            latest = name
            _LOG.debug("%s", name)
        if progress is not None:
            progress(name, share)

    return step


def _of_file(file: PemnFile, options: EncodeOptions) -> nn.Module | Mapping[str, Tensor]:
    """A file's module, or its tensors where it has none or another one is to be described."""
    manifest = file.manifest
    if manifest is None and options.architecture is None and options.manifest:
        raise EncodeArgumentError(
            "the file holds no architecture: give --arch pkg.module:factory (architecture=…), or "
            "--no-manifest (manifest=False) to store the tensors alone"
        )
    if manifest is None or options.architecture is not None or not options.manifest:
        return load_state(file, "cpu")
    if manifest["format"] == BUILDER_FORMAT:
        raise EncodeArgumentError(
            f"the file's architecture is the code {manifest['builder']}: give it with --arch and "
            "--builder (architecture=…, builder=…)"
        )
    return load_module(file, "cpu")
