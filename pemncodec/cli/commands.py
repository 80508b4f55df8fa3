"""What `pemn` does. torch is imported only by the commands that need it."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pemncodec import __version__
from pemncodec.architecture.manifest import FORMAT
from pemncodec.architecture.text import render_architecture
from pemncodec.cli.comparing import compare_files
from pemncodec.cli.options import (
    Shape,
    check_device,
    example_inputs,
    force_option,
    json_option,
    keep_option,
    max_memory_option,
    parse_argv,
    parse_dense,
    parse_kwargs,
    prefix_option,
    quiet_option,
    trust_pickle_option,
)
from pemncodec.cli.streams import (
    STDIO,
    FileName,
    check_output,
    checkpoint_path,
    named,
    opened,
    output_target,
)
from pemncodec.cli.terminal import (
    print_info,
    print_json,
    print_report,
    print_table,
    report_json,
    steps,
    visible,
)
from pemncodec.cli.user_code import load_architecture, load_object, no_exit, user_code
from pemncodec.coders.masks import PRESETS, Preset
from pemncodec.errors import EncodeError, ManifestError
from pemncodec.format.atomic import write_file
from pemncodec.limits import Limits
from pemncodec.options import EncodeOptions
from pemncodec.report.page import costs_page
from pemncodec.report.table import table_csv, table_row

if TYPE_CHECKING:
    from torch import Tensor

_STATE_DICT_SUFFIXES = (".safetensors", ".pt", ".pth")
_EXPORT_SUFFIXES = (".pt2", ".onnx", ".pte")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="pemn")
def cli() -> None:
    """Store masked networks as seed or prototype + coded masks + architecture.

    In place of a file name, - is standard input or output.
    """


# --------------------------------------------------------------------------------- commands


@cli.command()
@click.argument("source", metavar="CHECKPOINT", type=FileName())
@click.option(
    "-o", "--output", type=FileName(), help="File to write  [default: CHECKPOINT with .pemn]."
)
@keep_option
@prefix_option
@click.option(
    "--arch", metavar="MODULE:FACTORY", help="pkg.module:factory or path/to/file.py:factory."
)
@click.option("--arch-kwargs", default="{}", metavar="JSON", help="Arguments of the factory.")
@click.option(
    "--arch-argv", metavar="TEXT", help="What its code finds in sys.argv, such as '--dim 128'."
)
@click.option(
    "--example-shape",
    "shapes",
    type=Shape(),
    multiple=True,
    help="An input without its batch: 3,32,32 or int64:16? (? may vary); once for each  "
    "[default: a guess].",
)
@click.option(
    "--builder",
    is_flag=True,
    help="Store the name of --arch in place of a description; who reads it must trust that code.",
)
@click.option(
    "--train-graph", is_flag=True, help="Also export train mode, where forward must be exported."
)
@click.option("--no-manifest", is_flag=True, help="Store tensors without the architecture.")
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="default",
    show_default=True,
    help="fast: masks decode at memory speed. max: the smallest masks, slow to decode. "
    "default: max for models that it decodes within a second, else fast.",
)
@click.option(
    "--dense",
    multiple=True,
    metavar="[PATTERN=]MODE",
    help="lossless, fp16, bf16 or q8, for trained tensors (whose names fit)  [default: lossless].",
)
@click.option("--fold-bn", is_flag=True, help="Fold batch norms to two vectors: inference only.")
@click.option(
    "--accuracy",
    metavar="MODULE:FUNCTION",
    help="A metric of yours, larger is better: called with the module before and after.",
)
@click.option("--max-drop", type=float, help="Refuse a file that loses more accuracy than this.")
@trust_pickle_option
@force_option
@quiet_option
@click.option("-v", "--verbose", is_flag=True, help="Also list every tensor.")
@json_option
def encode(
    source: str,
    output: str | None,
    keep: float | None,
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
    trust_pickle: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Encode a checkpoint (.pt, .pth, .safetensors) of a masked network.

    Reads checkpoints of pemncodec.masking, of torch.nn.utils.prune (X_orig + X_mask) and of the
    official PEMN code (X.weight + X.scores, with --keep). The file is decoded again and compared
    with the original before it is written.

    \b
    pemn encode model.pt --keep 0.5 --arch models.py:convmixer \\
        --arch-kwargs '{"dim": 128, "depth": 4}' --example-shape 3,32,32 -o model.pemn
    """
    piped = source == STDIO or Path(source).is_fifo()
    output = output or (STDIO if piped else str(Path(source).with_suffix(".pemn")))
    check_output(output, source, force=force)
    kwargs = parse_kwargs(arch_kwargs, arch)
    argv = parse_argv(arch_argv, arch, builder=builder)
    if builder and (arch is None or arch.rpartition(":")[0].endswith(".py")):
        raise click.UsageError(
            "--builder needs --arch pkg.module:factory, of code that is installed"
        )
    written = io.BytesIO()  # for standard output, which code of the user may not reach meanwhile
    with steps(quiet=quiet) as step, user_code():
        step("loading torch", None)
        from pemncodec.checkpoints.files import load_checkpoint
        from pemncodec.encoding import encode_with

        metric = load_object(accuracy, "--accuracy") if accuracy else None
        architecture = load_architecture(arch, kwargs, argv) if arch else None
        # Before the checkpoint, which may be large.
        options = EncodeOptions(
            keep=keep,
            architecture=architecture,
            prefix=prefix,
            example_inputs=example_inputs(shapes) if shapes else None,
            dynamic_axes=[
                [axis for axis, size in enumerate(sizes, 1) if size.endswith("?")]
                for _, sizes in shapes
            ],
            manifest=not no_manifest,
            train_graph=train_graph,
            builder=(arch, kwargs) if builder and arch else None,
            preset=preset,
            dense=parse_dense(dense),
            fold_bn=fold_bn,
            accuracy=metric,
            max_drop=max_drop,
        )
        step("reading the checkpoint", None)
        with checkpoint_path(source) as path, no_exit(f"code of {source}"):
            loaded = load_checkpoint(path, trust_pickle=trust_pickle, name=source)
        with named(source), no_exit("the model's own code"):
            report = encode_with(options, loaded, written if output == STDIO else output, step)
    if output == STDIO:
        sys.stdout.buffer.write(written.getbuffer())
        sys.stdout.buffer.flush()
    if as_json:
        print_json(report_json(report), to_stderr=output == STDIO)
    elif not quiet:
        print_report(output, report, verbose=verbose, to_stderr=output == STDIO)


