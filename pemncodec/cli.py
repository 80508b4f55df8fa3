"""`pemn`: the command line. torch is imported only by the commands that need it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import click

from pemncodec import __version__
from pemncodec.architecture import render_architecture
from pemncodec.errors import EncodeArgumentError, EncodeError, ManifestError, PemnError
from pemncodec.file import PemnFile, open_file
from pemncodec.limits import Limits
from pemncodec.manifest import FORMAT
from pemncodec.masks import PRESETS, Preset
from pemncodec.report_page import report_page
from pemncodec.terminal import print_info, print_json, print_rows, rows_as_csv, steps, visible
from pemncodec.writing import write_file

if TYPE_CHECKING:
    from torch import Tensor, nn

STDIO = "-"
_STATE_DICT_SUFFIXES = (".safetensors", ".pt", ".pth")
_EXPORT_SUFFIXES = (".pt2", ".onnx", ".pte")


# ---------------------------------------------------------------------------------- options


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+)([KMGT]?)", str(value))
        if not match:
            self.fail(f"{value!r} is not a size such as 512M or 32G", param, ctx)
        return int(match[1]) << (10 * "_KMGT".index(match[2] or "_"))


class _Shape(click.ParamType["tuple[str, tuple[str, ...]]"]):
    """`3,32,32` or `int64:16?`: dtype and sizes of one input, without the batch."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[str, ...]]:
        dtype, _, sizes = value.rpartition(":") if ":" in value else ("float32", "", value)
        if not re.fullmatch(r"\d+\??(,\d+\??)*|", sizes) or not re.fullmatch(r"[a-z]+\d*", dtype):
            self.fail(f"{value!r} is not a shape such as 3,32,32 or int64:16", param, ctx)
        return dtype, tuple(size for size in sizes.split(",") if size)


