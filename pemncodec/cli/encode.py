"""`pemn encode`: a checkpoint → a file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, cast

import click

from pemncodec.checkpoints.folders import transformers_class
from pemncodec.checkpoints.kinds import DISTRIBUTED
from pemncodec.cli.mask_options import MASK_SECTION, MaskArguments, mask_options
from pemncodec.cli.options import (
    Shape,
    dense_option,
    example_inputs,
    find_seed_option,
    force_option,
    json_option,
    metadata_option,
    parse_argv,
    parse_dense,
    parse_kwargs,
    parse_metadata,
    prefix_option,
    preset_option,
    quiet_option,
    resume_option,
    seed_option,
    shard_size_option,
    threads_option,
    trust_pickle_option,
)
from pemncodec.cli.sections import Sectioned
from pemncodec.cli.streams import (
    STDIO,
    FileName,
    check_output,
    check_sources,
    checkpoint_paths,
    named,
    output_target,
)
from pemncodec.cli.terminal import print_json, print_report, report_json, steps
from pemncodec.cli.user_code import load_architecture, load_object, no_exit, user_code
from pemncodec.coders.masks import Preset
from pemncodec.format.atomic import named_errors, write_file
from pemncodec.format.leftovers import has_names
from pemncodec.format.parts import discard_leftover_parts
from pemncodec.options import EncodeOptions, FindSeed
from pemncodec.remote.urls import is_url, last_part, shown

_IN_MEMORY: Final = 1 << 24  # bytes that wait for standard output; more of them in a file


@click.command(
    cls=Sectioned,
    sections={
        **MASK_SECTION,
        "arch": "Architecture",
        "preset": "Size, speed and accuracy",
        "find_seed": "Seeds behind the weights",
        "metadata": "What is written",
        "trust_pickle": "Other options",
    },
    short_help="Encode a checkpoint of a masked network.",
)
@click.argument("sources", metavar="CHECKPOINT…", type=FileName(), nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=FileName(),
    help="File to write  [default: CHECKPOINT with .pemn].",
)
@mask_options
@prefix_option
@click.option(
    "--arch",
    metavar="MODULE:FUNCTION",
    help="What builds the network with plain layers: pkg.module:function or "
    "path/to/file.py:function.",
)
@click.option(
    "--arch-kwargs",
    default="{}",
    metavar="JSON",
    help="Arguments of that function, such as '{\"dim\": 128}'.",
)
@click.option(
    "--arch-argv", metavar="TEXT", help="What its code finds in sys.argv, one text as in a shell."
)
@click.option(
    "--example-shape",
    "shapes",
    type=Shape(),
    multiple=True,
    help="An input of the network without its batch: 3,32,32, or int64:16? for a size that may "
    "vary; once for each input  [default: a guess].",
)
@click.option(
    "--builder",
    is_flag=True,
    help="Store the name of --arch in place of a description: who decodes the file needs that "
    "code, and --trust.",
)
@click.option(
    "--train-graph",
    is_flag=True,
    help="Also describe train mode, where torch.fx cannot trace the network.",
)
@click.option("--no-manifest", is_flag=True, help="Store tensors without the architecture.")
@preset_option
@dense_option
@click.option(
    "--fold-bn",
    is_flag=True,
    help="Store each batch norm as a scale and a shift: a file for inference only.",
)
@click.option(
    "--accuracy",
    metavar="MODULE:FUNCTION",
    help="A metric of yours, larger is better: called with the original module and with the "
    "decoded one.",
)
@click.option(
    "--max-drop",
    type=float,
    metavar="X",
    help="Write no file that loses more than this, in units of --accuracy.",
)
@find_seed_option
@seed_option
@metadata_option
@shard_size_option
@click.option(
    "--share-prototypes",
    is_flag=True,
    help="With --shard-size: store values that several files use in one of them, which the others "
    "then need beside them.",
)
@resume_option
@trust_pickle_option
@threads_option
@force_option
@quiet_option
@click.option("-v", "--verbose", is_flag=True, help="Also list every tensor.")
@json_option
def encode(
    sources: Sequence[str],
    output: str | None,
    mask_arguments: MaskArguments,
    prefix: str | None,
    arch: str | None,
    arch_kwargs: str,
    arch_argv: str | None,
    shapes: Sequence[tuple[str, tuple[str, ...]]],
    builder: bool,
    train_graph: bool,
    no_manifest: bool,
    preset: Preset,
    dense: Sequence[str],
    fold_bn: bool,
    accuracy: str | None,
    max_drop: float | None,
    find_seed: FindSeed,
    seed: int | None,
    metadata: Sequence[str],
    shard_size: str | None,
    share_prototypes: bool,
    resume: bool,
    trust_pickle: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Encode a checkpoint (.pt, .pth, .safetensors, .npz, .pemn) of a masked network.

    \b
    pemn encode model.pt --keep 0.5 -o model.pemn \\
        --arch models.py:convmixer --arch-kwargs '{"dim": 128, "depth": 4}' \\
        --example-shape 3,32,32

    The names in a checkpoint tell whose masks it has: those of pemncodec.masking, of
    torch.nn.utils.prune (X_orig, X_mask), of the official PEMN code (X.weight, X.scores, with
    --keep) and of others, which the README lists. The file is decoded again and compared with the
    original before it is written.

    A checkpoint in several files is given as the index that lies beside them, as its folder, or as
    all of its files; a folder of torch.distributed.checkpoint is taken, too.
    """
    kwargs = parse_kwargs(arch_kwargs, arch)
    argv = parse_argv(arch_argv, arch, builder=builder)
    if builder and (arch is None or arch.rpartition(":")[0].endswith(".py")):
        raise click.UsageError(
            "--builder needs --arch pkg.module:factory, of code that is installed"
        )
    options = EncodeOptions(
        prefix=prefix,
        manifest=not no_manifest,
        train_graph=train_graph,
        builder=(arch, kwargs) if builder and arch else None,
        preset=preset,
        dense=parse_dense(dense),
        fold_bn=fold_bn,
        find_seed=find_seed,
        seed=seed,
        metadata=parse_metadata(metadata),
        shard_size=shard_size,
        share_prototypes=share_prototypes,
        resume=resume,
    )
    check_sources(sources)
    output = output or target_beside(sources)
    location = output if is_url(output) else Path(output)
    ours = resume and has_names(location)
    for source in sources:
        check_output(output, source, force=force or ours, resume=resume)
    if arch is None and not no_manifest:
        _check_architecture(sources)
    restarted = force and not resume and discard_leftover_parts(location)
    if restarted and not quiet:
        click.echo("pemn: what an interrupted encoding had left is deleted", err=True)
    suffix = Path(last_part(output) if is_url(output) else output).suffix
    if suffix not in ("", ".pemn") and (is_url(output) or not _is_device(Path(output))):
        raise click.BadParameter(f"{shown(output)} must end in .pemn", param_hint="-o")
    # For standard output, which code of the user may not reach meanwhile.
    waiting = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 closed with the context
    written = cast("BinaryIO", click.get_current_context().with_resource(waiting))
    with steps(quiet=quiet) as step, user_code():
        step("loading torch", None)
        from pemncodec.checkpoints.reading import with_recorded
        from pemncodec.checkpoints.sources import join_checkpoints
        from pemncodec.encoding import encode_with

        metric = load_object(accuracy, "--accuracy") if accuracy else None
        architecture = load_architecture(arch, kwargs, argv) if arch else None
        given = mask_arguments.choices()
        # Before the checkpoint, which may be large.
        options = replace(
            options,
            **given,
            architecture=architecture,
            example_inputs=example_inputs(shapes) if shapes else None,
            dynamic_axes=[
                [axis for axis, size in enumerate(sizes, 1) if size.endswith("?")]
                for _, sizes in shapes
            ],
            accuracy=metric,
            max_drop=max_drop,
        )
        step("reading the checkpoint", None)
        shown_sources = ", ".join(map(shown, sources))
        with checkpoint_paths(sources) as paths:
            with no_exit(f"code of {shown_sources}"):
                loaded = join_checkpoints(paths, trust_pickle=trust_pickle)
            with named(shown_sources), no_exit("the model's own code"):
                options = replace(options, **with_recorded(loaded, given))
                target = written if output == STDIO else output
                with named_errors(tempfile.gettempdir()) if target is written else nullcontext():
                    report = encode_with(options, loaded.source, target, step)
    if output == STDIO:
        with output_target(output) as stdout:
            written.seek(0)
            write_file(iter(partial(written.read, 1 << 20), b""), stdout)
    if as_json:
        print_json(report_json(report), to_stderr=output == STDIO)
    elif not quiet:
        print_report(shown(output), report, verbose=verbose, to_stderr=output == STDIO)