@cli.command()
@click.argument("source", metavar="FILE", type=FileName())
@click.option(
    "-o",
    "--output",
    type=FileName(),
    required=True,
    help="A state dict (.safetensors, .pt, .pth; - is safetensors) or a network to deploy (.pt2, "
    ".onnx, .pte).",
)
@click.option("--batch", type=click.IntRange(1), help="Fix the batch size of a network to deploy.")
@click.option(
    "--trust",
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="Code that the file may run, if it was encoded with --builder.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to decode, such as cuda.")
@max_memory_option
@force_option
@quiet_option
def decode(
    source: str,
    output: str,
    batch: int | None,
    trust: Sequence[str],
    device: str,
    max_memory: int,
    force: bool,
    quiet: bool,
) -> None:
    """Decode to a plain state dict (masks applied, masked-out weights 0), or to a network.

    \b
    pemn decode net.pemn -o net.safetensors
    pemn decode net.pemn -o net.onnx --batch 1
    """
    suffix = Path(output).suffix
    if output != STDIO and suffix not in (*_STATE_DICT_SUFFIXES, *_EXPORT_SUFFIXES):
        known = ", ".join((*_STATE_DICT_SUFFIXES, *_EXPORT_SUFFIXES))
        raise click.BadParameter(f"{output} must end in {known}", param_hint="-o")
    check_output(output, source, force=force)
    if suffix in _EXPORT_SUFFIXES:
        if device != "cpu":
            raise click.UsageError(f"--device is for state dicts, not for {suffix}")
        _export(source, output, batch, trust, max_memory, quiet=quiet)
        return
    if batch is not None or trust:
        raise click.UsageError(f"--batch and --trust are for {', '.join(_EXPORT_SUFFIXES)}")
    with steps(quiet=quiet) as step:
        step("loading torch", None)
        from pemncodec.decoding import load_state

        with opened(source, max_memory) as file, named(source):
            state = load_state(file, check_device(device), lambda share: step("decoding", share))
            metadata = file.metadata
        step("writing", None)
        _save_state_dict(state, metadata, output)
    if not quiet:
        click.echo(f"{output}: {len(state)} tensors", err=True)


@cli.command()
@click.argument("source", metavar="FILE", type=FileName())
@click.option("-v", "--verbose", is_flag=True, help="Also list every tensor.")
@click.option("--architecture", is_flag=True, help="The network instead, as print(model) does.")
@max_memory_option
@json_option
def inspect(source: str, verbose: bool, architecture: bool, max_memory: int, as_json: bool) -> None:
    """Show what a file holds and what every part of it costs."""
    with opened(source, max_memory) as file, named(source):
        if architecture:
            if file.manifest is None:
                raise ManifestError("no-manifest", "the file holds no architecture, only tensors")
            shapes = {name: file.shape(name) for name in file.keys()}  # noqa: SIM118
            if as_json:
                print_json(file.manifest)
            else:
                click.echo("\n".join(render_architecture(file.manifest, shapes)))
            return
        info = file.info()
    if as_json:
        print_json(info.to_json())
    else:
        print_info(source, info, verbose=verbose)


