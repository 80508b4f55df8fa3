"""Code that --arch and --accuracy name: what it sees, where its output goes, how it fails."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Run, fails

import pemncodec
from pemncodec import EncodeArgumentError
from pemncodec.cli import user_code

NOISY = """
import ctypes, os, sys
import torch
from torch import nn

print("at import", sys.argv)
os.system("echo from another program")
os.write(1, b"to the descriptor\\n")
ctypes.CDLL(None).puts(b"from C, in a buffer")

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        print("constructed")
        self.fc = nn.Linear(4, width)

    def forward(self, x):
        print("in forward", file=sys.stdout)
        return self.fc(x)

def net():
    return Net()

def top1(model):
    print("in a metric")
    return 1.0
"""
PARSING = """
import argparse, sys
from torch import nn
parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=3)
parser.add_argument("--model_type")
options = parser.parse_args()
seen = list(sys.argv)
def net(): return nn.Linear(4, options.width)
def late(): return nn.Linear(4, parser.parse_args().width)
def argv_of(*expected): assert sys.argv == seen, (sys.argv, seen)
"""


@pytest.fixture(autouse=True)
def scored(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = {name: torch.randn(3, 4) for name in ("fc.weight", "fc.scores")}
    torch.save(state | {"fc.bias": torch.ones(3)}, tmp_path / "model.pt")
    plain = {name.removeprefix("fc."): tensor for name, tensor in state.items()}
    torch.save(plain | {"bias": torch.ones(3)}, tmp_path / "plain.pt")
    (tmp_path / "noisy.py").write_text(NOISY)
    (tmp_path / "parsing.py").write_text(PARSING)
    return tmp_path


NOISY_OPTIONS = [
    "--keep", 0.5, "--arch", "noisy.py:net", "--example-shape", "4", "--accuracy", "noisy.py:top1",
]  # fmt: skip
SAID = [
    b"at import ['noisy.py']",
    b"from another program",
    b"to the descriptor",
    b"from C, in a buffer",
    b"constructed",
    b"in forward",
    b"in a metric",
]


def test_what_user_code_prints_stays_out_of_a_file_on_standard_output(run: Run) -> None:
    result = run("encode", "model.pt", *NOISY_OPTIONS, "-q", "-o", "-")
    assert result.returncode == 0, result.stderr
    assert all(line in result.stderr for line in SAID)
    assert pemncodec.decode(io.BytesIO(result.stdout)).fc.weight.shape == (3, 4)


def test_what_user_code_prints_stays_out_of_json(run: Run) -> None:
    result = run("encode", "model.pt", *NOISY_OPTIONS, "--json")
    assert json.loads(result.stdout)["accuracy"] == [1, 1]
    assert all(line in result.stderr for line in SAID)


def test_user_code_sees_its_own_arguments(scored: Path, run: Run) -> None:
    for number, (arch, options) in enumerate(
        [
            ("parsing.py:net", []),
            ("parsing.py:late", []),
            ("parsing:net", []),
            ("parsing.py:net", ["--arch-argv", "--width 3 --model_type 'Conv Mixer'"]),
            ("parsing.py:late", ["--arch-argv", "--width 3"]),
        ]
    ):
        options = [*options, "--keep", 0.5, "-o", f"{number}.pemn"]
        result = run("encode", "plain.pt", "--arch", arch, *options)
        assert result.returncode == 0, result.stderr
        assert result.stderr == b""
        module = pemncodec.decode(scored / f"{number}.pemn")
        assert module.weight.shape == (3, 4)


def test_arguments_begin_with_the_name_of_the_file(scored: Path, run: Run) -> None:
    code = "import sys\ndef net(**_): raise ValueError(repr(sys.argv))\n"
    (scored / "shows.py").write_text(code)
    options = ["--keep", 0.5, "--arch-argv", "-a 'b c'"]
    result = run("encode", "plain.pt", "--arch", "./shows.py:net", *options)
    fails(result, 2, "['./shows.py', '-a', 'b c']")
    result = run("encode", "plain.pt", "--arch", "shows:net", *options)
    fails(result, 2, f"['{scored / 'shows.py'}', '-a', 'b c']")


RAISING = {
    "required": ("import argparse\np = argparse.ArgumentParser()\n"
                 "p.add_argument('--data', required=True)\np.parse_args()",
                 ["--data", "--arch-argv"]),
    "exit": ("import sys\nsys.exit()", ["status None", "--arch-argv"]),
    "exit 0": ("raise SystemExit(0)", ["status 0"]),
    "exit with words": ("import sys\nsys.exit('usage: me\\nmore')", ["usage: me"]),
    "error": ("raise ValueError('one\\ntwo')", ["ValueError: one"]),
    "syntax": ("def (:", ["SyntaxError"]),
    "base": ("class E(BaseException): pass\nraise E('odd')", ["E: odd"]),
    "generator": ("raise GeneratorExit", ["GeneratorExit"]),
    "ours": ("import pemncodec\nraise pemncodec.EncodeError('mine')", ["EncodeError: mine"]),
    "import": ("import nothing_like_that", ["nothing_like_that"]),
    "nothing": ("", ["net"]),
    "not callable": ("net = 5", ["TypeError"]),
    "factory exits": ("def net(): raise SystemExit(3)", ["status 3"]),
    "factory fails": ("def net(): raise KeyError", ["KeyError"]),
    "no module": ("def net(): return 5", ["made a int"]),
    "forward exits": ("from torch import nn\nclass net(nn.Linear):\n"
                      "  def __init__(self): super().__init__(4, 3)\n"
                      "  def forward(self, x): raise SystemExit(4)", []),
}  # fmt: skip


@pytest.mark.parametrize("name", RAISING)
def test_whatever_user_code_raises_is_one_line(scored: Path, run: Run, name: str) -> None:
    code, words = RAISING[name]
    (scored / "models.py").write_text(code)
    options = ["--arch", "models.py:net", "--keep", 0.5, "--example-shape", 4]
    result = run("encode", "plain.pt", *options)
    place = ["code"] if name == "forward exits" else ["--arch models.py:net"]
    fails(result, 2, *place, *words)
    assert result.stdout == b""
    assert not list(scored.glob("*.pemn"))


def test_a_name_that_is_not_there(scored: Path, run: Run) -> None:
    (scored / "models.py").write_text(
        "from torch import nn\nfrom pathlib import Path\nsize = 3\n_own = lambda: 0\n"
        "class Net: pass\ndef small(): pass\n"
    )
    for module in ("models.py", "models"):
        result = run("encode", "plain.pt", "--keep", 0.5, "--arch", f"{module}:net")
        words = f"--arch {module}:net: there is no net in {module}; it has Net, small\n"
        fails(result, 2, words)
    (scored / "models.py").write_text("".join(f"def f{n}(): pass\n" for n in range(7)))
    result = run("encode", "plain.pt", "--keep", 0.5, "--arch", "models.py:net")
    fails(result, 2, "it has f0, f1, f2, f3, f4, f5, …\n")
    (scored / "models.py").write_text("")
    result = run("encode", "plain.pt", "--keep", 0.5, "--arch", "models.py:net")
    fails(result, 2, "there is no net in models.py\n")


def test_example_inputs_that_do_not_fit(run: Run) -> None:
    options = ["--arch", "noisy.py:net", "--keep", 0.5, "--example-shape", 7]
    result = run("encode", "model.pt", *options, "-q")
    assert b"on the example inputs (--example-shape, example_inputs=\xe2\x80\xa6): mat1" in (
        result.stderr
    )


def test_a_metric_that_ends_the_process_is_one_line(scored: Path, run: Run) -> None:
    (scored / "metrics.py").write_text("raise SystemExit(5)")
    options = ["--keep", 0.5, "--arch", "parsing.py:net", "--accuracy", "metrics.py:top1"]
    fails(run("encode", "plain.pt", *options), 2, "--accuracy metrics.py:top1")
    (scored / "metrics.py").write_text("def top1(model): raise SystemExit(5)")
    fails(run("encode", "plain.pt", *options), 2, "status 5")


class Ends:
    def __setstate__(self, _: object) -> None:
        raise SystemExit(6)


def test_a_trusted_pickle_that_ends_the_process_is_one_line(run: Run, scored: Path) -> None:
    ends = Ends()
    ends.value = 1  # type: ignore[attr-defined]
    torch.save({"state_dict": {"w": torch.ones(1)}, "x": ends}, scored / "ends.pt")
    result = run("encode", "ends.pt", "--trust-pickle", "--no-manifest")
    fails(result, 2, "code of ends.pt: it ended with status 6")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--arch-argv", "-a"], ["--arch-argv belongs to --arch"]),
        (["--arch", "parsing.py:net", "--arch-argv", "'open"], ["--arch-argv", "quotation"]),
        (["--arch", "parsing:net", "--builder", "--arch-argv", "-a"], ["--arch-kwargs"]),
    ],
)
def test_arguments_that_have_no_place(run: Run, options: list[str], words: list[str]) -> None:
    fails(run("encode", "plain.pt", "--keep", 0.5, *options), 2, *words)


def test_an_exit_is_told_in_one_line() -> None:
    said = r"^--arch x: usage: me \(--arch-argv gives it options\)$"
    with pytest.raises(EncodeArgumentError, match=said), user_code.no_exit("--arch x"):
        raise SystemExit("usage: me\nmore")


def test_what_c_code_keeps_in_a_buffer_goes_to_standard_error() -> None:
    code = (
        "import ctypes, sys\n"
        "from pemncodec.cli.user_code import _descriptor_to_stderr\n"
        "with _descriptor_to_stderr():\n"
        "    ctypes.CDLL(None).puts(b'said in C')\n"
        "print('said after')\n"
    )
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=buffered, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("said after\n", "said in C\n")


def test_standard_output_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_: int) -> int:
        raise OSError

    monkeypatch.setattr(user_code.os, "dup", closed)
    with user_code._descriptor_to_stderr():
        ran = True
    assert ran