_quiet = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
_force = click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_keep = click.option(
    "--keep", type=float, metavar="RATIO", help="Share of each layer's weights that scores keep."
)
_trust_pickle = click.option(
    "--trust-pickle", is_flag=True, help="Load a pickled module; runs code from that file."
)
_max_memory = click.option(
    "--max-memory",
    type=_Size(),
    default=Limits().decoded_bytes,
    show_default="16G",
    help="Refuse a file that decodes to more, such as 512M or 32G.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="pemn")
def cli() -> None:
    """Store masked networks as seed or prototype + coded masks + architecture.

    In place of a file name, - is standard input or output.
    """


# --------------------------------------------------------------------------------- commands


@cli.command()
@click.argument("source", metavar="CHECKPOINT")
@click.option("-o", "--output", help="File to write  [default: CHECKPOINT with .pemn].")
@_keep
@click.option(
    "--arch", metavar="MODULE:FACTORY", help="pkg.module:factory or path/to/file.py:factory."
)
@click.option("--arch-kwargs", default="{}", metavar="JSON", help="Arguments of the factory.")
@click.option(
    "--example-shape",
    "shapes",
    type=_Shape(),
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
    help="Masks that decode fast, or that are as small as can be.",
)
@click.option(
    "--dense",
    multiple=True,
    metavar="[PATTERN=]MODE",
    help="lossless, fp16, bf16 or q8, for trained tensors (whose names fit)  [default: lossless].",
)
@click.option("--fold-bn", is_flag=True, help="Inference only: batch norms as two vectors.")
@click.option(
    "--accuracy",
    metavar="MODULE:FUNCTION",
    help="A metric of yours, larger is better: called with the module before and after.",
)
@click.option("--max-drop", type=float, help="Refuse a file that loses more accuracy than this.")
@_trust_pickle
@_force
@_quiet
@click.option("-v", "--verbose", is_flag=True, help="Also list every tensor.")
@_json
def encode(
    source: str,
    output: str | None,
    keep: float | None,
    arch: str | None,
    arch_kwargs: str,
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

    Reads official PEMN checkpoints (X.weight + X.scores, with --keep) and those of
    torch.nn.utils.prune (X_orig + X_mask). The file is decoded again and compared with the
    original before it is written.

    \b
    pemn encode model.pt --keep 0.5 --arch models.py:convmixer \\
        --arch-kwargs '{"dim": 128, "depth": 4}' --example-shape 3,32,32 -o model.pemn
    """
    output = output or (STDIO if source == STDIO else str(Path(source).with_suffix(".pemn")))
    _check_output(output, source, force=force)
    kwargs = _parse_kwargs(arch_kwargs, arch)
    if builder and (arch is None or arch.rpartition(":")[0].endswith(".py")):
        raise click.UsageError(
            "--builder needs --arch pkg.module:factory, of code that is installed"
        )
    if keep is not None and not 0 < keep <= 1:
        raise click.BadParameter(f"must be above 0 and at most 1, not {keep}", param_hint="--keep")
    with steps(quiet=quiet) as step:
        step("loading torch", None)
        from pemncodec.torch.checkpoint import load_checkpoint
        from pemncodec.torch.encode import encode as encode_model

        architecture = _load_architecture(arch, kwargs) if arch else None
        metric = _load_object(accuracy, "--accuracy") if accuracy else None
        step("reading the checkpoint", None)
        with _source_path(source) as path:
            loaded = load_checkpoint(path, trust_pickle=trust_pickle)
        with _named(source), _target(output) as target:
            report = encode_model(
                loaded,
                target,
                keep=keep,
                architecture=architecture,
                example_inputs=_example_inputs(shapes) if shapes else None,
                dynamic_axes=[
                    [axis for axis, size in enumerate(sizes, 1) if size.endswith("?")]
                    for _, sizes in shapes
                ],
                manifest=not no_manifest,
                train_graph=train_graph,
                builder=(arch, kwargs) if builder and arch else None,
                preset=preset,
                dense=_parse_dense(dense),
                fold_bn=fold_bn,
                accuracy=metric,
                max_drop=max_drop,
                progress=step,
            )
    if as_json:
        json_report = {
            **report.info.to_json(),
            "verified": report.verified,
            "difference": report.difference,
            "accuracy": report.accuracy,
        }
        print_json(json_report, to_stderr=output == STDIO)
    elif not quiet:
        print_info(output, report.info, verbose=verbose, to_stderr=output == STDIO)
        click.echo(f"verified: {report.verified}", err=output == STDIO)
        if report.difference is not None:
            click.echo(
                f"outputs differ by up to {report.difference:.2g} of the original's largest",
                err=output == STDIO,
            )
        if report.accuracy is not None:
            before, after = report.accuracy
            click.echo(f"accuracy: {before:g} before, {after:g} after", err=output == STDIO)


@cli.command()
@click.argument("source", metavar="FILE")
@click.option(
    "-o",
    "--output",
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
@_max_memory
@_force
@_quiet
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
    _check_output(output, source, force=force)
    if suffix in _EXPORT_SUFFIXES:
        if device != "cpu":
            raise click.UsageError(f"--device is for state dicts, not for {suffix}")
        _export(source, output, batch, trust, max_memory, quiet=quiet)
        return
    if batch is not None or trust:
        raise click.UsageError(f"--batch and --trust are for {', '.join(_EXPORT_SUFFIXES)}")
    with steps(quiet=quiet) as step:
        step("loading torch", None)
        from pemncodec.torch.decode import load_state

        with _open(source, max_memory) as file, _named(source):
            state = load_state(file, _check_device(device), lambda share: step("decoding", share))
            metadata = file.metadata
        step("writing", None)
        _save_state_dict(state, metadata, output)
    if not quiet:
        click.echo(f"{output}: {len(state)} tensors", err=True)


@cli.command()
@click.argument("source", metavar="FILE")
@click.option("-v", "--verbose", is_flag=True, help="Also list every tensor.")
@click.option("--architecture", is_flag=True, help="The network instead, as print(model) does.")
@_max_memory
@_json
def inspect(source: str, verbose: bool, architecture: bool, max_memory: int, as_json: bool) -> None:
    """Show what a file holds and what every part of it costs."""
    with _open(source, max_memory) as file, _named(source):
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
@_keep
@click.option("--csv", "csv_path", metavar="PATH", help="Also write the table as CSV.")
@click.option("--html", "html_path", metavar="PATH", help="Also write one page with plots.")
@_max_memory
@_force
@_json
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
            _check_output(path, source, force=force)
    with steps(quiet=False) as step:
        step("loading torch", None)
        from pemncodec.torch.report import report_model

        reports = []
        limits = Limits(decoded_bytes=max_memory)
        for number, source in enumerate(sources, 1):
            place = f"{visible(source)} ({number} of {len(sources)})"

            def show(what: str, share: float | None, place: str = place) -> None:
                step(f"{place}: {what}", share)

            show("reading", None)
            with _named(source):
                reports.append(report_model(Path(source), keep=keep, limits=limits, progress=show))
    for one in reports:
        for form, failure in one.failures.items():
            click.echo(f"{visible(one.name)}: no {form}: {visible(failure)}", err=True)
    if as_json:
        print_json({"models": [one.to_json() for one in reports]})
    else:
        print_rows([one.to_row() for one in reports])
    if csv_path is not None:
        write_file([rows_as_csv([one.to_row() for one in reports]).encode()], csv_path)
    if html_path is not None:
        title = f"What {len(reports)} model{'s' * (len(reports) != 1)} cost"
        write_file([report_page(reports, title).encode()], html_path)


@cli.command()
@click.argument("source", metavar="FILE")
@click.option("--against", metavar="CHECKPOINT", help="Also compare every tensor bit for bit.")
@_keep
@_trust_pickle
@_max_memory
@_quiet
def verify(
    source: str,
    against: str | None,
    keep: float | None,
    trust_pickle: bool,
    max_memory: int,
    quiet: bool,
) -> None:
    """Decode all of a file and check every rule of the format."""
    if keep is not None and against is None:
        raise click.UsageError("--keep belongs to --against")
    with steps(quiet=quiet) as step, _open(source, max_memory) as file, _named(source):
        step("verifying", None)
        if against is None:
            file.verify()
        else:
            _compare(file, against, keep, trust_pickle=trust_pickle)
        if file.manifest is not None and file.manifest["format"] == FORMAT:
            from pemncodec.torch.decode import build_empty_module

            build_empty_module(file)
        count = len(file.keys())
    if not quiet:
        compared = f", every one bit for bit as in {against}" if against else ""
        click.echo(f"{source}: valid, {count} tensors{compared}")


# ------------------------------------------------------------------------------ what they do


def _compare(file: PemnFile, against: str, keep: float | None, *, trust_pickle: bool) -> None:
    from torch import nn

    from pemncodec.torch.checkpoint import drop_prefix, load_checkpoint, read_masks
    from pemncodec.torch.decode import load_state
    from pemncodec.torch.encode import compare_states

    with _source_path(against) as path:
        loaded = load_checkpoint(path, trust_pickle=trust_pickle)
    state = loaded.state_dict() if isinstance(loaded, nn.Module) else loaded
    if not all(name.startswith("module.") for name in file.keys()):  # noqa: SIM118
        state = drop_prefix(state)
    with _named(against):
        expected = read_masks(state, keep=keep).effective()
    decoded = load_state(file, "cpu")
    # Pruning moves a weight behind its layer's other tensors; names and bits are what counts.
    if sorted(decoded) == sorted(expected):
        decoded = {name: decoded[name] for name in expected}
    compare_states(decoded, expected)


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
        with _named(source), _target(output) as target:
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
    with _target(output) as target:
        write_file([data], target)


def _load_object(place: str, option: str) -> Any:
    """What `pkg.module:name` or `path/to/file.py:name` names."""
    import importlib
    import importlib.util

    name, _, attribute = place.rpartition(":")
    try:
        if name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(name).stem, name)
            if spec is None or spec.loader is None:
                raise EncodeArgumentError(f"{option} {place}: cannot import {name}")
            sys.path.insert(0, str(Path(name).resolve().parent))
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(module.__name__, module)
            spec.loader.exec_module(module)
        elif name:
            sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(name)
        else:
            raise EncodeArgumentError(f"{option} {place}: expected module:name")
        return getattr(module, attribute)
    except PemnError:
        raise
    except Exception as error:
        raise EncodeArgumentError(f"{option} {place}: {_one_line(error)}") from error


def _load_architecture(arch: str, kwargs: dict[str, Any]) -> nn.Module:
    from torch import nn

    factory = _load_object(arch, "--arch")
    try:
        built = factory(**kwargs)
    except Exception as error:
        raise EncodeArgumentError(
            f"--arch {arch} with {json.dumps(kwargs)}: {_one_line(error)}"
        ) from error
    if not isinstance(built, nn.Module):
        raise EncodeArgumentError(f"--arch {arch}: made a {type(built).__name__}, not a module")
    return built


def _parse_dense(options: Sequence[str]) -> dict[str, Any]:
    """Modes by pattern, the one without a pattern last; `encode` checks them."""
    modes: dict[str, Any] = {}
    for option in sorted(options, key=lambda option: "=" not in option):
        pattern, _, mode = option.rpartition("=")
        if (pattern or "*") in modes:
            raise click.BadParameter(f"two modes for {pattern or '*'}", param_hint="--dense")
        modes[pattern or "*"] = mode
    return modes


def _parse_kwargs(text: str, arch: str | None) -> dict[str, Any]:
    try:
        kwargs = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON ({error})", param_hint="--arch-kwargs") from None
    if not isinstance(kwargs, dict):
        raise click.BadParameter("not a JSON object", param_hint="--arch-kwargs")
    if kwargs and arch is None:
        raise click.UsageError("--arch-kwargs belongs to --arch")
    return kwargs


def _example_inputs(shapes: Sequence[tuple[str, tuple[str, ...]]]) -> list[Tensor]:
    import torch

    from pemncodec.torch.example import random_input

    inputs = []
    for name, sizes in shapes:
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise EncodeArgumentError(f"--example-shape: torch has no dtype {name}")
        try:
            inputs.append(random_input(dtype, [int(size.rstrip("?")) for size in sizes]))
        except RuntimeError as error:
            raise EncodeArgumentError(f"--example-shape: {_one_line(error)}") from None
    return inputs


def _check_device(name: str) -> str:
    import torch

    if name.startswith("meta"):
        raise click.BadParameter("meta holds no data", param_hint="--device")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise click.BadParameter(_one_line(error), param_hint="--device") from None
    return name


# ---------------------------------------------------------------------------- files and streams


def _check_output(output: str, source: str, *, force: bool) -> None:
    if output == STDIO:
        if sys.stdout.isatty():
            raise click.UsageError("will not write binary data to a terminal: give -o FILE")
        return
    path = Path(output)
    if source != STDIO and path.exists() and Path(source).exists() and path.samefile(source):
        raise click.UsageError(f"{output} is the input: give another name with -o")
    if path.is_dir():
        raise click.UsageError(f"{output} is a folder")
    if path.exists() and not force:
        raise click.UsageError(f"{output} exists: -f overwrites it")
    if not path.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {path.parent}")


@contextlib.contextmanager
def _source_path(source: str) -> Iterator[Path]:
    """A checkpoint's path; standard input is spooled to a file, as its readers need one."""
    if source != STDIO:
        yield Path(source)
        return
    data = sys.stdin.buffer.read()
    # safetensors: eight bytes of length, then a JSON object; torch.save writes neither there.
    suffix = ".safetensors" if data[8:9] == b"{" else ".pt"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"stdin{suffix}"
        path.write_bytes(data)
        yield path


@contextlib.contextmanager
def _target(output: str) -> Iterator[str | BinaryIO]:
    if output != STDIO:
        yield output
        return
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def _open(source: str, max_memory: int) -> Iterator[PemnFile]:
    limits = Limits(decoded_bytes=max_memory)
    with _named(source):
        file = open_file(sys.stdin.buffer if source == STDIO else source, limits=limits)
    with file:
        yield file


@contextlib.contextmanager
def _named(source: str) -> Iterator[None]:
    """Puts the file's name in front of errors that know only its content."""
    try:
        yield
    except EncodeArgumentError:
        raise
    except PemnError as error:
        _fail(f"{source}: {error}", 1)


# --------------------------------------------------------------------------------- the end


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"pemn: {visible(message)}", err=True)
    raise SystemExit(status)


def main() -> None:
    """Entry point: every error is one line on stderr; exit 1 for bad data, 2 for wrong options."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        raise SystemExit(error.exit_code) from None
    except click.Abort:
        _fail("interrupted", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        raise SystemExit(2) from None
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see {context.command_path} --help)" if context else ""
        _fail(error.format_message().replace("\n", " ") + hint, error.exit_code)
    except EncodeArgumentError as error:
        _fail(str(error), 2)
    except PemnError as error:
        _fail(str(error), 1)
    except BrokenPipeError:
        # The reader has gone; closing stdout must not report it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        # Not the name of a temporary file beside the target.
        if isinstance(error.filename, str) and ".pemn-" in Path(error.filename).name:
            _fail(f"cannot write in {Path(error.filename).parent}: {error.strerror}", 1)
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except MemoryError:
        _fail("out of memory", 1)


if __name__ == "__main__":
    main()