@cli.command()
@click.argument("sources", metavar="FILE…", nargs=-1, required=True)
@keep_option
@click.option("--csv", "csv_path", metavar="PATH", help="Also write the table as CSV.")
@click.option("--html", "html_path", metavar="PATH", help="Also write one page with plots.")
@max_memory_option
@force_option
@json_option
def report(
    sources: Sequence[str],
    keep: float | None,
    csv_path: str | None,
    html_path: str | None,
    max_memory: int,
    force: bool,
    as_json: bool,
) -> None:
    """Compare what models cost, as .pemn and in the forms that one would use instead.

    Masked checkpoints (.pt, .pth, .safetensors) are encoded first, without a manifest; those with
    scores alone (official PEMN) need --keep. All others are shown as the dense models they are.
    """
    for path in filter(None, (csv_path, html_path)):
        if path == STDIO:
            raise click.UsageError("--csv and --html write files")
        for source in sources:
            check_output(path, source, force=force)
    with steps(quiet=False) as step:
        step("loading torch", None)
        from pemncodec.report.costs import model_costs

        models = []
        limits = Limits(decoded_bytes=max_memory)
        for number, source in enumerate(sources, 1):
            place = f"{visible(source)} ({number} of {len(sources)})"

            def show(what: str, share: float | None, place: str = place) -> None:
                step(f"{place}: {what}", share)

            show("reading", None)
            with named(source):
                models.append(model_costs(Path(source), keep=keep, limits=limits, progress=show))
    for model in models:
        for form, failure in model.failures.items():
            click.echo(f"{visible(model.name)}: no {form}: {visible(failure)}", err=True)
    rows = [table_row(model) for model in models]
    if as_json:
        print_json({"models": [model.to_json() for model in models]})
    else:
        print_table(rows)
    if csv_path is not None:
        write_file([table_csv(rows).encode()], csv_path)
    if html_path is not None:
        title = f"What {len(models)} model{'s' * (len(models) != 1)} cost"
        write_file([costs_page(models, title).encode()], html_path)


@cli.command()
@click.argument("source", metavar="FILE", type=FileName())
@click.option("--against", metavar="CHECKPOINT", help="Also compare every tensor bit for bit.")
@keep_option
@prefix_option
@trust_pickle_option
@max_memory_option
@quiet_option
def verify(
    source: str,
    against: str | None,
    keep: float | None,
    prefix: str | None,
    trust_pickle: bool,
    max_memory: int,
    quiet: bool,
) -> None:
    """Decode all of a file and check every rule of the format."""
    if (keep is not None or prefix is not None) and against is None:
        raise click.UsageError("--keep and --prefix belong to --against")
    with steps(quiet=quiet) as step, opened(source, max_memory) as file, named(source):
        step("verifying", None)
        if against is None:
            file.verify()
        else:
            compare_files(file, against, keep, prefix, trust_pickle=trust_pickle)
        if file.manifest is not None and file.manifest["format"] == FORMAT:
            from pemncodec.decoding import build_empty_module

            build_empty_module(file)
        count = len(file.keys())
    if not quiet:
        compared = f", every one bit for bit as in {against}" if against else ""
        click.echo(f"{source}: valid, {count} tensors{compared}")


# ------------------------------------------------------------------------------ what they do


def _export(
    source: str,
    output: str,
    batch: int | None,
    trust: Sequence[str],
    max_memory: int,
    *,
    quiet: bool,
) -> None:
    with steps(quiet=quiet) as step:
        step("loading torch", None)
        from pemncodec import export

        write = {".pt2": export.to_pt2, ".onnx": export.to_onnx, ".pte": export.to_executorch}
        step("exporting", None)
        given = io.BytesIO(sys.stdin.buffer.read()) if source == STDIO else source
        with named(source), output_target(output) as target:
            limits = Limits(decoded_bytes=max_memory)
            write[Path(output).suffix](given, target, batch=batch, limits=limits, trust=trust)
    if not quiet:
        click.echo(f"{output}: {Path(output).stat().st_size:,} bytes", err=True)


def _save_state_dict(state: dict[str, Tensor], metadata: dict[str, str], output: str) -> None:
    import safetensors.torch
    import torch

    if output != STDIO and Path(output).suffix != ".safetensors":
        # In memory first: torch reports a full disk as an error of its own.
        stream = io.BytesIO()
        torch.save(state, stream)
        write_file([stream.getbuffer()], output)
        return
    # safetensors refuses tensors that share memory: a tied one is written under each name.
    distinct = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    try:
        data = safetensors.torch.save(distinct, {**metadata, "format": "pt"})
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise EncodeError(f"{output}: safetensors cannot hold this: {error}; use .pt") from None
    with output_target(output) as target:
        write_file([data], target)
