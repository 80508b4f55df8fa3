"""What README and its neighbours promise: links lead somewhere, commands print what is shown."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from pemncodec.cli.commands import cli

ROOT = Path(__file__).parent.parent


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown file."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```$", "", text))
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_links_lead_somewhere(name: str) -> None:
    document = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        file, _, anchor = link.partition("#")
        if "://" not in link:
            target = document.parent / file if file else document
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target.read_text()), link


def test_the_readme_names_the_version_of_the_format() -> None:
    (version,) = re.findall(r"(?m)^Version (\S+), draft", (ROOT / "spec/pemn.md").read_text())
    text = (ROOT / "README.md").read_text()
    assert f"[`spec/pemn.md`](spec/pemn.md) (version {version}, draft)" in text


def test_the_quick_start_prints_what_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"(?ms)^```console\n(.*?)^```$", (ROOT / "README.md").read_text())
    shown = re.split(r"(?m)^\$ ", block.replace("\\\n", ""))[1:]
    assert shown[0] == "cd examples\n"
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path / "examples")
    for said in shown[1:]:
        command, _, output = said.partition("\n")
        program, *words = shlex.split(command)
        assert program == "pemn"
        run = CliRunner().invoke(cli, words)
        assert (run.exit_code, run.output) == (0, output)