def target_beside(sources: Sequence[str]) -> str:
    """Where a file goes that no one has named: beside its checkpoint, or out of a pipe's end.

    Raises:
        click.UsageError: there are several checkpoints.
    """
    if len(sources) > 1:
        raise click.UsageError("of several checkpoints: name the file to write with -o")
    (source,) = sources
    if is_url(source):  # to where we are
        name = last_part(source)
    elif source == STDIO or Path(source).is_fifo():
        return STDIO
    else:
        name = source
    path = Path(name.removesuffix(".index.json"))
    folder = path.parent if path.name == DISTRIBUTED else path
    if not is_url(source) and folder.is_dir():
        return str(folder.parent / f"{folder.resolve().name}.pemn")
    return str(path.with_suffix(".pemn"))


def _check_architecture(sources: Sequence[str]) -> None:
    """Refuses tensors of transformers whose architecture is not given; their code is not imported.

    Raises:
        click.UsageError: says how to give it.
    """
    for source in sources:
        local = source != STDIO and not is_url(source)
        name = transformers_class(Path(source)) if local else None
        if name is not None:
            folder = Path(source) if Path(source).is_dir() else Path(source).parent
            made = f"{name}(AutoConfig.from_pretrained({str(folder)!r}))"
            raise click.UsageError(
                f"{source} holds tensors of transformers: give --arch FILE.py:FUNCTION, whose "
                f"function returns {made}, or --no-manifest to store the tensors alone"
            )


def _is_device(path: Path) -> bool:
    """Whether it is a pipe or device, whose name says nothing of what goes there."""
    return path.exists() and not path.is_file() and not path.is_dir()
