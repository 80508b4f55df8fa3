"""The command line as a user meets it: files, exit status, what it prints and what it leaves."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import Run, fails, pemn_process
from torch import nn

import pemncodec
from pemncodec.cli.commands import cli
from pemncodec.contents import Contents, DenseTensor, Fill, MaskedTensor, StoredPrototype
from pemncodec.distributed.command import commands as distributed_cli
from pemncodec.format.writer import encode_contents

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "convmixer-rp1e-3-k50.pt"
ARCH = [
    "--arch", f"{ROOT / 'examples' / 'convmixer.py'}:convmixer",
    "--arch-kwargs", '{"dim": 128, "depth": 4, "patch_size": 4}',
    "--example-shape", "3,32,32",
]  # fmt: skip


def test_options_are_checked_before_the_checkpoint_is_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nothing.pt").write_text("not a checkpoint")
    result = run("encode", "nothing.pt", "--no-manifest", "--max-drop", "0.1", cwd=tmp_path)
    fails(result, 2, "needs --accuracy")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.pemn"
    result = pemn_process("encode", EXAMPLE, *ARCH, "-o", path, cwd=path.parent)
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture
def masked_state(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = {"fc.weight": torch.randn(6, 4), "fc.scores": torch.randn(6, 4)}
    path = tmp_path / "model.pt"
    torch.save(state, path)
    return path


def test_encode_prints_what_the_file_costs(run: Run, tmp_path: Path) -> None:
    result = run("encode", EXAMPLE, *ARCH, "-o", "net.pemn")
    assert result.returncode == 0
    size = (tmp_path / "net.pemn").stat().st_size
    assert f"{size:,} bytes" in result.stdout.decode()
    assert "verified: every tensor bit for bit" in result.stdout.decode()
    assert result.stderr == b""


def test_the_output_is_named_as_what_it_becomes(
    run: Run, masked_state: Path, tmp_path: Path
) -> None:
    encode = ["encode", masked_state, "--keep", 0.5, "--no-manifest", "-q", "-o"]
    for name in ("e.pem", "e.pemn.pt", "memory://e.pem"):
        fails(run(*encode, name), 2, f"{name} must end in .pemn")
    for name in ("e.pemn", "e"):
        assert run(*encode, name).returncode == 0
        assert run("verify", name).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "e.pemn", "model.pt"]


def test_errors_say_what_to_do_on_the_command_line(run: Run, masked_state: Path) -> None:
    encode = ["encode", masked_state, "--keep", 0.5, "--no-manifest", "-q"]
    fails(run(*encode, *ARCH), 2, "leave out --arch")
    fails(run(*encode, "--fold-bn"), 2, "--fold-bn and --accuracy need the architecture")
    builder = ["--arch", "torch.nn:Identity", "--builder"]
    fails(run(*encode, *builder), 2, "stores no --builder")
    assert run(*encode).returncode == 0
    fails(run("decode", "model.pemn", "-o", "m.onnx"), 1, "decode it to .safetensors or .pt")


def test_presets(run: Run, net: Path, tmp_path: Path) -> None:
    """What is not said is `default`; `fast` decodes to the same tensors from more bytes."""
    for preset in ("fast", "default", "max"):
        arguments = ["encode", EXAMPLE, *ARCH, "--preset", preset, "-o", f"{preset}.pemn"]
        assert run(*arguments, cwd=tmp_path).returncode == 0
        result = run("verify", f"{preset}.pemn", "--against", EXAMPLE, cwd=tmp_path)
        assert result.returncode == 0
    assert (tmp_path / "default.pemn").read_bytes() == net.read_bytes()
    sizes = [(tmp_path / f"{name}.pemn").stat().st_size for name in ("max", "default", "fast")]
    assert sizes == sorted(sizes)
    assert sizes[1] < sizes[2]


def test_inspect_json_adds_up(run: Run, net: Path) -> None:
    result = run("inspect", net, "--json", cwd=net.parent)
    info = json.loads(result.stdout)
    parts = ("header", "manifest", "prototype", "dense", "mask")
    assert sum(info[f"{part}_bytes"] for part in parts) == info["file_bytes"] == net.stat().st_size
    assert info["masked_weights"] == 85_760
    assert info["order0_bytes"] == pytest.approx(10_720)
    assert info["bits_per_weight"] == pytest.approx(8 * info["mask_bytes"] / 85_760)
    sections = info["dense_bytes"] + info["mask_bytes"]
    assert sum(tensor["bytes"] for tensor in info["tensors"]) == sections
    first = info["tensors"][0]
    assert (first["name"], first["shape"], first["dtype"]) == (
        "0.weight",
        [128, 3, 4, 4],
        "float32",
    )
    assert (first["kind"], first["density"], first["coder"]) == ("masked", 0.5, "mixing")
    assert first["order0_bytes"] == pytest.approx(768)


def test_inspect_does_not_import_torch(net: Path) -> None:
    code = (
        "import sys; from pemncodec.cli import cli;"
        f"cli.main(['inspect', {str(net)!r}], standalone_mode=False);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_verify_against(run: Run, net: Path) -> None:
    result = run("verify", net, "--against", EXAMPLE, cwd=net.parent)
    assert (result.returncode, result.stderr) == (0, b"")
    fails(run("verify", net, "--against", EXAMPLE, "--keep", 0.5, cwd=net.parent), 2, "leave")


def test_verify_against_official_scores(run: Run, masked_state: Path) -> None:
    folder = masked_state.parent
    options = ["--keep", 0.5, "--no-manifest", "-o", "net.pemn"]
    assert run("encode", masked_state, *options, cwd=folder).returncode == 0
    against = ["verify", "net.pemn", "--against", masked_state]
    assert run(*against, "--keep", 0.5, cwd=folder).returncode == 0
    fails(run(*against, "--keep", 0.4, cwd=folder), 1, "differs")
    fails(run("verify", "net.pemn", "--keep", 0.5, cwd=folder), 2, "--against")


def test_every_section_is_checked_on_both_sides(run: Run, tmp_path: Path) -> None:
    """Those that no tensor needs, too: the manifest, a prototype without a user."""
    net, stream = nn.Sequential(nn.Linear(3, 2)), io.BytesIO()
    masks = {"0.weight": torch.rand(2, 3) < 0.5}
    pemncodec.encode(net, stream, masks=masks, example_inputs=torch.randn(2, 3), find_seed="off")
    with pemncodec.open(stream) as file:
        manifest, bias = file.manifest, file.tensor("0.bias")
    values = np.arange(12, dtype=np.float32).reshape(2, 6)
    tensors = (
        MaskedTensor("0.weight", "float32", (2, 3), Fill(0), masks["0.weight"].numpy()),
        DenseTensor("0.bias", "float32", (2,), bias),
    )
    prototypes = tuple(StoredPrototype(row, "float32") for row in values)
    data = b"".join(encode_contents(Contents(prototypes, tensors, manifest)))
    for name in ("file.pemn", "same.pemn"):
        (tmp_path / name).write_bytes(data)
    safetensors.torch.save_file(pemncodec.load_state_dict(data), tmp_path / "plain.safetensors")
    pairs = (("file.pemn", "same.pemn"), ("file.pemn", "plain.safetensors"))
    for one, other in pairs:
        assert run("verify", one, "--against", other).returncode == 0
    with pemncodec.open(data) as file:
        sections = file.container.sections
        assert len(file.masked.unused_prototypes()) == 1
    assert len(sections) == 5
    for section in sections:
        damaged = bytearray(data)
        damaged[section.offset] ^= 1
        for name in ("file.pemn", "same.pemn"):
            (tmp_path / name).write_bytes(damaged)
            for one, other in pairs:
                result = run("verify", one, "--against", other)
                assert result.returncode == int(name in (one, other)), (section, one, other)
            (tmp_path / name).write_bytes(data)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_decode_writes_the_plain_state_dict(
    run: Run, net: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"out{suffix}"
    assert run("decode", net, "-o", output, cwd=tmp_path).returncode == 0
    if suffix == ".safetensors":
        state = safetensors.torch.load_file(output)
    else:
        state = torch.load(output, weights_only=True)
    original = torch.load(EXAMPLE, weights_only=True)
    masked = {name.partition(".parametrizations.")[0] for name in original if "scores" in name}
    trained = {name for name in original if ".parametrizations." not in name}
    assert set(state) == trained | {f"{module}.weight" for module in masked}
    assert torch.equal(state["2.bias"], original["2.bias"])
    assert float((state["0.weight"] == 0).float().mean()) == 0.5
    result = run("verify", net, "--against", output, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_pipes(run: Run, net: Path, masked_state: Path, tmp_path: Path) -> None:
    data = net.read_bytes()
    decoded = pemn_process("decode", "-", "-o", "-", cwd=tmp_path, stdin=data)
    assert len(safetensors.torch.load(decoded.stdout)) == 55
    assert run("verify", "-", stdin=data).returncode == 0
    assert run("inspect", "-", "--json", stdin=data).returncode == 0
    encoded = pemn_process(
        "encode", "-", "--keep", 0.5, "--no-manifest", cwd=tmp_path, stdin=masked_state.read_bytes()
    )
    assert encoded.returncode == 0
    assert run("verify", "-", stdin=encoded.stdout).returncode == 0


def test_encode_twice_gives_the_same_bytes(net: Path, tmp_path: Path) -> None:
    environment = {"PYTHONHASHSEED": "7"}
    output = tmp_path / "again.pemn"
    pemn_process("encode", EXAMPLE, *ARCH, "-o", output, cwd=tmp_path, env=environment)
    assert output.read_bytes() == net.read_bytes()


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--no-manifest"], 2, ["--keep"]),
        (["--keep", "0", "--no-manifest"], 2, ["--keep", "above 0"]),
        (["--keep", "1.5", "--no-manifest"], 2, ["--keep", "at most 1"]),
        (["--keep", "nan", "--no-manifest"], 2, ["--keep"]),
        (["--keep", "half", "--no-manifest"], 2, ["--keep"]),
        (["--keep", "0.5", "--preset", "best", "--no-manifest"], 2, ["--preset", "fast", "max"]),
        (["--keep", "0.5"], 2, ["--arch", "--no-manifest"]),
        (["--keep", "0.5", "--arch", "nowhere:net", "--example-shape", "4"], 2, ["nowhere"]),
        (["--keep", "0.5", "--arch", "torch.nn:nothing", "--example-shape", "4"], 2, ["nothing"]),
        (["--keep", "0.5", "--arch", "torch.nn:Linear"], 2, ["torch.nn:Linear"]),
        (["--keep", "0.5", "--arch", "torch.nn:Identity"], 1, ["fc.weight"]),
        (["--keep", "0.5", "--arch", "torch.nn:ReLU", "--example-shape", "4"], 1, ["fc.weight"]),
        (["--keep", "0.5", "--arch-kwargs", "{", "--no-manifest"], 2, ["--arch-kwargs"]),
        (["--keep", "0.5", "--arch-kwargs", '{"a": 1}', "--no-manifest"], 2, ["--arch"]),
        (["--keep", "0.5", "--no-manifest", "-o", "nowhere/net.pemn"], 2, ["nowhere"]),
        (["--keep", "0.5", "--no-manifest", "-o", "model.pt", "-f"], 2, ["input"]),
    ],
)
def test_wrong_options_write_nothing(
    run: Run, masked_state: Path, options: list[str], status: int, words: list[str]
) -> None:
    before = masked_state.read_bytes()
    fails(run("encode", masked_state, *options, cwd=masked_state.parent), status, *words)
    assert [path.name for path in masked_state.parent.iterdir()] == ["model.pt"]
    assert masked_state.read_bytes() == before


def test_bad_data_writes_nothing(run: Run, tmp_path: Path) -> None:
    cases = {
        "nan.pt": {"a.weight": torch.ones(3), "a.scores": torch.tensor([1.0, torch.nan, 2.0])},
        "shape.pt": {"a.weight": torch.ones(3), "a.scores": torch.ones(4)},
        "orphan.pt": {"a.scores": torch.ones(4)},
        "integer.pt": {"a.weight": torch.ones(4, dtype=torch.int32), "a.scores": torch.ones(4)},
        "nested.pt": {"a": [1, 2]},
    }
    for name, state in cases.items():
        torch.save(state, tmp_path / name)
        fails(run("encode", name, "--keep", 0.5, "--no-manifest", cwd=tmp_path), 1, "")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    fails(run("encode", "text.pt", "--keep", 0.5, "--no-manifest", cwd=tmp_path), 1, "text.pt")
    fails(run("encode", "none.pt", "--keep", 0.5, "--no-manifest", cwd=tmp_path), 1, "none.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    result = run("encode", "module.pt", "--keep", 0.5, "--no-manifest", cwd=tmp_path)
    fails(result, 1, "--trust-pickle")
    assert not list(tmp_path.glob("*.pemn"))


def test_nothing_is_overwritten_without_force(run: Run, net: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.pt"
    output.write_bytes(b"precious")
    fails(run("decode", net, "-o", output, cwd=tmp_path), 2, "-f")
    assert output.read_bytes() == b"precious"
    assert run("decode", net, "-o", output, "-f", cwd=tmp_path).returncode == 0
    assert output.read_bytes() != b"precious"


def test_damaged_files(run: Run, net: Path, tmp_path: Path) -> None:
    data = bytearray(net.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.pemn").write_bytes(data)
    (tmp_path / "cut.pemn").write_bytes(data[:1000])
    for name in ("bad.pemn", "cut.pemn"):
        fails(run("verify", name, cwd=tmp_path), 1, name)
        fails(run("decode", name, "-o", "out.pt", cwd=tmp_path), 1, name)
    assert not (tmp_path / "out.pt").exists()
    fails(run("inspect", EXAMPLE, cwd=tmp_path), 1, "not a .pemn file")
    limited = run("decode", net, "-o", "out.pt", "--max-memory", "1K", cwd=tmp_path)
    fails(limited, 1, "the limit is 1,024: --max-memory raises it, if")
    fails(run("decode", net, "-o", "out.bin", cwd=tmp_path), 2, ".safetensors")
    fails(run("decode", net, "-o", "out.pt", "--device", "abacus", cwd=tmp_path), 2, "--device")


def test_pruned_module_needs_trust(run: Run, tmp_path: Path) -> None:
    from torch.nn.utils import prune

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    prune.random_unstructured(model[0], "weight", 0.5)
    torch.save(model, tmp_path / "pruned.pt")
    options = ["--trust-pickle", "--example-shape", "4"]
    result = run("encode", "pruned.pt", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = run("verify", "pruned.pemn", "--against", "pruned.pt", "--trust-pickle", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_demo_images_are_classified(net: Path, tmp_path: Path) -> None:
    script = ROOT / "examples" / "classify.py"
    images = ROOT / "examples" / "cifar10-200.npz"
    result = subprocess.run(
        [sys.executable, "-I", script, net, images], cwd=tmp_path, capture_output=True, check=True
    )
    labels = np.load(images)["labels"]
    correct, total = (int(word) for word in result.stdout.split()[:3:2])
    assert total == len(labels) == 200
    assert correct == 127


def test_without_arguments_it_explains_itself(run: Run, tmp_path: Path) -> None:
    result = run(cwd=tmp_path)
    assert result.returncode == 2
    assert b"Commands:" in result.stderr


def test_verify_refuses_what_decode_refuses(run: Run, tmp_path: Path) -> None:
    """A manifest that does not fit the tensors of its file."""
    from pemncodec.contents import Contents, DenseTensor
    from pemncodec.format.atomic import write_file
    from pemncodec.format.writer import encode_contents

    manifest = {
        "format": "tree/1",
        "tree": {"cls": "Linear", "in_features": 7, "out_features": 9},
    }
    tensor = DenseTensor("a", "float32", (1,), np.ones(1, np.float32))
    write_file(encode_contents(Contents((), (tensor,), manifest)), tmp_path / "bad.pemn")
    fails(run("verify", "bad.pemn", cwd=tmp_path), 1, "weight")


def test_inspect_prints_json_of_standard_input_to_standard_output(run: Run, net: Path) -> None:
    result = run("inspect", "-", "--json", cwd=net.parent, stdin=net.read_bytes())
    assert json.loads(result.stdout)["file_bytes"] == net.stat().st_size


def test_impossible_example_shapes_and_devices(run: Run, masked_state: Path, net: Path) -> None:
    options = ["--keep", 0.5, "--arch", "torch.nn:Identity", "--example-shape", "999999,999999,99"]
    folder = masked_state.parent
    fails(run("encode", masked_state, *options, cwd=folder), 2, "--example-shape")
    fails(run("decode", net, "-o", "x.pt", "--device", "meta", cwd=folder), 2, "meta")


def test_prefixes_and_ties_on_the_command_line(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 6)
    state = {f"model.{n}.{k}": torch.randn(6, 6) for n in ("0", "1") for k in ("weight", "scores")}
    safetensors.torch.save_file(state | {"loss.weight": weight}, tmp_path / "m.safetensors")
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    layers = [nn.Linear(6, 6, bias=False) for _ in range(3)]\n"
        "    layers[2].weight = layers[0].weight\n"
        "    return nn.Sequential(*layers)\n"
    )
    options = ["m.safetensors", "--keep", 0.5, "--arch", "nets.py:net", "-o", "m.pemn"]
    fails(run("encode", *options[:3], "--prefix", "x", "--no-manifest", cwd=tmp_path), 2, "x.")
    result = run("encode", *options, "--prefix", "model.", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert b"note: left out, since their names do not begin with model.: loss" in result.stdout
    against = ["verify", "m.pemn", "--against", "m.safetensors", "--keep", 0.5]
    result = run(*against, "--prefix", "model.", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    fails(run("verify", "m.pemn", "--prefix", "model.", cwd=tmp_path), 2, "--against")


def all_commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for own, one in command.commands.items():
            yield from all_commands(one, f"{name} {own}")


def test_tables_in_a_pipe_have_no_blanks_at_the_ends_of_lines(run: Run, net: Path) -> None:
    for command in (["inspect", net], ["inspect", net, "-v"], ["report", net, "--forms", "csr"]):
        result = run(*command, cwd=net.parent)
        assert result.returncode == 0, result.stderr
        lines = result.stdout.decode().split("\n")
        assert len(lines) > 5
        assert lines == [line.rstrip() for line in lines]


@pytest.mark.parametrize(
    ("name", "command"),
    [*all_commands(cli, "pemn"), *all_commands(distributed_cli, "python -m pemncodec.distributed")],
)
def test_help_fits_a_terminal(name: str, command: click.Command) -> None:
    text = click.Context(command, info_name=name, terminal_width=80).get_help()
    for line in text.splitlines():
        assert len(line) <= 80
        assert not line.endswith("-")  # of a name that goes on in the next line
        assert "[default: (" not in line


@pytest.mark.parametrize(
    "code",
    [
        "from pemncodec.__main__ import main; sys.argv[1:] = ['--version']; main()",
        "import pemncodec.distributed.__main__; assert gc.isenabled()",
    ],
)
def test_no_garbage_is_looked_for_among_modules_in_the_end(code: str) -> None:
    told = "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count()));"
    run = [sys.executable, "-c", told + code]
    result = subprocess.run(run, check=True, capture_output=True, text=True)
    assert int(result.stdout.splitlines()[-1]) > 10_000
